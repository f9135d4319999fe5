/* A batch header is ten static ABI words; lanes are a dynamic array of three words each. The same
 * bytes go into the hash, into `commit` call data and come back in the BatchCommitted event. */
#include "chain_client/batch.h"
#include "chain_client/eth/abi.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/tree.h"
#include "server/base/check.h"

#include <string.h>

#define COMMIT_SIGNATURE                                                                           \
    "commit((uint64,uint8,bytes32,bytes32,bytes32,uint32,uint32,uint128,uint128,uint64),"          \
    "(uint32,uint64,uint64)[])"

static enum status check_lanes(const struct batch_header *h, const struct batch_lane *lane,
                               size_t lane_count, struct errtext *err)
{
    uint64_t records = 0;
    if (!lane_count || lane_count > BATCH_LANES_MAX)
        return err_param(err, STATUS_INVALID, "lanes", "lanes: %zu, expected 1 to %d", lane_count,
                         BATCH_LANES_MAX);
    for (size_t i = 0; i < lane_count; i++) {
        if (i && lane[i].lane <= lane[i - 1].lane)
            return err_param(err, STATUS_INVALID, "lanes", "lanes: %u is not above the one before",
                             lane[i].lane);
        if (!lane[i].first || lane[i].last < lane[i].first ||
            lane[i].last - lane[i].first >= TREE_LEAVES_MAX)
            return err_param(err, STATUS_INVALID, "lanes", "lanes: lane %u has range %llu..%llu",
                             lane[i].lane, (unsigned long long)lane[i].first,
                             (unsigned long long)lane[i].last);
        records += lane[i].last - lane[i].first + 1;
    }
    if (records != h->leaf_count)
        return err_param(err, STATUS_INVALID, "leafCount",
                         "leafCount: found %u, the lanes have %llu records", h->leaf_count,
                         (unsigned long long)records);
    return STATUS_OK;
}

enum status batch_check(const struct batch_header *h, const struct batch_lane *lane,
                        size_t lane_count, struct errtext *err)
{
    static const uint8_t zero[32];
    bool first = memcmp(h->prev_hash, zero, 32) == 0;
    if (h->spec != 1)
        return err_param(err, STATUS_INVALID, "spec", "spec: found %u, expected 1", h->spec);
    if (!h->seq || first != (h->seq == 1))
        return err_param(err, STATUS_INVALID, "prevHash",
                         "prevHash: batch %llu has %s previous hash", (unsigned long long)h->seq,
                         first ? "no" : "a");
    if (!h->leaf_count || h->leaf_count > TREE_LEAVES_MAX || h->inferences > h->leaf_count)
        return err_param(err, STATUS_INVALID, "leafCount",
                         "leafCount: %u leaves with %u inferences, expected 1 to %u leaves",
                         h->leaf_count, h->inferences, TREE_LEAVES_MAX);
    if (h->cum_fee >> BATCH_FEE_BITS || h->fee_sum > h->cum_fee)
        return err_param(err, STATUS_INVALID, "cumFee",
                         "cumFee: expected feeSum or more and less than 2^%d", BATCH_FEE_BITS);
    return check_lanes(h, lane, lane_count, err);
}

enum status batch_check_next(const struct batch_header *h, const struct batch_header *prev,
                             const uint8_t prev_hash[32], struct errtext *err)
{
    static const struct batch_header before_first;
    static const uint8_t zero[32];
    const struct batch_header *p = prev ? prev : &before_first;
    if (h->seq != p->seq + 1)
        return err_param(err, STATUS_INVALID, "seq", "seq: found %llu, expected %llu",
                         (unsigned long long)h->seq, (unsigned long long)p->seq + 1);
    if (memcmp(h->prev_hash, prev ? prev_hash : zero, 32) != 0)
        return err_param(err, STATUS_INVALID, "prevHash", "prevHash: is not the hash of batch %llu",
                         (unsigned long long)p->seq);
    if (h->cum_fee < p->cum_fee || h->cum_fee - p->cum_fee != h->fee_sum)
        return err_param(err, STATUS_INVALID, "cumFee",
                         "cumFee: is not that of batch %llu plus feeSum",
                         (unsigned long long)p->seq);
    if (h->closed_at < p->closed_at)
        return err_param(err, STATUS_INVALID, "closedAt", "closedAt: %llu is before %llu",
                         (unsigned long long)h->closed_at, (unsigned long long)p->closed_at);
    return STATUS_OK;
}

