/* Numbers for /metrics that modules set as they go, in the database so that a reader of it sees
 * them; written only when they change. */
#ifndef RS_SETTLE_GAUGES_H
#define RS_SETTLE_GAUGES_H

#include "chain_client/settle/db.h"
#include "server/base/buf.h"

/* residual_settle_<name>. label may be "", else a label set such as role="committer". */
MUST_CHECK enum status gauge_set(struct db *db, const char *name, const char *label, u128 value,
                                 struct errtext *err);
MUST_CHECK enum status gauge_add(struct db *db, const char *name, uint64_t more,
                                 struct errtext *err);
MUST_CHECK enum status gauges_put(struct db *db, struct buf *out, struct errtext *err);

#endif
