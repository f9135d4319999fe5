/* The table of gemm_plan.h, and the timing that fills it. */
#include "kernels/cuda/gemm_plan.h"
#include "server/base/check.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <string.h>

#define SHAPES_MAX     10
#define CANDIDATES_MAX 16
#define TIMED_RUNS     8
#define COPIES_MAX     8
#define ROTATE_BYTES   ((size_t)128 << 20) /* twice the L2 of an H200 */
#define SEED_BYTES     ((size_t)1 << 20)

/* Row counts up to each of these share an algorithm; more rows share the last. */
static const uint32_t buckets[] = {1,   2,   4,   8,   16,  24,   32,   48,   64,  96,
                                   128, 192, 256, 384, 512, 1024, 2048, 4096, 8192};
#define BUCKETS ARRAY_COUNT(buckets)

struct plan_choice {
    bool library;
    struct cublaslt_algo algo;
};
struct plan_shape {
    struct cublaslt_product product;
    uint32_t rows_max;
    struct plan_choice choice[BUCKETS];
};
struct gemm_plan {
    struct cublaslt lt;
    struct plan_shape shape[SHAPES_MAX];
    uint32_t shape_count;
    bool warned;
};

static uint32_t bucket_of(uint32_t n_row)
{
    uint32_t b = 0;
    while (b + 1 < BUCKETS && buckets[b] < n_row)
        b++;
    return b;
}

static struct plan_shape *plan_find(struct gemm_plan *p, uint32_t d_out, uint32_t d_in)
{
    for (uint32_t i = 0; i < p->shape_count; i++) {
        struct plan_shape *s = &p->shape[i];
        if (s->product.d_out == d_out && s->product.d_in == d_in)
            return s;
    }
    return NULL;
}

bool gemm_plan_knows(struct gemm_plan *p, const struct weight *w, uint32_t n_row)
{
    const struct plan_shape *s = plan_find(p, w->d_out, w->d_in);
    return s && s->choice[bucket_of(n_row)].library;
}

enum status gemm_plan_run(struct gemm_plan *p, struct cuda_backend *c, const struct gemm_args *a)
{
    struct plan_shape *s = plan_find(p, a->part[0].d_out, a->part[0].d_in);
    struct plan_choice *choice = s ? &s->choice[bucket_of(a->n_tok)] : NULL;
    if (!choice || !choice->library)
        return gemm_own(c, a);
    const struct cublaslt_operands o = {a->part[0].data, a->x,        a->y,     a->n_tok,
                                        a->x_stride,     a->y_stride, c->stream};
    enum status st = cublaslt_run(&p->lt, &s->product, &choice->algo, &o);
    if (st != STATUS_UNSUPPORTED)
        return st;
    if (!p->warned)
        log_warn("cuda", "cuBLASLt refused [%u, %u] x %u rows that it took at start: own kernels",
                 a->part[0].d_out, a->part[0].d_in, a->n_tok);
    p->warned = true;
    return gemm_own(c, a);
}

/* ---- timing ---- */

/* One shape's buffers and the two events. */
struct trial {
    struct gemm_plan *plan;
    struct cuda_backend *c;
    struct plan_shape *shape;
    char *w;
    void *x, *y;
    size_t w_bytes;
    uint32_t copies, n_row, y_stride;
    void *begin, *end;
};

/* algo NULL: the own kernels. */
static enum status trial_once(struct trial *t, const struct cublaslt_algo *algo, uint32_t run)
{
    const struct cublaslt_product *p = &t->shape->product;
    const void *w = t->w + (run % t->copies) * t->w_bytes;
    if (algo) {
        const struct cublaslt_operands o = {w,       t->x,        t->y,        t->n_row,
                                            p->d_in, t->y_stride, t->c->stream};
        return cublaslt_run(&t->plan->lt, &t->shape->product, algo, &o);
    }
    const struct gemm_args a = {.y = t->y,
                                .x = t->x,
                                .part = {{w, DTYPE_BF16, p->d_out, p->d_in, NULL}},
                                .part_count = 1,
                                .n_tok = t->n_row,
                                .x_stride = p->d_in,
                                .y_stride = t->y_stride};
    return gemm_own(t->c, &a);
}

