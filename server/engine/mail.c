/* What other threads may call: submit, score, unload, stop. Each is a message in a bounded mailbox;
 * an unload also waits for its answer. A request that could never run is refused here, on the
 * caller's thread, with the numbers. `waiting` counts requests without a running sequence wherever
 * they are, so that the mailbox and the jobs behind it have one maximum. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/thread.h"
#include "server/engine/steps.h"

#include <errno.h>
#include <string.h>
#include <time.h>

static enum status check_prompt(const struct engine *e, const struct request_prompt *p,
                                struct errtext *err)
{
    uint32_t n_vocab = e->model->config.n_vocab;
    if (p->n_ids == 0)
        return err_param(err, STATUS_INVALID, "prompt", "the prompt has no tokens");
    for (uint32_t i = 0; i < p->n_ids; i++) {
        if (p->ids[i] < 0 || (uint32_t)p->ids[i] >= n_vocab)
            return err_param(err, STATUS_INVALID, "prompt",
                             "prompt token %u has id %d, the vocabulary has ids 0 to %u", i,
                             p->ids[i], n_vocab - 1);
    }
    return STATUS_OK;
}

static enum status check_size(const struct engine *e, const struct request_prompt *p,
                              uint32_t max_tokens, struct errtext *err)
{
    uint64_t total = (uint64_t)p->n_ids + max_tokens;
    uint64_t pool = (uint64_t)e->kv.page_count * KV_PAGE_TOK;
    if (p->n_ids > e->opt.context_max || (max_tokens > 0 && p->n_ids == e->opt.context_max))
        return err_param(err, STATUS_INVALID, "prompt", "prompt has %u tokens, the context is %u",
                         p->n_ids, e->opt.context_max);
    if (total > e->opt.context_max)
        return err_param(err, STATUS_INVALID, "max_tokens",
                         "prompt has %u tokens and max_tokens is %u, the context is %u", p->n_ids,
                         max_tokens, e->opt.context_max);
    if (total > pool)
        return err_param(err, STATUS_INVALID, "max_tokens",
                         "prompt has %u tokens and max_tokens is %u, the KV pool holds %llu tokens",
                         p->n_ids, max_tokens, (unsigned long long)pool);
    return STATUS_OK;
}

static enum status check_biases(const struct engine *e, const struct request_params *p,
                                struct errtext *err)
{
    uint32_t n_vocab = e->model->config.n_vocab;
    for (uint32_t i = 0; i < p->bias_count; i++) {
        if (p->bias[i].id < 0 || (uint32_t)p->bias[i].id >= n_vocab)
            return err_param(err, STATUS_INVALID, "logit_bias",
                             "token id %d is outside the vocabulary of %u", p->bias[i].id, n_vocab);
    }
    for (uint32_t i = 0; i < p->stop_id_count; i++) {
        if (p->stop_id[i] < 0 || (uint32_t)p->stop_id[i] >= n_vocab)
            return err_param(err, STATUS_INVALID, "stop_token_ids",
                             "token id %d is outside the vocabulary of %u", p->stop_id[i], n_vocab);
    }
    return STATUS_OK;
}

static enum status check_params(const struct engine *e, const struct request *r,
                                struct errtext *err)
{
    const struct request_params *p = &r->params;
    if (p->top_count > SAMPLE_TOP_MAX || p->prompt_top_count > SAMPLE_TOP_MAX)
        return err_param(err, STATUS_INVALID, "logprobs", "at most %d alternatives are given",
                         SAMPLE_TOP_MAX);
    if (p->stop_count > REQUEST_STOPS_MAX || p->stop_id_count > REQUEST_STOP_IDS_MAX)
        return err_param(err, STATUS_INVALID, "stop", "at most %d strings and %d ids are taken",
                         REQUEST_STOPS_MAX, REQUEST_STOP_IDS_MAX);
    if (p->bias_count > REQUEST_BIAS_MAX)
        return err_param(err, STATUS_INVALID, "logit_bias", "%u entries, at most %d are taken",
                         p->bias_count, REQUEST_BIAS_MAX);
    if (r->comp.n > e->opt.adapters_per_batch_max)
        return err_param(err, STATUS_INVALID, "model",
                         "the request mixes %u adapters, this server takes %u in a batch",
                         r->comp.n, e->opt.adapters_per_batch_max);
    return check_biases(e, p, err);
}

static enum status check_request(const struct engine *e, const struct request *r,
                                 struct errtext *err)
{
    CHECK(r->prompt_count > 0 && r->prompt_count <= REQUEST_PROMPTS_MAX);
    CHECK(r->seq_count == r->prompt_count * r->params.n);
    CHECK(r->seq_count <= REQUEST_SEQS_MAX);
    CHECK(r->params.top_count == 0 || r->seq[0].out_top);
    enum status st = check_params(e, r, err);
    for (uint32_t i = 0; i < r->prompt_count && !st; i++) {
        CHECK(r->params.prompt_top_count < 0 || r->prompt[i].logprob);
        st = check_prompt(e, &r->prompt[i], err);
        if (!st)
            st = check_size(e, &r->prompt[i], r->params.max_tokens, err);
    }
    return st;
}

enum status engine_submit(struct engine *e, struct request *r, struct errtext *err)
{
    enum status st = check_request(e, r, err);
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
