/* Admission, the thread and its life; what one turn of the loop writes is group.c,
 * how a lane starts is recover.c, what the API shows is view.c. */
#include "server/record/recorder.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mailbox.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/record/recorder_impl.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define RECORD_BYTES_RESERVE 4096u /* inference record, its frame, and its attribution's */

/* ---- admission ---- */

static uint64_t job_reserve(const struct request *req)
{
    uint64_t in, out;
    if (!recorder_may_be_required(req))
        return 0;
    build_token_counts(req, &in, &out);
    return job_bytes_for((uint32_t)MIN(in, UINT32_MAX),
                         (uint64_t)req->params.max_tokens * req->seq_count);
}

/* Why an answer that needs these bytes is refused now. The lock is held. */
static enum status check_room(const struct recorder *r, uint64_t spool_bytes, uint64_t job_bytes,
                              struct errtext *err)
{
    if (r->disk_refuses)
        return err_set(err, STATUS_FULL, "records cannot be written: %s", r->disk_text);
    if (r->ship && ship_is_foreign(r->ship))
        return err_set(err, STATUS_FULL,
                       "the lane's stream holds records that this spool never wrote: nothing is "
                       "signed until a person has looked (residual lane void)");
    if (r->stats.spool_bytes + spool_bytes > r->opt.spool_bytes_max / 100 * 95)
        return err_set(
            err, STATUS_FULL,
            "the record spool is 95 %% full (spool_bytes_max %llu): records must be settled first",
            (unsigned long long)r->opt.spool_bytes_max);
    if (r->stats.job_bytes + r->job_reserved + job_bytes > r->opt.score_bytes_max)
        return err_set(err, STATUS_FULL, "the scoring job store is full (score_bytes_max %llu)",
                       (unsigned long long)r->opt.score_bytes_max);
    return STATUS_OK;
}

/* Answers of a bound lane that must be scored and are not: what they earn goes by weight, or to the
 * treasury. The lock is held. */
static enum status check_scoring(const struct recorder *r, struct errtext *err)
{
    uint64_t waited_s = (clock_mono_ns() - r->scored_ns) / 1000000000u;
    if (!r->lane.bound)
        return STATUS_OK;
    if (r->stats.unscored)
        return err_set(
            err, STATUS_FULL,
            "scoring is off (score_rows_max 0), and %llu answers since the start must be "
            "scored: set score_rows_max, or route answers with adapters elsewhere",
            (unsigned long long)r->stats.unscored);
    if (r->stats.job_count && waited_s >= r->opt.score_stuck_s)
        return err_set(err, STATUS_FULL,
                       "scoring is stuck: none of %llu answers was scored for %llu s "
                       "(score_stuck_s %u)",
                       (unsigned long long)r->stats.job_count, (unsigned long long)waited_s,
                       r->opt.score_stuck_s);
    return STATUS_OK;
}

enum status recorder_ready(struct recorder *r, struct errtext *err)
{
    pthread_mutex_lock(&r->lock);
    enum status st = check_room(r, RECORD_BYTES_RESERVE, job_bytes_for(1, 1), err);
    if (!st)
        st = check_scoring(r, err);
    pthread_mutex_unlock(&r->lock);
    if (!st && r->deps.book)
        st = book_ready(r->deps.book, clock_wall_ms() / 1000, err);
    return st;
}

/* Of an answer that one adapter's index will be asked about the keys are kept as it is decoded. */
static void want_keys(struct recorder *r, struct request *req)
{
    struct index_found found = {0};
    bool bound = r->lane.bound;
    if (!r->deps.indexes || req->comp.n != 1 || (bound && !terms_has_datanet(req->terms[0])) ||
        !(recorder_may_be_required(req) || recorder_is_previewed(r, req)))
        return;
    indexes_find(r->deps.indexes, req->comp.part[0].adapter,
                 bound ? req->terms[0]->document_root : NULL, &found);
    if (found.index)
        (void)request_want_keys(req, found.index->basis);
    index_release(found.index);
}

