/* The exchange itself: made, shared, ended, and the two ways a handler leaves a reply. What can
 * reach an exchange holds a reference (the connection, a queued wake, a worker), so that whichever
 * of them is last frees it and nobody has to know who that is. */
#include "server/http/exchange.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/http/keyring.h"
#include "server/http/reply.h"
#include "server/http/state.h"

#include <string.h>

struct exchange *exchange_create(struct http_server *s, void *transport, const char *path)
{
    struct exchange *x = mem_try_alloc(sizeof(*x));
    if (!x)
        return NULL;
    x->server = s;
    x->transport = transport;
    x->watch = s->watch[atomic_fetch_add(&s->watch_next, 1) % s->watch_count];
    x->watch_slot = UINT32_MAX;
    x->fd = -1;
    x->path = mem_try_strndup(path, strlen(path));
    pthread_mutex_init(&x->lock, NULL);
    atomic_init(&x->refs, 1);
    buf_init(&x->out, REPLY_BYTES_MAX);
    buf_init(&x->frame, REPLY_BYTES_MAX);
    if (x->path)
        return x;
    exchange_unref(x);
    return NULL;
}

void exchange_ref(struct exchange *x)
{
    atomic_fetch_add_explicit(&x->refs, 1, memory_order_relaxed);
}

void exchange_unref(struct exchange *x)
{
    unsigned before = atomic_fetch_sub_explicit(&x->refs, 1, memory_order_acq_rel);
    CHECK(before > 0);
    if (before > 1)
        return;
    if (x->gen)
        generation_free(x->gen);
    uploads_detach(x);
    keyring_unref(x->keys);
    json_decref(x->query_metadata);
    exchange_drop_body(x);
    buf_fini(&x->out);
    buf_fini(&x->frame);
    pthread_mutex_destroy(&x->lock);
    mem_free(x->path);
    mem_free(x);
}

void exchange_drop_body(struct exchange *x)
{
    buf_fini(&x->body);
    atomic_fetch_sub(&x->server->bodies_bytes, x->body_charged);
    x->body_charged = 0;
}

void exchange_keep_body(struct exchange *x, const char *data, size_t len)
{
    struct http_server *s = x->server;
    struct errtext err = ERRTEXT_INIT;
    buf_put(&x->body, data, len);
    size_t grown = x->body.cap - x->body_charged;
    uint64_t all = atomic_fetch_add(&s->bodies_bytes, grown) + grown;
    x->body_charged += grown;
    if (x->body.failed) {
        (void)err_set(&err, STATUS_NO_MEMORY, "there is no memory for this body now");
    } else if (grown > 0 && all > s->opt.bodies_bytes_max) {
        metrics_add(&s->metrics.bodies_refused, 1);
        (void)err_set(
            &err, STATUS_FULL,
            "the bodies of all requests together need more than %llu bytes of memory, the "
            "maximum (bodies_bytes_max); retry",
            (unsigned long long)s->opt.bodies_bytes_max);
    } else {
        return;
    }
    exchange_drop_body(x);
    exchange_fail_as(x, 503, &err);
}

void exchange_fail_as(struct exchange *x, int code, const struct errtext *err)
{
    buf_clear(&x->out);
    reply_put_error(&x->out, code, err);
    x->content_type = "application/json";
    x->code = code;
    if (code == 429 || code == 503) {
        x->retry = EXCHANGE_RETRY_YES;
        x->retry_after_ms = x->retry_after_ms ? x->retry_after_ms : 1000;
    } else if (code == 409 || code == 422 || code == 413 || code == 415) {
        x->retry = EXCHANGE_RETRY_NO;
    }
}

void exchange_fail(struct exchange *x, enum status st, const struct errtext *err)
{
    struct errtext coded = *err;
    CHECK(st != STATUS_OK);
    if (st == STATUS_UNSUPPORTED && !coded.code)
        coded.code = "unsupported_parameter";
    /* a full disk passes, what a budget has no room for does not */
    bool disk = coded.code && strcmp(coded.code, FILE_DISK_FULL) == 0;
    exchange_fail_as(x, reply_code(disk ? STATUS_IO : st), &coded);
}

void exchange_json(struct exchange *x, int code)
{
    x->content_type = "application/json";
    x->code = code;
}

void exchange_fill(struct exchange *x)
{
    if (x->gen)
        (void)generation_stream(x->gen);
    else
        feed_fill(x);
}

bool exchange_has_ended(const struct exchange *x)
{
    return x->gen ? x->gen->ended : x->feed->ended;
}
