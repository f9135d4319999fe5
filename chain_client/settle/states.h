/* The states of the rows that the worker moves on, and their names. A name is what the database
 * holds and what /v1/batches, /v1/epochs and `residual-settle status` say; SQL gets it as a
 * parameter. A name that is none of these is CORRUPT, and the worker's last word: the error says
 * which row has it. */
#ifndef RS_SETTLE_STATES_H
#define RS_SETTLE_STATES_H

#include "chain_client/settle/db.h"

enum batch_state {
    BATCH_CLOSED,   /* ranges and closedAt frozen; every record verified under the ledger's keys */
    BATCH_BUILT,    /* root, sums, manifest digest and hash computed */
    BATCH_ARCHIVED, /* files published and read back */
    BATCH_INTENT,   /* `commit` announced to the sender; one at a time: each names a head */
    BATCH_SENT,     /* its transaction went out */
    BATCH_INCLUDED, /* the ledger has its hash at `latest` */
    BATCH_FINAL,    /* the ledger has its hash at `finalized`: never looked at again */
};

enum epoch_state {
    EPOCH_PLANNED,  /* number, e', M', M and E chosen: M is final, W has passed since closedAt(M) */
    EPOCH_COMPUTED, /* Reward from the archive files, every identity checked, files published */
    EPOCH_ATTESTED, /* as many attestors as the vault asks for signed our result */
    EPOCH_FUNDED,   /* the vault holds what fees up to batch M earned */
    EPOCH_PROPOSED, /* `propose` announced to the sender */
    EPOCH_FINAL,    /* the vault has the epoch in a finalized block */
    EPOCH_ACTIVE,   /* its window has passed: claims are paid */
    EPOCH_VETOED,   /* disabled by the guardian: the next one starts from the one before it */
};

/* Of a call that the sender was asked for. */
enum intent_state {
    INTENT_OPEN,    /* announced: kind, key, call data and value; no nonce yet */
    INTENT_BOUND,   /* a nonce and a gas limit are its own for ever; attempts carry signed bytes */
    INTENT_DONE,    /* mined with success in a finalized block */
    INTENT_CLOSED,  /* mined and reverted there: who raised it looks at the chain, raises anew */
    INTENT_FOREIGN, /* its nonce was used there by a transaction that is not ours: likewise */
};

const char *batch_state_name(enum batch_state state);
const char *epoch_state_name(enum epoch_state state);
const char *intent_state_name(enum intent_state state);

/* Column col of q's row, whose number (seq or epoch) is column 0. */
MUST_CHECK enum status batch_state_get(enum batch_state *out, struct db_rows *q, int col,
                                       struct errtext *err);
MUST_CHECK enum status epoch_state_get(enum epoch_state *out, struct db_rows *q, int col,
                                       struct errtext *err);

/* Every row's state has a name of the above; at the worker's start. */
MUST_CHECK enum status states_check(struct db *db, struct errtext *err);

#endif
