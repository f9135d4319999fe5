/* One binary search a position: the ranks are narrowed to those of the first token by a table, and
 * both ends of the search carry how much of the question they share, so that a comparison begins
 * where all between them agree. Where the search ends, one of the two neighbours shares the most
 * that any suffix does. The end of what is shared never moves back from one position to the next;
 * a span is maximal where it moves on. Only then its ranks are looked for, outwards from there.
 *
 * A search is a chain of misses of the cache, so LANES positions go through theirs side by side:
 * each step first asks the memory for what all of them need. */
#include "server/base/check.h"
#include "server/base/heap.h"
#include "server/base/mem.h"
#include "server/influence/spans_impl.h"

#include <inttypes.h>
#include <string.h>

#define UNKNOWN UINT32_MAX
#define LANES   12u

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
    uint32_t lo, hi;               /* the ranks still in question */
    uint32_t shared_lo, shared_hi; /* with q, of the ranks beside them */
    uint32_t shared;               /* the longest prefix of q that was met */
    uint32_t mid, pos;
};

/* Where the suffix q of n tokens would stand in g: at lo == hi. */
static void search_begin(const struct spans_segment *g, const uint32_t *q, struct spans_found *f)
{
    bool known = q[0] != UNKNOWN;
    *f = (struct spans_found){.lo = known ? g->first[q[0]] : 0,
                              .hi = known ? g->first[q[0] + 1] : 0,
                              .shared_lo = 1,
                              .shared_hi = 1};
    f->shared = f->lo < f->hi ? 1 : 0;
}

/* The searches of q's suffixes at 0..lanes-1, to their end. */
static inline __attribute__((always_inline)) void search(const struct spans_segment *g, bool wide,
                                                         const uint32_t *q, uint32_t n,
                                                         struct spans_found *lane, uint32_t lanes)
{
    for (bool more = true; more;) {
        more = false;
        for (uint32_t i = 0; i < lanes; i++) {
            struct spans_found *f = &lane[i];
            f->mid = f->lo + (f->hi - f->lo) / 2;
            more |= f->lo < f->hi;
            __builtin_prefetch(&g->sa[f->mid]);
        }
        for (uint32_t i = 0; i < lanes; i++) {
            struct spans_found *f = &lane[i];
            if (f->lo == f->hi)
                continue;
            f->pos = g->sa[f->mid];
            size_t at = (size_t)f->pos + MIN(f->shared_lo, f->shared_hi);
            __builtin_prefetch((const char *)g->tok + at * (wide ? 4 : 2));
        }
        for (uint32_t i = 0; i < lanes; i++) {
            struct spans_found *f = &lane[i];
            bool below;
            if (f->lo == f->hi)
                continue;
            uint32_t shared =
                compare(g, wide, q + i, n - i, f->pos, MIN(f->shared_lo, f->shared_hi), &below);
            f->shared = MAX(f->shared, shared);
            *(below ? &f->lo : &f->hi) = f->mid + below;
            *(below ? &f->shared_lo : &f->shared_hi) = shared;
        }
    }
}

static uint32_t shared_at(const struct spans_segment *g, const uint32_t *q, uint32_t n,
                          uint32_t rank)
{
    bool below;
    return g->wide ? compare(g, true, q, n, g->sa[rank], 0, &below)
                   : compare(g, false, q, n, g->sa[rank], 0, &below);
}

/* What the nearest listed ranks beside the place share, where some are not listed. */
static uint32_t shared_listed(const struct spans_part *part, const uint32_t *q, uint32_t n,
                              const struct spans_found *f)
{
    if (!part->live.bit || f->shared == 0)
        return f->shared;
    uint32_t begin = part->seg->first[q[0]], end = part->seg->first[q[0] + 1];
    uint32_t above = spans_live_next(&part->live, f->lo, end);
    uint32_t before = spans_live_before(&part->live, f->lo, begin);
    uint32_t a = above < end ? shared_at(part->seg, q, n, above) : 0;
    uint32_t b = before != UINT32_MAX ? shared_at(part->seg, q, n, before) : 0;
    return MAX(a, b);
}

