/* The records that are taken in, in runs of one lane: rows of the database that hold up to a read's
 * worth each, so that a record costs bytes and not statements.
 *
 *   meta    65 bytes a record: digest, type, fee, the first half of its request id; kept for the
 *           time that a repeat may come (forget)
 *   bodies  the records as the archive has them (u32 length, bytes), until they are final there
 *   request ids are unique among what is kept
 *
 * Runs never overlap and have no holes. Inside the caller's transaction. Thread: the database's. */
#ifndef RS_SETTLE_RECORDS_H
#define RS_SETTLE_RECORDS_H

#include "chain_client/canon.h"
#include "chain_client/settle/db.h"
#include "server/base/buf.h"

#define RECORDS_META_BYTES    65
#define RECORDS_REQUEST_BYTES 16

struct records_row {
    uint64_t seq;
    uint8_t type, digest[32], request[RECORDS_REQUEST_BYTES]; /* zeros: none */
    u128 fee;
    struct canon_bytes body; /* NULL: only the archive has it */
};
/* Everything but the body. */
void records_row_from(struct records_row *out, const union record *r, const uint8_t digest[32]);

/* A run that is being made. */
struct records_run {
    uint32_t lane;
    uint64_t first, count;
    uint8_t signer[20];
    struct buf meta, bodies;
};
void records_run_init(struct records_run *run, uint32_t lane);
void records_run_fini(struct records_run *run);
/* May row follow, with this signer, in this run? */
bool records_run_fits(const struct records_run *run, uint64_t seq, const uint8_t signer[20]);
/* CONFLICT: its request id is another record's. */
MUST_CHECK enum status records_run_add(struct db *db, struct records_run *run,
                                       const struct records_row *row, const uint8_t signer[20],
                                       struct errtext *err);
/* Stores it, if it holds anything, and empties it. at: seconds of Unix time. */
MUST_CHECK enum status records_run_store(struct db *db, struct records_run *run, uint64_t at,
                                         struct errtext *err);

/* NOT_FOUND. */
MUST_CHECK enum status records_digest(struct db *db, uint32_t lane, uint64_t seq,
                                      uint8_t digest[32], struct errtext *err);
/* The last of what is contiguous after `from`, from itself if the next one is not there. */
MUST_CHECK enum status records_reach(struct db *db, uint32_t lane, uint64_t from, uint64_t *last,
                                     struct errtext *err);
/* The smallest number above seq that begins a run, or otherwise. */
MUST_CHECK enum status records_next(struct db *db, uint32_t lane, uint64_t seq, uint64_t otherwise,
                                    uint64_t *next, struct errtext *err);
/* The largest number, 0 for none. */
MUST_CHECK enum status records_end(struct db *db, uint32_t lane, uint64_t *end,
                                   struct errtext *err);
/* When the record was taken in, or otherwise. */
MUST_CHECK enum status records_at(struct db *db, uint32_t lane, uint64_t seq, uint64_t otherwise,
                                  uint64_t *at, struct errtext *err);

/* Of all records that are not final, the time the first was taken in, or otherwise. */
MUST_CHECK enum status records_oldest(struct db *db, uint64_t otherwise, uint64_t *at,
                                      struct errtext *err);

/* The records first..last of a lane, ascending. A body is NULL where it is no longer here. */
struct records_cursor {
    struct db_rows q;
    bool is_open;
    uint64_t next, last, run_last;
    uint8_t signer[20]; /* of the row that was given last */
    const uint8_t *meta, *body;
    size_t body_left;
};
MUST_CHECK enum status records_open(struct db *db, struct records_cursor *c, uint32_t lane,
                                    uint64_t first, uint64_t last, struct errtext *err);
/* NOT_FOUND behind the last, CORRUPT where one is missing; both end it. */
MUST_CHECK enum status records_read(struct records_cursor *c, struct records_row *row,
                                    struct errtext *err);
void records_close(struct records_cursor *c);

/* The bodies of runs that end at or below last. */
MUST_CHECK enum status records_drop_bodies(struct db *db, uint32_t lane, uint64_t last,
                                           struct errtext *err);
/* At most `runs` of those runs altogether. *left: there are more. */
MUST_CHECK enum status records_forget(struct db *db, uint32_t lane, uint64_t last, uint32_t runs,
                                      bool *left, struct errtext *err);

#endif
