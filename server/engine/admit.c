/* Who joins the running set. In the order of the policy, as long as there are slots:
 *
 *   cold adapter        the request is passed over, the loader works, others go on; bounded by
 *                       adapter_wait_ms_max
 *   full batch/budget   passed over too, but only for a quarter of that time: then nobody overtakes
 *                       any more, running sequences end, and it gets in
 *   too few pages       nobody overtakes: running sequences free them
 *
 * So what is resident is served first and nobody starves. Who waits for longer than the bound while
 * others hold more than their share gets a slot of theirs: share.c. Each choice of a prompt after
 * the first waits until the first has computed the prompt, then shares its pages.
 *
 * Those who may be next lie in a heap, made once a pass. What was asked in vain lately, with
 * nothing new since, is left out of it, so that many who wait cost a look each. */
#include "server/base/check.h"
#include "server/base/heap.h"
#include "server/engine/steps.h"

enum verdict { ADMITTED, PASSED_OVER, NOBODY_ELSE, GONE };

/* ---- who is next ---- */

static bool job_first(const void *jobs, uint32_t a, uint32_t b)
{
    const struct engine_job *job = jobs;
    return sched_before(&job[a].rank, &job[b].rank);
}

/* Those with a waiting sequence that `takes` picks; NULL: all. */
static void queue_fill(struct engine *e,
                       bool (*takes)(const struct engine *e, const struct engine_job *j))
{
    e->queue_count = 0;
    for (uint32_t i = 0; i < e->job_live_count; i++) {
        struct engine_job *j = &e->job[e->job_live[i]];
        if (j->seqs_running == j->seqs_left || (takes && !takes(e, j)))
            continue;
        j->rank = job_rank(e, j);
        e->queue[e->queue_count++] = j->idx;
    }
    heap_make(e->queue, e->queue_count, job_first, e->job);
}

static void queue_put(struct engine *e, struct engine_job *j)
{
    j->rank = job_rank(e, j);
    heap_push(e->queue, &e->queue_count, j->idx, job_first, e->job);
}

/* An admission charges a key, so that others of it move back since they were queued. */
static struct engine_job *queue_next(struct engine *e)
{
    while (e->queue_count > 0) {
        struct engine_job *j = &e->job[e->queue[0]];
        struct sched_rank now = job_rank(e, j);
        if (!sched_before(&j->rank, &now)) {
            heap_pop(e->queue, &e->queue_count, job_first, e->job);
            return j;
        }
        j->rank = now;
        heap_sink(e->queue, e->queue_count, 0, job_first, e->job);
    }
    return NULL;
}

