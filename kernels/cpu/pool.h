/* The CPU backend's workers. One op at a time: pool_run hands a function to every worker, the
 * caller takes share 0 and then any that nobody has begun, and returns when all are done. Work is
 * split by ranges, so a share depends on the count of workers only (and results never do: dot.h).
 * `worker` is the share's number, no thread's: scratch that it selects is free of other shares.
 * Workers spin for about 50 us after an op, since the next one follows at once inside a step, then
 * park. Nothing is allocated after pool_create. Thread: one caller at a time. */
#ifndef RS_KERNELS_CPU_POOL_H
#define RS_KERNELS_CPU_POOL_H

#include "server/base/errtext.h"

#include <stdbool.h>
#include <stdint.h>

struct pool;

#define POOL_WORKERS_MAX 256

typedef void pool_fn(void *arg, uint32_t worker, uint32_t n_worker);

/* thread_count includes the caller; 0: as many as the process may use (affinity, cgroup quota).
 * background: thread_background for the threads it starts. */
MUST_CHECK enum status pool_create(struct pool **out, uint32_t thread_count, bool background,
                                   struct errtext *err);
void pool_destroy(struct pool *p);
uint32_t pool_size(const struct pool *p);

void pool_run(struct pool *p, pool_fn *fn, void *arg);

/* Worker w's share [*lo, *hi) of n items. */
static inline void pool_share(uint64_t n, uint32_t w, uint32_t n_worker, uint64_t *lo, uint64_t *hi)
{
    *lo = n * w / n_worker;
    *hi = n * (w + 1) / n_worker;
}

#endif
