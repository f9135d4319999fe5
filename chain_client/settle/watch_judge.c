/* Is this commit, or this proposal, what the records give? The same code as the audit's, on the
 * watcher's own copy. What cannot be computed for want of data is no verdict. */
#include "chain_client/settle/watch_impl.h"
#include "server/base/check.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <string.h>

static const char *kind_of(const struct watch_subject *s)
{
    return s->is_epoch ? "epoch" : "batch";
}

enum status watch_row(struct guard *g, const struct watch_subject *s, enum watch_verdict *v,
                      uint64_t *since, struct errtext *err)
{
    struct db_rows q;
    enum status st =
        db_query(&g->w.db, &q, err,
                 "SELECT verdict, since FROM watched WHERE kind = ? AND number = ? AND id = ?",
                 "tub", kind_of(s), s->number, s->id, (size_t)32);
    if (!st)
        st = db_next(&q, err);
    if (!st) {
        *v = strcmp(db_text(&q, 0), "right") == 0   ? VERDICT_RIGHT
             : strcmp(db_text(&q, 0), "wrong") == 0 ? VERDICT_WRONG
             : strcmp(db_text(&q, 0), "split") == 0 ? VERDICT_SPLIT
                                                    : VERDICT_UNSHOWN;
        *since = *v == VERDICT_SPLIT ? 0 : db_u64(&q, 1);
    }
    db_done(&q);
    return st;
}

/* ---- what there is ---- */

struct proposal_match {
    const uint8_t *root;
    struct event_proposal e;
    bool found;
};

static enum status match_root(void *arg, const struct event_proposal *e, struct errtext *err)
{
    struct proposal_match *m = arg;
    (void)err;
    if (memcmp(e->header.root, m->root, 32) == 0) {
        m->e = *e;
        m->found = true;
    }
    return STATUS_OK;
}

static enum status read_epoch(struct guard *g, struct watch_subject *s, bool *there,
                              struct errtext *err)
{
    static const uint8_t zero[32];
    struct view_epoch e, before = {.total = 0};
    struct rpc_block last;
    enum status st = view_epoch(&g->w.view, "finalized", s->number, &e, err);
    *there = !st && !e.disabled && memcmp(e.root, zero, 32) != 0;
    if (st || !*there)
        return st;
    struct proposal_match m = {.root = e.root};
    st = rpc_block(g->w.rpc, "finalized", &last, err);
    struct event_range range = {
        .from = g->w.dep.start_block, .to = last.number, .number = s->number};
    if (!st)
        st = events_proposals(&g->w.view, &range, match_root, &m, err);
    if (!st && !m.found)
        st = err_set(err, STATUS_BUSY, "epoch %" PRIu64 ": the node shows no Proposed of it yet",
                     s->number);
    if (!st && e.previous)
        st = view_epoch(&g->w.view, "finalized", e.previous, &before, err);
    s->header = m.e.header;
    memcpy(s->header.prev_root, before.root, 32);
    s->previous = e.previous;
    s->active_at = e.active_at;
    s->block = m.e.block;
    epoch_digest(s->id, &s->header, g->w.dep.chain_id, g->w.dep.vault);
    return st;
}

enum status watch_subject_read(struct guard *g, bool is_epoch, uint64_t number,
                               struct watch_subject *s, bool *there, struct errtext *err)
{
    static const uint8_t zero[32];
    *s = (struct watch_subject){.is_epoch = is_epoch, .number = number};
    if (is_epoch)
        return read_epoch(g, s, there, err);
    enum status st = view_batch_hash(&g->w.view, "finalized", number, s->id, err);
    *there = !st && memcmp(s->id, zero, 32) != 0;
    return st;
}

/* ---- batches ---- */

/* A fault of what a lane signed stands in a right commit: only what nobody signed is wrong. */
static enum status audit_it(struct guard *g, uint64_t seq, enum watch_verdict *v,
                            struct errtext *why)
{
    struct audit_report r;
    struct audit_options opt = {
        .archive_dir = g->set->mirror_dir, .rpc = g->w.rpc, .deployment = &g->w.dep};
    enum status st = audit_alone(&r, &opt, seq, why);
    *v = r.finding_count > r.fault_count ? VERDICT_WRONG : VERDICT_RIGHT;
    if (!st && *v == VERDICT_WRONG)
        err_set(why, STATUS_OK, "%s", r.difference);
    audit_report_fini(&r);
    return st;
}

enum status watch_judge_batch(struct guard *g, const struct watch_subject *s, enum watch_verdict *v,
                              struct errtext *why)
{
    enum mirror_found found;
    *v = VERDICT_UNSHOWN;
    enum status st = guard_batch(g, s->number, &found, why);
    if (st)
        return st;
    if (found == MIRROR_WHOLE)
        return audit_it(g, s->number, v, why);
    *v = found == MIRROR_OTHER ? VERDICT_WRONG : VERDICT_UNSHOWN;
    return STATUS_OK;
}

