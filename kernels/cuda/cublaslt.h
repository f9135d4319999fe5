/* cuBLASLt behind one door: found at run time, so neither the build nor a deterministic server
 * needs it. The entry points and enum values here are our own declarations of the library's
 * interface (version 12 and 13 agree on all of them); cublaslt.c compares them with the real header
 * where the build has one.
 *
 * A product y = x W^T of row-major matrices is, in the library's column-major terms,
 * Y' [d_out, n_row] = op(W') X' with W' [d_in, d_out] transposed and X' [d_in, n_row].
 *
 * Use       cublaslt_load -> cublaslt_open -> product_open -> candidates -> run ... -> close
 * Thread    the engine's. run allocates nothing of ours. */
#ifndef RS_KERNELS_CUDA_CUBLASLT_H
#define RS_KERNELS_CUDA_CUBLASLT_H

#include "server/base/errtext.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LT_SUCCESS = 0, LT_INVALID_VALUE = 7, LT_NOT_SUPPORTED = 15 }; /* status */
enum { LT_R_32F = 0, LT_R_16BF = 14, LT_COMPUTE_32F = 68, LT_OP_N = 0, LT_OP_T = 1 };
enum { LT_DESC_TRANSA = 3, LT_DESC_TRANSB = 4 };
enum { LT_LAYOUT_ROWS = 2, LT_LAYOUT_COLS = 3, LT_LAYOUT_LD = 4 };
enum {
    LT_PREF_WORKSPACE_BYTES = 1,
    LT_PREF_ALIGN_A = 5,
    LT_PREF_ALIGN_B = 6,
    LT_PREF_ALIGN_C = 7,
    LT_PREF_ALIGN_D = 8
};

struct cublaslt_algo {
    uint64_t data[8];
};
struct cublaslt_heuristic {
    struct cublaslt_algo algo;
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
};

/* What the library exports, as far as we use it. */
struct cublaslt_api {
    void *lib; /* of dlopen */
    size_t (*version)(void);
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*desc_create)(void **desc, int compute, int scale_type);
    int (*desc_destroy)(void *desc);
    int (*desc_set)(void *desc, int attribute, const void *value, size_t bytes);
    int (*layout_create)(void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
    int (*layout_destroy)(void *layout);
    int (*layout_set)(void *layout, int attribute, const void *value, size_t bytes);
    int (*pref_create)(void **pref);
    int (*pref_destroy)(void *pref);
    int (*pref_set)(void *pref, int attribute, const void *value, size_t bytes);
    int (*heuristic)(void *handle, void *desc, void *a, void *b, void *c, void *d, void *pref,
                     int asked, struct cublaslt_heuristic *results, int *count);
    int (*matmul)(void *handle, void *desc, const void *alpha, const void *a, void *a_layout,
                  const void *b, void *b_layout, const void *beta, const void *c, void *c_layout,
                  void *d, void *d_layout, const struct cublaslt_algo *algo, void *workspace,
                  size_t workspace_bytes, void *stream);
};

/* libcublasLt.so.13, then .12. Errors: UNSUPPORTED, with every name tried and why it failed. */
MUST_CHECK enum status cublaslt_load(struct cublaslt_api *api, struct errtext *err);
void cublaslt_unload(struct cublaslt_api *api);

struct cublaslt {
    struct cublaslt_api api;
    void *handle;
    void *workspace; /* the caller's, device memory */
    size_t workspace_bytes;
};
/* Errors: UNSUPPORTED, the library refuses this device. */
MUST_CHECK enum status cublaslt_open(struct cublaslt *lt, const struct cublaslt_api *api,
                                     struct errtext *err);
void cublaslt_close(struct cublaslt *lt);

/* Descriptors of one product: fixed d_out and d_in, rows and strides set at each run. */
struct cublaslt_product {
    void *desc, *w, *x, *y;
    uint32_t d_out, d_in, n_row, x_stride, y_stride;
};
struct cublaslt_operands {
    const void *w, *x; /* bf16 */
    float *y;
    uint32_t n_row, x_stride, y_stride;
    void *stream;
};
#define CUBLASLT_ALIGN 16 /* bytes, of w, x and y */

MUST_CHECK enum status cublaslt_product_open(struct cublaslt *lt, struct cublaslt_product *p,
                                             uint32_t d_out, uint32_t d_in);
void cublaslt_product_close(struct cublaslt *lt, struct cublaslt_product *p);

/* Algorithms that the library thinks fit the operands' shape, best guess first. Returns how many.
 */
uint32_t cublaslt_candidates(struct cublaslt *lt, struct cublaslt_product *p,
                             const struct cublaslt_operands *o, struct cublaslt_heuristic *out,
                             uint32_t max);
/* Errors: UNSUPPORTED, not with this algorithm or alignment; IO, a broken device. */
enum status cublaslt_run(struct cublaslt *lt, struct cublaslt_product *p,
                         const struct cublaslt_algo *algo, const struct cublaslt_operands *o);

#ifdef __cplusplus
}
#endif

#endif
