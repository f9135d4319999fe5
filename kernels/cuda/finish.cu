/* The three finishes, with bias, LoRA expand and telemetry folded in.
 *
 * Formula: v = (y + bias) + delta, then h += v (residual); out = silu(v_gate) v_up (mlp); per-head
 * RMSNorm of q and k where given, RoPE of q and k, k and v into their page, q out (qkv). Shapes:
 * kernels/finish.h; y and h f32, q_out, out and the KV cache bf16, delta from s (lora.cuh).
 *
 * Three kernels a finish, one body. base: no row has an adapter, elementwise over rows and octets,
 * or 8 rows and a block of heads; a step without LoRA runs these alone, so enabling LoRA costs it
 * nothing. NT = 1: items of up to 8 rows; a block takes 512 columns of a residual, 256 of gate and
 * of up, or whole heads up to 256: at rank 16 it reads 16 KB of B (qkv 8), with three blocks an SM
 * 48 KB in flight. NT = 8: items of up to 64 rows; s comes summed from shrink_sum, B is read once
 * for 64 rows.
 *
 * Blocks loop over (item, columns), columns fastest, so that an adapter's B is one run of bytes. y
 * and h travel by cp.async while the tensor cores work, which costs no registers. Base-only items
 * skip the LoRA part and do the same elementwise work in the same order: a row's bits do not depend
 * on which kernel met it. Sums of products are explicit fmaf and everything else single operations,
 * so that bits do not depend on how the compiler contracts one kernel or the other.
 *
 * Telemetry: |delta|^2 and |y + bias|^2 of 128 columns are added to a slot of the row that only one
 * block of a launch writes; the last finish of a pass (down, last layer) adds a row's slots in
 * order to norm2 and clears them.
 *
 * Bound: bytes; distinct B once, y once, what is written once.
 * Rejected: expand as a kernel of its own (y once more in and out); sums of squares by atomics
 * (order); y in the accumulators' layout (8 rows by 16 columns a warp are 32-byte pieces).
 * Registers (nvcc 13.0, sm_90, no spills, no stack), NT 1 / NT 8 / base: residual 80 / 122 / 38,
 * mlp 80 / 94 / 54, qkv 80 / 113 / 51; fold 37. Not yet run on a GPU. */
#include "kernels/cuda/lora_expand.cuh"
#include "server/base/check.h"
#include "server/base/mem.h"

#define QKV_COLS  256
#define QKV_MT    2
#define BASE_ROWS 8
#define LOG2_E    1.44269504088896341f

HOST_DEVICE constexpr uint32_t pitch_of(uint32_t cols)
{
    return cols + 4;
}

/* Shared memory of a block: the deltas of n modules, what is fetched early, the modules' s and
 * tables. */
HOST_DEVICE constexpr uint32_t sv_elems(uint32_t nt)
{
    return nt * 8 * s_pitch(nt);
}
HOST_DEVICE constexpr uint32_t out_floats(uint32_t nt, uint32_t cols)
{
    return nt * 8 * pitch_of(cols);
}
HOST_DEVICE constexpr uint32_t finish_smem(uint32_t n, uint32_t nt, uint32_t cols, uint32_t early)
{
    return n * (out_floats(nt, cols) * 4 + sv_elems(nt) * 2 + (uint32_t)sizeof(struct module_ref)) +
           early * EARLY_BYTES;
}

/* What every finish's job has. */
struct finish_lora {
    struct lora_view v;
    double *norm_part; /* NULL: off */
    uint32_t norm_slots;
};

DEVICE double *norm_slot(const struct finish_lora *f, uint32_t t, uint32_t slot)
{
    return f->norm_part ? f->norm_part + ((size_t)t * f->norm_slots + slot) * 2 : NULL;
}

/* ---- residual ---- */

struct residual_job {
    struct finish_lora lora;
    float *h;
    const float *y, *bias;
    const uint32_t *row_count;
    uint32_t y_stride, d_model;
};

HOST_DEVICE constexpr uint32_t residual_mt(uint32_t nt)
{
    return nt == 1 ? 4 : 2;
}
HOST_DEVICE constexpr uint32_t residual_cols(uint32_t nt)
{
    return residual_mt(nt) * EXPAND_WARPS * LORA_TILE_OUT;
}

/* Octets a thread fetches early: y and h, of all its rows or of the first. */
HOST_DEVICE constexpr uint32_t residual_early(uint32_t nt)
{
    return nt == 1 ? 2 * 8 * residual_cols(nt) / 8 / EXPAND_THREADS : 2;
}

/* What a thread has under way: its columns of y and h. */
struct residual_io {
    struct octet y, h;
};

DEVICE void residual_load(struct residual_io *io, const struct residual_job *j, uint32_t t,
                          uint32_t n, bool live)
{
    if (live) {
        io->y = octet_load(j->y + (size_t)t * j->y_stride + n);
        io->h = octet_load(j->h + (size_t)t * j->d_model + n);
    }
}

