/* The sender's round: what is bound is followed to a receipt in a finalized block; what is open is
 * given a nonce.
 *
 * A nonce is stored before anything is signed, and signed bytes are stored before they are sent, so
 * whatever is lost or repeated afterwards is the same transaction. A higher fee is another attempt
 * of the same nonce: at most one of them can be mined. A call that would revert now, or that its
 * key cannot pay, gets no nonce. Every call sets absolute state, so a repeat does nothing. */
#include "chain_client/settle/sender.h"
#include "chain_client/eth/addr.h"
#include "chain_client/settle/gauges.h"
#include "chain_client/settle/sender_impl.h"
#include "chain_client/settle/trouble.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define IN_FLIGHT_MAX    4
#define GAS_MIN          100000
#define FOREIGN_NS       10000000000ull
#define FOREIGN_ASKS     10
#define REFUSED_NS       60000000000ull /* shorter ones are of states that pass */
#define FOREIGN_SEEN_MAX 3              /* so many that nobody has looked at stop a key */
#define DAYS_MIN         7
#define DAY_S            86400u

/* ---- following ---- */

static enum status settle(struct sender *s, const struct intent *t, const struct rpc_receipt *r,
                          struct errtext *err)
{
    bool is_there = false;
    enum status st = nodes_has_block(s->nodes, r->block_number, r->block_hash, &is_there, err);
    if (st || !is_there) /* a receipt of a block that is gone: its transaction may be mined again */
        return st;
    if (!r->succeeded)
        log_warn("sender", "%s %" PRIu64 ": mined and reverted in block %" PRIu64, t->kind, t->key,
                 r->block_number);
    struct sender_end end = {.state = r->succeeded ? INTENT_DONE : INTENT_CLOSED,
                             .mined = r->tx_hash,
                             .block = r->block_number,
                             .block_hash = r->block_hash,
                             .cost = r->effective_gas_price * r->gas_used};
    return sender_end_intent(s, t, &end, err);
}

struct sights {
    bool seen;   /* an endpoint shows a receipt of some attempt */
    bool absent; /* enough of them show none of any */
};

/* Is any attempt mined? When its block is final, the row ends. */
static enum status look_for_receipt(struct sender *s, const struct intent *t, uint64_t attempts,
                                    struct sights *out, struct errtext *err)
{
    enum status st = STATUS_OK;
    *out = (struct sights){.absent = true};
    for (uint64_t n = attempts; n >= 1 && !st && !out->seen; n--) {
        struct attempt a;
        struct rpc_receipt r;
        enum nodes_sight sight = NODES_UNSURE;
        st = sender_load_attempt(s, &a, t->id, n, err);
        if (!st)
            st = nodes_receipt(s->nodes, a.hash, &r, &sight, err);
        out->seen = sight == NODES_SEEN || sight == NODES_GLIMPSED;
        out->absent = out->absent && sight == NODES_NONE;
        if (!st && sight == NODES_SEEN && r.block_number <= s->nodes->final.number)
            st = settle(s, t, &r, err);
        buf_fini(&a.raw);
    }
    return st;
}

/* Used in final history, by nothing of ours. Who raised the call looks at the chain and raises it
 * again if that is still needed. */
static enum status end_foreign(struct sender *s, const struct intent *t, struct errtext *err)
{
    char address[ADDR_TEXT_BYTES];
    addr_format(address, t->sender);
    struct sender_end end = {.state = INTENT_FOREIGN,
                             .block = s->nodes->final.number,
                             .block_hash = s->nodes->final.hash};
    enum status st = sender_end_intent(s, t, &end, err);
    if (st)
        return st;
    return trouble_say(s->db, TROUBLE_FOREIGN_NONCE, t->role, err,
                       "nonce %" PRIu64 " of the %s %s was used by a transaction that is not this "
                       "worker's (%s %" PRIu64 " is raised again if the contract still wants it): "
                       "does another program, or a worker with an older state, hold the key? Stop "
                       "it; then stop this one and run residual-settle resume --nonce %" PRIu64,
                       t->nonce, sender_role_name(t->role), address, t->kind, t->key, t->nonce);
}

