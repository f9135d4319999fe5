/* One binary search a position: the ranks are narrowed to those of the first token by a table, and
 * both ends of the search carry how much of the question they share, so that a comparison begins
 * where all between them agree. Where the search ends, one of the two neighbours shares the most
 * that any suffix does. The end of what is shared never moves back from one position to the next;
 * a span is maximal where it moves on. Only then its ranks are looked for. */
#include "server/base/check.h"
#include "server/base/heap.h"
#include "server/base/mem.h"
#include "server/influence/spans_impl.h"

#include <inttypes.h>
#include <string.h>

#define UNKNOWN UINT32_MAX

struct query {
    const struct spans *s;
    uint32_t *tok; /* id + 1, UNKNOWN for what is no id */
    uint32_t n;
};

/* How many tokens of q[from..n) the suffix at pos shares, given that it shares `shared`; *below:
 * q sorts after it. */
static inline __attribute__((always_inline)) uint32_t compare(const struct spans_segment *g,
                                                              bool wide, const uint32_t *q,
                                                              uint32_t n, uint32_t pos,
                                                              uint32_t shared, bool *below)
{
    /* every document ends with 0, which is no token of q: within the segment */
    const uint16_t *t16 = (const uint16_t *)g->tok + pos;
    const uint32_t *t32 = (const uint32_t *)g->tok + pos;
    while (shared < n && q[shared] == (wide ? t32[shared] : t16[shared]))
        shared++;
    *below = shared < n && (wide ? t32[shared] : t16[shared]) < q[shared];
    return shared;
}

struct spans_found {
    uint32_t shared, lo, hi; /* the longest prefix; the ranks of the first token */
    uint32_t at;             /* the first rank that does not sort before q */
};

static inline __attribute__((always_inline)) struct spans_found
search(const struct spans_segment *g, bool wide, const uint32_t *q, uint32_t n)
{
    struct spans_found f = {.shared = 0};
    if (q[0] == UNKNOWN)
        return f;
    f.lo = g->first[q[0]];
    f.hi = g->first[q[0] + 1];
    uint32_t lo = f.lo, hi = f.hi, shared_lo = 1, shared_hi = 1;
    f.shared = lo < hi ? 1 : 0;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        bool below;
        uint32_t shared = compare(g, wide, q, n, g->sa[mid], MIN(shared_lo, shared_hi), &below);
        f.shared = MAX(f.shared, shared);
        if (below) {
            lo = mid + 1;
            shared_lo = shared;
        } else {
            hi = mid;
            shared_hi = shared;
        }
    }
    f.at = lo;
    return f;
}

static struct spans_found search_segment(const struct spans_segment *g, const uint32_t *q,
                                         uint32_t n)
{
    return g->wide ? search(g, true, q, n) : search(g, false, q, n);
}

static uint32_t shared_at(const struct spans_segment *g, const uint32_t *q, uint32_t n,
                          uint32_t rank)
{
    bool below;
    return g->wide ? compare(g, true, q, n, g->sa[rank], 0, &below)
                   : compare(g, false, q, n, g->sa[rank], 0, &below);
}

/* The longest prefix of q[0..n) that stands in a listed document of the part. */
static uint32_t longest_in(const struct spans_part *part, const uint32_t *q, uint32_t n)
{
    struct spans_found f = search_segment(part->seg, q, n);
    if (!part->live.bit || f.shared == 0)
        return f.shared;
    uint32_t above = spans_live_next(&part->live, f.at, f.hi);
    uint32_t before = spans_live_before(&part->live, f.at, f.lo);
    uint32_t a = above < f.hi ? shared_at(part->seg, q, n, above) : 0;
    uint32_t b = before != UINT32_MAX ? shared_at(part->seg, q, n, before) : 0;
    return MAX(a, b);
}

static uint32_t longest(const struct query *q, uint32_t begin)
{
    uint32_t best = 0;
    for (uint32_t i = 0; i < q->s->head.n_segment; i++)
        best = MAX(best, longest_in(&q->s->part[i], q->tok + begin, q->n - begin));
    return best;
}

/* The ranks whose suffixes begin with q[0..n). */
static struct spans_range range_of(const struct spans_segment *g, const uint32_t *q, uint32_t n)
{
    struct spans_found f = search_segment(g, q, n);
    uint32_t lo = f.at, hi = f.hi;
    if (f.shared < n)
        return (struct spans_range){0, 0};
    while (lo < hi) { /* the first rank behind them */
        uint32_t mid = lo + (hi - lo) / 2;
        if (shared_at(g, q, n, mid) == n)
            lo = mid + 1;
        else
            hi = mid;
    }
    return (struct spans_range){.first = f.at, .count = lo - f.at};
}

