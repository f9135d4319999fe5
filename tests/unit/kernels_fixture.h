/* What the kernel tests share: the backends under test (every instruction path of this machine at
 * several thread counts), seeded random tensors in exact heap blocks (so that a sanitizer sees one
 * element too many), NaN-poisoned outputs, and comparisons. */
#ifndef RS_TESTS_UNIT_KERNELS_FIXTURE_H
#define RS_TESTS_UNIT_KERNELS_FIXTURE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "kernels/backend.h"
#include "kernels/bf16.h"
#include "server/base/check.h"
#include "server/base/mem.h"

static uint64_t fx_state = 88172645463325252ull;

static inline uint32_t fx_u32(void)
{
    fx_state ^= fx_state << 13;
    fx_state ^= fx_state >> 7;
    fx_state ^= fx_state << 17;
    return (uint32_t)(fx_state >> 32);
}

static inline uint32_t fx_below(uint32_t n)
{
    return (uint32_t)(((uint64_t)fx_u32() * n) >> 32);
}

/* About normal, unit variance. */
static inline float fx_normal(void)
{
    float s = 0;
    for (int i = 0; i < 12; i++)
        s += (float)fx_u32() * (1.0f / 4294967296.0f);
    return s - 6.0f;
}

static inline float *fx_floats(size_t n, float scale)
{
    float *v = mem_array(n ? n : 1, sizeof(float));
    for (size_t i = 0; i < n; i++)
        v[i] = fx_normal() * scale;
    return v;
}

static inline float *fx_poisoned(size_t n)
{
    float *v = mem_array(n ? n : 1, sizeof(float));
    for (size_t i = 0; i < n; i++)
        v[i] = NAN;
    return v;
}

/* A random tensor of a dtype; `shift` bytes past an aligned address. The block holds nothing
 * behind the tensor. */
static inline void *fx_tensor(size_t n, enum dtype t, float scale, size_t shift)
{
    char *p = mem_array(n * dtype_bytes(t) + shift + 1, 1);
    for (size_t i = 0; i < n; i++)
        elem_store(p + shift, t, i, fx_normal() * scale);
    return p;
}

#define FX_BACKENDS_MAX 20
struct fx_backends {
    struct backend *ref, *cpu[FX_BACKENDS_MAX];
    uint32_t n_cpu;
};

static const char *const fx_paths[] = {"cpu:scalar", "cpu:avx2", "cpu:avx512", "cpu:avx512_bf16",
                                       "cpu:dnnl"};

static inline struct backend *fx_backend(const char *name, uint32_t threads)
{
    struct backend *b = NULL;
    struct errtext err = ERRTEXT_INIT;
    struct backend_options opt = {.name = name, .thread_count = threads, .deterministic = true};
    enum status st = backend_create(&b, &opt, &err);
    if (st == STATUS_UNSUPPORTED)
        return NULL;
    assert_int_equal(st, STATUS_OK);
    return b;
}

static inline void fx_open(struct fx_backends *f)
{
    memset(f, 0, sizeof(*f));
    f->ref = fx_backend("ref", 1);
    for (size_t i = 0; i < ARRAY_COUNT(fx_paths); i++) {
        for (uint32_t threads = 1; threads <= 3; threads++) {
            struct backend *b = fx_backend(fx_paths[i], threads);
            if (b)
                f->cpu[f->n_cpu++] = b;
        }
    }
    assert_true(f->n_cpu >= 3);
}

static inline void fx_close(struct fx_backends *f)
{
    backend_destroy(f->ref);
    for (uint32_t i = 0; i < f->n_cpu; i++)
        backend_destroy(f->cpu[i]);
}

/* The first backend of the same path: bits must equal its bits. */
static inline bool fx_same_path(const struct backend *a, const struct backend *b)
{
    return strcmp(a->version, b->version) == 0;
}

/* |got - want| <= tol * (rms of want + |want|); NaN only where want is NaN. */
static inline void fx_near_at(const float *got, const float *want, size_t n, double tol,
                              const char *what, int line)
{
    double rms = 0;
    size_t used = 0;
    for (size_t i = 0; i < n; i++)
        if (isfinite(want[i])) {
            rms += (double)want[i] * want[i];
            used++;
        }
    rms = used ? sqrt(rms / (double)used) : 0;
    for (size_t i = 0; i < n; i++) {
        bool same = isnan(want[i]) ? isnan(got[i])
                                   : got[i] == want[i] || fabs((double)got[i] - want[i]) <=
                                                              tol * (rms + fabs((double)want[i]));
        if (!same) {
            print_error("line %d: %s[%zu] is %.9g, expected %.9g (rms %.3g)\n", line, what, i,
                        (double)got[i], (double)want[i], rms);
            fail();
        }
    }
}
#define fx_near(got, want, n, tol, what) fx_near_at(got, want, n, tol, what, __LINE__)

#define fx_bits(got, want, n)                                                                      \
    do {                                                                                           \
        if (memcmp(got, want, (n) * sizeof(*(want))) != 0) {                                       \
            print_error("line %d: bits of %s differ from %s\n", __LINE__, #got, #want);            \
            fail();                                                                                \
        }                                                                                          \
    } while (0)

#endif
