/* Attempts: signed bytes of one nonce, stored before they are sent, each dearer than the one
 * before. What a node answers to a send is only advice: it may hasten the next attempt, and never
 * changes a nonce. */
#include "chain_client/eth/abi.h"
#include "chain_client/settle/sender_impl.h"
#include "chain_client/settle/trouble.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <string.h>

#define ATTEMPTS_MAX 64
#define RESEND_MS    10000
#define HASTY_MS     2000 /* least age of an attempt that a node calls underpriced */
#define NOTE_NS      60000000000ull
#define GWEI         1000000000u

/* ---- what a node says ---- */

const char *sender_refusal(struct sender *s)
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
                                         "AttestorsMissing(uint256)",
                                         "BadAttestation(uint256)",
                                         "NotHead(uint64)",
                                         "BatchPaid(uint64)",
                                         "NotPending(uint64)",
                                         "NotLive(uint64)",
                                         "Underfunded(uint256,uint256)",
                                         "PaymentRefused(address)",
                                         "AccessControlUnauthorizedAccount(address,bytes32)"};
    const struct rpc_fault *f = rpc_last_fault(nodes_rpc(s->nodes));
    uint8_t selector[4];
    for (size_t i = 0; i < ARRAY_COUNT(errors) && f->data_len >= 4; i++) {
        abi_selector(selector, errors[i]);
        if (memcmp(selector, f->data, 4) == 0)
            return errors[i];
    }
    return f->message;
}

void sender_note(struct sender *s, const struct intent *t, const char *what, const char *why)
{
    if (clock_mono_ns() < s->note_ns)
        return;
    s->note_ns = clock_mono_ns() + NOTE_NS;
    log_warn("sender", "%s %" PRIu64 ": %s: %s", t->kind, t->key, what, why);
}

/* The words of geth, its forks and other nodes for "offer more". */
static bool is_underpriced(const char *answer)
{
    return strstr(answer, "underpriced") || strstr(answer, "less than block base fee") ||
           strstr(answer, "fee too low");
}

static enum status send(struct sender *s, const struct intent *t, struct attempt *a,
                        struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    uint64_t now = clock_wall_ms();
    enum status st =
        db_run(s->db, err, "UPDATE attempts SET last_sent = ? WHERE intent = ? AND n = ?", "uuu",
               now, t->id, a->n);
    if (st || nodes_send(s->nodes, a->raw.data, a->raw.len, a->hash, &why) == STATUS_OK)
        return st;
    log_debug("sender", "%s %" PRIu64 " attempt %" PRIu64 ": %s", t->kind, t->key, a->n,
              why.text); /* an unknown outcome: the receipt decides */
    if (!is_underpriced(why.text) || now < a->first_sent_ms + HASTY_MS)
        return STATUS_OK;
    return db_run(s->db, err, "UPDATE attempts SET first_sent = 0 WHERE intent = ? AND n = ?", "uu",
                  t->id, a->n);
}

/* ---- fees ---- */

/* Twice the base fee and the tip the node suggests, below our own maximum. */
enum status sender_fees(struct sender *s, u128 *tip, u128 *cap, bool *too_high, struct errtext *err)
{
    u128 base = 0;
    struct rpc *rpc = nodes_rpc(s->nodes);
    *tip = *cap = 0;
    enum status st = rpc_next_base_fee(rpc, &base, err);
    if (!st)
        st = rpc_tip(rpc, tip, err);
    if (st)
        return st;
    *too_high = base > s->fee_max;
    *cap = MIN(2 * base + *tip, s->fee_max);
    *tip = MIN(*tip, *cap);
    if (!*too_high)
        return trouble_clear(s->db, TROUBLE_FEE_TOO_HIGH, 0, err);
    return trouble_say(s->db, TROUBLE_FEE_TOO_HIGH, 0, err,
                       "the chain's base fee is %" PRIu64
                       " gwei, above fee_max_gwei: nothing new is "
                       "sent until it falls; raise --fee-max-gwei if it does not",
                       (uint64_t)(base / GWEI));
}

