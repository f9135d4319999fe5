/* residual_finish and mlp_finish, with bias, LoRA expand and telemetry folded in; and the telemetry
 * of all finishes.
 *
 * Formula   v = (y + bias) + delta, then h += v (residual), out = silu(v_gate) v_up (mlp)
 * Shapes    kernels/finish.h; y and h f32, out bf16, delta from s (lora.cuh)
 *
 * Two kernels, for both: an op (residual_op, mlp_op) says what is loaded, fetched and done with an
 * octet. octets_base: no row has an adapter, elementwise; a step without LoRA runs it alone, so
 * enabling LoRA costs it nothing. octets_lora, NT = 1: items of up to 8 rows; a block takes 512
 * columns of a residual, or 256 of gate and of up: at rank 16 it reads 16 KB of B, with three
 * blocks an SM 48 KB in flight. NT = 8: items of up to 64 rows; s comes summed from shrink_sum, B
 * is read once for 64 rows.
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
 * Registers (nvcc 13.0, sm_90, no spills, no stack), NT 1 / NT 8 / base: residual 80 / 106 / 38,
 * mlp 80 / 96 / 54; fold 37. Not yet run on a GPU. */
#include "kernels/cuda/finish.cuh"
#include "server/base/mem.h"

#define LOG2_E 1.44269504088896341f

/* ---- residual ---- */

struct residual_job {
    struct finish_lora lora;
    float *h;
    const float *y, *bias;
    const uint32_t *row_count;
    uint32_t y_stride, d_model;
};

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

/* delta[0] NULL: not adapted. The whole warp calls; live: the octet exists. */
DEVICE void residual_octet(const struct residual_job *j, struct residual_io *io, uint32_t t,
                           uint32_t n, bool live, const float *const delta[1])
{
    float norm2[2] = {};
    if (live) {
        module_add(&io->y, j->bias, n, delta[0], norm2);
        octet_add(&io->h, &io->y);
        octet_store(j->h + (size_t)t * j->d_model + n, &io->h);
    }
    if (delta[0] && j->lora.norm_part) {
        double *slot = live ? norm_slot(&j->lora, t, n / NORM_COLS) : NULL;
        norm_add(slot, norm2[0], norm2[1]);
    }
}

struct residual_op {
    typedef struct residual_job job;
    typedef struct residual_io io;
    static constexpr uint32_t modules = 1;
    HOST_DEVICE constexpr uint32_t out_tiles(uint32_t nt) /* of a warp */
    {
        return nt == 1 ? 4 : 2;
    }
    HOST_DEVICE uint32_t width(const job *j)
    {
        return j->d_model;
    }
    DEVICE void load(io *to, const job *j, uint32_t t, uint32_t n, bool live)
    {
        residual_load(to, j, t, n, live);
    }
    DEVICE void fetch(char *early, const job *j, uint32_t t, uint32_t n, bool live)
    {
        residual_fetch(early, j, t, n, live);
    }
    DEVICE void octet(const job *j, io *v, uint32_t t, uint32_t n, bool live,
                      const float *const delta[1])
    {
        residual_octet(j, v, t, n, live, delta);
    }
};

/* ---- mlp ---- */

struct mlp_job {
    struct finish_lora lora;
    bf16_t *out;
    const float *y, *bias_gate, *bias_up;
    float *keep_gate, *keep_up;
    const uint32_t *row_count;
    uint32_t y_stride, d_ff;
};

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

struct mlp_op {
    typedef struct mlp_job job;
    typedef struct mlp_io io;
    static constexpr uint32_t modules = 2;
    HOST_DEVICE constexpr uint32_t out_tiles(uint32_t nt) /* of a warp */
    {
        return nt == 1 ? 2 : 1;
    }
    HOST_DEVICE uint32_t width(const job *j)
    {
        return j->d_ff;
    }
    DEVICE void load(io *to, const job *j, uint32_t t, uint32_t n, bool live)
    {
        mlp_load(to, j, t, n, live);
    }
    DEVICE void fetch(char *early, const job *j, uint32_t t, uint32_t n, bool live)
    {
        mlp_fetch(early, j, t, n, live);
    }
    DEVICE void octet(const job *j, io *v, uint32_t t, uint32_t n, bool live,
                      const float *const delta[2])
    {
        mlp_octet(j, v, t, n, live, delta);
    }
};

/* ---- the kernels ---- */

