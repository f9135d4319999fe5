/* A table of what was asked for, searched one after another, and a thread that makes the first one
 * that waits. What takes long is done without the lock. */
#include "server/influence/indexes.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/influence/index_make.h"

#include <stdio.h>
#include <string.h>

#define RETRY_NS   30000000000ull
#define SOON_NS    5000000000ull    /* WAITING after it failed */
#define PASSING_NS 3600000000000ull /* for so long */

struct index_slot {
    uint8_t adapter_id[32], document_root[32];
    bool any_root;
    enum index_state state;
    struct index *index;
    uint64_t used_ns; /* 0: no answer asked for it, it is made ahead */
    uint64_t settled_ns;
    bool again;          /* what it is made of has changed since it was begun */
    uint64_t failing_ns; /* since when; 0: it does not */
    char why[INDEX_WHY_BYTES];
};

struct indexes {
    struct index_maker maker;
    pthread_t thread;
    bool running;
    _Atomic uint64_t epoch;
    pthread_mutex_t lock; /* below */
    pthread_cond_t asked;
    struct index_slot slot[INDEXES_MAX];
    uint32_t slot_count;
    char dir[PATH_MAX - 128];
};

const char *index_state_name(enum index_state s)
{
    static const char *const name[] = {[INDEX_NONE] = "none",
                                       [INDEX_WAITING] = "building",
                                       [INDEX_BUILDING] = "building",
                                       [INDEX_READY] = "ready",
                                       [INDEX_FAILED] = "failed"};
    return name[s];
}

struct index *index_ref(struct index *i)
{
    if (i)
        atomic_fetch_add_explicit(&i->refs, 1, memory_order_relaxed);
    return i;
}

void index_release(struct index *i)
{
    if (!i || atomic_fetch_sub_explicit(&i->refs, 1, memory_order_acq_rel) != 1)
        return;
    engine_basis_release(i->basis);
    events_release(i->events);
    spans_release(i->spans);
    datanet_release(i->datanet);
    mem_free(i->prior_ppb);
    mem_free(i);
}

/* ---- the table; the lock is held ---- */

static bool is_settled(const struct index_slot *s)
{
    return s->state != INDEX_WAITING && s->state != INDEX_BUILDING;
}

static bool is_wish(const struct index_slot *s)
{
    return !s->used_ns && s->state == INDEX_WAITING;
}

static struct index_slot *find_slot(struct indexes *x, const uint8_t adapter_id[32],
                                    const uint8_t *document_root)
{
    for (uint32_t i = 0; i < x->slot_count; i++) {
        struct index_slot *s = &x->slot[i];
        if (memcmp(s->adapter_id, adapter_id, 32) == 0 && s->any_root == !document_root &&
            (!document_root || memcmp(s->document_root, document_root, 32) == 0))
            return s;
    }
    return NULL;
}

/* The one that was asked for so, or else one of that version which was found by its manifest, or
 * may come to be. */
static struct index_slot *find_made(struct indexes *x, const uint8_t adapter_id[32],
                                    const uint8_t *document_root)
{
    struct index_slot *s = find_slot(x, adapter_id, document_root);
    if (s || !document_root)
        return s;
    s = find_slot(x, adapter_id, NULL);
    if (!s || !is_settled(s))
        return s;
    bool same = s->state == INDEX_READY &&
                memcmp(events_head(s->index->events)->document_root, document_root, 32) == 0;
    return same ? s : NULL;
}

/* A free one, or that which was asked for longest ago, ahead only one that never was; NULL: there
 * is none. */
static struct index_slot *take_slot(struct indexes *x, bool ahead)
{
    struct index_slot *oldest = NULL;
    if (x->slot_count < INDEXES_MAX)
        return &x->slot[x->slot_count++];
    for (uint32_t i = 0; i < x->slot_count; i++) {
        struct index_slot *s = &x->slot[i];
        bool may_go = is_settled(s) ? !ahead || !s->used_ns : !ahead && is_wish(s);
        if (may_go && (!oldest || s->used_ns < oldest->used_ns))
            oldest = s;
    }
    if (oldest)
        index_release(oldest->index);
    return oldest;
}

static struct index_slot *ask(struct indexes *x, const uint8_t adapter_id[32],
                              const uint8_t *document_root, bool ahead)
{
    struct index_slot *s = take_slot(x, ahead);
    if (!s)
        return NULL;
    *s = (struct index_slot){.state = INDEX_WAITING, .any_root = !document_root};
    memcpy(s->adapter_id, adapter_id, 32);
    if (document_root)
        memcpy(s->document_root, document_root, 32);
    pthread_cond_signal(&x->asked);
    return s;
}