static enum status trial_runs(struct trial *t, const struct cublaslt_algo *algo, uint32_t runs,
                              float *ms)
{
    enum status st = gpu_event_record(t->begin, t->c->stream);
    for (uint32_t i = 0; i < runs && !st; i++)
        st = trial_once(t, algo, i);
    if (!st)
        st = gpu_event_record(t->end, t->c->stream);
    if (!st)
        st = gpu_event_sync(t->end);
    if (!st)
        st = gpu_event_ms(ms, t->begin, t->end);
    *ms /= (float)runs;
    return st;
}

/* Milliseconds of a run: after a first one, which loads the kernel; runs that are clearly slower
 * than `best` are not repeated. */
static enum status trial_ms(struct trial *t, const struct cublaslt_algo *algo, float best,
                            float *ms)
{
    enum status st = trial_runs(t, algo, 1, ms);
    if (!st)
        st = trial_runs(t, algo, 2, ms);
    if (!st && (best == 0 || *ms < 1.5f * best))
        st = trial_runs(t, algo, TIMED_RUNS, ms);
    return st;
}

static enum status trial_bucket(struct trial *t, uint32_t bucket)
{
    struct cublaslt_heuristic found[CANDIDATES_MAX];
    struct plan_choice *choice = &t->shape->choice[bucket];
    float own = 0, best, ms = 0;
    enum status st = trial_ms(t, NULL, 0, &own);
    if (st)
        return st;
    const struct cublaslt_product *p = &t->shape->product;
    const struct cublaslt_operands o = {t->w,    t->x,        t->y,        t->n_row,
                                        p->d_in, t->y_stride, t->c->stream};
    uint32_t n = cublaslt_candidates(&t->plan->lt, &t->shape->product, &o, found, CANDIDATES_MAX);
    best = own;
    for (uint32_t i = 0; i < n; i++) {
        st = trial_ms(t, &found[i].algo, best, &ms);
        if (st == STATUS_UNSUPPORTED)
            continue;
        if (st)
            return st;
        if (ms < best) {
            best = ms;
            choice->library = true;
            choice->algo = found[i].algo;
        }
    }
    log_debug("cuda", "gemm [%u, %u] x %u rows: own %.4f ms, %s %.4f ms of %u candidates", p->d_out,
              p->d_in, t->n_row, (double)own,
              choice->library ? "cuBLASLt" : "cuBLASLt none faster,", (double)best, n);
    return STATUS_OK;
}

/* Random bf16 near 1 in size: a product on zeros runs faster than a real one. */
static enum status fill_random(struct cuda_backend *c, char *to, size_t bytes)
{
    size_t seed = MIN(bytes, SEED_BYTES);
    uint16_t *h = mem_array(seed / 2, sizeof(*h));
    uint32_t r = 2463534242u;
    for (size_t i = 0; i < seed / 2; i++) {
        r ^= r << 13;
        r ^= r >> 17;
        r ^= r << 5;
        h[i] = (uint16_t)(0x3e80u + (r & 0x80ffu)); /* either sign, 0.25 to 1 */
    }
    enum status st = gpu_write(c->gpu, to, h, seed);
    mem_free(h);
    for (size_t done = seed; done < bytes && !st;) {
        size_t n = MIN(done, bytes - done);
        st = gpu_copy_within(c->stream, to + done, to, n);
        done += n;
    }
    return st;
}

static void trial_close(struct trial *t)
{
    (void)gpu_stream_sync(t->c->stream);
    gpu_event_destroy(t->begin);
    gpu_event_destroy(t->end);
    gpu_free(t->c->gpu, t->w);
    gpu_free(t->c->gpu, t->x);
    gpu_free(t->c->gpu, t->y);
}

