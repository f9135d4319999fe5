/* oneDNN, API 2.6 and 3.x: see dnnl.h. Weights are handed over as they are mapped, [d_out, d_in]
 * row-major, i.e. a transposed [K, N]. */
#include "kernels/cpu/dnnl.h"
#include "server/base/mem.h"

#if !RS_DNNL

enum status cpu_dnnl_create(struct cpu_dnnl **out, uint32_t n_worker, struct errtext *err)
{
    *out = NULL;
    (void)n_worker;
    return err_param(err, STATUS_UNSUPPORTED, "backend", "this build has no oneDNN");
}

void cpu_dnnl_destroy(struct cpu_dnnl *d)
{
    (void)d;
}

const char *cpu_dnnl_version(void)
{
    return "";
}

bool cpu_dnnl_gemm(struct cpu_backend *c, const struct gemm_args *a)
{
    (void)c;
    (void)a;
    return false;
}

#else

#include <stdio.h>
#include <string.h>

#include <dnnl.h>

#include "kernels/bf16.h"
#include "server/base/check.h"

#define SHAPES_MAX 256

/* Only there when the library was built with OpenMP; its thread count is per calling thread. */
extern void omp_set_num_threads(int n) __attribute__((weak));

/* One product [DNNL_ROWS, d_in] x [d_in, n]. */
struct dnnl_shape {
    uint32_t d_in, n;
    enum dtype dtype;
    dnnl_primitive_t primitive; /* NULL: the library refused */
    dnnl_memory_t (*mem)[3];    /* [worker] src, weights, dst */
};

struct cpu_dnnl {
    dnnl_engine_t engine;
    dnnl_stream_t *stream; /* [worker] */
    uint32_t n_worker, n_shape;
    struct dnnl_shape shape[SHAPES_MAX];
};

const char *cpu_dnnl_version(void)
{
    static char text[32];
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, sizeof(text), "%d.%d.%d", v->major, v->minor, v->patch);
    return text;
}

enum status cpu_dnnl_create(struct cpu_dnnl **out, uint32_t n_worker, struct errtext *err)
{
    struct cpu_dnnl *d = mem_alloc(sizeof(*d));
    *out = NULL;
    d->n_worker = n_worker;
    d->stream = mem_array(n_worker, sizeof(*d->stream));
    bool ok = dnnl_engine_create(&d->engine, dnnl_cpu, 0) == dnnl_success;
    for (uint32_t i = 0; ok && i < n_worker; i++)
        ok =
            dnnl_stream_create(&d->stream[i], d->engine, dnnl_stream_default_flags) == dnnl_success;
    if (!ok) {
        cpu_dnnl_destroy(d);
        return err_param(err, STATUS_UNSUPPORTED, "backend", "oneDNN cannot make a CPU engine");
    }
    *out = d;
    return STATUS_OK;
}

static void shape_free(struct dnnl_shape *s, uint32_t n_worker)
{
    for (uint32_t w = 0; s->mem && w < n_worker; w++)
        for (int i = 0; i < 3; i++)
            if (s->mem[w][i])
                dnnl_memory_destroy(s->mem[w][i]);
    if (s->primitive)
        dnnl_primitive_destroy(s->primitive);
    mem_free(s->mem);
}

void cpu_dnnl_destroy(struct cpu_dnnl *d)
{
    if (!d)
        return;
    for (uint32_t i = 0; i < d->n_shape; i++)
        shape_free(&d->shape[i], d->n_worker);
    for (uint32_t i = 0; i < d->n_worker; i++)
        if (d->stream[i])
            dnnl_stream_destroy(d->stream[i]);
    if (d->engine)
        dnnl_engine_destroy(d->engine);
    mem_free(d->stream);
    mem_free(d);
}

/* ---- the two APIs ---- */

/* A [rows, cols] matrix whose strides are given; the 2.6 API reads whole dnnl_dims_t. */
struct dnnl_matrix {
    dnnl_dims_t dims, strides;
    dnnl_data_type_t type;
};

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t mem_desc; /* opaque */
#define MD_IN(md) (md)

static bool md_make(mem_desc *md, const struct dnnl_matrix *m)
{
    return dnnl_memory_desc_create_with_strides(md, 2, m->dims, m->type, m->strides) ==
           dnnl_success;
}