/* The same on its way. */
DEVICE void residual_fetch(char *early, const struct residual_job *j, uint32_t t, uint32_t n,
                           bool live)
{
    early_fetch(early, live ? j->y + (size_t)t * j->y_stride + n : j->y, live);
    early_fetch(early + EARLY_BYTES, live ? j->h + (size_t)t * j->d_model + n : j->h, live);
    cp_async_commit();
}

/* delta NULL: not adapted. The whole warp calls; live: the octet exists. */
DEVICE void residual_octet(const struct residual_job *j, struct residual_io *io, uint32_t t,
                           uint32_t n, bool live, const float *delta)
{
    float delta2 = 0, base2 = 0;
    if (live) {
        octet_bias(&io->y, j->bias, n);
        if (delta) {
            const struct octet d = octet_load(delta);
            delta2 = octet_norm2(&d);
            base2 = octet_norm2(&io->y);
            octet_add(&io->y, &d);
        }
        octet_add(&io->h, &io->y);
        octet_store(j->h + (size_t)t * j->d_model + n, &io->h);
    }
    if (delta && j->lora.norm_part) {
        double *slot = live ? norm_slot(&j->lora, t, n / NORM_COLS) : NULL;
        norm_add(slot, delta2, base2);
    }
}

static KERNEL(EXPAND_THREADS, 4) void residual_base(struct residual_job j)
{
    const uint32_t octets = j.d_model / 8, count = *j.row_count * octets;
    pdl_trigger();
    pdl_wait();
    for (uint32_t o = blockIdx.x * EXPAND_THREADS + threadIdx.x; o < count;
         o += gridDim.x * EXPAND_THREADS) {
        const uint32_t t = o / octets, n = o % octets * 8;
        struct residual_io io;
        residual_load(&io, &j, t, n, true);
        residual_octet(&j, &io, t, n, true, NULL);
    }
}

template <uint32_t NT>
static KERNEL(EXPAND_THREADS, NT == 1 ? 3 : 2) void residual_lora(struct residual_job j)
{
    constexpr uint32_t MT = residual_mt(NT), COLS = residual_cols(NT), PF = 2;
    constexpr uint32_t OCTETS = COLS / 8, PITCH = pitch_of(COLS), ROWS = EXPAND_THREADS / OCTETS;
    constexpr uint32_t EARLY = residual_early(NT);
    SMEM(smem);
    float *out = (float *)smem;
    char *early = (char *)(out + out_floats(NT, COLS));
    bf16_t *sv = (bf16_t *)(early + EARLY * EARLY_BYTES);
    struct module_ref *ref = (struct module_ref *)(sv + sv_elems(NT));
    const uint32_t blocks = (j.d_model + COLS - 1) / COLS, units = *j.lora.v.item_count * blocks;
    pdl_trigger();
    NO_UNROLL
    for (uint32_t u = blockIdx.x; u < units; u += gridDim.x) {
        const struct cuda_item item = j.lora.v.item[u / blocks];
        const uint32_t n0 = u % blocks * COLS, row = threadIdx.x / OCTETS;
        const uint32_t col = threadIdx.x % OCTETS * 8, n = n0 + col;
        const struct expand e = {
            &j.lora.v, ref, item.begin, item.count, n0 / LORA_TILE_OUT, lora_out_tiles(j.d_model)};
        uint4 b[PF][MT];
        if (warp_id() == 0)
            table_fill(ref, &j.lora.v, &j.lora.v.seg[item.seg], 0, 1);
        block_sync();
        const bool adapted = ref->tile_count > 0;
        if (adapted)
            b_load<MT, PF>(b, &e, 0);
        pdl_wait();
        UNROLL
        for (uint32_t i = 0; i < EARLY / 2; i++)
            residual_fetch(early + i * 2 * EARLY_BYTES, &j, item.begin + row + i * ROWS, n,
                           row + i * ROWS < item.count && n < j.d_model);
        if (adapted) {
            float acc[MT][NT][4];
            expand_run<MT, NT, PF>(acc, b, &e, sv);
            delta_store<MT, NT>(out, PITCH, acc);
        }
        block_sync();
        cp_async_wait<0>();
        struct residual_io io = {early_take(early), early_take(early + EARLY_BYTES)}, next;
        NO_UNROLL
        for (uint32_t r = row, i = 0; r < item.count; r += ROWS, i += 2) {
            if (NT != 1)
                residual_load(&next, &j, item.begin + r + ROWS, n,
                              r + ROWS < item.count && n < j.d_model);
            else if (i > 0)
                io = {early_take(early + i * EARLY_BYTES),
                      early_take(early + (i + 1) * EARLY_BYTES)};
            residual_octet(&j, &io, item.begin + r, n, n < j.d_model,
                           adapted ? out + r * PITCH + col : NULL);
            if (NT != 1)
                io = next;
        }
    }
    pdl_wait();
}

