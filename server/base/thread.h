/* Threads with names, and waits on the monotonic clock: what every part that owns a thread needs.
 * The names are what `top -H`, `ps -L` and a debugger show: who burns the CPU can be seen. */
#ifndef RS_BASE_THREAD_H
#define RS_BASE_THREAD_H

#include "server/base/errtext.h"

#include <pthread.h>
#include <stdint.h>

#define THREAD_NAME_MAX 15 /* the kernel's */

/* Start main(arg) as a thread called name. IO when the system has none left. */
MUST_CHECK enum status thread_start(pthread_t *out, const char *name, void *(*run)(void *),
                                    void *arg, struct errtext *err);
/* Names the calling thread; for threads that a library started. */
void thread_name_self(const char *name);

/* From here on the calling thread runs only where no other wants the processor, and can not go
 * back: it must hold no lock that others wait for. */
void thread_background(void);

/* A condition whose timed waits follow the monotonic clock; destroyed with pthread_cond_destroy. */
void thread_cond_init(pthread_cond_t *cond);
/* The moment wait_ms from now, for pthread_cond_timedwait on such a condition. */
struct timespec thread_deadline(uint32_t wait_ms);

#endif
