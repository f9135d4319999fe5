/* What other threads may call: submit, score, unload, stop. Each is a message in a bounded mailbox;
 * an unload also waits for its answer. What a client may ask for is HTTP's to check
 * (request_parse.h); a request that could never run for what only the engine knows is refused here,
 * on the caller's thread, with the numbers. `waiting` counts requests without a running sequence
 * wherever they are, so that the mailbox and the jobs behind it have one maximum. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/thread.h"
#include "server/engine/steps.h"

#include <errno.h>
#include <string.h>
#include <time.h>

/* What the submitter has to know. Ids index tables: checking builds look at each. */
static void check_contract(const struct engine *e, const struct request *r)
{
    const struct request_params *p = &r->params;
    CHECK(r->prompt_count > 0 && r->prompt_count <= REQUEST_PROMPTS_MAX);
    CHECK(r->seq_count == r->prompt_count * p->n && r->seq_count <= REQUEST_SEQS_MAX);
    CHECK(p->top_count <= SAMPLE_TOP_MAX && p->prompt_top_count <= SAMPLE_TOP_MAX);
    CHECK(p->stop_count <= REQUEST_STOPS_MAX && p->stop_id_count <= REQUEST_STOP_IDS_MAX);
    CHECK(p->bias_count <= REQUEST_BIAS_MAX);
    CHECK(p->top_count == 0 || r->seq[0].out_top);
    CHECK(!r->basis == !r->seq[0].out_key);
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        const struct request_prompt *q = &r->prompt[i];
        CHECK(q->n_ids > 0 && (uint64_t)q->n_ids + p->max_tokens <= e->opt.context_max);
        CHECK(p->prompt_top_count < 0 || q->logprob);
        for (uint32_t t = 0; RS_CHECKING && t < q->n_ids; t++)
            VERIFY((uint32_t)q->ids[t] < e->model->config.n_vocab);
    }
    for (uint32_t i = 0; i < p->bias_count; i++)
        VERIFY((uint32_t)p->bias[i].id < e->model->config.n_vocab);
    for (uint32_t i = 0; i < p->stop_id_count; i++)
        VERIFY((uint32_t)p->stop_id[i] < e->model->config.n_vocab);
}

/* What only the engine knows: how many tokens its pool holds, how many adapters a batch takes. */
static enum status check_room(const struct engine *e, const struct request *r, struct errtext *err)
{
    uint64_t pool = (uint64_t)e->kv.page_count * KV_PAGE_TOK;
    if (r->comp.n > e->opt.adapters_per_batch_max)
        return err_param(err, STATUS_INVALID, "model",
                         "the request mixes %u adapters, this server takes %u in a batch",
                         r->comp.n, e->opt.adapters_per_batch_max);
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        uint32_t n_ids = r->prompt[i].n_ids, max_tokens = r->params.max_tokens;
        if ((uint64_t)n_ids + max_tokens > pool)
            return err_param(err, STATUS_INVALID, "max_tokens",
                             "prompt has %u tokens and max_tokens is %u, the KV pool holds %llu "
                             "tokens",
                             n_ids, max_tokens, (unsigned long long)pool);
    }
    return STATUS_OK;
}

enum status engine_submit(struct engine *e, struct request *r, struct errtext *err)
{
    check_contract(e, r);
    enum status st = check_room(e, r, err);
    if (st)
        return st;
    if (atomic_load_explicit(&e->draining, memory_order_acquire))
        return err_set(err, STATUS_CANCELLED, "the server is draining and takes no new requests");
    uint32_t before = atomic_fetch_add_explicit(&e->waiting, 1, memory_order_relaxed);
    st = before < e->opt.waiting_max ? mailbox_push(&e->mail, r) : STATUS_FULL;
    if (st == STATUS_OK)
        return STATUS_OK;
    atomic_fetch_sub_explicit(&e->waiting, 1, memory_order_relaxed);
    if (st == STATUS_CANCELLED)
        return err_set(err, st, "the server is draining and takes no new requests");
    return err_set(err, st, "%u requests are waiting already, try again later", e->opt.waiting_max);
}

enum status engine_submit_score(struct engine *e, struct score_job *j)
{
    CHECK(j->n_prompt > 0 && j->n_prompt <= j->n_ids);
    CHECK(j->n_ids <= e->opt.context_max);
    CHECK(pages_for(j->n_ids) <= e->kv.page_count);
    CHECK(j->comp.n <= e->opt.adapters_per_batch_max);
    CHECK(j->on_done);
    CHECK(!j->key || j->basis);
    if (e->opt.score_rows_max == 0)
        return STATUS_UNSUPPORTED;
    if (atomic_load_explicit(&e->draining, memory_order_acquire))
        return STATUS_CANCELLED;
    atomic_fetch_add_explicit(&e->score_backlog, j->n_ids, memory_order_relaxed);
    uint32_t n_ids = j->n_ids;
    enum status st = mailbox_push(&e->score_mail, j);
    if (st == STATUS_OK)
        mailbox_kick(&e->mail);
    else
        atomic_fetch_sub_explicit(&e->score_backlog, n_ids, memory_order_relaxed);
    return st;
}

