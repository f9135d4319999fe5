/* dropout, by the header's own functions. */
#include "kernels/ref/ref.h"
#include "server/base/check.h"

enum status ref_dropout(struct backend *b, const struct dropout_args *a)
{
    (void)b;
    for (uint32_t i = 0; i < a->n_seg; i++) {
        const struct dropout_seg *s = &a->seg[i];
        uint32_t bar = dropout_bar(s->p);
        CHECK(s->p >= 0 && s->p < 1);
        for (uint32_t t = s->tok_begin; t < s->tok_begin + s->tok_count; t++) {
            uint32_t key = dropout_key(s, t, a->site);
            float *out = (float *)a->out + (size_t)t * a->out_stride;
            const float *x = (const float *)a->x + (size_t)t * a->x_stride;
            for (uint32_t k = 0; k < a->width; k++) {
                float v = dropout_factor(key, k, bar, 1.0f / (1.0f - s->p)) * x[k];
                out[k] = a->add ? out[k] + v : v;
            }
        }
    }
    return STATUS_OK;
}
