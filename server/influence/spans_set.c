/* Several segments seen through one version's list. A document that the list no longer names stays
 * in its file; its ranks are left out by a bitmap over the ranks, made when the segments are joined
 * and only for a segment that has such documents. Beside a position found in the order the nearest
 * listed ranks are those that share the most, as without gaps. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/influence/spans_impl.h"

#include <sodium.h>
#include <string.h>

#define NOT_LISTED UINT32_MAX

/* The nearest set bit at or above i, below n (a multiple of 64 that the caller need not look at);
 * n: none. */
static uint32_t next_bit(const uint64_t *bit, uint64_t i, uint64_t n)
{
    for (uint64_t w = i / 64; w * 64 < n; w++) {
        uint64_t v = w == i / 64 ? bit[w] & ~0ull << i % 64 : bit[w];
        if (v)
            return (uint32_t)MIN(w * 64 + (uint32_t)__builtin_ctzll(v), n);
    }
    return (uint32_t)n;
}

uint32_t spans_live_next(const struct spans_live *live, uint32_t r, uint32_t end)
{
    if (r >= end)
        return end;
    uint64_t word_end = ((uint64_t)r / 64 + 1) * 64;
    uint32_t at = next_bit(live->bit, r, MIN(word_end, end));
    if (at < MIN(word_end, end) || word_end >= end)
        return at;
    uint64_t words = ((uint64_t)end + 63) / 64;
    uint32_t w = next_bit(live->word, word_end / 64, words);
    return w == words ? end : next_bit(live->bit, (uint64_t)w * 64, end);
}

/* The nearest set bit below i, at or above begin; UINT32_MAX: none. */
static uint32_t bit_before(const uint64_t *bit, uint64_t i, uint64_t begin)
{
    while (i > begin) {
        uint64_t w = (i - 1) / 64, v = bit[w];
        if (i % 64)
            v &= ~(~0ull << i % 64);
        if (v) {
            uint64_t at = w * 64 + 63 - (uint32_t)__builtin_clzll(v);
            return at >= begin ? (uint32_t)at : UINT32_MAX;
        }
        i = w * 64;
    }
    return UINT32_MAX;
}

uint32_t spans_live_before(const struct spans_live *live, uint32_t r, uint32_t begin)
{
    uint32_t word = (uint32_t)(r / 64);
    uint32_t at = r % 64 ? bit_before(live->bit, r, MAX(begin, word * 64)) : UINT32_MAX;
    if (at != UINT32_MAX || word * 64 <= begin)
        return at;
    uint32_t w = bit_before(live->word, word, begin / 64);
    return w == UINT32_MAX ? UINT32_MAX : bit_before(live->bit, (uint64_t)w * 64 + 64, begin);
}

uint32_t spans_live_count(const struct spans_live *live, uint32_t begin, uint32_t end)
{
    uint64_t count = 0;
    for (uint64_t i = begin; i < end;) {
        uint64_t v = live->bit[i / 64] & ~0ull << i % 64, stop = (i / 64 + 1) * 64;
        if (stop > end)
            v &= ~(~0ull << end % 64);
        count += (uint32_t)__builtin_popcountll(v);
        i = stop;
    }
    return (uint32_t)count;
}

uint32_t spans_listed(const struct spans_list *list, const uint8_t digest[32])
{
    uint32_t lo = 0, hi = list->n_document;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        int c = memcmp(list->digest[mid], digest, 32);
        if (c == 0)
            return mid;
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NOT_LISTED;
}

bool spans_holds(const struct spans_segment *g, const uint8_t digest[32])
{
    uint32_t lo = 0, hi = g->h->n_document;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        int c = memcmp(g->document[mid].digest, digest, 32);
        if (c == 0)
            return true;
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return false;
}

uint32_t spans_missing(struct spans *const *part, uint32_t n_part, const struct spans_list *list,
                       uint32_t *missing)
{
    uint32_t n = 0;
    for (uint32_t d = 0; d < list->n_document; d++) {
        bool held = false;
        for (uint32_t i = 0; i < n_part && !held; i++)
            held = spans_holds(part[i]->part[0].seg, list->digest[d]);
        if (held)
            continue;
        if (missing)
            missing[n] = d;
        n++;
    }
    return n;
}

/* The bitmap of a part whose documents are mapped. */
static enum status make_live(struct spans_part *p, struct errtext *err)
{
    const struct spans_segment *g = p->seg;
    size_t words = (size_t)g->h->n_tok / 64 + 1;
    p->live.bit = mem_try_array(words, sizeof(*p->live.bit));
    p->live.word = mem_try_array(words / 64 + 1, sizeof(*p->live.word));
    if (!p->live.bit || !p->live.word)
        return err_set(err, STATUS_NO_MEMORY, "spans: no memory for the ranks of %u tokens",
                       g->h->n_tok);
    for (uint32_t r = 0; r < g->h->n_tok; r++) {
        if (p->document[spans_document_at(g, g->sa[r])] != NOT_LISTED) {
            p->live.bit[r / 64] |= 1ull << r % 64;
            p->live.word[r / 4096] |= 1ull << r / 64 % 64;
        }
    }
    return STATUS_OK;
}

