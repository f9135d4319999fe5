/* What the chain says about an epoch: at T = closedAt(M) policy, the operators of its lanes, the
 * splits of its bases, adapters and their ancestors, and each paid batch's scoring rate and beacon;
 * and the terms and tariffs that its records name (SPEC 4), with the datanet versions in them and
 * the methods of its evidence. Read through views that never change for a past second, so that
 * anyone who reads again gets the same bytes: snapshot.json is compared, never believed. */
#ifndef RS_SETTLE_SNAPSHOT_H
#define RS_SETTLE_SNAPSHOT_H

#include "chain_client/settle/view.h"

struct compute;

struct snapshot_lane {
    uint32_t lane;
    uint8_t account[20]; /* zero: none, TREASURY earns */
};
/* A run of s->terms, ascending by active_at. */
struct snapshot_run {
    size_t first, count;
};
struct snapshot_tariff {
    uint32_t lane;
    uint8_t model_id[32];
    struct snapshot_run named;
};
struct snapshot_base {
    uint8_t id[32];
    struct registry_base at_t;
};
struct snapshot_adapter {
    uint8_t id[32];
    struct registry_terms at_t;
    struct snapshot_run named; /* empty for one that is only an ancestor */
};
struct snapshot_version {
    uint8_t datanet_id[32];
    uint64_t version;
    struct registry_datanet found;
};
struct snapshot_batch {
    uint64_t seq;
    uint32_t rate_ppb;
    uint64_t beacon_block; /* 0 at rate E9: no beacon is needed */
    uint8_t mix_hash[32], seed[32];
};

struct snapshot {
    const struct deployment *d; /* the view's */
    uint64_t at;                /* T */
    struct reward_policy policy;
    struct snapshot_lane *lane;       /* ascending */
    struct snapshot_tariff *tariff;   /* ascending by lane, model */
    struct snapshot_base *base;       /* ascending by id */
    struct snapshot_adapter *adapter; /* ascending by id */
    struct snapshot_version *version; /* ascending by id, version */
    struct reward_method *method;     /* ascending by hash */
    struct snapshot_batch *batch;     /* ascending by seq: M'+1 .. M */
    struct reward_terms *terms;
    size_t lane_count, tariff_count, base_count, adapter_count, version_count, method_count,
        batch_count, terms_count, terms_cap;
};

/* snapshot_read - ask the node, at `finalized`, for everything that c's records name.
 *
 * Before  batch M is final and the finalized head is later than T
 * Errors  BUSY while a beacon or a second after T is not final yet; the node's
 */
MUST_CHECK enum status snapshot_read(struct snapshot *s, const struct compute *c, struct view *v,
                                     struct errtext *err);
void snapshot_fini(struct snapshot *s);
/* The canonical text. */
void snapshot_put(struct buf *out, const struct snapshot *s);

/* ---- snapshot_named.c: what the records ask for ---- */

/* The entries of one history that are named at some t0: ask(arg, t) puts the entry in force at t,
 * *found false where there is none. t0[count] ascending, 1 at least. Appended to s->terms. */
struct snapshot_asker {
    enum status (*ask)(void *arg, uint64_t t, struct reward_terms *entry, bool *found,
                       struct errtext *err);
    void *arg;
};
MUST_CHECK enum status snapshot_history(struct snapshot *s, struct snapshot_run *run,
                                        const struct snapshot_asker *asker, const uint64_t *t0,
                                        size_t count, struct errtext *err);
/* Fills adapter, tariff, terms, version and method of s. */
MUST_CHECK enum status snapshot_read_named(struct snapshot *s, const struct compute *c,
                                           struct view *v, struct errtext *err);

#endif
