/* Whitened principal directions of a sample of vectors: the projection that turns a model's
 * vectors, which lie in a narrow cone and differ mostly in few directions, into short keys whose
 * cosine tells them apart. Deterministic: f64 in a fixed order, the same bits on every machine.
 * Thread: any. */
#ifndef RS_INFLUENCE_WHITEN_H
#define RS_INFLUENCE_WHITEN_H

#include "server/base/errtext.h"

#include <stdint.h>

#define WHITEN_OUT 64

/* whiten_fit - directions of x's rows: w_i = u_i / sqrt(value_i + ridge), largest first.
 *
 * Shapes  x [n][d] f32; w [64][d] bf16, bias [64] f32: bias = w (as rounded) . mean of x
 * After   directions that the sample does not have (fewer than 64, or no rows) are rows of zeros
 * Errors  INVALID for a value that is not finite, NO_MEMORY
 * Cost    n d^2 / 2 + 40 x 80 d^2 multiplications, 8 d^2 bytes */
MUST_CHECK enum status whiten_fit(uint16_t *w, float *bias, const float *x, uint32_t n, uint32_t d,
                                  struct errtext *err);
/* out = round_even(127 z / |z|), zeros when z is. */
void whiten_quantise(int8_t out[WHITEN_OUT], const float z[WHITEN_OUT]);
/* z = w x - bias with w transposed to [d][64] f32 (whiten_transpose). */
void whiten_project(float z[WHITEN_OUT], const float *w_t, const float *bias, const float *x,
                    uint32_t d);
void whiten_transpose(float *w_t, const uint16_t *w, uint32_t d);

#endif
