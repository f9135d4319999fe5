/* What an account can claim, with a proof that was checked here against the root on the chain. The
 * archive and the worker are not believed: either may only help to find the proof. */
#ifndef RS_CLI_PROOF_H
#define RS_CLI_PROOF_H

#include "chain_client/cli/node.h"
#include "chain_client/tree.h"

struct proof {
    uint64_t epoch; /* 0: no epoch is active yet */
    uint32_t idx;
    u128 cumulative; /* 0: the account is not in the tree */
    u128 claimed;    /* paid until now, from the chain */
    struct tree_proof path;
};

/* From --archive of c, else from --settle.
 *
 * Errors  CORRUPT: the source does not fit the chain; NOT_FOUND: the archive lacks the epoch; the
 *         node's and the worker's
 */
MUST_CHECK enum status proof_find(struct proof *p, struct node *n, const struct cli *c,
                                  const uint8_t account[20], struct errtext *err);
/* The hint that fits the last error, or NULL. */
const char *proof_hint(const struct cli *c, enum status st);

#endif
