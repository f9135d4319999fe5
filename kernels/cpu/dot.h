/* The one dot-product kernel behind gemm, lora_shrink, logits and score.
 *
 * Fixed arithmetic: y[t, n] = sum_k x[t, k] w[n, k] is accumulated along k in one vector register,
 * lane l taking k = l mod the vector's width, then summed by the tree of vf_sum4. Register tiles
 * hold up to TILE_M rows and 4 outputs, but an element sees the same operations in the same order
 * in every tile shape, so its bits depend on its row of x and its row of w only.
 *
 * x is converted once per op into rows padded with zeros to whole vectors; w stays as mapped, at
 * any alignment, its tail read by a masked load. */
#ifndef RS_KERNELS_CPU_DOT_H
#define RS_KERNELS_CPU_DOT_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/isa.h"

struct dot_job {
    const char *x; /* converted rows */
    size_t x_stride_bytes;
    const char *w; /* [n, d_in] */
    enum dtype dtype;
    uint32_t d_in, rows;
    float *y;
    size_t y_stride;
    const char *then; /* weights of the same d_in that are used next, to be fetched meanwhile; or
                         NULL */
};

/* Bytes of a converted row for weights of this dtype. */
size_t ISA(dot_row_bytes)(enum dtype dtype, uint32_t d_in);

/* Convert rows of x (f32) for weights of this dtype. */
void ISA(dot_convert)(char *dst, const float *x, uint32_t d_in, enum dtype dtype);

/* Rows of x serve as they stand, unconverted, at any stride. */
bool ISA(dot_as_is)(enum dtype dtype, uint32_t d_in);

/* y[t, n] for all rows t and n in [n0, n1); y points at column 0. */
void ISA(dot_range)(const struct dot_job *j, uint32_t n0, uint32_t n1);

#endif
