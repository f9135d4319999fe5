/* The header of a batch and its hash (SPEC 3), as the ledger contract computes it. Pure but for the
 * buffer. Thread: any. */
#ifndef RS_CHAIN_BATCH_H
#define RS_CHAIN_BATCH_H

#include "server/base/buf.h"
#include "server/base/errtext.h"
#include "server/base/hex.h"

#include <stddef.h>
#include <stdint.h>

#define BATCH_LANES_MAX    1024
#define BATCH_HEADER_WORDS 10
#define BATCH_LANE_WORDS   3
#define BATCH_FEE_BITS     112 /* cumFee stays below 2^112: every product of Reward fits 256 bits */

struct batch_header {
    uint64_t seq; /* from 1 */
    uint8_t spec;
    uint8_t prev_hash[32]; /* of batch seq - 1; zero for batch 1 */
    uint8_t log_root[32];
    uint8_t manifest[32];
    uint32_t leaf_count; /* 1 .. 2^17 */
    uint32_t inferences; /* type 1 records among them */
    u128 fee_sum, cum_fee;
    uint64_t closed_at; /* seconds of Unix time */
};

/* Records first..last of one lane, both included. */
struct batch_lane {
    uint32_t lane;
    uint64_t first, last;
};

/* What `commit` checks about one batch alone: spec 1, seq >= 1, lanes strictly ascending with first
 * <= last, range sizes summing to leaf_count, inferences <= leaf_count <= 2^17, cum_fee >= fee_sum
 * and < 2^112, a zero prev_hash exactly for batch 1. INVALID, naming the field. */
MUST_CHECK enum status batch_check(const struct batch_header *h, const struct batch_lane *lane,
                                   size_t lane_count, struct errtext *err);
/* And against the one before: seq + 1, cum_fee = previous + fee_sum, closed_at not earlier,
 * prev_hash. prev NULL for batch 1. */
MUST_CHECK enum status batch_check_next(const struct batch_header *h,
                                        const struct batch_header *prev,
                                        const uint8_t prev_hash[32], struct errtext *err);

/* Append the header's ten static words, or the count and words of lanes, as in an ABI tuple. */
void batch_put_header(struct buf *out, const struct batch_header *h);
void batch_put_lanes(struct buf *out, const struct batch_lane *lane, size_t lane_count);
/* Append the whole call data of commit((...header),(uint32,uint64,uint64)[]). */
void batch_put_commit(struct buf *out, const struct batch_header *h, const struct batch_lane *lane,
                      size_t lane_count);

/* lanesHash = keccak(abi.encode(Lane[])). NO_MEMORY. */
MUST_CHECK enum status batch_lanes_hash(uint8_t out[32], const struct batch_lane *lane,
                                        size_t lane_count, struct errtext *err);

struct batch_place {
    uint64_t chain_id;
    uint8_t ledger[20];
};
/* batchHash = keccak(abi.encode(keccak("residual.batch.1"), chainId, ledger, header, lanesHash)) */
void batch_hash(uint8_t out[32], const struct batch_place *place, const struct batch_header *h,
                const uint8_t lanes_hash[32]);

#endif
