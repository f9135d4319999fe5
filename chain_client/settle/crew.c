/* Slices are taken by a counter, so that a thread that is held up delays only its own. */
#include "chain_client/settle/crew.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/thread.h"

#include <stdatomic.h>

#define SLICE 16

struct crew {
    pthread_t thread[CREW_MAX];
    uint32_t started;
    pthread_mutex_t lock;
    pthread_cond_t begin, done;
    /* under lock */
    uint64_t round;
    uint32_t busy;
    bool closing;
    /* of the round */
    crew_work *work;
    void *arg;
    size_t count;
    atomic_size_t next;
};

static void work_through(struct crew *c)
{
    for (;;) {
        size_t first = atomic_fetch_add(&c->next, SLICE);
        if (first >= c->count)
            return;
        c->work(c->arg, first, MIN(first + SLICE, c->count));
    }
}

static void *member(void *arg)
{
    struct crew *c = arg;
    uint64_t seen = 0;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (!c->closing && c->round == seen)
            pthread_cond_wait(&c->begin, &c->lock);
        if (c->closing)
            break;
        seen = c->round;
        pthread_mutex_unlock(&c->lock);
        work_through(c);
        pthread_mutex_lock(&c->lock);
        if (--c->busy == 0)
            pthread_cond_signal(&c->done);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

enum status crew_create(struct crew **out, uint32_t threads, struct errtext *err)
{
    CHECK(threads >= 1 && threads <= CREW_MAX);
    struct crew *c = mem_alloc(sizeof(*c));
    enum status st = STATUS_OK;
    *out = NULL;
    CHECK(pthread_mutex_init(&c->lock, NULL) == 0);
    CHECK(pthread_cond_init(&c->begin, NULL) == 0 && pthread_cond_init(&c->done, NULL) == 0);
    while (c->started + 1 < threads && !st) {
        st = thread_start(&c->thread[c->started], "crew", member, c, err);
        c->started += !st;
    }
    if (st)
        crew_destroy(c);
    else
        *out = c;
    return st;
}

void crew_destroy(struct crew *c)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    pthread_cond_broadcast(&c->begin);
    pthread_mutex_unlock(&c->lock);
    for (uint32_t i = 0; i < c->started; i++)
        pthread_join(c->thread[i], NULL);
    pthread_cond_destroy(&c->begin);
    pthread_cond_destroy(&c->done);
    pthread_mutex_destroy(&c->lock);
    mem_free(c);
}

void crew_run(struct crew *c, crew_work *work, void *arg, size_t count)
{
    c->work = work;
    c->arg = arg;
    c->count = count;
    atomic_store(&c->next, 0);
    bool is_shared = c->started && count > SLICE;
    if (is_shared) {
        pthread_mutex_lock(&c->lock);
        c->busy = c->started;
        c->round++;
        pthread_cond_broadcast(&c->begin);
        pthread_mutex_unlock(&c->lock);
    }
    work_through(c);
    if (!is_shared)
        return;
    pthread_mutex_lock(&c->lock);
    while (c->busy)
        pthread_cond_wait(&c->done, &c->lock);
    pthread_mutex_unlock(&c->lock);
}
