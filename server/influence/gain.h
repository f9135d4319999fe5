/* Signal S0 and the shares it gates (SPEC 10), in integers: inputs are Q8 nats, everything after
 * replays bit for bit. Rows of a sequence, per output token: set (the answer's own
 * log-probability), base, and for a mix each adapter alone.
 *
 *   solo_k = sum over tokens of max(0, l_k - l_base)     K = 1: l_k is the set row
 *   gain   = LR(E9, solo), ties to the lower adapter id; all zero: LR(E9, |weight|)
 *   shares = of an adapter with a datanet: LR(E9, document counts); the zero payee, which is the
 *            treasury, when solo_k = 0
 *
 * Pure. Thread: any. */
#ifndef RS_INFLUENCE_GAIN_H
#define RS_INFLUENCE_GAIN_H

#include "chain_client/tail.h"
#include "server/influence/job.h"

/* Keccak of this name is the methodHash of records scored this way; it must be registered on chain.
 */
#define GAIN_METHOD "residual.method.s0-documents.1"

/* Q8 rows of one sequence: row 0 the base; for a mix rows 1..K the adapters alone, in set order. */
struct gain_seq {
    const int32_t *row[1 + LORA_PARTS_MAX];
};

struct gain_result {
    struct tail_influence influence;
    uint64_t solo_q8[LORA_PARTS_MAX]; /* telemetry: nats gained, Q8 */
    uint64_t moved_q8;                /* sum of |set - base|: 0 flags a dead adapter */
};

/* row_count rows per sequence: 1 for one adapter, 1 + K for a mix. */
uint32_t gain_row_count(const struct job *j);
void gain_compute(struct gain_result *out, const struct job *j, const struct gain_seq *seq);
/* inputsDigest: keccak(s_4 ‖ per sequence: set row, base row, adapter rows; i32 big-endian). */
void gain_inputs_digest(uint8_t out[32], const struct job *j, const struct gain_seq *seq);
/* indexHash: keccak over the adapters' datanet roots in set order; zero when none has one. */
void gain_index_hash(uint8_t out[32], const struct job *j);

#endif
