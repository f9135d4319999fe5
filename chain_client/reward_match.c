/* Records against the Registry, and evidence to records: both arrays stand in the order of (lane,
 * seq), so one pass over the evidence with a bisection each finds the first valid one of every
 * record (SPEC 4). */
#include "chain_client/commit.h"
#include "chain_client/eth/addr.h"
#include "chain_client/reward.h"
#include "server/base/mem.h"

#include <string.h>

void reward_record_from(struct reward_record *out, const struct record_inference *inf,
                        const uint8_t *digest, uint64_t closed_at)
{
    uint64_t start_s = inf->start_ms / 1000;
    *out = (struct reward_record){.lane = inf->prefix.lane,
                                  .seq = inf->prefix.seq,
                                  .t0 = start_s < closed_at ? start_s : closed_at,
                                  .fee = inf->fee,
                                  .model_id = inf->model_id,
                                  .digest = digest,
                                  .set = inf->set,
                                  .tariff = inf->tariff,
                                  .rate_ppb = TAIL_E9};
}

void reward_evidence_from(struct reward_evidence *out, const struct record_attribution *att)
{
    *out = (struct reward_evidence){.lane = att->prefix.lane,
                                    .seq = att->prefix.seq,
                                    .inf_seq = att->inf_seq,
                                    .inf_digest = att->inf_digest,
                                    .method_hash = att->method_hash,
                                    .outcome = att->outcome,
                                    .influence = att->influence};
}

static int place_order(uint32_t lane_a, uint64_t seq_a, uint32_t lane_b, uint64_t seq_b)
{
    if (lane_a != lane_b)
        return lane_a < lane_b ? -1 : 1;
    return seq_a < seq_b ? -1 : seq_a > seq_b;
}

struct reward_record *reward_named_by(struct reward_record *record, size_t count,
                                      const struct reward_evidence *e)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        struct reward_record *r = &record[mid];
        int order = place_order(r->lane, r->seq, e->lane, e->inf_seq);
        if (!order)
            return e->inf_seq < e->seq && memcmp(e->inf_digest, r->digest, 32) == 0 ? r : NULL;
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

/* ---- the record alone ---- */

static bool is_named_tariff(const struct reward_record *r, const struct reward_tables *t)
{
    static const struct reward_history none;
    struct tail_tariff tariff;
    const struct reward_lane *lane = reward_find_lane(t, r->lane);
    const struct reward_tariff *base = lane ? reward_find_tariff(lane, r->model_id) : NULL;
    if (tail_tariff_decode(&tariff, r->tariff.data, r->tariff.len, NULL) ||
        tariff.count != 1 + r->set.len / 36)
        return false;
    if (!reward_names_price(base ? &base->history : &none, r->t0, tariff.price[0].in,
                            tariff.price[0].out))
        return false;
    for (uint32_t k = 1; k < tariff.count; k++) {
        const struct reward_adapter *a = reward_find_adapter(t, r->set.data + 36 * (k - 1));
        if (!reward_names_price(a ? &a->history : &none, r->t0, tariff.price[k].in,
                                tariff.price[k].out))
            return false;
    }
    return true;
}

static bool is_required(const struct reward_record *r, const struct reward_tables *t)
{
    uint32_t count = (uint32_t)(r->set.len / 36);
    const struct reward_adapter *only = count == 1 ? reward_find_adapter(t, r->set.data) : NULL;
    struct commit_sample s = {.fee = r->fee,
                              .adapter_count = count,
                              .has_datanet = only && reward_has_datanet(only) &&
                                             reward_is_active(&only->history, r->t0),
                              .lane = r->lane,
                              .seq = r->seq};
    return !r->is_refused && commit_is_required(&s, r->seed, r->rate_ppb);
}

static enum status judge_records(struct reward_record *record, size_t count,
                                 const struct reward_tables *t, struct errtext *err)
{
    for (size_t i = 0; i < count; i++) {
        struct reward_record *r = &record[i];
        if (i && place_order(r[-1].lane, r[-1].seq, r->lane, r->seq) >= 0)
            return err_set(err, STATUS_INVALID, "records are not ascending by lane and seq");
        if (r->rate_ppb > TAIL_E9)
            return err_set(err, STATUS_INVALID, "a sampling rate is above %u ppb", TAIL_E9);
        if (r->rate_ppb < TAIL_E9 && !r->seed)
            return err_set(err, STATUS_INVALID, "a sampling rate below %u ppb needs a seed",
                           TAIL_E9);
        r->is_refused = !is_named_tariff(r, t);
        r->is_required = is_required(r, t);
        r->is_scored = false;
        r->influence = (struct canon_bytes){NULL, 0};
    }
    return STATUS_OK;
}

/* ---- its evidence ---- */

static bool pays_owners(const struct tail_credit *c, const struct reward_adapter *a, uint64_t t0,
                        const struct reward_tables *t)
{
    for (uint32_t i = 0; i < c->share_count; i++) {
        const uint8_t *payee = c->share[i].payee;
        if (!addr_is_zero(payee) && (!a || !reward_names_owner(t, a, t0, payee)))
            return false;
    }
    return true;
}

/* Of evidence that names r by number and digest. */
static bool is_valid_evidence(struct reward_evidence *e, const struct reward_record *r,
                              const struct reward_tables *t)
{
    static _Thread_local struct tail_influence influence; /* 12 KiB: not on the stack */
    const struct reward_method *m = reward_find_method(t, e->method_hash);
    if (!m || !m->registered_at) {
        e->fault = REWARD_FAULT_METHOD;
        return false;
    }
    if (e->outcome != RECORD_OUTCOME_SCORED)
        return true;
    if (tail_influence_decode(&influence, e->influence.data, e->influence.len, NULL) ||
        influence.count != r->set.len / 36)
        return false;
    for (uint32_t k = 0; k < influence.count && !e->fault; k++)
        if (!pays_owners(&influence.adapter[k], reward_find_adapter(t, r->set.data + 36 * k), r->t0,
                         t))
            e->fault = REWARD_FAULT_PAYEE;
    return !e->fault;
}

enum status reward_judge(struct reward_record *record, size_t record_count,
                         struct reward_evidence *evidence, size_t evidence_count,
                         const struct reward_tables *t, struct errtext *err)
{
    enum status st = judge_records(record, record_count, t, err);
    if (st)
        return st;
    uint8_t *settled = mem_try_array(record_count ? record_count : 1, 1);
    if (!settled)
        return err_set(err, STATUS_NO_MEMORY, "no memory to match evidence");
    for (size_t i = 0; i < evidence_count && !st; i++) {
        struct reward_evidence *e = &evidence[i];
        if (i && place_order(e[-1].lane, e[-1].seq, e->lane, e->seq) >= 0)
            st = err_set(err, STATUS_INVALID, "evidence is not ascending by lane and seq");
        e->fault = REWARD_FAULT_NONE;
        struct reward_record *r = reward_named_by(record, record_count, e);
        if (st || !r || !is_valid_evidence(e, r, t) || settled[r - record])
            continue;
        settled[r - record] = 1;
        r->is_scored = e->outcome == RECORD_OUTCOME_SCORED;
        r->influence = e->influence;
    }
    mem_free(settled);
    return st;
}
