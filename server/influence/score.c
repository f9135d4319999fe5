/* A queue of tasks in the order of their records. Rows leave it as the engine asks, results come
 * back by message in any order; a task is done when its last row is. */
#include "server/influence/score.h"
#include "chain_client/canon.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mailbox.h"
#include "server/base/mem.h"

#include <string.h>

struct score_row {
    struct score_job job;
    struct score_task *task;
    struct scorer *scorer;
    int32_t
        *ids; /* prompt + output, shared by the rows of a sequence; owned by the row that `owns` */
    bool owns;
    uint32_t seq_idx, kind; /* kind 0: base; 1 + k: adapter k alone */
};

struct scorer {
    struct engine *engine;
    struct catalog *catalog;
    struct mailbox done; /* score_row, from the engine */
    uint32_t rows_max, rows_inside;
    void (*wake)(void *arg);
    void *wake_arg;
    struct score_task *head, *tail; /* waiting or running, oldest first */
    uint64_t task_count;
};

static void on_done(struct score_job *j, void *arg)
{
    struct score_row *row = arg;
    struct scorer *s = row->scorer; /* the row may be gone once it is posted */
    CHECK(&row->job == j && mailbox_push(&s->done, row) == STATUS_OK);
    s->wake(s->wake_arg);
}

struct scorer *scorer_create(struct engine *e, struct catalog *c, uint32_t rows_max,
                             void (*wake)(void *arg), void *arg)
{
    struct scorer *s = mem_alloc(sizeof(*s));
    *s = (struct scorer){
        .engine = e, .catalog = c, .rows_max = rows_max, .wake = wake, .wake_arg = arg};
    mailbox_init(&s->done, rows_max);
    return s;
}

void score_task_free(struct score_task *t)
{
    if (!t)
        return;
    uint32_t kinds = gain_row_count(t->job);
    for (uint32_t i = 0; i < t->row_count; i++) {
        struct score_row *row = &t->row[i];
        if (row->owns) {
            mem_wipe(row->ids, row->job.n_ids * sizeof(int32_t));
            mem_free(row->ids);
        }
        mem_free(row->job.logprob);
        for (uint32_t p = 0; p < row->job.comp.n; p++)
            catalog_release(row->job.entry[p]);
    }
    for (uint32_t i = 0; t->q8 && i < t->job->seq_count * kinds; i++)
        mem_free(t->q8[i]);
    mem_free(t->q8);
    mem_free(t->row);
    job_free(t->job);
    mem_free(t);
}

/* ---- making rows ---- */

static int32_t *join_ids(const struct job *j, uint32_t seq_idx)
{
    const struct job_seq *seq = &j->seq[seq_idx];
    const struct job_prompt *p = &j->prompt[seq->prompt_idx];
    int32_t *ids = mem_try_array(p->n_ids + seq->n_out, sizeof(*ids));
    if (ids) {
        memcpy(ids, p->ids, p->n_ids * sizeof(*ids));
        memcpy(ids + p->n_ids, seq->ids, seq->n_out * sizeof(*ids));
    }
    return ids;
}

/* The composition of one row; false when the adapter is no longer known. */
static bool set_composition(struct scorer *s, struct score_row *row, const struct job *j)
{
    struct score_job *sj = &row->job;
    if (row->kind > 0) {
        const struct job_adapter *a = &j->adapter[row->kind - 1];
        sj->entry[0] = catalog_find_id(s->catalog, a->id);
        if (!sj->entry[0])
            return false;
        sj->comp.n = 1;
        memcpy(sj->comp.part[0].adapter, a->id, 32);
        sj->comp.part[0].weight_q16 = a->weight_q16;
    }
    return composition_seal(&sj->comp, NULL) == STATUS_OK;
}

static bool make_row(struct scorer *s, struct score_task *t, uint32_t seq_idx, uint32_t kind,
                     int32_t **ids)
{
    const struct job *j = t->job;
    struct score_row *row = &t->row[t->row_count++];
    const struct job_seq *seq = &j->seq[seq_idx];
    *row = (struct score_row){.task = t, .scorer = s, .seq_idx = seq_idx, .kind = kind};
    row->owns = *ids == NULL;
    if (row->owns)
        *ids = join_ids(j, seq_idx);
    row->ids = *ids;
    row->job.n_prompt = j->prompt[seq->prompt_idx].n_ids;
    row->job.n_ids = row->job.n_prompt + seq->n_out;
    row->job.ids = row->ids;
    row->job.logprob = mem_try_array(seq->n_out, sizeof(float));
    row->job.on_done = on_done;
    row->job.on_done_arg = row;
    if (!row->ids || !row->job.logprob)
        t->outcome = RECORD_OUTCOME_SCORER_FAILED;
    else if (!set_composition(s, row, j))
        t->outcome = RECORD_OUTCOME_MODEL_GONE;
    return !t->outcome;
}

/* All rows of all sequences with output. On failure the outcome says why and no row is left to run.
 */
