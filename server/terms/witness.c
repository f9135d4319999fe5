/* Which nodes are asked is chosen at each head: the one or two that are furthest, at the newest
 * block that both call final and give the same hash. Everything after is asked of the same ones, at
 * that block. */
#include "server/terms/witness.h"
#include "chain_client/eth/abi.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <string.h>

#define TIMEOUT_MS       5000
#define BUSY_MS_MAX      500
#define ANSWER_BYTES_MAX (1u << 16)
#define LOG_TOPICS       4
#define MAGIC_1271       0x1626ba7eu

struct witness_one {
    struct rpc *rpc;
    struct registry_reader reader;
    bool is_ours; /* its chain id was compared */
    struct rpc_block final;
};

struct witness {
    struct witness_options opt;
    struct witness_one one[WITNESS_MAX];
    uint32_t count;
    struct witness_one *asked[2]; /* of the last head */
    uint32_t asked_count;
    struct buf call;
};

static enum status open_one(struct witness *n, const char *url, const char *authorization,
                            struct errtext *err)
{
    struct witness_one *o = &n->one[n->count];
    struct rpc_config config = {.url = url,
                                .authorization = authorization,
                                .timeout_ms = TIMEOUT_MS,
                                .busy_ms_max = BUSY_MS_MAX};
    enum status st = rpc_open(&o->rpc, &config, err);
    if (st)
        return st;
    registry_open(&o->reader, o->rpc, n->opt.registry);
    n->count++;
    return STATUS_OK;
}

enum status witness_open(struct witness **out, const struct witness_options *opt,
                         struct errtext *err)
{
    char *authorization = NULL;
    size_t len = 0;
    *out = NULL;
    CHECK(opt->url_count >= 1 && opt->url_count <= WITNESS_MAX);
    enum status st = opt->authorization_file ? file_read_secret(opt->authorization_file, 4096,
                                                                &authorization, &len, err)
                                             : STATUS_OK;
    if (st)
        return st;
    struct witness *n = mem_alloc(sizeof(*n));
    n->opt = *opt;
    buf_init(&n->call, ANSWER_BYTES_MAX);
    for (uint32_t i = 0; i < opt->url_count && !st; i++)
        st = open_one(n, opt->url[i], authorization, err);
    if (authorization)
        mem_wipe(authorization, len);
    mem_free(authorization);
    if (st)
        witness_close(n);
    else
        *out = n;
    return st;
}

void witness_close(struct witness *n)
{
    if (!n)
        return;
    for (uint32_t i = 0; i < n->count; i++) {
        registry_close(&n->one[i].reader);
        rpc_close(n->one[i].rpc);
    }
    buf_fini(&n->call);
    mem_free(n);
}

/* ---- the head ---- */

static enum status read_final(const struct witness *n, struct witness_one *o, struct errtext *err)
{
    uint64_t chain_id = 0;
    enum status st = o->is_ours ? STATUS_OK : rpc_chain_id(o->rpc, &chain_id, err);
    if (!st && !o->is_ours && chain_id != n->opt.chain_id)
        st = err_set(err, STATUS_CONFLICT,
                     "the node serves chain %" PRIu64 ", this lane is bound to chain %" PRIu64,
                     chain_id, n->opt.chain_id);
    o->is_ours |= !st;
    return st ? st : rpc_block(o->rpc, "finalized", &o->final, err);
}

/* Into the chosen ones, which are kept furthest first. */
static void choose(struct witness *n, struct witness_one *o, uint32_t wanted)
{
    struct witness_one *last = n->asked_count ? n->asked[n->asked_count - 1] : NULL;
    if (n->asked_count < wanted)
        n->asked[n->asked_count++] = o;
    else if (o->final.number > last->final.number)
        n->asked[n->asked_count - 1] = o;
    if (n->asked_count == 2 && n->asked[1]->final.number > n->asked[0]->final.number) {
        struct witness_one *first = n->asked[0];
        n->asked[0] = n->asked[1];
        n->asked[1] = first;
    }
}

