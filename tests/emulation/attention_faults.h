/* The attention kernels with one barrier taken out; what the test of planted faults calls. */
#ifndef RS_TESTS_EMULATION_ATTENTION_FAULTS_H
#define RS_TESTS_EMULATION_ATTENTION_FAULTS_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* In the order in which a run of both kernels meets them. */
#define ATTENTION_BARRIERS 6

extern uint32_t attention_fault_barrier; /* 1..ATTENTION_BARRIERS, 0: none is missing */
enum status attention_fault_allow(void); /* once there is a device */
enum status attention_fault(struct backend *b, const struct attention_args *a);
bool attention_barrier_is_between_blocks(uint32_t barrier);

#ifdef __cplusplus
}
#endif

#endif
