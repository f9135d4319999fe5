/* The recorder: one thread that turns finished requests into durable, signed records, and scores
 * into attribution records.
 *
 *   engine -> recorder_on_finish -> inference record + job -> spool   one group fsync covers both
 *          -> receipt on the request -> request_finish                HTTP sends the last chunk
 *   job    -> scoring rows, low-priority work of the engine
 *          -> attribution record of the same lane -> the job is erased
 *
 * Unbound   without chain settings the lane is unbound (chainId = ledger = 0) and never shipped;
 *           binding starts a new lane
 * Full      recorder_admit answers FULL when the spool's disk or the job store has no room: the
 *           client gets 503, nothing is lost
 * Thread    as said at each call; the recorder owns spool, lane key and job store
 */
#ifndef RS_RECORD_RECORDER_H
#define RS_RECORD_RECORDER_H

#include "server/base/buf.h"
#include "server/engine/engine.h"
#include "server/terms/book.h"

struct recorder;

struct recorder_options {
    const char *data_dir; /* lane key, spool segments, job store; created 0700 */
    uint32_t lane;        /* lane id to use when binding; 0 lets an unbound lane start at 1 */
    uint64_t chain_id;    /* 0: unbound */
    uint8_t ledger[20];
    uint64_t ledger_used;      /* the ledger holds the lane's numbers up to this; 0: not known */
    struct tariff base_tariff; /* of an unbound lane */
    uint64_t score_bytes_max;  /* job store */
    uint64_t evidence_bytes_max;
    uint32_t score_age_s_max; /* a job older than this ends with outcome "inputs lost" */
    uint32_t score_rate_ppb;  /* 1 000 000 000: every answer; 0: none (bench) */
    bool scoring_off;         /* no job is ever scored */
    uint32_t score_stuck_s;   /* no score for so long while jobs wait: not ready */
    uint64_t spool_bytes_max; /* past 95 % recorder_admit says FULL */
    uint64_t spool_keep_bytes, spool_keep_s; /* settled records are kept so far, see spool_keep */
    uint32_t group_max;    /* records per group fsync: what gathered while the last one ran */
    const char *redis_url; /* NULL: records stay in the local spool */
    const char *redis_password_file, *redis_ca_file;
};

struct recorder_deps {
    const struct model *model;
    struct engine *engine;
    struct catalog *catalog;
    struct book *book;       /* NULL: an unbound lane; adapters cost 0 */
    struct indexes *indexes; /* NULL: nothing is indexed, no data pool has shares */
};

/* Opens or creates the lane, recovers the spool and unfinished jobs, starts the thread (and the
 * shipper's). */
MUST_CHECK enum status recorder_create(struct recorder **out, const struct recorder_options *opt,
                                       const struct recorder_deps *deps, struct errtext *err);
/* Finish queued requests, flush, stop. Jobs that are not scored stay on disk. */
void recorder_stop(struct recorder *r, uint32_t deadline_ms);
void recorder_destroy(struct recorder *r);

/* request.on_finish; arg is the recorder. Engine thread; only pushes to a mailbox sized for all
 * running requests. */
void recorder_on_finish(struct request *r, void *recorder);

/* Before a request is submitted: fix what it costs and who is paid (req->terms, base_tariff), and
 * reserve room for its record and, where it may be required, its job (prompt + output ids). OK, or
 * FULL or BUSY with the reason. Every OK is paired with recorder_on_finish or recorder_unadmit.
 * Thread: any. */
MUST_CHECK enum status recorder_admit(struct recorder *r, struct request *req, struct errtext *err);
/* Should a router send answers here? FULL with the reason: the disk refuses, the spool or the job
 * store is full (recorder_admit refuses too), or answers that must be scored are not; BUSY: the
 * Registry was not read, or too long ago. Thread: any. */
MUST_CHECK enum status recorder_ready(struct recorder *r, struct errtext *err);
void recorder_unadmit(struct recorder *r, const struct request *req);

/* The Idempotency-Keys of the last day whose answers were recorded, with their age; before requests
 * are taken. Thread: the starting one. */
struct keylog_entry;
void recorder_visit_keys(struct recorder *r,
                         void (*visit)(void *arg, const struct keylog_entry *e, uint64_t age_ms),
                         void *arg);
/* The id of the newest known answer whose id ends with tail. A walk over all that are remembered:
 * for a person's question, not for each request. Thread: any. */
#define RECORDER_ID_TAIL_BYTES 16
bool recorder_find_id(struct recorder *r, const uint8_t tail[RECORDER_ID_TAIL_BYTES],
                      uint8_t id[32]);
/* JSON bodies of GET /v1/receipts/{id} and /v1/attribution/{id}. The asking key, another key of its
 * account and admin may see them. Errors: NOT_FOUND (unknown, too old or another's; with code
 * "archived": settled and no longer here). Thread: any. */
struct recorder_viewer {
    uint64_t fair_key;      /* of the API key that asks */
    const uint8_t *account; /* [20] of its account, NULL: it has none */
    bool admin;
};
MUST_CHECK enum status recorder_receipt_json(struct recorder *r, const uint8_t id[32],
                                             const struct recorder_viewer *who, struct buf *out,
                                             struct errtext *err);
MUST_CHECK enum status recorder_attribution_json(struct recorder *r, const uint8_t id[32],
                                                 const struct recorder_viewer *who, struct buf *out,
                                                 struct errtext *err);
/* JSON body of GET /v1/attribution/{id}/inputs: the logged integers that its shares follow from. */
MUST_CHECK enum status recorder_inputs_json(struct recorder *r, const uint8_t id[32],
                                            const struct recorder_viewer *who, struct buf *out,
                                            struct errtext *err);
/* The `residual` object of SPEC 7 for a finished request: {request_id, lane, seq, record_digest,
 * receipt, salt, adapters, telemetry}. Thread: any, after done. */
void recorder_residual_json(const struct recorder *r, const struct request *req, struct buf *out);

struct recorder_stats {
    uint32_t lane;
    bool bound, redis_connected;
    uint64_t seq_first, seq_next, seq_durable, seq_shipped, seq_final;
    uint64_t spool_bytes, spool_bytes_max, job_bytes, job_count, evidence_bytes, evidence_dropped;
    uint64_t inferences, attributions, voids, outcomes_lost, fsyncs, append_failures;
    uint64_t computed, compute_ns; /* keys, spans and shares: answers, and what they took */
    uint64_t unscored;             /* required answers while scoring is off */
};
void recorder_get_stats(struct recorder *r, struct recorder_stats *out);

/* Segment bytes for a worker that refetches a range: records of the lane with seq in [first, last],
 * framed as in the spool. At most out's maximum. Thread: any. */
MUST_CHECK enum status recorder_read_range(struct recorder *r, uint64_t first, uint64_t last,
                                           struct buf *out, struct errtext *err);

#endif
