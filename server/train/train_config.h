/* The adapter_config.json of a new adapter, as peft's LoraConfig writes it. Pure. Thread: any. */
#ifndef RS_TRAIN_TRAIN_CONFIG_H
#define RS_TRAIN_TRAIN_CONFIG_H

#include "server/base/buf.h"

#define TRAIN_CONFIG_BYTES_MAX (1u << 20)

struct train_config {
    const char *base; /* the folder of the base, whose last name is written */
    uint32_t rank;
    double alpha, dropout;
    const char *const *module; /* [modules]; NULL: every linear module */
    uint32_t modules;
};
/* At the end of out. */
void train_config_put(struct buf *out, const struct train_config *c);

#endif
