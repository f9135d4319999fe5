/* Epochs. One at a time, one state (enum epoch_state) per transaction.
 *
 * A planned or computed epoch whose e' is vetoed meanwhile is dropped and planned anew. */
#include "chain_client/eth/keccak.h"
#include "chain_client/settle/breakdown.h"
#include "chain_client/settle/compute.h"
#include "chain_client/settle/epochs_impl.h"
#include "chain_client/settle/events.h"
#include "chain_client/settle/faults.h"
#include "chain_client/settle/owner_fetch.h"
#include "chain_client/settle/trouble.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define NOTE_NS     60000000000ull
#define WINDOWS_MAX 64 /* looked at in one step */

void epochs_note(struct worker *w, const char *what)
{
    if (clock_mono_ns() < w->epoch_note_ns)
        return;
    w->epoch_note_ns = clock_mono_ns() + NOTE_NS;
    log_warn("epoch", "%s", what);
}

/* ---- rows ---- */

static enum status load_newest(struct worker *w, struct epoch_plan *p, struct errtext *err)
{
    struct db_rows q;
    *p = (struct epoch_plan){0};
    enum status st =
        db_query(&w->db, &q, err,
                 "SELECT epoch, previous, paid_from, paid, evidence, prev_root, root,"
                 " manifest, total, leaves, state, planned_block FROM epochs ORDER BY epoch"
                 " DESC LIMIT 1",
                 "");
    if (!st)
        st = db_next(&q, err);
    if (st) /* p->epoch 0: there is none yet */
        return st == STATUS_NOT_FOUND ? STATUS_OK : st;
    p->epoch = db_u64(&q, 0);
    p->previous = db_u64(&q, 1);
    p->paid_from = db_u64(&q, 2);
    p->paid = db_u64(&q, 3);
    p->evidence = db_u64(&q, 4);
    db_bytes(&q, 5, p->prev_root, 32);
    db_bytes(&q, 6, p->root, 32);
    db_bytes(&q, 7, p->manifest, 32);
    p->total = db_amount(&q, 8);
    p->leaves = (uint32_t)db_u64(&q, 9);
    st = epoch_state_get(&p->state, &q, 10, err);
    p->planned_block = db_u64(&q, 11);
    db_done(&q);
    return st;
}

enum status epochs_set_state(struct worker *w, uint64_t epoch, enum epoch_state state,
                             struct errtext *err)
{
    log_info("epoch", "epoch %" PRIu64 ": %s", epoch, epoch_state_name(state));
    return db_run(&w->db, err, "UPDATE epochs SET state = ? WHERE epoch = ?", "tu",
                  epoch_state_name(state), epoch);
}

enum status epochs_drop(struct worker *w, uint64_t epoch, struct errtext *err)
{
    log_warn("epoch", "epoch %" PRIu64 ": the one before it was vetoed; planned anew", epoch);
    enum status st = db_begin(&w->db, err);
    if (st)
        return st;
    st = db_run(&w->db, err, "DELETE FROM cum WHERE epoch = ?", "u", epoch);
    if (!st)
        st = db_run(&w->db, err, "DELETE FROM attestations WHERE epoch = ?", "u", epoch);
    if (!st)
        st = breakdown_drop(&w->db, epoch, err);
    if (!st)
        st = db_run(&w->db, err, "DELETE FROM epochs WHERE epoch = ?", "u", epoch);
    return db_end(&w->db, st, err);
}

static enum status put_cum(struct worker *w, uint64_t epoch, const struct reward_account *account,
                           size_t count, struct errtext *err)
{
    enum status st = db_run(&w->db, err, "DELETE FROM cum WHERE epoch = ?", "u", epoch);
    for (size_t i = 0; i < count && !st; i++)
        st = db_run(&w->db, err, "INSERT INTO cum VALUES (?, ?, ?, ?)", "uubn", epoch, (uint64_t)i,
                    account[i].payee, (size_t)20, account[i].cumulative);
    return st;
}

/* ---- planning ---- */

/* W counts from closedAt, which its sender wrote, and from the block that took the commit, which
 * nobody did: attestors refuse what is younger by either. */
static enum status is_ripe(struct worker *w, uint64_t seq, const struct rpc_block *now, bool *ripe,
                           struct errtext *err)
{
    uint8_t hash[32];
    uint64_t number = 0;
    char tag[RPC_TAG_BYTES];
    struct rpc_block commit = {.number = 0};
    enum status st = view_batch_hash(&w->view, "finalized", seq, hash, err);
    if (!st)
        st = events_commit_block(&w->view, seq, hash, now->number, &number, err);
    rpc_tag(tag, number);
    if (!st)
        st = rpc_block(w->rpc, tag, &commit, err);
    *ripe = !st && commit.timestamp + w->vault.wait <= now->timestamp;
    return st;
}