/* ---- mlp ---- */

struct mlp_job {
    struct finish_lora lora;
    bf16_t *out;
    const float *y, *bias_gate, *bias_up;
    float *keep_gate, *keep_up;
    const uint32_t *row_count;
    uint32_t y_stride, d_ff;
};

HOST_DEVICE constexpr uint32_t mlp_mt(uint32_t nt)
{
    return nt == 1 ? 2 : 1;
}
HOST_DEVICE constexpr uint32_t mlp_cols(uint32_t nt)
{
    return mlp_mt(nt) * EXPAND_WARPS * LORA_TILE_OUT;
}

struct mlp_io {
    struct octet gate, up;
};

DEVICE void mlp_load(struct mlp_io *io, const struct mlp_job *j, uint32_t t, uint32_t n, bool live)
{
    if (live) {
        const float *y = j->y + (size_t)t * j->y_stride + n;
        io->gate = octet_load(y);
        io->up = octet_load(y + j->d_ff);
    }
}

DEVICE void mlp_fetch(char *early, const struct mlp_job *j, uint32_t t, uint32_t n, bool live)
{
    const float *y = live ? j->y + (size_t)t * j->y_stride + n : j->y;
    early_fetch(early, y, live);
    early_fetch(early + EARLY_BYTES, live ? y + j->d_ff : y, live);
    cp_async_commit();
}

/* v = (y + bias) + delta, and the squares it adds to the row's telemetry. */
DEVICE void module_add(struct octet *v, const float *bias, uint32_t n, const float *delta,
                       float norm2[2])
{
    octet_bias(v, bias, n);
    if (delta) {
        const struct octet d = octet_load(delta);
        norm2[0] = octet_norm2(&d);
        norm2[1] = octet_norm2(v);
        octet_add(v, &d);
    }
}

DEVICE float silu(float g)
{
    return g * fast_rcp(1.0f + fast_exp2(-LOG2_E * g));
}

DEVICE void mlp_octet(const struct mlp_job *j, struct mlp_io *io, uint32_t t, uint32_t n, bool live,
                      const float *const delta[2])
{
    float gate2[2] = {}, up2[2] = {};
    if (live) {
        const size_t at = (size_t)t * j->d_ff + n;
        module_add(&io->gate, j->bias_gate, n, delta[0], gate2);
        module_add(&io->up, j->bias_up, n, delta[1], up2);
        if (j->keep_gate)
            octet_store(j->keep_gate + at, &io->gate);
        if (j->keep_up)
            octet_store(j->keep_up + at, &io->up);
        UNROLL
        for (uint32_t i = 0; i < 8; i++)
            io->up.v[i] *= silu(io->gate.v[i]);
        octet_store_bf16(j->out + at, &io->up);
    }
    double *slot = live ? norm_slot(&j->lora, t, n / NORM_COLS) : NULL;
    if (delta[0] && j->lora.norm_part)
        norm_add(slot, gate2[0], gate2[1]);
    if (delta[1] && j->lora.norm_part)
        norm_add(slot, up2[0], up2[1]);
}

static KERNEL(EXPAND_THREADS, 4) void mlp_base(struct mlp_job j)
{
    const uint32_t octets = j.d_ff / 8, count = *j.row_count * octets;
    const float *const none[2] = {};
    pdl_trigger();
    pdl_wait();
    for (uint32_t o = blockIdx.x * EXPAND_THREADS + threadIdx.x; o < count;
         o += gridDim.x * EXPAND_THREADS) {
        const uint32_t t = o / octets, n = o % octets * 8;
        struct mlp_io io;
        mlp_load(&io, &j, t, n, true);
        mlp_octet(&j, &io, t, n, true, none);
    }
}

