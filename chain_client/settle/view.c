/* Each view is one eth_call: selector, argument words, and the words of the answer. */
#include "chain_client/settle/view.h"
#include "chain_client/eth/abi.h"
#include "chain_client/eth/addr.h"
#include "server/base/check.h"

#include <inttypes.h>
#include <string.h>

#define ANSWER_BYTES_MAX (1u << 16)
#define LOG_BLOCKS       10000 /* asked for at once where a node refuses the whole range */

void view_init(struct view *v, struct rpc *rpc, const struct deployment *d)
{
    *v = (struct view){.rpc = rpc, .d = d};
    buf_init(&v->data, 256);
    buf_init(&v->out, ANSWER_BYTES_MAX);
    registry_open(&v->registry, rpc, d->registry);
}

void view_use(struct view *v, struct rpc *rpc)
{
    v->rpc = v->registry.rpc = rpc;
}

void view_fini(struct view *v)
{
    buf_fini(&v->data);
    buf_fini(&v->out);
    registry_close(&v->registry);
}

/* ---- one call ---- */

static void begin(struct view *v, const char *signature)
{
    buf_clear(&v->data);
    abi_put_selector(&v->data, signature);
}

static void put_uint(struct view *v, u128 value)
{
    uint8_t word[ABI_WORD_BYTES];
    be_put(word, value, sizeof(word));
    buf_put(&v->data, word, sizeof(word));
}

static void put_address(struct view *v, const uint8_t address[20])
{
    uint8_t word[ABI_WORD_BYTES] = {0};
    memcpy(word + 12, address, 20);
    buf_put(&v->data, word, sizeof(word));
}

static enum status ask(struct view *v, const uint8_t to[20], const char *tag, struct abi_reader *r,
                       struct errtext *err)
{
    struct rpc_call call = {.to = to, .data = v->data.data, .data_len = v->data.len};
    enum status st = rpc_call(v->rpc, &call, tag, &v->out, err);
    *r = (struct abi_reader){(const uint8_t *)v->out.data, v->out.len};
    return st;
}

/* A view without arguments that answers one integer. */
static enum status ask_uint(struct view *v, const uint8_t to[20], const char *tag,
                            const char *signature, u128 *out, struct errtext *err)
{
    struct abi_reader r;
    begin(v, signature);
    enum status st = ask(v, to, tag, &r, err);
    if (!st)
        st = abi_read_uint(&r, 0, 16, out, signature, err);
    return st;
}

static enum status ask_u64(struct view *v, const uint8_t to[20], const char *tag,
                           const char *signature, uint64_t *out, struct errtext *err)
{
    u128 value = 0;
    enum status st = ask_uint(v, to, tag, signature, &value, err);
    if (!st && value > UINT64_MAX)
        st = err_set(err, STATUS_CORRUPT, "%s: the answer is above 64 bits", signature);
    *out = (uint64_t)value;
    return st;
}

/* ---- ledger ---- */

enum status view_head(struct view *v, const char *tag, struct view_head *head, struct errtext *err)
{
    struct abi_reader r;
    begin(v, "head()");
    enum status st = ask(v, v->d->ledger, tag, &r, err);
    if (!st)
        st = abi_read_u64(&r, 0, &head->seq, "head.seq", err);
    if (!st)
        st = abi_read_u64(&r, 1, &head->closed_at, "head.closedAt", err);
    if (!st)
        st = abi_read_uint(&r, 2, 16, &head->cum_fee, "head.cumFee", err);
    return st;
}

enum status view_batch_hash(struct view *v, const char *tag, uint64_t seq, uint8_t hash[32],
                            struct errtext *err)
{
    struct abi_reader r;
    begin(v, "batchHash(uint64)");
    put_uint(v, seq);
    enum status st = ask(v, v->d->ledger, tag, &r, err);
    return st ? st : abi_read_bytes32(&r, 0, hash, "batchHash", err);
}

enum status view_lane_key(struct view *v, const char *tag, uint32_t lane, uint64_t seq,
                          uint8_t key[20], struct errtext *err)
{
    struct abi_reader r;
    begin(v, "laneKey(uint32,uint64)");
    put_uint(v, lane);
    put_uint(v, seq);
    enum status st = ask(v, v->d->ledger, tag, &r, err);
    return st ? st : abi_read_address(&r, 0, key, "laneKey", err);
}