/* Map the documents of part i; those that an earlier part holds count there. */
static enum status map_part(struct spans *s, uint32_t i, const struct spans_list *list,
                            uint8_t *taken, struct errtext *err)
{
    struct spans_part *p = &s->part[i];
    const struct spans_segment *g = p->seg;
    bool all = true;
    p->document = mem_try_array(MAX(g->h->n_document, 1), sizeof(*p->document));
    if (!p->document)
        return err_set(err, STATUS_NO_MEMORY, "spans: no memory for %u documents",
                       g->h->n_document);
    for (uint32_t d = 0; d < g->h->n_document; d++) {
        uint32_t at = spans_listed(list, g->document[d].digest);
        if (at != NOT_LISTED && taken[at])
            at = NOT_LISTED;
        if (at == NOT_LISTED) {
            all = false;
        } else {
            uint32_t end = d + 1 < g->h->n_document ? g->document[d + 1].begin : g->h->n_tok;
            s->head.n_tok += end - g->document[d].begin - 1;
            taken[at] = 1;
        }
        p->document[d] = at;
    }
    return all ? STATUS_OK : make_live(p, err);
}

static enum status check_parts(struct spans *const *part, uint32_t n_part,
                               const struct spans_list *list, struct errtext *err)
{
    if (n_part == 0 || n_part > SPANS_SEGMENTS_MAX)
        return err_set(err, STATUS_INVALID, "spans: %u segments, 1 to %u can be joined", n_part,
                       SPANS_SEGMENTS_MAX);
    for (uint32_t i = 0; i < n_part; i++) {
        const struct spans_segment *g = part[i]->part[0].seg, *first = part[0]->part[0].seg;
        if (part[i]->head.n_segment != 1 || part[i]->part[0].document)
            return err_set(err, STATUS_INVALID, "spans: part %u is itself joined", i);
        if (g->h->n_vocab != first->h->n_vocab ||
            memcmp(g->h->tokenizer_digest, first->h->tokenizer_digest, 32) != 0)
            return err_set(err, STATUS_INVALID, "spans: part %u is of another tokenizer", i);
    }
    for (uint32_t d = 0; d < list->n_document; d++) {
        if (list->owner[d] >= list->n_owner || list->n_owner > SPANS_OWNERS_MAX)
            return err_set(err, STATUS_INVALID, "spans: document %u: owner %u of %u", d,
                           list->owner[d], list->n_owner);
    }
    uint32_t missing = spans_missing(part, n_part, list, NULL);
    return missing == 0 ? STATUS_OK
                        : err_set(err, STATUS_INVALID,
                                  "spans: %u of %u documents are in no segment; build one of them",
                                  missing, list->n_document);
}

enum status spans_join(struct spans **out, struct spans *const *part, uint32_t n_part,
                       const struct spans_list *list, struct errtext *err)
{
    *out = NULL;
    enum status st = check_parts(part, n_part, list, err);
    if (st)
        return st;
    struct spans *s = mem_alloc(sizeof(*s));
    uint8_t *taken = mem_try_alloc(MAX(list->n_document, 1)), roots[SPANS_SEGMENTS_MAX][32];
    atomic_init(&s->refs, 1);
    s->head = (struct spans_head){
        .n_vocab = part[0]->head.n_vocab, .n_document = list->n_document, .n_owner = list->n_owner};
    s->owner = mem_try_array(MAX(list->n_document, 1), sizeof(*s->owner));
    if (!taken || !s->owner)
        st = err_set(err, STATUS_NO_MEMORY, "spans: no memory for %u documents", list->n_document);
    else if (list->n_document > 0)
        memcpy(s->owner, list->owner, list->n_document * sizeof(*s->owner));
    for (uint32_t i = 0; i < n_part && !st; i++) {
        s->part[i].seg = part[i]->part[0].seg;
        atomic_fetch_add_explicit(&s->part[i].seg->refs, 1, memory_order_relaxed);
        s->head.n_segment++;
        s->head.bytes += part[i]->head.bytes;
        memcpy(roots[i], part[i]->head.root, 32);
        st = map_part(s, i, list, taken, err);
    }
    if (!st) {
        crypto_generichash(s->head.root, 32, roots[0], (size_t)n_part * 32, NULL, 0);
        st = spans_surprise(s, err);
    }
    mem_free(taken);
    if (st)
        spans_release(s);
    else
        *out = s;
    return st;
}
