/* The guardian's eyes. Every look takes what the chain has now, not what it told before: batches
 * that no claimable epoch pays, and proposals whose window is open, each by number and hash, so
 * that a reorganisation, a restart or a second commit of one number changes nothing.
 *
 * A verdict "wrong" needs as many endpoints as nodes.h asks for, each with its own answers, and
 * then stands in the database. What nobody can show is said at once and taken for forged after
 * --grace-s. Proposals fall first: a batch that a live epoch pays cannot be dropped. */
#include "chain_client/eth/addr.h"
#include "chain_client/settle/gauges.h"
#include "chain_client/settle/roles.h"
#include "chain_client/settle/watch_impl.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <string.h>

struct watch_range {
    uint64_t batch_from, batch_to; /* from + 1 .. to */
    uint64_t epoch_from, epoch_to;
    uint64_t locked;                   /* the newest batch that a live epoch rests on */
    uint64_t block;                    /* all endpoints have it */
    uint64_t timestamp;                /* of that block */
    uint64_t wrong_batch, wrong_epoch; /* the lowest, 0: none */
};

/* ---- endpoints ---- */

static void read_from(struct guard *g, struct rpc *rpc)
{
    g->w.rpc = g->w.view.rpc = rpc;
}

/* "finalized" is this block for the time of a look; NULL: what is agreed. */
static void pin(struct guard *g, const uint64_t *block)
{
    struct nodes *n = &g->w.nodes;
    for (uint32_t i = 0; i < n->count; i++)
        rpc_pin_finalized(n->endpoint[i].rpc, block ? block : &n->final.number);
}

static uint64_t common_head(const struct nodes *n)
{
    uint64_t block = UINT64_MAX;
    for (uint32_t i = 0; i < n->count; i++)
        if (n->endpoint[i].is_good)
            block = MIN(block, n->endpoint[i].head.number);
    return block;
}

static enum status judge_here(struct guard *g, const struct watch_subject *s, enum watch_verdict *v,
                              struct errtext *why)
{
    struct watch_subject now;
    bool there = false;
    enum status st = watch_subject_read(g, s->is_epoch, s->number, &now, &there, why);
    if (!st && (!there || memcmp(now.id, s->id, 32) != 0))
        st = err_set(why, STATUS_BUSY, "%s %" PRIu64 ": the endpoints show different ones",
                     s->is_epoch ? "epoch" : "batch", s->number);
    if (st)
        return st;
    return s->is_epoch ? watch_judge_epoch(g, s, v, why) : watch_judge_batch(g, s, v, why);
}

/* One endpoint's "right" is enough; "wrong" needs agree_min of them, and nobody's "right". */
static enum status judge(struct guard *g, const struct watch_subject *s, enum watch_verdict *v,
                         struct errtext *why)
{
    struct nodes *n = &g->w.nodes;
    uint32_t wrong = 0;
    enum status st = STATUS_OK;
    *v = VERDICT_UNSHOWN;
    for (uint32_t i = 0; i < n->count && !st && wrong < n->agree_min; i++) {
        if (!n->endpoint[i].is_good)
            continue;
        err_clear(why);
        read_from(g, n->endpoint[i].rpc);
        st = judge_here(g, s, v, why);
        if (st || *v != VERDICT_WRONG)
            break;
        wrong++;
    }
    read_from(g, nodes_rpc(n));
    if (!st && wrong && wrong < n->agree_min) {
        *v = VERDICT_SPLIT;
        err_clear(why);
        err_set(why, STATUS_OK, "only %u of the endpoints find it wrong: one of them lies", wrong);
    }
    return st;
}

/* ---- verdicts ---- */

static enum status keep(struct guard *g, const struct watch_subject *s, const char *verdict,
                        const char *why, struct errtext *err)
{
    return db_run(
        &g->w.db, err,
        "INSERT INTO watched (kind, number, id, verdict, since, why) VALUES (?, ?, ?, ?,"
        " ?, ?) ON CONFLICT DO UPDATE SET since = CASE WHEN verdict = excluded.verdict THEN"
        " since ELSE excluded.since END, verdict = excluded.verdict, why = excluded.why",
        "tubtut", s->is_epoch ? "epoch" : "batch", s->number, s->id, (size_t)32, verdict,
        clock_wall_ms() / 1000, why);
}