/* Columns of a block, and rows of a thread that are fetched early: all of up to 8, or the first. */
HOST_DEVICE constexpr uint32_t finish_cols(uint32_t out_tiles)
{
    return out_tiles * EXPAND_WARPS * LORA_TILE_OUT;
}
HOST_DEVICE constexpr uint32_t early_rows(uint32_t nt, uint32_t cols)
{
    return nt == 1 ? 8 * (cols / 8) / EXPAND_THREADS : 1;
}

template <class OP> static KERNEL(EXPAND_THREADS, 4) void octets_base(typename OP::job j)
{
    const uint32_t octets = OP::width(&j) / 8, count = *j.row_count * octets;
    const float *const none[OP::modules] = {};
    pdl_trigger();
    pdl_wait();
    for (uint32_t o = blockIdx.x * EXPAND_THREADS + threadIdx.x; o < count;
         o += gridDim.x * EXPAND_THREADS) {
        const uint32_t t = o / octets, n = o % octets * 8;
        typename OP::io io;
        OP::load(&io, &j, t, n, true);
        OP::octet(&j, &io, t, n, true, none);
    }
}

/* The item's rows, each thread its columns n .. n+7: what was fetched early first. */
template <class OP, uint32_t NT>
DEVICE void octet_rows(const typename OP::job *j, const struct cuda_item *item, uint32_t n,
                       const float *out, const char *early, const bool adapted[OP::modules])
{
    constexpr uint32_t COLS = finish_cols(OP::out_tiles(NT)), OCTETS = COLS / 8;
    constexpr uint32_t PITCH = pitch_of(COLS), ROWS = EXPAND_THREADS / OCTETS;
    constexpr uint32_t WARP_ROWS = OCTETS < LANES ? LANES / OCTETS : 1;
    const uint32_t row = threadIdx.x / OCTETS, col = threadIdx.x % OCTETS * 8;
    typename OP::io io = {early_take(early), early_take(early + EARLY_BYTES)}, next;
    /* a warp may hold two rows, and stays together */
    NO_UNROLL
    for (uint32_t r = row, i = 0; r - row % WARP_ROWS < item->count; r += ROWS, i += 2) {
        const float *delta[OP::modules];
        UNROLL
        for (uint32_t m = 0; m < OP::modules; m++)
            delta[m] = adapted[m] ? out + m * out_floats(NT, COLS) + r * PITCH + col : NULL;
        if (NT != 1)
            OP::load(&next, j, item->begin + r + ROWS, n,
                     r + ROWS < item->count && n < OP::width(j));
        else if (early_rows(NT, COLS) > 1 && i > 0)
            io = {early_take(early + i * EARLY_BYTES), early_take(early + (i + 1) * EARLY_BYTES)};
        OP::octet(j, &io, item->begin + r, n, r < item->count && n < OP::width(j), delta);
        if (NT != 1)
            io = next;
    }
}

