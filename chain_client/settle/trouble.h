/* What waits for somebody: one row per trouble, with the sentence that says what to do. Status,
 * /metrics (residual_settle_trouble{kind}) and /health read the rows; the log gets a line when a
 * trouble begins and when it is over. Troubles are set again at every look, so a row that nobody
 * sets is cleared by whoever finds things well. Thread: the database's. */
#ifndef RS_SETTLE_TROUBLE_H
#define RS_SETTLE_TROUBLE_H

#include "chain_client/settle/db.h"
#include "server/base/buf.h"

/* Each with the number that stands beside it. */
enum trouble {
    TROUBLE_GAP,            /* lane: records that nobody brings */
    TROUBLE_LANE_STOPPED,   /* lane: it contradicts itself */
    TROUBLE_LANE_UNKNOWN,   /* lane: the ledger does not know its key */
    TROUBLE_REDIS,          /* 0: not reached */
    TROUBLE_NODE,           /* 0: the chain's node, or the archive, is away */
    TROUBLE_BATCH_CONFLICT, /* batch: the ledger holds another one that cannot be ours */
    TROUBLE_ARCHIVE_BATCH,  /* batch: damaged or gone, and no copy is left */
    TROUBLE_ARCHIVE_EPOCH,  /* epoch: its folder is, and no other place has it */
    TROUBLE_ARCHIVE_STORE,  /* store: does not take what is published */
    TROUBLE_CLOCK,          /* 0: this machine's clock and the chain's are far apart */
    TROUBLE_SIGNATURES,     /* epoch: its attestors have not signed for long */
    TROUBLE_FOREIGN_NONCE,  /* role: its nonces were used by transactions of others */
    TROUBLE_KEY_STOPPED,    /* role: by so many that nothing more is sent with its key */
    TROUBLE_UNFUNDED,       /* role: its key cannot pay for what waits */
    TROUBLE_CALL_REFUSED,   /* role: the contract refuses what waits, for over a minute */
    TROUBLE_GAS_LOW,        /* role: gas for less than a week */
    TROUBLE_FEE_TOO_HIGH,   /* 0: the chain asks more than fee_max_gwei */
    TROUBLE_VAULT_UNFUNDED, /* batch: the vault lacks its fees, and the funder's key is not here */
    TROUBLE_ENDPOINT,       /* endpoint: it is left out */
    TROUBLE_FINALITY_HELD,  /* 0: the endpoints do not agree on what is final */
    TROUBLE_ONE_ENDPOINT,   /* 0: what is final is believed of one */
    TROUBLE_REFUSED,        /* epoch: this attestor does not sign it */
    TROUBLE_OWNERS,         /* epoch: the owners of a datanet version are nowhere */
    TROUBLE_TARIFF,         /* lane: it charges what is not registered */
    TROUBLE_EVIDENCE,       /* lane: its attributions count for nothing */
    TROUBLE_BATCH_UNSHOWN,  /* batch: committed, and nobody shows its records (watch) */
    TROUBLE_EPOCH_UNSHOWN,  /* epoch: proposed, and cannot be recomputed (watch) */
    TROUBLE_BATCH_FORGED,   /* batch: committed, and wrong (watch) */
    TROUBLE_EPOCH_FORGED,   /* epoch: proposed, and wrong (watch) */
    TROUBLE_EPOCH_CONFLICT, /* epoch: the vault holds another one, and its accounts are not ours */
    TROUBLE_POWERLESS,      /* 0: found wrong, and this key cannot stop it (watch) */
    TROUBLE_ROLE,           /* event: a change of a role is announced (watch) */
    TROUBLE_COUNT
};

/* The sentence is text; logged when the row is new, stored when it changed. */
MUST_CHECK enum status trouble_set(struct db *db, enum trouble t, uint64_t number, const char *text,
                                   struct errtext *err);
/* The same, printed. */
MUST_CHECK enum status trouble_say(struct db *db, enum trouble t, uint64_t number,
                                   struct errtext *err, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
MUST_CHECK enum status trouble_clear(struct db *db, enum trouble t, uint64_t number,
                                     struct errtext *err);
/* Every number of it. */
MUST_CHECK enum status trouble_clear_all(struct db *db, enum trouble t, struct errtext *err);

/* [{"kind", "number", "since", "said"}], lines of text, and the metric of every kind. */
MUST_CHECK enum status trouble_put_json(struct db *db, struct buf *out, struct errtext *err);
MUST_CHECK enum status trouble_put_text(struct db *db, struct buf *out, struct errtext *err);
MUST_CHECK enum status trouble_put_metrics(struct db *db, struct buf *out, struct errtext *err);
/* {"ok", "reasons"}: *healthy is false while money or records stand still. */
MUST_CHECK enum status trouble_put_health(struct db *db, struct buf *out, bool *healthy,
                                          struct errtext *err);

#endif
