/* Sessions and futures, and the thread that ends them. Whoever calls in holds a session while it is
 * inside, so that models and futures it has found stay where they are; a session is freed by the
 * thread alone. */
#include "server/http/tinker.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/http/auth.h"
#include "server/http/handlers.h"
#include "server/http/reply.h"
#include "server/http/tinker_parts.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define TICK_MS 250u
#define STOP_MS 30000u

/* ---- sessions ---- */

static bool is_in(const struct tinker_session *s, const char *id)
{
    size_t len = strlen(s->id);
    return strncmp(s->id, id, len) == 0 && (id[len] == '\0' || id[len] == ':');
}

struct tinker_session *tinker_find_session(struct tinker *t, uint64_t fair_key, const char *id)
{
    for (struct tinker_session *s = t->session; s; s = s->next) {
        if (s->fair_key == fair_key && !s->closed && is_in(s, id))
            return s;
    }
    return NULL;
}

struct tinker_session *tinker_hold(struct exchange *x, const char *id)
{
    struct tinker *t = x->server->tinker;
    pthread_mutex_lock(&t->lock);
    struct tinker_session *s = tinker_find_session(t, x->fair_key, id);
    if (s) {
        s->holds++;
        s->seen_ns = t->server->clock_ns();
    }
    pthread_mutex_unlock(&t->lock);
    if (!s)
        tinker_gone(x, "session of this key that has", id);
    return s;
}

void tinker_release(struct tinker *t, struct tinker_session *s)
{
    pthread_mutex_lock(&t->lock);
    CHECK(s->holds > 0);
    s->holds--;
    pthread_mutex_unlock(&t->lock);
}

bool tinker_has_model(struct tinker *t, struct tinker_session *s, const char *id,
                      struct tinker_model **out)
{
    pthread_mutex_lock(&t->lock);
    *out = s->model;
    while (*out && strcmp((*out)->id, id) != 0)
        *out = (*out)->next;
    pthread_mutex_unlock(&t->lock);
    return *out != NULL;
}

struct tinker_model *tinker_find_model(struct exchange *x, struct tinker_session *s, const char *id)
{
    struct tinker_model *m;
    if (!tinker_has_model(x->server->tinker, s, id, &m))
        tinker_gone(x, "model", id);
    return m;
}

enum status tinker_session_new(struct exchange *x, char id[TINKER_SESSION_ID], struct errtext *err)
{
    struct tinker *t = x->server->tinker;
    uint8_t random[16];
    uint32_t own = 0;
    struct tinker_session *s = mem_alloc(sizeof(*s));
    randombytes_buf(random, sizeof(random));
    memcpy(s->id, "ses-", 4);
    hex_encode(s->id + 4, random, sizeof(random));
    snprintf(s->owner, sizeof(s->owner), "%s", auth_key_name(x->key));
    s->tinker = t;
    s->fair_key = x->fair_key;
    s->seen_ns = t->server->clock_ns();
    snprintf(id, TINKER_SESSION_ID, "%s", s->id);
    pthread_mutex_lock(&t->lock);
    for (struct tinker_session *o = t->session; o; o = o->next)
        own += o->fair_key == s->fair_key && !o->closed;
    bool room = !t->stopping && own < TINKER_SESSIONS_KEY && t->sessions < TINKER_SESSIONS_MAX;
    if (room) {
        s->next = t->session;
        t->session = s;
        t->sessions++;
    }
    pthread_mutex_unlock(&t->lock);
    if (room)
        return STATUS_OK;
    mem_free(s);
    return err_set(err, STATUS_FULL,
                   "this key has %u sessions of at most %u; finish one (ServiceClient.close), or "
                   "wait %u s after its client has gone",
                   own, TINKER_SESSIONS_KEY, TINKER_SESSION_IDLE_S);
}

bool tinker_add_sampler(struct tinker *t, struct tinker_session *s, struct tinker_sampler *a)
{
    pthread_mutex_lock(&t->lock);
    bool fits = s->samplers < TINKER_SAMPLERS_MAX;
    for (const struct tinker_sampler *o = s->sampler; o && fits; o = o->next)
        fits = strcmp(o->id, a->id) != 0;
    if (fits) {
        a->next = s->sampler;
        s->sampler = a;
        s->samplers++;
    }
    pthread_mutex_unlock(&t->lock);
    return fits;
}

bool tinker_get_sampler(struct tinker *t, struct tinker_session *s, const char *id,
                        struct tinker_sampler *out)
{
    pthread_mutex_lock(&t->lock);
    const struct tinker_sampler *a = s->sampler;
    while (a && strcmp(a->id, id) != 0)
        a = a->next;
    if (a)
        *out = *a;
    pthread_mutex_unlock(&t->lock);
    return a != NULL;
}

/* Stop what runs of it; nobody finds it any more. The lock is held. */
static void close_session(struct tinker_session *s)
{
    s->closed = true;
    for (struct tinker_future *f = s->future; f; f = f->next) {
        if (f->req && f->stage == TINKER_RUNNING)
            atomic_store(&f->req->cancel, true);
    }
}

void tinker_session_close(struct tinker *t, struct tinker_session *s)
{
    pthread_mutex_lock(&t->lock);
    close_session(s);
    pthread_mutex_unlock(&t->lock);
}

