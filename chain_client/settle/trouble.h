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
    TROUBLE_ARCHIVE_EPOCH,  /* epoch: the same */
    TROUBLE_ARCHIVE_STORE,  /* store: does not take what is published */
    TROUBLE_CLOCK,          /* 0: this machine's clock and the chain's are far apart */
    TROUBLE_SIGNATURES,     /* epoch: its attestors have not signed for long */
    TROUBLE_COUNT
};

/* The sentence is text; logged when the row is new, stored when it changed. */
MUST_CHECK enum status trouble_set(struct db *db, enum trouble t, uint64_t number, const char *text,
                                   struct errtext *err);
MUST_CHECK enum status trouble_clear(struct db *db, enum trouble t, uint64_t number,
                                     struct errtext *err);

/* [{"kind", "number", "since", "said"}], lines of text, and the metric of every kind. */
MUST_CHECK enum status trouble_put_json(struct db *db, struct buf *out, struct errtext *err);
MUST_CHECK enum status trouble_put_text(struct db *db, struct buf *out, struct errtext *err);
MUST_CHECK enum status trouble_put_metrics(struct db *db, struct buf *out, struct errtext *err);
/* {"ok", "reasons"}: *healthy is false while money or records stand still. */
MUST_CHECK enum status trouble_put_health(struct db *db, struct buf *out, bool *healthy,
                                          struct errtext *err);

#endif
