/* logits, score and sketch. score walks the vocabulary in SCORE_TILE tiles with the same running
 * log-sum-exp as sample, so their log-probabilities are equal bit for bit. */
#include "kernels/bf16.h"
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

static void sketch_row(int8_t *out, const float *x, const struct sketch_basis *basis, uint32_t d)
{
    double z[SKETCH_DIM], norm2 = 0;
    for (uint32_t j = 0; j < SKETCH_DIM; j++) {
        double sum = 0;
        for (uint32_t k = 0; k < d; k++)
            sum += (double)bf16_to_f32(basis->w[(size_t)j * d + k]) * (double)x[k];
        z[j] = sum - (double)basis->bias[j];
        norm2 += z[j] * z[j];
    }
    double scale = norm2 > 0 && isfinite(norm2) ? 127.0 / sqrt(norm2) : 0;
    for (uint32_t j = 0; j < SKETCH_DIM; j++)
        out[j] = scale > 0 ? (int8_t)nearbyint(z[j] * scale) : 0;
}

enum status ref_sketch(struct backend *b, const struct sketch_args *a)
{
    (void)b;
    for (uint32_t s = 0; s < a->n_seg; s++) {
        const struct sketch_seg *seg = &a->seg[s];
        for (size_t t = seg->row; t < (size_t)seg->row + seg->n_row; t++)
            sketch_row(a->out + t * SKETCH_DIM, (const float *)a->x + t * a->d_model, seg->basis,
                       a->d_model);
    }
    return STATUS_OK;
}
