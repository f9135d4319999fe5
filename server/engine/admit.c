/* Who joins the running set. In the order of the policy, as long as there are slots:
 *
 *   cold adapter        the request is passed over, the loader works, others go on; bounded by
 *                       adapter_wait_ms_max
 *   full batch/budget   passed over too, but only for a quarter of that time: then nobody overtakes
 *                       any more, running sequences end, and it gets in
 *   too few pages       nobody overtakes: running sequences free them
 *
 * So what is resident is served first and nobody starves. Each choice of a prompt after the first
 * waits until the first has computed the prompt, then shares its pages. */
#include "server/base/check.h"
#include "server/engine/steps.h"

enum verdict { ADMITTED, PASSED_OVER, NOBODY_ELSE, GONE };

static struct engine_job *pick(struct engine *e)
{
    struct engine_job *best = NULL;
    struct sched_rank best_rank = {0};
    for (uint32_t i = 0; i < e->job_live_count; i++) {
        struct engine_job *j = &e->job[e->job_live[i]];
        if (j->passed == e->pass || j->seqs_running == j->seqs_left)
            continue;
        struct sched_rank rank = job_rank(e, j);
        if (best && !sched_before(&rank, &best_rank))
            continue;
        best = j;
        best_rank = rank;
    }
    return best;
}

static struct seq *running_sibling(struct engine *e, const struct engine_job *j,
                                   uint32_t prompt_idx)
{
    struct seq *best = NULL;
    for (uint32_t i = 0; i < e->opt.seqs_max; i++) {
        struct seq *s = &e->seq[i];
        if (!s->used || s->job != j || j->r->seq[s->idx].prompt_idx != prompt_idx)
            continue;
        if (!best || s->n_kv > best->n_kv)
            best = s;
    }
    return best;
}

static uint32_t sibling_pages(const struct request_prompt *p)
{
    return (p->n_ids - 1) / KV_PAGE_TOK;
}

/* The next waiting sequence whose prompt is not just being computed by another choice. */
static bool next_seq(struct engine *e, struct engine_job *j, uint32_t *idx, struct seq **sibling)
{
    const struct request *r = j->r;
    for (uint32_t i = 0; i < r->seq_count; i++) {
        if (j->seq[i].state != JOB_SEQ_WAIT)
            continue;
        uint32_t prompt = r->seq[i].prompt_idx;
        *idx = i;
        *sibling = j->seqs_running > 0 ? running_sibling(e, j, prompt) : NULL;
        if (!*sibling || (*sibling)->n_kv >= sibling_pages(&r->prompt[prompt]) * KV_PAGE_TOK)
            return true;
        /* All choices of this prompt wait for it: on to the next prompt. */
        while (i + 1 < r->seq_count && r->seq[i + 1].prompt_idx == prompt)
            i++;
    }
    return false;
}

static enum verdict held_verdict(const struct engine *e, const struct engine_job *j)
{
    bool impatient =
        j->held_since_ms && e->now_ms - j->held_since_ms > e->opt.adapter_wait_ms_max / 4;
    return impatient ? NOBODY_ELSE : PASSED_OVER;
}

/* The budget is full although nobody else holds any of it, for as long as one waits at all: the
 * parts of this composition do not fit together. */
static bool fits_never(const struct engine *e, const struct engine_job *j)
{
    return e->pin_count == 0 && e->now_ms - j->held_since_ms > e->opt.adapter_wait_ms_max;
}

static enum verdict refused(struct engine *e, struct engine_job *j, enum status st,
                            struct errtext *why)
{
    j->asked_epoch = e->store_epoch;
    j->asked_ms = e->now_ms;
    if (st == STATUS_BUSY) {
        j->cold_since_ms = j->cold_since_ms ? j->cold_since_ms : MAX(e->now_ms, 1);
        return held_verdict(e, j);
    }
    if (st == STATUS_FULL) {
        score_yield(e);
        j->held_since_ms = j->held_since_ms ? j->held_since_ms : MAX(e->now_ms, 1);
        if (!fits_never(e, j))
            return held_verdict(e, j);
        err_param(why, STATUS_FULL, "model",
                  "the %u adapters of this request do not fit the adapter memory together",
                  j->r->comp.n);
    }
    job_fail(e, j, st, why);
    return GONE;
}

static enum verdict take_pins(struct engine *e, struct engine_job *j)
{
    struct errtext why = ERRTEXT_INIT;
    if (j->pinned)
        return ADMITTED;
    if (j->asked_epoch == e->store_epoch && e->now_ms - j->asked_ms < RETRY_MS)
        return held_verdict(e, j);
    enum status st = pins_take(e, &j->r->comp, j->r->entry, j->lora_slot, &why);
    if (st != STATUS_OK)
        return refused(e, j, st, &why);
    j->pinned = true;
    j->cold_since_ms = 0;
    j->held_since_ms = 0;
    return ADMITTED;
}

static void drop_unused_pins(struct engine *e, struct engine_job *j)
{
    if (!j->pinned || j->seqs_running > 0)
        return;
    pins_drop(e, &j->r->comp, j->lora_slot);
    j->pinned = false;
}

/* Pages that running sequences need for what they know but do not hold yet, and one more for each,
 * so that what is admitted is not preempted at once. */
