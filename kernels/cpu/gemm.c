/* gemm: rows converted once, then output tiles split over the workers. Rows beyond what the
 * conversion buffer holds are done in further passes. */
#include <stdatomic.h>

#include "kernels/cpu/dnnl.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/ops.h"
#include "server/base/check.h"

#define TILE_OUT    4
#define CHUNK_TILES 32 /* of outputs in a chunk, at least */
#define CHUNKS_EACH 8  /* for each worker, at most */

struct gemm_pass {
    const struct gemm_args *a;
    char *x;
    size_t x_stride_bytes;
    uint32_t t0, rows, part_first, part_end; /* parts of one dtype */
    _Atomic uint32_t next_chunk;
};

static void convert_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct gemm_pass *p = arg;
    const struct weight *w = &p->a->part[p->part_first];
    uint64_t lo, hi;
    pool_share(p->rows, worker, n_worker, &lo, &hi);
    for (uint64_t t = lo; t < hi; t++)
        ISA(dot_convert)
    (p->x + t * p->x_stride_bytes, p->a->x + (p->t0 + t) * p->a->x_stride, w->d_in, w->dtype);
}

static uint64_t part_tiles(const struct weight *w)
{
    return (w->d_out + TILE_OUT - 1) / TILE_OUT;
}

/* Tiles [lo, hi), counted over the pass's parts. */
static void gemm_tiles(const struct gemm_pass *p, uint64_t lo, uint64_t hi)
{
    const struct gemm_args *a = p->a;
    uint64_t begin = 0;
    float *y = a->y + p->t0 * (size_t)a->y_stride;
    for (uint32_t i = 0; i < p->part_first; i++)
        y += a->part[i].d_out;
    for (uint32_t i = p->part_first; i < p->part_end; i++) {
        const struct weight *w = &a->part[i];
        uint64_t end = begin + part_tiles(w);
        uint64_t from = MAX(lo, begin), to = MIN(hi, end);
        if (from < to) {
            struct dot_job j = {.x = p->x,
                                .x_stride_bytes = p->x_stride_bytes,
                                .w = w->data,
                                .dtype = w->dtype,
                                .d_in = w->d_in,
                                .rows = p->rows,
                                .y = y,
                                .y_stride = a->y_stride};
            uint64_t n1 = (to - begin) * TILE_OUT;
            ISA(dot_range)
            (&j, (uint32_t)((from - begin) * TILE_OUT), (uint32_t)MIN(n1, (uint64_t)w->d_out));
        }
        begin = end;
        y += w->d_out;
    }
}

/* Workers take chunks as they come free: one that lost its core for a while leaves the rest to the
 * others. */
static void gemm_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    struct gemm_pass *p = arg;
    uint64_t total = 0, lo, hi;
    uint32_t chunk;
    for (uint32_t i = p->part_first; i < p->part_end; i++)
        total += part_tiles(&p->a->part[i]);
    uint64_t n_chunk =
        MAX(MIN(total / CHUNK_TILES, (uint64_t)CHUNKS_EACH * n_worker), (uint64_t)n_worker);
    while ((chunk = atomic_fetch_add_explicit(&p->next_chunk, 1, memory_order_relaxed)) < n_chunk) {
        pool_share(total, chunk, (uint32_t)n_chunk, &lo, &hi);
        gemm_tiles(p, lo, hi);
    }
}

static void gemm_parts(struct cpu_backend *c, struct gemm_pass *p)
{
    const struct gemm_args *a = p->a;
    const struct weight *w = &a->part[p->part_first];
    uint64_t out = 0;
    for (uint32_t i = p->part_first; i < p->part_end; i++)
        out += a->part[i].d_out;
    p->x = c->x;
    p->x_stride_bytes = ISA(dot_row_bytes)(w->dtype, w->d_in);
    uint32_t fit = (uint32_t)(CPU_X_BYTES / p->x_stride_bytes);
    CHECK(fit > 0);
    for (p->t0 = 0; p->t0 < a->n_tok; p->t0 += p->rows) {
        p->rows = MIN(a->n_tok - p->t0, fit);
        cpu_run(c, convert_work, p, (uint64_t)p->rows * w->d_in < 65536);
        p->next_chunk = 0;
        cpu_run(c, gemm_work, p, p->rows * (uint64_t)w->d_in * out < 32768);
    }
}

enum status ISA(gemm_own)(struct backend *b, const struct gemm_args *a)
{
    struct gemm_pass p = {.a = a};
    while (p.part_first < a->part_count) {
        p.part_end = p.part_first + 1;
        while (p.part_end < a->part_count &&
               a->part[p.part_end].dtype == a->part[p.part_first].dtype)
            p.part_end++;
        if (a->part[p.part_first].d_in)
            gemm_parts(cpu_of(b), &p);
        p.part_first = p.part_end;
    }
    return STATUS_OK;
}

enum status ISA(gemm)(struct backend *b, const struct gemm_args *a)
{
    struct cpu_backend *c = cpu_of(b);
    if (c->dnnl && a->n_tok >= c->dnnl_rows_min && cpu_dnnl_gemm(c, a))
        return STATUS_OK;
    return ISA(gemm_own)(b, a);
}
