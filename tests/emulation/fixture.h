/* What the tests of the emulated CUDA backend share: both backends, device copies of host tensors
 * (each guarded on both ends), poisoned outputs, activations as bf16, and comparison by norm.
 * Random tensors and the rest come from the kernel tests' fixture. */
#ifndef RS_TESTS_EMULATION_FIXTURE_H
#define RS_TESTS_EMULATION_FIXTURE_H

#include "kernels/cuda/cuda.h"
#include "tests/emulation/emu_control.h"
#include "tests/unit/kernels_fixture.h"

struct ec {
    struct backend *ref, *cuda;
};

/* Limits large enough for kernel tests; change what a test needs otherwise. */
static inline struct backend_limits ec_limits(void)
{
    return (struct backend_limits){.rows_max = 512,
                                   .seqs_max = 64,
                                   .page_stride = 320,
                                   .segs_max = 64,
                                   .slots_max = 16,
                                   .layouts_max = 8,
                                   .rank_sum_max = 512,
                                   .logits_rows_max = 64,
                                   .n_layer = 2,
                                   .d_model = 512,
                                   .d_ff = 1024,
                                   .n_head = 8,
                                   .n_kv_head = 2,
                                   .d_head = 64,
                                   .n_vocab = 1000};
}

static inline void ec_open_with(struct ec *e, const struct backend_limits *lim, const char *name)
{
    struct errtext err = ERRTEXT_INIT;
    struct backend_options opt = {
        .name = name, .deterministic = true, .device_bytes = (uint64_t)256 << 20};
    e->ref = fx_backend("ref", 1);
    enum status st = backend_create(&e->cuda, &opt, &err);
    if (!st)
        st = e->cuda->ops->prepare(e->cuda, lim, &err);
    if (st)
        print_error("%s\n", err.text);
    assert_int_equal(st, STATUS_OK);
}

static inline void ec_open(struct ec *e)
{
    struct backend_limits lim = ec_limits();
    ec_open_with(e, &lim, "cuda");
}

static inline void ec_close(struct ec *e)
{
    backend_destroy(e->ref);
    backend_destroy(e->cuda);
}

/* ---- device memory ---- */

static inline void *ec_alloc(struct ec *e, size_t bytes) /* NaN all over */
{
    void *p = e->cuda->ops->mem_alloc(e->cuda, bytes);
    assert_non_null(p);
#ifdef RS_ON_DEVICE /* the emulation does it by itself */
    assert_int_equal(gpu_fill(cuda_of(e->cuda)->stream, p, 0xff, bytes), STATUS_OK);
#endif
    return p;
}

static inline void ec_free(struct ec *e, void *p)
{
    e->cuda->ops->mem_free(e->cuda, p, 0);
}

static inline void *ec_put(struct ec *e, const void *host, size_t bytes)
{
    void *p = ec_alloc(e, bytes);
    assert_int_equal(e->cuda->ops->mem_write(e->cuda, p, host, bytes), STATUS_OK);
    return p;
}

static inline void ec_get(struct ec *e, void *host, const void *dev, size_t bytes)
{
    assert_int_equal(e->cuda->ops->mem_read(e->cuda, host, dev, bytes), STATUS_OK);
}

/* Activations: f32 on the host, bf16 on the device; ec_put_acts rounds the host's copy too, so that
 * both backends start from the same numbers. */
static inline void *ec_put_acts(struct ec *e, float *host, size_t n)
{
    uint16_t *h = mem_array(n ? n : 1, sizeof(*h));
    for (size_t i = 0; i < n; i++) {
        h[i] = bf16_from_f32(host[i]);
        host[i] = bf16_to_f32(h[i]);
    }
    void *p = ec_put(e, h, n * sizeof(*h));
    mem_free(h);
    return p;
}

static inline float *ec_get_acts(struct ec *e, const void *dev, size_t n) /* mem_free it */
{
    uint16_t *h = mem_array(n ? n : 1, sizeof(*h));
    float *f = mem_array(n ? n : 1, sizeof(*f));
    ec_get(e, h, dev, n * sizeof(*h));
    for (size_t i = 0; i < n; i++)
        f[i] = bf16_to_f32(h[i]);
    mem_free(h);
    return f;
}

static inline float *ec_get_floats(struct ec *e, const void *dev, size_t n) /* mem_free it */
{
    float *f = mem_array(n ? n : 1, sizeof(*f));
    ec_get(e, f, dev, n * sizeof(*f));
    return f;
}

/* ---- steps ---- */

/* A step of rows alone: one sequence for each row, base only. */
static inline void ec_step_rows(struct ec *e, const int32_t *ids, uint32_t n_tok,
                                const uint32_t *out_rows, uint32_t n_out)
{
    uint32_t *zero = mem_array(n_tok + 1, sizeof(*zero)), page = 0;
    int32_t *no_ids = mem_array(n_tok + 1, sizeof(*no_ids));
    struct step_args a = {.ids = ids ? ids : no_ids,
                          .rows = {.seq = zero, .pos = zero, .page_table = &page, .page_stride = 1},
                          .out_rows = out_rows,
                          .n_tok = n_tok,
                          .n_out = n_out};
    assert_int_equal(e->cuda->ops->step(e->cuda, &a), STATUS_OK);
    mem_free(zero);
    mem_free(no_ids);
}

/* ---- comparison ---- */

/* |got - want| / |want| over the whole tensor; infinite if one is NaN where the other is not. */
static inline double ec_distance(const float *got, const float *want, size_t n)
{
    double err = 0, ref = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(got[i]) && isnan(want[i]))
            continue;
        err += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        ref += (double)want[i] * want[i];
    }
    return isnan(err) ? INFINITY : err == 0 ? 0 : sqrt(err / ref);
}

static inline void ec_close_to_at(const float *got, const float *want, size_t n, double tol,
                                  const char *what, int line)
{
    double d = ec_distance(got, want, n);
    if (!(d <= tol)) {
        print_error("line %d: %s: |err|/|ref| is %.3g, at most %.3g\n", line, what, d, tol);
        for (size_t i = 0, shown = 0; i < n && shown < 4; i++)
            if (!(fabs((double)got[i] - want[i]) <= 4 * tol * fabs((double)want[i]))) {
                print_error("  [%zu] %.6g, expected %.6g\n", i, (double)got[i], (double)want[i]);
                shown++;
            }
        fail();
    }
}
#define ec_close_to(got, want, n, tol, what) ec_close_to_at(got, want, n, tol, what, __LINE__)

#define EC_TOL_BF16 4e-3 /* outputs rounded to bf16 */
#define EC_TOL_F32  1e-5 /* f32 sums in another order */

#endif
