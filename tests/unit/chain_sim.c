/* The chain behind chain_sim.h: blocks of what the pools offer, and what endpoints say of them. */
#include "tests/unit/chain_sim.h"
#include "server/base/clock.h"

#include <stdio.h>
#include <string.h>

struct sim sim;

/* ---- chance and time ---- */

uint64_t sim_random(uint64_t below)
{
    sim.random ^= sim.random << 13;
    sim.random ^= sim.random >> 7;
    sim.random ^= sim.random << 17;
    return (sim.random * 0x2545f4914f6cdd1dull >> 16) % below;
}

bool sim_chance(uint32_t of_1000)
{
    return sim_random(1000) < of_1000;
}

uint64_t clock_mono_ns(void)
{
    return sim.now_ms * 1000000;
}

uint64_t clock_wall_ms(void)
{
    return sim.now_ms;
}

void clock_sleep_ms(uint32_t ms)
{
    sim.now_ms += ms;
}

/* One moment at which the program may be killed. True: it is dead. */
bool sim_tick(void)
{
    sim.ops++;
    if (sim.crash_at && sim.ops >= sim.crash_at) {
        sim.crashes += !sim.is_dead;
        sim.is_dead = true;
    }
    return sim.is_dead;
}

static int on_statement(unsigned kind, void *arg, void *statement, void *sql)
{
    (void)kind, (void)arg, (void)statement, (void)sql;
    sim_tick();
    return 0;
}

static int on_commit(void *arg)
{
    (void)arg;
    return sim_tick(); /* 1: rolled back */
}

void sim_watch(sqlite3 *db)
{
    sqlite3_trace_v2(db, SQLITE_TRACE_STMT, on_statement, NULL);
    sqlite3_commit_hook(db, on_commit, NULL);
}

/* ---- the chain ---- */

static uint32_t sim_account(const uint8_t address[20])
{
    for (uint32_t i = 0; i < SIM_ACCOUNTS; i++)
        if (memcmp(sim.account[i], address, 20) == 0)
            return i;
    PANIC("an account that the chain does not know");
}

static bool sim_would_succeed(const struct sim_state *s, char kind, uint64_t key)
{
    return kind != 'c' || key == s->head + 1;
}

static void sim_run_tx(struct sim_block *b, struct sim_tx *t)
{
    struct sim_state *s = &b->after;
    u128 price = MIN(t->cap, sim.base_fee + t->tip);
    s->nonce[t->account]++;
    s->balance[t->account] -= SIM_GAS * price;
    t->block = sim.height;
    t->succeeded = sim_would_succeed(s, t->kind, t->key);
    b->tx[b->tx_count++] = (uint32_t)(t - sim.tx);
    sim.reverted += !t->succeeded;
    if (!t->succeeded)
        return;
    s->balance[t->account] -= t->value;
    if (t->kind == 'c')
        s->head = t->key;
    else if (t->kind == 'p')
        s->paid[t->key]++;
}

/* The dearest of an account's next nonce that any pool offers and the account can pay. */
static struct sim_tx *sim_next_tx(const struct sim_state *s)
{
    struct sim_tx *best = NULL;
    for (uint32_t i = 0; i < sim.tx_count; i++) {
        struct sim_tx *t = &sim.tx[i];
        bool offered = t->in_pool[0] || t->in_pool[1];
        if (t->block || !offered || t->nonce != s->nonce[t->account] || t->cap < sim.base_fee ||
            s->balance[t->account] < SIM_GAS * t->cap + t->value)
            continue;
        if (!best || t->tip > best->tip)
            best = t;
    }
    return best;
}

void sim_mine(void)
{
    struct sim_block *b = &sim.block[sim.height + 1], *before = &sim.block[sim.height];
    struct sim_tx *t;
    CHECK(sim.height + 2 < SIM_BLOCKS);
    *b = (struct sim_block){.time = sim.now_ms / 1000, .after = before->after};
    memcpy(b->parent, before->hash, 32);
    sim.height++;
    be_put(b->hash, sim.height, 16);
    be_put(b->hash + 16, sim.fork, 16);
    while (!sim_chance(sim.empty_block) && b->tx_count < SIM_IN_BLOCK &&
           (t = sim_next_tx(&b->after)) != NULL)
        sim_run_tx(b, t);
    for (uint32_t i = 0; i < sim.tx_count; i++) {
        for (uint32_t n = 0; n < SIM_NODES; n++) {
            bool drop = sim.tx[i].in_pool[n] && !sim.tx[i].block && sim_chance(sim.dropped);
            sim.drops += drop;
            sim.tx[i].in_pool[n] = sim.tx[i].in_pool[n] && !drop;
        }
    }
}

