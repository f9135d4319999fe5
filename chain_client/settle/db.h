/* SQLite as this worker uses it: one writer, WAL, synchronous=FULL, one transaction per transition.
 * The first failure of the database is final: the worker stops and a restart continues from disk.
 * Amounts are decimal text, hashes blobs. Thread: one per handle. */
#ifndef RS_SETTLE_DB_H
#define RS_SETTLE_DB_H

#include "server/base/errtext.h"
#include "server/base/hex.h"

#include <sqlite3.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DB_KEPT_MAX 256

struct db {
    sqlite3 *h;
    int lock_fd; /* -1 for a reader */
    bool failed; /* it refused something it should not: stop */
    struct db_kept {
        const char *sql; /* the caller's: found by its address */
        sqlite3_stmt *stmt;
        bool in_use;
    } kept[DB_KEPT_MAX]; /* prepared statements */
    size_t kept_count;
};

/* Opens <dir>/settle.db, made and checked if needed, and locks <dir>/lock for the process's life.
 * Errors: BUSY (another worker), IO, CORRUPT (integrity check, or a state without
 * a name in states.h). */
MUST_CHECK enum status db_open(struct db *db, const char *dir, struct errtext *err);
/* For looking only; works beside the worker. NOT_FOUND without a database. */
MUST_CHECK enum status db_open_reader(struct db *db, const char *dir, struct errtext *err);
/* The same for a short write of one's own rows beside the worker, which waits meanwhile. */
MUST_CHECK enum status db_open_beside(struct db *db, const char *dir, struct errtext *err);
void db_close(struct db *db);

MUST_CHECK enum status db_begin(struct db *db, struct errtext *err);
/* Commits when st is OK, else rolls back; returns st or the commit's failure. */
MUST_CHECK enum status db_end(struct db *db, enum status st, struct errtext *err);

/* Parameters by type letter: u uint64_t, b (const void *, size_t), t const char *, n u128. A NULL
 * blob or text is NULL. */
MUST_CHECK enum status db_run(struct db *db, struct errtext *err, const char *sql,
                              const char *types, ...);
uint64_t db_changes(struct db *db); /* rows of the last db_run */

/* A query: db_query, then db_next until NOT_FOUND (which ends it) or db_done. */
struct db_rows {
    sqlite3_stmt *stmt;
    struct db *db;
};
MUST_CHECK enum status db_query(struct db *db, struct db_rows *q, struct errtext *err,
                                const char *sql, const char *types, ...);
MUST_CHECK enum status db_next(struct db_rows *q, struct errtext *err);
void db_done(struct db_rows *q);
uint64_t db_u64(struct db_rows *q, int col);
u128 db_amount(struct db_rows *q, int col);
const char *db_text(struct db_rows *q, int col); /* "" for NULL; valid until db_next */
const uint8_t *db_blob(struct db_rows *q, int col, size_t *len);
/* A blob of exactly len bytes; zeros when it is another. */
void db_bytes(struct db_rows *q, int col, uint8_t *out, size_t len);
/* The first column of the first row, or `otherwise`. */
MUST_CHECK enum status db_value(struct db *db, uint64_t *out, uint64_t otherwise,
                                struct errtext *err, const char *sql, const char *types, ...);

MUST_CHECK enum status db_meta_set(struct db *db, const char *name, const char *value,
                                   struct errtext *err);
/* value "" when it is not there. */
MUST_CHECK enum status db_meta_get(struct db *db, const char *name, char *value, size_t bytes,
                                   struct errtext *err);

#endif
