/* gemm_back: W is taken in slabs of rows, each packed once for all rows of dy, in panels of 64
 * columns, while dy's columns of the slab are converted. Then units of (some rows of dx) x (a
 * panel) are taken by the workers as they come free, the panels of one block of rows after each
 * other, whose converted dy stays in L2; sums are parked in dx between slabs. Rows beyond what the
 * conversion buffer holds are done in further passes. */
#include "kernels/cpu/ops.h"
#include "kernels/cpu/outer.h"
#include "server/base/check.h"

#include <stdatomic.h>
#include <string.h>

#define SLAB_ROWS  1024 /* of W */
#define PACK_ROWS  32   /* of W that are packed at a time: each is read once, in order */
#define BLOCK_ROWS 192  /* of dx */
#define HALF_BYTES (CPU_X_BYTES / 2)
#define ONCE_BYTES ((size_t)448 << 10) /* of panels that one block of rows uses: they stay in L2 */

struct back_pass {
    const struct gemm_back_args *a;
    struct cpu_backend *c;
    const struct weight *w;
    char *x, *panels; /* converted dy; panels of the slab, one for each 64 columns of dx */
    size_t x_stride_bytes, panel_bytes, y_col;
    uint32_t t0, rows, n0, n; /* rows of dx of the pass, rows of w of the slab */
    uint32_t block, tiles;    /* rows of a unit; panels */
    bool begin;               /* dx is written, not added to */
    atomic_uint next;
};

static void slab_convert(const struct back_pass *p, uint64_t lo, uint64_t hi)
{
    const struct gemm_back_args *a = p->a;
    for (uint64_t t = lo; t < hi; t++)
        ISA(panel_row)
    (p->x + t * p->x_stride_bytes, a->dy + (p->t0 + t) * a->dy_stride + p->y_col + p->n0, p->n,
     p->w->dtype);
}

/* Rows lo .. hi-1 of the slab, lo even; those behind them are fetched meanwhile, in order. */
static void slab_pack(const struct back_pass *p, uint32_t lo, uint32_t hi)
{
    const struct weight *w = p->w;
    const size_t at = ISA(panel_bytes)(w->dtype, lo), row = w->d_in * dtype_bytes(w->dtype);
    const char *next = (const char *)w->data + (p->n0 + hi) * row;
    const size_t lines = ((hi - lo) * row + 63) / 64, each = (lines + p->tiles - 1) / p->tiles;
    for (uint32_t i = 0; i < p->tiles; i++) {
        for (size_t k = 0; k < each; k++, next += 64)
            __builtin_prefetch(next, 0, 2);
        struct panel q = {w->data, w->dtype, w->d_in, p->n0 + lo, hi - lo, i * PANEL_COLS};
        ISA(panel_pack)(p->panels + i * p->panel_bytes + at, &q);
    }
}

static void slab_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct back_pass *p = arg;
    uint64_t lo, hi;
    pool_share(p->rows, worker, n_worker, &lo, &hi);
    slab_convert(p, lo, hi);
    pool_share((p->n + PACK_ROWS - 1) / PACK_ROWS, worker, n_worker, &lo, &hi);
    for (uint64_t i = lo; i < hi; i++)
        slab_pack(p, (uint32_t)i * PACK_ROWS, MIN((uint32_t)(i + 1) * PACK_ROWS, p->n));
}

static void back_unit(const struct back_pass *p, uint32_t r0, uint32_t tile)
{
    const struct gemm_back_args *a = p->a;
    uint32_t k0 = tile * PANEL_COLS;
    struct panel_product q = {.c = a->dx + (size_t)(p->t0 + r0) * a->dx_stride + k0,
                              .c_stride = a->dx_stride,
                              .x = p->x + r0 * p->x_stride_bytes,
                              .x_stride_bytes = p->x_stride_bytes,
                              .panel = p->panels + tile * p->panel_bytes,
                              .dtype = p->w->dtype,
                              .m = MIN(p->rows - r0, p->block),
                              .n = p->n,
                              .n_col = MIN(p->w->d_in - k0, (uint32_t)PANEL_COLS),
                              .begin = p->begin};
    if (tile + 1 < p->tiles)
        q.ahead = (const char *)q.panel + p->panel_bytes;
    ISA(panel_product)(&q);
}

static void back_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    struct back_pass *p = arg;
    uint32_t units = (p->rows + p->block - 1) / p->block * p->tiles, i;
    (void)worker, (void)n_worker;
    while ((i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < units)
        back_unit(p, i / p->tiles * p->block, i % p->tiles);
}

/* Rows of w in a slab: an even count whose panels, and a row of dy, have room. */
static uint32_t slab_rows(const struct back_pass *p)
{
    size_t row = p->tiles * ISA(panel_bytes)(p->w->dtype, 2) / 2;
    size_t fit = (p->rows > p->block ? HALF_BYTES : ONCE_BYTES) / row / 2 * 2;
    return (uint32_t)MIN(MAX(fit, (size_t)PACK_ROWS), (size_t)SLAB_ROWS);
}

static void back_part(struct back_pass *p)
{
    const struct weight *w = p->w;
    p->tiles = (w->d_in + PANEL_COLS - 1) / PANEL_COLS;
    uint32_t slab = slab_rows(p);
    CHECK(p->tiles * ISA(panel_bytes)(w->dtype, slab) <= HALF_BYTES);
    for (p->n0 = 0; p->n0 < w->d_out; p->n0 += p->n) {
        p->n = MIN(w->d_out - p->n0, slab);
        p->panel_bytes = ISA(panel_bytes)(w->dtype, p->n);
        p->x_stride_bytes = ISA(panel_row_bytes)(w->dtype, p->n);
        uint64_t work = (uint64_t)p->n * w->d_in;
        atomic_store_explicit(&p->next, 0, memory_order_relaxed);
        cpu_run(p->c, slab_work, p, work + (uint64_t)p->rows * p->n < 65536);
        cpu_run(p->c, back_work, p, p->rows * work < 32768);
        p->begin = false;
    }
}

enum status ISA(gemm_back)(struct backend *b, const struct gemm_back_args *a)
{
    struct back_pass p = {.a = a, .c = cpu_of(b)};
    size_t row = 0;
    for (uint32_t i = 0; i < a->part_count; i++)
        row = MAX(row, ISA(panel_row_bytes)(a->part[i].dtype, SLAB_ROWS));
    p.x = p.c->x;
    p.panels = p.c->x + HALF_BYTES;
    for (p.t0 = 0; p.t0 < a->n_tok; p.t0 += p.rows) {
        p.rows = MIN(a->n_tok - p.t0, (uint32_t)(HALF_BYTES / row));
        uint32_t n = (p.rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
        p.block = (p.rows + n - 1) / n;
        p.begin = true;
        p.y_col = 0;
        for (uint32_t i = 0; i < a->part_count; i++) {
            p.w = &a->part[i];
            CHECK(p.w->d_in == a->part[0].d_in);
            back_part(&p);
            p.y_col += p.w->d_out;
        }
    }
    return STATUS_OK;
}
