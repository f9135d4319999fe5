/* A thread is named by whoever starts it, before it can be seen to run without a name for long. */
#include "server/base/thread.h"
#include "server/base/check.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static void set_name(pthread_t thread, const char *name)
{
    char text[THREAD_NAME_MAX + 1];
    snprintf(text, sizeof(text), "%s", name);
    (void)pthread_setname_np(thread, text);
}

enum status thread_start(pthread_t *out, const char *name, void *(*run)(void *), void *arg,
                         struct errtext *err)
{
    int rc = pthread_create(out, NULL, run, arg);
    if (rc)
        return err_set(err, STATUS_IO, "cannot start the thread %s: %s", name, strerror(rc));
    set_name(*out, name);
    return STATUS_OK;
}

void thread_name_self(const char *name)
{
    set_name(pthread_self(), name);
}

void thread_background(void)
{
    const struct sched_param none = {0};
    (void)sched_setscheduler(0, SCHED_IDLE, &none); /* of this thread; a lower one needs no right */
}

void thread_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    CHECK(pthread_condattr_init(&attr) == 0);
    CHECK(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0);
    CHECK(pthread_cond_init(cond, &attr) == 0);
    pthread_condattr_destroy(&attr);
}

struct timespec thread_deadline(uint32_t wait_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += wait_ms / 1000;
    until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    return until;
}
