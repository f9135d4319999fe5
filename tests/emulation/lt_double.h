/* A stand-in for cuBLASLt in the tests of the GEMM family: the table of entry points, filled with
 * functions that check their arguments and compute the product with an emulated kernel, one thread,
 * in ascending k. It exists in test programs only. */
#ifndef RS_TESTS_EMULATION_LT_DOUBLE_H
#define RS_TESTS_EMULATION_LT_DOUBLE_H

#include "kernels/cuda/cublaslt.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Algorithms it offers: 0 takes 2 ms more than needed, 1 is right, 2 is refused when it is
 * run, 3 asks for more workspace than there is. */
struct lt_double {
    uint32_t burn_us;   /* every product takes so much of the device's time more */
    bool refuse;        /* all runs are refused from now on */
    bool refuse_device; /* create fails */
    int alive;          /* handles, descriptors, layouts, preferences */
    uint32_t runs;      /* products accepted so far */
    uint32_t used[4];   /* by algorithm */
};
extern struct lt_double lt_double;

struct cublaslt_api lt_double_api(void);

#ifdef __cplusplus
}
#endif

#endif