/* All buckets of a shape. No room for its buffers: nothing is chosen. */
static enum status trial_shape(struct trial *t)
{
    const struct cublaslt_product *p = &t->shape->product;
    struct cuda_backend *c = t->c;
    t->w_bytes = ((size_t)p->d_out * p->d_in * 2 + 255) / 256 * 256;
    t->copies = (uint32_t)MIN(ROTATE_BYTES / t->w_bytes + 1, (size_t)COPIES_MAX);
    const size_t x_bytes = (size_t)t->shape->rows_max * p->d_in * 2;
    t->w = gpu_alloc(c->gpu, t->copies * t->w_bytes);
    t->x = gpu_alloc(c->gpu, x_bytes);
    t->y = gpu_alloc(c->gpu, (size_t)t->shape->rows_max * t->y_stride * sizeof(float));
    enum status st = STATUS_OK;
    if (!t->w || !t->x || !t->y) {
        log_warn("cuda", "gemm [%u, %u]: no room to time it beside cuBLASLt, own kernels only",
                 p->d_out, p->d_in);
        goto out;
    }
    if ((st = fill_random(c, t->w, t->copies * t->w_bytes)))
        goto out;
    if ((st = fill_random(c, t->x, x_bytes)))
        goto out;
    if ((st = gpu_event_create(&t->begin, true)))
        goto out;
    if ((st = gpu_event_create(&t->end, true)))
        goto out;
    for (uint32_t b = 0; b < BUCKETS && !st; b++) {
        if (b > 0 && buckets[b - 1] >= t->shape->rows_max)
            break;
        t->n_row = MIN(buckets[b], t->shape->rows_max);
        st = trial_bucket(t, b);
    }
out:
    trial_close(t);
    return st;
}

static enum status plan_add(struct gemm_plan *p, uint32_t d_out, uint32_t d_in, uint32_t rows_max)
{
    struct plan_shape *s = plan_find(p, d_out, d_in);
    if (s) {
        s->rows_max = MAX(s->rows_max, rows_max);
        return STATUS_OK;
    }
    CHECK(p->shape_count < SHAPES_MAX);
    s = &p->shape[p->shape_count++];
    s->rows_max = rows_max;
    return cublaslt_product_open(&p->lt, &s->product, d_out, d_in);
}

/* Every matrix of the model; the parts of a group also as one matrix, in case they are neighbours
 * in memory. */
static enum status plan_shapes(struct gemm_plan *p, const struct backend_limits *lim)
{
    const uint32_t q = lim->n_head * lim->d_head, kv = lim->n_kv_head * lim->d_head;
    const uint32_t d = lim->d_model, ff = lim->d_ff, n = lim->rows_max;
    const uint32_t shape[][2] = {{q + 2 * kv, d}, {q, d},      {2 * kv, d}, {kv, d},
                                 {d, q},          {2 * ff, d}, {ff, d},     {d, ff}};
    enum status st = STATUS_OK;
    for (size_t i = 0; i < ARRAY_COUNT(shape) && !st; i++)
        st = plan_add(p, shape[i][0], shape[i][1], n);
    return st ? st : plan_add(p, lim->n_vocab, d, lim->logits_rows_max);
}

static uint32_t layer_width(const struct backend_limits *lim)
{
    uint32_t qkv = (lim->n_head + 2 * lim->n_kv_head) * lim->d_head;
    return MAX(MAX(qkv, 2 * lim->d_ff), lim->d_model);
}

enum status gemm_plan_create(struct gemm_plan **out, struct cuda_backend *c,
                             const struct cublaslt_api *api, struct errtext *err)
{
    struct gemm_plan *p = mem_alloc(sizeof(*p));
    *out = p;
    enum status st = cublaslt_open(&p->lt, api, err);
    if (st)
        return st;
    p->lt.workspace_bytes = GEMM_LIBRARY_BYTES;
    st = cuda_take(c, &p->lt.workspace, GEMM_LIBRARY_BYTES, "workspace of cuBLASLt", err);
    if (!st)
        st = plan_shapes(p, &c->limits);
    for (uint32_t i = 0; i < p->shape_count && !st; i++) {
        struct plan_shape *s = &p->shape[i];
        const bool is_vocab = s->product.d_out == c->limits.n_vocab;
        struct trial t = {.plan = p, .c = c, .shape = s};
        t.y_stride = is_vocab ? c->limits.n_vocab : layer_width(&c->limits);
        st = trial_shape(&t);
    }
    return st ? err_set(err, st, "timing the matrix products at start failed") : STATUS_OK;
}

void gemm_plan_destroy(struct gemm_plan *p, struct cuda_backend *c)
{
    if (!p)
        return;
    for (uint32_t i = 0; i < p->shape_count; i++)
        cublaslt_product_close(&p->lt, &p->shape[i].product);
    gpu_free(c->gpu, p->lt.workspace);
    struct cublaslt_api api = p->lt.api;
    cublaslt_close(&p->lt);
    cublaslt_unload(&api);
    mem_free(p);
}