template <uint32_t NT>
static KERNEL(EXPAND_THREADS, NT == 1 ? 3 : 2) void mlp_lora(struct mlp_job j)
{
    constexpr uint32_t MT = mlp_mt(NT), COLS = mlp_cols(NT), PF = 2;
    constexpr uint32_t OCTETS = COLS / 8, PITCH = pitch_of(COLS), ROWS = EXPAND_THREADS / OCTETS;
    constexpr uint32_t WARP_ROWS = OCTETS < LANES ? LANES / OCTETS : 1;
    SMEM(smem);
    float *out[2] = {(float *)smem, (float *)smem + out_floats(NT, COLS)};
    char *early = (char *)(out[1] + out_floats(NT, COLS));
    bf16_t *sv0 = (bf16_t *)(early + 2 * EARLY_BYTES), *sv[2] = {sv0, sv0 + sv_elems(NT)};
    struct module_ref *ref = (struct module_ref *)(sv[1] + sv_elems(NT));
    const uint32_t blocks = (j.d_ff + COLS - 1) / COLS, units = *j.lora.v.item_count * blocks;
    pdl_trigger();
    NO_UNROLL
    for (uint32_t u = blockIdx.x; u < units; u += gridDim.x) {
        const struct cuda_item item = j.lora.v.item[u / blocks];
        const uint32_t n0 = u % blocks * COLS, row = threadIdx.x / OCTETS;
        const uint32_t col = threadIdx.x % OCTETS * 8, n = n0 + col;
        struct expand e[2];
        uint4 b[2][PF][MT];
        bool adapted[2];
        if (warp_id() == 0)
            table_fill(ref, &j.lora.v, &j.lora.v.seg[item.seg], 0, 2);
        block_sync();
        UNROLL
        for (uint32_t m = 0; m < 2; m++) {
            e[m] = {&j.lora.v,          &ref[m],
                    item.begin,         item.count,
                    n0 / LORA_TILE_OUT, lora_out_tiles(j.d_ff)};
            adapted[m] = ref[m].tile_count > 0;
            if (adapted[m])
                b_load<MT, PF>(b[m], &e[m], 0);
        }
        pdl_wait();
        mlp_fetch(early, &j, item.begin + row, n, row < item.count && n < j.d_ff);
        UNROLL
        for (uint32_t m = 0; m < 2; m++) {
            if (adapted[m]) {
                float acc[MT][NT][4];
                expand_run<MT, NT, PF>(acc, b[m], &e[m], sv[m]);
                delta_store<MT, NT>(out[m], PITCH, acc);
            }
        }
        block_sync();
        cp_async_wait<0>();
        struct mlp_io io = {early_take(early), early_take(early + EARLY_BYTES)}, next;
        /* a warp may hold two rows, and stays together */
        NO_UNROLL
        for (uint32_t r = row; r - row % WARP_ROWS < item.count; r += ROWS) {
            const float *const delta[2] = {adapted[0] ? out[0] + r * PITCH + col : NULL,
                                           adapted[1] ? out[1] + r * PITCH + col : NULL};
            if (NT != 1) /* otherwise the first was all */
                mlp_load(&next, &j, item.begin + r + ROWS, n, r + ROWS < item.count && n < j.d_ff);
            mlp_octet(&j, &io, item.begin + r, n, r < item.count && n < j.d_ff, delta);
            if (NT != 1)
                io = next;
        }
    }
    pdl_wait();
}

/* ---- qkv ---- */

struct qkv_job {
    struct finish_lora lora;
    bf16_t *q_out;
    const float *y;
    const float *bias[3];
    const float *gain[3]; /* of v: NULL */
    const float *cos, *sin;
    float *keep[3]; /* of q: NULL */
    struct kv_cache kv;
    const uint32_t *row_count, *seq, *pos, *page_begin, *page;
    float norm_eps;
    uint32_t pos_max, y_stride, layer, d_head;
    uint32_t head_count[3], head_begin[3]; /* of q, k, v; where in y, in heads */
    uint32_t block_begin[4];               /* blocks of q, k, v: whole heads of one module */
    uint32_t heads;                        /* of a block, at most */
};

/* One block of columns. They start at column `pad` of the block's first output tile. */
struct qkv_block {
    uint32_t m, head, heads, n0, cols, pad;
};

DEVICE struct qkv_block qkv_block_at(const struct qkv_job *j, uint32_t i)
{
    struct qkv_block k;
    k.m = i < j->block_begin[1] ? 0 : i < j->block_begin[2] ? 1 : 2;
    k.head = (i - j->block_begin[k.m]) * j->heads;
    k.heads = j->head_count[k.m] - k.head < j->heads ? j->head_count[k.m] - k.head : j->heads;
    k.n0 = k.head * j->d_head;
    k.cols = k.heads * j->d_head;
    k.pad = k.n0 % LORA_TILE_OUT;
    return k;
}

/* Rows begin .. of a block: v = (y + bias) + delta, left where delta was. */
DEVICE void qkv_values(const struct qkv_job *j, const struct qkv_block *k, uint32_t block,
                       const struct cuda_item *item, float *out, bool adapted)
{
    const uint32_t col = threadIdx.x % (QKV_COLS / 8) * 8;
    for (uint32_t r = threadIdx.x / (QKV_COLS / 8); r < item->count;
         r += EXPAND_THREADS / (QKV_COLS / 8)) {
        const bool live = col < k->cols;
        float *v = out + r * pitch_of(QKV_COLS) + k->pad + col, norm2[2] = {};
        const uint32_t t = item->begin + r;
        if (live) {
            struct octet y = octet_load(j->y + (size_t)t * j->y_stride +
                                        (size_t)j->head_begin[k->m] * j->d_head + k->n0 + col);
            module_add(&y, j->bias[k->m], k->n0 + col, adapted ? v : NULL, norm2);
            octet_store(v, &y);
        }
        if (adapted && j->lora.norm_part)
            norm_add(live ? norm_slot(&j->lora, t, block * 2 + col / NORM_COLS) : NULL, norm2[0],
                     norm2[1]);
    }
}