/* One endpoint alone proves no absence. */
static enum status ask_a_person(struct sender *s, const struct intent *t, struct errtext *err)
{
    enum status st =
        db_run(s->db, err, "UPDATE intents SET seen = 0 WHERE id = ? AND seen IS NULL", "u", t->id);
    if (st)
        return st;
    return trouble_say(
        s->db, TROUBLE_FOREIGN_NONCE, t->role, err,
        "nonce %" PRIu64 " of the %s is used, and the only endpoint shows none of our "
        "transactions with it: a node whose index lags says so too. %s %" PRIu64
        " waits. Name a second --rpc-url, which decides it; or look for the nonce in "
        "an explorer, stop this worker and run residual-settle resume --nonce "
        "%" PRIu64,
        t->nonce, sender_role_name(t->role), t->kind, t->key, t->nonce);
}

/* Our nonce is used in final history and nobody shows a receipt of ours. A node whose index lags
 * says so too: only what stays so for a while is believed. */
static enum status suspect_foreign(struct sender *s, const struct intent *t, struct errtext *err)
{
    struct sender_signer *g = &s->signer[t->role];
    uint64_t now = clock_mono_ns();
    bool alone = s->nodes->agree_min == 1;
    if (t->is_seen)
        return end_foreign(s, t, err);
    if (g->foreign_intent != t->id) {
        g->foreign_intent = t->id;
        g->foreign_ns = now;
        g->foreign_asked = 0;
        log_warn("sender",
                 "%s %" PRIu64 ": nonce %" PRIu64 " is used in finalized history, but no endpoint "
                 "shows one of our transactions with it; asking again",
                 t->kind, t->key, t->nonce);
    }
    if (++g->foreign_asked < FOREIGN_ASKS || now < g->foreign_ns + FOREIGN_NS)
        return STATUS_OK;
    return alone ? ask_a_person(s, t, err) : end_foreign(s, t, err);
}

static enum status follow(struct sender *s, const struct intent *t, uint64_t used,
                          struct errtext *err)
{
    uint64_t attempts;
    struct sights sights;
    enum status st = db_value(s->db, &attempts, 0, err,
                              "SELECT max(n) FROM attempts WHERE intent = ?", "u", t->id);
    if (st)
        return st;
    st = look_for_receipt(s, t, attempts, &sights, err);
    if (sights.seen || !sights.absent)
        s->signer[t->role].foreign_intent = 0; /* what was suspected must be so without a break */
    if (st || sights.seen)
        return st;
    if (t->nonce < used) /* without enough denials, ask again */
        return sights.absent ? suspect_foreign(s, t, err) : STATUS_OK;
    return attempts ? sender_push(s, t, attempts, err) : sender_first_attempt(s, t, err);
}

