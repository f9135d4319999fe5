/* One group of the recorder's loop: what gathered while the last group was written.
 *
 *   finished requests -> records, jobs appended -> jobs, keys synced -> records     \
 *   finished scores   -> attribution records appended                                > spool synced
 *                                                          then receipts leave, jobs are erased
 *
 * A job is durable before its record is even appended: whatever fails or crashes in between leaves
 * at most an orphan job, which is erased (at once, or by recovery), and never an answer that must
 * be scored and cannot be. A record that could not be written ends its request with an error: no
 * receipt, nothing released, its number is used by the next. An attribution record that could not
 * be written is held and tried again. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/record/recorder_impl.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

/* ---- requiredness ---- */

bool recorder_may_be_required(const struct request *req)
{
    if (req->comp.n == 0 || (req->comp.n == 1 && !terms_has_datanet(req->terms[0])))
        return false;
    return build_is_priced(req);
}

bool recorder_is_previewed(const struct recorder *r, const struct request *req)
{
    uint32_t draw = (uint32_t)be_get(req->id, 4);
    return req->comp.n > 0 && r->opt.score_rate_ppb > 0 &&
           (u128)draw * TAIL_E9 < (u128)r->opt.score_rate_ppb << 32;
}

/* ---- appending ---- */

/* Count and tell. Trouble of disk or memory refuses new requests until the disk takes a write
 * again; a single record that cannot be built does not. */
static void note_failure(struct recorder *r, enum status st, const char *why)
{
    pthread_mutex_lock(&r->lock);
    if (st == STATUS_FULL || st == STATUS_IO || st == STATUS_NO_MEMORY) {
        r->disk_refuses = true;
        r->retry_ns = clock_mono_ns() + RECORDER_RETRY_NS;
        snprintf(r->disk_text, sizeof(r->disk_text), "%s", why);
    }
    r->stats.append_failures++;
    pthread_mutex_unlock(&r->lock);
    log_error("records", "%s", why);
}

/* Record and tag into the spool under its sequence number. */
static enum status append_record(struct recorder *r, uint64_t seq, const uint8_t *record,
                                 size_t len, struct errtext *err)
{
    uint8_t body[ENTRY_WHOLE_BYTES_MAX];
    memcpy(body, record, len);
    entry_tag(body + len, r->lane.transport_key, record, len);
    return spool_append(r->spool, seq, body, len + ENTRY_TAG_BYTES, err);
}

static enum status append_job(struct recorder *r, const struct job *j, struct errtext *err)
{
    buf_clear(&r->scratch);
    job_encode(j, &r->scratch);
    enum status st =
        r->scratch.failed
            ? err_set(err, STATUS_NO_MEMORY, "scoring job: more than %u bytes", JOB_BYTES_MAX)
            : jobstore_append(r->jobs, j->inf_seq, r->scratch.data, r->scratch.len, err);
    mem_wipe(r->scratch.data, r->scratch.len);
    return st;
}

/* The recorder ends every request's chain. */
static void end_request(struct request *req)
{
    request_finish(req);
    request_release(req);
}

static void fail_request(struct recorder *r, struct request *req, enum status st,
                         const struct errtext *err)
{
    req->status = st;
    req->error = *err;
    memset(&req->receipt, 0, sizeof(req->receipt));
    note_failure(r, st, err->text);
    recorder_unadmit(r, req);
    end_request(req);
}

static void count_request(struct request *req)
{
    uint64_t in, out;
    build_token_counts(req, &in, &out);
    for (uint32_t i = 0; i < req->comp.n; i++) {
        atomic_fetch_add_explicit(&req->entry[i]->request_count, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&req->entry[i]->token_count, out, memory_order_relaxed);
    }
}

