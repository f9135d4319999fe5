/* Start of a lane: the spool is the truth. Three lists are paired by inference sequence number:
 *   inferences of the spool that may be required | attributions of the spool | jobs of the job
 * store job without inference: dropped (the crash came between the two syncs, no receipt left)
 * inference with job, no attribution: scored now
 * inference without job and attribution: an attribution record "inputs lost" closes it. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/record/recorder_impl.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct open_inference { /* may be required, not yet attributed */
    uint64_t seq;
    uint8_t digest[32], request_id[32];
    struct job *job; /* from the store, or NULL */
    bool closed;     /* its attribution is in the spool */
};

struct recovery {
    struct recorder *r;
    struct open_inference *open; /* ascending by seq */
    size_t count, cap;
    uint64_t orphans;
};

static void push_open(struct recovery *v, const struct open_inference *o)
{
    if (v->count == v->cap) {
        size_t cap = v->cap ? 2 * v->cap : 1024;
        struct open_inference *grown = mem_try_realloc(v->open, cap * sizeof(*grown));
        CHECK(grown);
        v->open = grown;
        v->cap = cap;
    }
    v->open[v->count++] = *o;
}

static struct open_inference *find_open(struct recovery *v, uint64_t seq)
{
    size_t lo = 0, hi = v->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (v->open[mid].seq < seq)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < v->count && v->open[lo].seq == seq ? &v->open[lo] : NULL;
}

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
        push_open(v, &o);
    } else if (rec.prefix.type == RECORD_ATTRIBUTION) {
        struct open_inference *o = find_open(v, rec.attribution.inf_seq);
        if (o)
            o->closed = true;
        lookup_mark_recorded(r->lookup, rec.attribution.inf_seq, seq);
    }
    return STATUS_OK;
}

static enum status scan_spool(struct recovery *v, struct errtext *err)
{
    struct spool_cursor c;
    struct buf body;
    uint64_t seq;
    struct recorder *r = v->r;
    buf_init(&body, SPOOL_BODY_BYTES_MAX);
    enum status st = spool_cursor_open(&c, r->spool, spool_first_seq(r->spool), err);
    while (!st && !(st = spool_cursor_next(&c, &seq, &body, err)))
        st = take_record(v, seq, (const uint8_t *)body.data, body.len, err);
    spool_cursor_close(&c);
    buf_fini(&body);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static enum status visit_job(void *arg, uint64_t inf_seq, const uint8_t *plain, size_t len,
                             struct errtext *err)
{
    struct recovery *v = arg;
    struct open_inference *o = find_open(v, inf_seq);
    struct job *j;
    enum status st = job_decode(&j, plain, len, err);
    if (st)
        return st;
    if (!o || o->job || memcmp(o->digest, j->inf_digest, 32) != 0) {
        v->orphans++;
        job_free(j);
        return err_set(err, STATUS_NOT_FOUND, "orphan"); /* not kept as live */
    }
    o->job = j;
    return STATUS_OK;
}

static void drop_closed(struct recovery *v)
{
    size_t kept = 0;
    for (size_t i = 0; i < v->count; i++) {
        if (!v->open[i].closed)
            v->open[kept++] = v->open[i];
    }
    v->count = kept;
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
    drop_closed(&v);
    snprintf(dir, sizeof(dir), "%s/jobs", r->lane.dir);
    if (!st)
        st = jobstore_open(&r->jobs, dir, r->lane.jobs_key, r->opt.score_bytes_max, visit_job, &v,
                           err);
    for (size_t i = 0; i < v.count; i++) {
        if (!st && v.open[i].job)
            queue_job(r, &v.open[i]);
        else if (!st)
            st = close_lost(r, &v.open[i], err);
        job_free(v.open[i].job);
    }
    if (!st)
        st = spool_sync(r->spool, err);
    if (!st && (r->stats.outcomes_lost || v.orphans))
        log_warn("records",
                 "recovered: %llu answers lost their scoring inputs, %llu orphan jobs dropped",
                 (unsigned long long)r->stats.outcomes_lost, (unsigned long long)v.orphans);
    mem_free(v.open);
    return st;
}
