/* Reads and renders what the chain says at T; the views are in view.c. */
#include "chain_client/settle/snapshot.h"
#include "chain_client/commit.h"
#include "chain_client/eth/abi.h"
#include "chain_client/eth/addr.h"
#include "chain_client/settle/compute.h"
#include "server/base/check.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define IDS_MAX (1u << 20) /* lanes, bases or adapters that one epoch names */

/* ---- which ids the records name ---- */

struct ids {
    uint8_t (*id)[32];
    size_t count, cap;
};

static bool ids_add(struct ids *s, const uint8_t *id)
{
    if (s->count && memcmp(s->id[s->count - 1], id, 32) == 0)
        return true; /* runs are long */
    if (s->count == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 64;
        void *more = mem_try_realloc(s->id, cap * 32);
        if (!more)
            return false;
        s->id = more;
        s->cap = cap;
    }
    memcpy(s->id[s->count++], id, 32);
    return true;
}

static int order_ids(const void *a, const void *b)
{
    return memcmp(a, b, 32);
}

static void ids_sort(struct ids *s)
{
    size_t kept = 0;
    if (!s->count)
        return;
    qsort(s->id, s->count, 32, order_ids);
    for (size_t i = 1; i < s->count; i++)
        if (memcmp(s->id[kept], s->id[i], 32) != 0 && ++kept != i)
            memcpy(s->id[kept], s->id[i], 32);
    s->count = kept + 1;
}

/* Sorting what has piled up keeps memory in the number of distinct ids. */
static bool ids_take(struct ids *s, const uint8_t *id)
{
    if (s->count == s->cap && s->count)
        ids_sort(s);
    return ids_add(s, id);
}

static enum status collect(const struct compute *c, struct ids *lane, struct ids *base,
                           struct ids *adapter, struct errtext *err)
{
    for (size_t i = 0; i < c->record_count; i++) {
        const struct reward_record *r = &c->record[i];
        uint8_t number[32] = {0};
        be_put(number, r->lane, 32);
        bool good = ids_take(lane, number) && ids_take(base, r->model_id);
        for (size_t k = 0; k + 36 <= r->set.len; k += 36)
            good = good && ids_take(adapter, r->set.data + k);
        if (!good)
            return err_set(err, STATUS_NO_MEMORY, "no memory for the ids of an epoch");
    }
    ids_sort(lane);
    ids_sort(base);
    ids_sort(adapter);
    if (MAX(MAX(lane->count, base->count), adapter->count) > IDS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "an epoch names more than %u ids", IDS_MAX);
    return STATUS_OK;
}

/* ---- beacons ---- */

struct committed {
    uint64_t block;
};

static enum status take_committed(void *arg, const struct rpc_log *log, struct errtext *err)
{
    ((struct committed *)arg)->block = log->block_number;
    return STATUS_OK;
}

static enum status commit_block(struct view *v, uint64_t seq, uint64_t last, uint64_t *block,
                                struct errtext *err)
{
    uint8_t topic[32], number[32];
    char from_tag[RPC_TAG_BYTES], to_tag[RPC_TAG_BYTES];
    struct committed found = {0};
    abi_topic(topic, "BatchCommitted(uint64,bytes32,(uint64,uint8,bytes32,bytes32,bytes32,uint32,"
                     "uint32,uint128,uint128,uint64),(uint32,uint64,uint64)[])");
    be_put(number, seq, sizeof(number));
    rpc_tag(from_tag, v->d->start_block);
    rpc_tag(to_tag, last);
    struct rpc_log_filter filter = {
        .address = v->d->ledger, .from_tag = from_tag, .to_tag = to_tag, .topic = {topic, number}};
    enum status st = rpc_logs(v->rpc, &filter, take_committed, &found, err);
    if (!st && !found.block)
        st = err_set(err, STATUS_BUSY, "batch %" PRIu64 ": its commit is not final yet", seq);
    *block = found.block;
    return st;
}

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
    uint64_t low;
    enum status st = rpc_block(v->rpc, "finalized", &last, err);
    if (!st)
        st = commit_block(v, b->seq, last.number, &low, err);
    if (!st)
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

