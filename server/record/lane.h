/* A lane: the identity under which one spool of one server signs. Its folder is named by what it is
 * bound to, so binding to a chain starts a new lane by construction:
 *
 *   <data_dir>/lanes/unbound-<lane>/  or  <chain id>-<ledger>-<lane>/
 *     lane.json                          public facts
 *     lane.key, transport.key, jobs.key  mode 600
 *     spool/, jobs/, lookup/
 *
 * Lane keys are made here and hold no funds. Thread: the recorder's; const after open. */
#ifndef RS_RECORD_LANE_H
#define RS_RECORD_LANE_H

#include "chain_client/entry.h"
#include "chain_client/eth/secp.h"
#include "server/base/errtext.h"

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#define LANE_CHECKPOINT "checkpoint" /* see checkpoint.h; a missing one costs a longer start */

struct lane {
    uint32_t id;
    uint64_t chain_id;
    uint8_t ledger[20];
    bool bound;
    char dir[PATH_MAX - 128];
    uint8_t domain[32]; /* EIP-712 */
    struct secp *secp;
    struct secp_key key;
    uint8_t transport_key[32]; /* of the tag that ends every entry in spool and Redis */
    uint8_t jobs_key[32];
};

#define LANE_FIRST 1 /* where no lane is named */

struct lane_options {
    const char *data_dir;
    uint32_t lane; /* 0: 1 */
    uint64_t chain_id;
    uint8_t ledger[20];
};

MUST_CHECK enum status lane_open(struct lane *out, const struct lane_options *opt,
                                 struct errtext *err);
void lane_close(struct lane *l); /* wipes the keys */
/* Who holds data_dir/lock alone writes below data_dir, a server or a person who repairs. BUSY:
 * another does. Closing *fd gives it back. */
MUST_CHECK enum status lane_lock(const char *data_dir, int *fd, struct errtext *err);
uint64_t lane_read_final(const void *lane, const char *text); /* ship_options.read_final */
/* ship_options.is_own: the entry has its tag and is record seq of this lane (the tag alone would
 * let an old entry be put under a new number). */
bool lane_is_own(const void *lane, uint64_t seq, const void *entry, size_t len);

#endif
