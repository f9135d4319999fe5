/* Batches that others know and this database does not: it was lost, it is an old backup, or another
 * worker has the same key. What the ledger holds, or the archive beyond it, is taken over before
 * anything new is closed:
 *
 *   archive   the folder of that hash, record by record
 *   event     header and ranges of BatchCommitted; the records are ours, or fetched like any gap,
 *             and must make the ledger's hash
 *   beyond    a batch that was archived and not committed: its commit may be on its way, and the
 *             same batch is the one that cannot contradict it
 *
 * It replaces a batch of ours of that number, and is from then on as if it were ours. Above the
 * ledger's finalized head each signature is checked: a batch that a stolen key forged is never
 * taken over (foreign.c says it). */
#include "chain_client/settle/batches_impl.h"
#include "chain_client/settle/events.h"
#include "server/base/check.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <string.h>

/* ---- rows ---- */

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
    canon_digest(digest, &r, w->domain);
    if (!st && memcmp(digest, ours, 32) != 0)
        st = err_set(err, STATUS_CONFLICT,
                     "lane %" PRIu32 " record %" PRIu64 " is another than ours", r.prefix.lane,
                     r.prefix.seq);
    if (st != STATUS_NOT_FOUND)
        return st;
    st = STATUS_OK;
    if (run->lane != r.prefix.lane || !records_run_fits(run, r.prefix.seq, nobody))
        st = records_run_store(&w->db, run, at, err);
    run->lane = r.prefix.lane;
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
    enum status st = STATUS_OK;
    records_run_init(&run, 0);
    while (!st && (st = archive_next_record(&b->records, &offset, &body, err)) == STATUS_OK)
        st = adopt_record(w, &run, at, &body, err);
    if (st == STATUS_NOT_FOUND)
        st = records_run_store(&w->db, &run, at, err);
    records_run_fini(&run);
    return st;
}

static enum status put_batch(struct worker *w, const struct archive_batch *b,
                             enum batch_state state, struct errtext *err)
{
    const struct batch_header *h = &b->header;
    bool is_made = state != BATCH_CLOSED;
    return db_run(&w->db, err,
                  "INSERT INTO batches (seq, state, closed_at, prev_hash, hash, log_root, manifest,"
                  " leaf_count, inferences, fee_sum, cum_fee) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?,"
                  " ?)",
                  "utubbbbuunn", h->seq, batch_state_name(state), h->closed_at,
                  is_made ? h->prev_hash : NULL, (size_t)32, is_made ? b->hash : NULL, (size_t)32,
                  is_made ? h->log_root : NULL, (size_t)32, is_made ? h->manifest : NULL,
                  (size_t)32, (uint64_t)h->leaf_count, (uint64_t)h->inferences, h->fee_sum,
                  h->cum_fee);
}

/* CONFLICT: it does not begin where the lane's batches end. */
static enum status put_lane(struct worker *w, uint64_t seq, const struct batch_lane *r,
                            struct errtext *err)
{
    uint64_t closed = 0;
    enum status st = db_value(&w->db, &closed, 0, err, "SELECT closed FROM lanes WHERE lane = ?",
                              "u", (uint64_t)r->lane);
    if (!st && closed + 1 != r->first)
        st = err_set(err, STATUS_CONFLICT,
                     "batch %" PRIu64 ": lane %" PRIu32 " begins at record %" PRIu64
                     ", expected %" PRIu64,
                     seq, r->lane, r->first, closed + 1);
    if (!st)
        st = db_run(&w->db, err, "INSERT INTO batch_lanes VALUES (?, ?, ?, ?)", "uuuu", seq,
                    (uint64_t)r->lane, r->first, r->last);
    if (st)
        return st;
    return db_run(&w->db, err,
                  "INSERT INTO lanes (lane, ingested, closed, final) VALUES (?1, ?2, ?2, 0) ON"
                  " CONFLICT (lane) DO UPDATE SET ingested = max(ingested, ?2), closed = ?2",
                  "uu", (uint64_t)r->lane, r->last);
}

