/* sample and top_logprobs, in the plainest form: adjust a copy of the row, sort the whole
 * vocabulary by (logit descending, id ascending), cut prefixes, draw. A NaN logit sorts as -inf.
 * Scratch per row: raw copy f32 [V], order u32 [V], weight f64 [V], counts u32 [V]. */
#include "kernels/ref/ref.h"
#include "server/base/check.h"
#include "server/base/philox.h"

#include <math.h>
#include <string.h>

struct ref_sample {
    double *weight;  /* of the sorted candidates */
    float *raw;      /* the row before any adjustment */
    float *logit;    /* the adjusted row (the caller's, clobbered) */
    uint32_t *order; /* ids, sorted */
    uint32_t *count; /* tokens seen: bit 31 anywhere, low bits in the output */
    uint32_t n_vocab;
};

#define SEEN 0x80000000u

size_t ref_sample_scratch_bytes(const struct backend *b, uint32_t n_vocab)
{
    (void)b;
    return (size_t)n_vocab * (sizeof(double) + sizeof(float) + 2 * sizeof(uint32_t));
}

static float logit_key(float l)
{
    return isnan(l) ? -INFINITY : l;
}

static bool sorts_before(const float *logit, uint32_t a, uint32_t b)
{
    float la = logit_key(logit[a]), lb = logit_key(logit[b]);
    return la != lb ? la > lb : a < b;
}

static void sift_down(const float *logit, uint32_t *v, uint32_t root, uint32_t n)
{
    for (uint32_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && sorts_before(logit, v[child], v[child + 1]))
            child++;
        if (!sorts_before(logit, v[root], v[child]))
            return;
        uint32_t tmp = v[root];
        v[root] = v[child];
        v[child] = tmp;
    }
}

/* Heapsort: no allocation, unlike qsort of the C library. */
static void sort_ids(const float *logit, uint32_t *v, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        v[i] = i;
    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(logit, v, i, n);
    for (uint32_t i = n; i-- > 1;) {
        uint32_t tmp = v[0];
        v[0] = v[i];
        v[i] = tmp;
        sift_down(logit, v, 0, i);
    }
}

static void count_tokens(struct ref_sample *w, const struct sample_row *r)
{
    memset(w->count, 0, w->n_vocab * sizeof(*w->count));
    for (uint32_t i = 0; i < r->n_prompt; i++)
        if ((uint32_t)r->prompt[i] < w->n_vocab)
            w->count[r->prompt[i]] |= SEEN;
    for (uint32_t i = 0; i < r->n_output; i++)
        if ((uint32_t)r->output[i] < w->n_vocab)
            w->count[r->output[i]] = (w->count[r->output[i]] + 1) | SEEN;
}

static void adjust(struct ref_sample *w, const struct sample_row *r)
{
    for (uint32_t i = 0; i < r->bias_count; i++)
        if ((uint32_t)r->bias[i].id < w->n_vocab)
            w->logit[r->bias[i].id] += r->bias[i].bias;
    if (r->repetition == 1 && r->frequency == 0 && r->presence == 0)
        return;
    count_tokens(w, r);
    for (uint32_t i = 0; i < w->n_vocab; i++) {
        float l = w->logit[i];
        uint32_t n = w->count[i] & ~SEEN;
        if (!w->count[i])
            continue;
        l = l > 0 ? l / r->repetition : l * r->repetition;
        l -= r->frequency * (float)n;
        l -= n ? r->presence : 0;
        w->logit[i] = l;
    }
}

/* How many of the sorted candidates stay, and the sum of their weights. */
static uint32_t cut(const struct ref_sample *w, const struct sample_row *r, double *total)
{
    uint32_t n = w->n_vocab, keep = 1;
    if (r->top_k > 0 && (uint32_t)r->top_k < n)
        n = (uint32_t)r->top_k;
    while (keep < n && w->weight[keep] >= (double)r->min_p)
        keep++;
    *total = 0;
    for (uint32_t i = 0; i < keep; i++)
        *total += w->weight[i];
    if (r->top_p >= 1)
        return keep;
    double sum = 0, goal = (double)r->top_p * *total;
    for (uint32_t i = 0; i < keep; i++) {
        sum += w->weight[i];
        if (sum >= goal) {
            *total = sum;
            return i + 1;
        }
    }
    return keep;
}

