/* Both events are read by one walk over a range of blocks: the whole of it at once, or in pieces
 * from where the node refused. */
#include "chain_client/settle/events.h"
#include "chain_client/eth/abi.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <string.h>

#define PIECE_BLOCKS 10000 /* asked for at once where a node refuses the whole range */

static const char commit_event[] =
    "BatchCommitted(uint64,bytes32,(uint64,uint8,bytes32,bytes32,bytes32,uint32,uint32,uint128,"
    "uint128,uint64),(uint32,uint64,uint64)[])";
static const char proposal_event[] =
    "Proposed(uint64,bytes32,uint128,uint32,uint64,uint64,bytes32,uint64)";

typedef enum status (*take_log)(void *arg, const struct rpc_log *log, struct errtext *err);

struct walk {
    const uint8_t *address;
    const char *event;
    take_log take;
    void *arg; /* of the caller, behind its own function */
    enum status (*each_commit)(void *arg, const struct event_commit *e, struct errtext *err);
    enum status (*each_proposal)(void *arg, const struct event_proposal *e, struct errtext *err);
    bool met; /* one was taken: a piece may not be asked again */
};

static enum status ask(struct view *v, struct walk *w, const struct event_range *r, uint64_t from,
                       uint64_t to, struct errtext *err)
{
    uint8_t topic[32], number[32];
    char from_tag[RPC_TAG_BYTES], to_tag[RPC_TAG_BYTES];
    abi_topic(topic, w->event);
    be_put(number, r->number, sizeof(number));
    rpc_tag(from_tag, from);
    rpc_tag(to_tag, to);
    struct rpc_log_filter filter = {.address = w->address,
                                    .from_tag = from_tag,
                                    .to_tag = to_tag,
                                    .topic = {topic, r->number ? number : NULL}};
    return rpc_logs(v->rpc, &filter, w->take, w, err);
}

static enum status walk_range(struct view *v, struct walk *w, const struct event_range *r,
                              struct errtext *err)
{
    struct errtext refused = ERRTEXT_INIT;
    if (r->from > r->to)
        return STATUS_OK;
    enum status st = ask(v, w, r, r->from, r->to, &refused);
    bool limited = (st == STATUS_INVALID || st == STATUS_TOO_LARGE) && !w->met;
    if (st && (!limited || r->to - r->from < PIECE_BLOCKS))
        return err_set(err, st, "%s", refused.text);
    if (!st)
        return STATUS_OK;
    st = STATUS_OK;
    for (uint64_t at = r->from; at <= r->to && !st; at += PIECE_BLOCKS)
        st = ask(v, w, r, at, MIN(at + PIECE_BLOCKS - 1, r->to), err);
    return st;
}

/* ---- BatchCommitted ---- */

/* data: ten words of the header, the offset of the lanes, the lanes. */
static enum status read_header(const struct abi_reader *r, struct batch_header *h,
                               struct errtext *err)
{
    u128 spec = 0, leaves = 0, inferences = 0;
    enum status st = abi_read_u64(r, 0, &h->seq, "header.seq", err);
    if (!st)
        st = abi_read_uint(r, 1, 1, &spec, "header.spec", err);
    if (!st)
        st = abi_read_bytes32(r, 2, h->prev_hash, "header.prevHash", err);
    if (!st)
        st = abi_read_bytes32(r, 3, h->log_root, "header.logRoot", err);
    if (!st)
        st = abi_read_bytes32(r, 4, h->manifest, "header.manifest", err);
    if (!st)
        st = abi_read_uint(r, 5, 4, &leaves, "header.leafCount", err);
    if (!st)
        st = abi_read_uint(r, 6, 4, &inferences, "header.inferences", err);
    if (!st)
        st = abi_read_uint(r, 7, 16, &h->fee_sum, "header.feeSum", err);
    if (!st)
        st = abi_read_uint(r, 8, 16, &h->cum_fee, "header.cumFee", err);
    if (!st)
        st = abi_read_u64(r, 9, &h->closed_at, "header.closedAt", err);
    h->spec = (uint8_t)spec;
    h->leaf_count = (uint32_t)leaves;
    h->inferences = (uint32_t)inferences;
    return st;
}

