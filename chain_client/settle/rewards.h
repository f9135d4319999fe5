/* What an account has earned, as JSON: with the proof that a claim needs, pending amounts, history
 * and where it came from. Read from the worker's database and, for what can be claimed and was
 * paid, from the chain. Nothing here is believed by a careful reader: the proof leads to the root
 * on the chain, or it does not.
 *
 *   {account}            {epoch, index, account, cumulative, leaves, root, total, proof, claimed,
 *                        pending, undivided}: epoch is the newest that can be claimed from (0:
 *                        none), index and proof null where the account is not in its tree; pending
 *                        {epoch, state, active_at, cumulative, amount} of the newest epoch that is
 *                        computed and cannot be claimed from yet, or null; undivided {batches,
 *                        fee_sum} of all accounts together: committed, in no epoch so far
 *   {account}/history    newest first, at most 50: {epoch, state, at, active_at, earned,
 *                        cumulative, tx, shares [{adapter, datanet, source, amount}],
 *                        shares_more}; next: ?before= of the next page, or null
 *   {account}/sources    at most 100, ascending by (adapter, source): {adapter, datanet, source,
 *                        earned, pending}; next: ?after= of the next page, or null. Source
 *                        "unpaid": evidence named the account, the adapter gives data nothing
 *
 * One object per thread. */
#ifndef RS_SETTLE_REWARDS_H
#define RS_SETTLE_REWARDS_H

#include "chain_client/settle/db.h"
#include "chain_client/settle/deployment.h"
#include "chain_client/tree.h"
#include "server/base/buf.h"

struct rewards {
    const struct deployment *d;
    struct rpc *rpc;
    /* The reward tree that was asked for last: building it is most of an answer's cost. */
    struct tree tree;
    uint64_t tree_epoch; /* 0: none */
};

void rewards_fini(struct rewards *r);
/* Errors  NOT_FOUND  an account that no epoch names
 *         BUSY       the chain's epoch is not in this worker's state yet
 *         the database's and the node's */
MUST_CHECK enum status rewards_put(struct rewards *r, struct db *db, const uint8_t account[20],
                                   struct buf *out, struct errtext *err);
/* Only epochs below `before`; 0: the newest. */
MUST_CHECK enum status rewards_put_history(struct rewards *r, struct db *db,
                                           const uint8_t account[20], uint64_t before,
                                           struct buf *out, struct errtext *err);
/* Only sources above `after`, which is a `next`; NULL: the first. INVALID for another text. */
MUST_CHECK enum status rewards_put_sources(struct rewards *r, struct db *db,
                                           const uint8_t account[20], const char *after,
                                           struct buf *out, struct errtext *err);

#endif
