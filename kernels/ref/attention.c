/* attention: one row and head at a time, three passes over the scores (recomputed, so nothing is
 * stored): maximum, sum, weighted values. */
#include "kernels/bf16.h"
#include "kernels/ref/ref.h"
#include "server/base/check.h"

#include <math.h>

#define REF_HEAD_MAX 1024

struct row_head {
    const struct attention_args *a;
    const float *q;
    const uint32_t *page;
    uint32_t kv_head;
};

static uint64_t elem_at(const struct row_head *r, uint32_t pos, uint32_t is_v)
{
    const struct kv_cache *kv = &r->a->kv;
    return kv_offset(kv, r->page[pos / kv->page_tok], r->a->layer, is_v, r->kv_head,
                     pos % kv->page_tok);
}

static double score_at(const struct row_head *r, uint32_t pos)
{
    uint64_t off = elem_at(r, pos, 0);
    double sum = 0;
    for (uint32_t i = 0; i < r->a->d_head; i++)
        sum += (double)r->q[i] * elem_load(r->a->kv.base, r->a->kv.dtype, off + i);
    return sum * (double)r->a->scale;
}

static void attend(const struct row_head *r, uint32_t first, uint32_t last, float *out, float *lse)
{
    const struct attention_args *a = r->a;
    double max = -INFINITY, sum = 0, acc[REF_HEAD_MAX] = {0};
    for (uint32_t j = first; j <= last; j++)
        max = fmax(max, score_at(r, j));
    for (uint32_t j = first; j <= last; j++) {
        double p = exp(score_at(r, j) - max);
        uint64_t off = elem_at(r, j, 1);
        sum += p;
        for (uint32_t i = 0; i < a->d_head; i++)
            acc[i] += p * elem_load(a->kv.base, a->kv.dtype, off + i);
    }
    for (uint32_t i = 0; i < a->d_head; i++)
        out[i] = (float)(acc[i] / sum);
    if (lse)
        *lse = (float)(max + log(sum));
}

enum status ref_attention(struct backend *b, const struct attention_args *a)
{
    (void)b;
    CHECK(a->d_head <= REF_HEAD_MAX && a->n_head % a->n_kv_head == 0);
    uint32_t group = a->n_head / a->n_kv_head;
    for (uint32_t t = 0; t < a->n_tok; t++) {
        uint32_t last = a->rows.pos[t];
        uint32_t first = a->window && last + 1 > a->window ? last + 1 - a->window : 0;
        for (uint32_t h = 0; h < a->n_head; h++) {
            size_t th = (size_t)t * a->n_head + h;
            struct row_head r = {a, (const float *)a->q + th * a->d_head,
                                 a->rows.page_table + (size_t)a->rows.seq[t] * a->rows.page_stride,
                                 h / group};
            attend(&r, first, last, (float *)a->out + th * a->d_head,
                   a->keep_lse ? a->keep_lse + th : NULL);
        }
    }
    return STATUS_OK;
}