static void md_free(mem_desc *md)
{
    if (*md)
        dnnl_memory_desc_destroy(*md);
}

static bool matmul_make(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, mem_desc md[3])
{
    return dnnl_matmul_primitive_desc_create(pd, engine, md[0], md[1], NULL, md[2], NULL) ==
           dnnl_success;
}
#else
typedef dnnl_memory_desc_t mem_desc; /* a struct */
#define MD_IN(md) (&(md))

static bool md_make(mem_desc *md, const struct dnnl_matrix *m)
{
    return dnnl_memory_desc_init_by_strides(md, 2, m->dims, m->type, m->strides) == dnnl_success;
}

static void md_free(mem_desc *md)
{
    (void)md;
}

static bool matmul_make(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, mem_desc md[3])
{
    dnnl_matmul_desc_t desc;
    return dnnl_matmul_desc_init(&desc, &md[0], &md[1], NULL, &md[2]) == dnnl_success &&
           dnnl_primitive_desc_create(pd, &desc, NULL, engine, NULL) == dnnl_success;
}
#endif

static void shape_memories(struct cpu_dnnl *d, struct dnnl_shape *s, mem_desc md[3])
{
    s->mem = mem_array(d->n_worker, sizeof(*s->mem));
    for (uint32_t w = 0; w < d->n_worker; w++)
        for (int i = 0; i < 3; i++)
            CHECK(dnnl_memory_create(&s->mem[w][i], MD_IN(md[i]), d->engine, DNNL_MEMORY_NONE) ==
                  dnnl_success);
}

static void shape_make(struct cpu_dnnl *d, struct dnnl_shape *s)
{
    dnnl_data_type_t t = s->dtype == DTYPE_BF16 ? dnnl_bf16 : dnnl_f32;
    int64_t k = s->d_in, n = s->n, m = DNNL_ROWS;
    struct dnnl_matrix x = {{m, k}, {k, 1}, t}, w = {{k, n}, {1, k}, t};
    struct dnnl_matrix y = {{m, n}, {DNNL_COLS, 1}, dnnl_f32};
    mem_desc md[3];
    memset(md, 0, sizeof(md));
    dnnl_primitive_desc_t pd = NULL;
    bool ok = md_make(&md[0], &x) && md_make(&md[1], &w) && md_make(&md[2], &y) &&
              matmul_make(&pd, d->engine, md);
    if (ok && dnnl_primitive_create(&s->primitive, pd) == dnnl_success)
        shape_memories(d, s, md);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    for (int i = 0; i < 3; i++)
        md_free(&md[i]);
}

static struct dnnl_shape *shape_get(struct cpu_dnnl *d, uint32_t d_in, uint32_t n, enum dtype t)
{
    for (uint32_t i = 0; i < d->n_shape; i++)
        if (d->shape[i].d_in == d_in && d->shape[i].n == n && d->shape[i].dtype == t)
            return d->shape[i].primitive ? &d->shape[i] : NULL;
    if (d->n_shape == SHAPES_MAX)
        return NULL;
    struct dnnl_shape *s = &d->shape[d->n_shape++];
    *s = (struct dnnl_shape){.d_in = d_in, .n = n, .dtype = t};
    if (omp_set_num_threads)
        omp_set_num_threads(1);
    shape_make(d, s);
    return s->primitive ? s : NULL;
}

/* ---- a product ---- */

struct dnnl_pass {
    struct cpu_backend *c;
    const struct gemm_args *a;
    const struct weight *w;
    struct dnnl_shape *full, *tail; /* outputs: DNNL_COLS, and the rest */
    float *y;                       /* column 0 of the part */
    uint32_t t0, rows, n_row_tile, n_col_tile;
};

static size_t x_row_bytes(const struct weight *w)
{
    return w->d_in * dtype_bytes(w->dtype);
}

static void convert_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct dnnl_pass *p = arg;
    uint64_t lo, hi;
    pool_share((uint64_t)p->n_row_tile * DNNL_ROWS, worker, n_worker, &lo, &hi);
    for (uint64_t t = lo; t < hi; t++) {
        char *dst = p->c->x + t * x_row_bytes(p->w);
        const float *x = (const float *)p->a->x + (p->t0 + t) * p->a->x_stride;
        if (t >= p->rows)
            memset(dst, 0, x_row_bytes(p->w));
        else
            for (uint32_t i = 0; i < p->w->d_in; i++)
                elem_store(dst, p->w->dtype, i, x[i]);
    }
}

