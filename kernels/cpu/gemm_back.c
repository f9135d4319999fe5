/* gemm_back: dy is converted once, then blocks of (64 columns of dx) x (some rows) are taken by the
 * workers as they come free. A block walks the rows of W in panels that fit L1, its sums parked in
 * dx between them. Rows beyond what the conversion buffer holds are done in further passes. */
#include "kernels/cpu/ops.h"
#include "kernels/cpu/outer.h"
#include "server/base/check.h"

#include <stdatomic.h>
#include <string.h>

#define BLOCK_ROWS 384
#define PANEL_ROWS 256

struct back_pass {
    const struct gemm_back_args *a;
    struct cpu_backend *c;
    char *x;
    size_t x_stride_bytes;
    size_t part_at[GEMM_PARTS_MAX]; /* a part's first byte in a converted row */
    uint32_t t0, rows, d_in;
    atomic_uint next;
};

static void back_convert(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct back_pass *p = arg;
    const struct gemm_back_args *a = p->a;
    uint64_t lo, hi;
    pool_share(p->rows, worker, n_worker, &lo, &hi);
    for (uint64_t t = lo; t < hi; t++) {
        const float *dy = a->dy + (p->t0 + t) * a->dy_stride;
        for (uint32_t i = 0; i < a->part_count; i++) {
            ISA(panel_row)
            (p->x + t * p->x_stride_bytes + p->part_at[i], dy, a->part[i].d_out, a->part[i].dtype);
            dy += a->part[i].d_out;
        }
    }
}

/* Rows r0 .. r0+m-1 of the pass, columns from k0 on. */
static void back_block(const struct back_pass *p, void *panel, uint32_t r0, uint32_t m, uint32_t k0)
{
    const struct gemm_back_args *a = p->a;
    uint32_t n_col = MIN(p->d_in - k0, (uint32_t)PANEL_COLS);
    float *c = a->dx + (size_t)(p->t0 + r0) * a->dx_stride + k0;
    for (uint32_t t = 0; t < m; t++)
        memset(c + (size_t)t * a->dx_stride, 0, n_col * sizeof(*c));
    for (uint32_t i = 0; i < a->part_count; i++) {
        const struct weight *w = &a->part[i];
        for (uint32_t n0 = 0; n0 < w->d_out; n0 += PANEL_ROWS) {
            struct panel q = {w->data, w->dtype, w->d_in, n0, MIN(w->d_out - n0, PANEL_ROWS), k0};
            struct panel_product product = {.c = c,
                                            .c_stride = a->dx_stride,
                                            .x = p->x + r0 * p->x_stride_bytes + p->part_at[i] +
                                                 ISA(panel_row_bytes)(w->dtype, n0),
                                            .x_stride_bytes = p->x_stride_bytes,
                                            .panel = panel,
                                            .dtype = w->dtype,
                                            .m = m,
                                            .n = q.n,
                                            .n_col = n_col};
            ISA(panel_pack)(panel, &q);
            ISA(panel_product)(&product);
        }
    }
}

static void back_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    struct back_pass *p = arg;
    uint32_t tiles = (p->d_in + PANEL_COLS - 1) / PANEL_COLS;
    uint32_t blocks = (p->rows + BLOCK_ROWS - 1) / BLOCK_ROWS * tiles, i;
    (void)n_worker;
    while ((i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < blocks) {
        uint32_t r0 = i / tiles * BLOCK_ROWS;
        back_block(p, cpu_scratch(p->c, worker), r0, MIN(p->rows - r0, (uint32_t)BLOCK_ROWS),
                   i % tiles * PANEL_COLS);
    }
}

enum status ISA(gemm_back)(struct backend *b, const struct gemm_back_args *a)
{
    struct back_pass p = {.a = a, .c = cpu_of(b), .d_in = a->part[0].d_in};
    uint64_t work = 0;
    p.x = p.c->x;
    for (uint32_t i = 0; i < a->part_count; i++) {
        p.part_at[i] = p.x_stride_bytes;
        p.x_stride_bytes += ISA(panel_row_bytes)(a->part[i].dtype, a->part[i].d_out);
        work += a->part[i].d_out;
        CHECK(a->part[i].d_in == p.d_in);
    }
    CHECK(p.x_stride_bytes <= CPU_X_BYTES && p.x_stride_bytes > 0);
    uint32_t fit = (uint32_t)(CPU_X_BYTES / p.x_stride_bytes);
    for (p.t0 = 0; p.t0 < a->n_tok; p.t0 += p.rows) {
        p.rows = MIN(a->n_tok - p.t0, fit);
        atomic_store_explicit(&p.next, 0, memory_order_relaxed);
        cpu_run(p.c, back_convert, &p, p.rows * work < 65536);
        cpu_run(p.c, back_work, &p, p.rows * work * p.d_in < 32768);
    }
    return STATUS_OK;
}
