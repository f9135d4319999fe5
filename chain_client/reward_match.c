/* Evidence to records: both arrays stand in the order of (lane, seq), so one pass over the evidence
 * with a bisection each finds the first valid one of every record (SPEC 4). */
#include "chain_client/reward.h"
#include "server/base/mem.h"

#include <string.h>

void reward_record_from(struct reward_record *out, const struct record_inference *inf,
                        const uint8_t *digest)
{
    *out = (struct reward_record){.lane = inf->prefix.lane,
                                  .seq = inf->prefix.seq,
                                  .fee = inf->fee,
                                  .model_id = inf->model_id,
                                  .digest = digest,
                                  .set = inf->set,
                                  .rate_ppb = TAIL_E9};
}

void reward_evidence_from(struct reward_evidence *out, const struct record_attribution *att)
{
    *out = (struct reward_evidence){.lane = att->prefix.lane,
                                    .seq = att->prefix.seq,
                                    .inf_seq = att->inf_seq,
                                    .inf_digest = att->inf_digest,
                                    .outcome = att->outcome,
                                    .influence = att->influence};
}

static int place_order(uint32_t lane_a, uint64_t seq_a, uint32_t lane_b, uint64_t seq_b)
{
    if (lane_a != lane_b)
        return lane_a < lane_b ? -1 : 1;
    return seq_a < seq_b ? -1 : seq_a > seq_b;
}

static struct reward_record *find_record(struct reward_record *record, size_t count, uint32_t lane,
                                         uint64_t seq)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int order = place_order(record[mid].lane, record[mid].seq, lane, seq);
        if (!order)
            return &record[mid];
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

static bool is_valid_evidence(const struct reward_evidence *e, const struct reward_record *r)
{
    struct tail_influence influence;
    if (e->inf_seq >= e->seq || memcmp(e->inf_digest, r->digest, 32) != 0)
        return false;
    if (e->outcome != RECORD_OUTCOME_SCORED)
        return true;
    return tail_influence_decode(&influence, e->influence.data, e->influence.len, NULL) == 0 &&
           influence.count == r->set.len / 36;
}

enum status reward_match(struct reward_record *record, size_t record_count,
                         const struct reward_evidence *evidence, size_t evidence_count,
                         struct errtext *err)
{
    for (size_t i = 0; i < record_count; i++) {
        if (i &&
            place_order(record[i - 1].lane, record[i - 1].seq, record[i].lane, record[i].seq) >= 0)
            return err_set(err, STATUS_INVALID, "records are not ascending by lane and seq");
        record[i].is_scored = false;
        record[i].influence = (struct canon_bytes){NULL, 0};
    }
    uint8_t *settled = mem_try_array(record_count ? record_count : 1, 1);
    if (!settled)
        return err_set(err, STATUS_NO_MEMORY, "no memory to match evidence");
    enum status st = STATUS_OK;
    for (size_t i = 0; i < evidence_count && !st; i++) {
        const struct reward_evidence *e = &evidence[i];
        if (i && place_order(e[-1].lane, e[-1].seq, e->lane, e->seq) >= 0)
            st = err_set(err, STATUS_INVALID, "evidence is not ascending by lane and seq");
        struct reward_record *r = find_record(record, record_count, e->lane, e->inf_seq);
        if (st || !r || settled[r - record] || !is_valid_evidence(e, r))
            continue;
        settled[r - record] = 1;
        r->is_scored = e->outcome == RECORD_OUTCOME_SCORED;
        r->influence = e->influence;
    }
    mem_free(settled);
    return st;
}