static void dnnl_tile(const struct dnnl_pass *p, uint32_t worker, uint32_t row, uint32_t col)
{
    struct cpu_dnnl *d = p->c->dnnl;
    uint32_t n0 = col * DNNL_COLS, n = MIN((uint32_t)DNNL_COLS, p->w->d_out - n0);
    struct dnnl_shape *s = n == DNNL_COLS ? p->full : p->tail;
    size_t w_at = n0 * x_row_bytes(p->w);
    float *dst = cpu_scratch(p->c, worker);
    char *x = p->c->x + (size_t)row * DNNL_ROWS * x_row_bytes(p->w);
    char *w = (char *)(uintptr_t)p->w->data + w_at; /* the API takes no const */
    dnnl_memory_t *mem = s->mem[worker];
    dnnl_exec_arg_t args[3] = {
        {DNNL_ARG_SRC, mem[0]}, {DNNL_ARG_WEIGHTS, mem[1]}, {DNNL_ARG_DST, mem[2]}};
    CHECK(dnnl_memory_set_data_handle(mem[0], x) == dnnl_success);
    CHECK(dnnl_memory_set_data_handle(mem[1], w) == dnnl_success);
    CHECK(dnnl_memory_set_data_handle(mem[2], dst) == dnnl_success);
    CHECK(dnnl_primitive_execute(s->primitive, d->stream[worker], 3, args) == dnnl_success);
    CHECK(dnnl_stream_wait(d->stream[worker]) == dnnl_success);
    uint32_t rows = MIN((uint32_t)DNNL_ROWS, p->rows - row * DNNL_ROWS);
    for (uint32_t t = 0; t < rows; t++)
        memcpy(p->y + (size_t)(p->t0 + row * DNNL_ROWS + t) * p->a->y_stride + n0,
               dst + (size_t)t * DNNL_COLS, n * sizeof(float));
}

static void gemm_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct dnnl_pass *p = arg;
    uint64_t lo, hi;
    if (omp_set_num_threads)
        omp_set_num_threads(1);
    pool_share((uint64_t)p->n_row_tile * p->n_col_tile, worker, n_worker, &lo, &hi);
    for (uint64_t i = lo; i < hi; i++)
        dnnl_tile(p, worker, (uint32_t)(i % p->n_row_tile), (uint32_t)(i / p->n_row_tile));
}

static bool part_ready(struct dnnl_pass *p)
{
    const struct weight *w = p->w;
    uint32_t tail = w->d_out % DNNL_COLS;
    struct cpu_dnnl *d = p->c->dnnl;
    p->full = w->d_out >= DNNL_COLS ? shape_get(d, w->d_in, DNNL_COLS, w->dtype) : NULL;
    p->tail = tail ? shape_get(d, w->d_in, tail, w->dtype) : NULL;
    return (p->full || w->d_out < DNNL_COLS) && (p->tail || !tail);
}

bool cpu_dnnl_gemm(struct cpu_backend *c, const struct gemm_args *a)
{
    struct dnnl_pass p = {.c = c, .a = a, .y = a->y};
    for (uint32_t i = 0; i < a->part_count; i++) {
        p.w = &a->part[i];
        if (!part_ready(&p) || (uintptr_t)p.w->data % dtype_bytes(p.w->dtype))
            return false;
    }
    for (uint32_t i = 0; i < a->part_count; i++) {
        p.w = &a->part[i];
        CHECK(part_ready(&p));
        p.n_col_tile = (p.w->d_out + DNNL_COLS - 1) / DNNL_COLS;
        uint32_t fit = (uint32_t)(CPU_X_BYTES / x_row_bytes(p.w)) / DNNL_ROWS * DNNL_ROWS;
        CHECK(fit > 0);
        for (p.t0 = 0; p.t0 < a->n_tok; p.t0 += p.rows) {
            p.rows = MIN(a->n_tok - p.t0, fit);
            p.n_row_tile = (p.rows + DNNL_ROWS - 1) / DNNL_ROWS;
            pool_run(c->pool, convert_work, &p);
            pool_run(c->pool, gemm_work, &p);
        }
        p.y += p.w->d_out;
    }
    return true;
}

#endif
