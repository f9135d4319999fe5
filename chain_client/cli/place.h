/* Where the chain is, from a settlement worker's URL alone: GET /v1/deployment stands in for
 * --deployment, its public_rpc_url for --rpc. The node is then compared with these facts as with a
 * file's (node_open). What the worker says is no more than a place to look: whoever wants to know
 * that it is the right one gives --deployment. */
#ifndef RS_CLI_PLACE_H
#define RS_CLI_PLACE_H

#include "chain_client/cli/cli.h"
#include "chain_client/settle/deployment.h"

/* Before a verb runs: fills c's deployment and --rpc from --settle where they are not given.
 * Errors: http_call's; INVALID when the worker names no node and --rpc is not given. */
MUST_CHECK enum status place_resolve(struct cli *c, struct errtext *err);
void place_fini(struct cli *c);
/* Of the file, or what the worker said. INVALID when neither was given. */
MUST_CHECK enum status place_deployment(struct deployment *d, const struct cli *c,
                                        struct errtext *err);

#endif
