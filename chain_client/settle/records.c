/* A run is one row of `runs` and one of `bodies`; a lookup by number finds the run that begins at
 * or below it. */
#include "chain_client/settle/records.h"
#include "server/base/check.h"

#include <inttypes.h>
#include <string.h>

#define META_BYTES_MAX   (1u << 20)
#define BODIES_BYTES_MAX (64u << 20)
#define BODIES_ENOUGH    (8u << 20)
#define RUN_MAX          8192

void records_row_from(struct records_row *out, const union record *r, const uint8_t digest[32])
{
    *out = (struct records_row){.seq = r->prefix.seq, .type = r->prefix.type};
    memcpy(out->digest, digest, 32);
    if (out->type != RECORD_INFERENCE)
        return;
    out->fee = r->inference.fee;
    memcpy(out->request, r->inference.request_id, RECORDS_REQUEST_BYTES);
}

static void put_meta(uint8_t meta[RECORDS_META_BYTES], const struct records_row *row)
{
    memcpy(meta, row->digest, 32);
    meta[32] = row->type;
    be_put(meta + 33, row->fee, 16);
    memcpy(meta + 49, row->request, RECORDS_REQUEST_BYTES);
}

static void take_meta(struct records_row *row, const uint8_t meta[RECORDS_META_BYTES])
{
    memcpy(row->digest, meta, 32);
    row->type = meta[32];
    row->fee = be_get(meta + 33, 16);
    memcpy(row->request, meta + 49, RECORDS_REQUEST_BYTES);
}

/* ---- making a run ---- */

void records_run_init(struct records_run *run, uint32_t lane)
{
    *run = (struct records_run){.lane = lane};
    buf_init(&run->meta, META_BYTES_MAX);
    buf_init(&run->bodies, BODIES_BYTES_MAX);
}

void records_run_fini(struct records_run *run)
{
    buf_fini(&run->meta);
    buf_fini(&run->bodies);
}

bool records_run_fits(const struct records_run *run, uint64_t seq, const uint8_t signer[20])
{
    return !run->count || (seq == run->first + run->count && run->count < RUN_MAX &&
                           run->bodies.len < BODIES_ENOUGH && memcmp(run->signer, signer, 20) == 0);
}

enum status records_run_add(struct db *db, struct records_run *run, const struct records_row *row,
                            const uint8_t signer[20], struct errtext *err)
{
    uint8_t meta[RECORDS_META_BYTES], head[4];
    CHECK(records_run_fits(run, row->seq, signer));
    if (row->type == RECORD_INFERENCE) {
        enum status st =
            db_run(db, NULL, "INSERT INTO requests VALUES (?, ?, ?)", "buu", row->request,
                   (size_t)RECORDS_REQUEST_BYTES, (uint64_t)run->lane, row->seq);
        if (st)
            return st == STATUS_EXISTS
                       ? err_set(err, STATUS_CONFLICT, "its request id is another record's")
                       : err_set(err, st, "state database: a request could not be written");
    }
    if (!run->count) {
        run->first = row->seq;
        memcpy(run->signer, signer, 20);
    }
    put_meta(meta, row);
    buf_put(&run->meta, meta, sizeof(meta));
    be_put(head, row->body.len, 4);
    if (row->body.data) {
        buf_put(&run->bodies, head, 4);
        buf_put(&run->bodies, row->body.data, row->body.len);
    }
    run->count++;
    return STATUS_OK;
}

enum status records_run_store(struct db *db, struct records_run *run, uint64_t at,
                              struct errtext *err)
{
    if (!run->count)
        return STATUS_OK;
    uint64_t last = run->first + run->count - 1;
    if (run->meta.failed || run->bodies.failed)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a run of records");
    enum status st = db_run(db, err,
                            "INSERT INTO runs (lane, first, last, at, signer, meta) VALUES (?, ?,"
                            " ?, ?, ?, ?)",
                            "uuuubb", (uint64_t)run->lane, run->first, last, at, run->signer,
                            (size_t)20, (const void *)run->meta.data, run->meta.len);
    if (!st && run->bodies.len)
        st = db_run(db, err, "INSERT INTO bodies (lane, first, last, data) VALUES (?, ?, ?, ?)",
                    "uuub", (uint64_t)run->lane, run->first, last, (const void *)run->bodies.data,
                    run->bodies.len);
    buf_clear(&run->meta);
    buf_clear(&run->bodies);
    run->count = 0;
    return st;
}

