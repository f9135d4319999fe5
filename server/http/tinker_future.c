/* Futures: what a call began, and its answer until it is asked for. Whoever asks too early is
 * marked as an exchange that a worker has (`working`), so the transport leaves it alone until the
 * thread rs-tinker has put its answer into it. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/http/handlers.h"
#include "server/http/reply.h"
#include "server/http/tinker_parts.h"

#include <stdio.h>
#include <string.h>

#define ANSWER_BYTES_MAX ((size_t)64 << 20)
#define QUESTION_BYTES   16384u
#define GONE             410

/* ---- answers ---- */

void tinker_body(struct exchange *x, json_t **root, struct json_reader *in, struct errtext *err)
{
    enum status st = json_doc_parse(root, "the body", x->body.data, x->body.len, 0, err);
    *in = (struct json_reader){.obj = *root, .st = st, .err = err};
}

void tinker_fail(struct exchange *x, enum status st, const struct errtext *err)
{
    /* The SDK repeats a 409 for minutes; what is in the way here does not pass. */
    if (st == STATUS_CONFLICT || st == STATUS_EXISTS)
        exchange_fail_as(x, 400, err);
    else
        exchange_fail(x, st, err);
}

void tinker_gone(struct exchange *x, const char *what, const char *id)
{
    struct errtext err = ERRTEXT_INIT;
    (void)err_set(&err, STATUS_NOT_FOUND, "there is no %s %.160s here, or not any more", what, id);
    exchange_fail_as(x, GONE, &err);
}

void tinker_put_failure(struct tinker_future *f, enum status st, const struct errtext *err)
{
    bool ours = st == STATUS_IO || st == STATUS_NO_MEMORY || st == STATUS_CANCELLED ||
                st == STATUS_FULL || st == STATUS_BUSY;
    const char *text = err->text[0] ? err->text : status_name(st);
    buf_clear(&f->out);
    f->is_proto = false;
    buf_puts(&f->out, "{\"error\":");
    buf_put_json_string(&f->out, text, strlen(text));
    buf_printf(&f->out, ",\"category\":\"%s\"}", ours ? "server" : "user");
}

static void put_id(struct exchange *x, const struct tinker_future *f)
{
    buf_printf(&x->out, "{\"request_id\":\"%s\"", f->id);
    for (uint32_t i = 0; i < f->samples; i++)
        buf_printf(&x->out, "%s\"%s:%u\"", i ? "," : ",\"sample_sequence_ids\":[", f->id, i);
    buf_puts(&x->out, f->samples ? "]}" : "}");
    exchange_json(x, 200);
}

/* An answer of a future that is done; its session's lock is held. */
static void put_answer(struct exchange *x, struct tinker_future *f)
{
    f->sent_ns = f->t->server->clock_ns();
    buf_put(&x->out, f->out.data, f->out.len);
    x->content_type = f->is_proto ? "application/x-protobuf" : "application/json";
    x->code = 200;
}

static void put_try_again(struct exchange *x, const char *id)
{
    buf_printf(&x->out, "{\"type\":\"try_again\",\"request_id\":\"%s\",\"queue_state\":\"active\"}",
               id);
    exchange_json(x, 408);
}

/* x's answer is in it: let the transport have it. */
static void answer_waiter(struct exchange *x)
{
    atomic_store_explicit(&x->working, false, memory_order_release);
    watch_wake(x->watch, x);
    exchange_unref(x);
}

/* ---- life ---- */

bool tinker_chain_has(const struct tinker_future *f)
{
    return f->req && f->stage != TINKER_OPEN &&
           atomic_load_explicit(&f->req->refs, memory_order_acquire) > 1;
}

void tinker_free_future(struct tinker_future *f)
{
    tinker_batch_fini(&f->batch);
    tinker_rows_fini(&f->rows);
    mem_free(f->seq);
    mem_free(f->sampler);
    mem_free(f->training);
    mem_free(f->files);
    if (f->req && f->stage == TINKER_OPEN)
        request_discard(f->req);
    else if (f->req)
        request_release(f->req);
    buf_fini(&f->out);
    mem_free(f);
}

void tinker_unlink(struct tinker_session *s, struct tinker_future *f)
{
    struct tinker_future **link = &s->future;
    while (*link != f)
        link = &(*link)->next;
    *link = f->next;
    s->futures--;
    f->t->futures--;
    f->t->bytes -= f->bytes;
}

void tinker_charge(struct tinker_future *f, uint64_t bytes)
{
    pthread_mutex_lock(&f->t->lock);
    f->t->bytes += bytes - f->bytes;
    f->bytes = bytes;
    pthread_mutex_unlock(&f->t->lock);
}

/* ---- futures ---- */

static struct tinker_future *find_future(struct tinker_session *s, const char *id)
{
    struct tinker_future *f = s->future;
    while (f && strcmp(f->id, id) != 0)
        f = f->next;
    return f;
}