static void make_rows(struct scorer *s, struct score_task *t)
{
    const struct job *j = t->job;
    uint32_t kinds = gain_row_count(j);
    t->row = mem_array(j->seq_count * kinds, sizeof(*t->row));
    t->q8 = mem_array(j->seq_count * kinds, sizeof(*t->q8));
    for (uint32_t i = 0; i < j->seq_count; i++) {
        int32_t *ids = NULL;
        for (uint32_t k = 0; k < kinds; k++) {
            int32_t *q8 = mem_try_array(j->seq[i].n_out, sizeof(*q8));
            t->q8[i * kinds + k] = q8;
            if (!q8 && !t->outcome)
                t->outcome = RECORD_OUTCOME_SCORER_FAILED;
            if (j->seq[i].n_out == 0 || t->outcome)
                continue;
            (void)make_row(s, t, i, k, &ids);
        }
    }
    if (t->outcome)
        t->submitted = t->finished = t->row_count;
}

void scorer_add(struct scorer *s, struct job *job, bool preview)
{
    struct score_task *t = mem_alloc(sizeof(*t));
    t->job = job;
    t->preview = preview;
    t->since_ns = clock_mono_ns();
    make_rows(s, t);
    if (s->tail)
        s->tail->next = t;
    else
        s->head = t;
    s->tail = t;
    s->task_count++;
}

/* ---- running ---- */

static void submit_rows(struct scorer *s)
{
    for (struct score_task *t = s->head; t; t = t->next) {
        while (t->submitted < t->row_count) {
            if (s->rows_inside == s->rows_max)
                return;
            enum status st = engine_submit_score(s->engine, &t->row[t->submitted].job);
            if (st == STATUS_UNSUPPORTED) { /* scoring is off: the record says so */
                t->outcome = RECORD_OUTCOME_SCORER_FAILED;
                t->submitted = t->finished = t->row_count;
                break;
            }
            if (st)
                return;
            t->submitted++;
            s->rows_inside++;
        }
    }
}

static void collect_rows(struct scorer *s)
{
    struct score_row *row;
    while ((row = mailbox_pop(&s->done))) {
        struct score_task *t = row->task;
        int32_t *q8 = t->q8[row->seq_idx * gain_row_count(t->job) + row->kind];
        s->rows_inside--;
        t->finished++;
        if (row->job.status == STATUS_CANCELLED) {
            t->cancelled = true;
            t->outcome = RECORD_OUTCOME_SCORER_FAILED;
            continue;
        }
        if (row->job.status) {
            t->outcome = RECORD_OUTCOME_SCORER_FAILED;
            log_warn("score", "record %llu: scoring failed: %s",
                     (unsigned long long)t->job->inf_seq, status_name(row->job.status));
            continue;
        }
        for (uint32_t i = 0; i < t->job->seq[row->seq_idx].n_out; i++)
            q8[i] = job_q8(row->job.logprob[i]);
    }
}

static void compute(struct score_task *t)
{
    uint32_t kinds = gain_row_count(t->job);
    struct gain_seq *seq = mem_array(t->job->seq_count, sizeof(*seq));
    for (uint32_t i = 0; i < t->job->seq_count; i++) {
        for (uint32_t k = 0; k < kinds; k++)
            seq[i].row[k] = t->q8[i * kinds + k];
    }
    gain_compute(&t->result, t->job, seq);
    gain_inputs_digest(t->inputs_digest, t->job, seq);
    mem_free(seq);
}

struct score_task *scorer_poll(struct scorer *s)
{
    collect_rows(s);
    submit_rows(s);
    struct score_task *before = NULL;
    for (struct score_task *t = s->head; t; before = t, t = t->next) {
        if (t->finished < t->row_count && t->submitted == 0)
            break; /* nothing behind it has begun */
        if (t->finished < t->row_count)
            continue;
        if (before)
            before->next = t->next;
        else
            s->head = t->next;
        if (s->tail == t)
            s->tail = before;
        s->task_count--;
        if (!t->outcome)
            compute(t);
        t->next = NULL;
        return t;
    }
    return NULL;
}

void scorer_expire(struct scorer *s, uint64_t age_ns)
{
    uint64_t now_ns = clock_mono_ns();
    for (struct score_task *t = s->head; t; t = t->next) {
        if (t->submitted > 0 || now_ns - t->since_ns < age_ns)
            continue;
        t->outcome = RECORD_OUTCOME_INPUTS_LOST;
        t->submitted = t->finished = t->row_count;
    }
}

uint64_t scorer_queued(const struct scorer *s)
{
    return s->task_count;
}

void scorer_destroy(struct scorer *s)
{
    if (!s)
        return;
    while (s->rows_inside > 0) {
        mailbox_wait(&s->done, 100);
        collect_rows(s);
    }
    while (s->head) {
        struct score_task *t = s->head;
        s->head = t->next;
        score_task_free(t);
    }
    mailbox_fini(&s->done);
    mem_free(s);
}
