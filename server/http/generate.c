/* From body to engine and back. The order of promises: the recorder first reserves room for the
 * record, then the engine takes the request; if the engine refuses, the reservation is given back.
 * The generation is attached to its exchange before it is submitted, because from then on the
 * engine may wake it. */
#include "server/http/generate.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/http/auth.h"
#include "server/http/handlers.h"
#include "server/http/reply.h"
#include "server/http/request_id.h"
#include "server/http/state.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define RETRY_QUEUE_MS 1000
#define RETRY_DRAIN_MS 5000

/* request.wake. Between tokens a reply that is not streamed has nothing to do. */
static void on_wake(void *arg)
{
    struct exchange *x = arg;
    struct generation *g = atomic_load_explicit(&x->gen, memory_order_acquire);
    bool done = atomic_load_explicit(&g->req->done, memory_order_acquire);
    if (!done) {
        uint64_t now_ns = clock_mono_ns();
        if (g->last_wake_ns)
            metrics_observe(&g->server->metrics, METRICS_ITL,
                            (double)(now_ns - g->last_wake_ns) * 1e-9);
        g->last_wake_ns = now_ns;
        if (!g->spec.stream)
            return;
    }
    metrics_add(&g->server->metrics.wakes, 1);
    if (atomic_load_explicit(&x->flows, memory_order_relaxed))
        watch_wake_stream(x->watch, x);
    else
        watch_wake(x->watch, x);
}

struct parse_env generation_env(const struct exchange *x, bool chat)
{
    const struct http_server *s = x->server;
    return (struct parse_env){.model = s->deps.model,
                              .catalog = s->deps.catalog,
                              .model_name = s->opt.model_name,
                              .chat_digest = s->chat_digest,
                              .n_max = s->opt.n_max,
                              .context_max = s->context_max,
                              .key = x->key,
                              .roles = x->roles,
                              .chat = chat};
}

void generation_fill(const struct exchange *x, struct request *r)
{
    request_id_make(x, r->id);
    hex_encode(r->id_hex, r->id, sizeof(r->id));
    r->params.fair_key = x->fair_key;
    if (x->key)
        memcpy(r->payer, x->key->account, sizeof(r->payer));
    r->arrive_ns = x->arrive_ns;
    r->arrive_wall_ms = x->arrive_wall_ms;
    r->on_finish = recorder_on_finish;
    r->on_finish_arg = x->server->deps.recorder;
}

/* The Idempotency-Key rule of SPEC 7. False: the exchange has its answer. */
static bool claim_key(struct generation *g)
{
    struct exchange *x = g->x;
    uint8_t first[32];
    char hex[65];
    struct errtext err = ERRTEXT_INIT;
    if (!x->idempotency_key[0])
        return true;
    struct request *r = g->req;
    struct idempotency_ask ask = {.key = r->once_key,
                                  .body = r->once_body,
                                  .now_ms = idempotency_now_ms(),
                                  .request_id = r->id};
    idempotency_digest_key(r->once_key, auth_account(x->key), x->fair_key, x->idempotency_key);
    idempotency_digest_body(r->once_body, x->body.data, x->body.len);
    enum status st = idempotency_put(&g->server->idem, &ask, first);
    if (st == STATUS_OK) {
        g->keyed = r->is_once = true;
        return true;
    }
    metrics_add(&g->server->metrics.idempotent_hits, 1);
    if (st == STATUS_FULL) {
        (void)err_set(&err, st,
                      "too many Idempotency-Keys of the last 24 hours are remembered; "
                      "retry later, or without the header");
        exchange_fail_as(x, 429, &err);
        return false;
    }
    hex_encode(hex, first, sizeof(first));
    if (st == STATUS_EXISTS)
        (void)err_set(&err, st,
                      "this Idempotency-Key was already used for request %s within the "
                      "last 24 hours; GET /v1/receipts/%s has its receipt",
                      hex, hex);
    else
        (void)err_set(&err, st,
                      "this Idempotency-Key was already used with another body, for "
                      "request %s, within the last 24 hours",
                      hex);
    err.code = "idempotency_key_used";
    exchange_fail_as(x, st == STATUS_EXISTS ? 409 : 422, &err);
    x->retry = EXCHANGE_RETRY_NO;
    return false;
}