/* The record under the number it will have, and its job into the store. */
static enum status prepare(struct recorder *r, struct group_item *it, struct job *job,
                           struct errtext *err)
{
    struct request *req = it->request;
    struct request_receipt *receipt = &req->receipt;
    struct built_record rec;
    randombytes_buf(receipt->salt, 32);
    enum status st = build_inference(&rec, &r->build, req, it->seq, receipt->salt, err);
    if (st)
        return st;
    CHECK(rec.len <= sizeof(it->record));
    memcpy(it->record, rec.bytes, rec.len);
    it->record_len = rec.len;
    receipt->lane = r->lane.id;
    receipt->seq = it->seq;
    receipt->fee = rec.fee;
    memcpy(receipt->digest, rec.digest, 32);
    memcpy(receipt->signature, rec.signature, sizeof(receipt->signature));
    if (!job)
        return STATUS_OK;
    job->inf_seq = it->seq;
    memcpy(job->inf_digest, rec.digest, 32);
    memcpy(job->salt, receipt->salt, 32);
    it->required = it->required && rec.fee > 0;
    return it->required ? append_job(r, job, err) : STATUS_OK;
}

/* One finished request: into the group, or ended at once when it leaves no record. */
static void take_request(struct recorder *r, struct group *g, struct request *req)
{
    struct errtext err = ERRTEXT_INIT;
    struct group_item *it = &g->item[g->request_count];
    uint8_t record_status = build_record_status(req);
    if (!record_status) {
        recorder_unadmit(r, req);
        end_request(req);
        return;
    }
    bool failed = record_status == RECORD_STATUS_FAILED;
    *it = (struct group_item){.request = req,
                              .seq = spool_next_seq(r->spool) + g->request_count,
                              .required = !failed && recorder_may_be_required(req)};
    bool scored = it->required || (!failed && recorder_is_previewed(r, req));
    it->job = scored ? job_from_request(req, r->lane.bound) : NULL;
    enum status st = it->required && !it->job
                         ? err_set(&err, STATUS_NO_MEMORY, "no memory for a scoring job")
                         : STATUS_OK;
    if (!st)
        st = prepare(r, it, it->job, &err);
    if (st) {
        job_free(it->job);
        fail_request(r, req, st, &err);
        return;
    }
    g->request_count++;
}

/* Item i and all after it: no record, no receipt. */
static void drop_items(struct recorder *r, struct group *g, uint32_t i, enum status st,
                       const struct errtext *err)
{
    for (uint32_t k = i; k < g->request_count; k++) {
        if (g->item[k].required)
            jobstore_erase(r->jobs, g->item[k].seq);
        job_free(g->item[k].job);
        fail_request(r, g->item[k].request, st, err);
    }
    g->request_count = i;
}

/* What has to be durable before the records: their jobs, and the Idempotency-Keys. */
static enum status sync_before(struct recorder *r, const struct group *g, struct errtext *err)
{
    enum status st = g->request_count ? jobstore_sync(r->jobs, err) : STATUS_OK;
    for (uint32_t i = 0; !st && i < g->request_count; i++) {
        const struct request *req = g->item[i].request;
        struct keylog_entry e = {.seq = g->item[i].seq, .wall_ms = clock_wall_ms()};
        if (!req->is_once)
            continue;
        memcpy(e.key, req->once_key, sizeof(e.key));
        memcpy(e.body, req->once_body, sizeof(e.body));
        memcpy(e.request_id, req->id, sizeof(e.request_id));
        st = keylog_append(r->keys, &e, err);
    }
    return st ? st : keylog_sync(r->keys, err);
}

static void append_items(struct recorder *r, struct group *g)
{
    struct errtext err = ERRTEXT_INIT;
    enum status st = sync_before(r, g, &err);
    uint32_t done = 0;
    while (!st && done < g->request_count) {
        const struct group_item *it = &g->item[done];
        st = append_record(r, it->seq, it->record, it->record_len, &err);
        done += !st;
    }
    struct errtext why = ERRTEXT_INIT;
    enum status wrote = spool_flush(r->spool, &why);
    if (wrote)
        drop_items(r, g, 0, wrote, &why);
    else if (st)
        drop_items(r, g, done, st, &err);
}

/* ---- scores ---- */

static void store_preview(struct recorder *r, struct score_task *t)
{
    struct lookup_entry e;
    if (!lookup_get(r->lookup, t->job->request_id, &e))
        return;
    e.state = t->outcome ? LOOKUP_NOT_SCORED : LOOKUP_PREVIEW;
    for (uint32_t k = 0; k < t->job->adapter_count; k++) {
        e.gain[k] = t->result.influence.adapter[k].gain;
        e.solo_q8[k] = t->result.solo_q8[k];
    }
    e.moved_q8 = t->result.moved_q8;
    lookup_update(r->lookup, &e);
}