enum status recorder_admit(struct recorder *r, struct request *req, struct errtext *err)
{
    enum status st = recorder_entitle(r, req, err);
    if (st)
        return st;
    uint64_t job_bytes = job_reserve(req);
    if (job_bytes > MIN((uint64_t)JOB_BYTES_MAX, r->opt.score_bytes_max))
        return err_set(err, STATUS_TOO_LARGE,
                       "scoring this answer could need %llu bytes, at most %llu are kept (the "
                       "smaller of score_bytes_max and %u): ask for fewer tokens or choices",
                       (unsigned long long)job_bytes,
                       (unsigned long long)MIN((uint64_t)JOB_BYTES_MAX, r->opt.score_bytes_max),
                       JOB_BYTES_MAX);
    pthread_mutex_lock(&r->lock);
    if (r->in_flight == RECORDER_FLIGHT_MAX)
        st =
            err_set(err, STATUS_FULL, "%u answers are in flight, the maximum", RECORDER_FLIGHT_MAX);
    else
        st = check_room(r, (r->in_flight + 1) * (uint64_t)RECORD_BYTES_RESERVE, job_bytes, err);
    if (!st) {
        r->in_flight++;
        r->job_reserved += job_bytes;
    }
    pthread_mutex_unlock(&r->lock);
    if (!st)
        want_keys(r, req);
    return st;
}

void recorder_unadmit(struct recorder *r, const struct request *req)
{
    uint64_t job_bytes = job_reserve(req);
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

/* ---- the thread ---- */

/* No client pays for the question whether a disk that refused takes writes again. */
static void try_disk(struct recorder *r)
{
    struct errtext err = ERRTEXT_INIT;
    if (!r->disk_refuses || clock_mono_ns() < r->retry_ns)
        return;
    enum status st = spool_probe(r->spool, &err);
    r->retry_ns = clock_mono_ns() + RECORDER_RETRY_NS;
    pthread_mutex_lock(&r->lock);
    r->disk_refuses = st != STATUS_OK;
    if (st)
        snprintf(r->disk_text, sizeof(r->disk_text), "%s", err.text);
    pthread_mutex_unlock(&r->lock);
}

/* One line when it begins, one when it is over. */
static void tell_readiness(struct recorder *r)
{
    struct errtext err = ERRTEXT_INIT;
    bool ready = recorder_ready(r, &err) == STATUS_OK;
    if (!ready && !r->unready[0])
        log_error("records", "not ready: %s", err.text);
    else if (ready && r->unready[0])
        log_info("records", "ready again");
    snprintf(r->unready, sizeof(r->unready), "%s", ready ? "" : err.text);
}

static void *recorder_main(void *arg)
{
    struct recorder *r = arg;
    struct group *g = mem_alloc(sizeof(*g));
    for (;;) {
        bool wrote = recorder_run_group(r, g);
        if (!wrote)
            recorder_publish_stats(r, NULL);
        recorder_tidy(r);
        try_disk(r);
        tell_readiness(r);
        scorer_expire(r->scorer, (uint64_t)r->opt.score_age_s_max * 1000000000u);
        if (wrote)
            continue;
        if (mailbox_is_closed(&r->finished) && mailbox_used(&r->finished) == 0)
            break;
        mailbox_wait(&r->finished, 200);
    }
    recorder_checkpoint(r, spool_durable_seq(r->spool));
    mem_free(g);
    return NULL;
}

/* ---- life ---- */

static void wake_recorder(void *arg)
{
    struct recorder *r = arg;
    mailbox_kick(&r->finished);
}

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
    snprintf(dir, sizeof(dir), "%s/spool", r->lane.dir);
    struct spool_options spool = {
        .dir = dir,
        .segment_bytes_max = MIN((uint64_t)RECORDER_SEGMENT_BYTES, r->opt.spool_bytes_max / 8),
        .bytes_max = r->opt.spool_bytes_max};
    st = spool_open(&r->spool, &spool, err);
    if (!st)
        st = spool_check_used(r->spool, r->opt.ledger_used,
                              "the ledger (was a batch forged? Then its guardian drops it first)",
                              err);
    if (!st) {
        snprintf(dir, sizeof(dir), "%s/lookup", r->lane.dir);
        st = lookup_open(&r->lookup, dir, err);
    }
    if (!st) {
        snprintf(dir, sizeof(dir), "%s/keys", r->lane.dir);
        st = keylog_open(&r->keys, dir, err);
    }
    if (!st) {
        snprintf(dir, sizeof(dir), "%s/evidence", r->lane.dir);
        st = evidence_open(&r->evidence, dir, r->lane.jobs_key, r->opt.evidence_bytes_max, err);
    }
    if (st)
        return st;
    const struct scorer_options scorer = {.engine = r->deps.engine,
                                          .catalog = r->deps.catalog,
                                          .model = r->deps.model,
                                          .indexes = r->deps.indexes,
                                          .evidence = r->evidence,
                                          .rows_max = RECORDER_SCORE_ROWS_MAX,
                                          .wake = wake_recorder,
                                          .wake_arg = r};
    r->scorer = scorer_create(&scorer);
    return recorder_recover(r, err);
}