static void fill_header(struct abi_tuple *t, const struct batch_header *h)
{
    abi_uint(t, h->seq);
    abi_uint(t, h->spec);
    abi_bytes32(t, h->prev_hash);
    abi_bytes32(t, h->log_root);
    abi_bytes32(t, h->manifest);
    abi_uint(t, h->leaf_count);
    abi_uint(t, h->inferences);
    abi_uint(t, h->fee_sum);
    abi_uint(t, h->cum_fee);
    abi_uint(t, h->closed_at);
}

void batch_put_header(struct buf *out, const struct batch_header *h)
{
    struct abi_tuple t;
    abi_begin(&t, out, BATCH_HEADER_WORDS);
    fill_header(&t, h);
    abi_end(&t);
}

void batch_put_lanes(struct buf *out, const struct batch_lane *lane, size_t lane_count)
{
    struct abi_tuple t;
    abi_count(out, lane_count);
    abi_begin(&t, out, BATCH_LANE_WORDS * lane_count);
    for (size_t i = 0; i < lane_count; i++) {
        abi_uint(&t, lane[i].lane);
        abi_uint(&t, lane[i].first);
        abi_uint(&t, lane[i].last);
    }
    abi_end(&t);
}

void batch_put_commit(struct buf *out, const struct batch_header *h, const struct batch_lane *lane,
                      size_t lane_count)
{
    struct abi_tuple t;
    abi_put_selector(out, COMMIT_SIGNATURE);
    abi_begin(&t, out, BATCH_HEADER_WORDS + 1);
    fill_header(&t, h);
    abi_dynamic(&t);
    batch_put_lanes(out, lane, lane_count);
    abi_end(&t);
}

enum status batch_lanes_hash(uint8_t out[32], const struct batch_lane *lane, size_t lane_count,
                             struct errtext *err)
{
    struct buf bytes;
    struct abi_tuple t;
    CHECK(lane_count <= BATCH_LANES_MAX);
    buf_init(&bytes, ABI_WORD_BYTES * (2 + BATCH_LANE_WORDS * lane_count) + 1);
    abi_begin(&t, &bytes, 1);
    abi_dynamic(&t);
    batch_put_lanes(&bytes, lane, lane_count);
    abi_end(&t);
    enum status st = bytes.failed ? err_set(err, STATUS_NO_MEMORY, "no memory for lanes") : 0;
    if (!st)
        keccak_256(out, bytes.data, bytes.len);
    buf_fini(&bytes);
    return st;
}

void batch_hash(uint8_t out[32], const struct batch_place *place, const struct batch_header *h,
                const uint8_t lanes_hash[32])
{
    static const char label[] = "residual.batch.1";
    uint8_t type[32];
    struct buf bytes;
    struct abi_tuple t;
    keccak_256(type, label, sizeof(label) - 1);
    buf_init(&bytes, 1024);
    abi_begin(&t, &bytes, 3 + BATCH_HEADER_WORDS + 1);
    abi_bytes32(&t, type);
    abi_uint(&t, place->chain_id);
    abi_address(&t, place->ledger);
    fill_header(&t, h);
    abi_bytes32(&t, lanes_hash);
    abi_end(&t);
    CHECK(!bytes.failed);
    keccak_256(out, bytes.data, bytes.len);
    buf_fini(&bytes);
}
