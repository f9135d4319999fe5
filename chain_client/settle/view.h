/* The ledger's and the vault's views as C values; the Registry's are v->registry's (views.h). One
 * object per thread: it holds the buffers of one call at a time. Every answer is that of `tag`
 * ("latest", "finalized", or a block from rpc_tag); money verdicts use "finalized". Statuses are
 * rpc.h's; a malformed answer is CORRUPT or INVALID. */
#ifndef RS_SETTLE_VIEW_H
#define RS_SETTLE_VIEW_H

#include "chain_client/registry/views.h"
#include "chain_client/settle/deployment.h"
#include "server/base/buf.h"

struct view {
    struct rpc *rpc;
    const struct deployment *d;
    struct registry_reader registry;
    struct buf data, out;
};

void view_init(struct view *v, struct rpc *rpc, const struct deployment *d);
void view_use(struct view *v, struct rpc *rpc); /* from now on, of this node */
void view_fini(struct view *v);

/* ---- ledger ---- */
struct view_head {
    uint64_t seq, closed_at;
    u128 cum_fee;
};
MUST_CHECK enum status view_head(struct view *v, const char *tag, struct view_head *head,
                                 struct errtext *err);
/* Zero for a batch that is not committed. */
MUST_CHECK enum status view_batch_hash(struct view *v, const char *tag, uint64_t seq,
                                       uint8_t hash[32], struct errtext *err);
/* Zero for a lane that is not registered. */
MUST_CHECK enum status view_lane_key(struct view *v, const char *tag, uint32_t lane, uint64_t seq,
                                     uint8_t key[20], struct errtext *err);
MUST_CHECK enum status view_lane_next(struct view *v, const char *tag, uint32_t lane,
                                      uint64_t *next, struct errtext *err);
struct view_seal {
    uint64_t last_seq, active_at; /* active_at 0: not sealed */
};
MUST_CHECK enum status view_lane_seal(struct view *v, const char *tag, uint32_t lane,
                                      struct view_seal *seal, struct errtext *err);
MUST_CHECK enum status view_lane_operator_at(struct view *v, const char *tag, uint32_t lane,
                                             uint64_t t, uint8_t account[20], struct errtext *err);
MUST_CHECK enum status view_rate_at(struct view *v, const char *tag, uint64_t t, uint32_t *ppb,
                                    struct errtext *err);
/* D, which never changes. */
MUST_CHECK enum status view_beacon_delay(struct view *v, const char *tag, uint64_t *seconds,
                                         struct errtext *err);

/* ---- vault ---- */
struct view_vault { /* never changes */
    uint64_t wait, window, start_seq;
    uint32_t attestors_min;
    u128 start_cum_fee;
};
MUST_CHECK enum status view_vault(struct view *v, const char *tag, struct view_vault *out,
                                  struct errtext *err);
struct view_money {
    uint64_t last_epoch, last_live, active_epoch;
    u128 funded, held, total_claimed;
};
MUST_CHECK enum status view_money(struct view *v, const char *tag, struct view_money *out,
                                  struct errtext *err);
/* What a day may pay out, and what today did. */
MUST_CHECK enum status view_day(struct view *v, const char *tag, u128 *cap, u128 *paid,
                                struct errtext *err);
struct view_epoch {
    uint8_t root[32]; /* zero: never proposed */
    u128 total;
    uint64_t active_at, batch_paid, batch_evidence, previous;
    uint32_t leaves;
    bool disabled;
};
MUST_CHECK enum status view_epoch(struct view *v, const char *tag, uint64_t epoch,
                                  struct view_epoch *out, struct errtext *err);
MUST_CHECK enum status view_claimed(struct view *v, const char *tag, const uint8_t account[20],
                                    u128 *amount, struct errtext *err);
MUST_CHECK enum status view_allowance(struct view *v, const char *tag, const uint8_t owner[20],
                                      u128 *amount, struct errtext *err);
/* The manifest digest in the finalized Proposed event of an epoch. NOT_FOUND when there is none. */
MUST_CHECK enum status view_proposed(struct view *v, uint64_t epoch, uint8_t manifest[32],
                                     struct errtext *err);

#endif
