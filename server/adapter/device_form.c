/* The model's shapes in the form that a backend's packing asks for: the one place of the adapter
 * code that knows both. What a packed blob looks like is the backend's business. */
#include "server/adapter/device_form.h"

static struct lora_dims dims_of(const struct model_config *m)
{
    struct lora_dims d = {.n_layer = m->n_layer};
    for (int k = 0; k < LORA_MODULE_COUNT; k++)
        model_module_shape(m, (enum lora_module)k, &d.d_out[k], &d.d_in[k]);
    return d;
}

uint64_t device_form_layout(const struct backend_adapter_ops *ops, const struct model_config *m,
                            struct lora_entry *packed, const struct lora_entry *entry)
{
    struct lora_dims dims = dims_of(m);
    return ops->layout(packed, entry, &dims);
}

void device_form_pack(const struct backend_adapter_ops *ops, const struct model_config *m,
                      void *out, const struct lora_entry *packed, const void *in,
                      const struct lora_entry *entry)
{
    struct lora_dims dims = dims_of(m);
    ops->pack(out, packed, in, entry, &dims);
}