/* An answer that its only adapter did not move at all is flagged: a dead adapter must be seen. */
static void flag_dead(struct recorder *r, const struct score_task *t)
{
    if (t->outcome || t->job->adapter_count != 1 || t->result.moved_q8 != 0)
        return;
    struct adapter_entry *e = catalog_find_id(r->deps.catalog, t->job->adapter[0].id);
    if (e)
        atomic_fetch_add_explicit(&e->dead, 1, memory_order_relaxed);
    catalog_release(e);
}

static struct score_task *next_task(struct recorder *r)
{
    struct score_task *t = r->held;
    if (!t)
        return scorer_poll(r->scorer);
    if (r->disk_refuses)
        return NULL;
    r->held = t->next;
    t->next = NULL;
    return t;
}

/* false: the record could not be written, and the rest waits too. */
static bool take_task(struct recorder *r, struct group *g, struct score_task *t)
{
    struct errtext err = ERRTEXT_INIT;
    struct built_record rec;
    if (t->cancelled || t->preview) {
        if (!t->cancelled) {
            flag_dead(r, t);
            store_preview(r, t);
        }
        score_task_free(t);
        return true;
    }
    struct build_attribution_args args = {.job = t->job,
                                          .seq = spool_next_seq(r->spool),
                                          .outcome = t->outcome,
                                          .scored = t->outcome ? NULL : &t->result,
                                          .inputs_digest = t->inputs_digest,
                                          .index_hash = t->index_hash};
    enum status st = build_attribution(&rec, &r->build, &args, &err);
    if (!st)
        st = append_record(r, args.seq, rec.bytes, rec.len, &err);
    if (st) {
        note_failure(r, st, err.text);
        t->next = r->held;
        r->held = t;
        return false;
    }
    g->task[g->task_count] = t;
    g->att_seq[g->task_count++] = args.seq;
    return true;
}

/* What was taken could not be written after all: it waits, and comes again in its order. */
static void hold_tasks(struct recorder *r, struct group *g, enum status st,
                       const struct errtext *err)
{
    note_failure(r, st, err->text);
    while (g->task_count > 0) {
        struct score_task *t = g->task[--g->task_count];
        t->next = r->held;
        r->held = t;
    }
}

/* ---- after the sync ---- */

/* Who may ask for it, before anybody can. */
static void remember(struct recorder *r, struct group_item *it)
{
    struct request *req = it->request;
    if (it->job && !it->required && scorer_queued(r->scorer) >= RECORDER_PREVIEWS_MAX) {
        job_free(it->job); /* a preview is owed to nobody */
        it->job = NULL;
    }
    struct lookup_entry e = {.fair_key = req->params.fair_key,
                             .seq = it->seq,
                             .state = !it->job       ? LOOKUP_NOT_SCORED
                                      : it->required ? LOOKUP_PENDING
                                                     : LOOKUP_PREVIEW_WAIT,
                             .adapter_count = (uint8_t)req->comp.n};
    memcpy(e.request_id, req->id, 32);
    memcpy(e.salt, req->receipt.salt, 32);
    memcpy(e.account, req->payer, 20);
    lookup_put(r->lookup, &e);
    mem_wipe(e.salt, sizeof(e.salt));
}

static void release_request(struct recorder *r, const struct group_item *it)
{
    if (it->required) {
        struct open_inference o = {.seq = it->seq};
        memcpy(o.digest, it->request->receipt.digest, 32);
        memcpy(o.request_id, it->request->id, 32);
        (void)open_list_put(&r->open, &o);
    }
    it->request->receipt.recorded = true;
    count_request(it->request);
    if (it->job)
        scorer_add(r->scorer, it->job, !it->required);
    end_request(it->request);
}

