/* Private to epochs.c and propose.c: the newest row of `epochs`. */
#ifndef RS_SETTLE_EPOCHS_IMPL_H
#define RS_SETTLE_EPOCHS_IMPL_H

#include "chain_client/settle/worker.h"

struct epoch_plan {
    uint64_t epoch, previous, paid_from, paid, evidence;
    uint64_t planned_block;
    uint8_t prev_root[32], root[32], manifest[32];
    u128 total;
    uint32_t leaves;
    enum epoch_state state;
};

/* Says what an epoch waits for, at most once a minute. */
void epochs_note(struct worker *w, const char *what);
MUST_CHECK enum status epochs_set_state(struct worker *w, uint64_t epoch, enum epoch_state state,
                                        struct errtext *err);
/* The epoch before it was vetoed: forgotten, planned anew. */
MUST_CHECK enum status epochs_drop(struct worker *w, uint64_t epoch, struct errtext *err);

/* A row for an epoch that the chain has and the database has not; not *adopted when it is live and
 * the archive does not have its accounts. */
MUST_CHECK enum status epochs_adopt_one(struct worker *w, uint64_t epoch, bool *adopted,
                                        struct errtext *err);
/* foreign.c: epochs above `after` up to `last`, adopted or said. */
MUST_CHECK enum status foreign_epochs(struct worker *w, uint64_t after, uint64_t last,
                                      struct errtext *err);
/* foreign.c: another one has our epoch's number: said, and when it was vetoed ours is forgotten. */
MUST_CHECK enum status foreign_replaces(struct worker *w, uint64_t epoch, struct errtext *err);
/* propose.c: who could sign is read again once a minute, for `status` and the candidate. */
MUST_CHECK enum status epochs_quorum(struct worker *w, struct errtext *err);
/* propose.c: from COMPUTED to FINAL, one state per step. */
MUST_CHECK enum status epochs_propose(struct worker *w, const struct epoch_plan *p,
                                      const struct view_money *final, struct errtext *err);

#endif
