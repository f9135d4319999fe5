/* Records that break a rule of the Registry (SPEC 2, 4), as the worker tells of them: the money is
 * right all the same, but a server, or a tariff, wants correcting. Thread: the database's. */
#ifndef RS_SETTLE_FAULTS_H
#define RS_SETTLE_FAULTS_H

#include "chain_client/settle/compute.h"
#include "chain_client/settle/worker.h"

/* A batch that just became final: its refused answers, long before its epoch. A node or an archive
 * that does not answer is no error here: the epoch looks again. */
MUST_CHECK enum status faults_look(struct worker *w, uint64_t batch, struct errtext *err);
/* After compute_reward: one trouble per lane and kind, cleared where an epoch has none. */
MUST_CHECK enum status faults_tell(struct worker *w, uint64_t epoch, const struct compute *c,
                                   struct errtext *err);

#endif
