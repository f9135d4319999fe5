/* The transaction sender: announced calls become mined ones, by the states of enum intent_state.
 *
 * A nonce is stored before anything is signed, and signed bytes are stored before they are sent, so
 * whatever is lost or repeated afterwards is the same transaction. A higher fee is another attempt
 * of the same nonce: at most one of them can be mined. What a node answers to a send is only
 * advice; the verdict is a receipt in a finalized block. A call that would revert now gets no
 * nonce: its row goes, and is raised again when the chain is ready for it. Every call sets absolute
 * state, so a repeat does nothing. */
#include "chain_client/eth/abi.h"
#include "chain_client/eth/tx.h"
#include "chain_client/settle/worker.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define IN_FLIGHT_MAX  4
#define ATTEMPTS_MAX   64
#define RESEND_MS      10000
#define GAS_MIN        100000
#define GWEI           1000000000u
#define NOTE_NS        60000000000ull
#define FOREIGN_NS     60000000000ull
#define FOREIGN_ASKS   10
#define DATA_BYTES_MAX TX_DATA_BYTES_MAX

struct intent {
    uint64_t id, key, nonce, gas;
    char kind[16];
    uint8_t to[20];
    struct buf data;
    u128 value;
};

struct attempt {
    uint64_t n;
    uint8_t hash[32];
    struct buf raw;
    u128 tip, cap;
    uint64_t first_sent_ms, last_sent_ms;
};

/* ---- rows ---- */

enum status sender_raise(struct worker *w, const struct sender_call *call, struct errtext *err)
{
    if (call->data->failed || call->data->len > DATA_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "%s %" PRIu64 ": call data is too long", call->kind,
                       call->key);
    return db_run(&w->db, err,
                  "INSERT OR IGNORE INTO intents (kind, key, target, data, value, state) VALUES (?,"
                  " ?, ?, ?, ?, ?)",
                  "tubbnt", call->kind, call->key, call->to, (size_t)20,
                  (const void *)call->data->data, call->data->len, call->value,
                  intent_state_name(INTENT_OPEN));
}

