/* What `attest` and `watch` share: nodes, database, mirror, the loop. One thread. */
#ifndef RS_SETTLE_GUARD_H
#define RS_SETTLE_GUARD_H

#include "chain_client/settle/audit.h"
#include "chain_client/settle/guard_settings.h"
#include "chain_client/settle/mirror.h"
#include "chain_client/settle/worker.h"

enum guard_exit {
    GUARD_FINE = 0,
    GUARD_FAILED = 1,
    GUARD_CONFIG = 2,
    GUARD_START = 3,
    GUARD_CONFLICT = 4,
    GUARD_LOCKED = 5,
    GUARD_REFUSED = 6
};

#define ROLE_CHANGES_MAX 64

/* Announced changes of roles that are neither done nor cancelled (watch_roles.c). */
struct role_change {
    uint32_t contract;
    uint8_t role[32], account[20];
    bool grants;
    uint64_t ready_at, number; /* number: of its trouble */
};
struct role_watch {
    uint64_t next_block; /* events before it are known; 0: none is */
    struct role_change change[ROLE_CHANGES_MAX];
    uint32_t count;
};

struct guard {
    const struct guard_settings *set;
    struct settings worker_set; /* what sender.c and serve.c read */
    struct worker w;            /* deployment, database, nodes, sender: as those want it */
    struct secp_key key;        /* the attestor's or the guardian's */
    struct mirror mirror;
    struct role_watch roles;
    bool refused; /* the last look ended in a refusal, or in something it could not stop */
};

/* attest.c and watch.c: one look. Outages are errors that the loop waits out. */
MUST_CHECK enum status attest_look(struct guard *g, struct errtext *err);

MUST_CHECK enum status watch_look(struct guard *g, struct errtext *err);

/* The commit of batch seq that the ledger holds at `finalized`: header and lanes. BUSY while the
 * node does not show its event. */
struct guard_commit {
    struct event_commit e;
    struct batch_lane *lane; /* e.lane */
    uint8_t hash[32];        /* e.hash */
};
MUST_CHECK enum status guard_commit_read(struct guard *g, uint64_t seq, struct guard_commit *out,
                                         struct errtext *err);
void guard_commit_fini(struct guard_commit *c);
/* That batch into the mirror. */
MUST_CHECK enum status guard_batch(struct guard *g, uint64_t seq, enum mirror_found *found,
                                   struct errtext *err);

/* `residual-settle attest ...` or `watch ...`; the exit code. */
int guard_main(int argc, char **argv);
bool guard_is_verb(int argc, char **argv);

#endif