/* ---- epochs ---- */

/* The verdicts on the batches that it pays and whose evidence it counts. */
static enum status judge_ground(struct guard *g, const struct watch_subject *s, uint64_t from,
                                enum watch_verdict *v, struct errtext *why)
{
    enum status st = STATUS_OK;
    *v = VERDICT_RIGHT;
    for (uint64_t seq = from + 1; seq <= s->header.batch_evidence && !st; seq++) {
        struct watch_subject b;
        enum watch_verdict of = VERDICT_UNSHOWN;
        uint64_t since;
        bool there;
        st = watch_subject_read(g, false, seq, &b, &there, why);
        if (!st && there)
            st = watch_row(g, &b, &of, &since, why);
        if (st == STATUS_NOT_FOUND)
            st = STATUS_OK;
        if (st || of == VERDICT_RIGHT || *v == VERDICT_WRONG)
            continue;
        *v = of;
        err_clear(why);
        err_set(why, STATUS_OK, "it rests on batch %" PRIu64 ", which is %s", seq,
                of == VERDICT_WRONG ? "forged" : "not shown");
    }
    return st;
}

/* W, by the blocks: closedAt is the committer's own word. */
static enum status is_early(struct guard *g, const struct watch_subject *s, bool *early,
                            struct errtext *why)
{
    struct rpc_block commit, proposal;
    struct guard_commit c;
    char tag[RPC_TAG_BYTES];
    *early = false;
    enum status st = guard_commit_read(g, s->header.batch_paid, &c, why);
    rpc_tag(tag, c.e.block);
    if (!st)
        st = rpc_block(g->w.rpc, tag, &commit, why);
    rpc_tag(tag, s->block);
    if (!st)
        st = rpc_block(g->w.rpc, tag, &proposal, why);
    *early = !st && commit.timestamp + g->w.vault.wait > proposal.timestamp;
    guard_commit_fini(&c);
    return st;
}

/* The epoch's header again; what could not be computed is no verdict. */
static enum status recompute(struct guard *g, const struct watch_subject *s, enum watch_verdict *v,
                             struct errtext *why)
{
    struct audit_report r;
    struct audit_candidate c = {.header = &s->header, .previous = s->previous};
    struct audit_options opt = {
        .archive_dir = g->set->mirror_dir, .rpc = g->w.rpc, .deployment = &g->w.dep};
    uint8_t digest[32];
    enum status st = audit_candidate(&r, &opt, &c, why);
    epoch_digest(digest, &c.found, g->w.dep.chain_id, g->w.dep.vault);
    bool computed = c.found.epoch == s->number;
    bool shown = computed && (!r.owners_absent || g->set->owners_absent);
    bool same = memcmp(digest, s->id, 32) == 0;
    *v = computed && !same ? VERDICT_WRONG : shown ? VERDICT_RIGHT : VERDICT_UNSHOWN;
    if (!st && *v != VERDICT_RIGHT)
        err_set(why, STATUS_OK, "%s",
                r.difference[0] ? r.difference
                : same          ? "the archive lacks a datanet's owners (--owners-absent)"
                                : "the recomputed header is another one");
    audit_report_fini(&r);
    return st;
}

enum status watch_judge_epoch(struct guard *g, const struct watch_subject *s, enum watch_verdict *v,
                              struct errtext *why)
{
    struct view_epoch before = {.batch_paid = g->w.vault.start_seq};
    enum mirror_found found = MIRROR_WHOLE;
    struct errtext ignored = ERRTEXT_INIT;
    bool early = false;
    enum status st = STATUS_OK;
    if (s->previous)
        st = view_epoch(&g->w.view, "finalized", s->previous, &before, why);
    if (!st)
        st = judge_ground(g, s, before.batch_paid, v, why);
    if (st || *v != VERDICT_RIGHT)
        return st;
    st = is_early(g, s, &early, why);
    if (!st && early) {
        *v = VERDICT_WRONG;
        err_set(why, STATUS_OK, "proposed sooner than W after the commit of its last batch");
        return st;
    }
    if (!st && before.batch_paid)
        st = guard_batch(g, before.batch_paid, &found, why);
    if (!st &&
        (found != MIRROR_WHOLE || (s->previous && mirror_epoch(&g->mirror, s->previous, why)))) {
        *v = VERDICT_UNSHOWN;
        return STATUS_OK;
    }
    if (!st && mirror_epoch(&g->mirror, s->number, &ignored)) /* no word of it is needed */
        log_debug("watch", "epoch %" PRIu64 ": %s", s->number, ignored.text);
    return st ? st : recompute(g, s, v, why);
}
