/* The base model's matrices: embedding rows and GEMM.
 * Fixed arithmetic: an output element's bits depend on its row of x and its row of w only, never on
 * n_tok, on the other rows or on the number of threads. */
#ifndef RS_KERNELS_LINEAR_H
#define RS_KERNELS_LINEAR_H

#include "kernels/args.h"

#define GEMM_PARTS_MAX 3

/* embed
 *
 * Formula   out[t, :] = table[ids[t], :] as f32
 * Shapes    out [n_tok, d_model] f32; table [n_vocab, d_model]; ids [n_tok] i32
 * Before    0 <= id < n_vocab: the engine checks
 * Cost      n_tok * d_model elements */
struct embed_args {
    float *out;
    struct weight table; /* d_out = n_vocab, d_in = d_model */
    const int32_t *ids;
    uint32_t n_tok;
};

/* gemm: parts are the matrices of one group (q,k,v | gate,up), written side by side.
 *
 * Formula   for every part p: y[t, col_p + n] = sum_k x[t, k] * w_p[n, k], f32 accumulation, x
 *           rounded to bf16 if w is bf16; col_p = sum of d_out of earlier parts
 * Shapes    x [n_tok, x_stride] act, d_in used; y [n_tok, y_stride] f32
 * Cost      decode: the bytes of the parts once per call; prefill: 2*n_tok*d_in*sum(d_out) flop */
struct gemm_args {
    float *y;
    const void *x;
    struct weight part[GEMM_PARTS_MAX];
    uint32_t part_count;
    uint32_t n_tok, x_stride, y_stride;
};

#endif
