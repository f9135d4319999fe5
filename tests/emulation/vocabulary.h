/* Kernels of vocabulary.cu, by name. */
#ifndef RS_TESTS_EMULATION_VOCABULARY_H
#define RS_TESTS_EMULATION_VOCABULARY_H

#include "server/base/status.h"

#include <stddef.h>
#include <stdint.h>

enum fault {
    FAULT_NONE,
    FAULT_NO_BARRIER,
    FAULT_NO_WARP_SYNC,
    FAULT_NO_FENCE,
    FAULT_NO_WAIT,
    FAULT_STAGE_REUSED,
    FAULT_BLOCKS_COLLIDE,
    FAULT_BOUNDS,
    FAULT_SMEM_BOUNDS,
    FAULT_DIVERGENT_BARRIER,
    FAULT_LONELY_BARRIER,
    FAULT_DIVERGENT_OP,
    FAULT_COUNT_BY_VALUE,
    FAULT_TABLE_BY_VALUE,
    FAULT_HOST_READS,
    FAULT_HOST_WRITES,
};

struct vocabulary { /* device memory */
    const uint16_t *a, *b;
    const float *in;
    float *out;
    uint32_t *words;
    uint32_t count;            /* as it was at the launch */
    const float *const *table; /* on the device: where the numbers are now */
    size_t smem_bytes;
    enum fault fault;
};

#ifdef __cplusplus
extern "C" {
#endif
void vocabulary_launch(const char *name, uint32_t grid, uint32_t block, void *stream,
                       struct vocabulary v);
/* Launches a kernel with so much shared memory; allowed 0: without having asked for any. */
enum status vocabulary_large(size_t smem_bytes, size_t allowed, void *stream);
#ifdef __cplusplus
}
#endif

#endif
