/* The watch thread. A wake is an atomic exchange and a push on a lock-free stack (the consumer
 * takes the whole stack at once, so there is no ABA); the eventfd is written only when the thread
 * sleeps (for a stream's token: only when it does not rest), and it is edge-triggered, so that
 * nobody reads it. Sockets are watched by slot and
 * generation, so that an event that was already on its way when the slot was given up finds
 * nothing. Lock order: watch.lock, then exchange.lock. */
#include "server/http/watch.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/http/flow.h"
#include "server/http/generate.h"
#include "server/http/state.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define TICK_MS      250
#define EVENTS_MAX   256
#define WAKE_EVENT   UINT64_MAX
#define IDLE_PING_NS (15ull * 1000000000)
/* A turn's rest: writing at 6 us a stream is then at most a sixth of a core. Below a millisecond
 * there is none. */
#define REST_NS_PER_STREAM 40000ull
#define REST_NS_MIN        1000000ull
/* Whoever asks nothing more has this long to read its answer before it is probed. */
#define PROBE_NS (250ull * 1000000)

enum watch_sleep { AWAKE, RESTING, ASLEEP };

struct watch_slot {
    struct exchange *x;
    uint32_t generation;
    uint32_t next_free;
};

struct watch {
    struct watch_options opt;
    int epoll_fd, wake_fd;
    pthread_t thread;
    atomic_bool stopping;
    _Atomic(enum watch_sleep) sleep;
    _Atomic(struct exchange *) wakes, stream_wakes;
    pthread_mutex_t lock; /* slots, live list, orphans */
    struct watch_slot *slot;
    uint32_t free_head;
    struct exchange *live;
    uint32_t live_count;
    struct exchange *orphans;
    uint64_t tick_ns, turn_ns; /* the thread's own; turn_ns: streams rest until then */
};

/* False: x waits on a stack already. */
static bool push_wake(_Atomic(struct exchange *) *stack, struct exchange *x)
{
    if (atomic_exchange_explicit(&x->wake_queued, true, memory_order_acq_rel))
        return false;
    exchange_ref(x);
    struct exchange *head = atomic_load_explicit(stack, memory_order_relaxed);
    do {
        x->wake_next = head;
    } while (!atomic_compare_exchange_weak_explicit(stack, &head, x, memory_order_seq_cst,
                                                    memory_order_relaxed));
    return true;
}

/* Pairs with fall_asleep: either we see that it sleeps, or it sees what was pushed. */
static void rouse(struct watch *w, enum watch_sleep least)
{
    enum watch_sleep found = atomic_load(&w->sleep);
    while (found >= least && found != AWAKE) {
        if (!atomic_compare_exchange_weak(&w->sleep, &found, AWAKE))
            continue;
        uint64_t one = 1;
        ssize_t n = write(w->wake_fd, &one, sizeof(one));
        (void)n; /* a full counter cannot be: nobody writes 2^64 times */
        return;
    }
}

void watch_wake(struct watch *w, struct exchange *x)
{
    if (push_wake(&w->wakes, x))
        rouse(w, RESTING);
}

void watch_wake_stream(struct watch *w, struct exchange *x)
{
    if (push_wake(&w->stream_wakes, x))
        rouse(w, ASLEEP);
}

/* How many milliseconds epoll may wait. */
static int fall_asleep(struct watch *w)
{
    uint64_t now_ns = clock_mono_ns();
    bool streams = atomic_load(&w->stream_wakes) || now_ns < w->turn_ns;
    uint64_t rest_ms = now_ns < w->turn_ns ? (w->turn_ns - now_ns + 999999) / 1000000 : 0;
    atomic_store(&w->sleep, streams ? RESTING : ASLEEP);
    if (atomic_load(&w->wakes) || (!streams && atomic_load(&w->stream_wakes))) {
        atomic_store(&w->sleep, AWAKE);
        return 0;
    }
    return streams ? (int)MIN(rest_ms, TICK_MS) : TICK_MS;
}

bool watch_park(struct watch *w, struct exchange *x, void (*suspend)(struct exchange *x))
{
    bool parked = false;
    pthread_mutex_lock(&x->lock);
    bool leaving = atomic_load(&x->gone) || atomic_load(&w->opt.server->stopping);
    /* A worker ends by itself and wakes x; until then x must stay where it is. */
    if (x->pending || (leaving && !atomic_load(&x->working))) {
        x->pending = false;
    } else {
        x->parked = true;
        suspend(x);
        parked = true;
    }
    pthread_mutex_unlock(&x->lock);
    return parked;
}

