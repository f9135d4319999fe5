/* logits, score and sketch. score gives each worker whole SCORE_TILE tiles of the vocabulary; the
 * tiles' log-sum-exps are combined in ascending order, with the functions that sample uses on
 * stored logits, and the logits themselves are the dot kernel's: equal bits on both ways. */
#include "kernels/cpu/dot.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/reduce.h"
#include "kernels/cpu/vec.h"
#include "server/base/check.h"

enum status ISA(logits)(struct backend *b, const struct logits_args *a)
{
    struct gemm_args g = {.y = a->out,
                          .x = a->x,
                          .part = {a->w},
                          .part_count = 1,
                          .n_tok = a->n_row,
                          .x_stride = a->w.d_in,
                          .y_stride = a->w.d_out};
    return ISA(gemm_own)(b, &g);
}

/* ---- log-sum-exp ---- */

static float tile_max(const float *x, uint32_t n)
{
    vf m = vf_set1(-INFINITY);
    uint32_t i = 0;
    for (; i + VW <= n; i += VW)
        m = vf_max(vf_load(x + i), m);
    if (i < n)
        m = vf_max(vf_load_n(x + i, n - i, -INFINITY), m);
    return vf_top(m);
}

struct lse_tile ISA(lse_tile)(const float *x, uint32_t n)
{
    struct lse_tile t = {tile_max(x, n), 0};
    if (t.max == -INFINITY)
        return t;
    vf s[2] = {{0}, {0}}, max = vf_set1(t.max);
    uint32_t i = 0, which = 0;
    for (; i + 2 * VW <= n; i += 2 * VW) {
        s[0] += vf_exp(vf_load(x + i) - max);
        s[1] += vf_exp(vf_load(x + i + VW) - max);
    }
    for (; i < n; i += VW, which++) {
        vf v = n - i >= VW ? vf_load(x + i) : vf_load_n(x + i, n - i, -INFINITY);
        s[which] += vf_exp(v - max);
    }
    t.sum = vf_sum(s[0] + s[1]);
    return t;
}

void ISA(lse_add)(struct lse *l, struct lse_tile t)
{
    if (t.max == -INFINITY)
        return;
    if ((double)t.max > l->max) {
        l->sum = l->sum * exp(l->max - (double)t.max) + (double)t.sum;
        l->max = (double)t.max;
    } else {
        l->sum += (double)t.sum * exp((double)t.max - l->max);
    }
}

float ISA(lse_logprob)(const struct lse *l, float logit)
{
    return (float)((double)logit - (l->max + log(l->sum)));
}

/* ---- score ---- */

#define SCORE_ROWS 128 /* a worker's tile: [SCORE_ROWS, SCORE_TILE] f32 */
_Static_assert(sizeof(float) * SCORE_ROWS * SCORE_TILE + PRODUCT_SCRATCH <= CPU_WORKER_BYTES,
               "tile and product share a worker's scratch");

struct score_pass {
    const struct score_args *a;
    struct cpu_backend *c;
    struct lse_tile *part; /* [rows][n_tile] */
    size_t x_stride_bytes;
    uint32_t t0, rows, n_tile;
};

/* The conversion buffer's upper half holds the tiles' partial sums. */
#define SCORE_X_BYTES (CPU_X_BYTES / 2)

static void score_convert(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct score_pass *p = arg;
    uint64_t lo, hi;
    pool_share(p->rows, worker, n_worker, &lo, &hi);
    for (uint64_t t = lo; t < hi; t++)
        ISA(dot_convert)
    (p->c->x + t * p->x_stride_bytes, (const float *)p->a->x + (p->t0 + t) * p->a->w.d_in,
     p->a->w.d_in, p->a->w.dtype);
}

static void score_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct score_pass *p = arg;
    const struct score_args *a = p->a;
    float *tile = cpu_scratch(p->c, worker);
    uint64_t lo, hi;
    pool_share(p->n_tile, worker, n_worker, &lo, &hi);
    for (uint64_t i = lo; i < hi; i++) {
        uint32_t n0 = (uint32_t)i * SCORE_TILE, n = MIN((uint32_t)SCORE_TILE, a->w.d_out - n0);
        size_t row_bytes = a->w.d_in * dtype_bytes(a->w.dtype);
        struct product j = {.x = p->c->x,
                            .x_stride_bytes = p->x_stride_bytes,
                            .w = &a->w,
                            .rows = p->rows,
                            .y = tile,
                            .y_stride = SCORE_TILE,
                            .scratch = tile + SCORE_ROWS * SCORE_TILE};
        j.then = i + 1 < hi ? (const char *)a->w.data + (n0 + SCORE_TILE) * row_bytes : NULL;
        ISA(product_range)(&j, n0, n0 + n);
        for (uint32_t t = 0; t < p->rows; t++) {
            const float *row = tile + (size_t)t * SCORE_TILE;
            uint32_t target = (uint32_t)a->target[p->t0 + t] - n0;
            p->part[t * (size_t)p->n_tile + i] = ISA(lse_tile)(row, n);
            if (target < n)
                a->logprob[p->t0 + t] = row[target];
        }
    }
}

