/* The book of a bound lane and the nodes it is read from: settings to parts. */
#ifndef RS_SERVER_REGISTRY_H
#define RS_SERVER_REGISTRY_H

#include "server/config.h"
#include "server/terms/book.h"

struct registry_from {
    struct witness *nodes;
    struct book *book;
};

/* What can be said without asking a node. INVALID names the setting that is missing. */
MUST_CHECK enum status registry_check(const struct config *c, struct errtext *err);
/* For a bound lane. base: what the operator's flags say of its tariff. */
MUST_CHECK enum status registry_begin(struct registry_from *r, const struct config *c,
                                      const uint8_t address[20], const uint8_t model_id[32],
                                      const struct tariff *base, struct errtext *err);
void registry_end(struct registry_from *r); /* a zeroed one is fine */

#endif