enum status view_lane_next(struct view *v, const char *tag, uint32_t lane, uint64_t *next,
                           struct errtext *err)
{
    struct abi_reader r;
    begin(v, "laneNext(uint32)");
    put_uint(v, lane);
    enum status st = ask(v, v->d->ledger, tag, &r, err);
    return st ? st : abi_read_u64(&r, 0, next, "laneNext", err);
}

enum status view_lane_seal(struct view *v, const char *tag, uint32_t lane, struct view_seal *seal,
                           struct errtext *err)
{
    struct abi_reader r;
    begin(v, "laneSeal(uint32)");
    put_uint(v, lane);
    enum status st = ask(v, v->d->ledger, tag, &r, err);
    if (!st)
        st = abi_read_u64(&r, 0, &seal->last_seq, "laneSeal.lastSeq", err);
    return st ? st : abi_read_u64(&r, 1, &seal->active_at, "laneSeal.activeAt", err);
}

enum status view_lane_operator_at(struct view *v, const char *tag, uint32_t lane, uint64_t t,
                                  uint8_t account[20], struct errtext *err)
{
    struct abi_reader r;
    begin(v, "laneOperatorAt(uint32,uint64)");
    put_uint(v, lane);
    put_uint(v, t);
    enum status st = ask(v, v->d->ledger, tag, &r, err);
    return st ? st : abi_read_address(&r, 0, account, "laneOperatorAt", err);
}

enum status view_rate_at(struct view *v, const char *tag, uint64_t t, uint32_t *ppb,
                         struct errtext *err)
{
    struct abi_reader r;
    u128 value = 0;
    begin(v, "rateAt(uint64)");
    put_uint(v, t);
    enum status st = ask(v, v->d->ledger, tag, &r, err);
    if (!st)
        st = abi_read_uint(&r, 0, 4, &value, "rateAt", err);
    *ppb = (uint32_t)value;
    return st;
}

enum status view_beacon_delay(struct view *v, const char *tag, uint64_t *seconds,
                              struct errtext *err)
{
    return ask_u64(v, v->d->ledger, tag, "beaconDelay()", seconds, err);
}

/* ---- vault ---- */

enum status view_vault(struct view *v, const char *tag, struct view_vault *out, struct errtext *err)
{
    const uint8_t *at = v->d->vault;
    uint64_t attestors = 0;
    *out = (struct view_vault){0};
    enum status st = ask_u64(v, at, tag, "wait()", &out->wait, err);
    if (!st)
        st = ask_u64(v, at, tag, "window()", &out->window, err);
    if (!st)
        st = ask_u64(v, at, tag, "startSeq()", &out->start_seq, err);
    if (!st)
        st = ask_uint(v, at, tag, "startCumFee()", &out->start_cum_fee, err);
    if (!st)
        st = ask_u64(v, at, tag, "attestorsMin()", &attestors, err);
    out->attestors_min = (uint32_t)attestors;
    return st;
}

enum status view_money(struct view *v, const char *tag, struct view_money *out, struct errtext *err)
{
    const uint8_t *at = v->d->vault;
    *out = (struct view_money){0};
    enum status st = ask_u64(v, at, tag, "lastEpoch()", &out->last_epoch, err);
    if (!st)
        st = ask_u64(v, at, tag, "lastLive()", &out->last_live, err);
    if (!st)
        st = ask_u64(v, at, tag, "activeEpoch()", &out->active_epoch, err);
    if (!st)
        st = ask_uint(v, at, tag, "funded()", &out->funded, err);
    if (!st)
        st = ask_uint(v, at, tag, "held()", &out->held, err);
    if (!st)
        st = ask_uint(v, at, tag, "totalClaimed()", &out->total_claimed, err);
    return st;
}

enum status view_day(struct view *v, const char *tag, u128 *cap, u128 *paid, struct errtext *err)
{
    enum status st = ask_uint(v, v->d->vault, tag, "dailyCap()", cap, err);
    return st ? st : ask_uint(v, v->d->vault, tag, "paidToday()", paid, err);
}

