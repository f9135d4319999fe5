/* A database that is behind the chain: lost, or an old backup. What the ledger holds and the
 * archive has is taken over, record by record, before anything new is closed. */
#include "chain_client/settle/worker.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <string.h>

static enum status adopt_records(struct worker *w, struct archive_batch *b, struct errtext *err)
{
    struct canon_bytes body;
    size_t offset = 0;
    enum status st = archive_batch_records(b, w->set->archive_dir, err), end = STATUS_OK;
    while (!st && (end = archive_next_record(&b->records, &offset, &body, err)) == STATUS_OK) {
        union record r;
        uint8_t digest[32];
        st = canon_decode(&r, body.data, body.len, err);
        if (st)
            break;
        bool is_inference = r.prefix.type == RECORD_INFERENCE;
        canon_digest(digest, &r, w->domain);
        st =
            db_run(&w->db, err,
                   "INSERT OR IGNORE INTO records (lane, seq, type, digest, fee, request, at, body)"
                   " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                   "uuubnbub", (uint64_t)r.prefix.lane, r.prefix.seq, (uint64_t)r.prefix.type,
                   digest, (size_t)32, is_inference ? r.inference.fee : (u128)0,
                   is_inference ? r.inference.request_id : NULL, (size_t)32, b->header.closed_at,
                   body.data, body.len);
    }
    return st ? st : end == STATUS_NOT_FOUND ? STATUS_OK : end;
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

static enum status adopt_one(struct worker *w, uint64_t seq, struct errtext *err)
{
    struct archive_batch b;
    uint8_t hash[32];
    enum status st = view_batch_hash(&w->view, "latest", seq, hash, err);
    if (st)
        return st;
    st = archive_batch_read(&b, w->set->archive_dir, seq, err);
    if (st) {
        err_prefix(err,
                   "batch %" PRIu64 " is on the ledger, but neither in the state nor in the "
                   "archive",
                   seq);
        return st == STATUS_NOT_FOUND ? STATUS_CONFLICT : st;
    }
    if (memcmp(hash, b.hash, 32) != 0)
        st = batches_conflict(seq, err);
    if (!st)
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
    for (uint64_t seq = ours + 1; !st && seq <= head.seq; seq++)
        st = adopt_one(w, seq, err);
    return st;
}