static enum status say_wrong(struct guard *g, const struct watch_subject *s, const char *why,
                             struct errtext *err)
{
    const char *kind = s->is_epoch ? "epoch" : "batch";
    log_error("watch", "%s %" PRIu64 " is FORGED: %s", kind, s->number, why);
    enum status st = keep(g, s, "wrong", why, err);
    if (!st)
        st = gauge_add(&g->w.db, s->is_epoch ? "watch_epochs_forged" : "watch_batches_forged", 1,
                       err);
    if (!st)
        st = trouble_clear(&g->w.db, s->is_epoch ? TROUBLE_EPOCH_UNSHOWN : TROUBLE_BATCH_UNSHOWN,
                           s->number, err);
    return st ? st
              : trouble_say(&g->w.db, s->is_epoch ? TROUBLE_EPOCH_FORGED : TROUBLE_BATCH_FORGED,
                            s->number, err,
                            "%s %" PRIu64 " is forged (%s): %s; a key was stolen, take its role "
                            "away before commits go on",
                            kind, s->number, why, s->is_epoch ? "vetoed" : "dropped");
}

static enum status say_right(struct guard *g, const struct watch_subject *s, struct errtext *err)
{
    log_info("watch", "%s %" PRIu64 " is right", s->is_epoch ? "epoch" : "batch", s->number);
    enum status st = keep(g, s, "right", "", err);
    if (!st)
        st =
            gauge_add(&g->w.db, s->is_epoch ? "watch_epochs_right" : "watch_batches_right", 1, err);
    if (!st)
        st = trouble_clear(&g->w.db, s->is_epoch ? TROUBLE_EPOCH_UNSHOWN : TROUBLE_BATCH_UNSHOWN,
                           s->number, err);
    return st;
}

static enum status say_unshown(struct guard *g, const struct watch_subject *s, uint64_t since,
                               const char *why, struct errtext *err)
{
    uint64_t now = clock_wall_ms() / 1000;
    enum status st = STATUS_OK;
    if (!since) {
        since = now;
        st = keep(g, s, "unshown", why, err);
    }
    if (st)
        return st;
    return trouble_say(
        &g->w.db, s->is_epoch ? TROUBLE_EPOCH_UNSHOWN : TROUBLE_BATCH_UNSHOWN, s->number, err,
        "%s %" PRIu64 " is on the chain and cannot be checked (%s): bring the "
        "archive or the lanes' servers back before second %" PRIu64 ", then it is taken for forged",
        s->is_epoch ? "epoch" : "batch", s->number, why, since + g->set->grace_s);
}

/* A lying endpoint must not make us veto an honest epoch, nor a grace period that it outlasts. */
static enum status say_split(struct guard *g, const struct watch_subject *s, const char *why,
                             struct errtext *err)
{
    enum status st = keep(g, s, "split", why, err);
    if (st)
        return st;
    return trouble_say(&g->w.db, s->is_epoch ? TROUBLE_EPOCH_UNSHOWN : TROUBLE_BATCH_UNSHOWN,
                       s->number, err,
                       "%s %" PRIu64 ": no verdict: %s; replace it, nothing is done meanwhile",
                       s->is_epoch ? "epoch" : "batch", s->number, why);
}

static enum status judge_one(struct guard *g, struct watch_range *r, bool is_epoch, uint64_t number,
                             struct errtext *err)
{
    struct watch_subject s;
    enum watch_verdict v = VERDICT_UNSHOWN;
    struct errtext why = ERRTEXT_INIT;
    uint64_t since = 0, *lowest = is_epoch ? &r->wrong_epoch : &r->wrong_batch;
    bool there;
    enum status st = watch_subject_read(g, is_epoch, number, &s, &there, err);
    if (st || !there)
        return st;
    st = watch_row(g, &s, &v, &since, err);
    bool is_known = !st && (v == VERDICT_RIGHT || v == VERDICT_WRONG);
    if (st && st != STATUS_NOT_FOUND)
        return st;
    st = is_known ? STATUS_OK : judge(g, &s, &v, &why);
    if (st)
        return err_set(err, st, "%s", why.text);
    if (v == VERDICT_UNSHOWN && since && clock_wall_ms() / 1000 >= since + g->set->grace_s)
        v = VERDICT_WRONG;
    if (v == VERDICT_WRONG && !*lowest)
        *lowest = number;
    if (is_known)
        return STATUS_OK;
    return v == VERDICT_WRONG   ? say_wrong(g, &s, why.text, err)
           : v == VERDICT_RIGHT ? say_right(g, &s, err)
           : v == VERDICT_SPLIT ? say_split(g, &s, why.text, err)
                                : say_unshown(g, &s, since, why.text, err);
}

/* ---- what was wrong and is gone ---- */