/* ---- looking up ---- */

enum status records_digest(struct db *db, uint32_t lane, uint64_t seq, uint8_t digest[32],
                           struct errtext *err)
{
    struct db_rows q;
    size_t len;
    enum status st = db_query(db, &q, err,
                              "SELECT first, last, meta FROM runs WHERE lane = ? AND first <= ?"
                              " ORDER BY first DESC LIMIT 1",
                              "uu", (uint64_t)lane, seq);
    if (!st)
        st = db_next(&q, err);
    if (st)
        return st;
    uint64_t first = db_u64(&q, 0), last = db_u64(&q, 1);
    const uint8_t *meta = db_blob(&q, 2, &len);
    if (seq > last)
        st = STATUS_NOT_FOUND;
    else if (len != (last - first + 1) * RECORDS_META_BYTES)
        st = err_set(err, STATUS_CORRUPT,
                     "state database: lane %" PRIu32 ": the run of record %" PRIu64 " is cut", lane,
                     first);
    else
        memcpy(digest, meta + (seq - first) * RECORDS_META_BYTES, 32);
    db_done(&q);
    return st;
}

enum status records_reach(struct db *db, uint32_t lane, uint64_t from, uint64_t *last,
                          struct errtext *err)
{
    uint64_t end = from;
    enum status st;
    do {
        *last = end;
        st = db_value(db, &end, end, err, "SELECT last FROM runs WHERE lane = ? AND first = ?",
                      "uu", (uint64_t)lane, *last + 1);
    } while (!st && end > *last);
    return st;
}

enum status records_next(struct db *db, uint32_t lane, uint64_t seq, uint64_t otherwise,
                         uint64_t *next, struct errtext *err)
{
    return db_value(db, next, otherwise, err,
                    "SELECT min(first) FROM runs WHERE lane = ? AND first > ?", "uu",
                    (uint64_t)lane, seq);
}

enum status records_end(struct db *db, uint32_t lane, uint64_t *end, struct errtext *err)
{
    return db_value(db, end, 0, err,
                    "SELECT last FROM runs WHERE lane = ? ORDER BY first DESC LIMIT 1", "u",
                    (uint64_t)lane);
}

enum status records_at(struct db *db, uint32_t lane, uint64_t seq, uint64_t otherwise, uint64_t *at,
                       struct errtext *err)
{
    return db_value(db, at, otherwise, err,
                    "SELECT at FROM runs WHERE lane = ? AND first <= ? ORDER BY first DESC LIMIT 1",
                    "uu", (uint64_t)lane, seq);
}

enum status records_oldest(struct db *db, uint64_t otherwise, uint64_t *at, struct errtext *err)
{
    return db_value(db, at, otherwise, err,
                    "SELECT min((SELECT at FROM runs r WHERE r.lane = l.lane AND r.first <= l.final"
                    " + 1 ORDER BY r.first DESC LIMIT 1)) FROM lanes l WHERE l.ingested > l.final",
                    "");
}

/* ---- reading a range ---- */

enum status records_open(struct db *db, struct records_cursor *c, uint32_t lane, uint64_t first,
                         uint64_t last, struct errtext *err)
{
    *c = (struct records_cursor){.next = first, .last = last};
    enum status st = db_query(
        db, &c->q, err,
        "SELECT r.first, r.last, r.signer, r.meta, b.data FROM runs r LEFT JOIN bodies b ON b.lane"
        " = r.lane AND b.first = r.first WHERE r.lane = ?1 AND r.first <= ?3 AND r.first >="
        " coalesce((SELECT max(first) FROM runs WHERE lane = ?1 AND first <= ?2), ?2) ORDER BY"
        " r.first",
        "uuu", (uint64_t)lane, first, last);
    c->is_open = st == STATUS_OK;
    return st;
}

