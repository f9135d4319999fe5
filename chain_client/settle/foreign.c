/* What stands on the chain and is not ours: a batch that somebody else committed, an epoch that
 * somebody else proposed. Either a key was stolen, or a second worker has one. It is said, and what
 * to do, and waited for: the guardian takes it back (residual-settle watch), and ours is raised
 * again by itself. What another worker published in the archive is adopted instead. */
#include "chain_client/settle/epochs_impl.h"
#include "server/base/check.h"

#include <inttypes.h>
#include <string.h>

/* ---- batches ---- */

/* Our own batch of this number, or the archive's. */
static enum status knows_batch(struct worker *w, uint64_t seq, const uint8_t hash[32], bool *known,
                               struct errtext *err)
{
    uint64_t count;
    struct archive_batch b;
    enum status st =
        db_value(&w->db, &count, 0, err, "SELECT count(*) FROM batches WHERE seq = ? AND hash = ?",
                 "ub", seq, hash, (size_t)32);
    *known = !st && count;
    if (st || *known)
        return st;
    if (archive_batch_read(&b, w->set->archive_dir, seq, NULL) == STATUS_OK) {
        *known = memcmp(b.hash, hash, 32) == 0;
        archive_batch_fini(&b);
    }
    return STATUS_OK;
}

/* Numbers above the last batch of ours that is final: the rest was compared when it became so. */
enum status foreign_batches(struct worker *w, struct errtext *err)
{
    struct view_head head;
    uint64_t final = 0, first = 0, count = 0;
    enum status st = view_head(&w->view, "latest", &head, err);
    if (!st)
        st = db_value(&w->db, &final, 0, err, "SELECT max(seq) FROM batches WHERE state = ?", "t",
                      batch_state_name(BATCH_FINAL));
    for (uint64_t seq = final + 1; !st && seq <= head.seq; seq++) {
        uint8_t hash[32];
        bool known = true;
        st = view_batch_hash(&w->view, "latest", seq, hash, err);
        if (!st)
            st = knows_batch(w, seq, hash, &known, err);
        if (st || known)
            continue;
        count++;
        first = first ? first : seq;
    }
    bool is_over = !st && w->foreign_batch && !first;
    w->foreign_batch = st ? w->foreign_batch : first;
    if (is_over) /* numbers that only the forged one claimed are no gap */
        st = lanes_load(w, err);
    if (st || !count)
        return st ? st : trouble_clear_all(&w->db, TROUBLE_BATCH_CONFLICT, err);
    return trouble_say(&w->db, TROUBLE_BATCH_CONFLICT, first, err,
                       "batch %" PRIu64 " on the ledger (and %" PRIu64
                       " more) is not this worker's, and its records are not in the archive: was "
                       "the committer's key stolen? The guardian drops it (residual-settle watch), "
                       "an admin takes COMMITTER from the key, and ours is committed again by "
                       "itself; or another worker has the key and this one is wrong: stop it and "
                       "run residual-settle resume --batch %" PRIu64,
                       first, count - 1, first);
}

/* ---- epochs ---- */

static enum status say_epoch(struct worker *w, uint64_t epoch, struct errtext *err)
{
    return trouble_say(&w->db, TROUBLE_EPOCH_CONFLICT, epoch, err,
                       "epoch %" PRIu64
                       " in the vault is not this worker's, and its accounts are not in the "
                       "archive: were the proposer's and the attestors' keys stolen? Inside its "
                       "window the guardian vetoes it (residual-settle watch), later an admin "
                       "retires it (retireEpoch); the next epoch then pays what ours would have",
                       epoch);
}

/* Ours of a number that another epoch took: its money is in the next one. */
static enum status forget_ours(struct worker *w, uint64_t epoch, struct errtext *err)
{
    enum status st = db_begin(&w->db, err);
    if (st)
        return st;
    st = db_run(&w->db, err, "DELETE FROM attestations WHERE epoch = ?", "u", epoch);
    if (!st)
        st = db_run(&w->db, err, "DELETE FROM cum WHERE epoch = ?", "u", epoch);
    if (!st)
        st = db_run(&w->db, err, "DELETE FROM epochs WHERE epoch = ?", "u", epoch);
    return db_end(&w->db, st, err);
}

enum status foreign_epochs(struct worker *w, uint64_t after, uint64_t last, struct errtext *err)
{
    enum status st = STATUS_OK;
    for (uint64_t epoch = after + 1; epoch <= last && !st; epoch++) {
        bool adopted = false;
        st = epochs_adopt_one(w, epoch, &adopted, err);
        if (!st && !adopted)
            return say_epoch(w, epoch, err);
        if (!st)
            st = trouble_clear(&w->db, TROUBLE_EPOCH_CONFLICT, epoch, err);
    }
    return st;
}

enum status foreign_replaces(struct worker *w, uint64_t epoch, struct errtext *err)
{
    struct view_epoch e;
    enum status st = view_epoch(&w->view, "finalized", epoch, &e, err);
    if (st)
        return st;
    if (!e.disabled)
        return say_epoch(w, epoch, err);
    st = forget_ours(w, epoch, err);
    return st ? st : foreign_epochs(w, epoch - 1, epoch, err);
}