static enum status read_lanes(struct snapshot *s, const struct ids *ids, struct view *v,
                              struct errtext *err)
{
    enum status st = STATUS_OK;
    s->lane_count = ids->count;
    s->lane = mem_try_array(ids->count + 1, sizeof(*s->lane));
    if (!s->lane)
        return err_set(err, STATUS_NO_MEMORY, "no memory for lanes");
    for (size_t i = 0; i < ids->count && !st; i++) {
        s->lane[i].lane = (uint32_t)be_get(ids->id[i] + 28, 4);
        st = view_lane_operator_at(v, "finalized", s->lane[i].lane, s->at, s->lane[i].account, err);
    }
    return st;
}

typedef enum status (*read_entry)(struct view *v, const char *tag, const uint8_t id[32], uint64_t t,
                                  struct view_entry *out, struct errtext *err);

static enum status read_entries(struct snapshot_entry **out, size_t *count, const struct ids *ids,
                                struct view *v, uint64_t at, read_entry read, struct errtext *err)
{
    enum status st = STATUS_OK;
    *count = ids->count;
    *out = mem_try_array(ids->count + 1, sizeof(**out));
    if (!*out)
        return err_set(err, STATUS_NO_MEMORY, "no memory for splits");
    for (size_t i = 0; i < ids->count && !st; i++) {
        memcpy((*out)[i].id, ids->id[i], 32);
        st = read(v, "finalized", ids->id[i], at, &(*out)[i].entry, err);
    }
    return st;
}