/* Where a head of row t goes: q out, or its place in the cache. */
DEVICE bf16_t *head_place(const struct qkv_job *j, const struct qkv_block *k, uint32_t t,
                          uint32_t head)
{
    if (k->m == 0)
        return j->q_out + ((size_t)t * j->head_count[0] + head) * j->d_head;
    const uint32_t pos = j->pos[t], page_tok = j->kv.page_tok;
    const uint32_t page = j->page[j->page_begin[j->seq[t]] + pos / page_tok];
    return (bf16_t *)j->kv.base + page * j->kv.stride_page + j->layer * j->kv.stride_layer +
           (k->m - 1) * j->kv.stride_kv + head * j->kv.stride_head +
           pos % page_tok * j->kv.stride_tok;
}

/* Two neighbours of the lower and of the upper half of a head. */
struct pairs {
    float lo[2], hi[2];
};

DEVICE void pairs_norm(struct pairs *p, const float *gain, uint32_t i, uint32_t half, float rstd)
{
    UNROLL
    for (uint32_t e = 0; e < 2; e++) {
        p->lo[e] = p->lo[e] * rstd * gain[i + e];
        p->hi[e] = p->hi[e] * rstd * gain[i + e + half];
    }
}
DEVICE void pairs_turn(struct pairs *p, const float *cos, const float *sin)
{
    UNROLL
    for (uint32_t e = 0; e < 2; e++) {
        const float lo = p->lo[e], hi = p->hi[e];
        p->lo[e] = fmaf(-hi, sin[e], lo * cos[e]);
        p->hi[e] = fmaf(lo, sin[e], hi * cos[e]);
    }
}

/* One head of a row, by a warp: norm, RoPE, write. v [d_head] in shared memory. */
DEVICE void head_finish(const struct qkv_job *j, const struct qkv_block *k, uint32_t t,
                        uint32_t head, const float *v)
{
    const uint32_t d = j->d_head, half = d / 2;
    const float *gain = j->gain[k->m];
    const size_t turn = (size_t)j->pos[t] * half;
    bf16_t *to = head_place(j, k, t, head);
    float *keep = j->keep[k->m], rstd = 1;
    DEVICE_CHECK(j->pos[t] < j->pos_max);
    if (gain) {
        float sum = 0;
        for (uint32_t i = lane_id(); i < d; i += LANES)
            sum = fmaf(v[i], v[i], sum);
        rstd = fast_rsqrt(fmaf(warp_sum(sum), 1.0f / (float)d, j->norm_eps));
    }
    for (uint32_t i = lane_id() * 2; i < half; i += LANES * 2) {
        struct pairs p = {{v[i], v[i + 1]}, {v[i + half], v[i + half + 1]}};
        if (gain)
            pairs_norm(&p, gain, i, half, rstd);
        if (k->m < 2)
            pairs_turn(&p, j->cos + turn + i, j->sin + turn + i);
        *(uint32_t *)(to + i) = bf16x2_pack(p.lo[0], p.lo[1]);
        *(uint32_t *)(to + i + half) = bf16x2_pack(p.hi[0], p.hi[1]);
        if (keep) {
            float *kept = keep + ((size_t)t * j->head_count[k->m] + head) * d + i;
            *(float2 *)kept = make_float2(p.lo[0], p.lo[1]);
            *(float2 *)(kept + half) = make_float2(p.hi[0], p.hi[1]);
        }
    }
}

/* After qkv_values and a barrier: heads of the item's rows, a warp each. */
DEVICE void qkv_heads(const struct qkv_job *j, const struct qkv_block *k,
                      const struct cuda_item *item, const float *out)
{
    for (uint32_t i = warp_id(); i < item->count * k->heads; i += EXPAND_WARPS) {
        const uint32_t r = i / k->heads, h = i % k->heads;
        head_finish(j, k, item->begin + r, k->head + h,
                    out + r * pitch_of(QKV_COLS) + k->pad + h * j->d_head);
    }
}

static KERNEL(EXPAND_THREADS, 4) void qkv_base(struct qkv_job j)
{
    SMEM(smem);
    float *out = (float *)smem;
    const uint32_t blocks = j.block_begin[3], n_tok = *j.row_count;
    const uint32_t units = (n_tok + BASE_ROWS - 1) / BASE_ROWS * blocks;
    pdl_trigger();
    pdl_wait();
    NO_UNROLL
    for (uint32_t u = blockIdx.x; u < units; u += gridDim.x) {
        const struct qkv_block k = qkv_block_at(&j, u % blocks);
        struct cuda_item item = {0, u / blocks * BASE_ROWS, BASE_ROWS};
        if (item.count > n_tok - item.begin)
            item.count = n_tok - item.begin;
        qkv_values(&j, &k, 0, &item, out, false);
        block_sync();
        qkv_heads(&j, &k, &item, out);
        block_sync();
    }
}

