/* The loader and the calls of cublaslt.h. */
#include "kernels/cuda/cublaslt.h"
#include "server/base/check.h"
#include "server/base/log.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#if defined(__has_include)
#if __has_include(<cublasLt.h>)
#define HAVE_HEADER 1
#endif
#endif

static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

/* Symbols in the order of the function pointers of struct cublaslt_api. */
static const struct {
    const char *symbol;
    size_t offset;
} entries[] = {
    {"cublasLtGetVersion", offsetof(struct cublaslt_api, version)},
    {"cublasLtCreate", offsetof(struct cublaslt_api, create)},
    {"cublasLtDestroy", offsetof(struct cublaslt_api, destroy)},
    {"cublasLtMatmulDescCreate", offsetof(struct cublaslt_api, desc_create)},
    {"cublasLtMatmulDescDestroy", offsetof(struct cublaslt_api, desc_destroy)},
    {"cublasLtMatmulDescSetAttribute", offsetof(struct cublaslt_api, desc_set)},
    {"cublasLtMatrixLayoutCreate", offsetof(struct cublaslt_api, layout_create)},
    {"cublasLtMatrixLayoutDestroy", offsetof(struct cublaslt_api, layout_destroy)},
    {"cublasLtMatrixLayoutSetAttribute", offsetof(struct cublaslt_api, layout_set)},
    {"cublasLtMatmulPreferenceCreate", offsetof(struct cublaslt_api, pref_create)},
    {"cublasLtMatmulPreferenceDestroy", offsetof(struct cublaslt_api, pref_destroy)},
    {"cublasLtMatmulPreferenceSetAttribute", offsetof(struct cublaslt_api, pref_set)},
    {"cublasLtMatmulAlgoGetHeuristic", offsetof(struct cublaslt_api, heuristic)},
    {"cublasLtMatmul", offsetof(struct cublaslt_api, matmul)},
};

enum status cublaslt_load(struct cublaslt_api *api, struct errtext *err)
{
    char why[2][160] = {"", ""};
    memset(api, 0, sizeof(*api));
    for (size_t i = 0; i < ARRAY_COUNT(names) && !api->lib; i++) {
        api->lib = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (!api->lib) {
            const char *text = dlerror();
            snprintf(why[i], sizeof(why[i]), "%s", text ? text : "not loadable");
        }
    }
    if (!api->lib)
        return err_set(err, STATUS_UNSUPPORTED,
                       "cuBLASLt was not found: looked for %s (%s), then %s (%s); put its folder "
                       "into LD_LIBRARY_PATH, or set deterministic to true, which does without",
                       names[0], why[0], names[1], why[1]);
    for (size_t i = 0; i < ARRAY_COUNT(entries); i++) {
        void *f = dlsym(api->lib, entries[i].symbol);
        if (!f) {
            cublaslt_unload(api);
            return err_set(err, STATUS_UNSUPPORTED, "cuBLASLt has no %s", entries[i].symbol);
        }
        memcpy((char *)api + entries[i].offset, &f, sizeof(f)); /* a function through void * */
    }
    return STATUS_OK;
}

void cublaslt_unload(struct cublaslt_api *api)
{
    if (api->lib)
        dlclose(api->lib);
    memset(api, 0, sizeof(*api));
}

enum status cublaslt_open(struct cublaslt *lt, const struct cublaslt_api *api, struct errtext *err)
{
    *lt = (struct cublaslt){.api = *api};
    int st = api->create(&lt->handle);
    if (st == LT_SUCCESS)
        return STATUS_OK;
    lt->handle = NULL;
    return err_set(err, STATUS_UNSUPPORTED,
                   "cuBLASLt %zu does not start on this device (status %d); set deterministic to "
                   "true to do without",
                   api->version(), st);
}

void cublaslt_close(struct cublaslt *lt)
{
    if (lt->handle)
        lt->api.destroy(lt->handle);
    memset(lt, 0, sizeof(*lt));
}

/* ---- products ---- */

