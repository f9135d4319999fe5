/* What a step computes: ask the policy for rows, then find pages for them. When the pool is empty
 * the sequence that the policy gives up first loses its pages: scoring before users, then lowest
 * priority, then newest. A sequence never preempts one that ranks above it: it takes what pages
 * there are and waits. So the first in rank always moves, and with it everybody in turn. */
#include "server/base/check.h"
#include "server/engine/steps.h"

static struct sched_rank rank_of(const struct engine *e, const struct seq *s)
{
    if (s->job)
        return job_rank(e, s->job);
    return (struct sched_rank){.priority = INT32_MIN, .serial = s->serial};
}

static bool evict_before(const struct engine *e, const struct seq *a, const struct seq *b)
{
    if ((a->score != NULL) != (b->score != NULL))
        return a->score != NULL;
    struct sched_rank ra = rank_of(e, a), rb = rank_of(e, b);
    if (sched_evict_before(&ra, &rb))
        return true;
    if (sched_evict_before(&rb, &ra))
        return false;
    return a->idx > b->idx;
}

/* The first to go among those that hold pages and rank below s. */
static struct seq *victim_for(struct engine *e, const struct seq *s)
{
    struct seq *victim = NULL;
    for (uint32_t i = 0; i < e->slot_count; i++) {
        struct seq *v = &e->seq[i];
        if (!v->used || v == s || v->page_count == 0 || !evict_before(e, v, s))
            continue;
        if (!victim || evict_before(e, v, victim))
            victim = v;
    }
    return victim;
}

static uint32_t rows_with_pages(struct engine *e, struct seq *s, uint32_t rows)
{
    while (!seq_reserve(e, s, s->n_kv + rows)) {
        struct seq *victim = victim_for(e, s);
        if (!victim)
            return MIN(rows, s->page_count * KV_PAGE_TOK - s->n_kv);
        seq_preempt(e, victim);
    }
    return rows;
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

bool plan_step(struct engine *e)
{
    uint32_t rows = 0;
    uint32_t n_ask = fill_asks(e);
    struct sched_limits limits = {.rows_max = e->opt.rows_max,
                                  .score_rows_max = e->opt.score_rows_max,
                                  .score_backlog = score_backlog(e)};
    sched_share_rows(e->ask, n_ask, &limits);
    for (uint32_t i = 0; i < n_ask; i++) {
        struct seq *s = &e->seq[e->ask_slot[i]];
        /* An earlier one of this loop may have taken its pages. */
        if (s->used && e->ask[i].rows > 0)
            s->rows = rows_with_pages(e, s, e->ask[i].rows);
    }
    for (uint32_t i = 0; i < e->order_count; i++)
        rows += e->seq[e->order[i]].rows;
    CHECK(rows <= e->opt.rows_max);
    return rows > 0;
}