static void free_session(struct tinker *t, struct tinker_session *s)
{
    for (struct tinker_future *f; (f = s->future);) {
        pthread_mutex_lock(&t->lock);
        tinker_unlink(s, f);
        pthread_mutex_unlock(&t->lock);
        tinker_free_future(f);
    }
    while (s->model) {
        struct tinker_model *m = s->model;
        s->model = m->next;
        tinker_forget_samplers(t, m);
        tinker_rows_fini(&m->rows);
        mem_free(m);
    }
    while (s->sampler) {
        struct tinker_sampler *a = s->sampler;
        s->sampler = a->next;
        mem_free(a);
    }
    log_info("tinker", "session %s has ended", s->id);
    mem_free(s);
}

/* ---- the thread ---- */

static bool can_go(const struct tinker_session *s)
{
    if (!s->closed || s->holds || s->running)
        return false;
    for (const struct tinker_future *f = s->future; f; f = f->next) {
        if (f->waiter || tinker_chain_has(f))
            return false;
    }
    return true;
}

/* A session that has ended, out of the list; or an answer that was sent long ago; else false. */
static bool sweep_one(struct tinker *t, uint64_t now_ns)
{
    struct tinker_session **link = &t->session, *gone = NULL;
    struct tinker_future *old = NULL;
    uint64_t kept_ns = TINKER_KEEP_MS * TINKER_NS_PER_MS;
    pthread_mutex_lock(&t->lock);
    while (*link && !gone && !old) {
        struct tinker_session *s = *link;
        if (!s->closed && now_ns > s->seen_ns + TINKER_SESSION_IDLE_S * 1000 * TINKER_NS_PER_MS)
            close_session(s);
        if (can_go(s)) {
            gone = s;
            *link = s->next;
            t->sessions--;
        } else {
            old = now_ns > kept_ns ? tinker_take_sent(s, now_ns - kept_ns) : NULL;
            link = &s->next;
        }
    }
    pthread_mutex_unlock(&t->lock);
    if (gone)
        free_session(t, gone);
    if (old)
        tinker_free_future(old);
    return gone || old;
}

/* Learners of closed sessions; one at a time, since the factory is not called under the lock. */
static bool close_learner(struct tinker *t)
{
    uint64_t learner = 0;
    pthread_mutex_lock(&t->lock);
    for (struct tinker_session *s = t->session; s && !learner; s = s->next) {
        for (struct tinker_model *m = s->model; s->closed && m && !learner; m = m->next) {
            learner = m->learner;
            m->learner = 0;
        }
    }
    pthread_mutex_unlock(&t->lock);
    if (learner)
        factory_learner_close(t->factory, learner);
    return learner != 0;
}

static void sweep(struct tinker *t)
{
    uint64_t now_ns = t->server->clock_ns();
    tinker_answer_overdue(t, now_ns, false);
    while (close_learner(t))
        ;
    while (sweep_one(t, now_ns))
        ;
}

static void *tinker_main(void *arg)
{
    struct tinker *t = arg;
    while (!atomic_load(&t->ending)) {
        struct tinker_future *f = mailbox_pop(&t->box);
        if (f)
            tinker_finish(f);
        else
            mailbox_wait(&t->box, TICK_MS);
        if (clock_mono_ns() - t->swept_ns < TICK_MS * TINKER_NS_PER_MS)
            continue;
        sweep(t);
        t->swept_ns = clock_mono_ns();
    }
    return NULL;
}

enum status tinker_start(struct tinker **out, struct http_server *s, struct errtext *err)
{
    struct tinker *t = mem_alloc(sizeof(*t));
    t->server = s;
    t->factory = s->deps.factory;
    CHECK(pthread_mutex_init(&t->lock, NULL) == 0);
    mailbox_init(&t->box, TINKER_ALL_FUTURES_MAX);
    enum status st = thread_start(&t->thread, "rs-tinker", tinker_main, t, err);
    if (st)
        tinker_free(t);
    else
        *out = t;
    return st;
}

static bool is_empty(struct tinker *t)
{
    pthread_mutex_lock(&t->lock);
    bool empty = !t->session;
    pthread_mutex_unlock(&t->lock);
    return empty;
}

bool tinker_stop(struct tinker *t)
{
    if (!t)
        return true;
    pthread_mutex_lock(&t->lock);
    t->stopping = true;
    for (struct tinker_session *s = t->session; s; s = s->next)
        close_session(s);
    pthread_mutex_unlock(&t->lock);
    for (uint32_t ms = 0; ms < STOP_MS && !is_empty(t); ms += 5)
        clock_sleep_ms(5);
    bool empty = is_empty(t);
    tinker_answer_overdue(t, 0, true);
    atomic_store(&t->ending, true);
    mailbox_kick(&t->box);
    pthread_join(t->thread, NULL);
    return empty;
}

void tinker_free(struct tinker *t)
{
    if (!t)
        return;
    mailbox_fini(&t->box);
    pthread_mutex_destroy(&t->lock);
    mem_free(t);
}

void tinker_get_stats(struct tinker *t, struct tinker_stats *out)
{
    *out = (struct tinker_stats){.datums = atomic_load(&t->datums),
                                 .samples = atomic_load(&t->samples_made)};
    pthread_mutex_lock(&t->lock);
    for (struct tinker_session *s = t->session; s; s = s->next) {
        out->sessions++;
        out->futures += s->futures;
        for (struct tinker_model *m = s->model; m; m = m->next)
            out->models++;
    }
    pthread_mutex_unlock(&t->lock);
}
