/* The functions of lt_double.h. */
#define RS_EMULATION "tests/emulation/emu.h"
#include "tests/emulation/lt_double.h"
#include "kernels/cuda/device.cuh"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "tests/emulation/emu_control.h"

struct lt_double lt_double = {0, false, false, 0, 0, {}};

struct object {
    int kind, type, trans[2];
    uint64_t rows, cols;
    int64_t ld;
    uint64_t workspace;
    uint32_t aligned;
};
enum { HANDLE = 1, DESC, LAYOUT, PREF };

static int make(void **out, int kind)
{
    struct object *o = (struct object *)mem_alloc(sizeof(*o));
    o->kind = kind;
    *out = o;
    lt_double.alive++;
    return LT_SUCCESS;
}
static struct object *as(void *p, int kind)
{
    struct object *o = (struct object *)p;
    CHECK(o && o->kind == kind);
    return o;
}
static int drop(void *p)
{
    lt_double.alive--;
    mem_free(p);
    return LT_SUCCESS;
}

static size_t version(void)
{
    return 130000;
}
static int create(void **handle)
{
    return lt_double.refuse_device ? 8 : make(handle, HANDLE);
}
static int desc_create(void **desc, int compute, int scale_type)
{
    CHECK(compute == LT_COMPUTE_32F && scale_type == LT_R_32F);
    return make(desc, DESC);
}
static int desc_set(void *desc, int attribute, const void *value, size_t bytes)
{
    CHECK(bytes == 4 && (attribute == LT_DESC_TRANSA || attribute == LT_DESC_TRANSB));
    memcpy(&as(desc, DESC)->trans[attribute - LT_DESC_TRANSA], value, 4);
    return LT_SUCCESS;
}
static int layout_create(void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld)
{
    make(layout, LAYOUT);
    struct object *o = as(*layout, LAYOUT);
    o->type = type;
    o->rows = rows;
    o->cols = cols;
    o->ld = ld;
    return LT_SUCCESS;
}
static int layout_set(void *layout, int attribute, const void *value, size_t bytes)
{
    struct object *o = as(layout, LAYOUT);
    CHECK(bytes == 8 && (attribute == LT_LAYOUT_COLS || attribute == LT_LAYOUT_LD));
    memcpy(attribute == LT_LAYOUT_COLS ? (void *)&o->cols : (void *)&o->ld, value, 8);
    return LT_SUCCESS;
}
static int pref_create(void **pref)
{
    return make(pref, PREF);
}
static int pref_set(void *pref, int attribute, const void *value, size_t bytes)
{
    struct object *o = as(pref, PREF);
    uint32_t align;
    if (attribute == LT_PREF_WORKSPACE_BYTES) {
        CHECK(bytes == 8);
        memcpy(&o->workspace, value, 8);
        return LT_SUCCESS;
    }
    CHECK(bytes == 4 && attribute >= LT_PREF_ALIGN_A && attribute <= LT_PREF_ALIGN_D);
    memcpy(&align, value, 4);
    CHECK(align == CUBLASLT_ALIGN);
    o->aligned |= 1u << (attribute - LT_PREF_ALIGN_A);
    return LT_SUCCESS;
}

/* Shapes as a product of ours must give them. */
static void check_shapes(void *desc, void *a, void *b, void *c)
{
    const struct object *op = as(desc, DESC), *w = as(a, LAYOUT), *x = as(b, LAYOUT);
    const struct object *y = as(c, LAYOUT);
    CHECK(op->trans[0] == LT_OP_T && op->trans[1] == LT_OP_N);
    CHECK(w->type == LT_R_16BF && x->type == LT_R_16BF && y->type == LT_R_32F);
    CHECK(w->rows == x->rows && w->cols == y->rows && x->cols == y->cols);
    CHECK(w->ld >= (int64_t)w->rows && x->ld >= (int64_t)x->rows && y->ld >= (int64_t)y->rows);
}

static int heuristic(void *handle, void *desc, void *a, void *b, void *c, void *d, void *pref,
                     int asked, struct cublaslt_heuristic *results, int *count)
{
    as(handle, HANDLE);
    check_shapes(desc, a, b, c);
    CHECK(c == d && as(pref, PREF)->aligned == 15 && as(pref, PREF)->workspace > 0);
    int n = asked < 4 ? asked : 4;
    memset(results, 0, sizeof(*results) * (size_t)n);
    for (int i = 0; i < n; i++) {
        results[i].algo.data[0] = (uint64_t)i;
        results[i].workspace_bytes = i == 3 ? as(pref, PREF)->workspace + 1 : 1024;
    }
    *count = n;
    return LT_SUCCESS;
}

struct product {
    const bf16_t *w, *x;
    float *y;
    uint32_t m, n, k, burn_us;
    int64_t ldw, ldx, ldy;
};

static KERNEL(1, 1) void product_kernel(const struct product p)
{
    emu_spend_us(p.burn_us);
    for (uint32_t i = 0; i < p.n; i++)
        for (uint32_t j = 0; j < p.m; j++) {
            float sum = 0;
            for (uint32_t k = 0; k < p.k; k++)
                sum += bf16_to_f32(p.w[j * p.ldw + k]) * bf16_to_f32(p.x[i * p.ldx + k]);
            p.y[i * p.ldy + j] = sum;
        }
}

static int matmul(void *handle, void *desc, const void *alpha, const void *a, void *a_layout,
                  const void *b, void *b_layout, const void *beta, const void *c, void *c_layout,
                  void *d, void *d_layout, const struct cublaslt_algo *algo, void *workspace,
                  size_t workspace_bytes, void *stream)
{
    as(handle, HANDLE);
    check_shapes(desc, a_layout, b_layout, d_layout);
    CHECK(c == d && c_layout == d_layout && workspace && workspace_bytes >= 1024);
    CHECK(*(const float *)alpha == 1 && *(const float *)beta == 0 && algo->data[0] < 3);
    if (lt_double.refuse || algo->data[0] == 2)
        return LT_NOT_SUPPORTED;
    const struct object *w = as(a_layout, LAYOUT), *x = as(b_layout, LAYOUT);
    const struct object *y = as(d_layout, LAYOUT);
    const struct product p = {(const bf16_t *)a,
                              (const bf16_t *)b,
                              (float *)d,
                              (uint32_t)y->rows,
                              (uint32_t)y->cols,
                              (uint32_t)w->rows,
                              lt_double.burn_us + (algo->data[0] == 0 ? 2000 : 0),
                              w->ld,
                              x->ld,
                              y->ld};
    LAUNCH(product_kernel, 1, 1, 0, stream, p);
    lt_double.runs++;
    lt_double.used[algo->data[0]]++;
    return LT_SUCCESS;
}

struct cublaslt_api lt_double_api(void)
{
    struct cublaslt_api api = {};
    api.version = version;
    api.create = create;
    api.destroy = drop;
    api.desc_create = desc_create;
    api.desc_destroy = drop;
    api.desc_set = desc_set;
    api.layout_create = layout_create;
    api.layout_destroy = drop;
    api.layout_set = layout_set;
    api.pref_create = pref_create;
    api.pref_destroy = drop;
    api.pref_set = pref_set;
    api.heuristic = heuristic;
    api.matmul = matmul;
    return api;
}
