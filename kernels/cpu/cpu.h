/* The CPU backend: creation, and the state its ops share. All scratch is allocated at creation and
 * has a fixed size; an op whose rows do not fit works through them in passes, which never shows in
 * the bits (see dot.h). */
#ifndef RS_KERNELS_CPU_CPU_H
#define RS_KERNELS_CPU_CPU_H

#include "kernels/backend.h"
#include "kernels/cpu/pool.h"

/* path: "" for the best of this machine, else an instruction path by name. */
MUST_CHECK enum status cpu_backend_create(struct backend **out, const struct backend_options *opt,
                                          const char *path, struct errtext *err);

/* ---- shared inside the folder ---- */

void cpu_backend_destroy(struct backend *b);

#define CPU_X_BYTES       ((size_t)8 << 20) /* converted inputs of one pass */
#define CPU_WORKER_BYTES  ((size_t)1 << 20) /* scratch of each worker */
#define CPU_FINISH_ROWS   256               /* rows in a pass of a finish with telemetry */
#define CPU_FINISH_CHUNKS 256

struct cpu_dnnl;

struct cpu_backend {
    struct backend base;
    struct pool *pool;
    struct cpu_dnnl *dnnl;  /* NULL: not used */
    uint32_t dnnl_rows_min; /* gemms of fewer rows are ours */
    char *x;                /* [CPU_X_BYTES], 64-byte aligned */
    char *worker_scratch;   /* [worker][CPU_WORKER_BYTES] */
    double *norm_part;      /* [CPU_FINISH_ROWS][CPU_FINISH_CHUNKS][2] telemetry partial sums */
};

static inline struct cpu_backend *cpu_of(struct backend *b)
{
    return (struct cpu_backend *)(void *)b;
}

static inline void *cpu_scratch(struct cpu_backend *c, uint32_t worker)
{
    return c->worker_scratch + worker * CPU_WORKER_BYTES;
}

/* Run fn over the pool, or alone when the work is too small to be worth waking anyone. */
static inline void cpu_run(struct cpu_backend *c, pool_fn *fn, void *arg, bool small)
{
    if (small)
        fn(arg, 0, 1);
    else
        pool_run(c->pool, fn, arg);
}

#endif
