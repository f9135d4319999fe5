/* Reads what the chain says at T; what the records name is in snapshot_named.c, the text in
 * snapshot_text.c. */
#include "chain_client/settle/snapshot.h"
#include "chain_client/commit.h"
#include "chain_client/eth/abi.h"
#include "chain_client/settle/compute.h"
#include "chain_client/settle/events.h"
#include "chain_client/settle/keyset.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <string.h>

#define IDS_MAX (1u << 20) /* lanes or bases that one epoch names */

static enum status collect(const struct compute *c, struct keyset *lane, struct keyset *base,
                           struct errtext *err)
{
    for (size_t i = 0; i < c->record_count; i++) {
        uint8_t number[4];
        be_put(number, c->record[i].lane, 4);
        if (!keyset_add(lane, number) || !keyset_add(base, c->record[i].model_id))
            return err_set(err, STATUS_NO_MEMORY, "no memory for the ids of an epoch");
    }
    keyset_sort(lane);
    keyset_sort(base);
    if (MAX(lane->count, base->count) > IDS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "an epoch names more than %u ids", IDS_MAX);
    return STATUS_OK;
}

/* ---- beacons ---- */

static enum status block_at(struct view *v, uint64_t number, struct rpc_block *b,
                            struct errtext *err)
{
    char tag[RPC_TAG_BYTES];
    rpc_tag(tag, number);
    return rpc_block(v->rpc, tag, b, err);
}

/* The first finalized block with time >= the commit's + delay: by bisection, times only rise. */
static enum status read_beacon(struct snapshot_batch *b, struct view *v, const uint8_t hash[32],
                               uint64_t delay_s, struct errtext *err)
{
    struct rpc_block last, at;
    struct errtext why = ERRTEXT_INIT;
    uint64_t low = 0;
    enum status st = rpc_block(v->rpc, "finalized", &last, err);
    if (st)
        return st;
    st = events_commit_block(v, b->seq, hash, last.number, &low, &why);
    if (st == STATUS_NOT_FOUND) /* not final yet */
        return err_set(err, STATUS_BUSY, "%s", why.text);
    if (st)
        return err_set(err, st, "%s", why.text);
    st = block_at(v, low, &at, err);
    if (st)
        return st;
    uint64_t target = at.timestamp + delay_s, high = last.number;
    if (last.timestamp < target)
        return err_set(err, STATUS_BUSY, "batch %" PRIu64 ": its beacon block is not final yet",
                       b->seq);
    while (low < high && !st) {
        uint64_t mid = low + (high - low) / 2;
        st = block_at(v, mid, &at, err);
        if (!st && at.timestamp >= target)
            high = mid;
        else
            low = mid + 1;
    }
    if (!st)
        st = block_at(v, high, &at, err);
    b->beacon_block = at.number;
    memcpy(b->mix_hash, at.mix_hash, 32);
    commit_sample_seed(b->seed, hash, at.mix_hash);
    return st;
}

/* ---- reading ---- */

static enum status read_lanes(struct snapshot *s, const struct keyset *lanes, struct view *v,
                              struct errtext *err)
{
    enum status st = STATUS_OK;
    s->lane = mem_try_array(lanes->count + 1, sizeof(*s->lane));
    if (!s->lane)
        return err_set(err, STATUS_NO_MEMORY, "no memory for lanes");
    for (size_t i = 0; i < lanes->count && !st; i++) {
        struct snapshot_lane *l = &s->lane[s->lane_count++];
        l->lane = (uint32_t)be_get(keyset_at(lanes, i), 4);
        st = view_lane_operator_at(v, "finalized", l->lane, s->at, l->account, err);
    }
    return st;
}

static enum status read_bases(struct snapshot *s, const struct keyset *ids, struct view *v,
                              struct errtext *err)
{
    enum status st = STATUS_OK;
    s->base = mem_try_array(ids->count + 1, sizeof(*s->base));
    if (!s->base)
        return err_set(err, STATUS_NO_MEMORY, "no memory for bases");
    for (size_t i = 0; i < ids->count && !st; i++) {
        struct snapshot_base *b = &s->base[s->base_count++];
        memcpy(b->id, keyset_at(ids, i), 32);
        st = registry_base_at(&v->registry, "finalized", b->id, s->at, &b->at_t, err);
    }
    return st;
}

static enum status read_batches(struct snapshot *s, const struct compute *c, struct view *v,
                                struct errtext *err)
{
    enum status st = STATUS_OK;
    uint64_t delay_s = 0;
    bool has_delay = false;
    s->batch_count = c->range.paid - c->range.paid_from;
    s->batch = mem_try_array(s->batch_count + 1, sizeof(*s->batch));
    if (!s->batch)
        return err_set(err, STATUS_NO_MEMORY, "no memory for batches");
    for (size_t i = 0; i < s->batch_count && !st; i++) {
        struct snapshot_batch *b = &s->batch[i];
        b->seq = c->batch[i].header.seq;
        st = view_rate_at(v, "finalized", c->batch[i].header.closed_at, &b->rate_ppb, err);
        if (st || b->rate_ppb >= TAIL_E9)
            continue;
        if (!has_delay)
            st = view_beacon_delay(v, "finalized", &delay_s, err);
        has_delay = true;
        if (!st)
            st = read_beacon(b, v, c->batch[i].hash, delay_s, err);
    }
    return st;
}

static enum status check_settled(const struct snapshot *s, struct view *v, struct errtext *err)
{
    struct rpc_block last;
    enum status st = rpc_block(v->rpc, "finalized", &last, err);
    if (!st && last.timestamp <= s->at)
        st = err_set(err, STATUS_BUSY, "second %" PRIu64 " is not past in the finalized chain",
                     s->at);
    return st;
}

enum status snapshot_read(struct snapshot *s, const struct compute *c, struct view *v,
                          struct errtext *err)
{
    struct keyset lane = {.width = 4}, base = {.width = 32};
    uint64_t paid_idx = c->range.paid - c->range.paid_from - 1;
    *s = (struct snapshot){.d = v->d, .at = c->batch[paid_idx].header.closed_at};
    enum status st = check_settled(s, v, err);
    if (!st)
        st = collect(c, &lane, &base, err);
    if (!st)
        st = registry_policy_at(&v->registry, "finalized", s->at, &s->policy, err);
    if (!st)
        st = read_lanes(s, &lane, v, err);
    if (!st)
        st = read_bases(s, &base, v, err);
    if (!st)
        st = snapshot_read_named(s, c, v, err);
    if (!st)
        st = read_batches(s, c, v, err);
    keyset_fini(&lane);
    keyset_fini(&base);
    if (st)
        snapshot_fini(s);
    return st;
}

void snapshot_fini(struct snapshot *s)
{
    mem_free(s->lane);
    mem_free(s->tariff);
    mem_free(s->base);
    mem_free(s->adapter);
    mem_free(s->version);
    mem_free(s->method);
    mem_free(s->batch);
    mem_free(s->terms);
    *s = (struct snapshot){0};
}
