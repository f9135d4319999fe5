/* See recorder.h. The recorder's loop takes what gathered while the last group was written:
 *
 *   finished requests -> inference record + job  \
 *   finished scores   -> attribution record       > one sync of the job file, one of the spool
 *                                                /   then: receipts leave, jobs are erased
 *
 * A job is durable before its record, so a crash between the two leaves an orphan job, which
 * recovery drops; the reverse could lose an answer that must be scored. On a failed write the
 * request ends with an error: no receipt, nothing released. */
#include "server/influence/recorder.h"
#include "chain_client/commit.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mailbox.h"
#include "server/base/mem.h"
#include "server/influence/recorder_impl.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define GROUP_CAP            256u
#define RECORD_BYTES_RESERVE 4096u /* inference record, its frame, and its attribution's */
#define FULL_RETRY_MS        1000u

/* What one group releases after its sync. */
struct group {
    struct request *request[GROUP_CAP];
    struct lookup_entry lookup[GROUP_CAP];
    struct job *job[GROUP_CAP]; /* NULL: none */
    bool preview[GROUP_CAP];
    uint32_t request_count;
    struct score_task *task[GROUP_CAP];
    uint64_t att_seq[GROUP_CAP];
    uint32_t task_count;
};

/* ---- requiredness ---- */

static bool has_datanet(const struct adapter_entry *e)
{
    return !sodium_is_zero(e->datanet_root, 32);
}

/* May this answer be required? Known before its tokens: a fee can only be zero if every price is.
 */
static bool may_be_required(const struct recorder *r, const struct request *req)
{
    struct tail_tariff t;
    u128 sum = 0;
    if (req->comp.n == 0 || (req->comp.n == 1 && !has_datanet(req->entry[0])))
        return false;
    build_tariff(&t, &r->build, req);
    for (uint32_t i = 0; i < t.count; i++)
        sum += t.price[i].in + t.price[i].out;
    return sum > 0;
}

/* Answers that no record requires are scored at score_rate_ppb, drawn by their random id. */
static bool is_previewed(const struct recorder *r, const struct request *req)
{
    uint32_t draw = (uint32_t)be_get(req->id, 4);
    return req->comp.n > 0 && r->opt.score_rate_ppb > 0 &&
           (u128)draw * TAIL_E9 < (u128)r->opt.score_rate_ppb << 32;
}

/* ---- admission ---- */

static uint64_t job_reserve(const struct recorder *r, const struct request *req)
{
    uint64_t in, out;
    if (!may_be_required(r, req))
        return 0;
    build_token_counts(req, &in, &out);
    return job_bytes_for((uint32_t)MIN(in, UINT32_MAX),
                         (uint64_t)req->params.max_tokens * req->seq_count);
}

enum status recorder_admit(struct recorder *r, const struct request *req, struct errtext *err)
{
    enum status st = STATUS_OK;
    uint64_t job_bytes = job_reserve(r, req);
    pthread_mutex_lock(&r->lock);
    uint64_t spool_need = r->stats.spool_bytes + (r->in_flight + 1) * RECORD_BYTES_RESERVE;
    if (clock_mono_ns() < r->full_until_ns)
        st = err_set(err, STATUS_FULL, "records cannot be written: %s", r->full_text);
    else if (r->in_flight == RECORDER_FLIGHT_MAX)
        st =
            err_set(err, STATUS_FULL, "%u answers are in flight, the maximum", RECORDER_FLIGHT_MAX);
    else if (spool_need > r->opt.spool_bytes_max / 100 * 95)
        st = err_set(
            err, STATUS_FULL,
            "the record spool is 95 %% full (spool_bytes_max %llu): records must be settled first",
            (unsigned long long)r->opt.spool_bytes_max);
    else if (r->stats.job_bytes + r->job_reserved + job_bytes > r->opt.score_bytes_max)
        st = err_set(err, STATUS_FULL, "the scoring job store is full (score_bytes_max %llu)",
                     (unsigned long long)r->opt.score_bytes_max);
    if (!st) {
        r->in_flight++;
        r->job_reserved += job_bytes;
    }
    pthread_mutex_unlock(&r->lock);
    return st;
}

void recorder_unadmit(struct recorder *r, const struct request *req)
{
    uint64_t job_bytes = job_reserve(r, req);
    pthread_mutex_lock(&r->lock);
    CHECK(r->in_flight > 0 && r->job_reserved >= job_bytes);
    r->in_flight--;
    r->job_reserved -= job_bytes;
    pthread_mutex_unlock(&r->lock);
}

