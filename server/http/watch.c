/* The watch thread. A wake is an atomic exchange and a push on a lock-free stack (the consumer
 * takes the whole stack at once, so there is no ABA); only the push on an empty stack writes the
 * eventfd. Sockets are watched by slot and generation, so that an event that was already on its way
 * when the slot was given up finds nothing. Lock order: watch.lock, then exchange.lock. */
#include "server/http/watch.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
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
    _Atomic(struct exchange *) wakes;
    pthread_mutex_t lock; /* slots, live list, orphans */
    struct watch_slot *slot;
    uint32_t free_head;
    struct exchange *live;
    uint32_t live_count;
    struct exchange *orphans;
};

void watch_wake(struct watch *w, struct exchange *x)
{
    if (atomic_exchange_explicit(&x->wake_queued, true, memory_order_acq_rel))
        return;
    exchange_ref(x);
    struct exchange *head = atomic_load_explicit(&w->wakes, memory_order_relaxed);
    do {
        x->wake_next = head;
    } while (!atomic_compare_exchange_weak_explicit(&w->wakes, &head, x, memory_order_release,
                                                    memory_order_relaxed));
    if (!head) {
        uint64_t one = 1;
        ssize_t n = write(w->wake_fd, &one, sizeof(one));
        (void)n; /* a full counter still wakes */
    }
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

static void resume(struct watch *w, struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    if (x->parked) {
        x->parked = false;
        w->opt.resume(x);
    } else {
        x->pending = !x->closed;
    }
    pthread_mutex_unlock(&x->lock);
}

static void take_wakes(struct watch *w)
{
    struct exchange *x = atomic_exchange_explicit(&w->wakes, NULL, memory_order_acquire);
    while (x) {
        struct exchange *next = x->wake_next;
        /* From here on a new wake queues x again. */
        atomic_store_explicit(&x->wake_queued, false, memory_order_release);
        resume(w, x);
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
        } else {
            log_warn("http", "cannot watch a client socket for disconnects: %s", strerror(errno));
        }
    }
    pthread_mutex_unlock(&w->lock);
}

void watch_unsee(struct watch *w, struct exchange *x, int fd)
{
    pthread_mutex_lock(&w->lock);
    if (x->watch_slot != UINT32_MAX) {
        struct watch_slot *s = &w->slot[x->watch_slot];
        (void)epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
        s->x = NULL;
        s->generation++;
        s->next_free = w->free_head;
        w->free_head = x->watch_slot;
        x->watch_slot = UINT32_MAX;
    }
    pthread_mutex_unlock(&w->lock);
}

static void hangup(struct watch *w, uint64_t token)
{
    struct exchange *x = NULL;
    uint32_t idx = (uint32_t)token;
    pthread_mutex_lock(&w->lock);
    if (idx < w->opt.slots_max && w->slot[idx].generation == (uint32_t)(token >> 32)) {
        x = w->slot[idx].x;
        if (x)
            exchange_ref(x);
    }
    pthread_mutex_unlock(&w->lock);
    if (!x)
        return;
    if (!atomic_exchange(&x->gone, true)) {
        struct generation *g = x->gen;
        /* A client that closes after its last byte has left nothing unanswered. */
        if (!g || !atomic_load_explicit(&g->req->done, memory_order_acquire))
            metrics_add(&w->opt.server->metrics.disconnects, 1);
        if (g)
            generation_cancel(g);
    }
    resume(w, x);
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
        resume(w, x);
    }
    pthread_mutex_unlock(&w->lock);
}

/* An idle stream gets a comment line every 15 s, so that proxies keep it open. */
static void ping_idle(struct watch *w, uint64_t now_ns)
{
    pthread_mutex_lock(&w->lock);
    for (struct exchange *x = w->live; x; x = x->live_next) {
        if (x->gen && generation_is_idle_since(x->gen, now_ns - IDLE_PING_NS)) {
            atomic_store(&x->ping, true);
            resume(w, x);
        }
    }
    pthread_mutex_unlock(&w->lock);
}

static void *watch_main(void *arg)
{
    struct watch *w = arg;
    struct epoll_event event[EVENTS_MAX];
    uint64_t tick_ns = 0, ping_ns = 0;
    while (!atomic_load(&w->stopping)) {
        int n = epoll_wait(w->epoll_fd, event, EVENTS_MAX, TICK_MS);
        for (int i = 0; i < n; i++) {
            if (event[i].data.u64 == WAKE_EVENT) {
                uint64_t drop;
                ssize_t got = read(w->wake_fd, &drop, sizeof(drop));
                (void)got;
            } else {
                hangup(w, event[i].data.u64);
            }
        }
        take_wakes(w);
        uint64_t now_ns = clock_mono_ns();
        if (now_ns - tick_ns >= TICK_MS * 1000000ull) {
            tick_ns = now_ns;
            (void)reap(w);
            http_drain_tick(w->opt.server, now_ns);
        }
        if (now_ns - ping_ns >= 1000000000ull) {
            ping_ns = now_ns;
            ping_idle(w, now_ns);
        }
    }
    take_wakes(w);
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
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = WAKE_EVENT};
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
