/* Elements in double, state in float: what is stored is rounded once a step. */
#include "server/train/optim.h"
#include "server/base/check.h"

#include <math.h>
#include <string.h>

static const char *const schedule_name[OPTIM_SCHEDULES] = {"constant", "linear", "cosine"};

const char *optim_schedule_name(enum optim_schedule s)
{
    return schedule_name[s];
}

bool optim_schedule_parse(enum optim_schedule *out, const char *name)
{
    for (int i = 0; i < OPTIM_SCHEDULES; i++) {
        if (strcmp(name, schedule_name[i]) == 0) {
            *out = (enum optim_schedule)i;
            return true;
        }
    }
    return false;
}

double optim_lr(const struct optim_options *o, uint32_t step)
{
    const double pi = 3.14159265358979323846;
    if (step < o->warmup)
        return o->lr * step / o->warmup;
    if (o->schedule == OPTIM_CONSTANT)
        return o->lr;
    uint32_t span = o->steps > o->warmup ? o->steps - o->warmup : 1;
    double done = MIN(1.0, (double)(step - o->warmup) / span);
    return o->lr * (o->schedule == OPTIM_LINEAR ? 1 - done : 0.5 * (1 + cos(pi * done)));
}

double optim_norm(const float *g, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)g[i] * (double)g[i];
    return sqrt(sum);
}

double optim_step(const struct optim_options *o, uint32_t step, float *w, float *m, float *v,
                  const float *g, size_t n)
{
    double norm = optim_norm(g, n), lr = optim_lr(o, step), t = step + 1.0;
    if (!isfinite(norm))
        return norm;
    double shrink = o->clip > 0 ? MIN(1.0, o->clip / (norm + 1e-6)) : 1;
    double rate = lr / (1 - pow(o->beta1, t)), root = sqrt(1 - pow(o->beta2, t));
    double keep = 1 - lr * o->weight_decay;
    for (size_t i = 0; i < n; i++) {
        double gi = (double)g[i] * shrink;
        double mi = o->beta1 * (double)m[i] + (1 - o->beta1) * gi;
        double vi = o->beta2 * (double)v[i] + (1 - o->beta2) * gi * gi;
        m[i] = (float)mi;
        v[i] = (float)vi;
        w[i] = (float)((double)w[i] * keep - rate * mi / (sqrt(vi) / root + o->eps));
    }
    return norm;
}
