/* An adapter's blob in the form that a device computes with (backend.h, backend_adapter_ops): from
 * the row-major form that peft.h makes. Thread: any. */
#ifndef RS_ADAPTER_DEVICE_FORM_H
#define RS_ADAPTER_DEVICE_FORM_H

#include "kernels/backend.h"
#include "server/model/config.h"

/* packed [n_layer][LORA_MODULE_COUNT] of entry (may be the same); returns the bytes of the blob. */
uint64_t device_form_layout(const struct backend_adapter_ops *ops, const struct model_config *m,
                            struct lora_entry *packed, const struct lora_entry *entry);
void device_form_pack(const struct backend_adapter_ops *ops, const struct model_config *m,
                      void *out, const struct lora_entry *packed, const void *in,
                      const struct lora_entry *entry);

#endif