enum status ISA(score)(struct backend *b, const struct score_args *a)
{
    struct cpu_backend *c = cpu_of(b);
    struct score_pass p = {.a = a, .c = c};
    p.x_stride_bytes = ISA(dot_row_bytes)(a->w.dtype, a->w.d_in);
    p.n_tile = (a->w.d_out + SCORE_TILE - 1) / SCORE_TILE;
    p.part = (struct lse_tile *)(void *)(c->x + SCORE_X_BYTES);
    size_t fit =
        MIN(SCORE_X_BYTES / p.x_stride_bytes, SCORE_X_BYTES / (p.n_tile * sizeof(struct lse_tile)));
    fit = MIN(fit, (size_t)SCORE_ROWS);
    CHECK(fit > 0);
    for (uint32_t t = 0; t < a->n_row; t++)
        CHECK(a->target[t] >= 0 && (uint32_t)a->target[t] < a->w.d_out);
    for (p.t0 = 0; p.t0 < a->n_row; p.t0 += p.rows) {
        p.rows = MIN(a->n_row - p.t0, (uint32_t)fit);
        cpu_run(c, score_convert, &p, (uint64_t)p.rows * a->w.d_in < 65536);
        cpu_run(c, score_work, &p, false);
        for (uint32_t t = 0; t < p.rows; t++) {
            struct lse l = {-INFINITY, 0};
            for (uint32_t i = 0; i < p.n_tile; i++)
                ISA(lse_add)(&l, p.part[t * (size_t)p.n_tile + i]);
            a->logprob[p.t0 + t] = ISA(lse_logprob)(&l, a->logprob[p.t0 + t]);
        }
    }
    return STATUS_OK;
}

/* ---- sketch ---- */

#define SKETCH_TILE                                                                                \
    8 /* outputs at a time: loads of x are shared, sums do not wait for each other */

/* z[j] of the tile's rows of w: lane l sums k = l mod VW, then the tree of vf_sum. */
static void sketch_dots(double z[SKETCH_TILE], const float *x, const uint16_t *w, uint32_t d)
{
    vf acc[SKETCH_TILE] = {{0}};
    uint32_t k = 0;
    for (; k + VW <= d; k += VW) {
        vf v = vf_load(x + k);
        for (uint32_t j = 0; j < SKETCH_TILE; j++)
            acc[j] = vf_fma(v, vf_load_bf16(w + (size_t)j * d + k), acc[j]);
    }
    if (k < d) {
        vf v = vf_load_n(x + k, d - k, 0);
        for (uint32_t j = 0; j < SKETCH_TILE; j++)
            acc[j] = vf_fma(v, vf_load_bf16_n(w + (size_t)j * d + k, d - k), acc[j]);
    }
    for (uint32_t j = 0; j < SKETCH_TILE; j++)
        z[j] = (double)vf_sum(acc[j]);
}

static void sketch_row(int8_t *out, const float *x, const struct sketch_basis *basis, uint32_t d)
{
    double z[SKETCH_DIM], norm2 = 0;
    for (uint32_t j = 0; j < SKETCH_DIM; j += SKETCH_TILE)
        sketch_dots(z + j, x, basis->w + (size_t)j * d, d);
    for (uint32_t j = 0; j < SKETCH_DIM; j++) {
        z[j] -= (double)basis->bias[j];
        norm2 += z[j] * z[j];
    }
    double scale = norm2 > 0 && isfinite(norm2) ? 127.0 / sqrt(norm2) : 0;
    for (uint32_t j = 0; j < SKETCH_DIM; j++)
        out[j] = scale > 0 ? (int8_t)nearbyint(z[j] * scale) : 0;
}

/* A worker takes its part of the rows of all segments together. */
static void sketch_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct sketch_args *a = *(const struct sketch_args **)arg;
    uint64_t lo, hi, rows = 0, at = 0;
    for (uint32_t s = 0; s < a->n_seg; s++)
        rows += a->seg[s].n_row;
    pool_share(rows, worker, n_worker, &lo, &hi);
    for (uint32_t s = 0; s < a->n_seg && at < hi; at += a->seg[s++].n_row) {
        const struct sketch_seg *seg = &a->seg[s];
        uint64_t from = MAX(lo, at), to = MIN(hi, at + seg->n_row);
        for (uint64_t i = from; i < to; i++) {
            size_t t = seg->row + (size_t)(i - at);
            sketch_row(a->out + t * SKETCH_DIM, (const float *)a->x + t * a->d_model, seg->basis,
                       a->d_model);
        }
    }
}

enum status ISA(sketch)(struct backend *b, const struct sketch_args *a)
{
    uint32_t rows = 0;
    for (uint32_t s = 0; s < a->n_seg; s++)
        rows += a->seg[s].n_row;
    cpu_run(cpu_of(b), sketch_work, &a, rows < 4);
    return STATUS_OK;
}