static enum status forget_gone(struct guard *g, bool is_epoch, struct errtext *err)
{
    uint64_t number = 0;
    enum status st = STATUS_OK;
    for (uint64_t after = 0; !st; after = number) {
        struct watch_subject s;
        bool there;
        enum watch_verdict v = VERDICT_RIGHT;
        uint64_t since;
        st = db_value(&g->w.db, &number, 0, err,
                      "SELECT min(number) FROM troubles WHERE kind IN (?, ?) AND number > ?", "ttu",
                      is_epoch ? "epoch_forged" : "batch_forged",
                      is_epoch ? "epoch_unshown" : "batch_unshown", after);
        if (st || !number)
            return st;
        st = watch_subject_read(g, is_epoch, number, &s, &there, err);
        if (!st && there)
            st = watch_row(g, &s, &v, &since, err);
        if (st == STATUS_NOT_FOUND) /* another stands there now: judged in its turn */
            st = STATUS_OK;
        if (st || (there && v != VERDICT_RIGHT))
            continue;
        st = trouble_clear(&g->w.db, is_epoch ? TROUBLE_EPOCH_FORGED : TROUBLE_BATCH_FORGED, number,
                           err);
        if (!st)
            st = trouble_clear(&g->w.db, is_epoch ? TROUBLE_EPOCH_UNSHOWN : TROUBLE_BATCH_UNSHOWN,
                               number, err);
    }
    return st;
}

/* ---- acting ---- */

/* A wrong epoch that is claimable already, or a key without the role: a person must. */
static enum status check_power(struct guard *g, struct errtext *err)
{
    bool has = false;
    char text[ADDR_TEXT_BYTES];
    addr_format(text, g->key.address);
    enum status st = role_has(&g->w.view, g->w.dep.vault, "GUARDIAN", g->key.address, &has, err);
    g->refused = !st && !has;
    if (st || has)
        return st ? st : trouble_clear(&g->w.db, TROUBLE_POWERLESS, 0, err);
    return trouble_say(&g->w.db, TROUBLE_POWERLESS, 0, err,
                       "%s does not hold GUARDIAN: of what this watcher finds wrong it can stop "
                       "only what disableByProof takes; run it with the guardian's key",
                       text);
}

static enum status act(struct guard *g, const struct watch_range *r, struct errtext *err)
{
    enum status st = check_power(g, err);
    if (!st && r->wrong_epoch) /* needs no role; whichever of the two is mined first */
        st = watch_prove(g, r->wrong_epoch, err);
    if (st || g->refused)
        return st;
    if (r->wrong_epoch)
        return watch_veto(g, r->wrong_epoch, err);
    if (!r->wrong_batch)
        return STATUS_OK;
    st = watch_pause(g, r->wrong_batch, err);
    if (!st && r->batch_to >= r->wrong_batch && r->locked < r->batch_to)
        st = watch_drop(g, r->batch_to, err);
    return st;
}

/* ---- one look ---- */

static enum status find_range(struct guard *g, struct watch_range *r, struct errtext *err)
{
    struct view_money m;
    struct view_head head;
    struct view_epoch active = {.batch_paid = g->w.vault.start_seq}, live = {.total = 0};
    enum status st = view_money(&g->w.view, "finalized", &m, err);
    if (!st)
        st = view_head(&g->w.view, "finalized", &head, err);
    if (!st && m.active_epoch)
        st = view_epoch(&g->w.view, "finalized", m.active_epoch, &active, err);
    if (!st && m.last_live)
        st = view_epoch(&g->w.view, "finalized", m.last_live, &live, err);
    r->batch_from = active.batch_paid;
    r->batch_to = head.seq;
    r->epoch_from = m.active_epoch;
    r->epoch_to = m.last_epoch;
    r->locked = live.batch_evidence;
    return st;
}

/* One that cannot be judged now keeps nobody from the others, nor from acting on them. */
static enum status judge_all(struct guard *g, struct watch_range *r, struct errtext *err)
{
    enum status first = find_range(g, r, err);
    for (uint64_t seq = r->batch_from + 1; seq <= r->batch_to && !g->w.db.failed; seq++) {
        enum status st = judge_one(g, r, false, seq, err);
        first = first ? first : st;
    }
    for (uint64_t e = r->epoch_from + 1; e <= r->epoch_to && !g->w.db.failed; e++) {
        enum status st = judge_one(g, r, true, e, err);
        first = first ? first : st;
    }
    for (int kind = 0; kind < 2; kind++) {
        enum status st = forget_gone(g, kind == 1, err);
        first = first ? first : st;
    }
    enum status st = act(g, r, err);
    return first ? first : st;
}

enum status watch_look(struct guard *g, struct errtext *err)
{
    struct watch_range r = {.locked = 0};
    struct errtext sent = ERRTEXT_INIT, roles = ERRTEXT_INIT;
    uint64_t block = common_head(&g->w.nodes); /* every endpoint has it */
    pin(g, &block);
    enum status st = judge_all(g, &r, err);
    pin(g, NULL);
    read_from(g, nodes_rpc(&g->w.nodes));
    /* whatever else failed */
    enum status told = watch_roles(g, block, &roles), step = sender_step(&g->w.sender, &sent);
    if (!st && told)
        st = err_set(err, told, "%s", roles.text);
    return st || !step ? st : err_set(err, step, "%s", sent.text);
}