void indexes_find(struct indexes *x, const uint8_t adapter_id[32], const uint8_t *document_root,
                  struct index_found *out)
{
    uint64_t now_ns = clock_mono_ns();
    *out = (struct index_found){.state = INDEX_FAILED};
    pthread_mutex_lock(&x->lock);
    struct index_slot *s = find_made(x, adapter_id, document_root);
    if (!s)
        s = ask(x, adapter_id, document_root, false);
    else if ((s->state == INDEX_NONE || s->state == INDEX_FAILED) &&
             now_ns - s->settled_ns > RETRY_NS) {
        s->state = INDEX_WAITING;
        pthread_cond_signal(&x->asked);
    }
    if (s) {
        s->used_ns = now_ns;
        out->state = s->state;
        out->index = s->state == INDEX_READY ? index_ref(s->index) : NULL;
        memcpy(out->why, s->why, sizeof(out->why));
    } else {
        snprintf(out->why, sizeof(out->why), "%d indexes are being made, the maximum", INDEXES_MAX);
    }
    pthread_mutex_unlock(&x->lock);
}

static void expect_slot(struct indexes *x, const uint8_t adapter_id[32])
{
    struct index_slot *s = find_slot(x, adapter_id, NULL);
    if (s && is_settled(s)) { /* again: of the same manifest the file is there */
        index_release(s->index);
        s->index = NULL;
        s->state = INDEX_WAITING;
        pthread_cond_signal(&x->asked);
    } else if (s) {
        s->again = s->state == INDEX_BUILDING;
    } else {
        uint32_t wishes = 0;
        for (uint32_t i = 0; i < x->slot_count; i++)
            wishes += is_wish(&x->slot[i]);
        if (wishes < x->maker.opt.ahead_max)
            (void)ask(x, adapter_id, NULL, true);
    }
}

void indexes_expect(struct indexes *x, const uint8_t adapter_id[32])
{
    struct adapter_entry *e = catalog_find_id(x->maker.deps.catalog, adapter_id);
    if (e && index_has_source(&x->maker, e)) {
        pthread_mutex_lock(&x->lock);
        expect_slot(x, adapter_id);
        pthread_mutex_unlock(&x->lock);
    }
    catalog_release(e);
}

struct index *indexes_by_root(struct indexes *x, const uint8_t root[32])
{
    struct index *found = NULL;
    pthread_mutex_lock(&x->lock);
    for (uint32_t i = 0; i < x->slot_count && !found; i++) {
        struct index *index = x->slot[i].index;
        if (index && memcmp(events_root(index->events), root, 32) == 0)
            found = index_ref(index);
    }
    pthread_mutex_unlock(&x->lock);
    return found;
}

uint64_t indexes_epoch(const struct indexes *x)
{
    return atomic_load_explicit(&x->epoch, memory_order_acquire);
}

void indexes_get_stats(struct indexes *x, struct indexes_stats *out)
{
    *out = (struct indexes_stats){.built = atomic_load(&x->maker.built),
                                  .rebuilt = atomic_load(&x->maker.rebuilt),
                                  .bytes = atomic_load(&x->maker.bytes)};
    pthread_mutex_lock(&x->lock);
    for (uint32_t i = 0; i < x->slot_count; i++) {
        out->ready += x->slot[i].state == INDEX_READY;
        bool waits = !is_settled(&x->slot[i]) && !x->slot[i].failing_ns;
        out->failed += x->slot[i].failing_ns != 0;
        out->waiting += waits;
    }
    pthread_mutex_unlock(&x->lock);
}

/* ---- the thread ---- */

/* The engine's bases are bounded: the one that was used longest ago gives way. false:
 * none is left. */
static bool drop_oldest(struct indexes *x)
{
    struct index_slot *oldest = NULL;
    pthread_mutex_lock(&x->lock);
    for (uint32_t i = 0; i < x->slot_count; i++) {
        struct index_slot *s = &x->slot[i];
        if (s->state == INDEX_READY && (!oldest || s->used_ns < oldest->used_ns))
            oldest = s;
    }
    struct index *index = oldest ? oldest->index : NULL;
    if (oldest)
        *oldest = x->slot[--x->slot_count];
    pthread_mutex_unlock(&x->lock);
    index_release(index);
    return index != NULL;
}

