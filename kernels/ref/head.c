/* logits, score and sketch. score walks the vocabulary in SCORE_TILE tiles with the same running
 * log-sum-exp as sample, so their log-probabilities are equal bit for bit. */
#include "kernels/ref/ref.h"
#include "server/base/check.h"

#include <math.h>

enum status ref_logits(struct backend *b, const struct logits_args *a)
{
    struct gemm_args g = {.y = a->out,
                          .x = a->x,
                          .part = {a->w},
                          .part_count = 1,
                          .n_tok = a->n_row,
                          .x_stride = a->w.d_in,
                          .y_stride = a->w.d_out};
    return ref_gemm(b, &g);
}

void ref_lse_add(struct ref_lse *l, const float *x, uint32_t n)
{
    double max = l->max, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        max = fmax(max, (double)x[i]);
    if (max == -INFINITY)
        return;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    l->sum = l->sum * exp(l->max - max) + sum;
    l->max = max;
}

float ref_lse_logprob(const struct ref_lse *l, float logit)
{
    return (float)((double)logit - (l->max + log(l->sum)));
}

enum status ref_score(struct backend *b, const struct score_args *a)
{
    (void)b;
    uint32_t n_vocab = a->w.d_out;
    for (uint32_t t = 0; t < a->n_row; t++) {
        float *tile = a->scratch + (size_t)t * SCORE_TILE;
        struct ref_lse lse = {-INFINITY, 0};
        float target = 0;
        CHECK(a->target[t] >= 0 && (uint32_t)a->target[t] < n_vocab);
        for (uint32_t n0 = 0; n0 < n_vocab; n0 += SCORE_TILE) {
            uint32_t n = MIN(n_vocab - n0, (uint32_t)SCORE_TILE);
            for (uint32_t i = 0; i < n; i++)
                tile[i] = ref_dot((const float *)a->x + (size_t)t * a->w.d_in, &a->w, n0 + i);
            ref_lse_add(&lse, tile, n);
            if ((uint32_t)a->target[t] - n0 < n)
                target = tile[(uint32_t)a->target[t] - n0];
        }
        a->logprob[t] = ref_lse_logprob(&lse, target);
    }
    return STATUS_OK;
}

enum status ref_sketch(struct backend *b, const struct sketch_args *a)
{
    (void)b;
    size_t row_bytes = (a->d_model + 7) / 8;
    for (uint32_t t = 0; t < a->n_row; t++) {
        const float *x = (const float *)a->x + (size_t)t * a->d_model;
        double z[SKETCH_DIM], norm2 = 0;
        for (uint32_t j = 0; j < SKETCH_DIM; j++) {
            const uint8_t *bits = a->sign_bits + j * row_bytes;
            z[j] = 0;
            for (uint32_t i = 0; i < a->d_model; i++)
                z[j] += (bits[i / 8] >> (i % 8)) & 1 ? (double)x[i] : -(double)x[i];
            norm2 += z[j] * z[j];
        }
        double scale = norm2 > 0 ? 127.0 / sqrt(norm2) : 0;
        for (uint32_t j = 0; j < SKETCH_DIM; j++)
            a->out[(size_t)t * SKETCH_DIM + j] = (int8_t)nearbyint(z[j] * scale);
    }
    return STATUS_OK;
}