static void drop_key(struct generation *g)
{
    if (g->keyed)
        idempotency_drop(&g->server->idem, g->req->once_key, g->req->id);
    g->keyed = false;
}

bool generation_submit(struct exchange *x, struct request *r, bool *submitted)
{
    struct http_server *s = x->server;
    struct errtext err = ERRTEXT_INIT;
    enum status st = recorder_admit(s->deps.recorder, r, &err);
    if (st) {
        metrics_add(&s->metrics.refused_full, 1);
        x->retry_after_ms = RETRY_QUEUE_MS;
        exchange_fail_as(x, st == STATUS_FULL ? 503 : reply_code(st), &err);
        return false;
    }
    *submitted = true;
    atomic_fetch_add(&s->active, 1);
    st = engine_submit(s->deps.engine, r, &err);
    if (!st)
        return true;
    *submitted = false;
    atomic_fetch_sub(&s->active, 1);
    recorder_unadmit(s->deps.recorder, r);
    x->retry_after_ms = st == STATUS_CANCELLED ? RETRY_DRAIN_MS : RETRY_QUEUE_MS;
    if (st == STATUS_FULL)
        metrics_add(&s->metrics.refused_full, 1);
    exchange_fail(x, st, &err);
    return false;
}

static bool choices_create(struct generation *g)
{
    g->choice = mem_try_array(g->req->seq_count, sizeof(*g->choice));
    if (!g->choice)
        return false;
    g->choice_count = g->req->seq_count;
    for (uint32_t i = 0; i < g->req->seq_count; i++) {
        textout_init(&g->choice[i].text, &g->rules);
        buf_init(&g->choice[i].ready, TEXTOUT_BYTES_MAX);
        buf_init(&g->choice[i].offsets, TEXTOUT_BYTES_MAX);
    }
    return true;
}

static void start(struct exchange *x, bool chat)
{
    struct http_server *s = x->server;
    struct errtext err = ERRTEXT_INIT;
    struct parse_env env = generation_env(x, chat);
    struct generation *g = mem_try_alloc(sizeof(*g));
    enum status st = STATUS_NO_MEMORY;
    if (g) {
        g->x = x;
        g->server = s;
        g->created_unix = (int64_t)(x->arrive_wall_ms / 1000);
        st = request_parse(&env, x->body.data, x->body.len, &g->spec, &g->req, &err);
    }
    if (!st) {
        generation_fill(x, g->req);
        g->req->wake = on_wake;
        g->req->wake_arg = x;
        g->rules = (struct textout_rules){.model = s->deps.model,
                                          .params = &g->req->params,
                                          .include_stop = g->spec.include_stop};
        st = choices_create(g) ? STATUS_OK : STATUS_NO_MEMORY;
    }
    if (st) {
        if (!err.text[0])
            (void)err_set(&err, st, "there is no memory for this request now");
        exchange_fail(x, st, &err);
        if (g)
            generation_free(g);
        return;
    }
    if (!claim_key(g)) {
        generation_free(g);
        return;
    }
    atomic_store_explicit(&x->gen, g, memory_order_release);
    atomic_store(&g->last_send_ns, clock_mono_ns());
    if (!generation_submit(x, g->req, &g->submitted))
        drop_key(g);
    else
        exchange_drop_body(x);
}

void handle_chat(struct exchange *x)
{
    start(x, true);
}

void handle_completions(struct exchange *x)
{
    start(x, false);
}

static bool any_output(const struct request *r)
{
    for (uint32_t i = 0; i < r->seq_count; i++) {
        if (atomic_load_explicit(&r->seq[i].n_out, memory_order_acquire) > 0)
            return true;
    }
    return false;
}

static bool any_finish(const struct request *r, uint32_t finish)
{
    for (uint32_t i = 0; i < r->seq_count; i++) {
        if (atomic_load_explicit(&r->seq[i].finish, memory_order_acquire) == finish)
            return true;
    }
    return false;
}