template <uint32_t NT>
static KERNEL(EXPAND_THREADS, NT == 1 ? 3 : 2) void qkv_lora(struct qkv_job j)
{
    constexpr uint32_t MT = QKV_MT, PF = NT == 1 ? 4 : 2;
    SMEM(smem);
    float *out = (float *)smem;
    bf16_t *sv = (bf16_t *)(out + out_floats(NT, QKV_COLS));
    struct module_ref *ref = (struct module_ref *)(sv + sv_elems(NT));
    const uint32_t blocks = j.block_begin[3], units = *j.lora.v.item_count * blocks;
    pdl_trigger();
    NO_UNROLL
    for (uint32_t u = blockIdx.x; u < units; u += gridDim.x) {
        const struct cuda_item item = j.lora.v.item[u / blocks];
        const struct qkv_block k = qkv_block_at(&j, u % blocks);
        const struct expand e = {&j.lora.v,
                                 ref,
                                 item.begin,
                                 item.count,
                                 k.n0 / LORA_TILE_OUT,
                                 lora_out_tiles(j.head_count[k.m] * j.d_head)};
        uint4 b[PF][MT];
        if (warp_id() == 0)
            table_fill(ref, &j.lora.v, &j.lora.v.seg[item.seg], k.m, 1);
        block_sync();
        const bool adapted = ref->tile_count > 0;
        if (adapted)
            b_load<MT, PF>(b, &e, 0);
        pdl_wait();
        if (adapted) {
            float acc[MT][NT][4];
            expand_run<MT, NT, PF>(acc, b, &e, sv);
            delta_store<MT, NT>(out, pitch_of(QKV_COLS), acc);
        }
        block_sync();
        qkv_values(&j, &k, u % blocks, &item, out, adapted);
        block_sync();
        qkv_heads(&j, &k, &item, out);
    }
    pdl_wait();
}

/* ---- telemetry ---- */

struct fold_job {
    double *norm2, *part;
    const uint32_t *row_count;
    uint32_t slots;
};

/* A warp a row: its slots in order of columns, lane by lane, to norm2; then they are zero again. */
static KERNEL(EXPAND_THREADS, 4) void norm_fold(struct fold_job j)
{
    const uint32_t n_tok = *j.row_count;
    pdl_trigger();
    pdl_wait();
    for (uint32_t t = blockIdx.x * EXPAND_WARPS + warp_id(); t < n_tok;
         t += gridDim.x * EXPAND_WARPS) {
        double sum[2] = {};
        for (uint32_t i = lane_id(); i < j.slots; i += LANES) {
            double *slot = j.part + ((size_t)t * j.slots + i) * 2;
            for (uint32_t e = 0; e < 2; e++) {
                sum[e] += slot[e];
                slot[e] = 0;
            }
        }
        UNROLL
        for (uint32_t m = LANES / 2; m; m /= 2) {
            for (uint32_t e = 0; e < 2; e++)
                sum[e] += warp_shfl_xor_f64(sum[e], m);
        }
        if (lane_id() < 2)
            j.norm2[2 * (size_t)t + lane_id()] += lane_id() ? sum[1] : sum[0];
    }
}

/* ---- launchers ---- */

/* n pieces, at most so many blocks an SM. */
static uint32_t grid_of(const struct cuda_backend *c, uint64_t n, uint32_t per_sm)
{
    return (uint32_t)MIN(MAX(n, 1), (uint64_t)c->sm_count * per_sm);
}

