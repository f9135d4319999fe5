/* Restated facts. What carries a fact are the tokens that the adapter had to be taught: names and
 * values, not templates (the mean over all events of a token, so that one row's luck decides
 * nothing), nor what more than a third of the rows have. They stand in runs; a row's value is the
 * last of them.
 * Row B states row A's fact when
 *   B has two runs at least, a name and a value;
 *   every token of B's value is a token of A;
 *   of what B's carrying tokens were taught, those that A has not make up an eighth at most;
 *   the end of B's value stands in A too, behind similar names (half 2 of the keys).
 * Who restates in words of his own has what A has not: for clusters A's fact may also be in B. The
 * same token ends both, A carries two different ones, and of what A's were taught those that B has
 * not make up an eighth at most. But whatever B says behind its value A says too, or else the value
 * is not the last word of the fact ("... is red no more").
 * B joins the oldest such row, or one of the same tokens: that row is paid in its place. So another
 * owner earns nothing by what was said before, and nobody more by saying it again himself. Another
 * value behind the same names is a contradiction and joins nothing; the same value behind other
 * names is another fact. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/influence/events_build_impl.h"

#include <stdlib.h>
#include <string.h>

#define COMMON_PART  3 /* what stands in more than one row of so many is form */
#define COMMON_SLACK 6 /* of a handful of rows a part is no measure */
#define MISSING      8 /* one part in so many of a restatement may be its own */

static uint64_t token_bit(int32_t id)
{
    return 1ull << (id & 63);
}

enum status events_facts_begin(struct events_builder *b, struct errtext *err)
{
    uint64_t *sum = mem_try_array(b->src.n_vocab, sizeof(*sum));
    b->taught = mem_try_array(b->src.n_vocab, sizeof(*b->taught));
    b->tokens_of = mem_try_array((size_t)b->src.n_rows + 1, sizeof(*b->tokens_of));
    if (!sum || !b->taught || !b->tokens_of) {
        mem_free(sum);
        return err_set(err, STATUS_NO_MEMORY, "no memory to compare %u rows", b->src.n_rows);
    }
    for (uint32_t r = 0; r < b->src.n_rows; r++) {
        const struct builder_row *row = &b->row[r];
        b->tokens_of[r] = row->first >= 0 ? token_bit(row->first) : 0;
        for (uint32_t i = row->begin; i < row->begin + row->n; i++) {
            sum[b->target[i]] += events_builder_learned(b, i);
            b->tokens_of[r] |= token_bit(b->target[i]);
        }
    }
    for (uint32_t v = 0; v < b->src.n_vocab; v++)
        b->taught[v] = b->occurs[v] ? (uint16_t)(sum[v] / b->occurs[v]) : 0;
    mem_free(sum);
    return STATUS_OK;
}

static bool carries(const struct events_builder *b, uint32_t event, uint32_t taught_min)
{
    uint32_t id = (uint32_t)b->target[event];
    bool common = (uint64_t)COMMON_PART * b->occurs[id] > (uint64_t)b->src.n_rows + COMMON_SLACK;
    return b->taught[id] >= taught_min && !common;
}

bool events_carries_fact(const struct events_builder *b, uint32_t event)
{
    return carries(b, event, b->method.taught_min);
}

/* The last run of what carries: [*begin, *begin + *n); false: none. */
static bool last_run(const struct events_builder *b, uint32_t row, uint32_t taught_min,
                     uint32_t *begin, uint32_t *n)
{
    const struct builder_row *r = &b->row[row];
    uint32_t end = r->begin + r->n;
    while (end > r->begin && !carries(b, end - 1, taught_min))
        end--;
    *begin = end;
    while (*begin > r->begin && carries(b, *begin - 1, taught_min))
        (*begin)--;
    *n = end - *begin;
    return *n > 0;
}

bool events_builder_value(const struct events_builder *b, uint32_t row, uint32_t *begin,
                          uint32_t *n)
{
    return last_run(b, row, b->method.taught_min, begin, n);
}

/* What is looked for: a row's carrying tokens, and which of them are its value. */
struct fact {
    uint32_t row, begin, n; /* the value's events */
    bool named;             /* something carries before the value */
    uint64_t taught;        /* of all carrying tokens */
    uint64_t bits;          /* which tokens the other row has to have, as tokens_of */
};

static bool fact_of(const struct fact_search *s, uint32_t row, struct fact *f)
{
    const struct events_builder *b = s->b;
    const struct builder_row *r = &b->row[row];
    *f = (struct fact){.row = row};
    if (!last_run(b, row, s->taught_min, &f->begin, &f->n))
        return false;
    uint32_t end = f->begin + f->n;
    for (uint32_t i = r->begin; i < end; i++) {
        if (!carries(b, i, s->taught_min))
            continue;
        f->named |= i < f->begin;
        f->taught += b->taught[b->target[i]];
    }
    uint32_t first = s->rank ? end : f->begin; /* the tail, or the value */
    for (uint32_t i = first; i < (s->rank ? r->begin + r->n : end); i++)
        f->bits |= token_bit(b->target[i]);
    return f->named || (s->rank && f->n > 1);
}

