/* Products with the base's matrices: y[t, n] = sum_k x[t, k] w[n, k] for a range of outputs, behind
 * gemm, logits and score.
 *
 * Fixed arithmetic: an element's bits depend on its row of x and its row of w only. On paths with
 * native bf16 products and for bf16 weights it is one chain over pairs of k in ascending order
 * (outer.h), the same at every row count, whether the panels are read from a packed copy or turned
 * from the mapped rows as they are needed; elsewhere it is the dot kernel's sum (dot.h). */
#ifndef RS_KERNELS_CPU_PRODUCT_H
#define RS_KERNELS_CPU_PRODUCT_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/isa.h"

/* Scratch of a call, 64-byte aligned. */
#define PRODUCT_SCRATCH ((size_t)128 << 10)

struct product {
    const char *x; /* rows converted by dot_convert */
    size_t x_stride_bytes;
    const struct weight *w;
    uint32_t rows;
    float *y; /* at column n0 of the range */
    size_t y_stride;
    void *scratch;    /* [PRODUCT_SCRATCH] */
    const char *then; /* see dot.h: after the range; may be NULL */
};

/* Outputs that ranges must begin at a multiple of. */
uint32_t ISA(product_tile)(enum dtype dtype);
/* Rows of a range that are best taken together, of `rows`: their inputs stay in L2. */
uint32_t ISA(product_block)(enum dtype dtype, uint32_t d_in, uint32_t rows);
void ISA(product_range)(const struct product *p, uint32_t n0, uint32_t n1);

/* backend.h */
size_t ISA(pack_bytes)(const struct backend *b, const struct weight *w);
void ISA(pack)(struct backend *b, void *out, const struct weight *w);

#endif
