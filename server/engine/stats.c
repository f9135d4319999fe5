/* The snapshot others read, and in checking builds the walk over the whole state. The lock is held
 * for one copy of a few KiB. */
#include "server/base/check.h"
#include "server/engine/steps.h"

#include <string.h>

#define FOUND_PLACES 256 /* a power of two, well above ENGINE_RUNNING_ADAPTERS_MAX */

struct id_set {
    uint8_t (*list)[32];
    uint32_t *count;
    uint8_t place[FOUND_PLACES]; /* index in the list + 1; 0: free */
};

/* An id is a digest: a byte of it is a fair place to begin. */
static void add_id(struct id_set *set, const uint8_t id[32])
{
    uint32_t at = id[0];
    for (; set->place[at]; at = (at + 1) % FOUND_PLACES) {
        if (memcmp(set->list[set->place[at] - 1], id, 32) == 0)
            return;
    }
    if (*set->count == ENGINE_RUNNING_ADAPTERS_MAX)
        return;
    memcpy(set->list[(*set->count)++], id, 32);
    set->place[at] = (uint8_t)*set->count;
}

static void list_adapters(struct engine *e)
{
    struct engine_stats *c = &e->count;
    /* With very many requests a list may be this much older than the numbers. */
    if (e->job_live_count > ENGINE_RUNNING_ADAPTERS_MAX && e->now_ms - e->listed_ms < LIST_AGE_MS)
        return;
    e->listed_ms = e->now_ms;
    struct id_set running = {.list = c->adapter_running, .count = &c->adapter_running_count};
    struct id_set waiting = {.list = c->adapter_waiting, .count = &c->adapter_waiting_count};
    c->adapter_running_count = 0;
    c->adapter_waiting_count = 0;
    for (uint32_t i = 0; i < e->job_live_count; i++) {
        const struct engine_job *j = &e->job[e->job_live[i]];
        const struct composition *comp = &j->r->comp;
        for (uint32_t k = 0; k < comp->n; k++)
            add_id(j->seqs_running > 0 ? &running : &waiting, comp->part[k].adapter);
    }
}

static uint32_t count_swapped(const struct engine *e)
{
    uint32_t swapped = 0;
    for (uint32_t i = 0; i < e->job_live_count; i++) {
        const struct engine_job *j = &e->job[e->job_live[i]];
        swapped += j->seqs_running == 0 && j->preempted;
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
    c->passes_unrecorded = e->backend->passes_unrecorded;
    c->draining = atomic_load_explicit(&e->draining, memory_order_relaxed);
    c->steps_beside = e->pace.steps_beside;
    c->steps_over = e->pace.steps_over;
    if (e->step_decodes > 0)
        c->decode_step_ns = (uint64_t)pace_decode_ns(&e->pace, e->step_decodes);
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

static void verify_keys(const struct engine *e)
{
    uint64_t wanted = 0, running = 0, left = 0;
    for (uint32_t i = 0; i < e->sched.active_count; i++) {
        const struct sched_key *k = &e->sched.key[e->sched.key[i].active];
        CHECK(k->requests > 0 && k->running <= k->wanted);
        wanted += k->wanted;
        running += k->running;
    }
    for (uint32_t i = 0; i < e->job_live_count; i++)
        left += e->job[e->job_live[i]].seqs_left;
    CHECK(wanted == left);
    CHECK(running == e->seqs_running);
    CHECK(e->slot_free_count + e->seqs_running == e->opt.seqs_max);
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
    verify_keys(e);
    seq_settle_order(e);
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
