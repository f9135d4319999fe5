/* The schema, and statements bound by type letters. A statement stays prepared for its next use, as
 * long as there is a place for it. */
#include "chain_client/settle/db.h"
#include "chain_client/settle/states.h"
#include "server/base/check.h"
#include "server/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define BUSY_MS 15000

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS lanes (lane INTEGER PRIMARY KEY, ingested INTEGER NOT NULL,"
    " closed INTEGER NOT NULL, final INTEGER NOT NULL, key BLOB, stopped TEXT);"
    "CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY, lane INTEGER NOT NULL, first INTEGER"
    " NOT NULL, last INTEGER NOT NULL, at INTEGER NOT NULL, signer BLOB NOT NULL, meta BLOB NOT"
    " NULL);"
    "CREATE UNIQUE INDEX IF NOT EXISTS runs_first ON runs (lane, first);"
    "CREATE TABLE IF NOT EXISTS bodies (id INTEGER PRIMARY KEY, lane INTEGER NOT NULL, first"
    " INTEGER NOT NULL, last INTEGER NOT NULL, data BLOB NOT NULL);"
    "CREATE UNIQUE INDEX IF NOT EXISTS bodies_first ON bodies (lane, first);"
    "CREATE TABLE IF NOT EXISTS requests (id BLOB PRIMARY KEY, lane INTEGER NOT NULL, seq INTEGER"
    " NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS batches (seq INTEGER PRIMARY KEY, state TEXT NOT NULL, closed_at"
    " INTEGER NOT NULL, prev_hash BLOB, hash BLOB, log_root BLOB, manifest BLOB, leaf_count "
    "INTEGER,"
    " inferences INTEGER, fee_sum TEXT, cum_fee TEXT, tx BLOB, final_at INTEGER);"
    "CREATE TABLE IF NOT EXISTS batch_lanes (seq INTEGER NOT NULL, lane INTEGER NOT NULL, first"
    " INTEGER NOT NULL, last INTEGER NOT NULL, PRIMARY KEY (seq, lane)) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS batch_lanes_first ON batch_lanes (lane, first);"
    "CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER PRIMARY KEY, state TEXT NOT NULL, previous"
    " INTEGER NOT NULL, prev_root BLOB NOT NULL, paid_from INTEGER NOT NULL, paid INTEGER NOT NULL,"
    " evidence INTEGER NOT NULL, planned_at INTEGER NOT NULL, root BLOB, total TEXT, leaves "
    "INTEGER,"
    " manifest BLOB, required INTEGER, missing INTEGER, tx BLOB, active_at INTEGER,"
    " planned_block INTEGER);"
    "CREATE TABLE IF NOT EXISTS attestations (epoch INTEGER NOT NULL, digest BLOB NOT NULL,"
    " signer BLOB NOT NULL, signature BLOB NOT NULL, PRIMARY KEY (epoch, digest, signer))"
    " WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS signed (epoch INTEGER NOT NULL, digest BLOB NOT NULL, prev_root "
    "BLOB"
    " NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (epoch, digest)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS watched (kind TEXT NOT NULL, number INTEGER NOT NULL, id BLOB NOT"
    " NULL, verdict TEXT NOT NULL, since INTEGER NOT NULL, why TEXT NOT NULL, PRIMARY KEY (kind,"
    " number, id)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS attestors (account BLOB PRIMARY KEY) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS cum (epoch INTEGER NOT NULL, idx INTEGER NOT NULL, account BLOB NOT"
    " NULL, amount TEXT NOT NULL, PRIMARY KEY (epoch, idx)) WITHOUT ROWID;"
    "CREATE UNIQUE INDEX IF NOT EXISTS cum_account ON cum (account, epoch);"
    "CREATE TABLE IF NOT EXISTS earned (account BLOB NOT NULL, adapter BLOB NOT NULL, source TEXT"
    " NOT NULL, epoch INTEGER NOT NULL, datanet BLOB, amount TEXT NOT NULL, PRIMARY KEY (account,"
    " adapter, source, epoch)) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS earned_epoch ON earned (epoch, account);"
    "CREATE TABLE IF NOT EXISTS intents (id INTEGER PRIMARY KEY, role TEXT NOT NULL, kind TEXT NOT"
    " NULL, key INTEGER NOT NULL, generation INTEGER NOT NULL, target BLOB NOT NULL, data BLOB NOT"
    " NULL, value TEXT NOT NULL, gas INTEGER, sender BLOB, nonce INTEGER, state TEXT NOT NULL,"
    " mined BLOB, block INTEGER, block_hash BLOB, cost TEXT, ended_at INTEGER, seen INTEGER,"
    " UNIQUE (kind, key, generation));"
    "CREATE UNIQUE INDEX IF NOT EXISTS intents_nonce ON intents (sender, nonce) WHERE nonce IS NOT"
    " NULL;"
    "CREATE INDEX IF NOT EXISTS intents_state ON intents (state, role);"
    "CREATE INDEX IF NOT EXISTS intents_block ON intents (block) WHERE block IS NOT NULL;"
    "CREATE TABLE IF NOT EXISTS attempts (intent INTEGER NOT NULL, n INTEGER NOT NULL, hash BLOB "
    "NOT"
    " NULL, raw BLOB NOT NULL, tip TEXT NOT NULL, cap TEXT NOT NULL, first_sent INTEGER, last_sent"
    " INTEGER, PRIMARY KEY (intent, n)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS troubles (kind TEXT NOT NULL, number INTEGER NOT NULL, since"
    " INTEGER NOT NULL, said TEXT NOT NULL, PRIMARY KEY (kind, number)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS quarantine (id INTEGER PRIMARY KEY, lane INTEGER NOT NULL, seq"
    " INTEGER NOT NULL, reason TEXT NOT NULL, digest BLOB NOT NULL, body BLOB NOT NULL, at INTEGER"
    " NOT NULL, UNIQUE (lane, seq, digest));"
    "CREATE TABLE IF NOT EXISTS gauges (name TEXT NOT NULL, label TEXT NOT NULL, value TEXT NOT"
    " NULL, PRIMARY KEY (name, label)) WITHOUT ROWID;";

static enum status fault(struct db *db, struct errtext *err)
{
    int code = sqlite3_errcode(db->h) & 0xff;
    enum status st = code == SQLITE_CORRUPT || code == SQLITE_NOTADB ? STATUS_CORRUPT
                     : code == SQLITE_CONSTRAINT                     ? STATUS_EXISTS
                                                                     : STATUS_IO;
    db->failed = db->failed || st != STATUS_EXISTS;
    return err_set(err, st, "state database: %s", sqlite3_errmsg(db->h));
}

static enum status exec(struct db *db, const char *sql, struct errtext *err)
{
    return sqlite3_exec(db->h, sql, NULL, NULL, NULL) == SQLITE_OK ? STATUS_OK : fault(db, err);
}

static enum status make_schema(struct db *db, struct errtext *err)
{
    enum status st = db_begin(db, err);
    if (st)
        return st;
    st = exec(db, schema, err);
    return db_end(db, st, err);
}

static enum status lock(struct db *db, const char *dir, struct errtext *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/lock", dir);
    db->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (db->lock_fd < 0)
        return err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    if (flock(db->lock_fd, LOCK_EX | LOCK_NB) != 0)
        return err_set(err, STATUS_BUSY, "%s: another residual-settle holds this state", path);
    return STATUS_OK;
}

static enum status check_integrity(struct db *db, struct errtext *err)
{
    struct db_rows q;
    enum status st = db_query(db, &q, err, "PRAGMA quick_check(1)", "");
    if (!st)
        st = db_next(&q, err);
    if (!st && strcmp(db_text(&q, 0), "ok") != 0)
        st = err_set(err, STATUS_CORRUPT, "state database: %s", db_text(&q, 0));
    db_done(&q);
    return st;
}

enum status db_open(struct db *db, const char *dir, struct errtext *err)
{
    char path[PATH_MAX];
    *db = (struct db){.lock_fd = -1};
    enum status st = file_mkdirs(dir, 0700, err);
    if (!st)
        st = lock(db, dir, err);
    snprintf(path, sizeof(path), "%s/settle.db", dir);
    if (!st && sqlite3_open_v2(path, &db->h, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) !=
                   SQLITE_OK)
        st = fault(db, err);
    if (!st) /* readers may be recovering the log of a worker that was killed: wait for them */
        sqlite3_busy_timeout(db->h, BUSY_MS);
    if (!st)
        st = exec(db,
                  "PRAGMA page_size=16384; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; "
                  "PRAGMA cache_size=-65536; "
                  "PRAGMA wal_autocheckpoint=2048;",
                  err);
    if (!st)
        st = check_integrity(db, err);
    if (!st)
        st = make_schema(db, err);
    if (!st)
        st = states_check(db, err);
    if (!st) /* what still is one is found again */
        st = exec(db, "DELETE FROM troubles", err);
    if (st)
        db_close(db);
    return st;
}

static enum status open_beside(struct db *db, const char *dir, bool may_write, struct errtext *err)
{
    char path[PATH_MAX];
    uint64_t tables = 0;
    *db = (struct db){.lock_fd = -1};
    snprintf(path, sizeof(path), "%s/settle.db", dir);
    if (!file_exists(path))
        return err_set(err, STATUS_NOT_FOUND, "%s: no such file; name the worker's --state-dir",
                       path);
    enum status st = STATUS_OK;
    if (sqlite3_open_v2(path, &db->h, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK)
        st = fault(db, err);
    if (!st)
        sqlite3_busy_timeout(db->h, BUSY_MS);
    if (!st)
        st = exec(db, may_write ? "PRAGMA synchronous=FULL;" : "PRAGMA query_only=1;", err);
    if (!st)
        st = db_value(db, &tables, 0, err,
                      "SELECT count(*) FROM sqlite_master WHERE name = 'gauges'", "");
    if (!st && !tables)
        st = err_set(err, STATUS_NOT_FOUND, "%s: the worker is just making it; ask again", path);
    if (st)
        db_close(db);
    return st;
}

enum status db_open_reader(struct db *db, const char *dir, struct errtext *err)
{
    return open_beside(db, dir, false, err);
}

enum status db_open_beside(struct db *db, const char *dir, struct errtext *err)
{
    return open_beside(db, dir, true, err);
}

void db_close(struct db *db)
{
    for (size_t i = 0; i < db->kept_count; i++)
        sqlite3_finalize(db->kept[i].stmt);
    sqlite3_close(db->h);
    if (db->lock_fd >= 0)
        close(db->lock_fd);
    *db = (struct db){.lock_fd = -1};
}

enum status db_begin(struct db *db, struct errtext *err)
{
    return exec(db, "BEGIN IMMEDIATE", err);
}

enum status db_end(struct db *db, enum status st, struct errtext *err)
{
    if (!st)
        st = exec(db, "COMMIT", err);
    if (st && !sqlite3_get_autocommit(db->h))
        sqlite3_exec(db->h, "ROLLBACK", NULL, NULL, NULL);
    return st;
}

/* ---- statements ---- */

/* Data lives as long as the statement runs where `lives`, else it is copied. */
static int bind_one(sqlite3_stmt *s, int i, char type, bool lives, va_list *args)
{
    sqlite3_destructor_type owner = lives ? SQLITE_STATIC : SQLITE_TRANSIENT;
    char amount[40];
    const void *data;
    size_t len;
    switch (type) {
    case 'u':
        return sqlite3_bind_int64(s, i, (sqlite3_int64)va_arg(*args, uint64_t));
    case 'n':
        u128_format(amount, va_arg(*args, u128));
        return sqlite3_bind_text(s, i, amount, -1, SQLITE_TRANSIENT);
    case 't':
        return sqlite3_bind_text(s, i, va_arg(*args, const char *), -1, owner);
    case 'b':
        data = va_arg(*args, const void *);
        len = va_arg(*args, size_t);
        return data ? sqlite3_bind_blob64(s, i, data, len, owner) : sqlite3_bind_null(s, i);
    default:
        PANIC("type letter %c", type);
    }
}

/* A prepared statement of this text that nobody runs: kept or fresh. NULL: SQLite refused it. */
static sqlite3_stmt *take_statement(struct db *db, const char *sql)
{
    sqlite3_stmt *fresh = NULL;
    for (size_t i = 0; i < db->kept_count; i++) {
        struct db_kept *k = &db->kept[i];
        if (!k->in_use && k->sql == sql && strcmp(sqlite3_sql(k->stmt), sql) == 0) {
            k->in_use = true;
            return k->stmt;
        }
    }
    if (sqlite3_prepare_v3(db->h, sql, -1, SQLITE_PREPARE_PERSISTENT, &fresh, NULL) != SQLITE_OK)
        return NULL;
    if (db->kept_count < DB_KEPT_MAX)
        db->kept[db->kept_count++] = (struct db_kept){sql, fresh, true};
    return fresh;
}

static void give_back(struct db *db, sqlite3_stmt *s)
{
    for (size_t i = 0; i < db->kept_count && s; i++) {
        if (db->kept[i].stmt != s)
            continue;
        sqlite3_reset(s);
        sqlite3_clear_bindings(s);
        db->kept[i].in_use = false;
        return;
    }
    sqlite3_finalize(s);
}

static enum status prepare(struct db_rows *q, bool lives, struct errtext *err, const char *sql,
                           const char *types, va_list *args)
{
    q->stmt = take_statement(q->db, sql);
    int rc = q->stmt ? SQLITE_OK : SQLITE_ERROR;
    for (int i = 0; types[i] && rc == SQLITE_OK; i++)
        rc = bind_one(q->stmt, i + 1, types[i], lives, args);
    if (rc == SQLITE_OK)
        return STATUS_OK;
    enum status st = fault(q->db, err);
    db_done(q);
    return st;
}

enum status db_run(struct db *db, struct errtext *err, const char *sql, const char *types, ...)
{
    struct db_rows q = {.db = db};
    va_list args;
    va_start(args, types);
    enum status st = prepare(&q, true, err, sql, types, &args);
    va_end(args);
    if (!st && sqlite3_step(q.stmt) != SQLITE_DONE)
        st = fault(db, err);
    db_done(&q);
    return st;
}

uint64_t db_changes(struct db *db)
{
    return (uint64_t)sqlite3_changes(db->h);
}

enum status db_query(struct db *db, struct db_rows *q, struct errtext *err, const char *sql,
                     const char *types, ...)
{
    va_list args;
    *q = (struct db_rows){.db = db};
    va_start(args, types);
    enum status st = prepare(q, false, err, sql, types, &args);
    va_end(args);
    return st;
}

enum status db_next(struct db_rows *q, struct errtext *err)
{
    int rc = sqlite3_step(q->stmt);
    if (rc == SQLITE_ROW)
        return STATUS_OK;
    enum status st = rc == SQLITE_DONE ? STATUS_NOT_FOUND : fault(q->db, err);
    db_done(q);
    return st;
}

void db_done(struct db_rows *q)
{
    give_back(q->db, q->stmt);
    q->stmt = NULL;
}

uint64_t db_u64(struct db_rows *q, int col)
{
    return (uint64_t)sqlite3_column_int64(q->stmt, col);
}

const char *db_text(struct db_rows *q, int col)
{
    const char *text = (const char *)sqlite3_column_text(q->stmt, col);
    return text ? text : "";
}

u128 db_amount(struct db_rows *q, int col)
{
    u128 v = 0;
    return u128_parse(&v, db_text(q, col)) ? v : 0;
}

const uint8_t *db_blob(struct db_rows *q, int col, size_t *len)
{
    const uint8_t *data = sqlite3_column_blob(q->stmt, col);
    *len = (size_t)sqlite3_column_bytes(q->stmt, col);
    return data;
}

void db_bytes(struct db_rows *q, int col, uint8_t *out, size_t len)
{
    size_t found;
    const uint8_t *data = db_blob(q, col, &found);
    memset(out, 0, len);
    if (data && found == len)
        memcpy(out, data, len);
}

enum status db_value(struct db *db, uint64_t *out, uint64_t otherwise, struct errtext *err,
                     const char *sql, const char *types, ...)
{
    struct db_rows q = {.db = db};
    va_list args;
    va_start(args, types);
    enum status st = prepare(&q, false, err, sql, types, &args);
    va_end(args);
    *out = otherwise;
    if (!st)
        st = db_next(&q, err);
    if (!st && sqlite3_column_type(q.stmt, 0) != SQLITE_NULL)
        *out = db_u64(&q, 0);
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

enum status db_meta_set(struct db *db, const char *name, const char *value, struct errtext *err)
{
    return db_run(db, err, "INSERT OR REPLACE INTO meta VALUES (?, ?)", "tt", name, value);
}

enum status db_meta_get(struct db *db, const char *name, char *value, size_t bytes,
                        struct errtext *err)
{
    struct db_rows q;
    value[0] = '\0';
    enum status st = db_query(db, &q, err, "SELECT value FROM meta WHERE name = ?", "t", name);
    if (!st)
        st = db_next(&q, err);
    if (!st)
        snprintf(value, bytes, "%s", db_text(&q, 0));
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}
