/* The snapshot others read, and in checking builds the walk over the whole state. The lock is held
 * for one copy of a few KiB. */
#include "server/base/check.h"
#include "server/engine/steps.h"

#include <string.h>

static void add_id(uint8_t (*list)[32], uint32_t *count, const uint8_t id[32])
{
    for (uint32_t i = 0; i < *count; i++) {
        if (memcmp(list[i], id, 32) == 0)
            return;
    }
    if (*count < ENGINE_RUNNING_ADAPTERS_MAX)
        memcpy(list[(*count)++], id, 32);
}

static void list_adapters(struct engine *e)
{
    struct engine_stats *c = &e->count;
    /* With very many requests a list may be this much older than the numbers. */
    if (e->job_live_count > ENGINE_RUNNING_ADAPTERS_MAX && e->now_ms - e->listed_ms < LIST_AGE_MS)
        return;
    e->listed_ms = e->now_ms;
    c->adapter_running_count = 0;
    c->adapter_waiting_count = 0;
    for (uint32_t i = 0; i < e->job_live_count; i++) {
        const struct engine_job *j = &e->job[e->job_live[i]];
        const struct composition *comp = &j->r->comp;
        for (uint32_t k = 0; k < comp->n; k++) {
            if (j->seqs_running > 0)
                add_id(c->adapter_running, &c->adapter_running_count, comp->part[k].adapter);
            else
                add_id(c->adapter_waiting, &c->adapter_waiting_count, comp->part[k].adapter);
        }
    }
}

static uint32_t count_swapped(const struct engine *e)
{
    uint32_t swapped = 0;
    for (uint32_t i = 0; i < e->job_live_count; i++) {
        const struct engine_job *j = &e->job[e->job_live[i]];
        swapped += j->seqs_running == 0 && j->r->preempt_count > 0;
    }
    return swapped;
}

void stats_publish(struct engine *e)
{
    struct engine_stats *c = &e->count;
    c->running_seqs = e->seqs_running;
    c->waiting_requests = atomic_load_explicit(&e->waiting, memory_order_relaxed);
    c->swapped = count_swapped(e);
    c->kv_pages = e->kv.page_count;
    c->kv_pages_used = e->kv.page_count - kv_free_count(&e->kv);
    c->score_queued = (uint32_t)mailbox_used(&e->score_mail);
    c->draining = atomic_load_explicit(&e->draining, memory_order_relaxed);
    list_adapters(e);
    store_get_stats(e->store, &c->store);
    pthread_mutex_lock(&e->stats_lock);
    e->published = *c;
    pthread_mutex_unlock(&e->stats_lock);
}

void engine_get_stats(struct engine *e, struct engine_stats *out)
{
    pthread_mutex_lock(&e->stats_lock);
    *out = e->published;
    pthread_mutex_unlock(&e->stats_lock);
}

static void verify_job(const struct engine *e, const struct engine_job *j)
{
    uint32_t left = 0, running = 0;
    for (uint32_t k = 0; k < j->r->seq_count; k++) {
        left += j->seq[k].state != JOB_SEQ_DONE;
        running += j->seq[k].state == JOB_SEQ_RUN;
    }
    CHECK(left == j->seqs_left);
    CHECK(running == j->seqs_running);
    CHECK(j->pinned == (running > 0));
    CHECK(left > 0);
}

static void verify_pins(const struct engine *e)
{
    uint32_t users = 0, expected = 0;
    for (uint32_t i = 0; i < e->pin_count; i++) {
        CHECK(e->pin[i].users > 0);
        users += e->pin[i].users;
    }
    for (uint32_t i = 0; i < e->job_live_count; i++) {
        const struct engine_job *j = &e->job[e->job_live[i]];
        expected += j->pinned ? j->r->comp.n : 0;
    }
    for (uint32_t i = 0; i < SCORE_RUNS_MAX; i++)
        expected += e->score[i].state == SCORE_RUNNING ? e->score[i].job->comp.n : 0;
    CHECK(users == expected);
    CHECK(e->pin_count <= e->opt.adapters_per_batch_max);
}

void engine_verify(struct engine *e)
{
    uint32_t used = 0, running = 0;
    for (uint32_t i = 0; i < e->job_live_count; i++) {
        const struct engine_job *j = &e->job[e->job_live[i]];
        CHECK(j->live_idx == i);
        verify_job(e, j);
        running += j->seqs_running;
    }
    CHECK(running == e->seqs_running);
    CHECK(e->job_live_count + e->job_free_count == e->jobs_max);
    verify_pins(e);
    if (!RS_CHECKING || e->kv.page_count > VERIFY_PAGES_MAX) /* kv_holders has no room */
        return;
    memset(e->kv_holders, 0, e->kv.page_count * sizeof(e->kv_holders[0]));
    for (uint32_t i = 0; i < e->slot_count; i++) {
        const struct seq *s = &e->seq[i];
        used += s->used;
        CHECK(s->used || s->page_count == 0);
        CHECK(s->n_kv <= s->page_count * KV_PAGE_TOK);
        for (uint32_t p = 0; p < s->page_count; p++)
            e->kv_holders[seq_pages(e, s)[p]]++;
    }
    CHECK(used == e->order_count);
    kv_verify(&e->kv, e->kv_holders);
}
