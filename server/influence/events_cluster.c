/* Restated facts. A row states a fact by its value: the last run of tokens that the base does not
 * expect and that not half of the rows have. A row whose value stands in an older row of another
 * owner, behind the same names (half 2 of the keys: the rare words before it), restates that row's
 * fact and earns for its cluster. Another value behind the same names is a contradiction and joins
 * nothing, the same value behind other names is another fact. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/influence/events_build_impl.h"

#include <stdlib.h>
#include <string.h>

#define COMMON_SLACK 4 /* of a handful of rows half is no measure */

static bool is_value(const struct events_builder *b, uint32_t event)
{
    bool common = 2ull * b->occurs[b->target[event]] > (uint64_t)b->src.n_rows + COMMON_SLACK;
    return -(int64_t)b->base[event] >= b->method.value_min && !common;
}

bool events_builder_value(const struct events_builder *b, uint32_t row, uint32_t *begin,
                          uint32_t *n)
{
    const struct builder_row *r = &b->row[row];
    uint32_t end = r->begin + r->n;
    while (end > r->begin && !is_value(b, end - 1))
        end--;
    *begin = end;
    while (*begin > r->begin && is_value(b, *begin - 1))
        (*begin)--;
    *n = end - *begin;
    return *n > 0;
}

struct fact_candidate {
    uint32_t row, rank;
};

static bool may_state(const struct fact_search *s, uint32_t of, uint32_t row, uint32_t rank_max)
{
    if (!s->rank)
        return row != of;
    return s->rank[row] < rank_max && s->rank[row] < s->rank[of] &&
           s->e->row[row].owner != s->e->row[of].owner;
}

static void half_two(const struct fact_search *s, struct events_dots *t, uint32_t event)
{
    t->query[0] = s->b->key + (size_t)event * EVENTS_KEY + EVENTS_HALF;
    t->min[0] = (int32_t)s->b->method.cluster_dot;
    t->n = 1;
}

/* Does the row have the event's target behind the same names? */
static bool row_has(const struct fact_search *s, uint32_t event, uint32_t row)
{
    const struct events *e = s->e;
    struct events_dots t;
    half_two(s, &t, event);
    for (uint32_t part = 0; part < 2; part++) {
        uint32_t begin, end;
        events_target_range(e, part, s->b->target[event], &begin, &end);
        uint32_t at = events_row_bound(e, begin, end, row);
        for (; at < end && e->event_row[at] == row; at++) {
            s->dots(&t, e->key2 + (size_t)(at / EVENTS_LANES) * EVENTS_BLOCK, NULL);
            if (t.over[0] >> at % EVENTS_LANES & 1)
                return true;
        }
    }
    return false;
}

static bool row_has_all(const struct fact_search *s, uint32_t begin, uint32_t n, uint32_t row)
{
    for (uint32_t i = begin; i < begin + n; i++) {
        if (!row_has(s, i, row))
            return false;
    }
    return true;
}

static uint32_t target_events(const struct events *e, int32_t target)
{
    uint32_t begin, end, n = 0;
    for (uint32_t part = 0; part < 2; part++) {
        events_target_range(e, part, target, &begin, &end);
        n += end - begin;
    }
    return n;
}

/* The value token that the fewest events have. */
static uint32_t rarest(const struct fact_search *s, uint32_t begin, uint32_t n)
{
    uint32_t best = begin, least = UINT32_MAX;
    for (uint32_t i = begin; i < begin + n; i++) {
        uint32_t count = target_events(s->e, s->b->target[i]);
        best = count < least ? i : best;
        least = MIN(least, count);
    }
    return best;
}

struct fact {
    uint32_t row, begin, n;
};

/* Events of a block that lie in [begin, end) and behind the same names: is one of their rows it? */
static void meet_block(const struct fact_search *s, const struct fact *f, uint32_t first,
                       uint32_t over, struct fact_candidate *best)
{
    for (; over; over &= over - 1) {
        uint32_t row = s->e->event_row[first + (uint32_t)__builtin_ctz(over)];
        if (!may_state(s, f->row, row, best->rank) || !row_has_all(s, f->begin, f->n, row))
            continue;
        *best = (struct fact_candidate){.row = row, .rank = s->rank ? s->rank[row] : 0};
    }
}

uint32_t events_fact_find(const struct fact_search *s, uint32_t row)
{
    struct fact_candidate best = {.row = EVENTS_NONE, .rank = UINT32_MAX};
    struct fact f = {.row = row};
    struct events_dots t;
    if (!events_builder_value(s->b, row, &f.begin, &f.n))
        return EVENTS_NONE;
    uint32_t event = rarest(s, f.begin, f.n);
    half_two(s, &t, event);
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

enum status events_cluster_rows(const struct events_builder *b, const struct events *e,
                                struct events_row *row, uint32_t *n_joined, struct errtext *err)
{
    struct events_dots_path path[3];
    struct aged *aged = mem_try_array((size_t)b->src.n_rows + 1, sizeof(*aged));
    uint32_t *rank = mem_try_array((size_t)b->src.n_rows + 1, sizeof(*rank));
    enum status st = STATUS_OK;
    *n_joined = 0;
    if (aged && rank) {
        (void)events_dots_paths(path);
        const struct fact_search s = {.b = b, .e = e, .rank = rank, .dots = path[0].run};
        sort_rows(b, aged, rank);
        for (uint32_t i = 0; i < b->src.n_rows; i++) {
            uint32_t r = aged[i].row, older = events_fact_find(&s, r);
            if (older == EVENTS_NONE)
                continue;
            row[r].cluster = row[older].cluster;
            (*n_joined)++;
        }
    } else {
        st = err_set(err, STATUS_NO_MEMORY, "no memory to compare %u rows", b->src.n_rows);
    }
    mem_free(aged);
    mem_free(rank);
    return st;
}