/* The newest batch that may be paid: final, W past. */
static enum status choose_paid(struct worker *w, struct epoch_plan *p, u128 total_before,
                               const struct rpc_block *now, struct errtext *err)
{
    struct db_rows q;
    bool ripe = false;
    if (now->timestamp < w->vault.wait + 1)
        return STATUS_OK;
    enum status st =
        db_query(&w->db, &q, err,
                 "SELECT seq, cum_fee FROM batches WHERE state = ? AND seq > ? AND seq <= ?"
                 " AND closed_at <= ? ORDER BY seq DESC",
                 "tuuu", batch_state_name(BATCH_FINAL), p->paid_from, p->evidence,
                 now->timestamp - MAX(w->vault.wait, 1u));
    while (!st && (st = db_next(&q, err)) == STATUS_OK) {
        u128 total = db_amount(&q, 1) - w->vault.start_cum_fee;
        if (total <= total_before)
            break; /* nothing was earned since: an epoch needs money */
        st = is_ripe(w, db_u64(&q, 0), now, &ripe, err);
        if (st || !ripe)
            continue;
        p->paid = db_u64(&q, 0);
        p->total = total;
        break;
    }
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

/* E is the ledger's last batch in finalized block `now`, and all up to it are ours; 0 while this
 * database is behind that block. Attestors ask for exactly that. */
static enum status last_final(struct worker *w, const struct rpc_block *now, uint64_t *seq,
                              struct errtext *err)
{
    uint64_t open = 0, last = 0;
    char tag[RPC_TAG_BYTES];
    struct view_head head = {.seq = 0};
    rpc_tag(tag, now->number);
    enum status st = view_head(&w->view, tag, &head, err);
    if (!st)
        st = db_value(&w->db, &last, 0, err, "SELECT max(seq) FROM batches WHERE state = ?", "t",
                      batch_state_name(BATCH_FINAL));
    if (!st)
        st = db_value(&w->db, &open, last + 1, err, "SELECT min(seq) FROM batches WHERE state <> ?",
                      "t", batch_state_name(BATCH_FINAL));
    *seq = MIN(last, open - 1) == head.seq ? head.seq : 0;
    return st;
}

static enum status plan(struct worker *w, const struct view_money *m, struct errtext *err)
{
    struct epoch_plan p = {
        .epoch = m->last_epoch + 1, .previous = m->last_live, .paid_from = w->vault.start_seq};
    struct view_epoch before = {.total = 0};
    struct rpc_block block;
    uint64_t planned_at = 0, now = w->chain_s;
    enum status st =
        db_value(&w->db, &planned_at, 0, err, "SELECT max(planned_at) FROM epochs", "");
    if (st || (planned_at && now < planned_at + w->set->epoch_seconds))
        return st;
    if (p.previous)
        st = view_epoch(&w->view, "finalized", p.previous, &before, err);
    if (p.previous)
        p.paid_from = before.batch_paid;
    if (!st)
        st = rpc_block(w->rpc, "finalized", &block, err);
    if (!st)
        st = last_final(w, &block, &p.evidence, err);
    if (!st && p.evidence)
        st = choose_paid(w, &p, before.total, &block, err);
    if (st || !p.paid)
        return st;
    log_info("epoch",
             "epoch %" PRIu64 ": pays batches %" PRIu64 " to %" PRIu64 ", evidence to %" PRIu64,
             p.epoch, p.paid_from + 1, p.paid, p.evidence);
    return db_run(
        &w->db, err,
        "INSERT INTO epochs (epoch, state, previous, prev_root, paid_from, paid, evidence,"
        " planned_at, planned_block) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        "utubuuuuu", p.epoch, epoch_state_name(EPOCH_PLANNED), p.previous, before.root, (size_t)32,
        p.paid_from, p.paid, p.evidence, now, block.number);
}

/* ---- computing ---- */

struct epoch_draft {
    struct compute compute;
    struct snapshot snap;
    struct archive_accounts prev;
    struct owner_lists owners;
    struct compute_result result;
    struct buf manifest_text;
    struct tree_node root;
    struct breakdown breakdown;
};

static void draft_fini(struct epoch_draft *k)
{
    compute_result_fini(&k->result);
    owner_lists_fini(&k->owners);
    snapshot_fini(&k->snap);
    archive_accounts_fini(&k->prev);
    compute_fini(&k->compute);
    breakdown_fini(&k->breakdown);
    buf_fini(&k->manifest_text);
}

/* The files are of the batches that the chain has. */
static enum status check_files(struct worker *w, const struct compute *c, struct errtext *err)
{
    enum status st = STATUS_OK;
    for (size_t i = 0; i < c->batch_count && !st; i++) {
        uint8_t hash[32];
        uint64_t seq = c->batch[i].header.seq;
        st = view_batch_hash(&w->view, "finalized", seq, hash, err);
        if (!st && memcmp(hash, c->batch[i].hash, 32) != 0)
            st = err_set(err, STATUS_CONFLICT,
                         "archive batch %" PRIu64 " is not the one on the ledger", seq);
    }
    return st;
}

static enum status load_previous(struct worker *w, const struct epoch_plan *p,
                                 struct epoch_draft *k, struct errtext *err)
{
    struct tree_node root;
    if (!p->previous)
        return STATUS_OK;
    enum status st = archive_accounts_read(&k->prev, w->set->archive_dir, p->previous, err);
    if (!st)
        st = compute_root(&root, &w->dep, k->prev.account, k->prev.count, err);
    if (!st && memcmp(root.hash, p->prev_root, 32) != 0)
        st = err_set(err, STATUS_CONFLICT,
                     "archive epoch %" PRIu64 ": accounts.json does not have the vault's root",
                     p->previous);
    return st;
}

static enum status check_identities(struct worker *w, const struct epoch_plan *p,
                                    const struct epoch_draft *k, struct errtext *err)
{
    const struct compute *c = &k->compute;
    const struct reward_result *r = &k->result.reward;
    const struct batch_header *paid = &c->batch[p->paid - p->paid_from - 1].header;
    u128 fees = 0;
    for (uint64_t i = 0; i < p->paid - p->paid_from; i++)
        fees += c->batch[i].header.fee_sum;
    if (fees != r->fee_sum || k->root.sum != r->total ||
        r->total + w->vault.start_cum_fee != paid->cum_fee ||
        r->stats.required != r->stats.scored + r->stats.missing)
        return err_set(err, STATUS_CONFLICT,
                       "epoch %" PRIu64
                       ": an identity of SPEC 5 does not hold; nothing is proposed",
                       p->epoch);
    return STATUS_OK;
}

/* An epoch whose owners are nowhere waits, and says whose. */
static enum status take_owners(struct worker *w, const struct epoch_plan *p, struct epoch_draft *k,
                               struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    enum status st = owner_lists_fetch(&k->owners, w, &k->snap, p->previous, &why);
    if (st == STATUS_BUSY) {
        enum status told = trouble_set(&w->db, TROUBLE_OWNERS, p->epoch, why.text, err);
        if (told)
            return told;
    }
    if (st)
        return err_set(err, st, "%s", why.text);
    return trouble_clear(&w->db, TROUBLE_OWNERS, p->epoch, err);
}

static enum status recompute(struct worker *w, const struct epoch_plan *p, struct epoch_draft *k,
                             struct errtext *err)
{
    struct compute_range range = {.archive_dir = w->set->archive_dir,
                                  .place = {.chain_id = w->dep.chain_id},
                                  .paid_from = p->paid_from,
                                  .paid = p->paid,
                                  .evidence = p->evidence};
    memcpy(range.place.ledger, w->dep.ledger, 20);
    enum status st = compute_load(&k->compute, &range, err);
    if (!st)
        st = breakdown_init(&k->breakdown, err);
    k->compute.on_share = breakdown_add;
    k->compute.on_share_arg = &k->breakdown;
    if (!st)
        st = check_files(w, &k->compute, err);
    if (!st)
        st = load_previous(w, p, k, err);
    if (!st)
        st = snapshot_read(&k->snap, &k->compute, &w->view, err);
    if (!st)
        st = take_owners(w, p, k, err);
    if (!st)
        st = compute_reward(&k->result, &k->compute, p->epoch, &k->snap, &k->owners, &k->prev, err);
    const struct reward_result *r = &k->result.reward;
    if (!st)
        st = compute_root(&k->root, &w->dep, r->account, r->account_count, err);
    return st ? st : check_identities(w, p, k, err);
}

static enum status publish(struct worker *w, struct epoch_plan *p, struct epoch_draft *k,
                           struct errtext *err)
{
    const struct compute_result *r = &k->result;
    char name[ARCHIVE_NAME_BYTES];
    struct epoch_header h = {.epoch = p->epoch,
                             .total = r->reward.total,
                             .leaves = (uint32_t)r->reward.account_count,
                             .batch_paid = p->paid,
                             .batch_evidence = p->evidence};
    memcpy(h.root, k->root.hash, 32);
    memcpy(h.prev_root, p->prev_root, 32);
    struct archive_file file[6];
    compute_files(file, r);
    struct archive_epoch e = {.chain_id = w->dep.chain_id,
                              .at = k->snap.at,
                              .previous = p->previous,
                              .paid_from = p->paid_from,
                              .header = &h,
                              .stats = &r->reward.stats};
    memcpy(e.vault, w->dep.vault, 20);
    compute_files(e.file, r);
    archive_put_epoch_manifest(&k->manifest_text, &e);
    if (k->manifest_text.failed)
        return err_set(err, STATUS_NO_MEMORY, "epoch %" PRIu64 ": no memory for its files",
                       p->epoch);
    file[5] = (struct archive_file){"manifest.json", k->manifest_text.data, k->manifest_text.len};
    keccak_256(p->manifest, file[5].data, file[5].len);
    archive_epoch_name(name, p->epoch);
    struct archive_folder folder = {w->set->archive_dir, name, file, ARRAY_COUNT(file), true};
    enum status st = archive_publish(&folder, err);
    return st ? st : stores_publish(w, &folder, p->manifest, err);
}

static enum status store(struct worker *w, const struct epoch_plan *p, const struct epoch_draft *k,
                         struct errtext *err)
{
    const struct reward_result *r = &k->result.reward;
    enum status st = db_begin(&w->db, err);
    if (st)
        return st;
    st = db_run(&w->db, err,
                "UPDATE epochs SET state = ?, root = ?, total = ?, leaves = ?, manifest = ?,"
                " required = ?, missing = ? WHERE epoch = ?",
                "tbnubuuu", epoch_state_name(EPOCH_COMPUTED), k->root.hash, (size_t)32, r->total,
                (uint64_t)r->account_count, p->manifest, (size_t)32, r->stats.required,
                r->stats.missing, p->epoch);
    if (!st)
        st = put_cum(w, p->epoch, r->account, r->account_count, err);
    if (!st)
        st = breakdown_store(&k->breakdown, &k->snap, &w->db, p->epoch, err);
    st = db_end(&w->db, st, err);
    if (!st)
        log_info("epoch",
                 "epoch %" PRIu64 ": %zu accounts, %" PRIu64 " required, %" PRIu64 " missing",
                 p->epoch, r->account_count, r->stats.required, r->stats.missing);
    return st;
}

static enum status compute(struct worker *w, struct epoch_plan *p, struct errtext *err)
{
    struct epoch_draft k = {0};
    buf_init(&k.manifest_text, ARCHIVE_TEXT_BYTES_MAX);
    enum status st = recompute(w, p, &k, err);
    if (!st)
        st = publish(w, p, &k, err);
    if (!st)
        st = faults_tell(w, p->epoch, &k.compute, err);
    if (!st)
        st = store(w, p, &k, err);
    draft_fini(&k);
    if ((st == STATUS_CORRUPT || st == STATUS_NOT_FOUND) && !w->db.failed) {
        enum status mended = scrub_range(w, p->paid_from + 1, p->evidence, NULL);
        return mended ? mended : st; /* tried again with what is there then */
    }
    if (st == STATUS_BUSY) { /* a beacon, or T, is not final yet; or owners are nowhere */
        epochs_note(w, err ? err->text : "waiting for a final block");
        err_clear(err);
        return STATUS_OK;
    }
    return st;
}

/* ---- after finality ---- */

static enum status follow_window(struct worker *w, uint64_t epoch, uint64_t now,
                                 struct errtext *err)
{
    struct view_epoch found;
    enum status st = view_epoch(&w->view, "finalized", epoch, &found, err);
    if (!st && found.disabled)
        return epochs_set_state(w, epoch, EPOCH_VETOED, err);
    if (!st && now >= found.active_at)
        return epochs_set_state(w, epoch, EPOCH_ACTIVE, err);
    return st;
}

/* Of every epoch in its window, not of the newest alone: a window may be longer than the time
 * between two epochs, and a veto disables all after it. */
static enum status follow_windows(struct worker *w, struct errtext *err)
{
    struct rpc_block last;
    struct db_rows q;
    uint64_t epoch[WINDOWS_MAX];
    size_t count = 0;
    enum status st =
        db_query(&w->db, &q, err, "SELECT epoch FROM epochs WHERE state = ? ORDER BY epoch LIMIT ?",
                 "tu", epoch_state_name(EPOCH_FINAL), (uint64_t)WINDOWS_MAX);
    while (!st && (st = db_next(&q, err)) == STATUS_OK)
        epoch[count++] = db_u64(&q, 0);
    db_done(&q);
    st = st == STATUS_NOT_FOUND ? STATUS_OK : st;
    if (!st && count)
        st = rpc_block(w->rpc, "finalized", &last, err);
    for (size_t i = 0; i < count && !st; i++)
        st = follow_window(w, epoch[i], last.timestamp, err);
    return st;
}

enum status epochs_step(struct worker *w, struct errtext *err)
{
    struct epoch_plan p;
    struct view_money final;
    enum status st = follow_windows(w, err);
    if (!st)
        st = load_newest(w, &p, err);
    if (!st)
        st = epochs_quorum(w, err);
    if (!st)
        st = view_money(&w->view, "finalized", &final, err);
    if (st)
        return st;
    if (!p.epoch) /* this will be the first */
        return final.last_epoch ? foreign_epochs(w, 0, final.last_epoch, err)
                                : plan(w, &final, err);
    if (p.state == EPOCH_PLANNED)
        return final.last_live != p.previous ? epochs_drop(w, p.epoch, err) : compute(w, &p, err);
    if (p.state > EPOCH_PLANNED && p.state < EPOCH_FINAL)
        return epochs_propose(w, &p, &final, err);
    return final.last_epoch > p.epoch ? foreign_epochs(w, p.epoch, final.last_epoch, err)
                                      : plan(w, &final, err);
}

/* ---- a database that is behind the chain ---- */

/* The archive's accounts, when they have the vault's root. */
static enum status read_accounts(struct worker *w, uint64_t epoch, const uint8_t expected[32],
                                 struct archive_accounts *accounts, bool *good, struct errtext *err)
{
    struct tree_node root = {.sum = 0};
    enum status st = archive_accounts_read(accounts, w->set->archive_dir, epoch, err);
    if (!st)
        st = compute_root(&root, &w->dep, accounts->account, accounts->count, err);
    *good = !st && memcmp(root.hash, expected, 32) == 0;
    if (st != STATUS_NOT_FOUND)
        return st;
    err_clear(err);
    return STATUS_OK;
}

enum status epochs_adopt_one(struct worker *w, uint64_t epoch, bool *adopted, struct errtext *err)
{
    struct view_epoch e, before = {.total = 0};
    struct archive_accounts accounts = {0};
    enum status st = view_epoch(&w->view, "finalized", epoch, &e, err);
    if (!st && e.previous)
        st = view_epoch(&w->view, "finalized", e.previous, &before, err);
    *adopted = !st && e.disabled;
    if (!st && !e.disabled)
        st = read_accounts(w, epoch, e.root, &accounts, adopted, err);
    if (st || !*adopted) {
        archive_accounts_fini(&accounts);
        return st;
    }
    st = db_begin(&w->db, err);
    if (!st) {
        st = db_run(
            &w->db, err,
            "INSERT OR REPLACE INTO epochs (epoch, state, previous, prev_root, paid_from,"
            " paid, evidence, planned_at, root, total, leaves, active_at) VALUES (?, ?, ?, ?,"
            " ?, ?, ?, 0, ?, ?, ?, ?)",
            "utubuuubnuu", epoch, epoch_state_name(e.disabled ? EPOCH_VETOED : EPOCH_FINAL),
            e.previous, before.root, (size_t)32,
            e.previous ? before.batch_paid : w->vault.start_seq, e.batch_paid, e.batch_evidence,
            e.root, (size_t)32, e.total, (uint64_t)e.leaves, e.active_at);
        if (!st)
            st = put_cum(w, epoch, accounts.account, accounts.count, err);
        st = db_end(&w->db, st, err);
    }
    if (!st)
        log_info("epoch", "epoch %" PRIu64 ": adopted from chain and archive", epoch);
    archive_accounts_fini(&accounts);
    return st;
}

enum status epochs_adopt(struct worker *w, struct errtext *err)
{
    struct view_money m;
    uint64_t ours = 0;
    enum status st = view_money(&w->view, "finalized", &m, err);
    if (!st)
        st = db_value(&w->db, &ours, 0, err, "SELECT max(epoch) FROM epochs", "");
    return st ? st : foreign_epochs(w, ours, m.last_epoch, err);
}
