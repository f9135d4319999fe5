/* Which key signs which records of a lane: stretches, asked from the ledger with as few questions
 * as possible. A key is never used twice and the list of keys only grows, so equal answers at both
 * ends of a stretch hold between them too. Thread: the view's. */
#ifndef RS_SETTLE_LANE_KEYS_H
#define RS_SETTLE_LANE_KEYS_H

#include "chain_client/settle/view.h"

struct lane_key {
    uint32_t lane;
    uint64_t first, last;
    uint8_t address[20]; /* zero: the lane is not registered */
};

struct lane_keys {
    struct lane_key *item;
    size_t count, cap;
};

/* Append the stretches of first..last. Errors: the node's, NO_MEMORY. */
MUST_CHECK enum status lane_keys_read(struct lane_keys *k, struct view *v, const char *tag,
                                      uint32_t lane, uint64_t first, uint64_t last,
                                      struct errtext *err);
/* The stretch that holds seq, or NULL. *hint speeds up ascending questions; start at 0. */
const struct lane_key *lane_keys_find(const struct lane_keys *k, size_t *hint, uint32_t lane,
                                      uint64_t seq);
void lane_keys_fini(struct lane_keys *k);

#endif
