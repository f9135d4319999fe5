/* What a step computes: ask the policy for rows, then find pages for them. When the pool is empty
 * the sequence that the policy gives up first loses its pages: scoring before users, then lowest
 * priority, then those whose key holds more than its part of the pages, then newest. A sequence
 * never preempts one that ranks above it: it takes what pages there are and waits. And the oldest
 * of the highest priority ranks above all, whosever it is: so it always moves, and with it
 * everybody in turn. */
#include "server/base/check.h"
#include "server/base/heap.h"
#include "server/engine/steps.h"

static struct sched_rank rank_of(const struct engine *e, const struct seq *s)
{
    if (s->job)
        return job_rank(e, s->job);
    return (struct sched_rank){.priority = INT32_MIN, .serial = s->serial};
}

/* Older, of equal age the earlier choice. */
static bool is_older(const struct seq *x, const struct seq *y)
{
    return x->serial != y->serial ? x->serial < y->serial : x->idx < y->idx;
}

static bool keeps_before(const void *engine, uint32_t a, uint32_t b)
{
    const struct engine *e = engine;
    const struct seq *x = &e->seq[a], *y = &e->seq[b];
    if (x->score || y->score)
        return x->score && y->score ? is_older(x, y) : !x->score;
    if (a == e->share.first || b == e->share.first)
        return a == e->share.first;
    if (x->job->priority != y->job->priority)
        return x->job->priority > y->job->priority;
    bool much = share_exceeds(e, x), more = share_exceeds(e, y);
    return much != more ? more : is_older(x, y);
}

/* The oldest of the highest priority. */
static uint32_t first_of(const struct engine *e)
{
    const struct seq *first = NULL;
    for (uint32_t i = 0; i < e->order_count; i++) {
        const struct seq *s = &e->seq[e->order[i]];
        if (!s->job)
            continue;
        if (!first || s->job->priority > first->job->priority ||
            (s->job->priority == first->job->priority && is_older(s, first)))
            first = s;
    }
    return first ? first->slot : UINT32_MAX;
}

/* rows of s as far as there are pages, or those behind it in the list hold some. */
static uint32_t rows_with_pages(struct engine *e, struct seq *s, const uint32_t *behind,
                                uint32_t *behind_count)
{
    while (!seq_reserve(e, s, s->n_kv + s->rows)) {
        struct seq *victim = NULL;
        while (*behind_count > 0 && !victim) {
            victim = &e->seq[behind[--*behind_count]];
            if (!victim->used || victim->page_count == 0)
                victim = NULL;
        }
        if (!victim)
            return MIN(s->rows, s->page_count * KV_PAGE_TOK - s->n_kv);
        seq_preempt(e, victim);
    }
    return s->rows;
}

/* The first in rank take, the last give. */
static void share_scarce_pages(struct engine *e)
{
    uint32_t n = e->order_count, end = n;
    uint32_t *list = e->scratch;
    share_count_pages(e);
    e->share.first = first_of(e);
    for (uint32_t i = 0; i < n; i++)
        list[i] = e->order[i];
    heap_sort(list, n, keeps_before, e);
    for (uint32_t i = 0; i < n; i++) {
        struct seq *s = &e->seq[list[i]];
        uint32_t behind = end > i + 1 ? end - i - 1 : 0;
        if (!s->used || s->rows == 0)
            continue;
        s->rows = rows_with_pages(e, s, list + i + 1, &behind);
        end = i + 1 + behind;
    }
}

/* Pages for the rows of all; there may be too few. */
static void reserve_pages(struct engine *e)
{
    uint64_t missing = 0;
    for (uint32_t i = 0; i < e->order_count; i++) {
        const struct seq *s = &e->seq[e->order[i]];
        uint32_t need = pages_for(s->n_kv + s->rows);
        missing += need > s->page_count ? need - s->page_count : 0;
    }
    if (missing > kv_free_count(&e->kv)) {
        share_scarce_pages(e);
        return;
    }
    for (uint32_t i = 0; missing > 0 && i < e->order_count; i++) {
        struct seq *s = &e->seq[e->order[i]];
        CHECK(seq_reserve(e, s, s->n_kv + s->rows));
    }
}

/* All its rows are given; what ends it is on its way. */
static bool awaits_end(const struct seq *s)
{
    bool has_last_token =
        s->n_known < s->n_tok && s->n_tok - s->n_prompt >= s->job->r->params.max_tokens;
    return s->n_kv == s->n_tok || has_last_token;
}

static uint32_t fill_asks(struct engine *e)
{
    uint32_t n_ask = 0;
    for (uint32_t i = 0; i < e->order_count; i++) {
        struct seq *s = &e->seq[e->order[i]];
        s->rows = 0;
        CHECK(s->n_kv <= s->n_tok);
        if (awaits_end(s))
            continue;
        uint32_t left = s->n_tok - s->n_kv;
        enum sched_kind kind = s->score ? SCHED_SCORE : left == 1 ? SCHED_DECODE : SCHED_PREFILL;
        e->ask[n_ask] = (struct sched_ask){.kind = kind, .rows_left = left, .rank = rank_of(e, s)};
        e->ask_slot[n_ask++] = s->slot;
    }
    return n_ask;
}

static uint64_t score_backlog(struct engine *e)
{
    uint64_t rows = atomic_load_explicit(&e->score_backlog, memory_order_relaxed);
    for (uint32_t i = 0; i < SCORE_RUNS_MAX; i++) {
        const struct score_run *run = &e->score[i];
        if (run->state != SCORE_FREE)
            rows += run->job->n_ids;
    }
    return rows;
}

static uint32_t count_decodes(const struct engine *e, uint32_t n_ask)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_ask; i++)
        n += e->ask[i].kind == SCHED_DECODE;
    return n;
}

bool plan_step(struct engine *e)
{
    seq_settle_order(e);
    uint32_t n_ask = fill_asks(e), decodes = count_decodes(e, n_ask);
    struct sched_limits limits = {.rows_max = e->opt.rows_max,
                                  .score_rows_max = e->opt.score_rows_max,
                                  .score_backlog = score_backlog(e),
                                  .score_credit = &e->score_credit,
                                  .beside_max = pace_rows(&e->pace, decodes, e->opt.rows_max)};
    sched_share_rows(e->ask, n_ask, &limits, e->scratch);
    for (uint32_t i = 0; i < n_ask; i++)
        e->seq[e->ask_slot[i]].rows = e->ask[i].rows;
    reserve_pages(e);
    e->step_decodes = 0;
    e->step_others = 0;
    for (uint32_t i = 0; i < n_ask; i++) {
        uint32_t *count = e->ask[i].kind == SCHED_DECODE ? &e->step_decodes : &e->step_others;
        *count += e->seq[e->ask_slot[i]].rows;
    }
    CHECK(e->step_decodes + e->step_others <= e->opt.rows_max);
    return e->step_decodes + e->step_others > 0;
}
