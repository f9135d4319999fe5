/* Requests inside the engine: from the mailbox to the hand-over at the end. A job's counters say
 * how many sequences run and how many are unfinished; every way to end a sequence (a stop, a
 * cancel, an error, the drain) goes through job_finish_seq, so slots, pages and pins are given back
 * in one place. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/engine/steps.h"

#include <string.h>

struct sched_rank job_rank(const struct engine *e, const struct engine_job *j)
{
    return (struct sched_rank){
        .priority = j->priority, .tokens = e->sched.key[j->fair].tokens, .serial = j->serial};
}

static void job_begin(struct engine *e, struct request *r)
{
    CHECK(e->job_free_count > 0);
    uint32_t idx = e->job_free[--e->job_free_count];
    struct engine_job *j = &e->job[idx];
    *j = (struct engine_job){.r = r,
                             .idx = idx,
                             .serial = ++e->serial,
                             .priority = r->params.priority,
                             .since_ms = e->now_ms,
                             .seqs_left = r->seq_count};
    j->fair = sched_join(&e->sched, r->params.fair_key);
    e->sched.key[j->fair].wanted += r->seq_count;
    j->asked_epoch = UINT64_MAX;
    j->live_idx = e->job_live_count;
    e->job_live[e->job_live_count++] = idx;
    r->engine_private = j;
}

void job_finish_seq(struct engine *e, struct engine_job *j, uint32_t idx, enum finish_reason why)
{
    struct engine_job_seq *js = &j->seq[idx];
    CHECK(js->state != JOB_SEQ_DONE);
    CHECK(j->seqs_left > 0);
    if (js->state == JOB_SEQ_RUN) {
        struct seq *s = &e->seq[js->slot];
        CHECK(s->used && s->job == j && s->idx == idx);
        seq_stop(e, s);
        e->seqs_running--;
        e->sched.key[j->fair].running--;
        if (--j->seqs_running == 0) {
            pins_drop(e, &j->r->comp, j->lora_slot);
            j->pinned = false;
            e->store_epoch++;
            if (j->seqs_left > 1)
                atomic_fetch_add_explicit(&e->waiting, 1, memory_order_relaxed);
        }
    } else if (j->seqs_running == 0 && j->seqs_left == 1) {
        atomic_fetch_sub_explicit(&e->waiting, 1, memory_order_relaxed);
    }
    js->state = JOB_SEQ_DONE;
    e->sched.key[j->fair].wanted--;
    j->dirty = true;
    if (--j->seqs_left == 0) {
        j->r->finish_ns = e->now_ns;
        j->r->finish_wall_ms = clock_wall_ms();
    }
    e->count.finished[why]++;
    atomic_store_explicit(&j->r->seq[idx].finish, (uint32_t)why, memory_order_release);
}

void job_wake(struct engine *e, struct engine_job *j)
{
    if (j->dirty && j->r->wake)
        j->r->wake(j->r->wake_arg);
    j->dirty = false;
}

bool job_end_if_done(struct engine *e, struct engine_job *j)
{
    if (j->seqs_left > 0)
        return false;
    struct request *r = j->r;
    CHECK(j->seqs_running == 0);
    CHECK(!j->pinned);
    sched_leave(&e->sched, j->fair);
    /* The list of live jobs has no order: the last one takes the place. */
    uint32_t last = e->job_live[--e->job_live_count];
    e->job_live[j->live_idx] = last;
    e->job[last].live_idx = j->live_idx;
    e->job_free[e->job_free_count++] = j->idx;
    j->r = NULL;
    r->engine_private = NULL;
    if (r->on_finish) {
        r->on_finish(r, r->on_finish_arg);
    } else {
        request_finish(r);
        request_release(r);
    }
    return true;
}

void job_finish_all(struct engine *e, struct engine_job *j, enum finish_reason why)
{
    for (uint32_t i = 0; i < j->r->seq_count; i++) {
        if (j->seq[i].state != JOB_SEQ_DONE)
            job_finish_seq(e, j, i, why);
    }
    job_wake(e, j);
    CHECK(job_end_if_done(e, j));
}

/* The first error is the request's: a reader that has seen it must not see it change. */
void job_fail(struct engine *e, struct engine_job *j, enum status st, const struct errtext *why)
{
    if (j->r->status == STATUS_OK) {
        j->r->status = st;
        j->r->error = *why;
    }
    job_finish_all(e, j, FINISH_ERROR);
}

static void fail_cold(struct engine *e, struct engine_job *j)
{
    struct errtext why = ERRTEXT_INIT;
    const struct request *r = j->r;
    err_param(&why, STATUS_BUSY, "model", "adapter %s was not loaded within %u ms, try again later",
              r->comp.n > 0 && r->entry[0] ? r->entry[0]->name : "", e->opt.adapter_wait_ms_max);
    job_fail(e, j, STATUS_BUSY, &why);
}

/* Its adapter has been cold for too long. One that waits for its turn is not asked meanwhile, so
 * what was refused long ago says nothing. */
static void end_late(struct engine *e, struct engine_job *j)
{
    uint64_t wait_ms = e->opt.adapter_wait_ms_max;
    if (e->now_ms - j->cold_since_ms <= wait_ms)
        return;
    if (e->now_ms - j->asked_ms > wait_ms / 2 + 2 * RETRY_MS)
        j->cold_since_ms = 0;
    else
        fail_cold(e, j);
}

static void end_cancelled_and_late(struct engine *e)
{
    for (uint32_t i = e->job_live_count; i-- > 0;) {
        struct engine_job *j = &e->job[e->job_live[i]];
        if (atomic_load_explicit(&j->r->cancel, memory_order_relaxed))
            job_finish_all(e, j, FINISH_CANCELLED);
        else if (j->cold_since_ms && !j->pinned)
            end_late(e, j);
    }
}

void job_receive(struct engine *e)
{
    struct request *r;
    while (e->job_free_count > 0 && (r = mailbox_pop(&e->mail)))
        job_begin(e, r);
    end_cancelled_and_late(e);
}