static uint32_t draw(struct ref_sample *w, const struct sample_row *r)
{
    double max = (double)logit_key(w->logit[w->order[0]]);
    if (r->temperature == 0 || isinf(max))
        return w->order[0];
    for (uint32_t i = 0; i < w->n_vocab; i++)
        w->weight[i] =
            exp(((double)logit_key(w->logit[w->order[i]]) - max) / (double)r->temperature);
    double total, sum = 0;
    uint32_t n = cut(w, r, &total), last = 0;
    uint32_t ctr[4] = {r->draw, 0, 0, 0}, word[4];
    philox4x32(word, ctr, r->seed);
    double goal = philox_unit(word[0]) * total;
    for (uint32_t i = 0; i < n; i++) {
        sum += w->weight[i];
        if (sum > goal)
            return w->order[i];
        if (w->weight[i] > 0)
            last = i;
    }
    return w->order[last];
}

static struct ref_lse row_lse(const float *logit, uint32_t n_vocab)
{
    struct ref_lse lse = {-INFINITY, 0};
    for (uint32_t n0 = 0; n0 < n_vocab; n0 += SCORE_TILE)
        ref_lse_add(&lse, logit + n0, MIN(n_vocab - n0, (uint32_t)SCORE_TILE));
    return lse;
}

static void fill_top(struct sample_out *out, const float *logit, uint32_t n_vocab, uint32_t count)
{
    struct ref_lse lse = row_lse(logit, n_vocab);
    out->logprob = ref_lse_logprob(&lse, logit[out->id]);
    CHECK(count <= SAMPLE_TOP_MAX);
    for (uint32_t k = 0; k < count && k < n_vocab; k++) {
        uint32_t best = n_vocab;
        for (uint32_t i = 0; i < n_vocab; i++) {
            bool after = k == 0 || sorts_before(logit, (uint32_t)out->top_id[k - 1], i);
            if (after && (best == n_vocab || sorts_before(logit, i, best)))
                best = i;
        }
        out->top_id[k] = (int32_t)best;
        out->top_logprob[k] = ref_lse_logprob(&lse, logit[best]);
    }
    for (uint32_t k = n_vocab; k < count; k++) {
        out->top_id[k] = -1;
        out->top_logprob[k] = -INFINITY;
    }
}

enum status ref_sample(struct backend *b, const struct sample_args *a)
{
    (void)b;
    for (uint32_t t = 0; t < a->n_row; t++) {
        struct ref_sample w = {.weight = a->scratch, .n_vocab = a->n_vocab};
        w.raw = (float *)(w.weight + a->n_vocab);
        w.order = (uint32_t *)(w.raw + a->n_vocab);
        w.count = w.order + a->n_vocab;
        w.logit = a->logits + (size_t)t * a->n_vocab;
        memcpy(w.raw, w.logit, a->n_vocab * sizeof(float));
        adjust(&w, &a->row[t]);
        sort_ids(w.logit, w.order, a->n_vocab);
        a->out[t].id = (int32_t)draw(&w, &a->row[t]);
        fill_top(&a->out[t], w.raw, a->n_vocab, a->row[t].top_count);
    }
    return STATUS_OK;
}

enum status ref_top_logprobs(struct backend *b, const struct top_logprobs_args *a)
{
    (void)b;
    for (uint32_t t = 0; t < a->n_row; t++) {
        CHECK(a->target[t] >= 0 && (uint32_t)a->target[t] < a->n_vocab);
        a->out[t].id = a->target[t];
        fill_top(&a->out[t], a->logits + (size_t)t * a->n_vocab, a->n_vocab, a->top_count[t]);
    }
    return STATUS_OK;
}