static bool pages_fit(const struct engine *e)
{
    uint64_t pages = 0;
    for (uint32_t i = 0; i < e->opt.seqs_max; i++) {
        const struct seq *s = &e->seq[i];
        if (!s->used)
            continue;
        uint32_t need = pages_for(s->n_tok);
        pages += need > s->page_count ? need - s->page_count : 0;
        pages += 1;
    }
    return kv_free_count(&e->kv) >= pages;
}

static bool make_pages_fit(struct engine *e)
{
    for (uint32_t i = 0; i < SCORE_RUNS_MAX && !pages_fit(e); i++) {
        if (e->score[i].state == SCORE_RUNNING && e->score[i].seq->page_count > 0)
            score_preempt(e, &e->score[i]);
    }
    return pages_fit(e);
}

static void count_prefix(struct engine *e, struct engine_job *j, const struct seq *s)
{
    struct request_prompt *p = &j->r->prompt[j->r->seq[s->idx].prompt_idx];
    if (j->seq[s->idx].preempted)
        return;
    if (e->opt.prefix_cache) {
        e->count.prefix_queries += s->n_tok;
        e->count.prefix_hits += s->n_kv;
    }
    e->count.prompt_tokens += s->n_prompt;
    if (j->r->seq[s->idx].choice_idx == 0)
        p->cached_tokens = s->n_kv;
    sched_charge(&e->sched, j->fair, (uint64_t)SCHED_COST_PROMPT * (s->n_tok - s->n_kv));
}

static enum verdict start(struct engine *e, struct engine_job *j, uint32_t idx, struct seq *sibling,
                          uint32_t slot)
{
    struct seq init;
    seq_start_job(e, j, idx, &init);
    struct seq *s = seq_start(e, slot, &init);
    if (sibling)
        seq_attach_sibling(e, s, sibling, sibling_pages(&j->r->prompt[j->r->seq[idx].prompt_idx]));
    else if (e->opt.prefix_cache && !s->want_prompt)
        seq_attach_cached(e, s);
    /* Alone it always fits: engine_submit has seen to that. */
    if (e->seqs_running > 0 && !make_pages_fit(e)) {
        j->pages_missing = pages_for(s->n_tok) - s->page_count;
        seq_stop(e, s);
        j->pages_step = e->count.steps + PAGE_RETRY_STEPS;
        drop_unused_pins(e, j);
        return NOBODY_ELSE;
    }
    count_prefix(e, j, s);
    j->seq[idx].state = JOB_SEQ_RUN;
    if (j->seqs_running++ == 0)
        atomic_fetch_sub_explicit(&e->waiting, 1, memory_order_relaxed);
    e->seqs_running++;
    j->pages_step = 0;
    if (!j->admitted)
        j->r->admit_ns = e->now_ns;
    j->admitted = true;
    return ADMITTED;
}

static uint32_t free_slot(const struct engine *e)
{
    for (uint32_t i = 0; i < e->opt.seqs_max; i++) {
        if (!e->seq[i].used)
            return i;
    }
    return UINT32_MAX;
}

static enum verdict admit_one(struct engine *e, struct engine_job *j, uint32_t slot)
{
    uint32_t idx;
    struct seq *sibling;
    if (!next_seq(e, j, &idx, &sibling))
        return PASSED_OVER;
    if (j->pages_step > e->count.steps && e->seqs_running > 0 &&
        kv_free_count(&e->kv) < j->pages_missing)
        return NOBODY_ELSE;
    enum verdict v = take_pins(e, j);
    return v == ADMITTED ? start(e, j, idx, sibling, slot) : v;
}

/* Have the adapters of one that is next in line loaded meanwhile. */
static enum verdict warm(struct engine *e, struct engine_job *j)
{
    if (j->r->comp.n == 0 || j->seqs_running > 0 || e->now_ms - j->warmed_ms < RETRY_MS)
        return PASSED_OVER;
    enum verdict v = take_pins(e, j);
    if (v == ADMITTED) {
        drop_unused_pins(e, j);
        j->warmed_ms = e->now_ms;
        v = PASSED_OVER;
    }
    return v;
}

/* No more adapters are asked for ahead than can stay: else they would push each other out. */
static uint32_t warm_tries_max(const struct engine *e)
{
    struct store_stats st;
    store_get_stats(e->store, &st);
    uint32_t unpinned = st.slots_max > e->pin_count ? st.slots_max - e->pin_count : 0;
    return MIN(WARM_TRIES_MAX, MAX(unpinned / 2, 1));
}

/* All slots are taken. */
static void warm_requests(struct engine *e)
{
    struct engine_job *j;
    if (e->now_ms - e->warmed_ms < WARM_EVERY_MS)
        return;
    e->warmed_ms = e->now_ms;
    for (uint32_t tries = warm_tries_max(e); tries > 0 && (j = pick(e)); tries--) {
        if (warm(e, j) != GONE)
            j->passed = e->pass;
    }
}

void admit_requests(struct engine *e)
{
    struct engine_job *j;
    uint32_t slot;
    e->pass++;
    while ((slot = free_slot(e)) != UINT32_MAX) {
        if (!(j = pick(e)))
            return;
        enum verdict v = admit_one(e, j, slot);
        if (v == NOBODY_ELSE)
            return;
        if (v == PASSED_OVER)
            j->passed = e->pass;
    }
    warm_requests(e);
}