static enum status read_batches(struct snapshot *s, const struct compute *c, struct view *v,
                                uint64_t delay_s, struct errtext *err)
{
    enum status st = STATUS_OK;
    s->batch_count = c->range.paid - c->range.paid_from;
    s->batch = mem_try_array(s->batch_count + 1, sizeof(*s->batch));
    if (!s->batch)
        return err_set(err, STATUS_NO_MEMORY, "no memory for batches");
    for (size_t i = 0; i < s->batch_count && !st; i++) {
        struct snapshot_batch *b = &s->batch[i];
        b->seq = c->batch[i].header.seq;
        st = view_rate_at(v, "finalized", c->batch[i].header.closed_at, &b->rate_ppb, err);
        if (!st && b->rate_ppb < TAIL_E9) {
            s->beacon_delay_s = delay_s;
            st = read_beacon(b, v, c->batch[i].hash, delay_s, err);
        }
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
                          uint64_t beacon_delay_s, struct errtext *err)
{
    struct ids lane = {0}, base = {0}, adapter = {0};
    uint64_t paid_idx = c->range.paid - c->range.paid_from - 1;
    *s = (struct snapshot){.at = c->batch[paid_idx].header.closed_at};
    enum status st = check_settled(s, v, err);
    if (!st)
        st = collect(c, &lane, &base, &adapter, err);
    if (!st)
        st = view_policy_at(v, "finalized", s->at, &s->policy, err);
    if (!st)
        st = read_lanes(s, &lane, v, err);
    if (!st)
        st = read_entries(&s->base, &s->base_count, &base, v, s->at, view_base_at, err);
    if (!st)
        st = read_entries(&s->adapter, &s->adapter_count, &adapter, v, s->at, view_adapter_at, err);
    if (!st)
        st = read_batches(s, c, v, beacon_delay_s, err);
    mem_free(lane.id);
    mem_free(base.id);
    mem_free(adapter.id);
    if (st)
        snapshot_fini(s);
    return st;
}

void snapshot_fini(struct snapshot *s)
{
    mem_free(s->lane);
    mem_free(s->base);
    mem_free(s->adapter);
    mem_free(s->batch);
    *s = (struct snapshot){0};
}

/* ---- text ---- */

static void put_split(struct buf *out, const struct view_entry *e)
{
    buf_puts(out, "\"entries\":[");
    for (size_t i = 0; i < e->entry_count; i++) {
        buf_printf(out, "%s{\"bps\":%u,\"payee\":", i ? "," : "", e->entry[i].bps);
        archive_put_hex(out, e->entry[i].payee, 20);
        buf_printf(out, ",\"role\":%u}", e->entry[i].role);
    }
    buf_putc(out, ']');
}

static void put_entries(struct buf *out, const char *name, const struct snapshot_entry *list,
                        size_t count, bool is_adapter)
{
    buf_printf(out, "\"%s\":[", name);
    for (size_t i = 0; i < count; i++) {
        const struct view_entry *e = &list[i].entry;
        buf_puts(out, i ? ",{" : "{");
        if (is_adapter) {
            buf_puts(out, "\"datanet\":");
            archive_put_hex(out, e->datanet_id, 32);
            buf_putc(out, ',');
        }
        put_split(out, e);
        buf_puts(out, ",\"id\":");
        archive_put_hex(out, list[i].id, 32);
        if (is_adapter) {
            buf_puts(out, ",\"model\":");
            archive_put_hex(out, e->model_id, 32);
        }
        buf_printf(out, ",\"registered\":%s}", e->registered ? "true" : "false");
    }
    buf_puts(out, "],");
}

static void put_batches(struct buf *out, const struct snapshot *s)
{
    buf_puts(out, "\"batches\":[");
    for (size_t i = 0; i < s->batch_count; i++) {
        const struct snapshot_batch *b = &s->batch[i];
        buf_printf(out, "%s{\"beacon_block\":%" PRIu64 ",\"mix_hash\":", i ? "," : "",
                   b->beacon_block);
        archive_put_hex(out, b->mix_hash, 32);
        buf_printf(out, ",\"rate_ppb\":%" PRIu32 ",\"seq\":%" PRIu64 "}", b->rate_ppb, b->seq);
    }
    buf_puts(out, "],");
}

void snapshot_put(struct buf *out, const struct snapshot *s, const struct deployment *d)
{
    const struct reward_policy *p = &s->policy;
    buf_putc(out, '{');
    put_entries(out, "adapters", s->adapter, s->adapter_count, true);
    buf_printf(out, "\"at\":%" PRIu64 ",", s->at);
    put_entries(out, "bases", s->base, s->base_count, false);
    put_batches(out, s);
    buf_printf(out,
               "\"beacon_delay_s\":%" PRIu64 ",\"chain_id\":%" PRIu64
               ",\"format\":\"residual.snapshot.1\",\"lanes\":[",
               s->beacon_delay_s, d->chain_id);
    for (size_t i = 0; i < s->lane_count; i++) {
        buf_printf(out, "%s{\"lane\":%" PRIu32 ",\"operator\":", i ? "," : "", s->lane[i].lane);
        archive_put_hex(out, s->lane[i].account, 20);
        buf_putc(out, '}');
    }
    buf_puts(out, "],\"ledger\":");
    archive_put_hex(out, d->ledger, 20);
    buf_printf(out, ",\"policy\":{\"adapters\":%u,\"base\":%u,\"operator\":%u,\"protocol\":%u,",
               p->adapters_bps, p->base_bps, p->operator_bps, p->protocol_bps);
    buf_puts(out, "\"treasury\":");
    archive_put_hex(out, p->treasury, 20);
    buf_puts(out, "},\"registry\":");
    archive_put_hex(out, d->registry, 20);
    buf_puts(out, "}\n");
}

uint64_t snapshot_delay(const void *text, size_t len)
{
    json_t *root;
    if (json_doc_parse(&root, "snapshot.json", text, len, 0, NULL))
        return 0;
    struct json_reader r = {.obj = root};
    int64_t delay = json_read_int(&r, "beacon_delay_s", (struct json_range){0, INT64_MAX}, 0);
    json_decref(root);
    return (uint64_t)delay;
}