enum status cublaslt_product_open(struct cublaslt *lt, struct cublaslt_product *p, uint32_t d_out,
                                  uint32_t d_in)
{
    const struct cublaslt_api *api = &lt->api;
    const int32_t op_w = LT_OP_T, op_x = LT_OP_N;
    *p = (struct cublaslt_product){.d_out = d_out, .d_in = d_in, .n_row = 1};
    p->x_stride = d_in;
    p->y_stride = d_out;
    if (api->desc_create(&p->desc, LT_COMPUTE_32F, LT_R_32F) == LT_SUCCESS &&
        api->desc_set(p->desc, LT_DESC_TRANSA, &op_w, sizeof(op_w)) == LT_SUCCESS &&
        api->desc_set(p->desc, LT_DESC_TRANSB, &op_x, sizeof(op_x)) == LT_SUCCESS &&
        api->layout_create(&p->w, LT_R_16BF, d_in, d_out, d_in) == LT_SUCCESS &&
        api->layout_create(&p->x, LT_R_16BF, d_in, 1, d_in) == LT_SUCCESS &&
        api->layout_create(&p->y, LT_R_32F, d_out, 1, d_out) == LT_SUCCESS)
        return STATUS_OK;
    cublaslt_product_close(lt, p);
    return STATUS_NO_MEMORY;
}

void cublaslt_product_close(struct cublaslt *lt, struct cublaslt_product *p)
{
    void *layout[] = {p->w, p->x, p->y};
    for (size_t i = 0; i < ARRAY_COUNT(layout); i++) {
        if (layout[i])
            lt->api.layout_destroy(layout[i]);
    }
    if (p->desc)
        lt->api.desc_destroy(p->desc);
    memset(p, 0, sizeof(*p));
}

/* The layouts as these operands need them. */
static bool product_shape(struct cublaslt *lt, struct cublaslt_product *p,
                          const struct cublaslt_operands *o)
{
    const struct cublaslt_api *api = &lt->api;
    int failed = 0;
    if (p->n_row != o->n_row) {
        const uint64_t cols = o->n_row;
        failed |= api->layout_set(p->x, LT_LAYOUT_COLS, &cols, sizeof(cols));
        failed |= api->layout_set(p->y, LT_LAYOUT_COLS, &cols, sizeof(cols));
        p->n_row = o->n_row;
    }
    if (p->x_stride != o->x_stride) {
        const int64_t ld = o->x_stride;
        failed |= api->layout_set(p->x, LT_LAYOUT_LD, &ld, sizeof(ld));
        p->x_stride = o->x_stride;
    }
    if (p->y_stride != o->y_stride) {
        const int64_t ld = o->y_stride;
        failed |= api->layout_set(p->y, LT_LAYOUT_LD, &ld, sizeof(ld));
        p->y_stride = o->y_stride;
    }
    return failed == LT_SUCCESS;
}

static bool preference(struct cublaslt *lt, void **pref)
{
    static const int aligned[] = {LT_PREF_ALIGN_A, LT_PREF_ALIGN_B, LT_PREF_ALIGN_C,
                                  LT_PREF_ALIGN_D};
    const struct cublaslt_api *api = &lt->api;
    const uint64_t bytes = lt->workspace_bytes;
    const uint32_t align = CUBLASLT_ALIGN;
    if (api->pref_create(pref) != LT_SUCCESS)
        return false;
    int failed = api->pref_set(*pref, LT_PREF_WORKSPACE_BYTES, &bytes, sizeof(bytes));
    for (size_t i = 0; i < ARRAY_COUNT(aligned); i++)
        failed |= api->pref_set(*pref, aligned[i], &align, sizeof(align));
    if (failed != LT_SUCCESS)
        api->pref_destroy(*pref);
    return failed == LT_SUCCESS;
}

uint32_t cublaslt_candidates(struct cublaslt *lt, struct cublaslt_product *p,
                             const struct cublaslt_operands *o, struct cublaslt_heuristic *out,
                             uint32_t max)
{
    void *pref = NULL;
    int count = 0;
    if (!product_shape(lt, p, o) || !preference(lt, &pref))
        return 0;
    int st =
        lt->api.heuristic(lt->handle, p->desc, p->w, p->x, p->y, p->y, pref, (int)max, out, &count);
    lt->api.pref_destroy(pref);
    if (st != LT_SUCCESS || count < 0)
        return 0;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < MIN((uint32_t)count, max); i++) {
        if (out[i].status == LT_SUCCESS && out[i].workspace_bytes <= lt->workspace_bytes)
            out[kept++] = out[i];
    }
    return kept;
}