static enum index_state state_after(enum status st, uint64_t failing_ns)
{
    if (st == STATUS_OK || st == STATUS_NOT_FOUND)
        return st == STATUS_OK ? INDEX_READY : INDEX_NONE;
    bool passing = st == STATUS_IO || st == STATUS_NO_MEMORY;
    bool again = st == STATUS_CANCELLED || (passing && failing_ns < PASSING_NS);
    return again ? INDEX_WAITING : INDEX_FAILED;
}

static void tell_failure(const struct index_slot *s, bool was_failing)
{
    char hex[65];
    hex_encode(hex, s->adapter_id, 32);
    if (s->state == INDEX_FAILED)
        log_error("index", "adapter %.16s: %s; its answers pay by the registered split", hex,
                  s->why);
    else if (!was_failing)
        log_error("index", "adapter %.16s: %s; tried again, its answers wait to be attributed", hex,
                  s->why);
}

/* What was made ahead and is not there is forgotten: the first answer asks. false: an answer has,
 * or it is there. The lock is held. */
static bool left_to_an_answer(struct indexes *x, struct index_slot *s, enum status st,
                              const struct errtext *why)
{
    char hex[65];
    if (s->used_ns || !st)
        return false;
    hex_encode(hex, s->adapter_id, 32);
    if (st != STATUS_CANCELLED)
        log_warn("index", "adapter %.16s: not indexed before an answer needs it: %s", hex,
                 why->text);
    *s = x->slot[--x->slot_count];
    return true;
}

static void settle_slot(struct indexes *x, struct index_slot *s, enum status st,
                        const struct errtext *why)
{
    uint64_t now_ns = clock_mono_ns();
    bool failed = st && st != STATUS_NOT_FOUND && st != STATUS_CANCELLED;
    bool was_failing = s->failing_ns != 0;
    if (left_to_an_answer(x, s, st, why))
        return;
    s->settled_ns = now_ns;
    s->failing_ns = !failed ? 0 : was_failing ? s->failing_ns : now_ns;
    s->state = state_after(st, failed ? now_ns - s->failing_ns : 0);
    snprintf(s->why, sizeof(s->why), "%s", st ? why->text : "");
    if (failed)
        tell_failure(s, was_failing);
}

static void settle(struct indexes *x, const struct index_slot *made, enum status st,
                   const struct errtext *why)
{
    pthread_mutex_lock(&x->lock);
    struct index_slot *s =
        find_slot(x, made->adapter_id, made->any_root ? NULL : made->document_root);
    CHECK(s && s->state == INDEX_BUILDING);
    if (s->again) {
        index_release(made->index);
        s->again = false;
        s->state = INDEX_WAITING;
    } else {
        s->index = made->index;
        settle_slot(x, s, st, why);
    }
    pthread_mutex_unlock(&x->lock);
    atomic_fetch_add_explicit(&x->epoch, 1, memory_order_release);
}

static bool is_ahead(struct indexes *x, const struct index_slot *making)
{
    pthread_mutex_lock(&x->lock);
    const struct index_slot *s =
        find_slot(x, making->adapter_id, making->any_root ? NULL : making->document_root);
    bool ahead = s && !s->used_ns;
    pthread_mutex_unlock(&x->lock);
    return ahead;
}

static void make(struct indexes *x, struct index_slot *s)
{
    struct errtext err = ERRTEXT_INIT;
    struct index_want want = {.adapter_id = s->adapter_id,
                              .document_root = s->any_root ? NULL : s->document_root};
    enum status st;
    bool was_ahead;
    do {
        err_clear(&err);
        was_ahead = want.ahead = is_ahead(x, s);
        st = index_make(&s->index, &x->maker, &want, &err);
    } while (st == STATUS_FULL && !is_ahead(x, s) && (was_ahead || drop_oldest(x)));
    settle(x, s, st, &err);
}

/* The first that may be begun, those that answers asked for before the others; NULL: none. */
static struct index_slot *choose(struct indexes *x)
{
    struct index_slot *wish = NULL;
    uint64_t now_ns = clock_mono_ns();
    for (uint32_t i = 0; i < x->slot_count; i++) {
        struct index_slot *s = &x->slot[i];
        bool ripe =
            s->state == INDEX_WAITING && (!s->failing_ns || now_ns - s->settled_ns >= SOON_NS);
        if (ripe && s->used_ns)
            return s;
        if (ripe && !wish)
            wish = s;
    }
    return wish;
}

