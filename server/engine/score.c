/* Scoring (signal S0): a few queued jobs at a time, each a sequence of its own whose rows fill what
 * users leave of a step. It gives way everywhere: rows come last, pages are taken from it first,
 * and its adapters are unpinned when a request finds the budget full; then it starts over later,
 * with the same results, since bits depend on tokens and composition only. A job that knows its
 * request's salt reads and feeds the prefix cache: the base rows of answers that begin alike, and
 * requests to the base, compute that beginning once. */
#include "server/base/check.h"
#include "server/engine/steps.h"

#include <string.h>

static void run_done(struct engine *e, struct score_run *run, enum status st)
{
    struct score_job *j = run->job;
    CHECK(run->state == SCORE_COLD);
    run->state = SCORE_FREE;
    run->job = NULL;
    j->status = st;
    j->on_done(j, j->on_done_arg);
}

/* Back to the begin: pages and pins are given up. */
void score_preempt(struct engine *e, struct score_run *run)
{
    CHECK(run->state == SCORE_RUNNING);
    seq_stop(e, run->seq);
    pins_drop(e, &run->job->comp, run->lora_slot);
    e->store_epoch++;
    run->seq = NULL;
    run->state = SCORE_COLD;
    run->cold_since_ms = 0;
    run->asked_epoch = UINT64_MAX;
    e->score_hold_pass = e->pass + 2;
}

void score_yield(struct engine *e)
{
    for (uint32_t i = 0; i < SCORE_RUNS_MAX; i++) {
        if (e->score[i].state == SCORE_RUNNING && e->score[i].job->comp.n > 0)
            score_preempt(e, &e->score[i]);
    }
}

static void start_run(struct engine *e, struct score_run *run)
{
    const struct score_job *j = run->job;
    struct seq init = {.score = run,
                       .serial = run->serial,
                       .comp = &j->comp,
                       .lora_slot = run->lora_slot,
                       .prompt = j->ids,
                       .n_prompt = j->n_ids,
                       .n_tok = j->n_ids - 1,
                       .n_known = j->n_ids - 1};
    uint32_t slot = e->opt.seqs_max + (uint32_t)(run - e->score);
    if (e->opt.prefix_cache && j->share_pages)
        kv_key_root(init.key, j->comp.id, j->cache_salt);
    run->state = SCORE_RUNNING;
    run->seq = seq_start(e, slot, &init);
}

/* As late as possible: what an older run has computed meanwhile counts. */
static void attach(struct engine *e, struct score_run *run)
{
    if (!e->opt.prefix_cache || !run->job->share_pages || run->seq->page_count > 0)
        return;
    seq_attach_cached(e, run->seq);
    e->count.score_shared_tokens += run->seq->n_kv;
}

static void try_run(struct engine *e, struct score_run *run)
{
    struct errtext why = ERRTEXT_INIT;
    if (run->job->n_ids == run->job->n_prompt) {
        run_done(e, run, STATUS_OK);
        return;
    }
    if (run->asked_epoch == e->store_epoch && e->now_ms - run->asked_ms < RETRY_MS)
        return;
    enum status st = pins_take(e, &run->job->comp, run->job->entry, run->lora_slot, &why);
    if (st == STATUS_OK) {
        start_run(e, run);
        return;
    }
    run->asked_epoch = e->store_epoch;
    run->asked_ms = e->now_ms;
    run->cold_since_ms = run->cold_since_ms ? run->cold_since_ms : MAX(e->now_ms, 1);
    bool later = st == STATUS_BUSY || st == STATUS_FULL;
    if (!later || e->now_ms - run->cold_since_ms > e->opt.adapter_wait_ms_max)
        run_done(e, run, st);
}

void score_admit(struct engine *e)
{
    for (uint32_t i = 0; i < SCORE_RUNS_MAX; i++) {
        struct score_run *run = &e->score[i];
        if (run->state == SCORE_FREE) {
            struct score_job *j = mailbox_pop(&e->score_mail);
            if (!j)
                continue;
            atomic_fetch_sub_explicit(&e->score_backlog, j->n_ids, memory_order_relaxed);
            *run = (struct score_run){
                .state = SCORE_COLD, .job = j, .serial = ++e->serial, .asked_epoch = UINT64_MAX};
        }
        if (run->state == SCORE_COLD && e->pass >= e->score_hold_pass)
            try_run(e, run);
        if (run->state == SCORE_RUNNING)
            attach(e, run);
    }
}

void score_deliver(struct engine *e, struct seq *s, const struct flight *f, uint32_t row)
{
    const struct score_job *j = s->score->job;
    uint32_t pos = f->out[row].pos, at = pos + 1 - j->n_prompt;
    CHECK(pos + 1 >= j->n_prompt);
    CHECK(pos + 1 < j->n_ids);
    j->logprob[at] = e->head.logprob[row - f->n_sample - f->n_prompt];
    if (j->key)
        memcpy(j->key + (size_t)at * SKETCH_DIM, keys_row(e, row), SKETCH_DIM);
}

void score_advance(struct engine *e, struct seq *s, const struct flight_seq *done)
{
    struct score_run *run = s->score;
    e->count.score_tokens += done->rows;
    if (run->job->share_pages)
        seq_key_pages(e, s, done->first + done->rows);
    if (done->first + done->rows < s->n_tok)
        return;
    uint64_t hold_pass = e->score_hold_pass;
    score_preempt(e, run);
    e->score_hold_pass = hold_pass;
    run_done(e, run, STATUS_OK);
}

void score_end_all(struct engine *e, enum status st)
{
    struct score_job *j;
    for (uint32_t i = 0; i < SCORE_RUNS_MAX; i++) {
        if (e->score[i].state == SCORE_RUNNING)
            score_preempt(e, &e->score[i]);
        if (e->score[i].state == SCORE_COLD)
            run_done(e, &e->score[i], st);
    }
    while ((j = mailbox_pop(&e->score_mail))) {
        atomic_fetch_sub_explicit(&e->score_backlog, j->n_ids, memory_order_relaxed);
        j->status = st;
        j->on_done(j, j->on_done_arg);
    }
}
