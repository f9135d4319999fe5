/* What contributors and machines ask the worker, over HTTP on a loopback address:
 *
 *   GET /                      the page for people (site.h): epochs, batches, an account, claim
 *   GET /v1/deployment         where the contracts are, what the chain is called
 *   GET /v1/rewards/{account}  amounts and the proof of a claim; /history, /sources (rewards.h)
 *   GET /v1/batches            the newest 100 below ?before=N, newest first
 *   GET /v1/epochs             the same
 *   GET /v1/epochs/candidate   the epoch that waits for attestors: header, digest, who signed
 *   POST /v1/attestations      {epoch, digest, signature} of an attestor; 403 without the role
 *   GET /v1/archive/F/FILE     a file of the published archive
 *   GET /metrics               Prometheus text: what is ingested, closed and final; the lag
 *   GET /health                {"ok": true}
 *
 * Everything is read from the database by its own reader and from the node by its own client, on
 * the HTTP library's one thread. Attestations are all that is written here. */
#ifndef RS_SETTLE_SERVE_H
#define RS_SETTLE_SERVE_H

#include "chain_client/settle/deployment.h"
#include "chain_client/settle/settings.h"
#include "server/base/buf.h"

struct serve;

/* Errors: INVALID (listen), IO (port in use). */
MUST_CHECK enum status serve_start(struct serve **out, const struct settings *set,
                                   const struct deployment *d, struct errtext *err);
void serve_stop(struct serve *s); /* NULL is fine */

/* The worker's state for `status` and /metrics. */
struct db;
MUST_CHECK enum status serve_status_json(struct db *db, struct buf *out, struct errtext *err);
MUST_CHECK enum status serve_status_text(struct db *db, struct buf *out, struct errtext *err);

#endif