/* Hear of x's socket what it may still tell: that it broke, that the client has ended its side
 * (once), and when it can be written. */
static void rearm(struct watch *w, const struct exchange *x, uint32_t events)
{
    const struct watch_slot *s = &w->slot[x->watch_slot];
    struct epoll_event ev = {.events = events | EPOLLONESHOT};
    if (!atomic_load(&x->half_closed_ns))
        ev.events |= EPOLLRDHUP;
    ev.data.u64 = (uint64_t)s->generation << 32 | x->watch_slot;
    if (epoll_ctl(w->epoll_fd, EPOLL_CTL_MOD, x->fd, &ev) != 0)
        log_warn("http", "cannot watch a client socket: %s", strerror(errno));
}

/* Something happened for x: write what there is, or let the library look. */
static void stir(struct watch *w, struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    if (x->parked) {
        enum flow_next next = flow_push(x);
        if (next == FLOW_WRITE)
            rearm(w, x, EPOLLOUT);
        if (next == FLOW_RESUME) {
            x->parked = false;
            w->opt.resume(x);
        }
    } else {
        x->pending = !x->closed;
    }
    pthread_mutex_unlock(&x->lock);
}

static void take_wakes(struct watch *w, _Atomic(struct exchange *) *stack)
{
    struct exchange *x = atomic_exchange_explicit(stack, NULL, memory_order_acquire);
    while (x) {
        struct exchange *next = x->wake_next;
        /* From here on a new wake queues x again. */
        atomic_store_explicit(&x->wake_queued, false, memory_order_release);
        stir(w, x);
        exchange_unref(x);
        x = next;
    }
}

void watch_see(struct watch *w, struct exchange *x, int fd)
{
    pthread_mutex_lock(&w->lock);
    if (w->free_head != UINT32_MAX && x->watch_slot == UINT32_MAX) {
        uint32_t idx = w->free_head;
        struct watch_slot *s = &w->slot[idx];
        struct epoll_event ev = {.events = EPOLLRDHUP | EPOLLONESHOT};
        ev.data.u64 = (uint64_t)s->generation << 32 | idx;
        if (epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, fd, &ev) == 0) {
            w->free_head = s->next_free;
            s->x = x;
            x->watch_slot = idx;
            x->fd = fd;
        } else {
            log_warn("http", "cannot watch a client socket for disconnects: %s", strerror(errno));
        }
    }
    pthread_mutex_unlock(&w->lock);
}

void watch_unsee(struct watch *w, struct exchange *x)
{
    pthread_mutex_lock(&w->lock);
    if (x->watch_slot != UINT32_MAX) {
        struct watch_slot *s = &w->slot[x->watch_slot];
        (void)epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, x->fd, NULL);
        s->x = NULL;
        s->generation++;
        s->next_free = w->free_head;
        w->free_head = x->watch_slot;
        x->watch_slot = UINT32_MAX;
        x->fd = -1;
    }
    pthread_mutex_unlock(&w->lock);
}

static void leave(struct watch *w, struct exchange *x)
{
    if (atomic_exchange(&x->gone, true))
        return;
    struct generation *g = x->gen;
    /* A client that closes after its last byte has left nothing unanswered. */
    if (!g || !atomic_load_explicit(&g->req->done, memory_order_acquire))
        metrics_add(&w->opt.server->metrics.disconnects, 1);
    if (g)
        generation_cancel(g);
}

static void on_socket(struct watch *w, const struct epoll_event *event)
{
    struct exchange *x = NULL;
    uint32_t idx = (uint32_t)event->data.u64;
    pthread_mutex_lock(&w->lock);
    if (idx < w->opt.slots_max && w->slot[idx].generation == (uint32_t)(event->data.u64 >> 32)) {
        x = w->slot[idx].x;
        if (x)
            exchange_ref(x);
        if (x && event->events & EPOLLRDHUP && !atomic_load(&x->half_closed_ns))
            atomic_store(&x->half_closed_ns, clock_mono_ns());
        if (x && !(event->events & (EPOLLHUP | EPOLLERR)))
            rearm(w, x, atomic_load(&x->blocked_ns) ? EPOLLOUT : 0);
    }
    pthread_mutex_unlock(&w->lock);
    if (!x)
        return;
    if (event->events & (EPOLLHUP | EPOLLERR))
        leave(w, x);
    if (event->events & (EPOLLHUP | EPOLLERR | EPOLLOUT))
        stir(w, x);
    exchange_unref(x);
}

