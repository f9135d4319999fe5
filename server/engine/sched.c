/* The policy of sched.h. Nothing here is quadratic: keys are found by a hash, the lowest counter of
 * the active ones lies on top of a heap, rows are shared from a heap, and that only if there are
 * too few. A charge costs nothing in the heap: counters only grow, so a place there that is out of
 * date stands too far in front, and is put right when it comes to the top. */
#include "server/engine/sched.h"
#include "server/base/check.h"
#include "server/base/heap.h"

/* Beside user rows scoring earns 1/64 of its backlog each step, at least SCORE_ROWS_MIN: a burst of
 * answers drains in a time that does not depend on its size. It takes what it has earned when that
 * fills SCORE_BURST rows, or all there are: the head's matrix, which scoring reads beside that of
 * sampling, and each job's keys and values are then read once for many rows. */
#define SCORE_BACKLOG_STEPS 64
#define SCORE_ROWS_MIN      4
#define SCORE_BURST         64

/* ---- idle places ---- */

static void idle_push(struct sched *s, uint32_t idx)
{
    struct sched_key *k = &s->key[idx];
    k->prev = s->idle_last;
    k->next = SCHED_NONE;
    if (s->idle_last != SCHED_NONE)
        s->key[s->idle_last].next = idx;
    else
        s->idle_first = idx;
    s->idle_last = idx;
}

static void idle_remove(struct sched *s, uint32_t idx)
{
    struct sched_key *k = &s->key[idx];
    if (k->prev != SCHED_NONE)
        s->key[k->prev].next = k->next;
    else
        s->idle_first = k->next;
    if (k->next != SCHED_NONE)
        s->key[k->next].prev = k->prev;
    else
        s->idle_last = k->prev;
}

/* ---- places by key ---- */

static uint32_t *bucket_of(const struct sched *s, uint64_t key)
{
    uint64_t h = key * 0x9e3779b97f4a7c15ull;
    return &s->key[(h ^ h >> 32) % s->keys_max].bucket;
}

static void forget(struct sched *s, uint32_t idx)
{
    struct sched_key *k = &s->key[idx];
    uint32_t *at = bucket_of(s, k->key);
    while (*at != idx) {
        CHECK(*at != SCHED_NONE);
        at = &s->key[*at].hash_next;
    }
    *at = k->hash_next;
    k->known = false;
}

static void learn(struct sched *s, uint32_t idx, uint64_t key)
{
    struct sched_key *k = &s->key[idx];
    uint32_t *at = bucket_of(s, key);
    k->key = key;
    k->tokens = 0;
    k->known = true;
    k->hash_next = *at;
    *at = idx;
}

/* The key's own place, else that of the key idle for the longest time, unused ones before all. */
static uint32_t place_of(struct sched *s, uint64_t key)
{
    uint32_t idx = *bucket_of(s, key);
    while (idx != SCHED_NONE && s->key[idx].key != key)
        idx = s->key[idx].hash_next;
    if (idx != SCHED_NONE)
        return idx;
    idx = s->idle_first;
    CHECK(idx != SCHED_NONE);
    if (s->key[idx].known)
        forget(s, idx);
    learn(s, idx, key);
    return idx;
}

/* ---- active places ---- */

static void active_put(struct sched *s, uint32_t at, uint32_t idx)
{
    s->key[at].active = idx;
    s->key[idx].active_at = at;
}

static bool active_before(const struct sched *s, uint32_t a, uint32_t b)
{
    return s->key[a].active_tokens < s->key[b].active_tokens;
}

static void active_rise(struct sched *s, uint32_t idx)
{
    uint32_t at = s->key[idx].active_at;
    while (at > 0 && active_before(s, idx, s->key[(at - 1) / 2].active)) {
        active_put(s, at, s->key[(at - 1) / 2].active);
        at = (at - 1) / 2;
    }
    active_put(s, at, idx);
}

static void active_sink(struct sched *s, uint32_t idx)
{
    uint32_t at = s->key[idx].active_at, n = s->active_count;
    for (uint32_t next; (next = 2 * at + 1) < n; at = next) {
        if (next + 1 < n && active_before(s, s->key[next + 1].active, s->key[next].active))
            next++;
        if (!active_before(s, s->key[next].active, idx))
            break;
        active_put(s, at, s->key[next].active);
    }
    active_put(s, at, idx);
}

static void active_add(struct sched *s, uint32_t idx)
{
    s->key[idx].active_tokens = s->key[idx].tokens;
    active_put(s, s->active_count++, idx);
    active_rise(s, idx);
}

static void active_remove(struct sched *s, uint32_t idx)
{
    uint32_t at = s->key[idx].active_at, last = s->key[--s->active_count].active;
    if (last == idx)
        return;
    active_put(s, at, last);
    active_rise(s, last);
    active_sink(s, last);
}

/* Some must be active. */
static uint64_t lowest_active(struct sched *s)
{
    for (;;) {
        uint32_t idx = s->key[0].active;
        struct sched_key *k = &s->key[idx];
        if (k->active_tokens == k->tokens)
            return k->tokens;
        k->active_tokens = k->tokens;
        active_sink(s, idx);
    }
}