static enum status follow_bound(struct sender *s, struct errtext *err)
{
    struct intent t, next;
    uint64_t used = 0;
    uint8_t whose[20] = {0};
    enum status st = sender_load_bound(s, &t, NULL, err);
    while (!st) {
        if (memcmp(whose, t.sender, 20) != 0)
            st = nodes_final_nonce(s->nodes, t.sender, &used, err);
        memcpy(whose, t.sender, 20);
        if (!st)
            st = follow(s, &t, used, err);
        buf_fini(&t.data);
        if (st)
            return st;
        st = sender_load_bound(s, &next, &t, err);
        t = next;
    }
    buf_fini(&t.data);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

/* ---- binding ---- */

static enum status drop(struct sender *s, const struct intent *t, struct errtext *err)
{
    return db_run(s->db, err, "DELETE FROM intents WHERE id = ? AND state = ?", "ut", t->id,
                  intent_state_name(INTENT_OPEN));
}

static enum status next_nonce(struct sender *s, const uint8_t address[20], uint64_t *nonce,
                              struct errtext *err)
{
    uint64_t used = 0, stored = 0;
    enum status st = nodes_latest_nonce(s->nodes, address, &used, err);
    if (!st)
        st = db_value(s->db, &stored, 0, err, "SELECT max(nonce) + 1 FROM intents WHERE sender = ?",
                      "b", address, (size_t)20);
    *nonce = MAX(used, stored);
    return st;
}

static enum status say_unfunded(struct sender *s, const struct sender_signer *g,
                                enum sender_role role, const struct intent *t, u128 need,
                                struct errtext *err)
{
    char address[ADDR_TEXT_BYTES], has[40], wants[40];
    addr_format(address, g->key.address);
    u128_format(has, g->balance);
    u128_format(wants, need);
    return trouble_say(s->db, TROUBLE_UNFUNDED, role, err,
                       "the %s %s holds %s wei, and %s %" PRIu64
                       " may cost %s: it waits; send coins "
                       "to that address, and it goes on by itself",
                       sender_role_name(role), address, has, t->kind, t->key, wants);
}

/* It would revert: nothing is sent. Who raised it raises it again while the chain lacks it. */
static enum status refused(struct sender *s, const struct intent *t, struct errtext *err)
{
    struct sender_signer *g = &s->signer[t->role];
    const char *why = sender_refusal(s);
    char address[ADDR_TEXT_BYTES];
    uint64_t now = clock_mono_ns();
    enum status st = STATUS_OK;
    sender_note(s, t, "not now", why);
    g->refused_ns = g->refused_ns ? g->refused_ns : now;
    addr_format(address, g->key.address);
    if (now > g->refused_ns + REFUSED_NS)
        st = trouble_say(s->db, TROUBLE_CALL_REFUSED, t->role, err,
                         "the contract refuses %s %" PRIu64 " of the %s %s: %s. It is tried again "
                         "by itself; %s",
                         t->kind, t->key, sender_role_name(t->role), address, why,
                         strncmp(why, "AccessControl", 13) == 0
                             ? "an admin of the contract grants the role to that address"
                         : strncmp(why, "Paused", 6) == 0
                             ? "the guardian paused it, and an admin ends that"
                             : "the error is explained in contracts/README.md");
    return st ? st : drop(s, t, err);
}

static enum status accepted(struct sender *s, enum sender_role role, struct errtext *err)
{
    s->signer[role].refused_ns = 0;
    return trouble_clear(s->db, TROUBLE_CALL_REFUSED, role, err);
}

/* Gas, fees and balance: what a call needs before it may have a nonce. *ready false: not now. */
static enum status prepare(struct sender *s, struct intent *t, bool *ready, struct errtext *err)
{
    struct sender_signer *g = &s->signer[t->role];
    struct rpc *rpc = nodes_rpc(s->nodes);
    struct rpc_call call = {.from = g->key.address,
                            .to = t->to,
                            .value = t->value,
                            .data = t->data.data,
                            .data_len = t->data.len};
    struct errtext why = ERRTEXT_INIT;
    u128 tip, cap;
    bool too_high = false;
    *ready = false;
    enum status st = sender_fees(s, &tip, &cap, &too_high, err);
    if (!st)
        st = rpc_balance(rpc, g->key.address, "latest", &g->balance, err);
    if (st || too_high)
        return st;
    u128 least = t->value + cap * GAS_MIN;
    if (g->balance < least) /* an estimate without coins would say nothing about the contract */
        return say_unfunded(s, g, t->role, t, least, err);
    st = rpc_estimate_gas(rpc, &call, &t->gas, &why);
    if (st == STATUS_INVALID)
        return refused(s, t, err);
    if (st)
        return err_set(err, st, "%s", why.text);
    t->gas = MAX(t->gas + t->gas / 5, (uint64_t)GAS_MIN);
    if (g->balance < t->value + cap * t->gas)
        return say_unfunded(s, g, t->role, t, t->value + cap * t->gas, err);
    *ready = true;
    st = accepted(s, t->role, err);
    return st ? st : trouble_clear(s->db, TROUBLE_UNFUNDED, t->role, err);
}

static enum status bind(struct sender *s, struct intent *t, struct errtext *err)
{
    bool ready = false;
    memcpy(t->sender, s->signer[t->role].key.address, 20);
    enum status st = prepare(s, t, &ready, err);
    if (st || !ready)
        return st;
    st = next_nonce(s, t->sender, &t->nonce, err);
    if (!st)
        st = db_run(s->db, err,
                    "UPDATE intents SET state = ?, sender = ?, nonce = ?, gas = ? WHERE id = ?",
                    "tbuuu", intent_state_name(INTENT_BOUND), t->sender, (size_t)20, t->nonce,
                    t->gas, t->id);
    return st ? st : sender_first_attempt(s, t, err);
}

/* A key of which others make use is stopped until a person has looked. */
static enum status check_foreign(struct sender *s, enum sender_role role, bool *stopped,
                                 struct errtext *err)
{
    uint64_t count = 0, last = 0, asked = 0;
    enum status st =
        db_value(s->db, &count, 0, err,
                 "SELECT count(*) FROM intents WHERE state = ? AND role = ? AND seen IS NULL", "tt",
                 intent_state_name(INTENT_FOREIGN), sender_role_name(role));
    *stopped = count >= FOREIGN_SEEN_MAX;
    if (!st)
        st = db_value(s->db, &asked, 0, err,
                      "SELECT count(*) FROM intents WHERE state = ? AND role = ? AND seen = 0",
                      "tt", intent_state_name(INTENT_BOUND), sender_role_name(role));
    if (!st && !count && !asked)
        st = trouble_clear(s->db, TROUBLE_FOREIGN_NONCE, role, err);
    if (!st && !*stopped)
        st = trouble_clear(s->db, TROUBLE_KEY_STOPPED, role, err);
    if (!st && *stopped)
        st = db_value(s->db, &last, 0, err,
                      "SELECT max(nonce) FROM intents WHERE state = ? AND role = ? AND seen IS "
                      "NULL",
                      "tt", intent_state_name(INTENT_FOREIGN), sender_role_name(role));
    if (st || !*stopped)
        return st;
    return trouble_say(
        s->db, TROUBLE_KEY_STOPPED, role, err,
        "%" PRIu64 " nonces of the %s were used by transactions that are not this "
        "worker's: it binds no more with that key. Find who holds it; then stop this "
        "worker and run residual-settle resume --nonce %" PRIu64,
        count, sender_role_name(role), last);
}

static enum status bind_open(struct sender *s, enum sender_role role, struct errtext *err)
{
    uint64_t bound = 0;
    bool stopped = false, tried = false;
    enum status st = check_foreign(s, role, &stopped, err);
    if (!st)
        st = sender_count_bound(s, s->signer[role].key.address, &bound, err);
    for (; !st && !stopped && bound < IN_FLIGHT_MAX; bound++) { /* as many tries as room */
        struct intent t;
        st = sender_load_open(s, &t, role, err);
        if (st == STATUS_NOT_FOUND && !tried && !bound) /* nothing is wanted any more */
            st = accepted(s, role, err);
        else if (!st)
            st = bind(s, &t, err);
        tried = true;
        buf_fini(&t.data);
    }
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

/* ---- gas ---- */

/* What a day of this key costs, by what it paid in the last week. */
static enum status daily_cost(struct sender *s, enum sender_role role, u128 *cost,
                              struct errtext *err)
{
    struct db_rows q;
    uint64_t now = clock_wall_ms() / 1000, first = now;
    u128 sum = 0;
    *cost = 0;
    enum status st = db_query(s->db, &q, err,
                              "SELECT cost, ended_at FROM intents WHERE role = ? AND ended_at > ?",
                              "tu", sender_role_name(role), now - DAYS_MIN * DAY_S);
    while (!st && (st = db_next(&q, err)) == STATUS_OK) {
        sum += db_amount(&q, 0);
        first = MIN(first, db_u64(&q, 1));
    }
    db_done(&q);
    *cost = sum * DAY_S / MAX(now - first, DAY_S / 24);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static enum status watch_balance(struct sender *s, enum sender_role role, struct errtext *err)
{
    struct sender_signer *g = &s->signer[role];
    char label[48], address[ADDR_TEXT_BYTES], has[40], wants[40];
    u128 daily = 0;
    snprintf(label, sizeof(label), "role=\"%s\"", sender_role_name(role));
    enum status st = rpc_balance(nodes_rpc(s->nodes), g->key.address, "latest", &g->balance, err);
    if (!st)
        st = daily_cost(s, role, &daily, err);
    if (!st)
        st = gauge_set(s->db, "balance_wei", label, g->balance, err);
    if (st || g->balance >= DAYS_MIN * daily)
        return st ? st : trouble_clear(s->db, TROUBLE_GAS_LOW, role, err);
    addr_format(address, g->key.address);
    u128_format(has, g->balance);
    u128_format(wants, DAYS_MIN * daily - g->balance);
    return trouble_say(s->db, TROUBLE_GAS_LOW, role, err,
                       "the %s %s holds %s wei, gas for less than %d days: send it %s wei or more",
                       sender_role_name(role), address, has, DAYS_MIN, wants);
}

/* ---- one step ---- */

enum status sender_step(struct sender *s, struct errtext *err)
{
    enum status st = STATUS_OK;
    if (!s->started) { /* whatever was on its way goes out again at once */
        st = db_run(s->db, err, "UPDATE attempts SET last_sent = 0", "");
        s->started = !st;
    }
    if (!st)
        st = follow_bound(s, err);
    for (uint32_t role = 0; role < SENDER_ROLES && !st; role++) {
        if (!s->signer[role].present)
            continue;
        st = bind_open(s, (enum sender_role)role, err);
        if (!st)
            st = watch_balance(s, (enum sender_role)role, err);
    }
    return st;
}

/* ---- finality ---- */

enum status sender_start(struct sender *s, struct errtext *err)
{
    char kept[96];
    uint64_t number = 0;
    uint8_t hash[32];
    char text[65] = "";
    enum status st = db_meta_get(s->db, "final", kept, sizeof(kept), err);
    if (st || !kept[0])
        return st;
    if (sscanf(kept, "%" SCNu64 " %64s", &number, text) != 2 || !hex_decode(hash, 32, text))
        return err_set(err, STATUS_CORRUPT, "state database: meta final: \"%s\"", kept);
    nodes_remember(s->nodes, number, hash);
    s->kept = number;
    return STATUS_OK;
}

static enum status keep_final(struct sender *s, struct errtext *err)
{
    char text[96], hash[65];
    const struct rpc_block *b = &s->nodes->final;
    if (b->number == s->kept)
        return STATUS_OK;
    hex_encode(hash, b->hash, 32);
    snprintf(text, sizeof(text), "%" PRIu64 " %s", b->number, hash);
    s->kept = b->number;
    return db_meta_set(s->db, "final", text, err);
}

/* Intents that ended in blocks that are gone, newest first, down to a block that is still there. */
static enum status undo_ended(struct sender *s, struct errtext *err)
{
    struct db_rows q;
    uint8_t hash[32];
    uint64_t count = 0;
    enum status st;
    for (bool has = false;; count++) {
        st = db_query(s->db, &q, err,
                      "SELECT block, block_hash FROM intents WHERE block IS NOT NULL ORDER BY block"
                      " DESC LIMIT 1",
                      "");
        if (!st)
            st = db_next(&q, err);
        if (st)
            break;
        uint64_t block = db_u64(&q, 0);
        db_bytes(&q, 1, hash, 32);
        db_done(&q);
        if (block <= s->nodes->other.number) /* above what is final now there is nothing to ask */
            st = nodes_has_block(s->nodes, block, hash, &has, err);
        if (!st && !has) /* its bytes first; a dearer attempt when they are not mined in time */
            st = db_run(s->db, err,
                        "UPDATE attempts SET first_sent = ?, last_sent = 0 WHERE intent IN (SELECT"
                        " id FROM intents WHERE block = ?)",
                        "uu", clock_wall_ms(), block);
        if (!st && !has)
            st = db_run(s->db, err,
                        "UPDATE intents SET state = ?, mined = NULL, block = NULL, block_hash ="
                        " NULL, cost = NULL, ended_at = NULL, seen = NULL WHERE block = ?",
                        "tu", intent_state_name(INTENT_BOUND), block);
        if (st || has)
            break;
    }
    if (st && st != STATUS_NOT_FOUND)
        return st;
    log_error("sender",
              "a reorganisation below `finalized`: block %" PRIu64
              " is another now; what had ended "
              "in %" PRIu64 " blocks is on its way again, with its own bytes",
              s->nodes->final.number, count);
    return gauge_add(s->db, "reorganisations_below_final", 1, err);
}

enum status sender_round(struct sender *s, enum nodes_verdict *verdict, struct errtext *err)
{
    enum status st = nodes_refresh(s->nodes, verdict, err);
    if (st)
        return st;
    if (*verdict == NODES_REORG) {
        st = undo_ended(s, err);
        if (st)
            return st;
        nodes_moved(s->nodes);
        s->kept = 0;
    }
    return keep_final(s, err);
}
