/* Rows are few and looked at often: each call asks first and writes only what is new. */
#include "chain_client/settle/trouble.h"
#include "server/base/clock.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* is_standing: while it lasts, records or money stand still. */
static const struct {
    const char *name;
    bool is_standing;
} kind[TROUBLE_COUNT] = {
    [TROUBLE_GAP] = {"gap", true},
    [TROUBLE_LANE_STOPPED] = {"lane_stopped", true},
    [TROUBLE_LANE_UNKNOWN] = {"lane_unknown", false},
    [TROUBLE_REDIS] = {"redis_away", true},
    [TROUBLE_NODE] = {"node_away", true},
    [TROUBLE_BATCH_CONFLICT] = {"batch_conflict", true},
    [TROUBLE_ARCHIVE_BATCH] = {"archive_batch", true},
    [TROUBLE_ARCHIVE_EPOCH] = {"archive_epoch", false},
    [TROUBLE_ARCHIVE_STORE] = {"archive_store", true},
    [TROUBLE_CLOCK] = {"clock", false},
    [TROUBLE_SIGNATURES] = {"signatures", true},
    [TROUBLE_FOREIGN_NONCE] = {"foreign_nonce", false},
    [TROUBLE_KEY_STOPPED] = {"key_stopped", true},
    [TROUBLE_UNFUNDED] = {"unfunded", true},
    [TROUBLE_CALL_REFUSED] = {"call_refused", true},
    [TROUBLE_GAS_LOW] = {"gas_low", false},
    [TROUBLE_FEE_TOO_HIGH] = {"fee_too_high", true},
    [TROUBLE_VAULT_UNFUNDED] = {"vault_unfunded", true},
    [TROUBLE_ENDPOINT] = {"endpoint", false},
    [TROUBLE_FINALITY_HELD] = {"finality_held", true},
    [TROUBLE_ONE_ENDPOINT] = {"one_endpoint", false},
    [TROUBLE_REFUSED] = {"refused", true},
    [TROUBLE_OWNERS] = {"owners", true},
    [TROUBLE_TARIFF] = {"refused_tariff", false},
    [TROUBLE_EVIDENCE] = {"refused_evidence", false},
    [TROUBLE_BATCH_UNSHOWN] = {"batch_unshown", true},
    [TROUBLE_EPOCH_UNSHOWN] = {"epoch_unshown", true},
    [TROUBLE_BATCH_FORGED] = {"batch_forged", true},
    [TROUBLE_EPOCH_FORGED] = {"epoch_forged", true},
    [TROUBLE_EPOCH_CONFLICT] = {"epoch_conflict", true},
    [TROUBLE_POWERLESS] = {"powerless", true},
    [TROUBLE_ROLE] = {"role_announced", false},
};

/* *is_there, and *is_same: with this sentence. */
static enum status look(struct db *db, enum trouble t, uint64_t number, const char *text,
                        bool *is_there, bool *is_same, struct errtext *err)
{
    struct db_rows q;
    *is_there = *is_same = false;
    enum status st =
        db_query(db, &q, err, "SELECT said FROM troubles WHERE kind = ? AND number = ?", "tu",
                 kind[t].name, number);
    if (!st)
        st = db_next(&q, err);
    if (st)
        return st == STATUS_NOT_FOUND ? STATUS_OK : st;
    *is_there = true;
    *is_same = text && strcmp(db_text(&q, 0), text) == 0;
    db_done(&q);
    return STATUS_OK;
}

enum status trouble_set(struct db *db, enum trouble t, uint64_t number, const char *text,
                        struct errtext *err)
{
    bool is_there, is_same;
    enum status st = look(db, t, number, text, &is_there, &is_same, err);
    if (st || is_same)
        return st;
    if (is_there)
        return db_run(db, err, "UPDATE troubles SET said = ? WHERE kind = ? AND number = ?", "ttu",
                      text, kind[t].name, number);
    log_warn("trouble", "%s: %s", kind[t].name, text);
    return db_run(db, err, "INSERT INTO troubles (kind, number, since, said) VALUES (?, ?, ?, ?)",
                  "tuut", kind[t].name, number, clock_wall_ms() / 1000, text);
}

