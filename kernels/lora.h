/* LoRA, by segment and at true rank. Shrink is an op; expand is never one: it is the first half of
 * the finish that follows each base GEMM anyway (kernels/finish.h). Base-only segments cost
 * nothing. */
#ifndef RS_KERNELS_LORA_H
#define RS_KERNELS_LORA_H

#include "kernels/args.h"

/* lora_shrink: for every segment, its parts and the group's modules m = first .. first+count-1:
 *   s[t, off(m,p) + r] = scale(layer,m,p) * (weight_q16/65536) * sum_k x[t,k] * A(layer,m,p)[r,k]
 * (the product scale*weight is one f32 multiplication, done before it multiplies the f32 sum).
 * Shapes  x [n_tok, x_stride] f32 (rounded to bf16 when the blob is bf16); lora->s [n_tok,
 * s_stride]. After   columns past a segment's sum of ranks, and rows of base-only segments, are
 * untouched. Cost    the bytes of the distinct A of the batch. */
struct lora_shrink_args {
    struct lora_step lora;
    const float *x;
    float *keep_ax; /* keep mode: [n_tok, s_stride] unscaled A x, or NULL */
    uint32_t n_tok, x_stride, d_in;
    uint32_t layer;
    enum lora_module first;
    uint32_t module_count;
};

#endif
