/* Private to watch*.c. */
#ifndef RS_SETTLE_WATCH_IMPL_H
#define RS_SETTLE_WATCH_IMPL_H

#include "chain_client/settle/guard.h"

enum watch_verdict {
    VERDICT_RIGHT,
    VERDICT_WRONG,
    VERDICT_UNSHOWN, /* what it is made of is shown by nobody: no verdict yet */
    VERDICT_SPLIT,   /* too few endpoints find it wrong: never one, however long */
};

struct watch_subject {
    bool is_epoch;
    uint64_t number;
    uint8_t id[32];             /* batchHash, or the digest of the epoch's header */
    struct epoch_header header; /* of an epoch */
    uint64_t previous, active_at, block;
};

/* watch_judge.c: by the endpoint that is read now, at "finalized". The text says why. */
MUST_CHECK enum status watch_judge_batch(struct guard *g, const struct watch_subject *s,
                                         enum watch_verdict *v, struct errtext *why);
MUST_CHECK enum status watch_judge_epoch(struct guard *g, const struct watch_subject *s,
                                         enum watch_verdict *v, struct errtext *why);
/* What the ledger or the vault has under this number; not *there: nothing, or disabled. */
MUST_CHECK enum status watch_subject_read(struct guard *g, bool is_epoch, uint64_t number,
                                          struct watch_subject *s, bool *there,
                                          struct errtext *err);
/* The verdict in the database, of UNSHOWN with *since; NOT_FOUND without one. */
MUST_CHECK enum status watch_row(struct guard *g, const struct watch_subject *s,
                                 enum watch_verdict *v, uint64_t *since, struct errtext *err);

/* watch_calls.c: announced to the sender. */
MUST_CHECK enum status watch_veto(struct guard *g, uint64_t epoch, struct errtext *err);
/* watch_prove.c: disableByProof, where the trees are known and prove it; else nothing. */
MUST_CHECK enum status watch_prove(struct guard *g, uint64_t epoch, struct errtext *err);
MUST_CHECK enum status watch_pause(struct guard *g, uint64_t seq, struct errtext *err);
/* The newest batch, `head`, off the ledger. */
MUST_CHECK enum status watch_drop(struct guard *g, uint64_t head, struct errtext *err);

/* watch_roles.c: says every announced change of a role, up to this block. */
MUST_CHECK enum status watch_roles(struct guard *g, uint64_t block, struct errtext *err);

#endif
