/* The guardian's three calls. */
#include "chain_client/eth/abi.h"
#include "chain_client/settle/watch_impl.h"

#include <string.h>

static enum status raise(struct guard *g, const char *kind, uint64_t key, const uint8_t to[20],
                         struct buf *data, struct errtext *err)
{
    struct sender_call call = {
        .role = SENDER_GUARDIAN, .kind = kind, .key = key, .to = to, .data = data};
    enum status st = sender_raise(&g->w.sender, &call, err);
    buf_fini(data);
    return st;
}

enum status watch_veto(struct guard *g, uint64_t epoch, struct errtext *err)
{
    struct buf data;
    struct abi_tuple t;
    buf_init(&data, 256);
    abi_put_selector(&data, "veto(uint64)");
    abi_begin(&t, &data, 1);
    abi_uint(&t, epoch);
    abi_end(&t);
    return raise(g, "veto", epoch, g->w.dep.vault, &data, err);
}

enum status watch_pause(struct guard *g, uint64_t seq, struct errtext *err)
{
    struct buf data;
    struct abi_reader r;
    bool paused = false;
    struct view *v = &g->w.view;
    buf_init(&data, 256);
    abi_put_selector(&data, "commitPaused()");
    struct rpc_call call = {.to = g->w.dep.ledger, .data = data.data, .data_len = data.len};
    enum status st = rpc_call(g->w.rpc, &call, "latest", &v->out, err);
    r = (struct abi_reader){(const uint8_t *)v->out.data, v->out.len};
    if (!st)
        st = abi_read_bool(&r, 0, &paused, "commitPaused", err);
    buf_clear(&data);
    abi_put_selector(&data, "pauseCommit()");
    if (!st && !paused)
        return raise(g, "pause", seq, g->w.dep.ledger, &data, err);
    buf_fini(&data);
    return st;
}

/* dropBatch(Header, Lane[], Header, bytes32): all but the lanes are static words of the head. */
static void put_drop(struct buf *data, const struct guard_commit *c,
                     const struct batch_header *before, const uint8_t before_lanes[32])
{
    struct abi_tuple t;
    abi_put_selector(
        data,
        "dropBatch((uint64,uint8,bytes32,bytes32,bytes32,uint32,uint32,uint128,uint128,uint64)"
        ",(uint32,uint64,uint64)[],(uint64,uint8,bytes32,bytes32,bytes32,uint32,uint32,"
        "uint128,uint128,uint64),bytes32)");
    batch_put_header(data, &c->e.header);
    abi_begin(&t, data, 1);
    abi_uint(&t, ABI_WORD_BYTES * (2 * BATCH_HEADER_WORDS + 2));
    abi_end(&t);
    batch_put_header(data, before);
    abi_begin(&t, data, 1);
    abi_bytes32(&t, before_lanes);
    abi_end(&t);
    batch_put_lanes(data, c->e.lane, c->e.lane_count);
}

enum status watch_drop(struct guard *g, uint64_t head, struct errtext *err)
{
    struct guard_commit c, before = {.lane = NULL};
    uint8_t lanes_hash[32] = {0};
    struct buf data;
    enum status st = guard_commit_read(g, head, &c, err);
    if (!st && head > 1)
        st = guard_commit_read(g, head - 1, &before, err);
    if (!st && head > 1)
        st = batch_lanes_hash(lanes_hash, before.e.lane, before.e.lane_count, err);
    buf_init(&data, 1u << 17);
    if (!st)
        put_drop(&data, &c, &before.e.header, lanes_hash);
    guard_commit_fini(&c);
    guard_commit_fini(&before);
    if (!st)
        return raise(g, "drop", head, g->w.dep.ledger, &data, err);
    buf_fini(&data);
    return st;
}
