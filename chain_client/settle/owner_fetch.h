/* Where the worker finds owners' lists: in files, in the archive of the epoch before, at the lanes'
 * servers. Thread: the worker's; blocks on disk and on servers. */
#ifndef RS_SETTLE_OWNER_FETCH_H
#define RS_SETTLE_OWNER_FETCH_H

#include "chain_client/settle/owner_lists.h"
#include "chain_client/settle/worker.h"

/* A list for every version of s. BUSY, with the sentence that says what to do, when one of them is
 * nowhere: the epoch waits. previous: e', 0 for none. */
MUST_CHECK enum status owner_lists_fetch(struct owner_lists *o, struct worker *w,
                                         const struct snapshot *s, uint64_t previous,
                                         struct errtext *err);

#endif
