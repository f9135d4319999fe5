/* dropout: rows split over the workers; the mask is integers lane by lane, which the compiler makes
 * vectors of. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "server/base/check.h"

static void drop_row(float *out, const float *x, const struct dropout_args *a,
                     const struct dropout_seg *s, uint32_t t)
{
    const uint32_t key = dropout_key(s, t, a->site), bar = dropout_bar(s->p), n = a->width;
    const float kept = 1.0f / (1.0f - s->p);
    if (a->add)
        for (uint32_t k = 0; k < n; k++)
            out[k] += dropout_factor(key, k, bar, kept) * x[k];
    else
        for (uint32_t k = 0; k < n; k++)
            out[k] = dropout_factor(key, k, bar, kept) * x[k];
}

static void drop_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct dropout_args *a = arg;
    for (uint32_t i = 0; i < a->n_seg; i++) {
        const struct dropout_seg *s = &a->seg[i];
        uint64_t lo, hi;
        pool_share(s->tok_count, worker, n_worker, &lo, &hi);
        for (uint64_t t = s->tok_begin + lo; t < s->tok_begin + hi; t++)
            drop_row((float *)a->out + t * a->out_stride, (const float *)a->x + t * a->x_stride, a,
                     s, (uint32_t)t);
    }
}

enum status ISA(dropout)(struct backend *b, const struct dropout_args *a)
{
    struct dropout_args args = *a;
    uint64_t rows = 0;
    for (uint32_t i = 0; i < a->n_seg; i++) {
        CHECK(a->seg[i].p >= 0 && a->seg[i].p < 1);
        rows += a->seg[i].tok_count;
    }
    cpu_run(cpu_of(b), drop_work, &args, rows * a->width < 16384);
    return STATUS_OK;
}
