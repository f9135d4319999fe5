/* sample and top_logprobs, rows split over the workers.
 *
 * A draw needs the candidates in order (logit descending, id ascending) only around the places
 * where top_k, top_p and the draw itself cut. So the row is put into buckets of the logit, best
 * first, with each bucket's count and weight; a cut is found by walking buckets, and only the
 * bucket that holds it is gathered and sorted: O(V) for any usual row. Weights are e^((l - max)/T)
 * in f32, sums in f64. A NaN logit counts as -inf. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/reduce.h"
#include "kernels/cpu/vec.h"
#include "server/base/check.h"
#include "server/base/philox.h"

#define N_BUCKET  4096
#define RANGE_MAX 32.0f /* logits this far below the best share the last bucket */
#define SEEN      0x80000000u

struct candidate {
    float logit;
    uint32_t id;
};

struct bucket {
    double sum;
    uint32_t count;
};

/* A worker's scratch. */
struct sample_work {
    const float *logit;          /* the adjusted row */
    float *own;                  /* [V] room for an adjusted copy */
    float *weight;               /* [V] */
    uint32_t *count;             /* [V], shares memory with weight: used before it */
    uint16_t *which;             /* [V] bucket of each id */
    struct candidate *candidate; /* [V] one bucket, sorted */
    struct bucket *bucket;       /* [N_BUCKET] */
    uint32_t n_vocab, n_candidate;
    float max;
};

static size_t align64(size_t n)
{
    return (n + 63) / 64 * 64;
}

static size_t worker_bytes(uint32_t n_vocab)
{
    size_t v = n_vocab;
    return align64(v * 4) + align64(v * 4) + align64(v * 2) +
           align64(v * sizeof(struct candidate)) + align64(N_BUCKET * sizeof(struct bucket)) + 64;
}

size_t ISA(sample_scratch_bytes)(const struct backend *b, uint32_t n_vocab)
{
    return worker_bytes(n_vocab) * b->worker_count;
}

static void work_place(struct sample_work *w, void *scratch, uint32_t worker, uint32_t n_vocab)
{
    size_t v = n_vocab;
    char *p = (char *)scratch + worker * worker_bytes(n_vocab);
    p += (64 - ((uintptr_t)p & 63)) & 63;
    w->n_vocab = n_vocab;
    w->own = (float *)(void *)p;
    p += align64(v * 4);
    w->weight = (float *)(void *)p;
    w->count = (uint32_t *)(void *)p;
    p += align64(v * 4);
    w->which = (uint16_t *)(void *)p;
    p += align64(v * 2);
    w->candidate = (struct candidate *)(void *)p;
    p += align64(v * sizeof(struct candidate));
    w->bucket = (struct bucket *)(void *)p;
}

static float logit_key(float l)
{
    return isnan(l) ? -INFINITY : l;
}

/* ---- the raw row: log-probabilities and the best ids ---- */

static struct lse row_lse(const float *logit, uint32_t n_vocab)
{
    struct lse l = {-INFINITY, 0};
    for (uint32_t n0 = 0; n0 < n_vocab; n0 += SCORE_TILE)
        ISA(lse_add)(&l, ISA(lse_tile)(logit + n0, MIN(n_vocab - n0, (uint32_t)SCORE_TILE)));
    return l;
}

/* Insert into a list of at most `max` candidates, best first; ids come in ascending order, so a tie
 * goes behind. Not inlined: it is rare, and gcc 14 takes a list of one for an overrun. */
static __attribute__((noinline)) uint32_t top_insert(struct candidate *top, uint32_t n,
                                                     uint32_t max, struct candidate c)
{
    uint32_t i = n < max ? n : max - 1;
    for (; i > 0 && c.logit > top[i - 1].logit; i--)
        top[i] = top[i - 1];
    top[i] = c;
    return n < max ? n + 1 : max;
}

#define TOP_CHUNK 64