static struct seq *running_sibling(struct engine *e, const struct engine_job *j,
                                   uint32_t prompt_idx)
{
    struct seq *best = NULL;
    uint32_t n = j->r->params.n, first = prompt_idx * n;
    for (uint32_t i = first; i < first + n; i++) {
        struct seq *s = &e->seq[j->seq[i].slot];
        if (j->seq[i].state == JOB_SEQ_RUN && (!best || s->n_kv > best->n_kv))
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

static bool is_impatient(const struct engine *e, const struct engine_job *j)
{
    return j->held_since_ms && e->now_ms - j->held_since_ms > e->opt.adapter_wait_ms_max / 4;
}

static enum verdict held_verdict(const struct engine *e, const struct engine_job *j)
{
    return is_impatient(e, j) ? NOBODY_ELSE : PASSED_OVER;
}

/* Its adapters were refused lately, and nothing has come or gone since; among very many, lately is
 * enough: each gets its turn to ask. */
static bool asked_lately(const struct engine *e, const struct engine_job *j)
{
    uint64_t age_ms = e->now_ms - j->asked_ms;
    if (j->pinned || j->asked_epoch == UINT64_MAX)
        return false;
    return j->asked_epoch == e->store_epoch ? age_ms < RETRY_MS
                                            : e->job_live_count > ASKS_MAX && age_ms < ASK_AGAIN_MS;
}

static bool may_start(const struct engine *e, const struct engine_job *j)
{
    return !asked_lately(e, j) || is_impatient(e, j) || j->pages_step > 0;
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
    e->asks_left -= e->asks_left > 0;
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
    if (asked_lately(e, j) || (j->r->comp.n > 0 && e->asks_left == 0))
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

/* What running sequences know but do not hold yet, and one page more for each, so that what is
 * admitted is not preempted at once. */
static void count_pages_owed(struct engine *e)
{
    e->pages_owed = 0;
    for (uint32_t i = 0; i < e->opt.seqs_max; i++)
        e->pages_owed += e->seq[i].used ? seq_owes(&e->seq[i]) : 0;
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

static void let_in(struct engine *e, struct engine_job *j, struct seq *s)
{
    count_prefix(e, j, s);
    j->seq[s->idx].state = JOB_SEQ_RUN;
    j->seq[s->idx].slot = s->slot;
    if (j->seqs_running++ == 0)
        atomic_fetch_sub_explicit(&e->waiting, 1, memory_order_relaxed);
    e->seqs_running++;
    e->sched.key[j->fair].running++;
    j->pages_step = 0;
    j->since_ms = e->now_ms;
    if (!j->admitted)
        j->r->admit_ns = e->now_ns;
    j->admitted = true;
}

static enum verdict start(struct engine *e, struct engine_job *j, uint32_t idx, struct seq *sibling,
                          bool by_share)
{
    struct seq init;
    seq_start_job(e, j, idx, &init);
    struct seq *s = seq_start(e, e->slot_free[e->slot_free_count - 1], &init);
    if (sibling)
        seq_attach_sibling(e, s, sibling, sibling_pages(&j->r->prompt[j->r->seq[idx].prompt_idx]));
    else if (e->opt.prefix_cache && !s->want_prompt)
        seq_attach_cached(e, s);
    e->pages_owed += seq_owes(s);
    /* Alone it always fits: engine_submit has seen to that. */
    if (e->seqs_running > 0 && !make_pages_fit(e) && !(by_share && share_pages(e, s))) {
        j->pages_missing = pages_for(s->n_tok) - s->page_count;
        e->pages_owed -= seq_owes(s);
        seq_stop(e, s);
        j->pages_step = e->count.steps + PAGE_RETRY_STEPS;
        drop_unused_pins(e, j);
        return NOBODY_ELSE;
    }
    let_in(e, j, s);
    return ADMITTED;
}

/* by_share: a slot and pages may be others'. */
static enum verdict admit_one(struct engine *e, struct engine_job *j, bool by_share)
{
    uint32_t idx;
    struct seq *sibling;
    if (!next_seq(e, j, &idx, &sibling))
        return PASSED_OVER;
    if (!by_share && j->pages_step > e->count.steps && e->seqs_running > 0 &&
        kv_free_count(&e->kv) < j->pages_missing)
        return NOBODY_ELSE;
    enum verdict v = take_pins(e, j);
    if (v != ADMITTED)
        return v;
    if (e->slot_free_count == 0 && !share_slot(e, j)) {
        drop_unused_pins(e, j);
        return PASSED_OVER;
    }
    return start(e, j, idx, sibling, by_share);
}

/* In order, until slots end or nobody may overtake. */
static void admit_queue(struct engine *e, bool by_share)
{
    struct engine_job *j;
    if (e->queue_count > 0)
        count_pages_owed(e);
    while ((e->slot_free_count > 0 || by_share) && (j = queue_next(e))) {
        enum verdict v = admit_one(e, j, by_share);
        if (v == NOBODY_ELSE)
            return;
        if (v == ADMITTED && j->seqs_running < j->seqs_left && (!by_share || share_claims(e, j)))
            queue_put(e, j);
    }
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
    queue_fill(e, NULL);
    for (uint32_t tries = warm_tries_max(e); tries > 0 && (j = queue_next(e)); tries--)
        (void)warm(e, j);
}

void admit_requests(struct engine *e)
{
    e->pass++;
    e->asks_left = ASKS_MAX;
    if (e->job_live_count == 0)
        return;
    if (e->slot_free_count > 0) {
        queue_fill(e, may_start);
        admit_queue(e, false);
    }
    if (share_looks(e)) {
        queue_fill(e, share_claims);
        admit_queue(e, true);
    }
    if (e->slot_free_count == 0)
        warm_requests(e);
}
