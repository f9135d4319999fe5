/* Start of a lane: the spool is the truth. Three lists are paired by inference sequence number:
 *   inferences of the spool that may be required | attributions of the spool | jobs of the job
 * store job without inference: dropped (the crash came between the two syncs, no receipt left)
 * inference with job, no attribution: scored now
 * inference without job and attribution: an attribution record "inputs lost" closes it.
 * The checkpoint stands for the spool up to its number; only the records after it are read. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/record/recorder_impl.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct recovery {
    struct recorder *r;
    uint64_t from; /* the first record that is read */
    uint64_t orphans;
};

/* A lone adapter counts only with a datanet; one that the book has not read counts too, so that
 * nothing required is forgotten. */
static bool may_be_required(struct recorder *r, const struct record_inference *inf)
{
    struct tail_set set;
    if (inf->fee == 0 || inf->status == RECORD_STATUS_FAILED ||
        tail_set_decode(&set, inf->set.data, inf->set.len, NULL) || set.count == 0)
        return false;
    if (set.count > 1)
        return true;
    struct terms *t = NULL;
    bool yes = r->deps.book &&
               (book_terms(r->deps.book, set.adapter[0].id, clock_wall_ms() / 1000, &t, NULL) ||
                terms_has_datanet(t));
    terms_release(t);
    return yes;
}

static enum status take_record(struct recovery *v, uint64_t seq, const uint8_t *body, size_t len,
                               struct errtext *err)
{
    union record rec;
    struct recorder *r = v->r;
    if (!entry_has_tag(r->lane.transport_key, body, len))
        return err_set(err, STATUS_CORRUPT,
                       "spool record %llu: its tag does not match this lane's transport key",
                       (unsigned long long)seq);
    enum status st = canon_decode(&rec, body, len - ENTRY_TAG_BYTES, err);
    if (st)
        return st;
    if (rec.prefix.type == RECORD_INFERENCE && may_be_required(r, &rec.inference)) {
        struct open_inference o = {.seq = seq};
        canon_digest(o.digest, &rec, r->lane.domain);
        memcpy(o.request_id, rec.inference.request_id, 32);
        (void)open_list_put(&r->open, &o);
    } else if (rec.prefix.type == RECORD_ATTRIBUTION) {
        open_list_close(&r->open, rec.attribution.inf_seq);
        lookup_mark_recorded(r->lookup, rec.attribution.inf_seq, seq);
    } else if (rec.prefix.type == RECORD_VOID) {
        r->stats.voids++;
    }
    return STATUS_OK;
}

/* Where reading begins. The last record is read in any case: its tag says whether these keys and
 * this spool belong together. */
static uint64_t read_from(struct recorder *r)
{
    char path[PATH_MAX];
    struct errtext why = ERRTEXT_INIT;
    uint64_t upto = 0, first = spool_first_seq(r->spool), durable = spool_durable_seq(r->spool);
    snprintf(path, sizeof(path), "%s/" LANE_CHECKPOINT, r->lane.dir);
    enum status st = checkpoint_read(path, &upto, &r->open, &why);
    if (!st && (upto > durable || upto + 1 < first))
        st = err_set(&why, STATUS_CORRUPT, "%s: of another spool", path);
    if (st && st != STATUS_NOT_FOUND)
        log_warn("records", "%s; the whole spool is read instead", why.text);
    if (st)
        open_list_fini(&r->open);
    r->checkpoint_seq = st ? 0 : upto;
    return st ? first : MAX(upto + 1, first);
}

static enum status check_last(struct recovery *v, struct buf *body, struct errtext *err)
{
    struct spool_cursor c;
    uint64_t seq = spool_durable_seq(v->r->spool);
    if (seq == 0 || seq >= v->from)
        return STATUS_OK;
    enum status st = spool_cursor_open(&c, v->r->spool, seq, err);
    if (!st)
        st = spool_cursor_next(&c, &seq, body, err);
    spool_cursor_close(&c);
    if (!st && !lane_is_own(&v->r->lane, seq, body->data, body->len))
        st = err_set(err, STATUS_CORRUPT,
                     "spool record %llu: its tag does not match this lane's transport key",
                     (unsigned long long)seq);
    return st;
}

