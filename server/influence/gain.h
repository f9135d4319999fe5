/* From the quantised inputs of an answer to the influence on its record (SPEC 10). Integers alone:
 * who has the logged inputs and the index files gets the same, bit for bit, on every machine.
 *
 *   solo_k = sum over tokens of max(0, l_k - l_base)     K = 1: l_k is the set row
 *   S_k    = sum over tokens of l_k - l_base; S the same of the set row; V_k = S less that of the
 *            set without k: what k adds as the first of the set, and as its last
 *   a_k    = (S_k + V_k) / 2
 *   gain   = LR(E9, max(0, a_k + (S - sum of a) / movers)) over the movers, which are those that
 *            change any token as first or last, others 0; ties to the lower id; all zero:
 *            LR(E9, |weight|). Of two adapters Shapley's values of the answer's log-probability, of
 *            more close to them
 *   shares = of an adapter with an index: events_score.h and shares.h; the zero payee, which is the
 *            treasury, when solo_k = 0. Without an index none.
 *
 * Pure. Thread: any. */
#ifndef RS_INFLUENCE_GAIN_H
#define RS_INFLUENCE_GAIN_H

#include "server/influence/events_score.h"
#include "server/influence/shares.h"

/* Keccak of this name is the methodHash of records scored this way; it must be registered on chain.
 */
#define GAIN_METHOD "residual.method.s0-s1-s2.2"

#define GAIN_ROWS_MAX (1 + 2 * TAIL_ADAPTERS_MAX)

/* One output sequence: its tokens, and Q8 log-probabilities. row 0 is the base's; for a mix rows
 * 1..K are the adapters' alone, in set order, and from three on K+1..2K the set's without each. */
struct gain_choice {
    uint32_t n;
    const int32_t *target, *set;
    const uint8_t *in_prompt; /* [n] 1: the token stands in the prompt, too */
    const int32_t *row[GAIN_ROWS_MAX];
};

struct gain_adapter { /* one of the set */
    int32_t weight_q16;
    const struct events *events; /* NULL: no index, and nothing of the rest counts */
    const uint32_t *prior_ppb;   /* [owners], shares_prior of its owner table */
    const uint64_t *spans;       /* [owners] signal S2; NULL: none */
    const int8_t *const *key;    /* [choice_count], each [n][128] */
};

struct gain_in {
    uint32_t adapter_count, choice_count;
    struct gain_adapter adapter[TAIL_ADAPTERS_MAX];
    const struct gain_choice *choice;
};

struct gain_result {
    struct tail_influence influence;
    uint64_t solo_q8[TAIL_ADAPTERS_MAX]; /* telemetry: nats gained, Q8 */
    uint64_t moved_q8;                   /* sum of |set - base|: 0 flags a dead adapter */
    /* of adapters with an index that moved the answer */
    struct shares shares[TAIL_ADAPTERS_MAX];
    struct events_scores *scores[TAIL_ADAPTERS_MAX];
};

/* Rows of a choice beside the set's: 1 for one adapter, 3 for two, 1 + 2 K for more. */
uint32_t gain_row_count(uint32_t adapter_count);
/* Q8 nats that adapter k gained at token t of a choice, 0 to 65535: what S1 counts. */
int32_t gain_at(const struct gain_in *in, uint32_t choice, uint32_t k, uint32_t t);
/* Errors: those of events_score and shares_compute; nothing is to be freed then. */
MUST_CHECK enum status gain_compute(struct gain_result *out, const struct gain_in *in,
                                    struct errtext *err);
void gain_result_fini(struct gain_result *r);
/* inputsDigest: keccak(s_4 ‖ per choice: set row, base row, of a mix its other rows, i32 each,
 * then in_prompt; per adapter with an index: per choice 128 bytes a token, then its owners with S2:
 * count u32, each place u32 and weight u64). */
void gain_inputs_digest(uint8_t out[32], const struct gain_in *in, const uint8_t salt[32]);
/* indexHash: keccak over the adapters' index roots in set order, zeros for none; zero when none has
 * one. */
void gain_index_hash(uint8_t out[32], const struct gain_in *in);

#endif
