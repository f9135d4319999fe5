/* The distinct layouts of resident adapters, shared by reference count: thousands of adapters have
 * a handful of shapes, and the device's tables name a layout, not an adapter. Never allocates after
 * init. Thread: one. */
#ifndef RS_ADAPTER_LAYOUT_SET_H
#define RS_ADAPTER_LAYOUT_SET_H

#include "kernels/args.h"

#include <stddef.h>

#define LAYOUT_NONE UINT32_MAX

struct layout_set {
    struct lora_layout *layout; /* [count_max] */
    struct lora_entry *entry;   /* [count_max][per] */
    uint32_t *refs;             /* [count_max] */
    uint32_t count_max;
    size_t per;
};

/* per: entries of one layout, n_layer * LORA_MODULE_COUNT. */
void layout_set_init(struct layout_set *s, uint32_t count_max, size_t per);
void layout_set_fini(struct layout_set *s);
/* A reference to the layout that equals entry and blob_bytes; LAYOUT_NONE if it is new and
 * count_max others are in use. */
uint32_t layout_set_take(struct layout_set *s, const struct lora_entry *entry, uint64_t blob_bytes);
void layout_set_drop(struct layout_set *s, uint32_t idx);

#endif