/* The newest blocks are gone; some of what they held is in the pools again. */
void sim_reorg(uint64_t depth)
{
    CHECK(depth < sim.height);
    for (uint64_t h = sim.height; h > sim.height - depth; h--) {
        for (uint32_t i = 0; i < sim.block[h].tx_count; i++) {
            struct sim_tx *t = &sim.tx[sim.block[h].tx[i]];
            t->block = 0;
            for (uint32_t n = 0; n < SIM_NODES; n++)
                t->in_pool[n] = sim_chance(500);
        }
    }
    sim.height -= depth;
    sim.fork++;
    sim.reorgs++;
    for (uint64_t i = 0; i < depth; i++)
        sim_mine();
}

/* Another program uses the account's next nonce. */
void sim_foreign(uint32_t account, char kind, uint64_t key)
{
    struct sim_tx *t = &sim.tx[sim.tx_count++];
    CHECK(sim.tx_count < SIM_TXS);
    *t = (struct sim_tx){.account = account,
                         .nonce = sim.block[sim.height].after.nonce[account],
                         .key = key,
                         .kind = kind,
                         .tip = (u128)1 << 60,
                         .cap = (u128)1 << 60};
    sim.block[sim.height].after.balance[account] += SIM_GAS * t->cap; /* it pays for itself */
    memset(t->hash, 0xf0, 32);
    t->hash[0] = (uint8_t)sim.tx_count;
    t->in_pool[0] = true;
}

void sim_init(uint64_t seed)
{
    struct secp *secp = sim.secp;
    uint8_t account[SIM_ACCOUNTS][20];
    memcpy(account, sim.account, sizeof(account));
    memset(&sim, 0, sizeof(sim));
    memcpy(sim.account, account, sizeof(account));
    sim.secp = secp;
    sim.random = seed * 0x9e3779b97f4a7c15ull + 1;
    sim.now_ms = 1800000000000ull;
    sim.base_fee = sim.tip = 1000000000u;
    for (uint32_t i = 0; i < SIM_NODES; i++)
        sim.node[i].chain_id = SIM_CHAIN_ID;
    for (uint32_t i = 0; i < SIM_ACCOUNTS; i++)
        sim.block[0].after.balance[i] = SIM_COINS;
    sim.block[0].time = sim.now_ms / 1000;
    memset(sim.block[0].hash, 0x77, 32);
    while (sim.height < SIM_DEPTH + 4)
        sim_mine();
}

/* ---- what an endpoint answers ---- */

static uint64_t sim_seen_height(const struct rpc *r)
{
    uint64_t behind = sim.node[r->node].behind;
    return sim.height > behind ? sim.height - behind : 0;
}

static bool sim_number(const struct rpc *r, const char *tag, uint64_t *number)
{
    uint64_t top = sim_seen_height(r);
    if (strcmp(tag, "latest") == 0 || strcmp(tag, "pending") == 0)
        *number = top;
    else if (strcmp(tag, "earliest") == 0)
        *number = 0;
    else if (strcmp(tag, "finalized") == 0)
        *number = r->is_pinned ? r->pin : top > SIM_DEPTH ? top - SIM_DEPTH : 0;
    else
        sscanf(tag, "0x%lx", number);
    return *number <= top;
}

/* Every call begins here: is there anybody, on either side? */
static enum status sim_begin(struct rpc *r, struct errtext *err)
{
    r->fault = (struct rpc_fault){0};
    if (sim_tick())
        return err_set(err, STATUS_IO, "killed");
    if (sim.now_ms < sim.node[r->node].down_until_ms)
        return err_set(err, STATUS_TIMEOUT, "the node is down");
    if (sim.node[r->node].fails)
        return err_set(err, sim.node[r->node].fails, "a hostile answer");
    return STATUS_OK;
}

static enum status sim_refuse(struct rpc *r, const char *why, struct errtext *err)
{
    snprintf(r->fault.message, sizeof(r->fault.message), "%s", why);
    return err_set(err, STATUS_INVALID, "chain node refused: %s", why);
}

