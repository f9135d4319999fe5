/* norm: RMSNorm, optionally of a selection of rows. Rows ascend, so out may be x when the selection
 * does too. */
#include "kernels/ref/ref.h"

#include <math.h>
#include <string.h>

enum status ref_norm(struct backend *b, const struct norm_args *a)
{
    (void)b;
    for (uint32_t t = 0; t < a->n_tok; t++) {
        const float *x = a->x + (size_t)(a->rows ? a->rows[t] : t) * a->d_model;
        float *out = (float *)a->out + (size_t)t * a->d_model;
        double sum = 0;
        if (a->keep_x)
            memcpy(a->keep_x + (size_t)t * a->d_model, x, a->d_model * sizeof(*x));
        for (uint32_t i = 0; i < a->d_model; i++)
            sum += (double)x[i] * x[i];
        float rstd = (float)(1.0 / sqrt(sum / a->d_model + (double)a->eps));
        for (uint32_t i = 0; i < a->d_model; i++)
            out[i] = x[i] * rstd * a->gain[i];
        if (a->keep_rstd)
            a->keep_rstd[t] = rstd;
    }
    return STATUS_OK;
}