static bool skip_body(struct records_cursor *c, struct canon_bytes *body)
{
    if (!c->body)
        return true;
    size_t len = c->body_left < 4 ? 0 : (size_t)be_get(c->body, 4);
    if (c->body_left < 4 || len > c->body_left - 4)
        return false;
    *body = (struct canon_bytes){c->body + 4, len};
    c->body += 4 + len;
    c->body_left -= 4 + len;
    return true;
}

static enum status cut(struct records_cursor *c, struct errtext *err)
{
    records_close(c);
    return err_set(err, STATUS_CORRUPT, "state database: record %" PRIu64 " is not there", c->next);
}

/* The next run becomes the current one. */
static enum status open_run(struct records_cursor *c, struct errtext *err)
{
    size_t len;
    enum status st = db_next(&c->q, err);
    c->is_open = st == STATUS_OK;
    if (st)
        return st == STATUS_NOT_FOUND ? cut(c, err) : st;
    uint64_t first = db_u64(&c->q, 0);
    c->run_last = db_u64(&c->q, 1);
    db_bytes(&c->q, 2, c->signer, 20);
    c->meta = db_blob(&c->q, 3, &len);
    c->body = db_blob(&c->q, 4, &c->body_left);
    if (first > c->next || c->run_last < c->next ||
        len != (c->run_last - first + 1) * RECORDS_META_BYTES)
        return cut(c, err);
    for (; first < c->next; first++) {
        struct canon_bytes body;
        if (!skip_body(c, &body))
            return cut(c, err);
        c->meta += RECORDS_META_BYTES;
    }
    return STATUS_OK;
}

enum status records_read(struct records_cursor *c, struct records_row *row, struct errtext *err)
{
    if (c->next > c->last) {
        records_close(c);
        return STATUS_NOT_FOUND;
    }
    if (c->next > c->run_last) {
        enum status st = open_run(c, err);
        if (st)
            return st;
    }
    *row = (struct records_row){.seq = c->next};
    take_meta(row, c->meta);
    if (!skip_body(c, &row->body))
        return cut(c, err);
    c->meta += RECORDS_META_BYTES;
    c->next++;
    return STATUS_OK;
}

void records_close(struct records_cursor *c)
{
    if (c->is_open)
        db_done(&c->q);
    c->is_open = false;
}

/* ---- what is no longer needed ---- */

enum status records_drop_bodies(struct db *db, uint32_t lane, uint64_t last, struct errtext *err)
{
    return db_run(db, err, "DELETE FROM bodies WHERE lane = ?1 AND first <= ?2 AND last <= ?2",
                  "uu", (uint64_t)lane, last);
}

static enum status forget_run(struct db *db, uint32_t lane, uint64_t first, uint64_t last,
                              struct errtext *err)
{
    struct records_cursor c;
    struct records_row row;
    enum status st = records_open(db, &c, lane, first, last, err);
    while (!st && (st = records_read(&c, &row, err)) == STATUS_OK)
        if (row.type == RECORD_INFERENCE)
            st = db_run(db, err, "DELETE FROM requests WHERE id = ?", "b", row.request,
                        (size_t)RECORDS_REQUEST_BYTES);
    records_close(&c);
    if (st != STATUS_NOT_FOUND)
        return st;
    return db_run(db, err, "DELETE FROM runs WHERE lane = ? AND first = ?", "uu", (uint64_t)lane,
                  first);
}

enum status records_forget(struct db *db, uint32_t lane, uint64_t last, uint32_t runs, bool *left,
                           struct errtext *err)
{
    enum status st = STATUS_OK;
    *left = true;
    for (uint32_t i = 0; i < runs && !st && *left; i++) {
        uint64_t first = 0, end = 0;
        st = db_value(db, &first, 0, err, "SELECT min(first) FROM runs WHERE lane = ?", "u",
                      (uint64_t)lane);
        if (!st)
            st = db_value(db, &end, 0, err, "SELECT last FROM runs WHERE lane = ? AND first = ?",
                          "uu", (uint64_t)lane, first);
        *left = first && end <= last;
        if (!st && *left)
            st = forget_run(db, lane, first, end, err);
    }
    return st;
}
