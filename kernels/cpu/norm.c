/* norm: RMSNorm, a row at a time. The sum of squares runs in four vectors, combined in one order.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/reduce.h"
#include "kernels/cpu/vec.h"

float ISA(sum_squares)(const float *x, uint32_t n)
{
    vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    uint32_t i = 0;
    for (; i + 4 * VW <= n; i += 4 * VW) {
        vf a = vf_load(x + i), b = vf_load(x + i + VW);
        vf c = vf_load(x + i + 2 * VW), d = vf_load(x + i + 3 * VW);
        s0 = vf_fma(a, a, s0);
        s1 = vf_fma(b, b, s1);
        s2 = vf_fma(c, c, s2);
        s3 = vf_fma(d, d, s3);
    }
    for (; i + VW <= n; i += VW) {
        vf a = vf_load(x + i);
        s0 = vf_fma(a, a, s0);
    }
    if (i < n) {
        vf a = vf_load_n(x + i, n - i, 0);
        s1 = vf_fma(a, a, s1);
    }
    return vf_sum((s0 + s1) + (s2 + s3));
}

struct norm_job {
    const struct norm_args *a;
};

static void norm_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct norm_args *a = ((struct norm_job *)arg)->a;
    uint64_t lo, hi;
    pool_share(a->n_tok, worker, n_worker, &lo, &hi);
    for (uint64_t t = lo; t < hi; t++) {
        const float *x = a->x + (size_t)(a->rows ? a->rows[t] : t) * a->d_model;
        float *out = (float *)a->out + t * a->d_model;
        if (a->keep_x)
            memcpy(a->keep_x + t * a->d_model, x, a->d_model * sizeof(*x));
        float mean = ISA(sum_squares)(x, a->d_model) / (float)a->d_model;
        float rstd = 1.0f / sqrtf(mean + a->eps);
        for (uint32_t i = 0; i < a->d_model; i++)
            out[i] = x[i] * rstd * a->gain[i];
        if (a->keep_rstd)
            a->keep_rstd[t] = rstd;
    }
}

enum status ISA(norm)(struct backend *b, const struct norm_args *a)
{
    struct norm_job job = {a};
    /* in place with a selection, rows must be taken in ascending order */
    bool alone = a->rows && a->out == a->x;
    cpu_run(cpu_of(b), norm_work, &job, alone || (uint64_t)a->n_tok * a->d_model < 16384);
    return STATUS_OK;
}
