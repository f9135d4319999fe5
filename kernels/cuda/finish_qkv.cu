/* qkv_finish: bias, LoRA, per-head RMSNorm, RoPE, and k and v into their page.
 *
 * Formula   v = (y + bias) + delta; per head norm of q and k where given, RoPE of q and k
 * Mapping   a block takes whole heads up to 256 columns of q, of k or of v; the sums of a row lie
 *           in shared memory, then a warp finishes a head. NT as in finish.cu: at rank 16 a block
 *           reads 8 KB of B; base: 8 rows at a time.
 * Bound     bytes: distinct B once, y once, what is written once
 * Registers (nvcc 13.0, sm_90, no spills, no stack), NT 1 / NT 8 / base: 80 / 113 / 51. Not yet run
 *           on a GPU. */
#include "kernels/cuda/finish.cuh"

#define QKV_COLS  256
#define QKV_MT    2
#define BASE_ROWS 8

struct qkv_job {
    struct finish_lora lora;
    bf16_t *q_out;
    const float *y;
    const float *bias[3];
    const float *gain[3]; /* of v: NULL */
    const float *cos, *sin;
    float *keep[3]; /* of q: NULL */
    float *keep_qk; /* q | k before their norm; NULL: not kept */
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
        if (j->keep_qk && k->m < 2) {
            float *kept =
                j->keep_qk + ((size_t)t * j->head_begin[2] + j->head_begin[k->m] + head) * d + i;
            *(float2 *)kept = make_float2(p.lo[0], p.lo[1]);
            *(float2 *)(kept + half) = make_float2(p.hi[0], p.hi[1]);
        }
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
static KERNEL(EXPAND_THREADS, finish_blocks(NT)) void qkv_lora(struct qkv_job j)
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

/* ---- launches ---- */

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
    j->keep_qk = a->keep_qk;
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

HOST_DEVICE constexpr uint32_t qkv_smem(uint32_t nt)
{
    return finish_smem(1, nt, QKV_COLS, 0);
}

enum status cuda_qkv_allow(void)
{
    const struct gpu_smem list[] = {{kernel_of(qkv_lora<1>), qkv_smem(1)},
                                    {kernel_of(qkv_lora<8>), qkv_smem(8)}};
    return gpu_smem_allow(list, ARRAY_COUNT(list));
}

template <uint32_t NT>
static void qkv_launch(const struct cuda_backend *c, struct qkv_job *j,
                       const struct finish_call *call)
{
    constexpr uint32_t smem = qkv_smem(NT);
    j->lora = finish_lora_of(c, call, finish_list(NT));
    LAUNCH_PDL(qkv_lora<NT>, c->sm_count * finish_blocks(NT), EXPAND_THREADS, smem, c->stream, *j);
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

uint32_t qkv_norm_slots(const struct backend_limits *lim)
{
    struct qkv_job j = {};
    j.d_head = lim->d_head;
    qkv_blocks(&j, lim->n_head, lim->n_kv_head);
    return j.block_begin[3] * 2;
}