static enum status agree_on(struct witness *n, struct rpc_block *block, struct errtext *err)
{
    char tag[RPC_TAG_BYTES];
    struct rpc_block other;
    *block = n->asked[n->asked_count - 1]->final;
    if (n->asked_count == 1)
        return STATUS_OK;
    rpc_tag(tag, block->number);
    enum status st = rpc_block(n->asked[0]->rpc, tag, &other, err);
    if (!st && memcmp(other.hash, block->hash, 32) != 0)
        st = err_set(err, STATUS_CONFLICT,
                     "two nodes give different blocks %" PRIu64 " and call both final",
                     block->number);
    return st;
}

enum status witness_head(struct witness *n, struct witness_head *head, struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    struct rpc_block block;
    uint32_t wanted = n->count > 1 ? 2 : 1;
    enum status st = STATUS_OK;
    n->asked_count = 0;
    for (uint32_t i = 0; i < n->count; i++) {
        err_clear(&why);
        enum status one = read_final(n, &n->one[i], &why);
        if (!one)
            choose(n, &n->one[i], wanted);
        else if (!st)
            st = err_set(err, one, "node %u of %u: %s", i + 1, n->count, why.text);
    }
    if (n->asked_count < wanted)
        return st;
    err_clear(err);
    st = agree_on(n, &block, err);
    *head = (struct witness_head){.number = block.number, .time_s = block.timestamp};
    return st;
}

/* ---- questions ---- */

/* The answer's bytes are the reader's until its next call. */
static enum status ask_one(struct witness_one *o, const struct witness_question *q, const char *tag,
                           struct errtext *err)
{
    struct registry_terms terms;
    struct registry_datanet datanet;
    struct registry_tariff tariff;
    uint64_t seconds;
    uint8_t owner[20];
    switch (q->view) {
    case WITNESS_ADAPTER_AT:
        return registry_adapter_at(&o->reader, tag, q->id, q->t, &terms, err);
    case WITNESS_ADAPTER_OWNER:
        return registry_adapter_owner(&o->reader, tag, q->id, owner, err);
    case WITNESS_DATANET_VERSION:
        return registry_datanet_version(&o->reader, tag, q->id, q->t, &datanet, err);
    case WITNESS_TARIFF_AT:
        return registry_tariff_at(&o->reader, tag, q->lane, q->id, q->t, &tariff, err);
    case WITNESS_NOTICE:
        return registry_notice(&o->reader, tag, &seconds, err);
    }
    return err_set(err, STATUS_INVALID, "no such view");
}

enum status witness_ask(struct witness *n, const struct witness_question *q, uint64_t block,
                        struct buf *answer, struct errtext *err)
{
    char tag[RPC_TAG_BYTES];
    rpc_tag(tag, block);
    buf_clear(answer);
    CHECK(n->asked_count >= 1);
    enum status st = ask_one(n->asked[0], q, tag, err);
    if (st)
        return st;
    buf_put(answer, n->asked[0]->reader.out.data, n->asked[0]->reader.out.len);
    if (n->asked_count < 2)
        return STATUS_OK;
    st = ask_one(n->asked[1], q, tag, err);
    const struct buf *other = &n->asked[1]->reader.out;
    if (!st && (other->len != answer->len || memcmp(other->data, answer->data, answer->len) != 0))
        st = err_set(err, STATUS_CONFLICT,
                     "two nodes answer differently about the Registry at block %" PRIu64, block);
    return st;
}

struct visit {
    void (*each)(void *arg, const uint8_t id[32]);
    void *arg;
};

static enum status visit_log(void *arg, const struct rpc_log *log, struct errtext *err)
{
    const struct visit *v = arg;
    for (uint32_t i = 1; i < log->topic_count && i < LOG_TOPICS; i++)
        v->each(v->arg, log->topic[i]);
    return STATUS_OK;
}

