/* The published archive: what anyone needs to recompute every batch and epoch (SPEC 8).
 *
 *   <dir>/batch-<8 digits>/
 *     records.bin    per record u32 big-endian length, then the record's bytes
 *     manifest.json  names records.bin by size and Keccak-256; the Keccak-256 of this file is
 *                    `manifest` in the batch header
 *     header.json    header, lanes and hashes, as the ledger has them
 *   <dir>/epoch-<8 digits>/
 *     snapshot.json  what the chain said at T (snapshot.h)
 *     owners.json    whom evidence may pay (owner_lists.h)
 *     accounts.json  the leaves of the reward tree, in order
 *     missing.json   required answers without evidence
 *     refused.json   answers whose tariff was not a named one
 *     manifest.json  names the five; its Keccak-256 is in the Proposed event
 *
 * Canonical JSON: one line, keys ascending bytewise, no blanks, hex in lower case with 0x, amounts
 * as decimal strings, a newline at the end. Each text has exactly one form, so a reader renders
 * what it understood and compares bytes: a file cannot differ anywhere without being noticed. A
 * folder appears whole, by rename. Thread: any; blocks on disk. */
#ifndef RS_SETTLE_ARCHIVE_H
#define RS_SETTLE_ARCHIVE_H

#include "chain_client/batch.h"
#include "chain_client/canon.h"
#include "chain_client/epoch.h"
#include "chain_client/reward.h"
#include "server/base/buf.h"
#include "server/base/errtext.h"

#include <limits.h>

#define ARCHIVE_FILES_MAX         6
#define ARCHIVE_BATCH_FILES       3
#define ARCHIVE_EPOCH_FILES       6
#define ARCHIVE_RECORDS_BYTES_MAX (1024u << 20)
#define ARCHIVE_TEXT_BYTES_MAX    (256u << 20)
#define ARCHIVE_NAME_BYTES        32

struct archive_file {
    const char *name;
    const void *data;
    size_t len;
};

/* The names of a folder's files. */
extern const char *const archive_batch_files[ARCHIVE_BATCH_FILES];
extern const char *const archive_epoch_files[ARCHIVE_EPOCH_FILES];

void archive_batch_name(char out[ARCHIVE_NAME_BYTES], uint64_t seq);
void archive_epoch_name(char out[ARCHIVE_NAME_BYTES], uint64_t epoch);

/* archive_publish - make folder `name` of `dir` hold exactly these files, read back and compared.
 *
 * After   the folder is there whole and synced; an equal one is left as it is
 * Errors  CONFLICT when a different one is there and may_replace is false; IO, NO_MEMORY
 */
struct archive_folder {
    const char *dir, *name;
    const struct archive_file *file;
    size_t file_count;
    bool may_replace;
};
MUST_CHECK enum status archive_publish(const struct archive_folder *f, struct errtext *err);
/* Without folder `name` of dir. */
void archive_drop(const char *dir, const char *name);
/* <dir>/<folder>/<file> into a fresh block (mem_free). */
MUST_CHECK enum status archive_read(const char *dir, const char *folder, const char *file,
                                    size_t bytes_max, struct canon_bytes *out, struct errtext *err);

/* A batch as published. */
struct archive_batch {
    struct batch_place place;
    struct batch_header header;
    struct batch_lane *lane; /* [lane_count] */
    size_t lane_count;
    uint8_t lanes_hash[32], hash[32];
    struct canon_bytes records; /* the file; NULL until archive_batch_records */
};
/* Hashes from header and lanes. */
MUST_CHECK enum status archive_batch_seal(struct archive_batch *b, struct errtext *err);
void archive_put_header(struct buf *out, const struct archive_batch *b);
/* The text whose digest is header.manifest: place, seq, closed_at and lanes are read from b. */
void archive_put_batch_manifest(struct buf *out, const struct archive_batch *b,
                                uint32_t record_count, const struct canon_bytes *records);
/* header.json of batch seq: parsed, rendered again, compared. CORRUPT when it differs. */
MUST_CHECK enum status archive_batch_read(struct archive_batch *b, const char *dir, uint64_t seq,
                                          struct errtext *err);
/* records.bin and manifest.json against header.manifest, by digest. CORRUPT, NOT_FOUND. */
MUST_CHECK enum status archive_batch_records(struct archive_batch *b, const char *dir,
                                             struct errtext *err);
void archive_batch_fini(struct archive_batch *b);

/* The records of records.bin, one after another. */
void archive_put_record(struct buf *out, const void *body, size_t len);
/* NOT_FOUND at the end; CORRUPT for a length that does not fit. *offset moves on. */
MUST_CHECK enum status archive_next_record(const struct canon_bytes *records, size_t *offset,
                                           struct canon_bytes *body, struct errtext *err);

/* accounts.json. */
struct archive_accounts {
    uint64_t epoch;
    struct reward_account *account; /* amount is 0 after a read */
    size_t count;
};
void archive_put_accounts(struct buf *out, uint64_t epoch, const struct reward_account *account,
                          size_t count);
MUST_CHECK enum status archive_accounts_read(struct archive_accounts *a, const char *dir,
                                             uint64_t epoch, struct errtext *err);
void archive_accounts_fini(struct archive_accounts *a);

/* An answer of missing.json or of refused.json. */
struct archive_answer {
    uint32_t lane;
    uint64_t seq;
    u128 fee;
};
void archive_put_missing(struct buf *out, uint64_t epoch, const struct archive_answer *missing,
                         size_t count);
/* Each for reason 1: its tariff was not a named one. */
void archive_put_refused(struct buf *out, uint64_t epoch, const struct archive_answer *refused,
                         size_t count);

/* manifest.json of an epoch; the header's own manifest field is not read. */
struct archive_epoch {
    uint64_t chain_id;
    uint8_t vault[20];
    uint64_t at; /* T */
    uint64_t previous, paid_from;
    const struct epoch_header *header;
    const struct reward_stats *stats;
    struct archive_file file[5]; /* accounts, missing, owners, refused, snapshot */
};
void archive_put_epoch_manifest(struct buf *out, const struct archive_epoch *e);
/* An epoch's folder: its manifest.json by this digest, and the five files by that. *bytes: what was
 * read. CORRUPT, NOT_FOUND. */
MUST_CHECK enum status archive_epoch_check(const char *dir, const char *folder,
                                           const uint8_t manifest[32], size_t *bytes,
                                           struct errtext *err);

/* Canonical pieces: "0x.." with quotes, and an amount with quotes. */
void archive_put_hex(struct buf *out, const uint8_t *data, size_t len);
void archive_put_amount(struct buf *out, u128 v);

#endif
