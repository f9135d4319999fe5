/* oneDNN behind one door. Not used by default: a call allocates, and the library picks kernels by
 * shape. Two ways in: the path "cpu:dnnl" sends every gemm here; deterministic = false sends those
 * of many rows. Either way a product is cut into tiles of DNNL_ROWS rows (the last padded with
 * zeros) and DNNL_COLS outputs, each one single-threaded call, so a row's bits depend neither on
 * the count of rows nor on the count of threads; with deterministic = false they still depend on
 * whether a batch was large enough to come here. A primitive is made the first time a shape is
 * seen. */
#ifndef RS_KERNELS_CPU_DNNL_H
#define RS_KERNELS_CPU_DNNL_H

#include "kernels/cpu/cpu.h"

struct cpu_dnnl;

#define DNNL_ROWS 32
#define DNNL_COLS 256

/* UNSUPPORTED if the build has no oneDNN. */
MUST_CHECK enum status cpu_dnnl_create(struct cpu_dnnl **out, uint32_t n_worker,
                                       struct errtext *err);
void cpu_dnnl_destroy(struct cpu_dnnl *d);
/* "2.6.3", or "" without oneDNN. */
const char *cpu_dnnl_version(void);

/* The gemm of kernels/linear.h. False: oneDNN has no kernel for these shapes on this machine, and
 * nothing was written. */
bool cpu_dnnl_gemm(struct cpu_backend *c, const struct gemm_args *a);

#endif
