/* Between batches.c, batch_make.c and adopt.c. */
#ifndef RS_SETTLE_BATCHES_IMPL_H
#define RS_SETTLE_BATCHES_IMPL_H

#include "chain_client/settle/worker.h"

/* Row and lanes of batch seq; what is not computed yet is zero. NOT_FOUND. Free with
 * archive_batch_fini. */
MUST_CHECK enum status batches_load(struct worker *w, struct archive_batch *b, uint64_t seq,
                                    struct errtext *err);
MUST_CHECK enum status batches_set_state(struct worker *w, uint64_t seq, enum batch_state state,
                                         struct errtext *err);
/* Every record under the key that the ledger names for it now. *bad: the first that does not
 * verify, 0 for none. */
MUST_CHECK enum status batches_verify(struct worker *w, const struct batch_lane *r, uint64_t *bad,
                                      struct errtext *err);
/* The hash of a closed batch as it would be built, which nothing keeps. */
MUST_CHECK enum status batches_rehearse(struct worker *w, uint64_t seq, uint8_t hash[32],
                                        struct errtext *err);

#endif
