/* Private to serve*.c. */
#ifndef RS_SETTLE_SERVE_IMPL_H
#define RS_SETTLE_SERVE_IMPL_H

#include "chain_client/eth/nodes.h"
#include "chain_client/settle/serve.h"
#include "chain_client/tree.h"

#include <microhttpd.h>

#define SERVE_POST_BYTES_MAX 4096

struct serve {
    const struct settings *set;
    const struct deployment *d;
    struct MHD_Daemon *daemon;
    struct rpc *rpc, *endpoint[NODES_MAX]; /* the one that is asked, and all */
    uint32_t rpc_at, rpc_count;
    /* The reward tree that was asked for last: building it is most of an answer's cost. */
    struct tree tree;
    uint64_t tree_epoch; /* 0: none */
};

/* serve_archive.c: /v1/archive/<folder>/<file>, only the names that an archive has. The response
 * streams the open file; NULL with the error's text. */
struct MHD_Response *serve_archive(struct serve *s, const char *path, enum status *st,
                                   struct errtext *err);

/* serve_attest.c: the body of POST /v1/attestations. */
MUST_CHECK enum status serve_attest(struct serve *s, const struct buf *body, struct buf *out,
                                    struct errtext *err);

#endif
