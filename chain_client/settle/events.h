/* The two events that settlement leaves, read from a node's logs: BatchCommitted of the ledger and
 * Proposed of the vault. A node that refuses a range is asked in pieces. Thread: the view's. */
#ifndef RS_SETTLE_EVENTS_H
#define RS_SETTLE_EVENTS_H

#include "chain_client/batch.h"
#include "chain_client/epoch.h"
#include "chain_client/settle/view.h"

struct event_commit {
    uint64_t block;
    uint8_t hash[32]; /* batchHash, as the ledger keeps it */
    struct batch_header header;
    const struct batch_lane *lane; /* [lane_count], valid during the callback */
    size_t lane_count;
};
struct event_proposal {
    uint64_t block, active_at;
    struct epoch_header header; /* prev_root is not in the event */
};

struct event_range {
    uint64_t from, to; /* blocks, both included */
    uint64_t number;   /* of the batch or epoch; 0: every one */
};

/* each() per event, in the chain's order; what it returns other than OK stops and is returned. */
MUST_CHECK enum status events_commits(struct view *v, const struct event_range *range,
                                      enum status (*each)(void *arg, const struct event_commit *e,
                                                          struct errtext *err),
                                      void *arg, struct errtext *err);
MUST_CHECK enum status events_proposals(struct view *v, const struct event_range *range,
                                        enum status (*each)(void *arg,
                                                            const struct event_proposal *e,
                                                            struct errtext *err),
                                        void *arg, struct errtext *err);

/* The last block up to `to` that committed batch seq with this hash: a batch that was dropped may
 * have been committed before, and again. NOT_FOUND. */
MUST_CHECK enum status events_commit_block(struct view *v, uint64_t seq, const uint8_t hash[32],
                                           uint64_t to, uint64_t *block, struct errtext *err);

#endif
