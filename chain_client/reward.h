/* Reward(e) of SPEC 5: who earned what, a pure function of fees, evidence and what the chain says
 * at T. It reads no clock, no file and no order of arrival: the same records in any order give the
 * same result. Thread: any.
 *
 *   reward_record_from(&rec[i], &inference, digest); rec[i].seed = seed of its batch; ...
 *   reward_match(rec, n, evidence, m, err)         type 2 records to their type 1
 *   reward_compute(&result, &input, err)
 *   ... result.account[], result.total ...
 *   reward_result_fini(&result)
 */
#ifndef RS_CHAIN_REWARD_H
#define RS_CHAIN_REWARD_H

#include "chain_client/canon.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REWARD_BPS         10000
#define REWARD_ENTRIES_MAX 32
#define REWARD_PARENTS_MAX 4
#define REWARD_RECORDS_MAX (1u << 24) /* in one epoch */

enum reward_role { REWARD_ROLE_AUTHOR = 1, REWARD_ROLE_DATA = 2, REWARD_ROLE_OTHER = 3 };

struct reward_entry {
    uint8_t payee[20];
    uint8_t role; /* enum reward_role */
    uint16_t bps;
};

/* As the Registry keeps it: strictly ascending by (role, payee), bps sum to 10 000. */
struct reward_split {
    const struct reward_entry *entry;
    size_t count;
};

/* An adapter that another one is made from; strictly ascending by id, bps sum to at most 5 000. */
struct reward_parent {
    uint8_t adapter_id[32];
    uint16_t bps;
};

struct reward_policy {
    uint16_t base_bps, adapters_bps, operator_bps, protocol_bps; /* sum 10 000 */
    uint8_t treasury[20];
};

/* The three tables are strictly ascending by lane or id; what is not in them earns for TREASURY. */
struct reward_lane {
    uint32_t lane;
    uint8_t account[20];
};
struct reward_base {
    uint8_t model_id[32];
    struct reward_split split;
};
struct reward_adapter {
    uint8_t adapter_id[32];
    bool has_datanet;
    struct reward_split split;
};

/* A type 1 record of (M', M]. Pointers are the caller's. */
struct reward_record {
    uint32_t lane;
    uint64_t seq;
    u128 fee;
    const uint8_t *model_id; /* [32] */
    const uint8_t *digest;   /* [32] */
    struct canon_bytes set;
    const uint8_t *seed; /* [32] of its batch; may be NULL at rate E9 */
    uint32_t rate_ppb;   /* of its batch */
    bool is_scored;      /* set by reward_match */
    struct canon_bytes influence;
};

/* A type 2 record of a batch <= E. */
struct reward_evidence {
    uint32_t lane;
    uint64_t seq, inf_seq;
    const uint8_t *inf_digest; /* [32] */
    uint8_t outcome;
    struct canon_bytes influence;
};

/* An account's cumulative amount, and its part of it from this epoch. */
struct reward_account {
    uint8_t payee[20];
    u128 cumulative;
    u128 amount;
};

/* What a payment was for. UNPAID: evidence names the payee, whom the adapter gives nothing. */
enum reward_source {
    REWARD_FROM_PROTOCOL,
    REWARD_FROM_OPERATOR,
    REWARD_FROM_BASE,
    REWARD_FROM_AUTHOR,
    REWARD_FROM_DATA,
    REWARD_FROM_OTHER,
    REWARD_UNPAID
};

struct reward_share {
    const uint8_t *payee;      /* [20] */
    const uint8_t *adapter_id; /* [32] in the caller's table; NULL: of no registered adapter */
    enum reward_source source;
    u128 amount;
};

struct reward_input {
    const struct reward_policy *policy;
    const struct reward_lane *lane;
    size_t lane_count;
    const struct reward_base *base;
    size_t base_count;
    const struct reward_adapter *adapter;
    size_t adapter_count;
    const struct reward_record *record;
    size_t record_count;
    const struct reward_account *prev; /* epoch e', strictly ascending by payee; amount not read */
    size_t prev_count;
    /* NULL, or called with every part of every account; an account's parts sum to its amount. */
    enum status (*on_share)(void *arg, const struct reward_share *share);
    void *on_share_arg;
};

struct reward_stats {
    uint64_t required, scored, missing; /* records; required = scored + missing */
    u128 fee_required, fee_scored, fee_missing;
};

struct reward_result {
    struct reward_account *account; /* strictly ascending by payee, cumulative > 0 */
    size_t account_count;
    u128 total;   /* sum of cumulative = previous total + fee_sum */
    u128 fee_sum; /* of the records */
    struct reward_stats stats;
};

void reward_record_from(struct reward_record *out, const struct record_inference *inf,
                        const uint8_t *digest);
void reward_evidence_from(struct reward_evidence *out, const struct record_attribution *att);

/* reward_match - give every record its first valid evidence.
 *
 * Before  record and evidence strictly ascending by (lane, seq), each in one array; else INVALID
 * After   record[i].is_scored and .influence are set; evidence that names no record, another
 *         digest, a later number or a wrong tail is passed over; of several valid ones the first
 *         counts
 */
MUST_CHECK enum status reward_match(struct reward_record *record, size_t record_count,
                                    const struct reward_evidence *evidence, size_t evidence_count,
                                    struct errtext *err);

/* reward_compute - SPEC 5, steps 1 to 4, added to the previous cumulative amounts.
 *
 * After   on success every identity of SPEC 5 holds and was checked; on failure *out is empty
 * Errors  INVALID: tables not ascending, bps not summing to 10 000, a set that does not parse, a
 *         sum past 2^128
 *         NO_MEMORY
 *         CORRUPT if an identity fails (a bug: nothing may be proposed)
 * Cost    O(n log n) for n records plus payees; memory 88 bytes per distinct (adapter, payee)
 */
MUST_CHECK enum status reward_compute(struct reward_result *out, const struct reward_input *input,
                                      struct errtext *err);
void reward_result_fini(struct reward_result *r);

#endif
