/* A copy of the archive that its owner trusts: each batch is compared with what the ledger holds,
 * file by file, before it is kept, and what the published archive does not show is built again from
 * the records of the lanes' servers. Thread: one; blocks on disk and network. */
#ifndef RS_SETTLE_MIRROR_H
#define RS_SETTLE_MIRROR_H

#include "chain_client/eth/fetch.h"
#include "chain_client/eth/secp.h"
#include "chain_client/settle/archive.h"
#include "chain_client/settle/events.h"
#include "chain_client/settle/settings.h"

struct mirror_config {
    const char *dir;    /* the copy; made if needed */
    const char *source; /* http(s)://worker, or a folder */
    const struct settings_lanes *lane_url;
    const char *lane_key_file; /* or NULL */
};

struct mirror {
    struct mirror_config config;
    struct fetch *fetch;      /* of a source that is a URL */
    char *lane_authorization; /* or NULL */
    struct secp *secp;
};

MUST_CHECK enum status mirror_open(struct mirror *m, const struct mirror_config *config,
                                   struct errtext *err);
void mirror_close(struct mirror *m);

enum mirror_found {
    MIRROR_WHOLE,  /* in the copy, and it is the one that was committed */
    MIRROR_ABSENT, /* nobody shows its records now; the error text says who was asked */
    MIRROR_OTHER, /* all its numbers are shown, signed by the lanes' keys, and make another batch */
};
/* Batch of a commit into the copy. keys: asked for the lanes' keys at `finalized`. */
MUST_CHECK enum status mirror_batch(struct mirror *m, const struct event_commit *e,
                                    struct view *keys, enum mirror_found *found,
                                    struct errtext *err);
/* The files of an epoch, as published; NOT_FOUND when there are none. Believed by nobody: the audit
 * compares them with the chain and with what it computes. */
MUST_CHECK enum status mirror_epoch(struct mirror *m, uint64_t epoch, struct errtext *err);

#endif