enum status sim_state_at(struct rpc *r, const char *tag, const struct sim_state **out,
                         struct errtext *err)
{
    uint64_t number;
    enum status st = sim_begin(r, err);
    if (st)
        return st;
    if (!sim_number(r, tag, &number))
        return sim_refuse(r, "header not found", err);
    *out = &sim.block[number].after;
    return STATUS_OK;
}

enum status rpc_open(struct rpc **out, const struct rpc_config *config, struct errtext *err)
{
    (void)config, (void)err;
    *out = NULL;
    return STATUS_UNSUPPORTED;
}

void rpc_close(struct rpc *r)
{
    (void)r; /* the test's own */
}

const struct rpc_fault *rpc_last_fault(const struct rpc *r)
{
    return &r->fault;
}

void rpc_tag(char out[RPC_TAG_BYTES], uint64_t block_number)
{
    snprintf(out, RPC_TAG_BYTES, "0x%lx", block_number);
}

void rpc_confirm_with(struct rpc *r, struct rpc *witness)
{
    r->witness = witness;
}

void rpc_pin_finalized(struct rpc *r, const uint64_t *block_number)
{
    r->is_pinned = block_number != NULL;
    r->pin = block_number ? *block_number : 0;
}

enum status rpc_chain_id(struct rpc *r, uint64_t *chain_id, struct errtext *err)
{
    *chain_id = sim.node[r->node].chain_id;
    return sim_begin(r, err);
}

enum status rpc_block(struct rpc *r, const char *tag, struct rpc_block *block, struct errtext *err)
{
    uint64_t number;
    enum status st = sim_begin(r, err);
    if (st)
        return st;
    if (!sim_number(r, tag, &number))
        return err_set(err, STATUS_NOT_FOUND, "the chain node has no block \"%s\"", tag);
    const struct sim_block *b = &sim.block[number];
    *block = (struct rpc_block){.number = number, .timestamp = b->time, .base_fee = sim.base_fee};
    memcpy(block->hash, b->hash, 32);
    memcpy(block->parent_hash, b->parent, 32);
    if (sim.node[r->node].is_forked && number)
        block->hash[31] ^= 0xff;
    return STATUS_OK;
}

enum status rpc_transaction_count(struct rpc *r, const uint8_t address[20], const char *tag,
                                  uint64_t *nonce, struct errtext *err)
{
    const struct sim_state *s;
    uint32_t account = sim_account(address);
    enum status st = sim_state_at(r, tag, &s, err);
    if (st)
        return st;
    *nonce = s->nonce[account];
    for (uint32_t i = 0; strcmp(tag, "pending") == 0 && i < sim.tx_count; i++) {
        const struct sim_tx *t = &sim.tx[i];
        if (t->account != account || t->nonce != *nonce || !t->in_pool[r->node])
            continue;
        ++*nonce;
        i = UINT32_MAX; /* from the first again: pools have no order */
    }
    return STATUS_OK;
}

enum status rpc_balance(struct rpc *r, const uint8_t address[20], const char *tag, u128 *wei,
                        struct errtext *err)
{
    const struct sim_state *s;
    enum status st = sim_state_at(r, tag, &s, err);
    if (!st)
        *wei = s->balance[sim_account(address)];
    return st;
}

enum status rpc_next_base_fee(struct rpc *r, u128 *wei_per_gas, struct errtext *err)
{
    *wei_per_gas = sim.base_fee;
    return sim_begin(r, err);
}

enum status rpc_tip(struct rpc *r, u128 *wei_per_gas, struct errtext *err)
{
    *wei_per_gas = sim.tip;
    return sim_begin(r, err);
}

enum status rpc_call(struct rpc *r, const struct rpc_call *call, const char *tag, struct buf *out,
                     struct errtext *err)
{
    uint8_t word[32];
    be_put(word, sim.allowance, sizeof(word));
    buf_clear(out);
    buf_put(out, word, sizeof(word));
    return sim_begin(r, err);
}

enum status rpc_logs(struct rpc *r, const struct rpc_log_filter *filter,
                     enum status (*each)(void *arg, const struct rpc_log *log, struct errtext *err),
                     void *arg, struct errtext *err)
{
    (void)filter, (void)each, (void)arg;
    return sim_refuse(r, "no logs", err);
}

