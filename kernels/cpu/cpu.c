/* Creation of the CPU backend: which instruction paths this machine has, and which one to use. */
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include "kernels/cpu/cpu.h"

#include <stdio.h>
#include <string.h>

#include "kernels/cpu/dnnl.h"
#include "server/base/check.h"
#include "server/base/mem.h"

extern const struct backend_ops cpu_scalar_ops;
#if defined(__x86_64__)
extern const struct backend_ops cpu_avx2_ops, cpu_avx512_ops, cpu_avx512_bf16_ops;
#endif

struct cpu_path {
    const char *name;
    const struct backend_ops *ops;
    bool (*present)(void);
    bool has_bf16;
};

static bool always(void)
{
    return true;
}

#if !defined(__x86_64__)
static bool have_amx(void)
{
    return false;
}
#else
static bool have_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool have_avx512(void)
{
    return have_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

/* AMX-BF16 in the processor, and tile state saved by the system (XCR0 bits 17 and 18). Read from
 * the registers: not every compiler knows the feature by name. */
static bool have_amx(void)
{
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1))
        return false;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1))
        return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low >> 17 & 3) == 3;
}

static bool have_avx512_bf16(void)
{
    return have_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

/* Best first. */
static const struct cpu_path paths[] = {
#if defined(__x86_64__)
    {"avx512_bf16", &cpu_avx512_bf16_ops, have_avx512_bf16, true},
    {"avx512", &cpu_avx512_ops, have_avx512, false},
    {"avx2", &cpu_avx2_ops, have_avx2, false},
#endif
    {"scalar", &cpu_scalar_ops, always, false},
};

static const struct cpu_path *path_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(paths); i++)
        if (name[0] ? strcmp(paths[i].name, name) == 0 : paths[i].present())
            return &paths[i];
    return NULL;
}

/* deterministic = false allows oneDNN, used where it has AMX: elsewhere our own loop is faster at
 * every row count (kernels/README.md), so nothing is gained by giving its promise up. */
static enum status dnnl_attach(struct cpu_backend *c, bool forced, struct errtext *err)
{
    enum status st = cpu_dnnl_create(&c->dnnl, pool_size(c->pool), err);
    if (st != STATUS_OK)
        return st;
    c->dnnl_rows_min = forced ? 1 : DNNL_ROWS;
    c->base.deterministic = forced;
    size_t used = strlen(c->base.version);
    snprintf(c->base.version + used, sizeof(c->base.version) - used, " dnnl %s%s",
             cpu_dnnl_version(), forced ? "" : " by shape");
    return STATUS_OK;
}

static void scratch_alloc(struct cpu_backend *c)
{
    c->x = mem_alloc_aligned(CPU_X_BYTES);
    c->worker_scratch = mem_alloc_aligned(pool_size(c->pool) * CPU_WORKER_BYTES);
    c->norm_part = mem_alloc_aligned(sizeof(double) * 2 * CPU_FINISH_ROWS * CPU_FINISH_CHUNKS);
}

enum status cpu_backend_create(struct backend **out, const struct backend_options *opt,
                               const char *path, struct errtext *err)
{
    *out = NULL;
    bool dnnl = strcmp(path, "dnnl") == 0;
    const struct cpu_path *found = path_find(dnnl ? "" : path);
    if (!found)
        return err_param(err, STATUS_INVALID, "backend",
                         "unknown CPU instruction path \"%s\"; expected scalar, avx2, avx512, "
                         "avx512_bf16 or dnnl",
                         path);
    if (!found->present())
        return err_param(err, STATUS_UNSUPPORTED, "backend",
                         "this CPU has no %s; the best path here is %s", path, path_find("")->name);
    struct pool *pool;
    enum status st = pool_create(&pool, opt->thread_count, opt->background, err);
    if (st != STATUS_OK)
        return st;
    struct cpu_backend *c = mem_alloc(sizeof(*c));
    c->pool = pool;
    scratch_alloc(c);
    c->base.ops = found->ops;
    snprintf(c->base.name, sizeof(c->base.name), "cpu");
    snprintf(c->base.version, sizeof(c->base.version), "cpu 2 %s", found->name);
    c->base.worker_count = pool_size(pool);
    c->base.act = DTYPE_F32;
    c->base.has_bf16 = found->has_bf16;
    c->base.deterministic = true;
    if (dnnl || (!opt->deterministic && have_amx()))
        st = dnnl_attach(c, dnnl, dnnl ? err : NULL);
    if (dnnl && st != STATUS_OK) {
        cpu_backend_destroy(&c->base);
        return st;
    }
    *out = &c->base;
    return STATUS_OK;
}

void cpu_backend_destroy(struct backend *b)
{
    struct cpu_backend *c = cpu_of(b);
    uint32_t n = pool_size(c->pool);
    cpu_dnnl_destroy(c->dnnl);
    pool_destroy(c->pool);
    mem_free_aligned(c->x, CPU_X_BYTES);
    mem_free_aligned(c->worker_scratch, n * CPU_WORKER_BYTES);
    mem_free_aligned(c->norm_part, sizeof(double) * 2 * CPU_FINISH_ROWS * CPU_FINISH_CHUNKS);
    mem_free(c);
}
