/* The archive is what auditors and rewards read, for ever: it is read again, slowly, and a batch
 * that is not what the ledger has is made again from whoever still has its records, in this order:
 * the database (what is not final), another store, the lanes' spools and servers. Whatever they
 * give must have the manifest's digest that stands in the batch's header. Behind the last batch the
 * epochs' folders are read, by the digest of what was proposed; another store has them, or nobody.
 */
#include "chain_client/eth/keccak.h"
#include "chain_client/settle/batches_impl.h"
#include "chain_client/settle/gauges.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MIB      1048576u
#define NS_PER_S 1000000000ull
#define PAUSE_NS 200000000ull /* between two batches, however small */
#define REBUILT  "archive_batches_rebuilt_total"
#define FETCHED  "archive_epochs_rebuilt_total"

/* ---- mending ---- */

typedef enum status give_records(struct worker *w, const struct batch_lane *r, struct buf *out,
                                 struct errtext *err);

static enum status from_database(struct worker *w, const struct batch_lane *r, struct buf *out,
                                 struct errtext *err)
{
    struct records_cursor c;
    struct records_row row;
    enum status st = records_open(&w->db, &c, r->lane, r->first, r->last, err);
    while (!st && (st = records_read(&c, &row, err)) == STATUS_OK) {
        if (!row.body.data)
            st = err_set(err, STATUS_NOT_FOUND, "record %" PRIu64 ": without its bytes", row.seq);
        else
            archive_put_record(out, row.body.data, row.body.len);
    }
    records_close(&c);
    return st == STATUS_NOT_FOUND && c.next > r->last && row.body.data ? STATUS_OK : st;
}

static enum status from_lanes(struct worker *w, const struct batch_lane *r, struct buf *out,
                              struct errtext *err)
{
    struct settle_lane *l = worker_lane(w, r->lane);
    if (!l)
        return err_set(err, STATUS_NOT_FOUND, "lane %" PRIu32 " is not this worker's", r->lane);
    return refetch_bodies(w, l, r->first, r->last, out, err);
}

/* CORRUPT: what it gives is not the batch. */
static enum status rebuild_from(struct worker *w, struct archive_batch *b, give_records *give,
                                struct errtext *err)
{
    struct buf records, manifest, header;
    char name[ARCHIVE_NAME_BYTES];
    uint8_t digest[32];
    enum status st = STATUS_OK;
    buf_init(&records, ARCHIVE_RECORDS_BYTES_MAX);
    buf_init(&manifest, ARCHIVE_TEXT_BYTES_MAX);
    buf_init(&header, ARCHIVE_TEXT_BYTES_MAX);
    for (size_t i = 0; i < b->lane_count && !st; i++)
        st = give(w, &b->lane[i], &records, err);
    struct canon_bytes bytes = {(uint8_t *)records.data, records.len};
    if (!st)
        archive_put_batch_manifest(&manifest, b, b->header.leaf_count, &bytes);
    keccak_256(digest, manifest.data, manifest.len);
    if (!st && memcmp(digest, b->header.manifest, 32) != 0)
        st = err_set(err, STATUS_CORRUPT, "its records are not those of the manifest");
    archive_put_header(&header, b);
    archive_batch_name(name, b->header.seq);
    struct archive_file file[] = {{"header.json", header.data, header.len},
                                  {"manifest.json", manifest.data, manifest.len},
                                  {"records.bin", records.data, records.len}};
    struct archive_folder folder = {w->set->archive_dir, name, file, ARRAY_COUNT(file), true};
    if (!st)
        st = archive_publish(&folder, err);
    buf_fini(&records);
    buf_fini(&manifest);
    buf_fini(&header);
    return st;
}

static enum status mend(struct worker *w, struct archive_batch *b, const char *why,
                        struct errtext *err)
{
    uint64_t seq = b->header.seq;
    const char *from = "the database";
    struct errtext last = ERRTEXT_INIT;
    char text[512];
    enum status st = rebuild_from(w, b, from_database, NULL);
    if (st && w->store_count) {
        from = "another store";
        st = stores_fetch_batch(w, seq, b->hash, NULL);
    }
    if (st) {
        from = "the lanes";
        st = rebuild_from(w, b, from_lanes, &last);
    }
    if (w->db.failed)
        return err_set(err, STATUS_IO, "state database: failed while an archived batch was mended");
    if (st) {
        snprintf(text, sizeof(text),
                 "batch %" PRIu64 " of the archive is damaged (%.120s), and nobody has its records "
                 "(%.120s): put its folder back from a backup, or name another place that has it "
                 "with --archive",
                 seq, why, last.text);
        return trouble_set(&w->db, TROUBLE_ARCHIVE_BATCH, seq, text, err);
    }
    log_warn("archive", "batch %" PRIu64 " was damaged (%s): rebuilt from %s", seq, why, from);
    st = gauge_add(&w->db, REBUILT, 1, err);
    return st ? st : trouble_clear(&w->db, TROUBLE_ARCHIVE_BATCH, seq, err);
}

/* ---- looking ---- */

/* A place that was named later has nothing of a batch that was published before; one that is away
 * is a trouble, and no reason to stop. */
