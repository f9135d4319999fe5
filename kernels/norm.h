/* RMSNorm. */
#ifndef RS_KERNELS_NORM_H
#define RS_KERNELS_NORM_H

#include "kernels/args.h"

/* norm
 *
 * Formula   out[t, i] = x[t, i] * rstd[t] * gain[i], rstd = 1/sqrt(mean_i x[t,i]^2 + eps), f32
 * Shapes    out [n_tok, d_model] act, x f32 (out may be x where act is f32); gain [d_model] f32;
 *           keep_rstd [n_tok] or NULL; keep_x [n_tok, d_model] f32, the rows of x as read, or NULL
 * Rows      NULL, or row t reads x[rows[t]]: the rows whose logits are wanted */
struct norm_args {
    void *out;
    const float *x;
    const float *gain;
    const uint32_t *rows;
    float *keep_rstd;
    float eps;
    uint32_t n_tok, d_model;
    float *keep_x;
};

#endif