static enum status read_lanes(const struct abi_array *list, struct batch_lane *lane,
                              struct errtext *err)
{
    enum status st = STATUS_OK;
    for (size_t i = 0; i < list->count && !st; i++) {
        u128 id = 0;
        st = abi_read_uint(&list->items, 3 * i, 4, &id, "lanes.lane", err);
        if (!st)
            st = abi_read_u64(&list->items, 3 * i + 1, &lane[i].first, "lanes.first", err);
        if (!st)
            st = abi_read_u64(&list->items, 3 * i + 2, &lane[i].last, "lanes.last", err);
        lane[i].lane = (uint32_t)id;
    }
    return st;
}

static enum status take_commit(void *arg, const struct rpc_log *log, struct errtext *err)
{
    struct walk *w = arg;
    struct abi_reader r = {log->data, log->data_len};
    struct event_commit e = {.block = log->block_number};
    struct abi_array list = {.count = 0};
    memcpy(e.hash, log->topic[2], 32);
    enum status st = read_header(&r, &e.header, err);
    if (!st)
        st = abi_read_array(&r, BATCH_HEADER_WORDS, BATCH_LANE_WORDS, &list, "lanes", err);
    if (!st && list.count > BATCH_LANES_MAX)
        st = err_set(err, STATUS_CORRUPT, "BatchCommitted: %zu lanes, at most %d", list.count,
                     BATCH_LANES_MAX);
    if (st)
        return st;
    struct batch_lane *lane = mem_array(list.count + 1, sizeof(*lane));
    st = read_lanes(&list, lane, err);
    e.lane = lane;
    e.lane_count = list.count;
    w->met = true;
    if (!st)
        st = w->each_commit(w->arg, &e, err);
    mem_free(lane);
    return st;
}

enum status events_commits(struct view *v, const struct event_range *range,
                           enum status (*each)(void *arg, const struct event_commit *e,
                                               struct errtext *err),
                           void *arg, struct errtext *err)
{
    struct walk w = {.address = v->d->ledger,
                     .event = commit_event,
                     .take = take_commit,
                     .arg = arg,
                     .each_commit = each};
    return walk_range(v, &w, range, err);
}

struct wanted {
    const uint8_t *hash;
    uint64_t block;
};

static enum status match_hash(void *arg, const struct event_commit *e, struct errtext *err)
{
    struct wanted *k = arg;
    (void)err;
    if (memcmp(e->hash, k->hash, 32) == 0)
        k->block = e->block;
    return STATUS_OK;
}

enum status events_commit_block(struct view *v, uint64_t seq, const uint8_t hash[32], uint64_t to,
                                uint64_t *block, struct errtext *err)
{
    struct wanted k = {.hash = hash};
    struct event_range range = {.from = v->d->start_block, .to = to, .number = seq};
    enum status st = events_commits(v, &range, match_hash, &k, err);
    if (!st && !k.block)
        st = err_set(err, STATUS_NOT_FOUND,
                     "batch %" PRIu64 ": no commit of it up to block %" PRIu64, seq, to);
    *block = k.block;
    return st;
}

/* ---- Proposed ---- */

static enum status take_proposal(void *arg, const struct rpc_log *log, struct errtext *err)
{
    struct walk *w = arg;
    struct abi_reader r = {log->data, log->data_len};
    struct event_proposal e = {.block = log->block_number};
    struct epoch_header *h = &e.header;
    u128 leaves = 0;
    h->epoch = (uint64_t)be_get(log->topic[1] + 24, 8);
    memcpy(h->root, log->topic[2], 32);
    enum status st = abi_read_uint(&r, 0, 16, &h->total, "Proposed.total", err);
    if (!st)
        st = abi_read_uint(&r, 1, 4, &leaves, "Proposed.leaves", err);
    if (!st)
        st = abi_read_u64(&r, 2, &h->batch_paid, "Proposed.batchPaid", err);
    if (!st)
        st = abi_read_u64(&r, 3, &h->batch_evidence, "Proposed.batchEvidence", err);
    if (!st)
        st = abi_read_bytes32(&r, 4, h->manifest, "Proposed.manifest", err);
    if (!st)
        st = abi_read_u64(&r, 5, &e.active_at, "Proposed.activeAt", err);
    h->leaves = (uint32_t)leaves;
    w->met = true;
    return st ? st : w->each_proposal(w->arg, &e, err);
}

enum status events_proposals(struct view *v, const struct event_range *range,
                             enum status (*each)(void *arg, const struct event_proposal *e,
                                                 struct errtext *err),
                             void *arg, struct errtext *err)
{
    struct walk w = {.address = v->d->vault,
                     .event = proposal_event,
                     .take = take_proposal,
                     .arg = arg,
                     .each_proposal = each};
    return walk_range(v, &w, range, err);
}