struct fact_candidate {
    uint32_t row, rank;
};

static bool may_state(const struct fact_search *s, const struct fact *f, uint32_t row,
                      uint32_t rank_max)
{
    if ((s->b->tokens_of[row] & f->bits) != f->bits)
        return false;
    if (!s->rank)
        return s->e->row[row].owner == s->e->row[f->row].owner && row != f->row;
    return s->rank[row] < rank_max && s->rank[row] < s->rank[f->row];
}

static bool row_has(const struct events_builder *b, uint32_t row, int32_t id)
{
    const struct builder_row *r = &b->row[row];
    if (!(b->tokens_of[row] & token_bit(id)))
        return false;
    bool has = r->first == id;
    for (uint32_t i = r->begin; !has && i < r->begin + r->n; i++)
        has = b->target[i] == id;
    return has;
}

/* Of the carrying tokens [begin, end) row lacks an eighth of `taught` at most, and none from
 * `value` on. */
static bool has_most(const struct fact_search *s, uint32_t row, uint32_t begin, uint32_t value,
                     uint32_t end, uint64_t taught)
{
    const struct events_builder *b = s->b;
    uint64_t missing = 0;
    for (uint32_t i = begin; i < end; i++) {
        if (!carries(b, i, s->taught_min) || row_has(b, row, b->target[i]))
            continue;
        missing += b->taught[b->target[i]];
        if (i >= value || missing * MISSING > taught)
            return false;
    }
    return true;
}

/* The other row's fact is in the row that was asked for. */
static bool is_stated(const struct fact_search *s, const struct fact *f, uint32_t row)
{
    const struct events_builder *b = s->b;
    const struct builder_row *r = &b->row[row];
    uint32_t begin, n, end = r->begin + r->n;
    if (!last_run(b, row, s->taught_min, &begin, &n) ||
        b->target[begin + n - 1] != b->target[f->begin + f->n - 1])
        return false;
    uint64_t taught = 0;
    bool two = false;
    for (uint32_t i = r->begin; i < begin + n; i++) {
        if (!carries(b, i, s->taught_min))
            continue;
        taught += b->taught[b->target[i]];
        two |= b->target[i] != b->target[begin + n - 1];
    }
    return two && has_most(s, f->row, r->begin, end, begin + n, taught);
}

static bool states(const struct fact_search *s, const struct fact *f, uint32_t row)
{
    const struct events_builder *b = s->b;
    const struct builder_row *r = &b->row[f->row];
    uint32_t end = f->begin + f->n;
    bool stated = f->named && has_most(s, row, r->begin, f->begin, end, f->taught);
    if (!s->rank || !(stated || is_stated(s, f, row)))
        return stated;
    for (uint32_t i = end; i < r->begin + r->n; i++) {
        if (!row_has(b, row, b->target[i]))
            return false;
    }
    return true;
}

/* Events of a block that stand near enough: does one of their rows state it first? */
static void meet_block(const struct fact_search *s, const struct fact *f, uint32_t first,
                       uint32_t over, struct fact_candidate *best)
{
    for (; over; over &= over - 1) {
        uint32_t row = s->e->event_row[first + (uint32_t)__builtin_ctz(over)];
        if (may_state(s, f, row, best->rank) && states(s, f, row))
            *best = (struct fact_candidate){.row = row, .rank = s->rank ? s->rank[row] : 0};
    }
}

uint32_t events_fact_find(const struct fact_search *s, uint32_t row)
{
    struct fact_candidate best = {.row = EVENTS_NONE, .rank = UINT32_MAX};
    struct fact f;
    if (!fact_of(s, row, &f))
        return EVENTS_NONE;
    uint32_t event = f.begin + f.n - 1;
    int32_t near = (int32_t)s->b->method.cluster_dot;
    struct events_dots t = {.n = 1, .min = {near}, .min1 = {near}};
    events_dots_query(&t, 0, s->b->key + (size_t)event * EVENTS_KEY + EVENTS_HALF, false);
    for (uint32_t part = 0; part < 2; part++) {
        uint32_t begin, end;
        events_target_range(s->e, part, s->b->target[event], &begin, &end);
        for (uint32_t first = begin - begin % EVENTS_LANES; first < end; first += EVENTS_LANES) {
            uint32_t lanes = first < begin ? 0xffffu << (begin - first) : 0xffffu;
            if (end - first < EVENTS_LANES)
                lanes &= 0xffffu >> (EVENTS_LANES - (end - first));
            s->dots(&t, s->e->key2 + (size_t)(first / EVENTS_LANES) * EVENTS_BLOCK, NULL);
            meet_block(s, &f, first, t.over[0] & lanes, &best);
        }
    }
    return best.row;
}