/* Room for one more: answers that were sent are kept only while there is. The lock is held. */
struct tinker_future *tinker_take_sent(struct tinker_session *s, uint64_t before_ns)
{
    struct tinker_future *oldest = NULL;
    for (struct tinker_future *f = s->future; f; f = f->next) { /* the newest first */
        if (f->stage == TINKER_DONE && f->sent_ns && f->sent_ns < before_ns && !tinker_chain_has(f))
            oldest = f;
    }
    if (oldest)
        tinker_unlink(s, oldest);
    return oldest;
}

static void refuse_full(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    x->retry_after_ms = TINKER_RETRY_MS;
    (void)err_set(&err, STATUS_FULL,
                  "too many requests are under way or were never asked for (%u of a session, %u or "
                  "%llu MiB of all); wait for some of them",
                  TINKER_FUTURES_MAX, TINKER_ALL_FUTURES_MAX,
                  (unsigned long long)(TINKER_BYTES_MAX >> 20));
    exchange_fail(x, STATUS_FULL, &err);
}

struct tinker_future *tinker_open(struct exchange *x, struct tinker_session *s,
                                  enum tinker_kind kind, const char *of, int64_t seq)
{
    struct tinker *t = x->server->tinker;
    struct tinker_future *old = NULL, *f = mem_try_alloc(sizeof(*f));
    if (!f) {
        struct errtext err = ERRTEXT_INIT;
        (void)err_set(&err, STATUS_NO_MEMORY, "there is no memory for this request now");
        exchange_fail(x, STATUS_NO_MEMORY, &err);
        return NULL;
    }
    *f = (struct tinker_future){.kind = kind, .t = t, .session = s};
    buf_init(&f->out, ANSWER_BYTES_MAX);
    snprintf(f->id, sizeof(f->id), "%s:%lld", of, (long long)seq);
    pthread_mutex_lock(&t->lock);
    struct tinker_future *same = find_future(s, f->id);
    if (same)
        put_id(x, same);
    if (!same && (s->futures == TINKER_FUTURES_MAX || t->bytes >= TINKER_BYTES_MAX))
        old = tinker_take_sent(s, UINT64_MAX);
    bool room = s->futures < TINKER_FUTURES_MAX && t->futures < TINKER_ALL_FUTURES_MAX &&
                t->bytes < TINKER_BYTES_MAX;
    if (!same && room) {
        f->next = s->future;
        s->future = f;
        s->futures++;
        t->futures++;
    }
    pthread_mutex_unlock(&t->lock);
    if (old)
        tinker_free_future(old);
    if (!same && room)
        return f;
    if (!same)
        refuse_full(x);
    tinker_free_future(f);
    return NULL;
}

void tinker_drop(struct tinker_future *f)
{
    pthread_mutex_lock(&f->t->lock);
    tinker_unlink(f->session, f);
    pthread_mutex_unlock(&f->t->lock);
    tinker_free_future(f);
}

void tinker_post(struct tinker_future *f)
{
    if (!atomic_exchange(&f->posted, true))
        CHECK(mailbox_push(&f->t->box, f) == STATUS_OK);
}

void tinker_begun(struct exchange *x, struct tinker_future *f)
{
    put_id(x, f);
    pthread_mutex_lock(&f->t->lock);
    f->stage = TINKER_RUNNING;
    f->session->running++;
    pthread_mutex_unlock(&f->t->lock);
}

void tinker_done_at_once(struct exchange *x, struct tinker_future *f)
{
    tinker_begun(x, f);
    tinker_post(f);
}

void tinker_not_begun(struct tinker_future *f)
{
    pthread_mutex_lock(&f->t->lock);
    f->stage = TINKER_OPEN;
    f->session->running--;
    pthread_mutex_unlock(&f->t->lock);
    tinker_drop(f);
}

static void on_work_done(struct factory_work *w, void *arg)
{
    (void)w;
    tinker_post(arg);
}

void tinker_begin_work(struct exchange *x, struct tinker_future *f)
{
    struct errtext err = ERRTEXT_INIT;
    struct tinker *t = f->t;
    f->work.learner = f->model->learner;
    f->work.on_done = on_work_done;
    f->work.arg = f;
    tinker_begun(x, f); /* it may be over, though not gone, when factory_work returns */
    enum status st = factory_work(t->factory, &f->work, &err);
    if (!st)
        return;
    tinker_not_begun(f);
    buf_clear(&x->out);
    x->retry_after_ms = st == STATUS_FULL ? TINKER_RETRY_MS : 0;
    tinker_fail(x, st, &err);
}