static uint32_t div_up(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

static bool aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

/* The pass has adapters, and this call is part of it. */
static bool has_lora(const struct cuda_backend *c, const struct lora_step *lora)
{
    return lora->table && c->pass.lora;
}

struct finish_call {
    const struct lora_step *lora;
    uint32_t layer, first, n_tok, slots;
};

static struct finish_lora finish_lora_of(const struct cuda_backend *c,
                                         const struct finish_call *call, enum lora_list list)
{
    struct finish_lora f = {};
    f.v = lora_view_of(c, call->lora, list, call->layer, call->first, call->n_tok);
    f.norm_part = call->lora->norm2 ? c->lora->norm_part : NULL;
    f.norm_slots = c->lora->norm_slots;
    CHECK(!f.norm_part || call->slots <= f.norm_slots);
    return f;
}

/* Before the first slot of the next pass is written, and before the host reads norm2. */
static void fold(const struct cuda_backend *c, const struct residual_finish_args *a)
{
    const struct fold_job j = {a->lora.norm2, c->lora->norm_part, &c->step.counts->n_tok,
                               c->lora->norm_slots};
    if (a->module == LORA_MODULE_DOWN && a->layer + 1 == c->step.n_layer && a->lora.norm2)
        LAUNCH_PDL(norm_fold, grid_of(c, div_up(a->n_tok, EXPAND_WARPS), 4), EXPAND_THREADS, 0,
                   c->stream, j);
}

template <uint32_t NT>
static void residual_launch(const struct cuda_backend *c, struct residual_job *j,
                            const struct finish_call *call)
{
    constexpr uint32_t smem = finish_smem(1, NT, residual_cols(NT), residual_early(NT));
    j->lora = finish_lora_of(c, call, NT == 1 ? LORA_LIST_DECODE : LORA_LIST_PREFILL);
    LAUNCH_PDL(residual_lora<NT>, c->sm_count * (NT == 1 ? 3 : 2), EXPAND_THREADS, smem, c->stream,
               *j);
}

enum status cuda_residual_finish(struct backend *b, const struct residual_finish_args *a)
{
    const struct cuda_backend *c = cuda_of(b);
    struct residual_job j = {};
    if (a->n_tok == 0)
        return STATUS_OK;
    CHECK(a->d_model % 8 == 0 && a->y_stride % 4 == 0);
    CHECK(aligned(a->h) && aligned(a->y) && aligned(a->bias));
    j.h = a->h;
    j.y = a->y;
    j.bias = a->bias;
    j.row_count = &c->step.counts->n_tok;
    j.y_stride = a->y_stride;
    j.d_model = a->d_model;
    if (!has_lora(c, &a->lora)) {
        uint64_t threads = (uint64_t)a->n_tok * (a->d_model / 8);
        LAUNCH_PDL(residual_base, grid_of(c, div_up(threads, EXPAND_THREADS), 8), EXPAND_THREADS, 0,
                   c->stream, j);
        return gpu_launched("residual_finish");
    }
    const struct finish_call call = {&a->lora, a->layer, (uint32_t)a->module, a->n_tok,
                                     div_up(a->d_model, NORM_COLS)};
    if (c->pass.lora_decode)
        residual_launch<1>(c, &j, &call);
    if (c->pass.lora_prefill)
        residual_launch<8>(c, &j, &call);
    fold(c, a);
    return gpu_launched("residual_finish");
}

template <uint32_t NT>
static void mlp_launch(const struct cuda_backend *c, struct mlp_job *j,
                       const struct finish_call *call)
{
    constexpr uint32_t smem = finish_smem(2, NT, mlp_cols(NT), 2);
    j->lora = finish_lora_of(c, call, NT == 1 ? LORA_LIST_DECODE : LORA_LIST_PREFILL);
    LAUNCH_PDL(mlp_lora<NT>, c->sm_count * (NT == 1 ? 3 : 2), EXPAND_THREADS, smem, c->stream, *j);
}

enum status cuda_mlp_finish(struct backend *b, const struct mlp_finish_args *a)
{
    const struct cuda_backend *c = cuda_of(b);
    struct mlp_job j = {};
    if (a->n_tok == 0)
        return STATUS_OK;
    CHECK(a->d_ff % 8 == 0 && a->y_stride % 4 == 0);
    CHECK(aligned(a->out) && aligned(a->y) && aligned(a->bias_gate) && aligned(a->bias_up));
    CHECK(aligned(a->keep_gate) && aligned(a->keep_up));
    j.out = (bf16_t *)a->out;
    j.y = a->y;
    j.bias_gate = a->bias_gate;
    j.bias_up = a->bias_up;
    j.keep_gate = a->keep_gate;
    j.keep_up = a->keep_up;
    j.row_count = &c->step.counts->n_tok;
    j.y_stride = a->y_stride;
    j.d_ff = a->d_ff;
    if (!has_lora(c, &a->lora)) {
        uint64_t threads = (uint64_t)a->n_tok * (a->d_ff / 8);
        LAUNCH_PDL(mlp_base, grid_of(c, div_up(threads, EXPAND_THREADS), 8), EXPAND_THREADS, 0,
                   c->stream, j);
        return gpu_launched("mlp_finish");
    }
    const struct finish_call call = {&a->lora, a->layer, LORA_MODULE_GATE, a->n_tok,
                                     div_up(a->d_ff, NORM_COLS)};
    if (c->pass.lora_decode)
        mlp_launch<1>(c, &j, &call);
    if (c->pass.lora_prefill)
        mlp_launch<8>(c, &j, &call);
    return gpu_launched("mlp_finish");
}

/* Heads of a block, and how the blocks of q, k and v follow one another. A head that does not start
 * at an output tile shifts the block by 8 columns. */
static void qkv_blocks(struct qkv_job *j, uint32_t n_head, uint32_t n_kv_head)
{
    const uint32_t heads[3] = {n_head, n_kv_head, n_kv_head};
    j->heads = (QKV_COLS - (j->d_head % LORA_TILE_OUT ? 8 : 0)) / j->d_head;
    for (uint32_t m = 0, at = 0; m < 3; m++) {
        j->head_count[m] = heads[m];
        j->head_begin[m] = at;
        at += heads[m];
        j->block_begin[m + 1] = j->block_begin[m] + div_up(heads[m], j->heads);
    }
}

static void qkv_job_of(const struct cuda_backend *c, struct qkv_job *j,
                       const struct qkv_finish_args *a)
{
    j->q_out = (bf16_t *)a->q_out;
    j->y = a->y;
    j->bias[0] = a->bias_q;
    j->bias[1] = a->bias_k;
    j->bias[2] = a->bias_v;
    j->gain[0] = a->q_norm;
    j->gain[1] = a->k_norm;
    j->cos = a->rope.cos;
    j->sin = a->rope.sin;
    j->keep[1] = a->keep_k;
    j->keep[2] = a->keep_v;
    j->kv = a->kv;
    j->seq = c->step.seq;
    j->pos = c->step.pos;
    j->page_begin = c->step.page_begin;
    j->page = c->step.page;
    j->norm_eps = a->norm_eps;
    j->pos_max = a->rope.pos_max;
    j->row_count = &c->step.counts->n_tok;
    j->y_stride = a->y_stride;
    j->layer = a->layer;
    j->d_head = a->d_head;
    qkv_blocks(j, a->n_head, a->n_kv_head);
}

template <uint32_t NT>
static void qkv_launch(const struct cuda_backend *c, struct qkv_job *j,
                       const struct finish_call *call)
{
    constexpr uint32_t smem = finish_smem(1, NT, QKV_COLS, 0);
    j->lora = finish_lora_of(c, call, NT == 1 ? LORA_LIST_DECODE : LORA_LIST_PREFILL);
    LAUNCH_PDL(qkv_lora<NT>, c->sm_count * (NT == 1 ? 3 : 2), EXPAND_THREADS, smem, c->stream, *j);
}

enum status cuda_qkv_finish(struct backend *b, const struct qkv_finish_args *a)
{
    const struct cuda_backend *c = cuda_of(b);
    struct qkv_job j = {};
    if (a->n_tok == 0)
        return STATUS_OK;
    CHECK(a->d_head % 8 == 0 && a->d_head >= 8 && a->d_head < QKV_COLS + 8);
    CHECK(a->y_stride % 4 == 0 && a->kv.dtype == DTYPE_BF16);
    CHECK(aligned(a->y) && aligned(a->q_out) && aligned(a->kv.base));
    CHECK(aligned(a->bias_q) && aligned(a->bias_k) && aligned(a->bias_v));
    qkv_job_of(c, &j, a);
    if (!has_lora(c, &a->lora)) {
        uint64_t units = (uint64_t)div_up(a->n_tok, BASE_ROWS) * j.block_begin[3];
        LAUNCH_PDL(qkv_base, grid_of(c, units, 4), EXPAND_THREADS,
                   out_floats(1, QKV_COLS) * sizeof(float), c->stream, j);
        return gpu_launched("qkv_finish");
    }
    const struct finish_call call = {&a->lora, a->layer, LORA_MODULE_Q, a->n_tok,
                                     j.block_begin[3] * 2};
    if (c->pass.lora_decode)
        qkv_launch<1>(c, &j, &call);
    if (c->pass.lora_prefill)
        qkv_launch<8>(c, &j, &call);
    return gpu_launched("qkv_finish");
}

/* ---- memory ---- */

/* Slots of the finish that has most; blocks of heads are counted as if each module's last were
 * ragged. */
static uint32_t norm_slots_of(const struct backend_limits *lim)
{
    struct qkv_job j = {};
    j.d_head = lim->d_head;
    qkv_blocks(&j, lim->n_head, lim->n_kv_head);
    return MAX(j.block_begin[3] * 2,
               MAX(div_up(lim->d_model, NORM_COLS), div_up(lim->d_ff, NORM_COLS)));
}

enum status cuda_lora_prepare(struct cuda_backend *c, struct errtext *err)
{
    c->lora = (struct cuda_lora *)mem_alloc(sizeof(*c->lora));
    if (c->limits.slots_max == 0)
        return STATUS_OK;
    c->lora->norm_slots = norm_slots_of(&c->limits);
    size_t bytes = sizeof(double) * 2 * c->lora->norm_slots * c->limits.rows_max;
    enum status st = cuda_take(c, (void **)&c->lora->norm_part, bytes, "LoRA telemetry", err);
    if (!st)
        st = gpu_fill(c->stream, c->lora->norm_part, 0, bytes);
    return st;
}

void cuda_lora_release(struct cuda_backend *c)
{
    if (!c->lora)
        return;
    if (c->lora->norm_part)
        gpu_free(c->gpu, c->lora->norm_part);
    mem_free(c->lora);
    c->lora = NULL;
}
