/* Workers that spin, then park. A run is a number of shares, one for each worker; whoever is awake
 * takes the next one, so a worker that the system has put aside holds nobody up: the caller does
 * its share too. `state` is the run's number and the next share to take, taken by compare-and-swap,
 * so a late worker cannot take from a run that is over. A taken share keeps the run open
 * (`pending`), and with it fn and arg. Sleeping, both ways, is announced first and checked after: a
 * worker counts itself in `parked` under the lock and then re-reads the state, the caller changes
 * the state and then reads `parked`; likewise `caller_waits` and `pending`. All four are
 * sequentially consistent, so one of the two sides always sees the other. */
#include "kernels/cpu/pool.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/base/thread.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define SPIN_NS    50000
#define SPIN_BATCH 64

struct pool_worker {
    struct pool *pool;
    pthread_t thread;
};

struct pool {
    _Alignas(64) _Atomic uint64_t state; /* run << 32 | next share */
    _Alignas(64) atomic_uint pending;
    _Alignas(64) atomic_uint parked;
    atomic_bool stop, caller_waits;
    pool_fn *fn;
    void *arg;
    uint32_t size, started;
    bool background;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    struct pool_worker worker[];
};

static inline void cpu_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static uint32_t run_of(uint64_t state)
{
    return (uint32_t)(state >> 32);
}

/* Until a run other than `seen` is there. */
static void wait_for_run(struct pool *p, uint32_t seen)
{
    uint64_t until = clock_mono_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPIN_BATCH; i++) {
            if (run_of(atomic_load_explicit(&p->state, memory_order_acquire)) != seen)
                return;
            cpu_pause();
        }
    } while (clock_mono_ns() < until);
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->parked, 1);
    while (run_of(atomic_load(&p->state)) == seen)
        pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->parked, 1);
    pthread_mutex_unlock(&p->lock);
}

/* The next share of the current run, or UINT32_MAX when all are taken; *run: that run. */
static uint32_t take_share(struct pool *p, uint32_t *run)
{
    uint64_t state = atomic_load(&p->state);
    do {
        *run = run_of(state);
        if ((uint32_t)state >= p->size)
            return UINT32_MAX;
    } while (!atomic_compare_exchange_weak(&p->state, &state, state + 1));
    return (uint32_t)state;
}

static void *worker_main(void *arg)
{
    struct pool_worker *w = arg;
    struct pool *p = w->pool;
    uint32_t run = 0, share;
    if (p->background)
        thread_background();
    while (!atomic_load(&p->stop)) { /* first: take_share may have seen the last run go by */
        wait_for_run(p, run);
        while ((share = take_share(p, &run)) != UINT32_MAX) {
            p->fn(p->arg, share, p->size);
            if (atomic_fetch_sub(&p->pending, 1) == 1 && atomic_load(&p->caller_waits)) {
                pthread_mutex_lock(&p->lock);
                pthread_cond_signal(&p->done);
                pthread_mutex_unlock(&p->lock);
            }
        }
    }
    return NULL;
}

/* A new run whose first untaken share is `next`. */
static void publish(struct pool *p, uint32_t next)
{
    atomic_store(&p->state, (uint64_t)(run_of(atomic_load(&p->state)) + 1) << 32 | next);
    if (atomic_load(&p->parked) == 0)
        return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

/* Spin a little, then sleep: on a busy machine a worker may be waiting for this very core. */
static void wait_for_shares(struct pool *p)
{
    uint64_t until = clock_mono_ns() + SPIN_NS;
    do {
        for (uint32_t i = 0; i < SPIN_BATCH; i++) {
            if (atomic_load_explicit(&p->pending, memory_order_acquire) == 0)
                return;
            cpu_pause();
        }
    } while (clock_mono_ns() < until);
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_waits, true);
    while (atomic_load(&p->pending) != 0)
        pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->caller_waits, false);
    pthread_mutex_unlock(&p->lock);
}

void pool_run(struct pool *p, pool_fn *fn, void *arg)
{
    uint32_t share = 0, run;
    if (p->size == 1) {
        fn(arg, 0, 1);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    atomic_store(&p->pending, p->size);
    publish(p, 1);
    do {
        fn(arg, share, p->size);
        atomic_fetch_sub(&p->pending, 1);
        share = take_share(p, &run);
    } while (share != UINT32_MAX);
    wait_for_shares(p);
}

uint32_t pool_size(const struct pool *p)
{
    return p->size;
}

/* The cgroup v2 quota in whole CPUs, rounded up; 0 when there is none. */
static uint32_t cgroup_cpus(void)
{
    unsigned long long quota = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (!f)
        return 0;
    int n = fscanf(f, "%llu %llu", &quota, &period);
    fclose(f);
    return n == 2 && period > 0 ? (uint32_t)((quota + period - 1) / period) : 0;
}

static uint32_t usable_cpus(void)
{
    cpu_set_t set;
    uint32_t n = 1;
    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        n = (uint32_t)CPU_COUNT(&set);
    uint32_t quota = cgroup_cpus();
    return quota > 0 && quota < n ? quota : n;
}

enum status pool_create(struct pool **out, uint32_t thread_count, bool background,
                        struct errtext *err)
{
    char name[THREAD_NAME_MAX + 1];
    *out = NULL;
    uint32_t n = thread_count ? thread_count : MIN(usable_cpus(), (uint32_t)POOL_WORKERS_MAX);
    if (n > POOL_WORKERS_MAX)
        return err_param(err, STATUS_INVALID, "threads",
                         "threads is %u; expected 1..%d, or 0 for as many as the process may use",
                         n, POOL_WORKERS_MAX);
    size_t bytes = sizeof(struct pool) + n * sizeof(struct pool_worker);
    struct pool *p = mem_alloc_aligned(bytes);
    p->size = n;
    p->background = background;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    for (uint32_t i = 1; i < n; i++) {
        p->worker[i] = (struct pool_worker){.pool = p};
        snprintf(name, sizeof(name), background ? "rs-train-%u" : "rs-compute-%u", i);
        enum status st = thread_start(&p->worker[i].thread, name, worker_main, &p->worker[i], err);
        if (st) {
            pool_destroy(p);
            return st;
        }
        p->started = i;
    }
    *out = p;
    return STATUS_OK;
}

void pool_destroy(struct pool *p)
{
    if (!p)
        return;
    atomic_store(&p->stop, true);
    publish(p, p->size);
    for (uint32_t i = 1; i <= p->started; i++)
        pthread_join(p->worker[i].thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->lock);
    mem_free_aligned(p, sizeof(struct pool) + p->size * sizeof(struct pool_worker));
}