enum status trouble_say(struct db *db, enum trouble t, uint64_t number, struct errtext *err,
                        const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return trouble_set(db, t, number, text, err);
}

enum status trouble_clear(struct db *db, enum trouble t, uint64_t number, struct errtext *err)
{
    bool is_there, is_same;
    enum status st = look(db, t, number, NULL, &is_there, &is_same, err);
    if (st || !is_there)
        return st;
    log_info("trouble", "%s %" PRIu64 ": over", kind[t].name, number);
    return db_run(db, err, "DELETE FROM troubles WHERE kind = ? AND number = ?", "tu", kind[t].name,
                  number);
}

enum status trouble_clear_all(struct db *db, enum trouble t, struct errtext *err)
{
    uint64_t number, none = UINT64_MAX >> 1;
    enum status st;
    while (
        !(st = db_value(db, &number, none, err,
                        "SELECT number FROM troubles WHERE kind = ? LIMIT 1", "t", kind[t].name)) &&
        number != none && !st)
        st = trouble_clear(db, t, number, err);
    return st;
}

/* ---- for people ---- */

typedef void put_row(struct buf *out, struct db_rows *q, size_t row);

static enum status put_rows(struct db *db, struct buf *out, put_row *put, struct errtext *err)
{
    struct db_rows q;
    size_t row = 0;
    enum status st = db_query(
        db, &q, err, "SELECT kind, number, since, said FROM troubles ORDER BY kind, number", "");
    while (!st && (st = db_next(&q, err)) == STATUS_OK)
        put(out, &q, row++);
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static void put_said(struct buf *out, struct db_rows *q)
{
    buf_put_json_string(out, db_text(q, 3), strlen(db_text(q, 3)));
}

static void row_json(struct buf *out, struct db_rows *q, size_t row)
{
    buf_printf(out, "%s{\"kind\":\"%s\",\"number\":%" PRIu64 ",\"since\":%" PRIu64 ",\"said\":",
               row ? "," : "", db_text(q, 0), db_u64(q, 1), db_u64(q, 2));
    put_said(out, q);
    buf_putc(out, '}');
}

static void row_text(struct buf *out, struct db_rows *q, size_t row)
{
    buf_printf(out, "TROUBLE %s: %s\n", db_text(q, 0), db_text(q, 3));
}

static void row_reason(struct buf *out, struct db_rows *q, size_t row)
{
    if (row)
        buf_putc(out, ',');
    put_said(out, q);
}

enum status trouble_put_json(struct db *db, struct buf *out, struct errtext *err)
{
    buf_putc(out, '[');
    enum status st = put_rows(db, out, row_json, err);
    buf_putc(out, ']');
    return st;
}

enum status trouble_put_text(struct db *db, struct buf *out, struct errtext *err)
{
    return put_rows(db, out, row_text, err);
}

enum status trouble_put_metrics(struct db *db, struct buf *out, struct errtext *err)
{
    enum status st = STATUS_OK;
    buf_puts(out, "# HELP residual_settle_trouble What waits for somebody, by kind; `status` says"
                  " what to do.\n# TYPE residual_settle_trouble gauge\n");
    for (size_t t = 0; t < TROUBLE_COUNT && !st; t++) {
        uint64_t count;
        st = db_value(db, &count, 0, err, "SELECT count(*) FROM troubles WHERE kind = ?", "t",
                      kind[t].name);
        buf_printf(out, "residual_settle_trouble{kind=\"%s\"} %" PRIu64 "\n", kind[t].name, count);
    }
    return st;
}

enum status trouble_put_health(struct db *db, struct buf *out, bool *healthy, struct errtext *err)
{
    enum status st = STATUS_OK;
    *healthy = true;
    for (size_t t = 0; t < TROUBLE_COUNT && !st; t++) {
        uint64_t count;
        st = db_value(db, &count, 0, err, "SELECT count(*) FROM troubles WHERE kind = ?", "t",
                      kind[t].name);
        *healthy = *healthy && (!kind[t].is_standing || !count);
    }
    buf_printf(out, "{\"ok\":%s,\"reasons\":[", *healthy ? "true" : "false");
    if (!st)
        st = put_rows(db, out, row_reason, err);
    buf_puts(out, "]}");
    return st;
}