enum status sender_hash(struct worker *w, const char *kind, uint64_t key, uint8_t hash[32],
                        struct errtext *err)
{
    struct db_rows q;
    memset(hash, 0, 32);
    enum status st = db_query(&w->db, &q, err,
                              "SELECT coalesce(i.mined, a.hash) FROM intents i JOIN attempts a ON"
                              " a.intent = i.id WHERE i.kind = ? AND i.key = ? ORDER BY i.id DESC,"
                              " a.n DESC LIMIT 1",
                              "tu", kind, key);
    if (!st)
        st = db_next(&q, err);
    if (!st)
        db_bytes(&q, 0, hash, 32);
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

/* The idx-th intent of a state, in the order of nonce or, before there is one, of announcement. */
static enum status load_intent(struct worker *w, struct intent *t, enum intent_state state,
                               uint64_t idx, struct errtext *err)
{
    struct db_rows q;
    size_t len;
    *t = (struct intent){0};
    buf_init(&t->data, DATA_BYTES_MAX);
    enum status st = db_query(&w->db, &q, err,
                              "SELECT id, kind, key, target, data, value, nonce, gas FROM intents"
                              " WHERE state = ? ORDER BY nonce, id LIMIT 1 OFFSET ?",
                              "tu", intent_state_name(state), idx);
    if (!st)
        st = db_next(&q, err);
    if (st)
        return st;
    t->id = db_u64(&q, 0);
    snprintf(t->kind, sizeof(t->kind), "%s", db_text(&q, 1));
    t->key = db_u64(&q, 2);
    db_bytes(&q, 3, t->to, 20);
    const uint8_t *data = db_blob(&q, 4, &len);
    buf_put(&t->data, data, len);
    t->value = db_amount(&q, 5);
    t->nonce = db_u64(&q, 6);
    t->gas = db_u64(&q, 7);
    db_done(&q);
    return STATUS_OK;
}

static enum status load_attempt(struct worker *w, struct attempt *a, uint64_t intent, uint64_t n,
                                struct errtext *err)
{
    struct db_rows q;
    size_t len;
    *a = (struct attempt){.n = n};
    buf_init(&a->raw, TX_RAW_BYTES_MAX);
    enum status st = db_query(&w->db, &q, err,
                              "SELECT hash, raw, tip, cap, first_sent, last_sent FROM attempts"
                              " WHERE intent = ? AND n = ?",
                              "uu", intent, n);
    if (!st)
        st = db_next(&q, err);
    if (st)
        return st;
    db_bytes(&q, 0, a->hash, 32);
    const uint8_t *raw = db_blob(&q, 1, &len);
    buf_put(&a->raw, raw, len);
    a->tip = db_amount(&q, 2);
    a->cap = db_amount(&q, 3);
    a->first_sent_ms = db_u64(&q, 4);
    a->last_sent_ms = db_u64(&q, 5);
    db_done(&q);
    return STATUS_OK;
}

/* ---- what a node says ---- */

/* The contract's error by name, or the node's own words. */
static const char *refusal(const struct worker *w)
{
    static const char *const errors[] = {"Already(uint64)",
                                         "Conflict(uint64)",
                                         "NotNext(uint64)",
                                         "WrongSpec(uint8)",
                                         "WrongPrevious(bytes32)",
                                         "WrongCount()",
                                         "WrongCumFee(uint128)",
                                         "FeeTooLarge()",
                                         "WrongTime()",
                                         "LaneUnknown(uint32)",
                                         "LaneOrder(uint32)",
                                         "LaneGap(uint32,uint64)",
                                         "Paused()",
                                         "LaneKeyPending(uint32,uint64)",
                                         "EmptyEpoch()",
                                         "LaneIsSealed(uint32,uint64)",
                                         "WrongBatch(uint64)",
                                         "EvidenceUnknown(uint64)",
                                         "TooEarly(uint64)",
                                         "WrongTotal(uint128)",
                                         "WrongValue()",
                                         "IncreaseTooLarge(uint128,uint128)",
                                         "AttestorsMissing(uint256)",
                                         "Underfunded(uint256,uint256)",
                                         "PaymentRefused(address)",
                                         "AccessControlUnauthorizedAccount(address,bytes32)"};
    const struct rpc_fault *f = rpc_last_fault(w->rpc);
    uint8_t selector[4];
    for (size_t i = 0; i < ARRAY_COUNT(errors) && f->data_len >= 4; i++) {
        abi_selector(selector, errors[i]);
        if (memcmp(selector, f->data, 4) == 0)
            return errors[i];
    }
    return f->message;
}

static void note(struct worker *w, const struct intent *t, const char *what, const char *why)
{
    if (clock_mono_ns() < w->sender_note_ns)
        return;
    w->sender_note_ns = clock_mono_ns() + NOTE_NS;
    log_warn("sender", "%s %" PRIu64 ": %s: %s", t->kind, t->key, what, why);
}

static enum status send(struct worker *w, const struct intent *t, struct attempt *a,
                        struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    enum status st =
        db_run(&w->db, err, "UPDATE attempts SET last_sent = ? WHERE intent = ? AND n = ?", "uuu",
               clock_wall_ms(), t->id, a->n);
    if (st)
        return st;
    if (rpc_send_raw(w->rpc, a->raw.data, a->raw.len, a->hash, &why))
        log_debug("sender", "%s %" PRIu64 " attempt %" PRIu64 ": %s", t->kind, t->key, a->n,
                  why.text); /* an unknown outcome: the receipt decides */
    return STATUS_OK;
}

/* ---- attempts ---- */

/* Twice the base fee and the tip the node suggests, below our own maximum. */
static enum status choose_fees(struct worker *w, u128 *tip, u128 *cap, struct errtext *err)
{
    u128 base = 0, most = (u128)w->set->fee_max_gwei * GWEI;
    enum status st = rpc_next_base_fee(w->rpc, &base, err);
    if (!st)
        st = rpc_tip(w->rpc, tip, err);
    if (!st && base > most)
        st = err_set(err, STATUS_BUSY, "the base fee is above fee_max_gwei");
    *cap = MIN(2 * base + *tip, most);
    *tip = MIN(*tip, *cap);
    return st;
}

static enum status make_attempt(struct worker *w, const struct intent *t, struct attempt *a,
                                struct errtext *err)
{
    struct tx tx = {.chain_id = w->dep.chain_id,
                    .nonce = t->nonce,
                    .tip_max = a->tip,
                    .fee_max = a->cap,
                    .gas_limit = t->gas,
                    .value = t->value,
                    .data = (const uint8_t *)t->data.data,
                    .data_len = t->data.len};
    memcpy(tx.to, t->to, 20);
    enum status st = tx_sign(w->secp, &a->raw, a->hash, &tx, &w->key, err);
    if (!st)
        st = db_run(&w->db, err,
                    "INSERT INTO attempts (intent, n, hash, raw, tip, cap, first_sent, last_sent)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    "uubbnnuu", t->id, a->n, a->hash, (size_t)32, (const void *)a->raw.data,
                    a->raw.len, a->tip, a->cap, clock_wall_ms(), clock_wall_ms());
    if (!st)
        st = send(w, t, a, err);
    return st;
}

static enum status first_attempt(struct worker *w, const struct intent *t, struct errtext *err)
{
    struct attempt a = {.n = 1};
    buf_init(&a.raw, TX_RAW_BYTES_MAX);
    enum status st = choose_fees(w, &a.tip, &a.cap, err);
    if (!st)
        st = make_attempt(w, t, &a, err);
    buf_fini(&a.raw);
    return st;
}

/* 12.5 % above the last attempt in both fees, or what is usual now if that is more. */
static enum status bump(struct worker *w, const struct intent *t, const struct attempt *last,
                        struct errtext *err)
{
    struct attempt a = {.n = last->n + 1};
    u128 tip_least = last->tip + last->tip / 8 + 1, cap_least = last->cap + last->cap / 8 + 1;
    if (last->n == ATTEMPTS_MAX || cap_least > (u128)w->set->fee_max_gwei * GWEI) {
        note(w, t, "not mined", "its fee is at fee_max_gwei");
        return STATUS_OK;
    }
    enum status st = choose_fees(w, &a.tip, &a.cap, err);
    if (st)
        return st;
    a.tip = MAX(a.tip, tip_least);
    a.cap = MAX(MAX(a.cap, cap_least), a.tip);
    buf_init(&a.raw, TX_RAW_BYTES_MAX);
    log_info("sender", "%s %" PRIu64 ": not mined, attempt %" PRIu64 " offers more", t->kind,
             t->key, a.n);
    st = make_attempt(w, t, &a, err);
    buf_fini(&a.raw);
    return st;
}

/* ---- following ---- */

struct finality {
    uint64_t number, nonce; /* finalized block, and the poster's nonces used in it */
};

static enum status settle(struct worker *w, const struct intent *t, const struct rpc_receipt *r,
                          struct errtext *err)
{
    if (!r->succeeded)
        log_warn("sender", "%s %" PRIu64 ": mined and reverted in block %" PRIu64, t->kind, t->key,
                 r->block_number);
    return db_run(&w->db, err, "UPDATE intents SET state = ?, result = ?, mined = ? WHERE id = ?",
                  "ttbu", intent_state_name(r->succeeded ? INTENT_DONE : INTENT_CLOSED),
                  r->succeeded ? "ok" : "reverted", r->tx_hash, (size_t)32, t->id);
}

/* Is any attempt mined? *found and, when it is final, the row's end. *unsure: the node refused to
 * say (it indexes, or lags), which is no answer. */
static enum status look_for_receipt(struct worker *w, const struct intent *t, uint64_t attempts,
                                    const struct finality *f, bool *found, bool *unsure,
                                    struct errtext *err)
{
    enum status st = STATUS_OK;
    *found = *unsure = false;
    for (uint64_t n = attempts; n >= 1 && !st && !*found; n--) {
        struct errtext why = ERRTEXT_INIT;
        struct attempt a;
        struct rpc_receipt r;
        st = load_attempt(w, &a, t->id, n, err);
        if (!st) {
            enum status got = rpc_receipt(w->rpc, a.hash, &r, &why);
            *found = got == STATUS_OK;
            *unsure |= got == STATUS_INVALID;
            if (got && got != STATUS_NOT_FOUND && got != STATUS_INVALID)
                st = err_set(err, got, "%s", why.text);
        }
        if (!st && *found && r.block_number <= f->number)
            st = settle(w, t, &r, err);
        buf_fini(&a.raw);
    }
    return st;
}

/* Our nonce is used in final history and no receipt of ours is shown. A node that lags says so too:
 * only one that says it again and again, for a minute, is believed. */
static enum status suspect_foreign(struct worker *w, const struct intent *t, struct errtext *err)
{
    uint64_t now = clock_mono_ns();
    if (w->foreign.intent != t->id) {
        w->foreign = (struct foreign_nonce){.intent = t->id, .since_ns = now};
        log_warn("sender",
                 "%s %" PRIu64 ": nonce %" PRIu64 " is used in finalized history, but the node "
                 "shows none of our transactions with it; asking again",
                 t->kind, t->key, t->nonce);
    }
    if (++w->foreign.asked < FOREIGN_ASKS || now < w->foreign.since_ns + FOREIGN_NS)
        return STATUS_OK;
    return err_set(err, STATUS_CONFLICT,
                   "%s %" PRIu64 ": nonce %" PRIu64 " of the poster was used by a transaction "
                   "that is not ours: does another program hold its key?",
                   t->kind, t->key, t->nonce);
}

static enum status push(struct worker *w, const struct intent *t, uint64_t attempts,
                        struct errtext *err)
{
    struct attempt last;
    uint64_t now = clock_wall_ms();
    enum status st = load_attempt(w, &last, t->id, attempts, err);
    if (!st && now >= last.first_sent_ms + w->set->bump_seconds * 1000)
        st = bump(w, t, &last, err);
    else if (!st && (now >= last.last_sent_ms + RESEND_MS || now < last.last_sent_ms))
        st = send(w, t, &last, err);
    buf_fini(&last.raw);
    return st;
}

static enum status follow(struct worker *w, const struct intent *t, const struct finality *f,
                          struct errtext *err)
{
    uint64_t attempts;
    bool found, unsure;
    enum status st = db_value(&w->db, &attempts, 0, err,
                              "SELECT max(n) FROM attempts WHERE intent = ?", "u", t->id);
    if (st)
        return st;
    if (!attempts)
        return first_attempt(w, t, err);
    st = look_for_receipt(w, t, attempts, f, &found, &unsure, err);
    if (st || found || unsure)
        return st;
    if (t->nonce < f->nonce)
        return suspect_foreign(w, t, err);
    return push(w, t, attempts, err);
}

/* ---- binding ---- */

static enum status drop(struct worker *w, const struct intent *t, struct errtext *err)
{
    return db_run(&w->db, err, "DELETE FROM intents WHERE id = ? AND state = ?", "ut", t->id,
                  intent_state_name(INTENT_OPEN));
}

static enum status next_nonce(struct worker *w, uint64_t *nonce, struct errtext *err)
{
    uint64_t used = 0, stored = 0;
    enum status st = rpc_transaction_count(w->rpc, w->key.address, "latest", &used, err);
    if (!st)
        st =
            db_value(&w->db, &stored, 0, err, "SELECT max(nonce) + 1 FROM intents WHERE sender = ?",
                     "b", w->key.address, (size_t)20);
    *nonce = MAX(used, stored);
    return st;
}

static enum status bind(struct worker *w, struct intent *t, struct errtext *err)
{
    struct rpc_call call = {.from = w->key.address,
                            .to = t->to,
                            .value = t->value,
                            .data = t->data.data,
                            .data_len = t->data.len};
    struct errtext why = ERRTEXT_INIT;
    enum status st = rpc_estimate_gas(w->rpc, &call, &t->gas, &why);
    if (st == STATUS_INVALID) { /* it would revert: nothing is sent */
        note(w, t, "not now", refusal(w));
        return drop(w, t, err);
    }
    if (st)
        return err_set(err, st, "%s", why.text);
    t->gas = MAX(t->gas + t->gas / 5, (uint64_t)GAS_MIN);
    st = next_nonce(w, &t->nonce, err);
    if (!st)
        st = db_run(&w->db, err,
                    "UPDATE intents SET state = ?, sender = ?, nonce = ?, gas = ? WHERE id = ?",
                    "tbuuu", intent_state_name(INTENT_BOUND), w->key.address, (size_t)20, t->nonce,
                    t->gas, t->id);
    return st ? st : first_attempt(w, t, err);
}

/* ---- one step ---- */

static enum status count_bound(struct worker *w, uint64_t *count, struct errtext *err)
{
    return db_value(&w->db, count, 0, err, "SELECT count(*) FROM intents WHERE state = ?", "t",
                    intent_state_name(INTENT_BOUND));
}

static enum status follow_bound(struct worker *w, struct errtext *err)
{
    struct finality f;
    struct rpc_block last;
    uint64_t bound, settled = 0, left;
    enum status st = count_bound(w, &bound, err);
    w->in_flight = (uint32_t)bound;
    if (st || !bound)
        return st;
    st = rpc_transaction_count(w->rpc, w->key.address, "finalized", &f.nonce, err);
    if (!st)
        st = rpc_block(w->rpc, "finalized", &last, err);
    f.number = st ? 0 : last.number;
    for (uint64_t i = 0; i < bound && !st; i++) {
        struct intent t;
        st = load_intent(w, &t, INTENT_BOUND, i - settled, err);
        if (!st)
            st = follow(w, &t, &f, err);
        buf_fini(&t.data);
        if (!st)
            st = count_bound(w, &left, err);
        if (!st)
            settled = bound - left;
    }
    w->in_flight = (uint32_t)(bound - settled);
    return st;
}

enum status sender_step(struct worker *w, struct errtext *err)
{
    enum status st = STATUS_OK;
    if (!w->sender_started) { /* whatever was on its way goes out again at once */
        st = db_run(&w->db, err, "UPDATE attempts SET last_sent = 0", "");
        w->sender_started = !st;
    }
    if (!st)
        st = follow_bound(w, err);
    for (uint32_t room = IN_FLIGHT_MAX; !st && w->in_flight < room;) {
        struct intent t;
        st = load_intent(w, &t, INTENT_OPEN, 0, err);
        if (st == STATUS_NOT_FOUND) {
            buf_fini(&t.data);
            return STATUS_OK;
        }
        if (!st)
            st = bind(w, &t, err);
        buf_fini(&t.data);
        room--; /* as many tries as there is room */
    }
    if (!st)
        st = rpc_balance(w->rpc, w->key.address, "latest", &w->balance, err);
    return st;
}