enum status view_epoch(struct view *v, const char *tag, uint64_t epoch, struct view_epoch *out,
                       struct errtext *err)
{
    struct abi_reader r;
    u128 leaves = 0;
    begin(v, "epochs(uint64)");
    put_uint(v, epoch);
    *out = (struct view_epoch){0};
    enum status st = ask(v, v->d->vault, tag, &r, err);
    if (!st)
        st = abi_read_bytes32(&r, 0, out->root, "epochs.root", err);
    if (!st)
        st = abi_read_uint(&r, 1, 16, &out->total, "epochs.total", err);
    if (!st)
        st = abi_read_u64(&r, 2, &out->active_at, "epochs.activeAt", err);
    if (!st)
        st = abi_read_uint(&r, 3, 4, &leaves, "epochs.leaves", err);
    if (!st)
        st = abi_read_bool(&r, 4, &out->disabled, "epochs.disabled", err);
    if (!st)
        st = abi_read_u64(&r, 5, &out->batch_paid, "epochs.batchPaid", err);
    if (!st)
        st = abi_read_u64(&r, 6, &out->batch_evidence, "epochs.batchEvidence", err);
    if (!st)
        st = abi_read_u64(&r, 7, &out->previous, "epochs.previous", err);
    out->leaves = (uint32_t)leaves;
    return st;
}

enum status view_claimed(struct view *v, const char *tag, const uint8_t account[20], u128 *amount,
                         struct errtext *err)
{
    struct abi_reader r;
    begin(v, "claimed(address)");
    put_address(v, account);
    enum status st = ask(v, v->d->vault, tag, &r, err);
    return st ? st : abi_read_uint(&r, 0, 16, amount, "claimed", err);
}

enum status view_allowance(struct view *v, const char *tag, const uint8_t owner[20], u128 *amount,
                           struct errtext *err)
{
    static const uint8_t zero[16];
    struct abi_reader r;
    begin(v, "allowance(address,address)");
    put_address(v, owner);
    put_address(v, v->d->vault);
    enum status st = ask(v, v->d->token, tag, &r, err);
    if (st || r.len < ABI_WORD_BYTES || memcmp(r.data, zero, sizeof(zero)) == 0)
        return st ? st : abi_read_uint(&r, 0, 16, amount, "allowance", err);
    *amount = (u128)-1; /* an unlimited allowance is above 128 bits */
    return STATUS_OK;
}

struct proposed {
    bool found;
    uint8_t manifest[32];
};

static enum status take_proposed(void *arg, const struct rpc_log *log, struct errtext *err)
{
    struct proposed *p = arg;
    struct abi_reader r = {log->data, log->data_len};
    /* total, leaves, batchPaid, batchEvidence, manifest, activeAt */
    p->found = true;
    return abi_read_bytes32(&r, 4, p->manifest, "Proposed.manifest", err);
}

static enum status find_proposed(struct view *v, uint64_t epoch, uint64_t from, uint64_t to,
                                 struct proposed *p, struct errtext *err)
{
    uint8_t topic[32], number[32];
    char from_tag[RPC_TAG_BYTES], to_tag[RPC_TAG_BYTES];
    abi_topic(topic, "Proposed(uint64,bytes32,uint128,uint32,uint64,uint64,bytes32,uint64)");
    be_put(number, epoch, sizeof(number));
    rpc_tag(from_tag, from);
    rpc_tag(to_tag, to);
    struct rpc_log_filter filter = {
        .address = v->d->vault, .from_tag = from_tag, .to_tag = to_tag, .topic = {topic, number}};
    return rpc_logs(v->rpc, &filter, take_proposed, p, err);
}

enum status view_proposed(struct view *v, uint64_t epoch, uint8_t manifest[32], struct errtext *err)
{
    struct proposed p = {0};
    struct rpc_block end;
    struct errtext refused = ERRTEXT_INIT;
    enum status st = rpc_block(v->rpc, "finalized", &end, err);
    if (st)
        return st;
    st = find_proposed(v, epoch, v->d->start_block, end.number, &p, &refused);
    if (st == STATUS_INVALID || st == STATUS_TOO_LARGE) { /* a node that limits ranges */
        st = STATUS_OK;
        for (uint64_t at = v->d->start_block; at <= end.number && !p.found && !st; at += LOG_BLOCKS)
            st = find_proposed(v, epoch, at, MIN(at + LOG_BLOCKS - 1, end.number), &p, err);
    } else if (st) {
        return err_set(err, st, "%s", refused.text);
    }
    if (!st && !p.found)
        st =
            err_set(err, STATUS_NOT_FOUND, "epoch %" PRIu64 ": no finalized Proposed event", epoch);
    memcpy(manifest, p.manifest, 32);
    return st;
}