static void fill_ranges(const struct query *q, struct spans_hit *hit)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < q->s->head.n_segment; i++) {
        const struct spans_part *part = &q->s->part[i];
        struct spans_range r = range_of(part->seg, q->tok + hit->begin, hit->n_tok);
        hit->in[i] = r;
        count +=
            part->live.bit ? spans_live_count(&part->live, r.first, r.first + r.count) : r.count;
    }
    hit->count = (uint32_t)MIN(count, UINT32_MAX);
}

static uint32_t info_of(const struct query *q, uint32_t begin, uint32_t n)
{
    uint64_t info = 0;
    for (uint32_t i = begin; i < begin + n; i++)
        info += q->s->surprise[q->tok[i] - 1];
    return (uint32_t)MIN(info, UINT32_MAX);
}

/* The heap's first is the one to give up: that says least, then the later. */
static bool says_less(const void *of, uint32_t a, uint32_t b)
{
    const struct spans_hit *hit = of;
    return hit[a].info_q8 != hit[b].info_q8 ? hit[a].info_q8 < hit[b].info_q8
                                            : hit[a].begin > hit[b].begin;
}

static bool begins_before(const void *of, uint32_t a, uint32_t b)
{
    const struct spans_hit *hit = of;
    return hit[a].begin < hit[b].begin;
}

struct keep { /* the hits that say the most */
    struct spans_hit *hit;
    uint32_t *heap;
    uint32_t n, max;
};

static void keep_hit(struct keep *k, const struct spans_hit *hit)
{
    uint32_t at = k->n;
    if (k->max == 0)
        return;
    if (k->n == k->max) {
        at = k->heap[0];
        if (k->hit[at].info_q8 >= hit->info_q8)
            return;
        (void)heap_pop(k->heap, &k->n, says_less, k->hit);
    }
    k->hit[at] = *hit;
    heap_push(k->heap, &k->n, at, says_less, k->hit);
}

/* The first position from which what is shared goes past the prompt. */
static uint32_t first_touching(const struct query *q, uint32_t n_prompt)
{
    uint32_t lo = 0, hi = MIN(n_prompt, q->n);
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (mid + longest(q, mid) > n_prompt)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

static void collect(const struct query *q, uint32_t n_prompt, struct keep *k)
{
    uint32_t reached = n_prompt; /* a span that ends here or before is not one of the answer */
    for (uint32_t i = first_touching(q, n_prompt); i < q->n && reached < q->n; i++) {
        uint32_t n = longest(q, i);
        if (i + n <= reached)
            continue;
        reached = i + n;
        struct spans_hit hit = {.begin = i, .n_tok = n, .info_q8 = info_of(q, i, n)};
        if (n >= SPANS_TOKENS_MIN && hit.info_q8 >= SPANS_INFO_MIN)
            keep_hit(k, &hit);
    }
}

/* Hits ascending by begin: the heap's order of indexes, applied. */
static enum status order_hits(struct keep *k)
{
    struct spans_hit *copy = mem_try_array(MAX(k->n, 1), sizeof(*copy));
    if (!copy)
        return STATUS_NO_MEMORY;
    memcpy(copy, k->hit, k->n * sizeof(*copy));
    for (uint32_t i = 0; i < k->n; i++)
        k->heap[i] = i;
    heap_sort(k->heap, k->n, begins_before, copy);
    for (uint32_t i = 0; i < k->n; i++)
        k->hit[i] = copy[k->heap[i]];
    mem_free(copy);
    return STATUS_OK;
}

enum status spans_find(const struct spans *s, const int32_t *ids, uint32_t n_ids, uint32_t n_prompt,
                       struct spans_hit *hit, uint32_t max, uint32_t *n_hit)
{
    struct query q = {.s = s, .n = n_ids};
    struct keep k = {.hit = hit, .max = max};
    *n_hit = 0;
    q.tok = mem_try_array(MAX(n_ids, 1), sizeof(*q.tok));
    k.heap = mem_try_array(MAX(max, 1), sizeof(*k.heap));
    enum status st = q.tok && k.heap ? STATUS_OK : STATUS_NO_MEMORY;
    if (!st) {
        for (uint32_t i = 0; i < n_ids; i++)
            q.tok[i] =
                ids[i] >= 0 && (uint32_t)ids[i] < s->head.n_vocab ? (uint32_t)ids[i] + 1 : UNKNOWN;
        collect(&q, n_prompt, &k);
        st = order_hits(&k);
    }
    if (!st) {
        for (uint32_t i = 0; i < k.n; i++)
            fill_ranges(&q, &hit[i]);
        *n_hit = k.n;
    }
    mem_free(q.tok);
    mem_free(k.heap);
    return st;
}