static enum status start_shipping(struct recorder *r, struct errtext *err)
{
    struct ship_options ship = {.redis_url = r->opt.redis_url,
                                .password_file = r->opt.redis_password_file,
                                .ca_file = r->opt.redis_ca_file,
                                .lane = r->lane.id,
                                .is_own = lane_is_own,
                                .read_final = lane_read_final,
                                .arg = &r->lane};
    if (!r->lane.bound || !r->opt.redis_url)
        return STATUS_OK;
    return ship_start(&r->ship, &ship, r->spool, err);
}

enum status recorder_create(struct recorder **out, const struct recorder_options *opt,
                            const struct recorder_deps *deps, struct errtext *err)
{
    struct recorder *r = mem_alloc(sizeof(*r));
    *out = NULL;
    r->opt = *opt;
    r->deps = *deps;
    CHECK(pthread_mutex_init(&r->lock, NULL) == 0);
    buf_init(&r->scratch, JOB_BYTES_MAX);
    mailbox_init(&r->finished, RECORDER_FLIGHT_MAX);
    r->build = (struct build_context){.lane = &r->lane, .model = deps->model};
    engine_get_id(deps->engine, r->build.engine_id);
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
    r->scored_ns = clock_mono_ns();
    recorder_publish_stats(r, NULL);
    log_info("records", "lane %u (%s), next record %llu, %llu jobs to score", r->lane.id,
             r->lane.bound ? "bound" : "unbound", (unsigned long long)spool_next_seq(r->spool),
             (unsigned long long)jobstore_count(r->jobs));
    CHECK(thread_start(&r->thread, "rs-recorder", recorder_main, r, NULL) == STATUS_OK);
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
    pthread_mutex_lock(&r->lock);
    struct ship *ship = r->ship;
    r->ship = NULL;
    pthread_mutex_unlock(&r->lock);
    ship_stop(ship, deadline_ms);
}

void recorder_destroy(struct recorder *r)
{
    if (!r)
        return;
    CHECK(!r->running);
    ship_stop(r->ship, 0);
    while (r->held) {
        struct score_task *t = r->held;
        r->held = t->next;
        score_task_free(t);
    }
    scorer_destroy(r->scorer);
    evidence_close(r->evidence);
    open_list_fini(&r->open);
    jobstore_close(r->jobs);
    lookup_close(r->lookup);
    keylog_close(r->keys);
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
    out->redis_connected = r->ship && ship_is_connected(r->ship);
    out->seq_shipped = r->ship ? ship_shipped_seq(r->ship) : 0;
    pthread_mutex_unlock(&r->lock);
}
