/* What turns gradients into the next weights: AdamW with decoupled weight decay (Loshchilov and
 * Hutter, 2019), the clipping of a gradient's norm, and the learning rate of a step. Sums are taken
 * in one fixed order, so bits depend on nothing but the numbers. Pure. Thread: any. */
#ifndef RS_TRAIN_OPTIM_H
#define RS_TRAIN_OPTIM_H

#include "server/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum optim_schedule { OPTIM_CONSTANT, OPTIM_LINEAR, OPTIM_COSINE, OPTIM_SCHEDULES };
const char *optim_schedule_name(enum optim_schedule s);
MUST_CHECK bool optim_schedule_parse(enum optim_schedule *out, const char *name);

struct optim_options {
    double lr, beta1, beta2, eps, weight_decay;
    double clip; /* the largest norm of a step's gradient; 0: any */
    enum optim_schedule schedule;
    uint32_t warmup, steps; /* of all steps the first `warmup` rise from 0 */
};

/* The rate of step 0 .. steps-1: rises to lr over the warm-up, then stays, falls to 0 in a line, or
 * in half a cosine, as transformers' schedules do. */
double optim_lr(const struct optim_options *o, uint32_t step);
/* sqrt(sum g^2). */
double optim_norm(const float *g, size_t n);

/* One step over n weights; moments m and v [n] are zeros before the first.
 *
 * Formula   g' = g * min(1, clip / (norm + 1e-6)); w -= lr * weight_decay * w;
 *           m = beta1 m + (1-beta1) g'; v = beta2 v + (1-beta2) g'^2;
 *           w -= lr / (1-beta1^t) * m / (sqrt(v) / sqrt(1-beta2^t) + eps), t = step + 1
 * Returns   norm, before clipping; not finite: nothing was changed */
double optim_step(const struct optim_options *o, uint32_t step, float *w, float *m, float *v,
                  const float *g, size_t n);

#endif
