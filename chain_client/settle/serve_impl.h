/* Private to serve*.c. */
#ifndef RS_SETTLE_SERVE_IMPL_H
#define RS_SETTLE_SERVE_IMPL_H

#include "chain_client/eth/nodes.h"
#include "chain_client/settle/rewards.h"
#include "chain_client/settle/serve.h"

#include <microhttpd.h>

#define SERVE_POST_BYTES_MAX 4096

struct serve {
    const struct settings *set;
    const struct deployment *d;
    struct MHD_Daemon *daemon;
    struct rpc *rpc, *endpoint[NODES_MAX]; /* the one that is asked, and all */
    uint32_t rpc_at, rpc_count;
    struct rewards rewards;
};

#define SERVE_NEWEST ((uint64_t)INT64_MAX)

/* A GET: its path, and where in a list it begins. */
struct serve_ask {
    const char *path;
    uint64_t before;   /* ?before=N, SERVE_NEWEST without it */
    const char *after; /* ?after=TEXT, or NULL */
};

/* serve_people.c */
MUST_CHECK enum status serve_ask_read(struct serve_ask *q, struct MHD_Connection *c,
                                      const char *path, struct errtext *err);
/* what: {account}, {account}/history or {account}/sources. */
MUST_CHECK enum status serve_rewards(struct serve *s, struct db *db, const struct serve_ask *q,
                                     const char *what, struct buf *out, struct errtext *err);
/* what: LANE/SEQ. Which batch has the record, which epoch pays that. A page of another origin (the
 * server's) may ask it: SERVE_RECORDS is the one route with CORS. */
#define SERVE_RECORDS "/v1/records/"
MUST_CHECK enum status serve_record(struct db *db, const char *what, struct buf *out,
                                    struct errtext *err);
/* A file of the page, or NULL. */
struct MHD_Response *serve_page(const char *path, unsigned *code);

/* serve_archive.c: /v1/archive/<folder>/<file>, only the names that an archive has. The response
 * streams the open file; NULL with the error's text. */
struct MHD_Response *serve_archive(struct serve *s, const char *path, enum status *st,
                                   struct errtext *err);

/* serve_attest.c: the body of POST /v1/attestations. */
MUST_CHECK enum status serve_attest(struct serve *s, const struct buf *body, struct buf *out,
                                    struct errtext *err);

#endif
