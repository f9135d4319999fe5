/* What was final and is no longer: rows go back to the state from which the chain is asked again.
 * Nothing is computed anew for a batch: its files and its hash stay, so it is the same batch. */
#include "chain_client/settle/worker.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <string.h>

static enum status newest_final(struct worker *w, uint64_t *seq, uint8_t hash[32],
                                struct errtext *err)
{
    struct db_rows q;
    *seq = 0;
    enum status st = db_query(&w->db, &q, err,
                              "SELECT seq, hash FROM batches WHERE state = ? ORDER BY seq DESC"
                              " LIMIT 1",
                              "t", batch_state_name(BATCH_FINAL));
    if (!st)
        st = db_next(&q, err);
    if (!st) {
        *seq = db_u64(&q, 0);
        db_bytes(&q, 1, hash, 32);
    }
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static enum status undo_batch(struct worker *w, uint64_t seq, struct errtext *err)
{
    log_error("batch",
              "batch %" PRIu64
              " was final and is not on the ledger any more: it is committed again when its place "
              "is free",
              seq);
    enum status st = db_begin(&w->db, err);
    if (st)
        return st;
    st = db_run(&w->db, err,
                "UPDATE batches SET state = ?, tx = NULL, final_at = NULL WHERE seq = ?", "tu",
                batch_state_name(BATCH_ARCHIVED), seq);
    if (!st)
        st = db_run(&w->db, err,
                    "UPDATE lanes SET final = b.first - 1 FROM batch_lanes b WHERE b.seq = ? AND"
                    " b.lane = lanes.lane",
                    "u", seq);
    st = db_end(&w->db, st, err);
    return st ? st : lanes_load(w, err);
}

static enum status walk_batches(struct worker *w, struct errtext *err)
{
    uint8_t ours[32], found[32];
    uint64_t seq;
    for (;;) {
        enum status st = newest_final(w, &seq, ours, err);
        if (st || !seq)
            return st;
        st = view_batch_hash(&w->view, "finalized", seq, found, err);
        if (st || memcmp(found, ours, 32) == 0)
            return st;
        st = undo_batch(w, seq, err);
        if (st)
            return st;
    }
}

static enum status walk_epochs(struct worker *w, struct errtext *err)
{
    struct view_money m;
    enum status st = view_money(&w->view, "finalized", &m, err);
    if (st)
        return st;
    return db_run(&w->db, err,
                  "UPDATE epochs SET state = CASE WHEN manifest IS NULL THEN ? ELSE ? END, tx ="
                  " NULL, active_at = NULL WHERE epoch > ? AND state IN (?, ?, ?)",
                  "ttuttt", epoch_state_name(EPOCH_PLANNED), epoch_state_name(EPOCH_COMPUTED),
                  m.last_epoch, epoch_state_name(EPOCH_FINAL), epoch_state_name(EPOCH_ACTIVE),
                  epoch_state_name(EPOCH_VETOED));
}

enum status walk_back(struct worker *w, bool reorganised, struct errtext *err)
{
    enum status st = walk_batches(w, err);
    return st || !reorganised ? st : walk_epochs(w, err);
}

enum status walk_back_rows(struct db *db, uint64_t seq, struct errtext *err)
{
    enum status st =
        db_run(db, err,
               "UPDATE lanes SET closed = min(closed, b.first - 1), final = min(final, b.first -"
               " 1) FROM (SELECT lane, min(first) AS first FROM batch_lanes WHERE seq >= ? GROUP"
               " BY lane) b WHERE b.lane = lanes.lane",
               "u", seq);
    if (!st)
        st = db_run(db, err, "DELETE FROM batch_lanes WHERE seq >= ?", "u", seq);
    if (!st)
        st = db_run(db, err, "DELETE FROM batches WHERE seq >= ?", "u", seq);
    if (!st)
        st = db_run(db, err, "DELETE FROM intents WHERE kind = 'commit' AND key >= ? AND state = ?",
                    "ut", seq, intent_state_name(INTENT_OPEN));
    return st;
}

enum status walk_back_forget(struct db *db, uint64_t seq, struct errtext *err)
{
    uint64_t count = 0;
    enum status st =
        db_value(db, &count, 0, err, "SELECT count(*) FROM batches WHERE seq >= ?", "u", seq);
    if (!st && !count)
        st = err_set(err, STATUS_NOT_FOUND, "batch %" PRIu64 " is not in this worker's state", seq);
    if (!st)
        st = db_begin(db, err);
    return st ? st : db_end(db, walk_back_rows(db, seq, err), err);
}