enum status rpc_estimate_gas(struct rpc *r, const struct rpc_call *call, uint64_t *gas,
                             struct errtext *err)
{
    const struct sim_state *s;
    const uint8_t *data = call->data;
    enum status st = sim_state_at(r, "latest", &s, err);
    *gas = SIM_GAS;
    if (!st && sim.refuses)
        return sim_refuse(r, sim.refuses, err);
    if (!st && !sim_would_succeed(s, (char)data[0], data[1]))
        st = sim_refuse(r, "execution reverted", err);
    return st;
}

static enum status sim_take(struct rpc *r, const struct tx *tx, uint32_t account,
                            const uint8_t hash[32], struct errtext *err)
{
    const struct sim_state *s = &sim.block[sim_seen_height(r)].after;
    struct sim_tx *mine = NULL, *held = NULL;
    for (uint32_t i = 0; i < sim.tx_count; i++) {
        struct sim_tx *t = &sim.tx[i];
        if (memcmp(t->hash, hash, 32) == 0)
            mine = t;
        else if (t->account == account && t->nonce == tx->nonce && t->in_pool[r->node])
            held = t;
    }
    if (mine && (mine->in_pool[r->node] || (mine->block && mine->block <= sim_seen_height(r))))
        return STATUS_OK; /* already known */
    if (tx->nonce < s->nonce[account])
        return sim_refuse(r, "nonce too low", err);
    if (tx->fee_max < sim.base_fee)
        return sim_refuse(r, "max fee per gas less than block base fee", err);
    if (s->balance[account] < SIM_GAS * tx->fee_max + tx->value)
        return sim_refuse(r, "insufficient funds for gas * price + value", err);
    if (held &&
        (tx->tip_max < held->tip + held->tip / 10 || tx->fee_max < held->cap + held->cap / 10))
        return sim_refuse(r, "replacement transaction underpriced", err);
    if (held)
        held->in_pool[r->node] = false;
    if (!mine) {
        CHECK(sim.tx_count < SIM_TXS);
        mine = &sim.tx[sim.tx_count++];
        *mine = (struct sim_tx){.account = account,
                                .nonce = tx->nonce,
                                .key = tx->data[1],
                                .kind = (char)tx->data[0],
                                .tip = tx->tip_max,
                                .cap = tx->fee_max,
                                .value = tx->value};
        memcpy(mine->hash, hash, 32);
    }
    mine->in_pool[r->node] = true;
    return STATUS_OK;
}

enum status rpc_send_raw(struct rpc *r, const void *raw, size_t len, const uint8_t hash[32],
                         struct errtext *err)
{
    struct tx tx;
    uint8_t from[20];
    enum status st = sim_begin(r, err);
    if (st)
        return st;
    if (sim_chance(sim.lost_send)) {
        sim.lost_sends++;
        return err_set(err, STATUS_TIMEOUT, "no answer");
    }
    st = tx_decode(sim.secp, &tx, from, raw, len, err);
    CHECK(!st && tx.data_len == 2);
    st = sim_take(r, &tx, sim_account(from), hash, err);
    if (sim_tick())
        return STATUS_IO; /* it is out, and nobody is left to note it */
    if (!st && sim_chance(sim.lost_ack)) {
        sim.lost_acks++;
        return err_set(err, STATUS_TIMEOUT, "no answer");
    }
    return st;
}

enum status rpc_receipt(struct rpc *r, const uint8_t hash[32], struct rpc_receipt *receipt,
                        struct errtext *err)
{
    enum status st = sim_begin(r, err);
    for (uint32_t i = 0; i < sim.tx_count && !st; i++) {
        const struct sim_tx *t = &sim.tx[i];
        if (memcmp(t->hash, hash, 32) != 0 || !t->block || t->block > sim_seen_height(r) ||
            sim.node[r->node].no_receipts)
            continue;
        *receipt = (struct rpc_receipt){.block_number = t->block,
                                        .gas_used = SIM_GAS,
                                        .effective_gas_price = MIN(t->cap, sim.base_fee + t->tip),
                                        .succeeded = t->succeeded};
        memcpy(receipt->tx_hash, hash, 32);
        memcpy(receipt->block_hash, sim.block[t->block].hash, 32);
        return STATUS_OK;
    }
    return st ? st : err_set(err, STATUS_NOT_FOUND, "no receipt");
}
