/* Element conversion between stored dtypes. Inputs may lie at any alignment (safetensors promises
 * none). bf16 rounds as kernels/bf16.h does. Pure. */
#ifndef RS_MODEL_CONVERT_H
#define RS_MODEL_CONVERT_H

#include "kernels/args.h"
#include "server/model/safetensors.h"

/* out: n elements of out_dtype (F32 or BF16), naturally aligned. */
void convert_elements(void *out, enum dtype out_dtype, const void *in, enum dtype in_dtype,
                      size_t n);
/* One element as f32. */
float convert_load(const void *in, enum dtype dtype, size_t index);
/* Are all n elements finite? *any_nonzero: one of them is not zero (of either sign). */
bool convert_scan(const void *in, enum dtype dtype, size_t n, bool *any_nonzero);
/* false: not one of the three dtypes we compute with. */
bool convert_dtype(enum st_dtype stored, enum dtype *out);

#endif
