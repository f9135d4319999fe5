/* Where a pass's adapters are while it runs on a device. Weights, gradients and moments stay in
 * host memory, in f32, since what steps them is there; for a pass the weights go up rounded to
 * bf16, in the device's form, and the gradients so far with them, to go on from; the gradients
 * come back after it. So an adapter's bits depend neither on company nor on where passes are cut.
 *
 * Memory    what the backend has left when it is made: it belongs to training alone
 * Thread    the pass's. */
#ifndef RS_TRAIN_PASS_DEVICE_H
#define RS_TRAIN_PASS_DEVICE_H

#include "kernels/backend.h"
#include "server/train/train_lora.h"

struct pass_device;

/* After all else that the backend holds. NULL in *out: the ops read host memory. NO_MEMORY. */
MUST_CHECK enum status pass_device_create(struct pass_device **out, struct backend *b,
                                          const struct model_config *c, uint32_t adapters_max,
                                          struct errtext *err);
void pass_device_free(struct pass_device *d);

/* What an adapter takes of a device. */
uint64_t pass_device_bytes(const struct backend *b, const struct model_config *c,
                           const struct train_lora *lora);
/* Place for one adapter more, the next of 0 .. adapters_max-1; false: no room in this pass. */
MUST_CHECK bool pass_device_take(struct pass_device *d, const struct train_lora *lora);
/* Adapter i's weights, and its gradient where grad is not NULL, go up; at: what the ops take. */
struct pass_device_at {
    struct lora_slot *slot;
    struct lora_layout *layout;
    float **grad;
};
MUST_CHECK enum status pass_device_up(struct pass_device *d, uint32_t i, const float *grad,
                                      const struct pass_device_at *at);
/* Its gradient comes back. */
MUST_CHECK enum status pass_device_down(struct pass_device *d, uint32_t i, float *grad);
/* Nobody has a place. */
void pass_device_clear(struct pass_device *d);

#endif