/* ---- attempts ---- */

static enum status make_attempt(struct sender *s, const struct intent *t, struct attempt *a,
                                struct errtext *err)
{
    const struct sender_signer *signer = &s->signer[t->role];
    struct tx tx = {.chain_id = s->chain_id,
                    .nonce = t->nonce,
                    .tip_max = a->tip,
                    .fee_max = a->cap,
                    .gas_limit = t->gas,
                    .value = t->value,
                    .data = (const uint8_t *)t->data.data,
                    .data_len = t->data.len};
    memcpy(tx.to, t->to, 20);
    a->first_sent_ms = clock_wall_ms();
    enum status st = tx_sign(s->secp, &a->raw, a->hash, &tx, &signer->key, err);
    if (!st)
        st = db_run(s->db, err,
                    "INSERT INTO attempts (intent, n, hash, raw, tip, cap, first_sent, last_sent)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
                    "uubbnnu", t->id, a->n, a->hash, (size_t)32, (const void *)a->raw.data,
                    a->raw.len, a->tip, a->cap, a->first_sent_ms);
    if (!st)
        st = send(s, t, a, err);
    return st;
}

/* Only the key that a nonce was bound for may sign for it. */
static bool has_key(struct sender *s, const struct intent *t)
{
    const struct sender_signer *signer = &s->signer[t->role];
    if (signer->present && memcmp(signer->key.address, t->sender, 20) == 0)
        return true;
    sender_note(s, t, "only sent again, not signed anew",
                "the key it was bound for is not among this worker's");
    return false;
}

enum status sender_first_attempt(struct sender *s, const struct intent *t, struct errtext *err)
{
    struct attempt a = {.n = 1};
    bool too_high = false;
    if (!has_key(s, t))
        return STATUS_OK;
    buf_init(&a.raw, TX_RAW_BYTES_MAX);
    enum status st = sender_fees(s, &a.tip, &a.cap, &too_high, err);
    if (!st && !too_high)
        st = make_attempt(s, t, &a, err);
    buf_fini(&a.raw);
    return st;
}

/* 12.5 % above the last attempt in both fees, or what is usual now if that is more. */
static enum status bump(struct sender *s, const struct intent *t, const struct attempt *last,
                        struct errtext *err)
{
    struct attempt a = {.n = last->n + 1};
    bool too_high = false;
    u128 tip_least = last->tip + last->tip / 8 + 1, cap_least = last->cap + last->cap / 8 + 1;
    enum status st = sender_fees(s, &a.tip, &a.cap, &too_high, err);
    if (st)
        return st;
    a.tip = MAX(a.tip, tip_least);
    a.cap = MAX(MAX(a.cap, cap_least), a.tip);
    buf_init(&a.raw, TX_RAW_BYTES_MAX);
    log_info("sender", "%s %" PRIu64 ": not mined, attempt %" PRIu64 " offers more", t->kind,
             t->key, a.n);
    st = make_attempt(s, t, &a, err);
    buf_fini(&a.raw);
    return st;
}

enum status sender_push(struct sender *s, const struct intent *t, uint64_t attempts,
                        struct errtext *err)
{
    struct attempt last;
    uint64_t now = clock_wall_ms();
    enum status st = sender_load_attempt(s, &last, t->id, attempts, err);
    if (st) {
        buf_fini(&last.raw);
        return st;
    }
    /* A clock that was taken back makes an attempt due, not young for ever. */
    bool is_due = now < last.first_sent_ms || now >= last.first_sent_ms + s->bump_ms;
    if (is_due && (last.n == ATTEMPTS_MAX || last.cap + last.cap / 8 + 1 > s->fee_max)) {
        sender_note(s, t, "not mined", "its fee is at fee_max_gwei");
        is_due = false;
    }
    if (is_due && has_key(s, t))
        st = bump(s, t, &last, err);
    else if (now >= last.last_sent_ms + RESEND_MS || now < last.last_sent_ms)
        st = send(s, t, &last, err);
    buf_fini(&last.raw);
    return st;
}