static bool chunk_beats(const float *x, uint32_t n, float bound)
{
    vi any = {0};
    vf limit = vf_set1(bound);
    uint32_t i = 0, hit = 0;
    for (; i + VW <= n; i += VW)
        any |= vf_load(x + i) > limit;
    for (; i < n; i++)
        hit |= x[i] > bound;
    for (uint32_t j = 0; j < VW; j++)
        hit |= (uint32_t)any[j];
    return hit != 0;
}

/* The `max` best (logit descending, id ascending); returns how many there are. */
static uint32_t row_top(const float *logit, uint32_t n_vocab, struct candidate *top, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i0 = 0; i0 < n_vocab; i0 += TOP_CHUNK) {
        uint32_t end = MIN(n_vocab, i0 + TOP_CHUNK);
        if (n == max && !chunk_beats(logit + i0, end - i0, top[n - 1].logit))
            continue;
        for (uint32_t i = i0; i < end; i++) {
            struct candidate c = {logit_key(logit[i]), i};
            if (n < max || c.logit > top[n - 1].logit)
                n = top_insert(top, n, max, c);
        }
    }
    return n;
}

static void fill_out(struct sample_out *out, const float *logit, uint32_t n_vocab, uint32_t count)
{
    struct lse l = row_lse(logit, n_vocab);
    struct candidate top[SAMPLE_TOP_MAX];
    CHECK(count <= SAMPLE_TOP_MAX);
    out->logprob = ISA(lse_logprob)(&l, logit[out->id]);
    uint32_t n = count ? row_top(logit, n_vocab, top, count) : 0;
    for (uint32_t k = 0; k < count; k++) {
        out->top_id[k] = k < n ? (int32_t)top[k].id : -1;
        out->top_logprob[k] = k < n ? ISA(lse_logprob)(&l, logit[top[k].id]) : -INFINITY;
    }
}

/* ---- adjustments ---- */

static bool has_penalty(const struct sample_row *r)
{
    return r->repetition != 1 || r->frequency != 0 || r->presence != 0;
}

static void penalise(float *logit, const struct sample_row *r, uint32_t id, uint32_t *count)
{
    uint32_t n = count[id] & ~SEEN;
    if (!count[id])
        return;
    count[id] = 0; /* once for each distinct token */
    float l = logit[id];
    l = l > 0 ? l / r->repetition : l * r->repetition;
    l -= r->frequency * (float)n;
    l -= n ? r->presence : 0;
    logit[id] = l;
}

static void adjust(struct sample_work *w, const float *raw, const struct sample_row *r)
{
    w->logit = raw;
    if (r->bias_count == 0 && !has_penalty(r))
        return;
    memcpy(w->own, raw, w->n_vocab * sizeof(float));
    w->logit = w->own;
    for (uint32_t i = 0; i < r->bias_count; i++)
        if ((uint32_t)r->bias[i].id < w->n_vocab)
            w->own[r->bias[i].id] += r->bias[i].bias;
    if (!has_penalty(r))
        return;
    memset(w->count, 0, w->n_vocab * sizeof(*w->count));
    for (uint32_t i = 0; i < r->n_prompt; i++)
        if ((uint32_t)r->prompt[i] < w->n_vocab)
            w->count[r->prompt[i]] |= SEEN;
    for (uint32_t i = 0; i < r->n_output; i++)
        if ((uint32_t)r->output[i] < w->n_vocab)
            w->count[r->output[i]] = (w->count[r->output[i]] + 1) | SEEN;
    for (uint32_t i = 0; i < r->n_prompt; i++)
        if ((uint32_t)r->prompt[i] < w->n_vocab)
            penalise(w->own, r, (uint32_t)r->prompt[i], w->count);
    for (uint32_t i = 0; i < r->n_output; i++)
        if ((uint32_t)r->output[i] < w->n_vocab)
            penalise(w->own, r, (uint32_t)r->output[i], w->count);
}

/* ---- buckets ---- */

/* The lowest finite logit. */
static float row_min(const float *logit, uint32_t n_vocab)
{
    vf high = vf_set1(-INFINITY);
    const vf bottom = vf_set1(-INFINITY);
    for (uint32_t i = 0; i < n_vocab; i += VW) {
        uint32_t n = MIN(n_vocab - i, (uint32_t)VW);
        vf l = n == VW ? vf_load(logit + i) : vf_load_n(logit + i, n, -INFINITY);
        high = vf_max(vf_select(l > bottom, -l, bottom), high);
    }
    return -vf_top(high);
}

