/* Reward(e) of SPEC 5: who earned what, a pure function of fees, evidence and what the chain says
 * at T. It reads no clock, no file and no order of arrival: the same records in any order give the
 * same result. Thread: any.
 *
 *   reward_record_from(&rec[i], &inference, digest, closed_at); rec[i].seed = its batch's; ...
 *   reward_judge(rec, n, evidence, m, &tables, err)     who is refused, required, scored
 *   reward_compute(&result, &input, err)
 *   ... result.account[], result.total ...
 *   reward_result_fini(&result)
 */
#ifndef RS_CHAIN_REWARD_H
#define RS_CHAIN_REWARD_H

#include "chain_client/canon.h"
#include "chain_client/reward_tables.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REWARD_RECORDS_MAX (1u << 24) /* in one epoch */

/* A type 1 record of (M', M]. Pointers are the caller's. */
struct reward_record {
    uint32_t lane;
    uint64_t seq;
    uint64_t t0; /* the second at which its terms are named (SPEC 4) */
    u128 fee;
    const uint8_t *model_id; /* [32] */
    const uint8_t *digest;   /* [32] */
    struct canon_bytes set, tariff;
    const uint8_t *seed; /* [32] of its batch; may be NULL at rate E9 */
    uint32_t rate_ppb;   /* of its batch */
    /* set by reward_judge */
    bool is_refused, is_required, is_scored;
    struct canon_bytes influence; /* of its evidence, once scored */
};

enum reward_fault {
    REWARD_FAULT_NONE,
    REWARD_FAULT_METHOD, /* not registered by T */
    REWARD_FAULT_PAYEE,  /* not an owner in a version that the adapter's terms name */
};

/* A type 2 record of a batch <= E. */
struct reward_evidence {
    uint32_t lane;
    uint64_t seq, inf_seq;
    const uint8_t *inf_digest, *method_hash; /* [32] */
    uint8_t outcome;
    struct canon_bytes influence;
    enum reward_fault fault; /* set by reward_judge where it names a record */
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
    struct reward_tables tables;
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
    uint64_t refused; /* records whose tariff was not a named one; required leaves them out */
    u128 fee_refused;
};

struct reward_result {
    struct reward_account *account; /* strictly ascending by payee, cumulative > 0 */
    size_t account_count;
    u128 total;   /* sum of cumulative = previous total + fee_sum */
    u128 fee_sum; /* of the records */
    struct reward_stats stats;
};

/* closed_at is that of the record's batch. */
void reward_record_from(struct reward_record *out, const struct record_inference *inf,
                        const uint8_t *digest, uint64_t closed_at);
void reward_evidence_from(struct reward_evidence *out, const struct record_attribution *att);

/* The record that e names by lane, number and digest, and is later than; NULL: none. record is
 * strictly ascending by (lane, seq). */
struct reward_record *reward_named_by(struct reward_record *record, size_t count,
                                      const struct reward_evidence *e);

/* reward_judge - SPEC 4: which records are refused and required, and each one's first valid
 * evidence.
 *
 * Before  record and evidence strictly ascending by (lane, seq), each in one array; else INVALID.
 *         Seeds and rates of the records are set, t's tables are in order (reward_check_tables)
 * After   the records' flags and the evidence's faults are set; evidence that names no record,
 *         another digest, a later number or a wrong tail, and faulty evidence, is passed over; of
 *         several valid ones the first counts
 */
MUST_CHECK enum status reward_judge(struct reward_record *record, size_t record_count,
                                    struct reward_evidence *evidence, size_t evidence_count,
                                    const struct reward_tables *t, struct errtext *err);

/* reward_compute - SPEC 5, steps 0 to 4, added to the previous cumulative amounts.
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
