/* The book of a bound lane and the nodes it is read from: settings to parts. */
#ifndef RS_SERVER_REGISTRY_H
#define RS_SERVER_REGISTRY_H

#include "server/config.h"
#include "server/terms/book.h"

#include <pthread.h>

struct registry_from {
    struct witness *nodes; /* the book's */
    struct book *book;
    struct witness *door; /* asked whether a contract signed, under door_lock */
    pthread_mutex_t door_lock;
};

/* What can be said without asking a node. INVALID names the setting that is missing. */
MUST_CHECK enum status registry_check(const struct config *c, struct errtext *err);
/* For a bound lane. base: what the operator's flags say of its tariff. */
MUST_CHECK enum status registry_begin(struct registry_from *r, const struct config *c,
                                      const uint8_t address[20], const uint8_t model_id[32],
                                      const struct tariff *base, struct errtext *err);
/* The last number of the lane that the ledger holds, 0 for none or when no node can be asked, which
 * is a line in the log. Waits for a node; before requests are taken. */
uint64_t registry_lane_used(struct registry_from *r, const struct config *c,
                            const uint8_t ledger[20]);
void registry_end(struct registry_from *r); /* a zeroed one is fine */
/* documents_ask_1271; arg is the registry_from. Waits for a node. Thread: any that may wait. */
MUST_CHECK enum status registry_ask_1271(void *arg, const uint8_t account[20],
                                         const uint8_t digest[32], const void *signature,
                                         size_t len, bool *yes, struct errtext *err);

#endif