void sched_init(struct sched *s, struct sched_key *key, uint32_t keys_max)
{
    CHECK(keys_max > 0);
    *s = (struct sched){
        .key = key, .keys_max = keys_max, .idle_first = SCHED_NONE, .idle_last = SCHED_NONE};
    for (uint32_t i = 0; i < keys_max; i++) {
        key[i] = (struct sched_key){.bucket = SCHED_NONE, .hash_next = SCHED_NONE};
        idle_push(s, i);
    }
}

uint32_t sched_join(struct sched *s, uint64_t key)
{
    uint32_t idx = place_of(s, key);
    struct sched_key *k = &s->key[idx];
    if (k->requests++ > 0)
        return idx;
    if (s->active_count > 0)
        k->tokens = MAX(k->tokens, lowest_active(s));
    idle_remove(s, idx);
    active_add(s, idx);
    return idx;
}

void sched_leave(struct sched *s, uint32_t idx)
{
    CHECK(idx < s->keys_max);
    CHECK(s->key[idx].requests > 0);
    if (--s->key[idx].requests > 0)
        return;
    active_remove(s, idx);
    idle_push(s, idx);
}

void sched_charge(struct sched *s, uint32_t idx, uint64_t tokens)
{
    CHECK(idx < s->keys_max);
    s->key[idx].tokens += tokens;
}

uint32_t sched_level(const struct sched *s, uint32_t slots, uint32_t *scratch)
{
    uint64_t wanted = 0;
    for (uint32_t i = 0; i <= slots; i++)
        scratch[i] = 0;
    for (uint32_t i = 0; i < s->active_count; i++) {
        uint32_t want = s->key[s->key[i].active].wanted;
        wanted += want;
        scratch[MIN(want, slots)]++;
    }
    if (wanted <= slots)
        return UINT32_MAX;
    /* Step by step: those who want more than the level take one more each. */
    uint32_t above = s->active_count - scratch[0];
    uint64_t used = 0;
    for (uint32_t level = 0; level < slots; level++) {
        used += above;
        if (used > slots)
            return level;
        above -= scratch[level + 1];
    }
    return slots;
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

/* ---- rows of a step ---- */

static bool ask_before(const void *asks, uint32_t a, uint32_t b)
{
    const struct sched_ask *ask = asks;
    if (sched_before(&ask[a].rank, &ask[b].rank))
        return true;
    return !sched_before(&ask[b].rank, &ask[a].rank) && a < b;
}

static uint64_t wanted_rows(const struct sched_ask *ask, uint32_t n_ask, enum sched_kind kind)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n_ask; i++)
        sum += ask[i].kind == kind ? ask[i].rows_left : 0;
    return sum;
}

/* In order of rank, as long as there are rows. */
static void share_scarce(struct sched_ask *ask, uint32_t n_ask, enum sched_kind kind, uint32_t rows,
                         uint32_t *heap)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_ask; i++) {
        if (ask[i].kind == kind && ask[i].rows_left > 0)
            heap[n++] = i;
    }
    heap_make(heap, n, ask_before, ask);
    while (rows > 0 && n > 0) {
        struct sched_ask *a = &ask[heap_pop(heap, &n, ask_before, ask)];
        a->rows = MIN(a->rows_left, rows);
        rows -= a->rows;
    }
}

static uint32_t share(struct sched_ask *ask, uint32_t n_ask, enum sched_kind kind, uint32_t rows,
                      uint32_t *scratch)
{
    uint64_t wanted = wanted_rows(ask, n_ask, kind);
    if (wanted > rows) {
        share_scarce(ask, n_ask, kind, rows, scratch);
        return rows;
    }
    for (uint32_t i = 0; i < n_ask; i++) {
        if (ask[i].kind == kind)
            ask[i].rows = ask[i].rows_left;
    }
    return (uint32_t)wanted;
}

/* Beside users. room: what they leave. */
static uint32_t score_rows(const struct sched_limits *limits, uint64_t wanted, uint32_t room)
{
    uint32_t most = limits->score_rows_max;
    uint64_t earned = MAX(limits->score_backlog / SCORE_BACKLOG_STEPS, SCORE_ROWS_MIN);
    uint64_t credit = wanted > 0 ? MIN(*limits->score_credit + earned, most) : 0;
    uint64_t burst = MIN(wanted, MIN(SCORE_BURST, most)), rows = MIN(MIN(credit, wanted), room);
    if (rows < burst && credit < most)
        rows = 0;
    *limits->score_credit = credit - rows;
    return (uint32_t)rows;
}

void sched_share_rows(struct sched_ask *ask, uint32_t n_ask, const struct sched_limits *limits,
                      uint32_t *scratch)
{
    for (uint32_t i = 0; i < n_ask; i++) {
        CHECK(ask[i].kind != SCHED_DECODE || ask[i].rows_left == 1);
        ask[i].rows = 0;
    }
    uint32_t decode = share(ask, n_ask, SCHED_DECODE, limits->rows_max, scratch);
    uint32_t left = limits->rows_max - decode;
    uint32_t beside = decode > 0 ? MIN(limits->beside_max, left) : left;
    uint32_t prefill = share(ask, n_ask, SCHED_PREFILL, beside, scratch);
    uint32_t score = MIN(limits->score_rows_max, left - prefill);
    if (decode > 0)
        score = MIN(score, beside > 0 ? MAX(beside - prefill, SCORE_ROWS_MIN) : 0);
    if (decode + prefill > 0)
        score = score_rows(limits, wanted_rows(ask, n_ask, SCHED_SCORE), score);
    share(ask, n_ask, SCHED_SCORE, score, scratch);
}