/* Weights, and the bucket of each id. Lanes with NaN land in the last bucket with weight 0. */
static void weigh(struct sample_work *w, float temperature, float range)
{
    const vf max = vf_set1(w->max), t = vf_set1(temperature), zero = {0};
    const vf scale = vf_set1(range > 0 ? (float)(N_BUCKET - 1) / range : 0);
    const vf last = vf_set1((float)(N_BUCKET - 1));
    for (uint32_t i = 0; i < w->n_vocab; i += VW) {
        uint32_t n = MIN(w->n_vocab - i, (uint32_t)VW);
        vf l = n == VW ? vf_load(w->logit + i) : vf_load_n(w->logit + i, n, -INFINITY);
        vf below = max - l;
        vi valid = below >= zero;
        vf weight = vf_select(valid, vf_exp(-below / t), zero);
        vf at = below * scale;
        vi bucket = __builtin_convertvector(vf_select((at < last) & valid, at, last), vi);
        if (n == VW)
            vf_store(w->weight + i, weight);
        else
            vf_store_n(w->weight + i, n, weight);
        vh which = __builtin_convertvector(bucket, vh);
        memcpy(w->which + i, &which, n * sizeof(uint16_t));
    }
}

/* Only weights of at least min_p (of the best, whose weight is 1) are candidates. */
static void fill_buckets(struct sample_work *w, float min_p)
{
    memset(w->bucket, 0, N_BUCKET * sizeof(*w->bucket));
    for (uint32_t i = 0; i < w->n_vocab; i++) {
        if (w->weight[i] < min_p)
            continue;
        struct bucket *b = &w->bucket[w->which[i]];
        b->sum += (double)w->weight[i];
        b->count++;
    }
}

static bool sorts_before(struct candidate a, struct candidate b)
{
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

static void sift_down(struct candidate *v, uint32_t root, uint32_t n)
{
    for (uint32_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && sorts_before(v[child], v[child + 1]))
            child++;
        if (!sorts_before(v[root], v[child]))
            return;
        struct candidate tmp = v[root];
        v[root] = v[child];
        v[child] = tmp;
    }
}

static void sort_candidates(struct candidate *v, uint32_t n)
{
    uint32_t sorted = 1;
    while (sorted < n && sorts_before(v[sorted - 1], v[sorted]))
        sorted++;
    if (sorted >= n)
        return; /* a row of ties comes sorted by id */
    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(v, i, n);
    for (uint32_t i = n; i-- > 1;) {
        struct candidate tmp = v[0];
        v[0] = v[i];
        v[i] = tmp;
        sift_down(v, 0, i);
    }
}

static void gather(struct sample_work *w, uint32_t bucket, float min_p)
{
    w->n_candidate = 0;
    for (uint32_t i0 = 0; i0 < w->n_vocab; i0 += TOP_CHUNK) {
        uint32_t end = MIN(w->n_vocab, i0 + TOP_CHUNK), hit = 0;
        for (uint32_t i = i0; i < end; i++)
            hit |= w->which[i] == bucket;
        for (uint32_t i = i0; hit && i < end; i++)
            if (w->which[i] == bucket && !(w->weight[i] < min_p))
                w->candidate[w->n_candidate++] = (struct candidate){logit_key(w->logit[i]), i};
    }
    sort_candidates(w->candidate, w->n_candidate);
}

/* A place in the order: `count` candidates up to and including it weigh `sum`. */
struct cut_place {
    uint32_t id, count;
    double sum;
};

/* The first candidate among the best `limit` at which the running sum reaches goal (exceeds it if
 * `strict`); the last of them, the last with weight if strict, when none does. */