/* false: stop. */
static bool next(struct indexes *x, struct index_slot *out)
{
    struct index_slot *s = NULL;
    pthread_mutex_lock(&x->lock);
    while (!s && !atomic_load(&x->maker.stop)) {
        struct timespec until = thread_deadline(1000);
        s = choose(x);
        if (!s)
            pthread_cond_timedwait(&x->asked, &x->lock, &until);
    }
    if (s) {
        s->state = INDEX_BUILDING;
        *out = *s;
    }
    pthread_mutex_unlock(&x->lock);
    return s != NULL;
}

/* What was made before a restart is opened again: who asks about an old answer sees its texts, and
 * the first new one need not wait. */
static bool ask_known(void *arg, struct adapter_entry *e)
{
    struct indexes *x = arg;
    pthread_mutex_lock(&x->lock);
    bool room = x->slot_count < INDEXES_MAX;
    if (room && index_has_file(&x->maker, e->id) && !find_slot(x, e->id, NULL))
        (void)ask(x, e->id, NULL, true);
    pthread_mutex_unlock(&x->lock);
    return room;
}

struct newest { /* of the others */
    struct indexes *x;
    struct {
        uint8_t id[32];
        int64_t created_unix;
    } item[INDEXES_MAX]; /* the newest first, of equal ones by name */
    uint32_t n;
};

static bool note_newest(void *arg, struct adapter_entry *e)
{
    struct newest *w = arg;
    uint32_t at = w->n;
    while (at > 0 && w->item[at - 1].created_unix < e->created_unix)
        at--;
    if (at == w->x->maker.opt.ahead_max || index_has_file(&w->x->maker, e->id) ||
        !index_has_source(&w->x->maker, e))
        return !atomic_load(&w->x->maker.stop);
    w->n = MIN(w->n + 1, w->x->maker.opt.ahead_max);
    memmove(&w->item[at + 1], &w->item[at], (w->n - at - 1) * sizeof(w->item[0]));
    memcpy(w->item[at].id, e->id, 32);
    w->item[at].created_unix = e->created_unix;
    return true;
}

static void look_ahead(struct indexes *x)
{
    struct newest w = {.x = x};
    catalog_each(x->maker.deps.catalog, ask_known, x);
    catalog_each(x->maker.deps.catalog, note_newest, &w);
    pthread_mutex_lock(&x->lock);
    for (uint32_t i = 0; i < w.n; i++) {
        if (!find_slot(x, w.item[i].id, NULL))
            (void)ask(x, w.item[i].id, NULL, true);
    }
    pthread_mutex_unlock(&x->lock);
}

static void *indexer_main(void *arg)
{
    struct indexes *x = arg;
    struct index_slot s;
    look_ahead(x);
    while (next(x, &s))
        make(x, &s);
    return NULL;
}

/* ---- life ---- */

enum status indexes_create(struct indexes **out, const struct indexes_options *opt,
                           const struct indexes_deps *deps, struct errtext *err)
{
    struct indexes *x = mem_alloc(sizeof(*x));
    *out = NULL;
    CHECK(pthread_mutex_init(&x->lock, NULL) == 0);
    thread_cond_init(&x->asked);
    mailbox_init(&x->maker.done, INDEX_ROWS_INSIDE);
    snprintf(x->dir, sizeof(x->dir), "%s", opt->dir);
    x->maker.opt = *opt;
    x->maker.opt.dir = x->dir;
    x->maker.deps = *deps;
    enum status st = file_mkdirs(opt->dir, 0700, err);
    if (!st) {
        index_trim(&x->maker, NULL);
        st = thread_start(&x->thread, "rs-indexer", indexer_main, x, err);
    }
    x->running = st == STATUS_OK;
    if (st)
        indexes_destroy(x);
    else
        *out = x;
    return st;
}

void indexes_stop(struct indexes *x)
{
    if (!x || !x->running)
        return;
    pthread_mutex_lock(&x->lock);
    atomic_store(&x->maker.stop, true);
    pthread_cond_signal(&x->asked);
    pthread_mutex_unlock(&x->lock);
    pthread_join(x->thread, NULL);
    x->running = false;
}

void indexes_destroy(struct indexes *x)
{
    if (!x)
        return;
    indexes_stop(x);
    for (uint32_t i = 0; i < x->slot_count; i++)
        index_release(x->slot[i].index);
    mailbox_fini(&x->maker.done);
    pthread_cond_destroy(&x->asked);
    pthread_mutex_destroy(&x->lock);
    mem_free(x);
}
