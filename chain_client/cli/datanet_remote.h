/* What others have of a datanet; see verb_datanet_remote.c, value_show.c. */
#ifndef RS_CLI_DATANET_REMOTE_H
#define RS_CLI_DATANET_REMOTE_H

#include "chain_client/cli/cli.h"

/* Of --server, else of the chain at --rpc: prints it, and returns the exit code. */
int datanet_remote_show(struct cli *c);
int datanet_remote_value(struct cli *c); /* what a server's datanet is worth */

#endif
