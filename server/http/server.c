/* Start, drain and stop. The order of stopping matters: refuse new connections; let the workers end
 * what they hold; cancel every generation and give streams a moment to say so; then no exchange may
 * park any more (`stopping`), everything parked is resumed, and only then the library is stopped.
 * What the engine's chain still holds is waited for last, because it may still wake. */
#include "server/http/server.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/http/fine_tuning.h"
#include "server/http/generate.h"
#include "server/http/keyring.h"
#include "server/http/listen.h"
#include "server/http/route.h"
#include "server/http/state.h"
#include "server/http/tinker.h"
#include "server/record/keylog.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define STOP_GRACE_MS   2000
#define STOP_ORPHANS_MS 30000

bool http_work_push(struct http_server *s, struct exchange *x)
{
    struct http_lane *lane = &s->lane[x->route->blocking ? HTTP_LANE_DISK : HTTP_LANE_TEXT];
    exchange_ref(x);
    if (mailbox_push(&lane->box, x) == STATUS_OK)
        return true;
    exchange_unref(x);
    return false;
}

static void *work_main(void *arg)
{
    struct http_lane *lane = arg;
    struct http_server *s = lane->server;
    for (;;) {
        struct exchange *x = mailbox_pop(&lane->box);
        if (x) {
            x->route->handle(x);
            atomic_store_explicit(&x->working, false, memory_order_release);
            watch_wake(x->watch, x);
            exchange_unref(x);
            continue;
        }
        if (atomic_load(&s->work_closed))
            return NULL;
        mailbox_wait(&lane->box, 1000);
    }
}

uint32_t http_live_count(struct http_server *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->watch_count; i++)
        n += watch_live_count(s->watch[i]);
    return n;
}

static void cancel_all(struct http_server *s)
{
    for (uint32_t i = 0; i < s->watch_count; i++)
        watch_cancel_all(s->watch[i]);
}

void http_tick(struct http_server *s, uint64_t now_ns)
{
    connections_expire(&s->connections, now_ns);
    if (!atomic_load(&s->draining))
        return;
    uint64_t since_ms = (now_ns - atomic_load(&s->drain_ns)) / 1000000;
    if (since_ms >= s->opt.lame_duck_s * 1000ull && !atomic_exchange(&s->refusing, true)) {
        log_info("http", "draining: new requests are refused, %u are running",
                 atomic_load(&s->active));
        listener_quiesce(s->listener);
    }
    if (since_ms >= s->opt.drain_s * 1000ull && !atomic_exchange(&s->drain_over, true)) {
        log_info("http", "drain deadline: %u requests are ended", atomic_load(&s->active));
        cancel_all(s);
    }
}

void http_begin_drain(struct http_server *s)
{
    if (atomic_exchange(&s->draining, true))
        return;
    atomic_store(&s->drain_ns, clock_mono_ns());
    log_info("http",
             "draining: not ready any more; new requests are refused in %u s, running ones "
             "end within %u s",
             s->opt.lame_duck_s, s->opt.drain_s);
}

static void init_state(struct http_server *s)
{
    const struct http_options *o = &s->opt;
    s->opt.bodies_bytes_max = MAX(o->bodies_bytes_max, 2 * o->body_bytes_max);
    s->clock_ns = o->clock_ns ? o->clock_ns : clock_mono_ns;
    s->context_max = o->context_max ? o->context_max : s->deps.model->config.pos_max;
    s->start_wall_ms = clock_wall_ms();
    page_put_policy(s->page_policy, o->settle_url);
    if (s->deps.model->chat_text)
        crypto_generichash(s->chat_digest, sizeof(s->chat_digest),
                           (const uint8_t *)s->deps.model->chat_text,
                           strlen(s->deps.model->chat_text), NULL, 0);
}

static enum status check_options(const struct http_options *o, struct errtext *err)
{
    CHECK(o->thread_count > 0 && o->connections_max > 0 && o->n_max <= REQUEST_SEQS_MAX);
    if (!o->model_name[0])
        return err_param(err, STATUS_INVALID, "model_name", "the base model needs a name");
    if (o->key_count > HTTP_KEYS_MAX)
        return err_param(err, STATUS_INVALID, "keys",
                         "%u API keys are configured; at most %d are "
                         "accepted",
                         o->key_count, HTTP_KEYS_MAX);
    return STATUS_OK;
}

static void restore_key(void *arg, const struct keylog_entry *e, uint64_t age_ms)
{
    struct http_server *s = arg;
    uint8_t first[32];
    const struct idempotency_ask ask = {.key = e->key,
                                        .body = e->body,
                                        .now_ms = idempotency_now_ms() - age_ms,
                                        .request_id = e->request_id};
    if (idempotency_put(&s->idem, &ask, first) == STATUS_FULL)
        log_warn("http", "more Idempotency-Keys than are remembered: one is not protected");
}