void recorder_on_finish(struct request *req, void *recorder)
{
    struct recorder *r = recorder;
    CHECK(mailbox_push(&r->finished, req) == STATUS_OK); /* sized for every admitted request */
}

u128 recorder_fee(const struct recorder *r, const struct request *req, uint64_t tokens_in,
                  uint64_t tokens_out)
{
    struct tail_tariff t;
    build_tariff(&t, &r->build, req);
    return commit_fee(&t, (uint32_t)MIN(tokens_in, UINT32_MAX),
                      (uint32_t)MIN(tokens_out, UINT32_MAX));
}

/* ---- appending ---- */

static void refuse_for_a_while(struct recorder *r, const char *why)
{
    pthread_mutex_lock(&r->lock);
    r->full_until_ns = clock_mono_ns() + (uint64_t)FULL_RETRY_MS * 1000000u;
    snprintf(r->full_text, sizeof r->full_text, "%s", why);
    r->stats.append_failures++;
    pthread_mutex_unlock(&r->lock);
    log_error("records", "%s", why);
}

/* record ‖ tag into the spool under the next sequence number. */
static enum status append_record(struct recorder *r, const struct built_record *rec,
                                 struct errtext *err)
{
    uint8_t body[CANON_RECORD_BYTES_MAX + LANE_TAG_BYTES];
    memcpy(body, rec->bytes, rec->len);
    lane_tag(&r->lane, body + rec->len, rec->bytes, rec->len);
    return spool_append(r->spool, spool_next_seq(r->spool), body, rec->len + LANE_TAG_BYTES, err);
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

static enum status write_answer(struct recorder *r, struct request *req, struct job *job,
                                struct errtext *err)
{
    struct request_receipt *receipt = &req->receipt;
    struct built_record rec;
    uint64_t seq = spool_next_seq(r->spool);
    randombytes_buf(receipt->salt, 32);
    enum status st = build_inference(&rec, &r->build, req, seq, receipt->salt, err);
    if (!st && job) {
        job->inf_seq = seq;
        memcpy(job->inf_digest, rec.digest, 32);
        memcpy(job->salt, receipt->salt, 32);
    }
    if (!st && job && rec.fee > 0 && may_be_required(r, req))
        st = append_job(r, job, err);
    if (!st)
        st = append_record(r, &rec, err);
    receipt->lane = r->lane.id;
    receipt->seq = seq;
    receipt->fee = rec.fee;
    memcpy(receipt->digest, rec.digest, 32);
    memcpy(receipt->signature, rec.signature, sizeof receipt->signature);
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
    req->receipt.recorded = false;
    refuse_for_a_while(r, err->text);
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

/* One finished request: into the group, or ended at once when it leaves no record. */
static void take_request(struct recorder *r, struct group *g, struct request *req)
{
    struct errtext err = ERRTEXT_INIT;
    recorder_unadmit(r, req);
    uint8_t record_status = build_record_status(req);
    if (!record_status) {
        end_request(req);
        return;
    }
    bool required = may_be_required(r, req) && record_status != RECORD_STATUS_FAILED;
    bool scored = required || (record_status != RECORD_STATUS_FAILED && is_previewed(r, req));
    struct job *job = scored ? job_from_request(req) : NULL;
    enum status st = required && !job
                         ? err_set(&err, STATUS_NO_MEMORY, "no memory for a scoring job")
                         : STATUS_OK;
    if (!st)
        st = write_answer(r, req, job, &err);
    if (st) {
        job_free(job);
        fail_request(r, req, st, &err);
        return;
    }
    required = required && req->receipt.fee > 0;
    uint32_t i = g->request_count++;
    g->request[i] = req;
    g->job[i] = job;
    g->preview[i] = !required;
    struct lookup_entry *e = &g->lookup[i];
    *e = (struct lookup_entry){.fair_key = req->params.fair_key,
                               .seq = req->receipt.seq,
                               .state = !job       ? LOOKUP_NOT_SCORED
                                        : required ? LOOKUP_PENDING
                                                   : LOOKUP_PREVIEW_WAIT,
                               .adapter_count = (uint8_t)req->comp.n};
    memcpy(e->request_id, req->id, 32);
    memcpy(e->salt, req->receipt.salt, 32);
}

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

static void take_task(struct recorder *r, struct group *g, struct score_task *t)
{
    struct errtext err = ERRTEXT_INIT;
    struct built_record rec;
    if (t->cancelled) {
        score_task_free(t);
        return;
    }
    flag_dead(r, t);
    if (t->preview) {
        store_preview(r, t);
        score_task_free(t);
        return;
    }
    struct build_attribution_args args = {.job = t->job,
                                          .seq = spool_next_seq(r->spool),
                                          .outcome = t->outcome,
                                          .scored = t->outcome ? NULL : &t->result,
                                          .inputs_digest = t->inputs_digest};
    enum status st = build_attribution(&rec, &r->build, &args, &err);
    if (!st)
        st = append_record(r, &rec, &err);
    if (st) { /* the job stays on disk: the next start scores it again */
        refuse_for_a_while(r, err.text);
        score_task_free(t);
        return;
    }
    g->task[g->task_count] = t;
    g->att_seq[g->task_count++] = args.seq;
}

/* ---- after the sync ---- */

static void release_request(struct recorder *r, struct group *g, uint32_t i)
{
    struct request *req = g->request[i];
    req->receipt.recorded = true;
    count_request(req);
    lookup_put(r->lookup, &g->lookup[i], true);
    if (g->job[i])
        scorer_add(r->scorer, g->job[i], g->preview[i]);
    end_request(req);
}

static void release_task(struct recorder *r, struct group *g, uint32_t i)
{
    struct score_task *t = g->task[i];
    struct lookup_entry e;
    jobstore_erase(r->jobs, t->job->inf_seq);
    if (lookup_get(r->lookup, t->job->request_id, &e)) {
        e.state = LOOKUP_RECORDED;
        e.att_seq = g->att_seq[i];
        for (uint32_t k = 0; k < t->job->adapter_count; k++)
            e.solo_q8[k] = t->result.solo_q8[k];
        e.moved_q8 = t->result.moved_q8;
        lookup_update(r->lookup, &e);
    }
    score_task_free(t);
}

static void publish_stats(struct recorder *r, const struct group *g)
{
    pthread_mutex_lock(&r->lock);
    r->stats.inferences += g->request_count;
    r->stats.attributions += g->task_count;
    r->stats.fsyncs += g->request_count + g->task_count > 0;
    r->stats.spool_bytes = spool_bytes(r->spool);
    r->stats.job_bytes = jobstore_bytes(r->jobs);
    r->stats.job_count = jobstore_count(r->jobs);
    r->stats.seq_next = spool_next_seq(r->spool);
    r->stats.seq_durable = spool_durable_seq(r->spool);
    pthread_mutex_unlock(&r->lock);
}

static void finish_group(struct recorder *r, struct group *g)
{
    struct errtext err = ERRTEXT_INIT;
    if (g->request_count + g->task_count == 0)
        return;
    enum status st = jobstore_sync(r->jobs, &err);
    if (!st)
        st = spool_sync(r->spool, &err);
    for (uint32_t i = 0; i < g->request_count; i++) {
        if (!st) {
            release_request(r, g, i);
            continue;
        }
        job_free(g->job[i]);
        fail_request(r, g->request[i], st, &err);
    }
    for (uint32_t i = 0; i < g->task_count; i++) {
        if (st)
            score_task_free(g->task[i]);
        else
            release_task(r, g, i);
    }
    if (!st && r->ship)
        ship_kick(r->ship);
}

/* ---- the thread ---- */

static void *recorder_main(void *arg)
{
    struct recorder *r = arg;
    struct group *g = mem_alloc(sizeof *g);
    uint32_t group_max = MIN(MAX(r->opt.group_max, 1u), GROUP_CAP);
    for (;;) {
        struct request *req;
        struct score_task *t;
        memset(g, 0, sizeof *g);
        while (g->request_count < group_max && (req = mailbox_pop(&r->finished)))
            take_request(r, g, req);
        while (g->task_count < group_max && (t = scorer_poll(r->scorer)))
            take_task(r, g, t);
        finish_group(r, g);
        publish_stats(r, g);
        scorer_expire(r->scorer, clock_wall_ms(), (uint64_t)r->opt.score_age_s_max * 1000);
        if (g->request_count + g->task_count > 0)
            continue;
        if (mailbox_is_closed(&r->finished) && mailbox_used(&r->finished) == 0)
            break;
        mailbox_wait(&r->finished, 200);
    }
    mem_free(g);
    return NULL;
}

static void wake_recorder(void *arg)
{
    struct recorder *r = arg;
    mailbox_kick(&r->finished);
}

/* ---- life ---- */

static enum status open_parts(struct recorder *r, struct errtext *err)
{
    char dir[PATH_MAX];
    struct lane_options lane = {
        .data_dir = r->opt.data_dir, .lane = r->opt.lane, .chain_id = r->opt.chain_id};
    memcpy(lane.ledger, r->opt.ledger, 20);
    enum status st = lane_open(&r->lane, &lane, err);
    if (st)
        return st;
    r->lane_is_open = true;
    snprintf(dir, sizeof dir, "%s/spool", r->lane.dir);
    struct spool_options spool = {.dir = dir,
                                  .segment_bytes_max = RECORDER_SEGMENT_BYTES,
                                  .bytes_max = r->opt.spool_bytes_max};
    st = spool_open(&r->spool, &spool, err);
    if (!st) {
        snprintf(dir, sizeof dir, "%s/lookup", r->lane.dir);
        st = lookup_open(&r->lookup, dir, err);
    }
    return st ? st : recorder_recover(r, err);
}

static enum status start_shipping(struct recorder *r, struct errtext *err)
{
    struct ship_options ship = {.redis_url = r->opt.redis_url,
                                .password_file = r->opt.redis_password_file,
                                .lane = r->lane.id};
    if (!r->lane.bound || !r->opt.redis_url)
        return STATUS_OK;
    return ship_start(&r->ship, &ship, r->spool, err);
}

enum status recorder_create(struct recorder **out, const struct recorder_options *opt,
                            const struct recorder_deps *deps, struct errtext *err)
{
    struct recorder *r = mem_alloc(sizeof *r);
    *out = NULL;
    r->opt = *opt;
    r->deps = *deps;
    CHECK(pthread_mutex_init(&r->lock, NULL) == 0);
    buf_init(&r->scratch, JOB_BYTES_MAX);
    mailbox_init(&r->finished, RECORDER_FLIGHT_MAX);
    r->build = (struct build_context){
        .lane = &r->lane, .model = deps->model, .base_tariff = opt->base_tariff};
    engine_get_id(deps->engine, r->build.engine_id);
    r->scorer =
        scorer_create(deps->engine, deps->catalog, RECORDER_SCORE_ROWS_MAX, wake_recorder, r);
    enum status st = open_parts(r, err);
    if (!st)
        st = start_shipping(r, err);
    if (st) {
        recorder_destroy(r);
        return st;
    }
    r->stats.lane = r->lane.id;
    r->stats.bound = r->lane.bound;
    r->stats.spool_bytes_max = opt->spool_bytes_max;
    publish_stats(r, &(struct group){0});
    log_info("records", "lane %u (%s), next record %llu, %llu jobs to score", r->lane.id,
             r->lane.bound ? "bound" : "unbound", (unsigned long long)spool_next_seq(r->spool),
             (unsigned long long)jobstore_count(r->jobs));
    CHECK(pthread_create(&r->thread, NULL, recorder_main, r) == 0);
    r->running = true;
    *out = r;
    return STATUS_OK;
}

void recorder_stop(struct recorder *r, uint32_t deadline_ms)
{
    if (!r || !r->running)
        return;
    mailbox_close(&r->finished);
    pthread_join(r->thread, NULL);
    r->running = false;
    ship_stop(r->ship, deadline_ms);
    r->ship = NULL;
}

void recorder_destroy(struct recorder *r)
{
    if (!r)
        return;
    CHECK(!r->running);
    ship_stop(r->ship, 0);
    scorer_destroy(r->scorer);
    jobstore_close(r->jobs);
    lookup_close(r->lookup);
    spool_close(r->spool);
    if (r->lane_is_open)
        lane_close(&r->lane);
    mailbox_fini(&r->finished);
    pthread_mutex_destroy(&r->lock);
    buf_fini(&r->scratch);
    mem_free(r);
}

void recorder_get_stats(struct recorder *r, struct recorder_stats *out)
{
    pthread_mutex_lock(&r->lock);
    *out = r->stats;
    pthread_mutex_unlock(&r->lock);
    out->redis_connected = r->ship && ship_is_connected(r->ship);
    out->seq_shipped = r->ship ? ship_shipped_seq(r->ship) : 0;
}