static struct cut_place walk(struct sample_work *w, uint32_t limit, double goal, bool strict,
                             float min_p)
{
    struct cut_place at = {0, 0, 0};
    uint32_t b = 0, last = 0;
    for (uint32_t i = 0; i < N_BUCKET; i++)
        if (w->bucket[i].count && (!strict || w->bucket[i].sum > 0))
            last = i;
    for (; b < last; b++) {
        double sum = at.sum + w->bucket[b].sum;
        if (at.count + w->bucket[b].count >= limit || (strict ? sum > goal : sum >= goal))
            break;
        at.sum = sum;
        at.count += w->bucket[b].count;
    }
    gather(w, b, min_p);
    for (uint32_t i = 0; i < w->n_candidate && at.count < limit; i++) {
        uint32_t id = w->candidate[i].id;
        if (strict && i > 0 && w->weight[id] == 0)
            break;
        at.id = id;
        at.sum += (double)w->weight[id];
        at.count++;
        if (strict ? at.sum > goal : at.sum >= goal)
            break;
    }
    return at;
}

static uint32_t draw(struct sample_work *w, const struct sample_row *r)
{
    float min = row_min(w->logit, w->n_vocab);
    float min_p = MIN(r->min_p, 1.0f);
    weigh(w, r->temperature, MIN(w->max - min, RANGE_MAX));
    fill_buckets(w, min_p);
    uint32_t limit = r->top_k > 0 ? (uint32_t)r->top_k : w->n_vocab;
    double total = 0;
    uint32_t count = 0;
    for (uint32_t b = 0; b < N_BUCKET; b++) {
        total += w->bucket[b].sum;
        count += w->bucket[b].count;
    }
    if (limit < count)
        total = walk(w, limit, INFINITY, false, min_p).sum;
    else
        limit = count;
    if (r->top_p < 1) {
        struct cut_place cut = walk(w, limit, (double)r->top_p * total, false, min_p);
        total = cut.sum;
        limit = cut.count;
    }
    uint32_t ctr[4] = {r->draw, 0, 0, 0}, word[4];
    philox4x32(word, ctr, r->seed);
    return walk(w, limit, philox_unit(word[0]) * total, true, min_p).id;
}

static uint32_t choose(struct sample_work *w, const struct sample_row *r)
{
    struct candidate best = {-INFINITY, 0};
    row_top(w->logit, w->n_vocab, &best, 1);
    w->max = best.logit;
    if (r->temperature == 0 || isinf(w->max))
        return best.id;
    return draw(w, r);
}

struct sample_call {
    const struct sample_args *a;
    const struct top_logprobs_args *top;
};

static void sample_rows(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct sample_args *a = ((struct sample_call *)arg)->a;
    struct sample_work w;
    uint64_t lo, hi;
    pool_share(a->n_row, worker, n_worker, &lo, &hi);
    work_place(&w, a->scratch, worker, a->n_vocab);
    for (uint64_t t = lo; t < hi; t++) {
        const float *raw = a->logits + t * a->n_vocab;
        adjust(&w, raw, &a->row[t]);
        a->out[t].id = (int32_t)choose(&w, &a->row[t]);
        fill_out(&a->out[t], raw, a->n_vocab, a->row[t].top_count);
    }
}

enum status ISA(sample)(struct backend *b, const struct sample_args *a)
{
    struct sample_call job = {.a = a};
    cpu_run(cpu_of(b), sample_rows, &job, a->n_row < 2);
    return STATUS_OK;
}

static void top_rows(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct top_logprobs_args *a = ((struct sample_call *)arg)->top;
    uint64_t lo, hi;
    pool_share(a->n_row, worker, n_worker, &lo, &hi);
    for (uint64_t t = lo; t < hi; t++) {
        CHECK(a->target[t] >= 0 && (uint32_t)a->target[t] < a->n_vocab);
        a->out[t].id = a->target[t];
        fill_out(&a->out[t], a->logits + t * a->n_vocab, a->n_vocab, a->top_count[t]);
    }
}

enum status ISA(top_logprobs)(struct backend *b, const struct top_logprobs_args *a)
{
    struct sample_call job = {.top = a};
    cpu_run(cpu_of(b), top_rows, &job, a->n_row < 2);
    return STATUS_OK;
}
