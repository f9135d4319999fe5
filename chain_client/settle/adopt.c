/* A database that is behind the chain: lost, or an old backup. What the ledger holds and the
 * archive has is taken over, record by record, before anything new is closed. */
#include "chain_client/settle/worker.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <string.h>

/* One that the database does not have yet, into the run. Its digest is in the log root that the
 * ledger has: its signer need not be asked. */
static enum status adopt_record(struct worker *w, struct records_run *run, uint64_t at,
                                const struct canon_bytes *body, struct errtext *err)
{
    static const uint8_t nobody[20];
    union record r;
    struct records_row row;
    uint8_t digest[32], ours[32];
    enum status st = canon_decode(&r, body->data, body->len, err);
    if (!st)
        st = records_digest(&w->db, r.prefix.lane, r.prefix.seq, ours, err);
    if (st != STATUS_NOT_FOUND)
        return st;
    st = STATUS_OK;
    if (run->lane != r.prefix.lane || !records_run_fits(run, r.prefix.seq, nobody))
        st = records_run_store(&w->db, run, at, err);
    run->lane = r.prefix.lane;
    canon_digest(digest, &r, w->domain);
    records_row_from(&row, &r, digest);
    row.body = *body;
    return st ? st : records_run_add(&w->db, run, &row, nobody, err);
}

static enum status adopt_records(struct worker *w, struct archive_batch *b, struct errtext *err)
{
    struct canon_bytes body;
    struct records_run run;
    size_t offset = 0;
    uint64_t at = b->header.closed_at;
    enum status st = archive_batch_records(b, w->set->archive_dir, err);
    records_run_init(&run, 0);
    while (!st && (st = archive_next_record(&b->records, &offset, &body, err)) == STATUS_OK)
        st = adopt_record(w, &run, at, &body, err);
    if (st == STATUS_NOT_FOUND)
        st = records_run_store(&w->db, &run, at, err);
    records_run_fini(&run);
    return st;
}

static enum status adopt_rows(struct worker *w, const struct archive_batch *b, struct errtext *err)
{
    const struct batch_header *h = &b->header;
    enum status st = db_run(
        &w->db, err,
        "INSERT INTO batches (seq, state, closed_at, prev_hash, hash, log_root, manifest,"
        " leaf_count, inferences, fee_sum, cum_fee) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        "utubbbbuunn", h->seq, batch_state_name(BATCH_INCLUDED), h->closed_at, h->prev_hash,
        (size_t)32, b->hash, (size_t)32, h->log_root, (size_t)32, h->manifest, (size_t)32,
        (uint64_t)h->leaf_count, (uint64_t)h->inferences, h->fee_sum, h->cum_fee);
    for (size_t i = 0; i < b->lane_count && !st; i++) {
        const struct batch_lane *r = &b->lane[i];
        st = db_run(&w->db, err, "INSERT INTO batch_lanes VALUES (?, ?, ?, ?)", "uuuu", h->seq,
                    (uint64_t)r->lane, r->first, r->last);
        if (!st)
            st =
                db_run(&w->db, err,
                       "INSERT INTO lanes (lane, ingested, closed, final) VALUES (?1, ?2, ?2, 0) ON"
                       " CONFLICT (lane) DO UPDATE SET ingested = max(ingested, ?2), closed = ?2",
                       "uu", (uint64_t)r->lane, r->last);
    }
    return st;
}

/* *foreign: the archive does not have this one. */
static enum status adopt_one(struct worker *w, uint64_t seq, bool *foreign, struct errtext *err)
{
    struct archive_batch b;
    uint8_t hash[32];
    enum status st = view_batch_hash(&w->view, "latest", seq, hash, err);
    if (st)
        return st;
    st = archive_batch_read(&b, w->set->archive_dir, seq, err);
    *foreign = st == STATUS_NOT_FOUND || (!st && memcmp(hash, b.hash, 32) != 0);
    if (st || *foreign) {
        archive_batch_fini(&b);
        return st;
    }
    st = db_begin(&w->db, err);
    if (!st) {
        st = adopt_records(w, &b, err);
        if (!st)
            st = adopt_rows(w, &b, err);
        st = db_end(&w->db, st, err);
    }
    if (!st)
        log_info("batch", "batch %" PRIu64 ": adopted from chain and archive", seq);
    archive_batch_fini(&b);
    return st;
}

enum status batches_adopt(struct worker *w, struct errtext *err)
{
    struct view_head head;
    uint64_t ours = 0;
    enum status st = view_head(&w->view, "latest", &head, err);
    if (!st)
        st = db_value(&w->db, &ours, 0, err, "SELECT max(seq) FROM batches", "");
    for (uint64_t seq = ours + 1; !st && seq <= head.seq; seq++) {
        bool foreign = false;
        st = adopt_one(w, seq, &foreign, err);
        if (foreign && seq == 1)
            return err_set(err, STATUS_CONFLICT,
                           "batch 1 is on the ledger, but neither in the state nor in the archive: "
                           "name the archive_dir that has it");
        if (foreign) { /* said in foreign.c, at every step until it is dropped */
            err_clear(err);
            return STATUS_OK;
        }
    }
    return st;
}
