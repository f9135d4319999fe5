/* The sender's two tables: intents and their attempts. */
#include "chain_client/settle/sender_impl.h"
#include "server/base/check.h"
#include "server/base/clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define INTENT_COLUMNS                                                                             \
    "id, role, kind, key, generation, target, data, value, nonce, gas, sender, seen FROM"          \
    " intents"

static const char *const role_name[SENDER_ROLES] = {
    [SENDER_COMMITTER] = "committer",
    [SENDER_PROPOSER] = "proposer",
    [SENDER_FUNDER] = "funder",
    [SENDER_GUARDIAN] = "guardian", /* of `watch`; the worker has none */
};

const char *sender_role_name(enum sender_role role)
{
    return role_name[role];
}

enum status sender_raise(struct sender *s, const struct sender_call *call, struct errtext *err)
{
    if (call->data->failed || call->data->len > TX_DATA_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "%s %" PRIu64 ": call data is too long", call->kind,
                       call->key);
    return db_run(s->db, err,
                  "INSERT OR IGNORE INTO intents (role, kind, key, generation, target, data, value,"
                  " state) VALUES (?1, ?2, ?3, (SELECT count(*) FROM intents WHERE kind = ?2 AND"
                  " key = ?3 AND state NOT IN (?8, ?9)), ?4, ?5, ?6, ?7)",
                  "ttubbnttt", sender_role_name(call->role), call->kind, call->key, call->to,
                  (size_t)20, (const void *)call->data->data, call->data->len, call->value,
                  intent_state_name(INTENT_OPEN), intent_state_name(INTENT_OPEN),
                  intent_state_name(INTENT_BOUND));
}

enum status sender_hash(struct sender *s, const char *kind, uint64_t key, uint8_t hash[32],
                        struct errtext *err)
{
    struct db_rows q;
    memset(hash, 0, 32);
    enum status st = db_query(s->db, &q, err,
                              "SELECT coalesce(i.mined, a.hash) FROM intents i JOIN attempts a ON"
                              " a.intent = i.id WHERE i.kind = ? AND i.key = ? AND i.state <> ?"
                              " ORDER BY i.id DESC, a.n DESC LIMIT 1",
                              "tut", kind, key, intent_state_name(INTENT_FOREIGN));
    if (!st)
        st = db_next(&q, err);
    if (!st)
        db_bytes(&q, 0, hash, 32);
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static enum status read_intent(struct intent *t, struct db_rows *q, struct errtext *err)
{
    size_t len;
    uint32_t role = 0;
    t->id = db_u64(q, 0);
    while (role < SENDER_ROLES && strcmp(db_text(q, 1), role_name[role]) != 0)
        role++;
    if (role == SENDER_ROLES) {
        q->db->failed = true;
        return err_set(err, STATUS_CORRUPT, "state database: intent %" PRIu64 ": role \"%s\"",
                       t->id, db_text(q, 1));
    }
    t->role = (enum sender_role)role;
    snprintf(t->kind, sizeof(t->kind), "%s", db_text(q, 2));
    t->key = db_u64(q, 3);
    t->generation = db_u64(q, 4);
    db_bytes(q, 5, t->to, 20);
    const uint8_t *data = db_blob(q, 6, &len);
    buf_put(&t->data, data, len);
    t->value = db_amount(q, 7);
    t->nonce = db_u64(q, 8);
    t->gas = db_u64(q, 9);
    db_bytes(q, 10, t->sender, 20);
    t->is_seen = db_u64(q, 11) == 1;
    return STATUS_OK;
}

enum status sender_load_open(struct sender *s, struct intent *t, enum sender_role role,
                             struct errtext *err)
{
    struct db_rows q;
    *t = (struct intent){0};
    buf_init(&t->data, TX_DATA_BYTES_MAX);
    enum status st =
        db_query(s->db, &q, err,
                 "SELECT " INTENT_COLUMNS " WHERE state = ? AND role = ? ORDER BY id LIMIT 1", "tt",
                 intent_state_name(INTENT_OPEN), sender_role_name(role));
    if (!st)
        st = db_next(&q, err);
    if (!st)
        st = read_intent(t, &q, err);
    db_done(&q);
    return st;
}

enum status sender_load_bound(struct sender *s, struct intent *t, const struct intent *after,
                              struct errtext *err)
{
    struct db_rows q;
    struct intent first = {0};
    const struct intent *from = after ? after : &first;
    struct intent next = {0};
    buf_init(&next.data, TX_DATA_BYTES_MAX);
    enum status st = db_query(s->db, &q, err,
                              "SELECT " INTENT_COLUMNS " WHERE state = ? AND (sender > ? OR (sender"
                              " = ? AND nonce >= ?)) ORDER BY sender, nonce LIMIT 1",
                              "tbbu", intent_state_name(INTENT_BOUND), from->sender, (size_t)20,
                              from->sender, (size_t)20, after ? after->nonce + 1 : 0);
    if (!st)
        st = db_next(&q, err);
    if (!st)
        st = read_intent(&next, &q, err);
    db_done(&q);
    *t = next;
    return st;
}

enum status sender_load_attempt(struct sender *s, struct attempt *a, uint64_t intent, uint64_t n,
                                struct errtext *err)
{
    struct db_rows q;
    size_t len;
    *a = (struct attempt){.n = n};
    buf_init(&a->raw, TX_RAW_BYTES_MAX);
    enum status st = db_query(s->db, &q, err,
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

enum status sender_count_bound(struct sender *s, const uint8_t address[20], uint64_t *count,
                               struct errtext *err)
{
    return db_value(s->db, count, 0, err,
                    "SELECT count(*) FROM intents WHERE state = ? AND sender = ?", "tb",
                    intent_state_name(INTENT_BOUND), address, (size_t)20);
}

enum status sender_end_intent(struct sender *s, const struct intent *t,
                              const struct sender_end *end, struct errtext *err)
{
    return db_run(s->db, err,
                  "UPDATE intents SET state = ?, mined = ?, block = ?, block_hash = ?, cost = ?,"
                  " ended_at = ? WHERE id = ?",
                  "tbubnuu", intent_state_name(end->state), end->mined, (size_t)32, end->block,
                  end->block_hash, (size_t)32, end->cost, clock_wall_ms() / 1000, t->id);
}

enum status sender_acknowledge(struct db *db, uint64_t nonce, struct errtext *err)
{
    enum status st =
        db_run(db, err,
               "UPDATE intents SET seen = 1 WHERE nonce <= ? AND ((state = ? AND seen IS"
               " NULL) OR (state = ? AND seen = 0))",
               "utt", nonce, intent_state_name(INTENT_FOREIGN), intent_state_name(INTENT_BOUND));
    if (!st && !db_changes(db))
        st = err_set(err, STATUS_NOT_FOUND,
                     "no nonce up to %" PRIu64 " was used by a transaction of another that nobody "
                     "has looked at",
                     nonce);
    return st;
}