static void release_task(struct recorder *r, struct score_task *t, uint64_t att_seq)
{
    struct lookup_entry e;
    flag_dead(r, t);
    jobstore_erase(r->jobs, t->job->inf_seq);
    open_list_close(&r->open, t->job->inf_seq);
    lookup_mark_recorded(r->lookup, t->job->inf_seq, att_seq);
    if (lookup_get(r->lookup, t->job->request_id, &e)) {
        for (uint32_t k = 0; k < t->job->adapter_count; k++)
            e.solo_q8[k] = t->result.solo_q8[k];
        e.moved_q8 = t->result.moved_q8;
        lookup_update(r->lookup, &e);
    }
    score_task_free(t);
}

void recorder_publish_stats(struct recorder *r, const struct group *g)
{
    pthread_mutex_lock(&r->lock);
    r->stats.inferences += g ? g->request_count : 0;
    r->stats.attributions += g ? g->task_count : 0;
    for (uint32_t i = 0; g && i < g->task_count; i++)
        r->stats.outcomes_lost += g->task[i]->outcome == RECORD_OUTCOME_INPUTS_LOST;
    for (uint32_t i = 0; g && i < g->request_count; i++)
        r->stats.unscored += g->item[i].required && r->opt.scoring_off;
    if (g ? g->task_count > 0 : jobstore_count(r->jobs) == 0)
        r->scored_ns = clock_mono_ns();
    r->stats.fsyncs += g != NULL;
    r->stats.spool_bytes = spool_bytes(r->spool);
    r->stats.job_bytes = jobstore_bytes(r->jobs);
    scorer_computed(r->scorer, &r->stats.computed, &r->stats.compute_ns);
    evidence_get_stats(r->evidence, &r->stats.evidence_bytes, &r->stats.evidence_dropped);
    r->stats.job_count = jobstore_count(r->jobs);
    r->stats.seq_first = spool_first_seq(r->spool);
    r->stats.seq_final = spool_final_seq(r->spool);
    r->stats.seq_next = spool_next_seq(r->spool);
    r->stats.seq_durable = spool_durable_seq(r->spool);
    pthread_mutex_unlock(&r->lock);
}

/* Counted and unreserved before anybody can see its receipt. */
static void release_group(struct recorder *r, struct group *g)
{
    recorder_publish_stats(r, g);
    for (uint32_t i = 0; i < g->request_count; i++)
        recorder_unadmit(r, g->item[i].request);
    for (uint32_t i = 0; i < g->request_count; i++)
        remember(r, &g->item[i]);
    for (uint32_t i = 0; i < g->task_count; i++)
        release_task(r, g->task[i], g->att_seq[i]);
    lookup_flush(r->lookup);
    for (uint32_t i = 0; i < g->request_count; i++)
        release_request(r, &g->item[i]);
    if (r->ship)
        ship_kick(r->ship);
}

/* The sync failed: whether the records are on disk is unknown until a restart has read it, so their
 * jobs stay. Nothing is released. */
static void abandon_group(struct recorder *r, struct group *g, enum status st,
                          const struct errtext *err)
{
    for (uint32_t i = 0; i < g->request_count; i++) {
        job_free(g->item[i].job);
        fail_request(r, g->item[i].request, st, err);
    }
    for (uint32_t i = 0; i < g->task_count; i++)
        score_task_free(g->task[i]);
    g->request_count = g->task_count = 0;
}

bool recorder_run_group(struct recorder *r, struct group *g)
{
    struct errtext err = ERRTEXT_INIT;
    uint32_t group_max = MIN(MAX(r->opt.group_max, 1u), GROUP_CAP);
    struct request *req;
    struct score_task *t;
    g->request_count = g->task_count = 0;
    while (g->request_count < group_max && (req = mailbox_pop(&r->finished)))
        take_request(r, g, req);
    append_items(r, g);
    while (g->task_count < group_max && (t = next_task(r)) && take_task(r, g, t))
        continue;
    enum status st = spool_flush(r->spool, &err);
    if (st)
        hold_tasks(r, g, st, &err);
    if (g->request_count + g->task_count == 0)
        return false;
    err_clear(&err);
    st = spool_sync(r->spool, &err);
    if (st)
        abandon_group(r, g, st, &err);
    else
        release_group(r, g);
    return true;
}
