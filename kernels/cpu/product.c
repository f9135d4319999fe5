/* Products of a range of outputs: see product.h. A panel is 64 outputs by up to K_BLOCK of k; it
 * stays in L2 while the rows pass by in register tiles, and the sums wait in y between panels.
 * Packed panels follow each other in memory in the order of use, so the next one is fetched
 * meanwhile. */
#include "kernels/cpu/product.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/outer.h"
#include "server/base/check.h"

#define TILE_DOT 4

#define BLOCK_BYTES    ((size_t)384 << 10)
#define BLOCK_ROWS_MIN 48u
#define BLOCK_ROWS_MAX 192u

#if defined(__AVX512BF16__)
#define NATIVE(dtype) ((dtype) == DTYPE_BF16)
#define K_BLOCK       1024
/* With few rows memory is what they wait for. Two or three tiles of them share a panel in L1, which
 * leaves L2 to what is fetched; a panel that is turned for one tile is as small as fetching at an
 * even pace wants it. */
#define K_BLOCK_FEW  128
#define K_BLOCK_TURN 64
#define TILE_ROWS    6
#define FEW_ROWS     16

_Static_assert(PRODUCT_SCRATCH >= K_BLOCK * PANEL_COLS * 2, "a panel fits the scratch");

/* Bytes of 64 outputs in the packed copy. */
static size_t packed_panel(uint32_t d_in)
{
    return (size_t)(d_in + 31) / 32 * 32 * PANEL_COLS * 2;
}

static uint32_t k_block(const struct product *p)
{
    if (p->rows > FEW_ROWS)
        return K_BLOCK;
    if (p->rows > TILE_ROWS)
        return K_BLOCK_FEW;
    return p->w->packed ? K_BLOCK : K_BLOCK_TURN;
}

static void pairs_range(const struct product *p, uint32_t n0, uint32_t n1)
{
    const struct weight *w = p->w;
    const uint32_t block = k_block(p);
    for (uint32_t n = n0; n < n1; n += PANEL_COLS) {
        const uint32_t n_col = MIN(n1 - n, (uint32_t)PANEL_COLS);
        for (uint32_t k0 = 0; k0 < w->d_in; k0 += block) {
            const uint32_t n_k = MIN(w->d_in - k0, block);
            struct panel_product q = {.c = p->y + (n - n0),
                                      .c_stride = p->y_stride,
                                      .x = p->x + 2 * (size_t)k0,
                                      .x_stride_bytes = p->x_stride_bytes,
                                      .panel = p->scratch,
                                      .dtype = w->dtype,
                                      .m = p->rows,
                                      .n = n_k,
                                      .n_col = n_col,
                                      .begin = k0 == 0};
            if (w->packed) {
                q.panel = (const char *)w->packed + n / PANEL_COLS * packed_panel(w->d_in) +
                          (size_t)k0 * PANEL_COLS * 2;
                q.ahead = (const char *)q.panel + (size_t)(n_k + 31) / 32 * 32 * PANEL_COLS * 2;
            } else {
                struct panel turn = {w->data, w->dtype, w->d_in, n, n_col, k0};
                ISA(panel_turn)(p->scratch, &turn, n_k);
            }
            ISA(panel_product)(&q);
        }
    }
}
#else
#define NATIVE(dtype) ((void)(dtype), false)
#endif

uint32_t ISA(product_tile)(enum dtype dtype)
{
    return NATIVE(dtype) ? PANEL_COLS : TILE_DOT;
}

uint32_t ISA(product_block)(enum dtype dtype, uint32_t d_in, uint32_t rows)
{
    if (!NATIVE(dtype))
        return rows;
    uint32_t fit = (uint32_t)(BLOCK_BYTES / ISA(dot_row_bytes)(dtype, d_in));
    uint32_t most = MAX(MIN(fit, BLOCK_ROWS_MAX), BLOCK_ROWS_MIN), n = (rows + most - 1) / most;
    return (rows + n - 1) / n;
}

void ISA(product_range)(const struct product *p, uint32_t n0, uint32_t n1)
{
    const struct weight *w = p->w;
#if defined(__AVX512BF16__)
    if (NATIVE(w->dtype)) {
        pairs_range(p, n0, n1);
        return;
    }
#endif
    struct dot_job j = {.x = p->x,
                        .x_stride_bytes = p->x_stride_bytes,
                        .w = w->data,
                        .dtype = w->dtype,
                        .d_in = w->d_in,
                        .rows = p->rows,
                        .y = p->y - n0,
                        .y_stride = p->y_stride,
                        .then = p->then};
    ISA(dot_range)(&j, n0, n1);
}

/* ---- the packed copy ---- */

size_t ISA(pack_bytes)(const struct backend *b, const struct weight *w)
{
#if defined(__AVX512BF16__)
    const struct cpu_backend *c = (const struct cpu_backend *)(const void *)b;
    bool ours = !c->dnnl || c->dnnl_rows_min > 1;
    if (NATIVE(w->dtype) && ours)
        return (size_t)(w->d_out + PANEL_COLS - 1) / PANEL_COLS * packed_panel(w->d_in);
#endif
    (void)b, (void)w;
    return 0;
}

#if defined(__AVX512BF16__)
struct pack_pass {
    char *out;
    const struct weight *w;
};

static void pack_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct pack_pass *p = arg;
    const struct weight *w = p->w;
    uint64_t lo, hi;
    pool_share((w->d_out + PANEL_COLS - 1) / PANEL_COLS, worker, n_worker, &lo, &hi);
    for (uint64_t i = lo; i < hi; i++) {
        uint32_t n0 = (uint32_t)i * PANEL_COLS;
        struct panel q = {w->data, w->dtype, w->d_in, n0, MIN(w->d_out - n0, (uint32_t)PANEL_COLS),
                          0};
        ISA(panel_turn)(p->out + i * packed_panel(w->d_in), &q, w->d_in);
    }
}
#endif

void ISA(pack)(struct backend *b, void *out, const struct weight *w)
{
#if defined(__AVX512BF16__)
    struct pack_pass p = {out, w};
    VERIFY(NATIVE(w->dtype));
    cpu_run(cpu_of(b), pack_work, &p, false);
#else
    (void)b, (void)out, (void)w;
#endif
}