enum status engine_basis_create(struct engine *e, struct engine_basis **out, const uint16_t *w,
                                const float *bias, struct errtext *err)
{
    return basis_create(e->basis_pool, out, w, bias, err);
}

/* ---- unload: a message with an answer ---- */

static void unload_finish(struct unload *u, enum status st)
{
    struct engine *e = u->engine;
    pthread_mutex_lock(&e->unload_lock);
    u->status = st;
    u->state = u->abandoned ? UNLOAD_FREE : UNLOAD_DONE;
    pthread_cond_broadcast(&e->unload_done);
    pthread_mutex_unlock(&e->unload_lock);
}

static void unload_freed(void *arg)
{
    struct unload *u = arg;
    CHECK(u->engine->unloads_open > 0);
    u->engine->unloads_open--;
    unload_finish(u, STATUS_OK);
}

void unload_receive(struct engine *e)
{
    struct unload *u;
    while ((u = mailbox_pop(&e->unload_mail))) {
        e->unloads_open++;
        enum status st = store_unload(e->store, u->id, unload_freed, u);
        if (st == STATUS_OK)
            continue;
        e->unloads_open--;
        unload_finish(u, st);
    }
}

static struct unload *unload_take(struct engine *e, const uint8_t id[32])
{
    struct unload *u = NULL;
    pthread_mutex_lock(&e->unload_lock);
    for (uint32_t i = 0; i < UNLOADS_MAX && !u; i++) {
        if (e->unload[i].state == UNLOAD_FREE)
            u = &e->unload[i];
    }
    if (u) {
        *u = (struct unload){.engine = e, .state = UNLOAD_ASKED};
        memcpy(u->id, id, 32);
    }
    pthread_mutex_unlock(&e->unload_lock);
    return u;
}

enum status engine_unload_adapter(struct engine *e, const uint8_t id[32], uint32_t wait_ms,
                                  struct errtext *err)
{
    enum status st;
    struct timespec until = thread_deadline(wait_ms);
    struct unload *u = unload_take(e, id);
    if (!u)
        return err_set(err, STATUS_FULL, "%d unloads are under way already", UNLOADS_MAX);
    st = mailbox_push(&e->unload_mail, u);
    CHECK(st != STATUS_FULL);
    if (st) {
        u->abandoned = true;
        unload_finish(u, st);
        return err_set(err, st, "the server is draining");
    }
    mailbox_kick(&e->mail);
    pthread_mutex_lock(&e->unload_lock);
    while (u->state != UNLOAD_DONE) {
        if (pthread_cond_timedwait(&e->unload_done, &e->unload_lock, &until) == ETIMEDOUT)
            break;
    }
    st = u->state == UNLOAD_DONE ? u->status : STATUS_TIMEOUT;
    u->abandoned = true;
    if (u->state == UNLOAD_DONE)
        u->state = UNLOAD_FREE;
    pthread_mutex_unlock(&e->unload_lock);
    if (st == STATUS_TIMEOUT)
        return err_set(err, st,
                       "the adapter is still in use after %u ms; it is freed when its "
                       "running requests end",
                       wait_ms);
    return st ? err_set(err, st, "the adapter cannot be unloaded: %s", status_name(st)) : STATUS_OK;
}

void engine_wake(struct engine *e)
{
    mailbox_kick(&e->mail);
}

/* ---- stop ---- */

void engine_stop(struct engine *e, uint32_t deadline_ms)
{
    uint64_t deadline = e->opt.clock_ns() / 1000000 + deadline_ms;
    if (atomic_load_explicit(&e->stopping, memory_order_acquire)) {
        /* Somebody stops it already and waits: this one can only be less patient. */
        if (deadline < atomic_load_explicit(&e->drain_deadline_ms, memory_order_relaxed))
            atomic_store_explicit(&e->drain_deadline_ms, deadline, memory_order_relaxed);
        mailbox_kick(&e->mail);
        return;
    }
    if (!e->started)
        return;
    atomic_store_explicit(&e->drain_deadline_ms, deadline, memory_order_relaxed);
    atomic_store_explicit(&e->stopping, true, memory_order_release);
    atomic_store_explicit(&e->draining, true, memory_order_release);
    mailbox_kick(&e->mail);
    CHECK(pthread_join(e->thread, NULL) == 0);
    e->started = false;
}
