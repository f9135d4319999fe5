/* The one outer-product kernel behind the backward ops: c[m, n] += sum_k a[m, k] * b[k, n], lanes
 * along n, so that nothing is summed across lanes.
 *
 * Fixed arithmetic: an element is one chain over k, a fused multiply-add each (where the path has
 * it), continued from what stands in c; tiles of any shape and cuts of k between calls give the
 * same bits. */
#ifndef RS_KERNELS_CPU_OUTER_H
#define RS_KERNELS_CPU_OUTER_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/isa.h"

struct outer {
    float *c;
    size_t c_stride;
    const float *a;
    size_t a_m, a_k; /* strides of a along m and k */
    const float *b;
    size_t b_stride;
    float scale; /* multiplies a before the product */
    uint32_t m, n, k;
};

void ISA(outer)(const struct outer *o);

/* Columns of a packed panel of weights. */
#define PANEL_COLS 64

/* A panel of W [d_out, d_in] for sums over its rows: rows n0 .. n0+n-1, columns k0 .. k0+63 (those
 * past d_in zero). Paths with native bf16 products keep pairs of rows side by side in bf16, the
 * last one's partner zero; the others widen to f32. */
struct panel {
    const char *w;
    enum dtype dtype;
    uint32_t d_in, n0, n, k0;
};
void ISA(panel_pack)(void *out, const struct panel *p);
/* Native bf16 only: a panel for sums over columns, outputs n0 .. n0+n-1 (n <= 64, the others zero),
 * n_k of k from k0 on (even; n_k a multiple of 32, or to d_in's end): [n_k/2][64][2], written in
 * whole blocks of 32 k, zeros behind the end. */
void ISA(panel_turn)(void *panel, const struct panel *p, uint32_t n_k);
size_t ISA(panel_bytes)(enum dtype dtype, uint32_t n);

/* Rows of dy for a panel of that dtype: bytes of a row of n, and the conversion (rounded to bf16
 * where w is bf16). The row is padded to an even count. */
size_t ISA(panel_row_bytes)(enum dtype dtype, uint32_t n);
void ISA(panel_row)(char *dst, const float *dy, uint32_t n, enum dtype dtype);

/* c[m, 0..n_col) += sum over the panel's rows of x[m, row] * panel[row, :]; x: converted rows, at
 * the panel's first element (n0 even). */
struct panel_product {
    float *c;
    size_t c_stride;
    const char *x;
    size_t x_stride_bytes;
    const void *panel;
    enum dtype dtype;
    uint32_t m, n, n_col;
    bool begin; /* c starts at zero instead of being added to */
    /* Native pairs only: as many bytes as the panel's, used next, are fetched meanwhile; or NULL */
    const char *ahead;
};
void ISA(panel_product)(const struct panel_product *p);

#endif