static enum status fill_stores(struct worker *w, const struct archive_batch *b, struct errtext *err)
{
    struct buf header, manifest;
    char name[ARCHIVE_NAME_BYTES];
    buf_init(&header, ARCHIVE_TEXT_BYTES_MAX);
    buf_init(&manifest, ARCHIVE_TEXT_BYTES_MAX);
    archive_put_header(&header, b);
    archive_put_batch_manifest(&manifest, b, b->header.leaf_count, &b->records);
    archive_batch_name(name, b->header.seq);
    struct archive_file file[] = {{"records.bin", b->records.data, b->records.len},
                                  {"manifest.json", manifest.data, manifest.len},
                                  {"header.json", header.data, header.len}};
    struct archive_folder folder = {w->set->archive_dir, name, file, ARRAY_COUNT(file), true};
    enum status st = STATUS_OK;
    if (!stores_have(w, name, b->hash, &file[2]))
        st = stores_publish(w, &folder, b->hash, err);
    buf_fini(&header);
    buf_fini(&manifest);
    if (st && !w->db.failed) {
        err_clear(err);
        return STATUS_OK;
    }
    return st;
}

static enum status look(struct worker *w, uint64_t seq, size_t *bytes, struct errtext *err)
{
    struct archive_batch row = {.lane = NULL}, found = {.lane = NULL};
    struct errtext why = ERRTEXT_INIT;
    *bytes = 0;
    enum status st = batches_load(w, &row, seq, err);
    if (!st) {
        enum status seen = archive_batch_read(&found, w->set->archive_dir, seq, &why);
        if (!seen && memcmp(found.hash, row.hash, 32) != 0)
            seen = err_set(&why, STATUS_CORRUPT, "header.json is of another batch");
        if (!seen)
            seen = archive_batch_records(&found, w->set->archive_dir, &why);
        *bytes = found.records.len;
        st = seen ? mend(w, &row, why.text, err)
                  : trouble_clear(&w->db, TROUBLE_ARCHIVE_BATCH, seq, err);
        if (!st && !seen && w->store_count)
            st = fill_stores(w, &found, err);
    }
    archive_batch_fini(&found);
    archive_batch_fini(&row);
    return st;
}

static enum status mend_epoch(struct worker *w, uint64_t epoch, const uint8_t manifest[32],
                              const char *why, struct errtext *err)
{
    char text[512];
    if (stores_fetch_epoch(w, epoch, manifest, NULL)) {
        snprintf(text, sizeof(text),
                 "epoch %" PRIu64 " of the archive is damaged (%.160s), and no other place has it: "
                 "put its folder back from a backup, or name a place that has it with --archive",
                 epoch, why);
        return trouble_set(&w->db, TROUBLE_ARCHIVE_EPOCH, epoch, text, err);
    }
    log_warn("archive", "epoch %" PRIu64 " was damaged (%s): from another store", epoch, why);
    enum status st = gauge_add(&w->db, FETCHED, 1, err);
    return st ? st : trouble_clear(&w->db, TROUBLE_ARCHIVE_EPOCH, epoch, err);
}

/* The first epoch after that one; 0: there is none. */
static enum status scrub_epoch(struct worker *w, uint64_t after, uint64_t *epoch, size_t *bytes,
                               struct errtext *err)
{
    struct db_rows q;
    struct errtext why = ERRTEXT_INIT;
    uint8_t manifest[32];
    char folder[ARCHIVE_NAME_BYTES];
    size_t len = 0;
    *epoch = *bytes = 0;
    enum status st = db_query(&w->db, &q, err,
                              "SELECT epoch, manifest, state = 'vetoed' FROM epochs WHERE epoch > ?"
                              " AND manifest IS NOT NULL ORDER BY epoch LIMIT 1",
                              "u", after);
    st = st ? st : db_next(&q, err);
    if (st)
        return st == STATUS_NOT_FOUND ? STATUS_OK : st;
    *epoch = db_u64(&q, 0);
    const uint8_t *stored = db_blob(&q, 1, &len);
    if (len == 32)
        memcpy(manifest, stored, 32);
    bool counts = db_u64(&q, 2) == 0 && len == 32; /* what was vetoed is in no chain of epochs */
    db_done(&q);
    archive_epoch_name(folder, *epoch);
    if (counts && archive_epoch_check(w->set->archive_dir, folder, manifest, bytes, &why))
        return mend_epoch(w, *epoch, manifest, why.text, err);
    return trouble_clear(&w->db, TROUBLE_ARCHIVE_EPOCH, *epoch, err);
}

enum status scrub_step(struct worker *w, struct errtext *err)
{
    uint64_t last = 0, now = clock_mono_ns(), rate = w->set->scrub_mib_s * MIB;
    size_t bytes = 0;
    if (!rate || now < w->scrub_ns)
        return STATUS_OK;
    enum status st = db_value(&w->db, &last, 0, err, "SELECT max(seq) FROM batches WHERE state = ?",
                              "t", batch_state_name(BATCH_FINAL));
    if (st || !last)
        return st;
    if (w->scrub_seq >= last)
        st = scrub_epoch(w, w->scrub_epoch, &w->scrub_epoch, &bytes, err);
    if (!st && (w->scrub_seq < last || !w->scrub_epoch)) {
        w->scrub_seq = w->scrub_seq >= last ? 1 : w->scrub_seq + 1;
        st = look(w, w->scrub_seq, &bytes, err);
    }
    w->scrub_ns = now + MAX(bytes * NS_PER_S / rate, PAUSE_NS);
    return st;
}

enum status scrub_range(struct worker *w, uint64_t first, uint64_t last, struct errtext *err)
{
    enum status st = STATUS_OK;
    size_t bytes;
    for (uint64_t seq = first; seq <= last && !st; seq++)
        st = look(w, seq, &bytes, err);
    return st;
}
