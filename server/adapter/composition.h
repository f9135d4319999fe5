/* What a row computes with: the weighted set of adapters of one request, canonical (ids strictly
 * ascending, weights non-zero), and its id: BLAKE2b-256("residual.set.1", (adapterId, weight i32
 * Q16.16 big-endian) ascending). Every cache key uses the id. n = 0 is the base. By value. */
#ifndef RS_ADAPTER_COMPOSITION_H
#define RS_ADAPTER_COMPOSITION_H

#include "kernels/args.h"
#include "server/base/errtext.h"

#define COMPOSITION_WEIGHT_ONE 65536

struct composition_part {
    uint8_t adapter[32];
    int32_t weight_q16;
};

struct composition {
    uint8_t id[32];
    uint32_t n;
    struct composition_part part[LORA_PARTS_MAX];
};

/* Sort, refuse duplicates and zero weights (param names the field), compute the id. In place. */
MUST_CHECK enum status composition_seal(struct composition *c, struct errtext *err);

#endif