void watch_enter(struct watch *w, struct exchange *x)
{
    pthread_mutex_lock(&w->lock);
    x->live_prev = NULL;
    x->live_next = w->live;
    if (w->live)
        w->live->live_prev = x;
    w->live = x;
    w->live_count++;
    pthread_mutex_unlock(&w->lock);
}

void watch_leave(struct watch *w, struct exchange *x)
{
    pthread_mutex_lock(&w->lock);
    if (x->live_prev)
        x->live_prev->live_next = x->live_next;
    else
        w->live = x->live_next;
    if (x->live_next)
        x->live_next->live_prev = x->live_prev;
    x->live_prev = x->live_next = NULL;
    w->live_count--;
    pthread_mutex_unlock(&w->lock);
}

uint32_t watch_live_count(struct watch *w)
{
    pthread_mutex_lock(&w->lock);
    uint32_t n = w->live_count;
    pthread_mutex_unlock(&w->lock);
    return n;
}

void watch_orphan(struct watch *w, struct exchange *x)
{
    pthread_mutex_lock(&w->lock);
    x->orphan_next = w->orphans;
    w->orphans = x;
    pthread_mutex_unlock(&w->lock);
}

/* Free orphans whose chain has ended; returns how many remain. */
static uint32_t reap(struct watch *w)
{
    struct exchange *free_list = NULL;
    uint32_t left = 0;
    pthread_mutex_lock(&w->lock);
    struct exchange **link = &w->orphans;
    while (*link) {
        struct exchange *x = *link;
        if (generation_is_over(x->gen)) {
            *link = x->orphan_next;
            x->orphan_next = free_list;
            free_list = x;
        } else {
            link = &x->orphan_next;
            left++;
        }
    }
    pthread_mutex_unlock(&w->lock);
    while (free_list) {
        struct exchange *next = free_list->orphan_next;
        exchange_unref(free_list);
        free_list = next;
    }
    return left;
}

uint32_t watch_wait_orphans(struct watch *w, uint32_t wait_ms)
{
    uint64_t until = clock_mono_ns() + (uint64_t)wait_ms * 1000000;
    uint32_t left = reap(w);
    while (left > 0 && clock_mono_ns() < until) {
        clock_sleep_ms(1);
        left = reap(w);
    }
    return left;
}

void watch_cancel_all(struct watch *w)
{
    pthread_mutex_lock(&w->lock);
    for (struct exchange *x = w->live; x; x = x->live_next) {
        if (x->gen)
            generation_cancel(x->gen);
        stir(w, x);
    }
    pthread_mutex_unlock(&w->lock);
}

/* Has x's client ended its side long enough ago, and is its answer still being made? */
static bool is_probe_due(const struct exchange *x, uint64_t now_ns)
{
    uint64_t at = atomic_load(&x->half_closed_ns);
    return at != 0 && now_ns > at + PROBE_NS && !x->probed && x->gen;
}

/* False: x can have no answer any more. */
static bool probe(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool ok = !x->parked || flow_probe(x);
    x->probed = x->parked;
    pthread_mutex_unlock(&x->lock);
    return ok;
}

/* Does x's client take nothing of what waits for it? */
static bool is_stuck(const struct watch *w, const struct exchange *x, uint64_t now_ns)
{
    uint64_t at = atomic_load(&x->blocked_ns);
    return at != 0 && now_ns > at + w->opt.server->opt.idle_timeout_s * 1000000000ull;
}

/* A client that has ended its side may have left: a line that it did not ask for tells. */
static bool is_feed_idle(const struct exchange *x, uint64_t now_ns)
{
    bool due = atomic_load(&x->half_closed_ns) && !x->probed;
    uint64_t rest_ns = due ? PROBE_NS : IDLE_PING_NS;
    const struct feed *f = x->feed;
    return f && feed_is_idle_since(f, now_ns - rest_ns);
}

