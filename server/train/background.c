/* See background.h. */
#include "server/train/background.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"

#include <errno.h>

#define SLOW_S 60 /* a run longer than this is said, and again after as long */

struct background {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t given, done;
    void (*fn)(void *arg); /* NULL: nothing to do */
    void *arg;
    bool stop, yields;
};

static void *background_main(void *arg)
{
    struct background *b = arg;
    if (b->yields)
        thread_background();
    pthread_mutex_lock(&b->lock);
    for (;;) {
        while (!b->fn && !b->stop)
            pthread_cond_wait(&b->given, &b->lock);
        if (!b->fn)
            break;
        pthread_mutex_unlock(&b->lock);
        b->fn(b->arg);
        pthread_mutex_lock(&b->lock);
        b->fn = NULL;
        pthread_cond_signal(&b->done);
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

enum status background_create(struct background **out, bool yields, struct errtext *err)
{
    struct background *b = mem_alloc(sizeof(*b));
    b->yields = yields;
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->given, NULL);
    thread_cond_init(&b->done);
    enum status st = thread_start(&b->thread, "rs-train", background_main, b, err);
    *out = st ? NULL : b;
    if (st)
        mem_free(b);
    return st;
}

void background_destroy(struct background *b)
{
    if (!b)
        return;
    pthread_mutex_lock(&b->lock);
    b->stop = true;
    pthread_cond_signal(&b->given);
    pthread_mutex_unlock(&b->lock);
    pthread_join(b->thread, NULL);
    pthread_cond_destroy(&b->given);
    pthread_cond_destroy(&b->done);
    pthread_mutex_destroy(&b->lock);
    mem_free(b);
}

void background_run(struct background *b, void (*fn)(void *arg), void *arg)
{
    pthread_mutex_lock(&b->lock);
    b->arg = arg;
    b->fn = fn;
    pthread_cond_signal(&b->given);
    for (uint64_t waited_s = 0; b->fn;) {
        struct timespec until = thread_deadline(SLOW_S * 1000);
        if (pthread_cond_timedwait(&b->done, &b->lock, &until) != ETIMEDOUT || !b->fn)
            continue;
        waited_s += SLOW_S;
        log_warn("train",
                 "a pass has taken %llu s so far: others need the processors; training goes on "
                 "where they leave some (--train-yields 0: it competes)",
                 (unsigned long long)waited_s);
    }
    pthread_mutex_unlock(&b->lock);
}