template <class OP, uint32_t NT>
static KERNEL(EXPAND_THREADS, finish_blocks(NT)) void octets_lora(typename OP::job j)
{
    constexpr uint32_t N = OP::modules, MT = OP::out_tiles(NT), COLS = finish_cols(MT), PF = 2;
    constexpr uint32_t OCTETS = COLS / 8, PITCH = pitch_of(COLS), ROWS = EXPAND_THREADS / OCTETS;
    constexpr uint32_t EARLY = early_rows(NT, COLS);
    SMEM(smem);
    float *out = (float *)smem;
    char *early = (char *)(out + N * out_floats(NT, COLS));
    bf16_t *sv = (bf16_t *)(early + 2 * EARLY * EARLY_BYTES);
    struct module_ref *ref = (struct module_ref *)(sv + N * sv_elems(NT));
    const uint32_t width = OP::width(&j), blocks = (width + COLS - 1) / COLS;
    const uint32_t units = *j.lora.v.item_count * blocks, row = threadIdx.x / OCTETS;
    pdl_trigger();
    NO_UNROLL
    for (uint32_t u = blockIdx.x; u < units; u += gridDim.x) {
        const struct cuda_item item = j.lora.v.item[u / blocks];
        const uint32_t n0 = u % blocks * COLS, col = threadIdx.x % OCTETS * 8, n = n0 + col;
        bool adapted[N];
        struct expand e[N];
        uint4 b[N][PF][MT];
        if (warp_id() == 0)
            table_fill(ref, &j.lora.v, &j.lora.v.seg[item.seg], 0, N);
        block_sync();
        UNROLL
        for (uint32_t m = 0; m < N; m++) {
            e[m] = {&j.lora.v,          &ref[m],
                    item.begin,         item.count,
                    n0 / LORA_TILE_OUT, lora_out_tiles(width)};
            adapted[m] = ref[m].tile_count > 0;
            if (adapted[m])
                b_load<MT, PF>(b[m], &e[m], 0);
        }
        pdl_wait();
        UNROLL
        for (uint32_t i = 0; i < EARLY; i++)
            OP::fetch(early + i * 2 * EARLY_BYTES, &j, item.begin + row + i * ROWS, n,
                      row + i * ROWS < item.count && n < width);
        UNROLL
        for (uint32_t m = 0; m < N; m++) {
            float acc[MT][NT][4];
            if (!adapted[m])
                continue;
            expand_run<MT, NT, PF>(acc, b[m], &e[m], sv + m * sv_elems(NT));
            delta_store<MT, NT>(out + m * out_floats(NT, COLS), PITCH, acc);
        }
        block_sync();
        cp_async_wait<0>();
        octet_rows<OP, NT>(&j, &item, n, out, early, adapted);
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

/* Before the first slot of the next pass is written, and before the host reads norm2. */
static void fold(const struct cuda_backend *c, const struct residual_finish_args *a)
{
    const struct fold_job j = {a->lora.norm2, c->lora->norm_part, &c->step.counts->n_tok,
                               c->lora->norm_slots};
    if (a->module == LORA_MODULE_DOWN && a->layer + 1 == c->step.n_layer && a->lora.norm2)
        LAUNCH_PDL(norm_fold, grid_of(c, div_up(a->n_tok, EXPAND_WARPS), 4), EXPAND_THREADS, 0,
                   c->stream, j);
}

template <class OP, uint32_t NT> constexpr uint32_t octets_smem(void)
{
    constexpr uint32_t cols = finish_cols(OP::out_tiles(NT));
    return finish_smem(OP::modules, NT, cols, 2 * early_rows(NT, cols));
}

enum status cuda_finish_allow(void)
{
    const struct gpu_smem list[] = {
        {kernel_of(octets_lora<residual_op, 1>), octets_smem<residual_op, 1>()},
        {kernel_of(octets_lora<residual_op, 8>), octets_smem<residual_op, 8>()},
        {kernel_of(octets_lora<mlp_op, 1>), octets_smem<mlp_op, 1>()},
        {kernel_of(octets_lora<mlp_op, 8>), octets_smem<mlp_op, 8>()}};
    return gpu_smem_allow(list, ARRAY_COUNT(list));
}

template <class OP, uint32_t NT>
static void lora_launch(const struct cuda_backend *c, typename OP::job *j,
                        const struct finish_call *call)
{
    constexpr uint32_t smem = octets_smem<OP, NT>();
    j->lora = finish_lora_of(c, call, finish_list(NT));
    LAUNCH_PDL((octets_lora<OP, NT>), c->sm_count * finish_blocks(NT), EXPAND_THREADS, smem,
               c->stream, *j);
}

/* j is filled but for lora. */
template <class OP>
static void octets_launch(const struct cuda_backend *c, typename OP::job *j,
                          const struct finish_call *call)
{
    const uint64_t threads = (uint64_t)call->n_tok * (OP::width(j) / 8);
    if (!has_lora(c, call->lora)) {
        LAUNCH_PDL(octets_base<OP>, grid_of(c, div_up(threads, EXPAND_THREADS), 8), EXPAND_THREADS,
                   0, c->stream, *j);
        return;
    }
    if (c->pass.lora_decode)
        lora_launch<OP, 1>(c, j, call);
    if (c->pass.lora_prefill)
        lora_launch<OP, 8>(c, j, call);
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
    const struct finish_call call = {&a->lora, a->layer, (uint32_t)a->module, a->n_tok,
                                     div_up(a->d_model, NORM_COLS)};
    octets_launch<residual_op>(c, &j, &call);
    if (has_lora(c, &a->lora))
        fold(c, a);
    return gpu_launched("residual_finish");
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
    const struct finish_call call = {&a->lora, a->layer, LORA_MODULE_GATE, a->n_tok,
                                     div_up(a->d_ff, NORM_COLS)};
    octets_launch<mlp_op>(c, &j, &call);
    return gpu_launched("mlp_finish");
}

/* ---- memory ---- */

/* Slots of the finish that has most. */
static uint32_t norm_slots_of(const struct backend_limits *lim)
{
    return MAX(qkv_norm_slots(lim),
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