static void parts_init(struct http_server *s)
{
    struct connections_options opt = {.connections_max = s->opt.connections_max,
                                      .per_address_max = s->opt.connections_per_ip_max,
                                      .idle_s = s->opt.idle_timeout_s,
                                      .head_s = s->opt.header_timeout_s,
                                      .body_s = s->opt.body_timeout_s};
    connections_init(&s->connections, &opt);
    CHECK(pthread_mutex_init(&s->keys_lock, NULL) == 0);
    s->keys = keyring_create(s->opt.key, s->opt.key_count);
    audit_init(&s->audit);
    idempotency_init(&s->idem, IDEMPOTENCY_COUNT_MAX);
    recorder_visit_keys(s->deps.recorder, restore_key, s);
    uploads_init(&s->uploads);
    feeds_init(&s->feeds);
    for (uint32_t i = 0; i < HTTP_LANE_COUNT; i++) {
        s->lane[i].server = s;
        mailbox_init(&s->lane[i].box, HTTP_WORK_QUEUE_MAX);
    }
}

static void parts_fini(struct http_server *s)
{
    for (uint32_t i = 0; i < HTTP_LANE_COUNT; i++)
        mailbox_fini(&s->lane[i].box);
    connections_fini(&s->connections);
    uploads_fini(&s->uploads);
    feeds_fini(&s->feeds);
    idempotency_fini(&s->idem);
    audit_fini(&s->audit);
    keyring_unref(s->keys);
    pthread_mutex_destroy(&s->keys_lock);
    mem_free(s);
}

static void lane_stop(struct http_lane *lane)
{
    mailbox_close(&lane->box);
    for (uint32_t i = 0; i < lane->thread_count; i++)
        pthread_join(lane->thread[i], NULL);
}

static void work_stop(struct http_server *s)
{
    atomic_store(&s->work_closed, true);
    for (uint32_t i = 0; i < HTTP_LANE_COUNT; i++)
        lane_stop(&s->lane[i]);
}

static enum status work_start(struct http_server *s, struct errtext *err)
{
    static const char *const name[HTTP_LANE_COUNT] = {
        [HTTP_LANE_TEXT] = "rs-http-text", [HTTP_LANE_DISK] = "rs-http-disk"};
    for (uint32_t i = 0; i < HTTP_LANE_COUNT * HTTP_WORK_THREADS; i++) {
        struct http_lane *lane = &s->lane[i / HTTP_WORK_THREADS];
        enum status st = thread_start(&lane->thread[lane->thread_count],
                                      name[i / HTTP_WORK_THREADS], work_main, lane, err);
        if (st)
            return st;
        lane->thread_count++;
    }
    return STATUS_OK;
}

static enum status watches_start(struct http_server *s, struct errtext *err)
{
    uint32_t count = MIN(MAX(s->opt.thread_count, 1), HTTP_WATCHES_MAX);
    enum status st = STATUS_OK;
    while (!st && s->watch_count < count) {
        struct watch_options opt = {.slots_max = s->opt.connections_max + CONNECTIONS_RESERVED,
                                    .resume = listener_resume,
                                    .keeps_time = s->watch_count == 0,
                                    .server = s};
        st = watch_create(&s->watch[s->watch_count], &opt, err);
        s->watch_count += !st;
    }
    return st;
}

static void watches_stop(struct http_server *s)
{
    while (s->watch_count > 0)
        watch_destroy(s->watch[--s->watch_count]);
}

enum status http_start(struct http_server **out, const struct http_options *opt,
                       const struct http_deps *deps, int listen_fd, struct errtext *err)
{
    enum status st = check_options(opt, err);
    if (st)
        return st;
    if (sodium_init() < 0)
        return err_set(err, STATUS_IO, "libsodium did not start");
    struct http_server *s = mem_alloc(sizeof(*s));
    s->opt = *opt;
    s->deps = *deps;
    init_state(s);
    parts_init(s);
    st = watches_start(s, err);
    if (!st)
        st = work_start(s, err);
    if (!st)
        st = tinker_start(&s->tinker, s, err);
    if (!st)
        st = listener_start(&s->listener, s, listen_fd, err);
    if (st) {
        work_stop(s);
        CHECK(tinker_stop(s->tinker)); /* nobody has asked for anything yet */
        tinker_free(s->tinker);
        watches_stop(s);
        parts_fini(s);
        return st;
    }
    tune_listen(s, true);
    *out = s;
    return STATUS_OK;
}

uint16_t http_port(const struct http_server *s)
{
    return listener_port(s->listener);
}

void http_stop(struct http_server *s)
{
    atomic_store(&s->draining, true);
    atomic_store(&s->drain_ns, clock_mono_ns());
    atomic_store(&s->refusing, true);
    atomic_store(&s->drain_over, true);
    tune_listen(s, false);
    listener_quiesce(s->listener);
    work_stop(s);
    bool ended = tinker_stop(s->tinker);
    cancel_all(s);
    for (uint32_t ms = 0; ms < STOP_GRACE_MS && atomic_load(&s->active) > 0; ms += 5)
        clock_sleep_ms(5);
    atomic_store(&s->stopping, true);
    cancel_all(s);
    listener_stop(s->listener);
    uint32_t left = !ended;
    for (uint32_t i = 0; i < s->watch_count; i++)
        left += watch_wait_orphans(s->watch[i], STOP_ORPHANS_MS);
    if (left > 0) {
        /* Their chains may still wake them: memory that is freed now would be written later. */
        log_error("http", "%u requests never came back from the engine; their memory is kept",
                  left);
        return;
    }
    tinker_free(s->tinker);
    watches_stop(s);
    parts_fini(s);
}