struct aged {
    uint64_t doc_id;
    uint32_t since, row;
};

static int by_age(const void *a, const void *b)
{
    const struct aged *x = a, *y = b;
    if (x->since != y->since)
        return x->since < y->since ? -1 : 1;
    if (x->doc_id != y->doc_id)
        return x->doc_id < y->doc_id ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

static void sort_rows(const struct events_builder *b, struct aged *aged, uint32_t *rank)
{
    for (uint32_t r = 0; r < b->src.n_rows; r++) {
        const struct events_source_document *d = &b->src.document[b->src.row[r].document];
        aged[r] = (struct aged){.since = d->since, .doc_id = d->doc_id, .row = r};
    }
    qsort(aged, b->src.n_rows, sizeof(*aged), by_age);
    for (uint32_t i = 0; i < b->src.n_rows; i++)
        rank[aged[i].row] = i;
}

/* Rows of the same tokens, by a hash of them. */
struct same_rows {
    uint64_t hash;
    uint32_t first; /* the oldest + 1; 0: none yet */
};

struct same_table {
    struct same_rows *slot;
    uint64_t mask;
};

static uint64_t row_hash(const struct events_builder *b, uint32_t row)
{
    const struct builder_row *r = &b->row[row];
    uint64_t hash = (uint64_t)(uint32_t)r->first + 0x9e3779b97f4a7c15u;
    for (uint32_t i = r->begin; i < r->begin + r->n; i++) {
        hash = (hash ^ (uint32_t)b->target[i]) * 0xff51afd7ed558ccdu;
        hash ^= hash >> 33;
    }
    return hash;
}

static bool same_tokens(const struct events_builder *b, uint32_t one, uint32_t other)
{
    const struct builder_row *x = &b->row[one], *y = &b->row[other];
    return x->first == y->first && x->n == y->n &&
           memcmp(b->target + x->begin, b->target + y->begin, x->n * sizeof(*b->target)) == 0;
}

/* The oldest row with the same tokens among those asked before; rows are asked from the oldest on.
 */
static uint32_t same_find(struct same_table *t, const struct events_builder *b, uint32_t row)
{
    uint64_t hash = row_hash(b, row), at = hash & t->mask;
    if (b->row[row].n == 0)
        return EVENTS_NONE;
    while (t->slot[at].first && t->slot[at].hash != hash)
        at = (at + 1) & t->mask;
    struct same_rows *s = &t->slot[at];
    if (!s->first) {
        *s = (struct same_rows){.hash = hash, .first = row + 1};
        return EVENTS_NONE;
    }
    return same_tokens(b, s->first - 1, row) ? s->first - 1 : EVENTS_NONE;
}

static uint32_t older_of(const uint32_t *rank, uint32_t one, uint32_t other)
{
    if (one == EVENTS_NONE || other == EVENTS_NONE)
        return one == EVENTS_NONE ? other : one;
    return rank[one] < rank[other] ? one : other;
}

/* rows from the oldest on: what an older one restates is known before it is asked for. */
static void join_rows(const struct fact_search *s, const struct aged *aged, struct same_table *same,
                      struct events_row *row, uint32_t *n_joined)
{
    for (uint32_t i = 0; i < s->b->src.n_rows; i++) {
        uint32_t r = aged[i].row;
        uint32_t older = older_of(s->rank, same_find(same, s->b, r), events_fact_find(s, r));
        if (older == EVENTS_NONE)
            continue;
        row[r].cluster = row[older].cluster;
        (*n_joined)++;
    }
}

enum status events_cluster_rows(const struct events_builder *b, const struct events *e,
                                struct events_row *row, uint32_t *n_joined, struct errtext *err)
{
    struct events_dots_path path[3];
    uint32_t n = b->src.n_rows;
    struct same_table same = {.mask = 1};
    while (same.mask < 2ull * n)
        same.mask = 2 * same.mask + 1;
    same.slot = mem_try_array(same.mask + 1, sizeof(*same.slot));
    struct aged *aged = mem_try_array((size_t)n + 1, sizeof(*aged));
    uint32_t *rank = mem_try_array((size_t)n + 1, sizeof(*rank));
    enum status st = STATUS_OK;
    *n_joined = 0;
    if (same.slot && aged && rank) {
        (void)events_dots_paths(path);
        const struct fact_search s = {.b = b,
                                      .e = e,
                                      .rank = rank,
                                      .taught_min = (b->method.taught_min + 1) / 2,
                                      .dots = path[0].run};
        sort_rows(b, aged, rank);
        join_rows(&s, aged, &same, row, n_joined);
    } else {
        st = err_set(err, STATUS_NO_MEMORY, "no memory to compare %u rows", n);
    }
    mem_free(same.slot);
    mem_free(aged);
    mem_free(rank);
    return st;
}
