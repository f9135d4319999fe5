/* See background.h. */
#include "server/train/background.h"
#include "server/base/mem.h"
#include "server/base/thread.h"

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
    pthread_cond_init(&b->done, NULL);
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
    while (b->fn)
        pthread_cond_wait(&b->done, &b->lock);
    pthread_mutex_unlock(&b->lock);
}
