/* Tinker's losses of a sequence, from the log-probabilities of its targets. As its documentation
 * has them (tinker-docs.thinkingmachines.ai/losses), sums over positions, no mean:
 *
 *   cross_entropy        L = -sum_t weights[t] * logprob[t]
 *   importance_sampling  ratio[t] = exp(logprob[t] - logprobs[t]), logprobs: of who sampled
 *                        L = -sum_t ratio[t] * advantages[t]
 *   ppo                  L = -sum_t min(ratio[t] * advantages[t],
 *                                       clamp(ratio[t], low, high) * advantages[t])
 *                        low and high: clip_low_threshold, clip_high_threshold of
 *                        loss_fn_config, .8 and 1.2 where absent
 *
 * What the backward pass takes is -dL/dlogprob: weights; ratio * advantages; the same where the
 * minimum is not the clamped one, else 0. A position without an advantage costs nothing whatever
 * its ratio. Pure, sums in f64. Thread: any. */
#ifndef RS_TRAIN_TINKER_LOSS_H
#define RS_TRAIN_TINKER_LOSS_H

#include "server/base/errtext.h"

#include <stdbool.h>
#include <stdint.h>

#define TINKER_CLIP_LOW  0.8
#define TINKER_CLIP_HIGH 1.2

enum tinker_loss_kind {
    TINKER_CROSS_ENTROPY,
    TINKER_IMPORTANCE_SAMPLING,
    TINKER_PPO,
    TINKER_LOSSES
};
/* UNSUPPORTED: another one, by name. */
MUST_CHECK enum status tinker_loss_parse(enum tinker_loss_kind *out, const char *name,
                                         struct errtext *err);

struct tinker_loss {
    enum tinker_loss_kind kind;
    double clip_low, clip_high;
    uint32_t n;
    const float *weights;             /* [n] of cross_entropy */
    const float *sampled, *advantage; /* [n] of the others */
};
/* L. back [n]: -dL/dlogprob, or NULL. Not finite: no gradient is worth having, and back is zeros.
 */
double tinker_loss_of(const struct tinker_loss *l, const float *logprob, float *back);

#endif
