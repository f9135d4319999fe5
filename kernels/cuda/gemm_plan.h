/* Which products cuBLASLt does, when bits may depend on the batch (deterministic = false): for each
 * matrix shape of the model and each bucket of row counts, the library's candidates and the own
 * kernels are timed once, at start, and the fastest is kept. Timing rotates through copies of the
 * matrix, since in a step every weight comes from memory, not from L2.
 *
 * Use       gemm_plan_create -> (gemm_plan_knows -> gemm_plan_run) ... -> gemm_plan_destroy
 * Thread    the engine's. Create waits for the device: seconds for an 8B model. run allocates
 * nothing of ours and may be recorded in a graph. */
#ifndef RS_KERNELS_CUDA_GEMM_PLAN_H
#define RS_KERNELS_CUDA_GEMM_PLAN_H

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GEMM_LIBRARY_BYTES ((size_t)32 << 20) /* workspace of cuBLASLt, taken from the arena */

/* api is copied; unloaded by destroy. Errors: UNSUPPORTED, the library refuses the device;
 * TOO_LARGE, no room for the workspace. A shape whose copy does not fit beside what is allocated is
 * not timed and stays with the own kernels: a warning says which. */
MUST_CHECK enum status gemm_plan_create(struct gemm_plan **out, struct cuda_backend *c,
                                        const struct cublaslt_api *api, struct errtext *err);
void gemm_plan_destroy(struct gemm_plan *p, struct cuda_backend *c);

/* Whether the library takes this matrix for so many rows. */
bool gemm_plan_knows(struct gemm_plan *p, const struct weight *w, uint32_t n_row);
/* A product of one part, by whoever was faster; by the own kernels where the library refuses. */
enum status gemm_plan_run(struct gemm_plan *p, struct cuda_backend *c, const struct gemm_args *a);

#ifdef __cplusplus
}
#endif

#endif