struct longest { /* of one position: the longest prefix in any segment, its place in each */
    uint32_t n, at[SPANS_SEGMENTS_MAX];
};

static void find_longest(const struct query *q, uint32_t begin, struct longest *out, uint32_t lanes)
{
    struct spans_found lane[LANES];
    const uint32_t *tok = q->tok + begin;
    uint32_t n = q->n - begin;
    memset(out, 0, lanes * sizeof(*out));
    for (uint32_t p = 0; p < q->s->head.n_segment; p++) {
        const struct spans_part *part = &q->s->part[p];
        for (uint32_t i = 0; i < lanes; i++)
            search_begin(part->seg, tok + i, &lane[i]);
        if (part->seg->wide)
            search(part->seg, true, tok, n, lane, lanes);
        else
            search(part->seg, false, tok, n, lane, lanes);
        for (uint32_t i = 0; i < lanes; i++) {
            out[i].n = MAX(out[i].n, shared_listed(part, tok + i, n - i, &lane[i]));
            out[i].at[p] = lane[i].lo;
        }
    }
}

/* The ranks around `at` whose suffixes begin with q[0..n): outwards in doubling steps, then halves.
 */
static struct spans_range range_around(const struct spans_segment *g, const uint32_t *q, uint32_t n,
                                       uint32_t at)
{
    uint32_t lo = g->first[q[0]], hi = g->first[q[0] + 1], first = at, end = at;
    for (uint32_t step = 1; lo < first; step *= 2) { /* below lo none, from first on all */
        uint32_t probe = first - MIN(step, first - lo);
        if (shared_at(g, q, n, probe) == n) {
            first = probe;
            continue;
        }
        for (lo = probe + 1; lo < first;) {
            probe = lo + (first - lo) / 2;
            if (shared_at(g, q, n, probe) == n)
                first = probe;
            else
                lo = probe + 1;
        }
    }
    for (uint32_t step = 1; end < hi; step *= 2) { /* before end all, from hi on none */
        uint32_t probe = end + MIN(step, hi - end) - 1;
        if (shared_at(g, q, n, probe) == n) {
            end = probe + 1;
            continue;
        }
        for (hi = probe; end < hi;) {
            probe = end + (hi - end) / 2;
            if (shared_at(g, q, n, probe) == n)
                end = probe + 1;
            else
                hi = probe;
        }
    }
    return (struct spans_range){.first = first, .count = end - first};
}

/* in[].first is the hit's place in each segment; its ranks take that over. */
static void fill_ranges(const struct query *q, struct spans_hit *hit)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < q->s->head.n_segment; i++) {
        const struct spans_part *part = &q->s->part[i];
        struct spans_range r =
            range_around(part->seg, q->tok + hit->begin, hit->n_tok, hit->in[i].first);
        hit->in[i] = r.count ? r : (struct spans_range){0, 0};
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
    struct longest l;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        find_longest(q, mid, &l, 1);
        if (mid + l.n > n_prompt)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

static void collect(const struct query *q, uint32_t n_prompt, struct keep *k)
{
    struct longest l[LANES];
    uint32_t begin = first_touching(q, n_prompt), done = begin;
    uint32_t reached = n_prompt; /* a span that ends here or before is not one of the answer */
    for (uint32_t i = begin; i < q->n && reached < q->n; i++) {
        if (i == done) {
            uint32_t lanes = MIN(LANES, q->n - i);
            find_longest(q, i, l, lanes);
            done = i + lanes;
            begin = i;
        }
        uint32_t n = l[i - begin].n;
        if (i + n <= reached)
            continue;
        reached = i + n;
        struct spans_hit hit = {.begin = i, .n_tok = n, .info_q8 = info_of(q, i, n)};
        for (uint32_t p = 0; p < q->s->head.n_segment; p++)
            hit.in[p].first = l[i - begin].at[p];
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
