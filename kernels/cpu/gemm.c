/* gemm: rows converted once, then output tiles split over the workers. Rows beyond what the
 * conversion buffer holds are done in further passes. */
#include "kernels/cpu/dnnl.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/product.h"
#include "server/base/check.h"

#include <stdatomic.h>

#define PIECE_OUT 128 /* outputs taken at a time */

struct gemm_pass {
    const struct gemm_args *a;
    struct cpu_backend *c;
    char *x;
    size_t x_stride_bytes;
    uint32_t tile;                           /* outputs */
    uint32_t t0, rows, part_first, part_end; /* parts of one dtype */
    uint32_t block;                          /* rows that go through all tiles together */
    uint64_t tiles;                          /* of a block */
    /* What is left of each worker's tiles, block after block, first << 32 | end. It takes pieces
     * from the front, in the order of memory; others, when their own are done, from the back. */
    _Atomic uint64_t left[POOL_WORKERS_MAX];
};

static void convert_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct gemm_pass *p = arg;
    const struct weight *w = &p->a->part[p->part_first];
    uint64_t lo, hi;
    pool_share(p->rows, worker, n_worker, &lo, &hi);
    for (uint64_t t = lo; t < hi; t++)
        ISA(dot_convert)
    (p->x + t * p->x_stride_bytes, (const float *)p->a->x + (p->t0 + t) * p->a->x_stride, w->d_in,
     w->dtype);
}

static uint64_t part_tiles(const struct gemm_pass *p, const struct weight *w)
{
    return (w->d_out + p->tile - 1) / p->tile;
}

static uint64_t pass_tiles(const struct gemm_pass *p)
{
    uint64_t total = 0;
    for (uint32_t i = p->part_first; i < p->part_end; i++)
        total += part_tiles(p, &p->a->part[i]);
    return total;
}

/* Tiles [lo, hi) of one block of rows, counted over the pass's parts. go_on: those behind are the
 * worker's too. */
static void block_tiles(const struct gemm_pass *p, struct product *j, uint64_t lo, uint64_t hi,
                        bool go_on)
{
    const struct gemm_args *a = p->a;
    uint64_t begin = 0;
    float *y = j->y;
    for (uint32_t i = p->part_first; i < p->part_end; i++) {
        const struct weight *w = &a->part[i];
        uint64_t end = begin + part_tiles(p, w);
        uint64_t from = MAX(lo, begin), to = MIN(hi, end);
        if (from < to) {
            uint64_t n0 = (from - begin) * p->tile, n1 = (to - begin) * p->tile;
            j->w = w;
            j->y = y + n0;
            j->then = NULL;
            if (to < end && go_on)
                j->then = (const char *)w->data + n1 * w->d_in * dtype_bytes(w->dtype);
            else if (to == end && i + 1 < p->part_end)
                j->then = w[1].data;
            ISA(product_range)(j, (uint32_t)n0, (uint32_t)MIN(n1, (uint64_t)w->d_out));
        }
        begin = end;
        y += w->d_out;
    }
}

/* Tiles [piece[0], piece[1]), counted over the pass's blocks. */
static void gemm_tiles(const struct gemm_pass *p, const uint64_t piece[2], uint32_t worker,
                       bool go_on)
{
    const struct gemm_args *a = p->a;
    size_t col = 0;
    for (uint32_t i = 0; i < p->part_first; i++)
        col += a->part[i].d_out;
    for (uint64_t at = piece[0], end; at < piece[1]; at = end) {
        uint64_t block = at / p->tiles, first = block * p->tiles, row = block * p->block;
        struct product j = {.x = p->x + row * p->x_stride_bytes,
                            .x_stride_bytes = p->x_stride_bytes,
                            .rows = (uint32_t)MIN(p->rows - row, (uint64_t)p->block),
                            .y = a->y + (p->t0 + row) * a->y_stride + col,
                            .y_stride = a->y_stride,
                            .scratch = cpu_scratch(p->c, worker)};
        end = MIN(piece[1], first + p->tiles);
        block_tiles(p, &j, at - first, end - first, go_on);
    }
}

/* A piece of worker w's tiles, from the front or the back; false: none is left. */
static bool take_piece(struct gemm_pass *p, uint32_t w, bool front, uint64_t piece[2])
{
    uint64_t left = atomic_load_explicit(&p->left[w], memory_order_relaxed), rest;
    do {
        uint64_t lo = left >> 32, hi = left & UINT32_MAX,
                 n = MIN(hi - lo, (uint64_t)PIECE_OUT / p->tile);
        if (n == 0)
            return false;
        piece[0] = front ? lo : hi - n;
        piece[1] = piece[0] + n;
        rest = front ? piece[1] << 32 | hi : lo << 32 | piece[0];
    } while (!atomic_compare_exchange_weak_explicit(&p->left[w], &left, rest, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

/* A worker that lost its core for a while leaves the rest to the others. */
static void gemm_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    struct gemm_pass *p = arg;
    uint64_t piece[2];
    for (uint32_t i = 0; i < n_worker; i++) {
        uint32_t w = (worker + i) % n_worker;
        while (take_piece(p, w, i == 0, piece))
            gemm_tiles(p, piece, worker, i == 0);
    }
}

static void gemm_parts(struct cpu_backend *c, struct gemm_pass *p)
{
    const struct gemm_args *a = p->a;
    const struct weight *w = &a->part[p->part_first];
    uint64_t out = 0, total, lo, hi;
    uint32_t n_worker = pool_size(c->pool);
    p->c = c;
    p->tile = ISA(product_tile)(w->dtype);
    p->tiles = pass_tiles(p);
    for (uint32_t i = p->part_first; i < p->part_end; i++)
        out += a->part[i].d_out;
    p->x = c->x;
    p->x_stride_bytes = ISA(dot_row_bytes)(w->dtype, w->d_in);
    uint32_t fit = (uint32_t)(CPU_X_BYTES / p->x_stride_bytes);
    CHECK(fit > 0);
    for (p->t0 = 0; p->t0 < a->n_tok; p->t0 += p->rows) {
        p->rows = MIN(a->n_tok - p->t0, fit);
        p->block = ISA(product_block)(w->dtype, w->d_in, p->rows);
        total = (p->rows + p->block - 1) / p->block * p->tiles;
        cpu_run(c, convert_work, p, (uint64_t)p->rows * w->d_in < 65536);
        bool alone = p->rows * (uint64_t)w->d_in * out < 32768;
        for (uint32_t i = 0; i < (alone ? 1 : n_worker); i++) {
            pool_share(total, i, alone ? 1 : n_worker, &lo, &hi);
            p->left[i] = lo << 32 | hi;
        }
        cpu_run(c, gemm_work, p, alone);
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
