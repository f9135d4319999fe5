/* Where an epoch's money came from: (account, adapter, source) -> amount, gathered while Reward
 * runs and kept in table `earned`, so that a person may ask which adapter and which datanet paid.
 * Nothing is paid from it: the tree of cumulative amounts is. One owner, no locking.
 *
 *   breakdown_init(&b)     compute.on_share = breakdown_add, .on_share_arg = &b
 *   breakdown_store(&b, &snapshot, db, epoch, err)     inside the epoch's transaction
 */
#ifndef RS_SETTLE_BREAKDOWN_H
#define RS_SETTLE_BREAKDOWN_H

#include "chain_client/reward.h"
#include "chain_client/settle/db.h"
#include "chain_client/settle/snapshot.h"
#include "chain_client/sums.h"

struct breakdown {
    struct sums sums;
    uint8_t (*adapter)[32]; /* as they came: one after the other, each once */
    uint32_t adapter_count, adapter_cap;
};

MUST_CHECK enum status breakdown_init(struct breakdown *b, struct errtext *err);
void breakdown_fini(struct breakdown *b); /* a zeroed one is fine */
/* For reward_input.on_share; arg is the struct breakdown. NO_MEMORY. */
enum status breakdown_add(void *arg, const struct reward_share *share);
/* Replaces the rows of the epoch. The datanets are the snapshot's. */
MUST_CHECK enum status breakdown_store(const struct breakdown *b, const struct snapshot *snap,
                                       struct db *db, uint64_t epoch, struct errtext *err);
MUST_CHECK enum status breakdown_drop(struct db *db, uint64_t epoch, struct errtext *err);

#endif
