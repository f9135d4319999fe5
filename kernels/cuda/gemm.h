/* Inside the GEMM family: the base model's products behind gemm and logits, and the piece of a
 * product that score walks. Two own kernels (gemm_skinny.cu, gemm_tile.cu) give an element the same
 * bits whatever the number of rows (gemm.cuh); a deterministic backend has nothing else. Otherwise
 * cuBLASLt (cublaslt.h) takes the shapes where it was faster when they were timed at start
 * (gemm_plan.h). */
#ifndef RS_KERNELS_CUDA_GEMM_H
#define RS_KERNELS_CUDA_GEMM_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out[t, v - v0] = sum_k x[t, k] * w[v, k] for v0 <= v < v1, always by the own kernels: the bits of
 * an element depend on its rows of x and w only, and a deterministic cuda_logits has the same.
 * Shapes    out [n_row, out_stride] f32; x [n_row, x_stride] bf16
 * Before    as cuda_gemm */
struct gemm_tile_args {
    float *out;
    const void *x;
    struct weight w;
    uint32_t v0, v1;
    uint32_t n_row, x_stride, out_stride;
};
enum status cuda_gemm_tile(struct backend *b, const struct gemm_tile_args *a);

struct gemm_job;
struct gemm_plan;
struct cublaslt_api;

/* The family's state. partials: what a product cut into slices writes before it is added up. */
struct cuda_gemm {
    float *partials;
    size_t partials_bytes;
    struct gemm_plan *plan; /* NULL: own kernels only */
};

/* cuda_gemm_prepare, with the library's entry points given; api NULL: own kernels only. */
enum status cuda_gemm_prepare_with(struct cuda_backend *c, const struct cublaslt_api *api,
                                   struct errtext *err);

/* The own kernels, whatever the plan says. w may be cut: args as for cuda_gemm, y not NULL. */
enum status gemm_own(struct cuda_backend *c, const struct gemm_args *a);

#ifdef __cplusplus
}
#endif

#endif