/* CONFLICT: a record that its lane did not sign. */
static enum status check_signatures(struct worker *w, const struct archive_batch *b,
                                    struct errtext *err)
{
    enum status st = STATUS_OK;
    for (size_t i = 0; i < b->lane_count && !st; i++) {
        uint64_t bad = 0;
        st = batches_verify(w, &b->lane[i], &bad, err);
        if (!st && bad)
            st = err_set(err, STATUS_CONFLICT,
                         "batch %" PRIu64 ": lane %" PRIu32 " did not sign record %" PRIu64,
                         b->header.seq, b->lane[i].lane, bad);
    }
    return st;
}

/* Instead of what is ours from that number on. is_open: signatures are checked. Without records of
 * its own (b->records), the batch is made of ours and must have b->hash. */
static enum status take_over(struct worker *w, struct archive_batch *b, enum batch_state state,
                             bool is_open, struct errtext *err)
{
    uint8_t hash[32];
    enum status st = db_begin(&w->db, err);
    if (st)
        return st;
    st = walk_back_rows(&w->db, b->header.seq, err);
    if (!st && b->records.data)
        st = adopt_records(w, b, err);
    if (!st)
        st = put_batch(w, b, b->records.data ? state : BATCH_CLOSED, err);
    for (size_t i = 0; i < b->lane_count && !st; i++)
        st = put_lane(w, b->header.seq, &b->lane[i], err);
    if (!st && is_open)
        st = check_signatures(w, b, err);
    if (!st && !b->records.data)
        st = batches_rehearse(w, b->header.seq, hash, err);
    if (!st && !b->records.data && memcmp(hash, b->hash, 32) != 0)
        st = err_set(err, STATUS_CONFLICT,
                     "batch %" PRIu64 ": the lanes' records make another batch than the ledger's",
                     b->header.seq);
    st = db_end(&w->db, st, err);
    return st ? st : lanes_load(w, err);
}

/* What speaks against a batch is not this worker's failure: it is said, and not adopted. */
static enum status verdict(struct worker *w, uint64_t seq, enum status st, const char *from,
                           bool *adopted, struct errtext *err)
{
    *adopted = st == STATUS_OK;
    if (*adopted)
        log_info("batch", "batch %" PRIu64 ": adopted from %s", seq, from);
    if (st != STATUS_CONFLICT && st != STATUS_CORRUPT && st != STATUS_NOT_FOUND &&
        st != STATUS_INVALID)
        return st;
    if (w->db.failed)
        return st;
    log_debug("batch", "batch %" PRIu64 " from %s: %s", seq, from, err->text);
    err_clear(err);
    return STATUS_OK;
}

/* ---- where it comes from ---- */

/* hash: the ledger's, or NULL for any that follows ours. */
static enum status from_archive(struct worker *w, uint64_t seq, const uint8_t hash[32],
                                bool is_open, bool *adopted, struct errtext *err)
{
    static const uint8_t zero[32];
    struct archive_batch b;
    struct archive_batch before = {.hash = {0}};
    enum status st = archive_batch_read(&b, w->set->archive_dir, seq, err);
    if (!st && hash && memcmp(hash, b.hash, 32) != 0)
        st = err_set(err, STATUS_NOT_FOUND, "the archive has another batch of this number");
    if (!st &&
        (b.place.chain_id != w->dep.chain_id || memcmp(b.place.ledger, w->dep.ledger, 20) != 0))
        st = err_set(err, STATUS_CORRUPT, "header.json names another ledger");
    if (!st && seq > 1)
        st = batches_load(w, &before, seq - 1, err);
    if (!st && memcmp(b.header.prev_hash, seq > 1 ? before.hash : zero, 32) != 0)
        st = err_set(err, STATUS_CONFLICT, "it does not follow ours");
    if (!st)
        st = archive_batch_records(&b, w->set->archive_dir, err);
    if (!st)
        st = take_over(w, &b, hash ? BATCH_INCLUDED : BATCH_ARCHIVED, is_open, err);
    st = verdict(w, seq, st, hash ? "chain and archive" : "the archive", adopted, err);
    archive_batch_fini(&before);
    archive_batch_fini(&b);
    return st;
}