void tinker_call(struct exchange *x, enum tinker_kind kind, tinker_prepare *prepare)
{
    struct errtext err = ERRTEXT_INIT;
    struct json_reader in;
    struct tinker_future *f = NULL;
    json_t *root = NULL;
    if (tinker_is_off(x))
        return;
    tinker_body(x, &root, &in, &err);
    const char *id = json_need_string(&in, "model_id");
    int64_t seq = json_need_int(&in, "seq_id", (struct json_range){0, INT32_MAX});
    enum status st = in.st;
    struct tinker_session *s = st ? NULL : tinker_hold(x, id);
    struct tinker_model *m = s ? tinker_find_model(x, s, id) : NULL;
    if (st)
        tinker_fail(x, st, &err);
    if (m)
        f = tinker_open(x, s, kind, m->id, seq);
    if (f) {
        f->model = m;
        st = prepare(x, f, &in);
    }
    if (f && st) {
        tinker_drop(f);
        tinker_fail(x, st, &err);
    } else if (f && f->at_once) {
        tinker_done_at_once(x, f);
    } else if (f) {
        tinker_begin_work(x, f);
    }
    if (s)
        tinker_release(x->server->tinker, s);
    json_decref(root);
}

void handle_tinker_retrieve(struct exchange *x)
{
    struct tinker *t = x->server->tinker;
    struct errtext err = ERRTEXT_INIT;
    struct json_reader in;
    struct exchange *before = NULL;
    json_t *root = NULL;
    if (x->body.len > QUESTION_BYTES)
        (void)err_set(&err, STATUS_TOO_LARGE, "the body has %zu bytes, expected {request_id}",
                      x->body.len);
    else
        tinker_body(x, &root, &in, &err);
    const char *id = root ? json_need_string(&in, "request_id") : "";
    if (!root || in.st) {
        exchange_fail_as(x, 400, &err);
        json_decref(root);
        return;
    }
    pthread_mutex_lock(&t->lock);
    struct tinker_session *s = tinker_find_session(t, x->fair_key, id);
    struct tinker_future *f = s ? find_future(s, id) : NULL;
    if (s)
        s->seen_ns = t->server->clock_ns();
    if (f && f->stage == TINKER_DONE) {
        put_answer(x, f);
    } else if (f && t->stopping) {
        put_try_again(x, id);
    } else if (f) {
        before = f->waiter;
        f->waiter = x;
        f->wait_until_ns = t->server->clock_ns() + TINKER_WAIT_MS * TINKER_NS_PER_MS;
        exchange_ref(x);
        atomic_store(&x->working, true);
    }
    pthread_mutex_unlock(&t->lock);
    if (before) { /* who asks twice at a time hears of it once */
        put_try_again(before, id);
        answer_waiter(before);
    }
    if (!f)
        tinker_gone(x, "future", id);
    json_decref(root);
}

/* ---- answers, on the thread ---- */

void tinker_finish(struct tinker_future *f)
{
    struct tinker *t = f->t;
    if (f->kind == TINKER_SAMPLE)
        tinker_finish_sample(f);
    else if (f->kind == TINKER_PASS || f->kind == TINKER_OPTIM)
        tinker_finish_train(f);
    else
        tinker_finish_weights(f);
    if (f->out.failed) {
        struct errtext err = ERRTEXT_INIT;
        buf_fini(&f->out);
        (void)err_set(&err, STATUS_TOO_LARGE, "the answer has more than %zu bytes; ask for less",
                      ANSWER_BYTES_MAX);
        tinker_put_failure(f, STATUS_TOO_LARGE, &err);
    }
    tinker_batch_fini(&f->batch);
    tinker_charge(f, f->out.len);
    pthread_mutex_lock(&t->lock);
    f->stage = TINKER_DONE;
    f->session->running--;
    struct exchange *x = f->waiter;
    f->waiter = NULL;
    if (x)
        put_answer(x, f);
    pthread_mutex_unlock(&t->lock);
    if (x)
        answer_waiter(x);
}

/* A waiter of a session whose time is over, or NULL. all: any waiter. The lock is held. */
static struct exchange *overdue(struct tinker_session *s, uint64_t now_ns, bool all)
{
    for (struct tinker_future *f = s->future; f; f = f->next) {
        struct exchange *x = f->waiter;
        if (!x || (!all && now_ns < f->wait_until_ns && !atomic_load(&x->gone)))
            continue;
        f->waiter = NULL;
        put_try_again(x, f->id);
        return x;
    }
    return NULL;
}

void tinker_answer_overdue(struct tinker *t, uint64_t now_ns, bool all)
{
    struct exchange *x;
    do {
        x = NULL;
        pthread_mutex_lock(&t->lock);
        for (struct tinker_session *s = t->session; s && !x; s = s->next)
            x = overdue(s, now_ns, all || s->closed);
        pthread_mutex_unlock(&t->lock);
        if (x)
            answer_waiter(x);
    } while (x);
}