/* The request is done without a good answer. */
static void fail_done(struct generation *g)
{
    struct request *r = g->req;
    struct exchange *x = g->x;
    struct errtext err = r->error;
    x->retry_after_ms = RETRY_QUEUE_MS;
    if (atomic_load(&g->drained)) {
        err_clear(&err);
        x->retry_after_ms = RETRY_DRAIN_MS;
        (void)err_set(&err, STATUS_CANCELLED, "the server is shutting down; retry");
        exchange_fail_as(x, 503, &err);
    } else if (r->status) {
        /* NOT_FOUND: files of an admitted adapter are gone, which is no fault of the client's. */
        bool ours = r->status == STATUS_FULL || r->status == STATUS_NOT_FOUND;
        exchange_fail_as(x, ours ? 503 : reply_code(r->status), &err);
    } else if (any_finish(r, FINISH_CANCELLED)) {
        (void)err_set(&err, STATUS_CANCELLED, "the request was cancelled");
        exchange_fail_as(x, 503, &err);
    } else {
        log_error("http", "request %s was answered but its record is not durable", r->id_hex);
        err_clear(&err);
        (void)err_set(&err, STATUS_IO, "the answer's record could not be made durable; retry");
        exchange_fail_as(x, 503, &err);
    }
}

static void count_done(struct generation *g)
{
    if (g->counted)
        return;
    g->counted = true;
    metrics_request(&g->server->metrics, g->req);
    if (!g->req->receipt.recorded)
        drop_key(g);
}

enum generation_next generation_poll(struct generation *g)
{
    struct request *r = g->req;
    struct exchange *x = g->x;
    bool done = atomic_load_explicit(&r->done, memory_order_acquire);
    if (!done) {
        bool begin = g->spec.stream && (any_output(r) || atomic_load(&x->ping));
        return begin ? GENERATION_STREAM : GENERATION_WAIT;
    }
    bool failed =
        any_finish(r, FINISH_ERROR) || any_finish(r, FINISH_CANCELLED) || !r->receipt.recorded;
    count_done(g);
    if (failed && !(g->spec.stream && any_output(r))) {
        fail_done(g);
        return GENERATION_REPLY;
    }
    if (g->spec.stream)
        return GENERATION_STREAM;
    buf_clear(&x->out);
    reply_put_completion(&x->out, g);
    if (x->out.failed) {
        struct errtext err = ERRTEXT_INIT;
        (void)err_set(&err, STATUS_TOO_LARGE,
                      "the answer has more than %u bytes; ask for fewer "
                      "choices or logprobs",
                      REPLY_BYTES_MAX);
        exchange_fail_as(x, 500, &err);
        return GENERATION_REPLY;
    }
    exchange_json(x, 200);
    return GENERATION_REPLY;
}

enum generation_next generation_stream(struct generation *g)
{
    struct exchange *x = g->x;
    if (g->ended)
        return GENERATION_REPLY;
    if (atomic_exchange(&x->ping, false))
        buf_puts(&x->out, ": ping\n\n");
    if (sse_fill(g, &x->out)) {
        g->ended = true;
        count_done(g);
    }
    if (x->out.len > 0)
        atomic_store_explicit(&g->last_send_ns, clock_mono_ns(), memory_order_relaxed);
    return g->ended ? GENERATION_REPLY : GENERATION_STREAM;
}

void generation_cancel(struct generation *g)
{
    if (!atomic_load(&g->x->gone))
        atomic_store(&g->drained, true);
    atomic_store(&g->req->cancel, true);
}

bool generation_is_over(const struct generation *g)
{
    return !g->submitted || atomic_load_explicit(&g->req->refs, memory_order_acquire) == 1;
}

bool generation_is_idle_since(const struct generation *g, uint64_t ns)
{
    return g->spec.stream && atomic_load_explicit(&g->last_send_ns, memory_order_relaxed) < ns;
}

void generation_free(struct generation *g)
{
    if (g->req && g->submitted) {
        CHECK(generation_is_over(g));
        atomic_fetch_sub(&g->server->active, 1);
        request_release(g->req);
    } else if (g->req) {
        request_discard(g->req);
    }
    for (uint32_t i = 0; g->choice && i < g->choice_count; i++) {
        textout_fini(&g->choice[i].text);
        buf_fini(&g->choice[i].ready);
        buf_fini(&g->choice[i].offsets);
    }
    gen_spec_fini(&g->spec);
    mem_free(g->choice);
    mem_free(g);
}