/* An idle stream gets a comment line every 15 s, so that proxies keep it open; the line is also how
 * a stream is probed. */
static void look_at(struct watch *w, struct exchange *x, uint64_t now_ns)
{
    bool due = is_probe_due(x, now_ns);
    if (is_stuck(w, x, now_ns) || (due && !probe(x))) {
        leave(w, x);
        stir(w, x);
    } else if (x->gen ? generation_is_idle_since(x->gen, due ? now_ns : now_ns - IDLE_PING_NS)
                      : is_feed_idle(x, now_ns)) {
        x->probed |= x->feed && atomic_load(&x->half_closed_ns);
        atomic_store(&x->ping, true);
        stir(w, x);
    }
}

static void look_around(struct watch *w, uint64_t now_ns)
{
    pthread_mutex_lock(&w->lock);
    for (struct exchange *x = w->live; x; x = x->live_next)
        look_at(w, x, now_ns);
    pthread_mutex_unlock(&w->lock);
}

/* Write for every stream that has something new, then let tokens gather. */
static void take_turn(struct watch *w)
{
    struct http_server *s = w->opt.server;
    uint64_t now_ns = clock_mono_ns();
    if (now_ns < w->turn_ns || !atomic_load(&w->stream_wakes))
        return;
    take_wakes(w, &w->stream_wakes);
    uint64_t rest_ns =
        MIN(atomic_load(&s->streams) * REST_NS_PER_STREAM, s->opt.stream_rest_ms * 1000000ull);
    w->turn_ns = rest_ns < REST_NS_MIN ? 0 : now_ns + rest_ns;
}

static void tick(struct watch *w)
{
    uint64_t now_ns = clock_mono_ns();
    if (now_ns - w->tick_ns < TICK_MS * 1000000ull)
        return;
    w->tick_ns = now_ns;
    (void)reap(w);
    if (w->opt.keeps_time)
        http_tick(w->opt.server, now_ns);
    look_around(w, now_ns);
}

static void *watch_main(void *arg)
{
    struct watch *w = arg;
    struct epoll_event event[EVENTS_MAX];
    while (!atomic_load(&w->stopping)) {
        int n = epoll_wait(w->epoll_fd, event, EVENTS_MAX, fall_asleep(w));
        atomic_store(&w->sleep, AWAKE);
        for (int i = 0; i < n; i++) {
            if (event[i].data.u64 != WAKE_EVENT)
                on_socket(w, &event[i]);
        }
        take_wakes(w, &w->wakes);
        take_turn(w);
        tick(w);
    }
    take_wakes(w, &w->wakes);
    take_wakes(w, &w->stream_wakes);
    return NULL;
}

static void slots_init(struct watch *w)
{
    w->slot = mem_array(w->opt.slots_max, sizeof(*w->slot));
    for (uint32_t i = 0; i < w->opt.slots_max; i++)
        w->slot[i].next_free = i + 1 < w->opt.slots_max ? i + 1 : UINT32_MAX;
}

enum status watch_create(struct watch **out, const struct watch_options *opt, struct errtext *err)
{
    struct watch *w = mem_alloc(sizeof(*w));
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.u64 = WAKE_EVENT};
    w->opt = *opt;
    CHECK(opt->slots_max > 0);
    CHECK(pthread_mutex_init(&w->lock, NULL) == 0);
    slots_init(w);
    w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    w->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (w->epoll_fd < 0 || w->wake_fd < 0 ||
        epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, w->wake_fd, &ev) != 0 ||
        thread_start(&w->thread, "rs-http-watch", watch_main, w, err)) {
        enum status st =
            err_set(err, STATUS_IO, "cannot start the connection watch: %s", strerror(errno));
        w->thread = 0;
        watch_destroy(w);
        return st;
    }
    *out = w;
    return STATUS_OK;
}

void watch_destroy(struct watch *w)
{
    if (!w)
        return;
    if (w->thread) {
        uint64_t one = 1;
        atomic_store(&w->stopping, true);
        ssize_t n = write(w->wake_fd, &one, sizeof(one));
        (void)n;
        pthread_join(w->thread, NULL);
    }
    if (w->epoll_fd >= 0)
        close(w->epoll_fd);
    if (w->wake_fd >= 0)
        close(w->wake_fd);
    pthread_mutex_destroy(&w->lock);
    mem_free(w->slot);
    mem_free(w);
}
