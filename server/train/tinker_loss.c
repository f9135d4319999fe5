#include "server/train/tinker_loss.h"
#include "server/base/check.h"

#include <math.h>
#include <string.h>

static const char *const names[TINKER_LOSSES] = {[TINKER_CROSS_ENTROPY] = "cross_entropy",
                                                 [TINKER_IMPORTANCE_SAMPLING] =
                                                     "importance_sampling",
                                                 [TINKER_PPO] = "ppo"};

enum status tinker_loss_parse(enum tinker_loss_kind *out, const char *name, struct errtext *err)
{
    for (int i = 0; i < TINKER_LOSSES; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (enum tinker_loss_kind)i;
            return STATUS_OK;
        }
    }
    return err_param(err, STATUS_UNSUPPORTED, "loss_fn",
                     "loss_fn: found \"%.40s\", this server has cross_entropy, importance_sampling "
                     "and ppo; forward_backward_custom computes any other on your side",
                     name);
}

/* The term of position t, to be summed; *back: its derivative by the log-probability. */
static double term(const struct tinker_loss *l, uint32_t t, float logprob, double *back)
{
    *back = 0;
    if (l->kind == TINKER_CROSS_ENTROPY) {
        *back = l->weights[t];
        return l->weights[t] == 0 ? 0 : (double)l->weights[t] * logprob;
    }
    double a = l->advantage[t];
    if (a == 0)
        return 0;
    double ratio = exp((double)logprob - l->sampled[t]), plain = ratio * a;
    double clipped = fmin(fmax(ratio, l->clip_low), l->clip_high) * a;
    if (l->kind == TINKER_PPO && clipped < plain)
        return clipped;
    *back = plain;
    return plain;
}

double tinker_loss_of(const struct tinker_loss *l, const float *logprob, float *back)
{
    double sum = 0;
    bool fit = true;
    for (uint32_t t = 0; t < l->n; t++) {
        double d;
        sum += term(l, t, logprob[t], &d);
        fit = fit && isfinite((float)d);
        if (back)
            back[t] = (float)d;
    }
    if (fit && isfinite(sum))
        return -sum;
    if (back)
        memset(back, 0, l->n * sizeof(*back));
    return (double)NAN;
}