static enum status scan_spool(struct recovery *v, struct errtext *err)
{
    struct spool_cursor c;
    struct buf body;
    uint64_t seq;
    struct recorder *r = v->r;
    v->from = read_from(r);
    buf_init(&body, SPOOL_BODY_BYTES_MAX);
    enum status st = check_last(v, &body, err);
    c.fd = -1;
    if (!st)
        st = spool_cursor_open(&c, r->spool, v->from, err);
    while (!st && !(st = spool_cursor_next(&c, &seq, &body, err)))
        st = take_record(v, seq, (const uint8_t *)body.data, body.len, err);
    spool_cursor_close(&c);
    buf_fini(&body);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

/* Its inference was trimmed, and no checkpoint says whether its attribution is there: it is scored,
 * for the job itself says what it belongs to. */
static struct open_inference *adopt_job(struct recorder *r, const struct job *j, uint64_t seq)
{
    if (r->checkpoint_seq || seq >= spool_first_seq(r->spool))
        return NULL;
    struct open_inference o = {.seq = seq};
    memcpy(o.digest, j->inf_digest, 32);
    memcpy(o.request_id, j->request_id, 32);
    return open_list_put(&r->open, &o);
}

static enum status visit_job(void *arg, uint64_t inf_seq, const uint8_t *plain, size_t len,
                             struct errtext *err)
{
    struct recovery *v = arg;
    struct open_inference *o = open_list_find(&v->r->open, inf_seq);
    struct job *j;
    enum status st = job_decode(&j, plain, len, err);
    if (st)
        return st;
    o = o ? o : adopt_job(v->r, j, inf_seq);
    if (!o || o->closed || o->job || memcmp(o->digest, j->inf_digest, 32) != 0) {
        v->orphans++;
        job_free(j);
        return err_set(err, STATUS_NOT_FOUND, "orphan"); /* not kept as live */
    }
    o->job = j;
    return STATUS_OK;
}

/* Close an inference whose job is lost. */
static enum status close_lost(struct recorder *r, const struct open_inference *o,
                              struct errtext *err)
{
    uint8_t body[ENTRY_WHOLE_BYTES_MAX];
    struct built_record rec;
    struct job j = {.inf_seq = o->seq};
    memcpy(j.inf_digest, o->digest, 32);
    struct build_attribution_args args = {
        .job = &j, .seq = spool_next_seq(r->spool), .outcome = RECORD_OUTCOME_INPUTS_LOST};
    enum status st = build_attribution(&rec, &r->build, &args, err);
    if (st)
        return st;
    memcpy(body, rec.bytes, rec.len);
    entry_tag(body + rec.len, r->lane.transport_key, rec.bytes, rec.len);
    st = spool_append(r->spool, args.seq, body, rec.len + ENTRY_TAG_BYTES, err);
    if (!st)
        lookup_mark_recorded(r->lookup, o->seq, args.seq);
    r->stats.outcomes_lost++;
    return st;
}

static void queue_job(struct recorder *r, struct open_inference *o)
{
    struct lookup_entry e;
    if (lookup_get(r->lookup, o->request_id, &e)) {
        e.state = LOOKUP_PENDING;
        lookup_update(r->lookup, &e);
    }
    scorer_add(r->scorer, o->job, false);
    o->job = NULL;
}

enum status recorder_recover(struct recorder *r, struct errtext *err)
{
    struct recovery v = {.r = r};
    char dir[PATH_MAX];
    enum status st = scan_spool(&v, err);
    open_list_drop_closed(&r->open);
    snprintf(dir, sizeof(dir), "%s/jobs", r->lane.dir);
    if (!st)
        st = jobstore_open(&r->jobs, dir, r->lane.jobs_key, r->opt.score_bytes_max, visit_job, &v,
                           err);
    for (size_t i = 0; i < r->open.count; i++) {
        struct open_inference *o = &r->open.item[i];
        o->closed = !st && !o->job;
        if (!st && o->job)
            queue_job(r, o);
        else if (!st)
            st = close_lost(r, o, err);
        job_free(o->job);
        o->job = NULL;
    }
    open_list_drop_closed(&r->open);
    if (!st)
        st = spool_sync(r->spool, err);
    if (!st && (r->stats.outcomes_lost || v.orphans))
        log_warn("records",
                 "recovered: %llu answers lost their scoring inputs, %llu orphan jobs dropped",
                 (unsigned long long)r->stats.outcomes_lost, (unsigned long long)v.orphans);
    return st;
}

void recorder_checkpoint(struct recorder *r, uint64_t upto)
{
    char path[PATH_MAX];
    struct errtext err = ERRTEXT_INIT;
    if (upto <= r->checkpoint_seq)
        return;
    snprintf(path, sizeof(path), "%s/" LANE_CHECKPOINT, r->lane.dir);
    if (checkpoint_write(path, upto, &r->open, &err))
        log_warn("records", "%s; the next start reads more of the spool", err.text);
    else
        r->checkpoint_seq = upto;
}

/* ---- Idempotency-Keys ---- */

struct key_walk {
    struct recorder *r;
    void (*visit)(void *arg, const struct keylog_entry *e, uint64_t age_ms);
    void *arg;
    struct buf body;
};

/* Is record e->seq the answer to that request? A crash leaves keys whose record is missing, and
 * their number went to another. What is archived was checked by a start before it was. */
static bool was_answered(struct key_walk *w, const struct keylog_entry *e)
{
    struct spool_cursor c;
    union record rec;
    uint64_t seq;
    struct spool *s = w->r->spool;
    if (e->seq < spool_first_seq(s))
        return true;
    if (spool_cursor_open(&c, s, e->seq, NULL))
        return false;
    bool good =
        spool_cursor_next(&c, &seq, &w->body, NULL) == STATUS_OK && w->body.len > ENTRY_TAG_BYTES &&
        canon_decode(&rec, (const uint8_t *)w->body.data, w->body.len - ENTRY_TAG_BYTES, NULL) ==
            STATUS_OK;
    spool_cursor_close(&c);
    return good && (rec.prefix.type == RECORD_VOID ||
                    (rec.prefix.type == RECORD_INFERENCE &&
                     memcmp(rec.inference.request_id, e->request_id, 32) == 0));
}

static void visit_key(void *arg, const struct keylog_entry *e)
{
    struct key_walk *w = arg;
    uint64_t now_ms = clock_wall_ms(), age_ms = now_ms > e->wall_ms ? now_ms - e->wall_ms : 0;
    if (age_ms < KEYLOG_AGE_MS && was_answered(w, e))
        w->visit(w->arg, e, age_ms);
}

void recorder_visit_keys(struct recorder *r,
                         void (*visit)(void *arg, const struct keylog_entry *e, uint64_t age_ms),
                         void *arg)
{
    struct key_walk w = {.r = r, .visit = visit, .arg = arg};
    buf_init(&w.body, SPOOL_BODY_BYTES_MAX);
    keylog_visit(r->keys, visit_key, &w);
    buf_fini(&w.body);
}