enum status cublaslt_run(struct cublaslt *lt, struct cublaslt_product *p,
                         const struct cublaslt_algo *algo, const struct cublaslt_operands *o)
{
    const float one = 1, zero = 0;
    if (((uintptr_t)o->w | (uintptr_t)o->x | (uintptr_t)o->y) % CUBLASLT_ALIGN != 0)
        return STATUS_UNSUPPORTED;
    if (!product_shape(lt, p, o))
        return STATUS_UNSUPPORTED;
    int st = lt->api.matmul(lt->handle, p->desc, &one, o->w, p->w, o->x, p->x, &zero, o->y, p->y,
                            o->y, p->y, algo, lt->workspace, lt->workspace_bytes, o->stream);
    if (st == LT_SUCCESS)
        return STATUS_OK;
    if (st == LT_NOT_SUPPORTED || st == LT_INVALID_VALUE)
        return STATUS_UNSUPPORTED;
    log_error("cuda", "cublasLtMatmul [%u, %u] x %u rows: status %d", p->d_out, p->d_in, o->n_row,
              st);
    return STATUS_IO;
}

#ifdef HAVE_HEADER
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wstrict-prototypes"
#pragma GCC diagnostic ignored "-Wundef"
#include <cublasLt.h>
#pragma GCC diagnostic pop

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)
SAME(LT_SUCCESS, CUBLAS_STATUS_SUCCESS);
SAME(LT_INVALID_VALUE, CUBLAS_STATUS_INVALID_VALUE);
SAME(LT_NOT_SUPPORTED, CUBLAS_STATUS_NOT_SUPPORTED);
SAME(LT_R_32F, CUDA_R_32F);
SAME(LT_R_16BF, CUDA_R_16BF);
SAME(LT_COMPUTE_32F, CUBLAS_COMPUTE_32F);
SAME(LT_OP_N, CUBLAS_OP_N);
SAME(LT_OP_T, CUBLAS_OP_T);
SAME(LT_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(LT_DESC_TRANSB, CUBLASLT_MATMUL_DESC_TRANSB);
SAME(LT_LAYOUT_ROWS, CUBLASLT_MATRIX_LAYOUT_ROWS);
SAME(LT_LAYOUT_COLS, CUBLASLT_MATRIX_LAYOUT_COLS);
SAME(LT_LAYOUT_LD, CUBLASLT_MATRIX_LAYOUT_LD);
SAME(LT_PREF_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(LT_PREF_ALIGN_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(LT_PREF_ALIGN_B, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
SAME(LT_PREF_ALIGN_C, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
SAME(LT_PREF_ALIGN_D, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME(sizeof(struct cublaslt_algo), sizeof(cublasLtMatmulAlgo_t));
SAME(sizeof(struct cublaslt_heuristic), sizeof(cublasLtMatmulHeuristicResult_t));
SAME(offsetof(struct cublaslt_heuristic, workspace_bytes),
     offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
SAME(offsetof(struct cublaslt_heuristic, status), offsetof(cublasLtMatmulHeuristicResult_t, state));
SAME(sizeof(int), sizeof(cublasStatus_t));
SAME(sizeof(int), sizeof(cudaDataType_t));
SAME(sizeof(int), sizeof(cublasComputeType_t));

/* Calls through the real prototypes with what we pass compile; sizeof(does) not make them. */
#define P              ((void *)0)
#define CALLABLE(call) _Static_assert(sizeof(call) == sizeof(int), #call)
CALLABLE(cublasLtMatmul(P, P, P, P, P, P, P, P, P, P, P, P, P, P, (size_t)0, P));
CALLABLE(cublasLtMatmulAlgoGetHeuristic(P, P, P, P, P, P, P, 16, P, P));
CALLABLE(cublasLtMatrixLayoutCreate(P, (cudaDataType)0, (uint64_t)1, (uint64_t)1, (int64_t)1));
CALLABLE(cublasLtMatrixLayoutSetAttribute(P, (cublasLtMatrixLayoutAttribute_t)0, P, (size_t)8));
CALLABLE(cublasLtMatmulDescCreate(P, (cublasComputeType_t)0, (cudaDataType_t)0));
CALLABLE(cublasLtMatmulDescSetAttribute(P, (cublasLtMatmulDescAttributes_t)0, P, (size_t)4));
CALLABLE(cublasLtMatmulPreferenceSetAttribute(P, (cublasLtMatmulPreferenceAttributes_t)0, P,
                                              (size_t)8));
#endif
