/* In the place of the CUDA backend where there was no CUDA compiler. */
#include "kernels/cuda/cuda.h"

enum status cuda_backend_create(struct backend **out, const struct backend_options *opt,
                                struct errtext *err)
{
    (void)opt;
    *out = NULL;
    return err_param(
        err, STATUS_UNSUPPORTED, "backend",
        "backend \"cuda\" is not part of this build: CMake found no CUDA compiler; use "
        "\"cpu\", or build with nvcc on PATH");
}