/* What either node tells counts: to ask once too often does no harm. */
enum status witness_changed(struct witness *n, uint64_t first_block, uint64_t last_block,
                            void (*each)(void *arg, const uint8_t id[32]), void *arg,
                            struct errtext *err)
{
    char from_tag[RPC_TAG_BYTES], to_tag[RPC_TAG_BYTES];
    struct visit v = {each, arg};
    enum status st = STATUS_OK;
    rpc_tag(from_tag, first_block);
    rpc_tag(to_tag, last_block);
    struct rpc_log_filter filter = {
        .address = n->opt.registry, .from_tag = from_tag, .to_tag = to_tag};
    for (uint32_t i = 0; i < n->asked_count && !st; i++)
        st = rpc_logs(n->asked[i]->rpc, &filter, visit_log, &v, err);
    return st;
}

static enum status ask_lane_next(struct rpc *rpc, const struct rpc_call *call, uint64_t *next,
                                 struct errtext *err)
{
    struct buf out;
    buf_init(&out, ANSWER_BYTES_MAX);
    enum status st = rpc_call(rpc, call, "latest", &out, err);
    struct abi_reader r = {(const uint8_t *)out.data, out.len};
    if (!st)
        st = abi_read_u64(&r, 0, next, "laneNext", err);
    buf_fini(&out);
    return st;
}

enum status witness_lane_next(struct witness *n, const uint8_t ledger[20], uint32_t lane,
                              uint64_t *next, struct errtext *err)
{
    struct abi_tuple t;
    struct witness_head head;
    enum status st = witness_head(n, &head, err);
    if (st)
        return st;
    buf_clear(&n->call);
    abi_put_selector(&n->call, "laneNext(uint32)");
    abi_begin(&t, &n->call, 1);
    abi_uint(&t, lane);
    abi_end(&t);
    struct rpc_call call = {.to = ledger, .data = n->call.data, .data_len = n->call.len};
    *next = UINT64_MAX;
    for (uint32_t i = 0; i < n->asked_count && !st; i++) {
        uint64_t one = 0;
        st = ask_lane_next(n->asked[i]->rpc, &call, &one, err);
        *next = MIN(*next, one);
    }
    return st;
}

static enum status ask_1271(struct rpc *rpc, const struct rpc_call *call, bool *yes,
                            struct errtext *err)
{
    struct buf out;
    buf_init(&out, ANSWER_BYTES_MAX);
    enum status st = rpc_call(rpc, call, "finalized", &out, err);
    if (st == STATUS_INVALID) { /* it reverts: no */
        err_clear(err);
        st = STATUS_OK;
    } else if (!st) {
        *yes = out.len == ABI_WORD_BYTES && be_get((const uint8_t *)out.data, 4) == MAGIC_1271;
    }
    buf_fini(&out);
    return st;
}

enum status witness_signed_by(struct witness *n, const uint8_t account[20],
                              const uint8_t digest[32], const void *signature, size_t len,
                              bool *yes, struct errtext *err)
{
    struct abi_tuple t;
    struct witness_head head;
    *yes = false;
    enum status st = witness_head(n, &head, err);
    if (st)
        return st;
    buf_clear(&n->call);
    abi_put_selector(&n->call, "isValidSignature(bytes32,bytes)");
    abi_begin(&t, &n->call, 2);
    abi_bytes32(&t, digest);
    abi_dynamic(&t);
    abi_bytes_tail(&n->call, signature, len);
    abi_end(&t);
    struct rpc_call call = {.to = account, .data = n->call.data, .data_len = n->call.len};
    bool all = true;
    for (uint32_t i = 0; i < n->asked_count && !st && all; i++) {
        st = ask_1271(n->asked[i]->rpc, &call, yes, err);
        all = *yes;
    }
    return st;
}