static enum status keep_event(void *arg, const struct event_commit *e, struct errtext *err)
{
    struct archive_batch *b = arg;
    if (memcmp(e->hash, b->hash, 32) != 0 || b->lane)
        return STATUS_OK;
    b->header = e->header;
    b->lane_count = e->lane_count;
    b->lane = mem_array(e->lane_count + 1, sizeof(*b->lane));
    if (e->lane_count)
        memcpy(b->lane, e->lane, e->lane_count * sizeof(*b->lane));
    return STATUS_OK;
}

/* Are the records of all its ranges here? What is not becomes a gap, for refetch.c to fill, once
 * the batch is final: before that it may yet be dropped, and records come by themselves. */
static bool has_records(struct worker *w, const struct archive_batch *b, bool is_open)
{
    bool all = b->lane != NULL;
    for (size_t i = 0; i < b->lane_count; i++) {
        struct settle_lane *l = worker_lane(w, b->lane[i].lane);
        uint64_t last = b->lane[i].last;
        all = all && l && l->ingested >= last;
        if (l && !is_open && last > l->ingested && last <= l->ingested + LANES_AHEAD_MAX)
            l->top = MAX(l->top, last);
    }
    return all;
}

static enum status from_event(struct worker *w, uint64_t seq, const uint8_t hash[32], bool is_open,
                              bool *adopted, struct errtext *err)
{
    struct archive_batch b = {.place = {.chain_id = w->dep.chain_id}};
    struct event_range range = {.from = w->dep.start_block, .number = seq};
    memcpy(b.hash, hash, 32);
    enum status st = rpc_block_number(w->rpc, &range.to, err);
    if (!st)
        st = events_commits(&w->view, &range, keep_event, &b, err);
    if (!st && has_records(w, &b, is_open)) {
        st = take_over(w, &b, BATCH_CLOSED, is_open, err);
        st = verdict(w, seq, st, "its event and the lanes' records", adopted, err);
    }
    archive_batch_fini(&b);
    return st;
}

/* ---- in order ---- */

/* Is the ledger's batch ours, or not built yet? */
static enum status is_known(struct worker *w, uint64_t seq, const uint8_t hash[32], bool *known,
                            struct errtext *err)
{
    uint64_t count = 0;
    enum status st = db_value(&w->db, &count, 0, err,
                              "SELECT count(*) FROM batches WHERE seq = ? AND (hash IS NULL OR hash"
                              " = ?)",
                              "ub", seq, hash, (size_t)32);
    *known = count > 0;
    return st;
}

/* The batches of the ledger, from the first that is not final here. */
static enum status adopt_ledgers(struct worker *w, const struct view_head *head, bool *all,
                                 struct errtext *err)
{
    struct view_head settled;
    uint64_t final = 0;
    enum status st = view_head(&w->view, "finalized", &settled, err);
    if (!st)
        st = db_value(&w->db, &final, 0, err, "SELECT max(seq) FROM batches WHERE state = ?", "t",
                      batch_state_name(BATCH_FINAL));
    *all = true;
    for (uint64_t seq = final + 1; !st && *all && seq <= head->seq; seq++) {
        uint8_t hash[32];
        bool is_open = seq > settled.seq;
        st = view_batch_hash(&w->view, "latest", seq, hash, err);
        if (!st)
            st = is_known(w, seq, hash, all, err);
        if (!st && !*all)
            st = from_archive(w, seq, hash, is_open, all, err);
        if (!st && !*all && stores_fetch_batch(w, seq, hash, NULL) == STATUS_OK)
            st = from_archive(w, seq, hash, is_open, all, err);
        if (!st && !*all)
            st = from_event(w, seq, hash, is_open, all, err);
    }
    return st;
}

enum status batches_adopt(struct worker *w, struct errtext *err)
{
    struct view_head head;
    uint64_t ours = 0;
    bool all = false;
    enum status st = view_head(&w->view, "latest", &head, err);
    if (!st)
        st = adopt_ledgers(w, &head, &all, err);
    while (!st && all) {
        st = db_value(&w->db, &ours, 0, err, "SELECT max(seq) FROM batches", "");
        if (!st)
            st = from_archive(w, MAX(ours, head.seq) + 1, NULL, true, &all, err);
    }
    return st;
}
