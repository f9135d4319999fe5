/* What the chain says about an epoch at T = closedAt(M): policy, the operators of its lanes, the
 * splits of its bases and adapters, the datanets, and each paid batch's scoring rate and beacon.
 * Read through the ...At(T) views, which never change for a past second, so that anyone who reads
 * again gets the same bytes: snapshot.json is compared, never believed. */
#ifndef RS_SETTLE_SNAPSHOT_H
#define RS_SETTLE_SNAPSHOT_H

#include "chain_client/settle/view.h"

struct compute;

struct snapshot_lane {
    uint32_t lane;
    uint8_t account[20]; /* zero: none, TREASURY earns */
};
struct snapshot_entry {
    uint8_t id[32];
    struct view_entry entry;
};
struct snapshot_batch {
    uint64_t seq;
    uint32_t rate_ppb;
    uint64_t beacon_block; /* 0 at rate E9: no beacon is needed */
    uint8_t mix_hash[32], seed[32];
};

struct snapshot {
    uint64_t at; /* T */
    uint64_t beacon_delay_s;
    struct reward_policy policy;
    struct snapshot_lane *lane;     /* ascending */
    struct snapshot_entry *base;    /* ascending by id */
    struct snapshot_entry *adapter; /* ascending by id */
    struct snapshot_batch *batch;   /* ascending by seq: M'+1 .. M */
    size_t lane_count, base_count, adapter_count, batch_count;
};

/* snapshot_read - ask the node, at `finalized`, for everything that c's records name.
 *
 * Before  batch M is final and the finalized head is later than T
 * Errors  BUSY while a beacon or a second after T is not final yet; the node's
 */
MUST_CHECK enum status snapshot_read(struct snapshot *s, const struct compute *c, struct view *v,
                                     uint64_t beacon_delay_s, struct errtext *err);
void snapshot_fini(struct snapshot *s);
/* The canonical text. */
void snapshot_put(struct buf *out, const struct snapshot *s, const struct deployment *d);
/* beacon_delay_s as a snapshot.json says. */
uint64_t snapshot_delay(const void *text, size_t len);

#endif
