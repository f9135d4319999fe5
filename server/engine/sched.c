/* The policy of sched.h. Everything here is integer comparison over small arrays; the loops are
 * quadratic in the number of prefilling sequences, which is tens. */
#include "server/engine/sched.h"
#include "server/base/check.h"

/* Beside user rows scoring takes 1/64 of its backlog each step, at least SCORE_ROWS_MIN: few rows
 * ride along with weights that are read anyway, and a burst drains in a time that does not depend
 * on its size. */
#define SCORE_BACKLOG_STEPS 64
#define SCORE_ROWS_MIN      4

void sched_init(struct sched *s, struct sched_key *key, uint32_t keys_max)
{
    CHECK(keys_max > 0);
    *s = (struct sched){.key = key, .keys_max = keys_max};
    for (uint32_t i = 0; i < keys_max; i++)
        key[i] = (struct sched_key){.known = false};
}

static uint64_t lowest_active(const struct sched *s, bool *any)
{
    uint64_t lowest = 0;
    *any = false;
    for (uint32_t i = 0; i < s->keys_max; i++) {
        const struct sched_key *k = &s->key[i];
        if (k->requests == 0)
            continue;
        lowest = *any ? MIN(lowest, k->tokens) : k->tokens;
        *any = true;
    }
    return lowest;
}

/* The key's own place, else an unused one, else that of the key idle for the longest time. */
static uint32_t find_place(const struct sched *s, uint64_t key)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < s->keys_max; i++) {
        const struct sched_key *k = &s->key[i];
        if (k->known && k->key == key)
            return i;
        if (k->requests > 0)
            continue;
        if (best == UINT32_MAX || k->used_order < s->key[best].used_order)
            best = i;
    }
    CHECK(best != UINT32_MAX);
    return best;
}

uint32_t sched_join(struct sched *s, uint64_t key)
{
    bool any;
    uint64_t lowest = lowest_active(s, &any);
    uint32_t idx = find_place(s, key);
    struct sched_key *k = &s->key[idx];
    if (!k->known || k->key != key)
        *k = (struct sched_key){.key = key, .known = true};
    if (k->requests == 0 && any)
        k->tokens = MAX(k->tokens, lowest);
    k->requests++;
    k->used_order = ++s->order;
    return idx;
}

void sched_leave(struct sched *s, uint32_t idx)
{
    CHECK(idx < s->keys_max);
    CHECK(s->key[idx].requests > 0);
    s->key[idx].requests--;
    s->key[idx].used_order = ++s->order;
}

void sched_charge(struct sched *s, uint32_t idx, uint64_t tokens)
{
    CHECK(idx < s->keys_max);
    s->key[idx].tokens += tokens;
}

bool sched_before(const struct sched_rank *a, const struct sched_rank *b)
{
    if (a->priority != b->priority)
        return a->priority > b->priority;
    if (a->tokens != b->tokens)
        return a->tokens < b->tokens;
    return a->serial < b->serial;
}

bool sched_evict_before(const struct sched_rank *a, const struct sched_rank *b)
{
    if (a->priority != b->priority)
        return a->priority < b->priority;
    return a->serial > b->serial;
}

static struct sched_ask *next_ask(struct sched_ask *ask, uint32_t n_ask, enum sched_kind kind)
{
    struct sched_ask *best = NULL;
    for (uint32_t i = 0; i < n_ask; i++) {
        if (ask[i].kind != kind || ask[i].rows > 0 || ask[i].rows_left == 0)
            continue;
        if (!best || sched_before(&ask[i].rank, &best->rank))
            best = &ask[i];
    }
    return best;
}

static uint32_t share(struct sched_ask *ask, uint32_t n_ask, enum sched_kind kind, uint32_t rows)
{
    uint32_t used = 0;
    struct sched_ask *a;
    while (used < rows && (a = next_ask(ask, n_ask, kind))) {
        a->rows = MIN(a->rows_left, rows - used);
        used += a->rows;
    }
    return used;
}

void sched_share_rows(struct sched_ask *ask, uint32_t n_ask, const struct sched_limits *limits)
{
    uint32_t user, score;
    for (uint32_t i = 0; i < n_ask; i++) {
        CHECK(ask[i].kind != SCHED_DECODE || ask[i].rows_left == 1);
        ask[i].rows = 0;
    }
    user = share(ask, n_ask, SCHED_DECODE, limits->rows_max);
    user += share(ask, n_ask, SCHED_PREFILL, limits->rows_max - user);
    score = MIN(limits->score_rows_max, limits->rows_max - user);
    if (user > 0) {
        uint64_t some = limits->score_backlog / SCORE_BACKLOG_STEPS;
        score = (uint32_t)MIN((uint64_t)score, MAX(some, SCORE_ROWS_MIN));
    }
    share(ask, n_ask, SCHED_SCORE, score);
}
