/* gemm and logits: which kernel a product goes to, and the checks before it.
 *
 *   rows of x     own kernel
 *   1 .. 16       gemm_skinny, a block per 32 weight rows; for 9 .. 16 rows only while that keeps
 *                 the SMs busy: with more tiles than SMs, gemm_tile reads x from L2 less often
 *   more          gemm_tile, 128 weight rows a block; cut into slices when tiles are few
 *
 * Neighbouring parts whose matrices follow one another in memory are one matrix. With a plan
 * (deterministic = false) a matrix goes to cuBLASLt where that was faster at start. */
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_plan.h"
#include "server/base/check.h"
#include "server/base/mem.h"

static uint32_t round_up(uint32_t n, uint32_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* The loader puts matrices at 256-byte aligned addresses and refuses other dtypes and widths. */
static void gemm_check(const struct gemm_args *a)
{
    CHECK(a->part_count > 0 && a->part_count <= GEMM_PARTS_MAX);
    const uint32_t d_in = a->part[0].d_in;
    CHECK(d_in > 0 && d_in % 8 == 0 && d_in <= UINT32_MAX / 2);
    CHECK(a->x_stride >= d_in && a->x_stride % 8 == 0);
    CHECK((uintptr_t)a->x % 16 == 0);
    uint32_t width = 0;
    for (uint32_t p = 0; p < a->part_count; p++) {
        CHECK(a->part[p].dtype == DTYPE_BF16);
        CHECK(a->part[p].d_in == d_in);
        CHECK((uintptr_t)a->part[p].data % 16 == 0);
        width += a->part[p].d_out;
    }
    CHECK(a->y_stride >= width);
}

/* Adjacent matrices as one; empty ones vanish. */
static struct gemm_args gemm_merged(const struct gemm_args *a)
{
    struct gemm_args m = *a;
    m.part_count = 0;
    for (uint32_t p = 0; p < a->part_count; p++) {
        const struct weight *w = &a->part[p];
        struct weight *last = m.part_count ? &m.part[m.part_count - 1] : NULL;
        if (last && (const char *)last->data + (size_t)last->d_out * last->d_in * 2 ==
                        (const char *)w->data)
            last->d_out += w->d_out;
        else if (w->d_out > 0)
            m.part[m.part_count++] = *w;
    }
    return m;
}

enum status gemm_own(struct cuda_backend *c, const struct gemm_args *a)
{
    struct gemm_job j = {};
    uint32_t width = 0;
    for (uint32_t p = 0; p < a->part_count; p++) {
        j.part[p] = {(const bf16_t *)a->part[p].data, a->part[p].d_out, width};
        width += a->part[p].d_out;
    }
    j.part_count = a->part_count;
    j.x = (const bf16_t *)a->x;
    j.out = a->y;
    j.n_row = a->n_tok;
    j.d_in = a->part[0].d_in;
    j.x_stride = a->x_stride;
    j.out_stride = a->y_stride;
    j.slice_k = round_up((j.d_in + GEMM_SLICES - 1) / GEMM_SLICES, GEMM_PAD);
    j.slice_count = (j.d_in + j.slice_k - 1) / j.slice_k;
    const bool wide = gemm_tiles(&j, 128) >= c->sm_count;
    if (j.n_row <= 8 || (j.n_row <= GEMM_SKINNY_ROWS && !wide)) {
        gemm_skinny_launch(&j, c->sm_count, c->stream);
        return gpu_launched("gemm_skinny");
    }
    const size_t bytes = sizeof(float) * j.slice_count * j.n_row * width;
    if (!gemm_tile_wants_split(&j, c->sm_count) || bytes > c->gemm->partials_bytes) {
        gemm_tile_launch(&j, c->sm_count, c->stream);
        return gpu_launched("gemm_tile");
    }
    j.split = 1;
    j.out = c->gemm->partials;
    j.out_stride = width;
    j.out_slice = (uint64_t)j.n_row * width;
    const struct gemm_sum s = {j.out, a->y, j.n_row, width, a->y_stride, j.slice_count};
    gemm_tile_launch(&j, c->sm_count, c->stream);
    gemm_reduce_launch(&s, c->stream);
    return gpu_launched("gemm_tile and gemm_reduce");
}

enum status cuda_gemm(struct backend *b, const struct gemm_args *a)
{
    struct cuda_backend *c = cuda_of(b);
    if (a->n_tok == 0)
        return STATUS_OK;
    gemm_check(a);
    struct gemm_args m = gemm_merged(a);
    if (m.part_count == 0)
        return STATUS_OK;
    bool library = false;
    for (uint32_t p = 0; p < m.part_count && c->gemm->plan; p++)
        library = library || gemm_plan_knows(c->gemm->plan, &m.part[p], m.n_tok);
    if (!library)
        return gemm_own(c, &m);
    enum status st = STATUS_OK;
    for (uint32_t p = 0; p < m.part_count && !st; p++) {
        struct gemm_args one = m;
        one.part_count = 1;
        one.part[0] = m.part[p];
        st = gemm_plan_run(c->gemm->plan, c, &one);
        m.y += m.part[p].d_out;
    }
    return st;
}

enum status cuda_logits(struct backend *b, const struct logits_args *a)
{
    const struct gemm_args g = {a->out, a->x, {a->w}, 1, a->n_row, a->w.d_in, a->w.d_out};
    return cuda_gemm(b, &g);
}

enum status cuda_gemm_tile(struct backend *b, const struct gemm_tile_args *a)
{
    if (a->n_row == 0 || a->v0 == a->v1)
        return STATUS_OK;
    CHECK(a->v0 < a->v1 && a->v1 <= a->w.d_out);
    struct weight w = a->w;
    w.data = (const char *)w.data + (size_t)a->v0 * w.d_in * 2;
    w.d_out = a->v1 - a->v0;
    const struct gemm_args g = {a->out, a->x, {w}, 1, a->n_row, a->x_stride, a->out_stride};
    gemm_check(&g);
    return gemm_own(cuda_of(b), &g);
}

/* ---- the family's state ---- */

/* What gemm_tile_wants_split can ask for at most: fewer tiles than SMs, each of 128 by 128. */
static size_t partials_bytes(const struct cuda_backend *c)
{
    const struct backend_limits *l = &c->limits;
    const size_t qkv = ((size_t)l->n_head + 2 * l->n_kv_head) * l->d_head;
    size_t width = qkv > 2 * (size_t)l->d_ff ? qkv : 2 * (size_t)l->d_ff;
    width = width > l->d_model ? width : l->d_model;
    width = width > l->n_vocab ? width : l->n_vocab;
    const size_t rows = l->rows_max > l->logits_rows_max ? l->rows_max : l->logits_rows_max;
    const size_t all = rows * width, most = (size_t)c->sm_count * 128 * 128;
    return (all < most ? all : most) * GEMM_SLICES * sizeof(float);
}

static enum status gemm_widths(const struct backend_limits *l, struct errtext *err)
{
    const struct {
        const char *name;
        uint32_t value;
    } width[] = {
        {"d_model", l->d_model}, {"d_ff", l->d_ff}, {"n_head * d_head", l->n_head * l->d_head}};
    for (size_t i = 0; i < ARRAY_COUNT(width); i++) {
        if (width[i].value % 8 != 0)
            return err_param(err, STATUS_UNSUPPORTED, "backend",
                             "%s is %u; backend \"cuda\" reads matrices 8 elements at a time and "
                             "needs a multiple of 8: use \"cpu\"",
                             width[i].name, width[i].value);
    }
    return STATUS_OK;
}

enum status cuda_gemm_prepare_with(struct cuda_backend *c, const struct cublaslt_api *api,
                                   struct errtext *err)
{
    enum status st = gemm_widths(&c->limits, err);
    if (st)
        return st;
    struct cuda_gemm *g = (struct cuda_gemm *)mem_alloc(sizeof(*g));
    c->gemm = g;
    g->partials_bytes = partials_bytes(c);
    void *p;
    st = cuda_take(c, &p, g->partials_bytes, "partial sums of matrix products", err);
    g->partials = (float *)p;
    if (!st && api)
        st = gemm_plan_create(&g->plan, c, api, err);
    return st;
}

enum status cuda_gemm_prepare(struct cuda_backend *c, struct errtext *err)
{
    struct cublaslt_api api;
    if (c->base.deterministic)
        return cuda_gemm_prepare_with(c, NULL, err);
    enum status st = cublaslt_load(&api, err);
    if (st)
        return st;
    st = cuda_gemm_prepare_with(c, &api, err);
    if (st && !(c->gemm && c->gemm->plan))
        cublaslt_unload(&api); /* else the plan's, and unloaded with it */
    return st;
}

void cuda_gemm_release(struct cuda_backend *c)
{
    struct cuda_gemm *g = c->gemm;
    if (!g)
        return;
    gemm_plan_destroy(g->plan, c);
    gpu_free(c->gpu, g->partials);
    mem_free(g);
    c->gemm = NULL;
}
