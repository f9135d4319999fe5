/* A queue of tasks in the order of their records, and apart from it those that wait for an index.
 * Rows leave it as the engine asks, results come back by message in any order; when the last row of
 * a task is there the task goes to the computing thread, and comes back by message too. */
#include "server/influence/score.h"
#include "chain_client/canon.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mailbox.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/engine/basis.h"

#include <stdio.h>
#include <string.h>

#define COMPUTING_MAX 64

struct score_row {
    struct score_job job;
    struct score_task *task;
    struct scorer *scorer;
    int32_t
        *ids; /* prompt + output, shared by the rows of a sequence; owned by the row that `owns` */
    bool owns;
    uint32_t seq_idx, kind; /* 0: base; 1 + k: adapter k of K alone; 1 + K + k: the set without k */
};

struct task_list {
    struct score_task *head, *tail;
};

struct scorer {
    struct scorer_options opt;
    struct mailbox done;        /* score_row, from the engine */
    struct mailbox todo, ready; /* score_task, to the computing thread and back */
    pthread_t thread;
    _Atomic uint64_t compute_ns, compute_count; /* computing thread */
    uint32_t rows_inside, computing;
    struct task_list queue;  /* rows wait or run, oldest first */
    struct task_list parked; /* an index is being made */
    uint64_t epoch;          /* of the indexes, when parked was last looked at */
    uint64_t task_count;
};

static void list_push(struct task_list *l, struct score_task *t)
{
    t->next = NULL;
    if (l->tail)
        l->tail->next = t;
    else
        l->head = t;
    l->tail = t;
}

/* before NULL: t is the first */
static void list_cut(struct task_list *l, struct score_task *before, struct score_task *t)
{
    if (before)
        before->next = t->next;
    else
        l->head = t->next;
    if (l->tail == t)
        l->tail = before;
    t->next = NULL;
}

static void on_done(struct score_job *j, void *arg)
{
    struct score_row *row = arg;
    struct scorer *s = row->scorer; /* the row may be gone once it is posted */
    CHECK(&row->job == j && mailbox_push(&s->done, row) == STATUS_OK);
    s->opt.wake(s->opt.wake_arg);
}

static void *compute_main(void *arg)
{
    struct scorer *s = arg;
    for (;;) {
        struct score_task *t = mailbox_pop(&s->todo);
        if (t) {
            uint64_t begin_ns = clock_mono_ns();
            score_compute(t, &s->opt);
            atomic_fetch_add(&s->compute_ns, clock_mono_ns() - begin_ns);
            atomic_fetch_add(&s->compute_count, 1);
            CHECK(mailbox_push(&s->ready, t) == STATUS_OK); /* sized for all */
            s->opt.wake(s->opt.wake_arg);
        } else if (mailbox_is_closed(&s->todo)) {
            return NULL;
        } else {
            mailbox_wait(&s->todo, 1000);
        }
    }
}

struct scorer *scorer_create(const struct scorer_options *opt)
{
    struct scorer *s = mem_alloc(sizeof(*s));
    *s = (struct scorer){.opt = *opt};
    mailbox_init(&s->done, opt->rows_max);
    mailbox_init(&s->todo, COMPUTING_MAX);
    mailbox_init(&s->ready, COMPUTING_MAX);
    CHECK(thread_start(&s->thread, "rs-score", compute_main, s, NULL) == STATUS_OK);
    return s;
}

static void part_free(struct score_part *p, uint32_t seq_count)
{
    for (uint32_t i = 0; p->key && i < seq_count; i++)
        mem_free(p->key[i]);
    mem_free(p->key);
    mem_free(p->head);
    mem_free(p->spans);
    index_release(p->index);
}

void score_task_free(struct score_task *t)
{
    if (!t)
        return;
    uint32_t kinds = gain_row_count(t->job->adapter_count);
    for (uint32_t i = 0; i < t->row_count; i++) {
        struct score_row *row = &t->row[i];
        if (row->owns) {
            mem_wipe(row->ids, row->job.n_ids * sizeof(int32_t));
            mem_free(row->ids);
        }
        mem_free(row->job.logprob);
        mem_free(row->job.key);
        for (uint32_t p = 0; p < row->job.comp.n; p++)
            catalog_release(row->job.entry[p]);
    }
    for (uint32_t i = 0; t->q8 && i < t->job->seq_count * kinds; i++)
        mem_free(t->q8[i]);
    for (uint32_t k = 0; k < t->job->adapter_count; k++)
        part_free(&t->part[k], t->job->seq_count);
    gain_result_fini(&t->result);
    mem_free(t->q8);
    mem_free(t->row);
    job_free(t->job);
    mem_free(t);
}

/* ---- making rows ---- */

/* The composition of one row; false when the adapter is no longer known. */
static bool set_composition(struct scorer *s, struct score_row *row, const struct job *j)
{
    struct score_job *sj = &row->job;
    for (uint32_t k = 0; k < j->adapter_count && row->kind > 0; k++) {
        bool alone = row->kind <= j->adapter_count;
        if (alone != (k == (row->kind - 1) % j->adapter_count))
            continue;
        const struct job_adapter *a = &j->adapter[k];
        uint32_t at = sj->comp.n;
        sj->entry[at] = catalog_find_id(s->opt.catalog, a->id);
        if (!sj->entry[at])
            return false;
        memcpy(sj->comp.part[at].adapter, a->id, 32);
        sj->comp.part[at].weight_q16 = a->weight_q16;
        sj->comp.n++;
    }
    return composition_seal(&sj->comp, NULL) == STATUS_OK;
}

/* Whose keys this row brings, or NULL. */
static struct score_part *part_of_row(struct score_task *t, uint32_t kind)
{
    struct score_part *p = kind > 0 && kind <= t->job->adapter_count ? &t->part[kind - 1] : NULL;
    return p && p->index ? p : NULL;
}

static bool add_key(struct score_row *row, struct score_part *p)
{
    if (!p)
        return true;
    row->job.key = mem_try_array(row->job.n_ids - row->job.n_prompt, SKETCH_DIM);
    row->job.basis = p->index->basis;
    p->head[row->seq_idx] = row->job.key;
    return row->job.key != NULL;
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
        *ids = job_text(j, seq_idx);
    row->ids = *ids;
    row->job.n_prompt = j->prompt[seq->prompt_idx].n_ids;
    row->job.n_ids = row->job.n_prompt + seq->n_out;
    row->job.ids = row->ids;
    row->job.share_pages = true;
    memcpy(row->job.cache_salt, j->cache_salt, sizeof(row->job.cache_salt));
    row->job.logprob = mem_try_array(seq->n_out, sizeof(float));
    row->job.on_done = on_done;
    row->job.on_done_arg = row;
    if (!row->ids || !row->job.logprob || !add_key(row, part_of_row(t, kind)))
        t->outcome = RECORD_OUTCOME_SCORER_FAILED;
    else if (!set_composition(s, row, j))
        t->outcome = RECORD_OUTCOME_MODEL_GONE;
    return !t->outcome;
}

/* Has decoding left the keys of the only adapter's index? */
static bool take_kept_keys(struct score_task *t, uint32_t seq_idx)
{
    const struct job *j = t->job;
    struct score_part *p = &t->part[0];
    if (!p->index || !j->seq[seq_idx].key || j->basis != p->index->basis)
        return false;
    p->head[seq_idx] = j->seq[seq_idx].key;
    return true;
}

/* Rows of sequence i beside the base's: of a mix those of gain.h, else one for keys that are not at
 * hand. */
static uint32_t rows_beside(struct score_task *t, uint32_t i)
{
    if (t->job->adapter_count >= 2)
        return gain_row_count(t->job->adapter_count) - 1;
    return t->part[0].index && !take_kept_keys(t, i);
}

static bool make_columns(struct score_task *t)
{
    const struct job *j = t->job;
    uint32_t kinds = gain_row_count(j->adapter_count);
    bool good = true;
    t->row = mem_array(j->seq_count * MAX(kinds, 2), sizeof(*t->row));
    t->q8 = mem_array(j->seq_count * kinds, sizeof(*t->q8));
    for (uint32_t i = 0; i < j->seq_count * kinds; i++) {
        t->q8[i] = mem_try_array(j->seq[i / kinds].n_out, sizeof(**t->q8));
        good &= t->q8[i] != NULL;
    }
    for (uint32_t k = 0; k < j->adapter_count; k++) {
        if (t->part[k].index)
            t->part[k].head = mem_array(j->seq_count, sizeof(*t->part[k].head));
    }
    return good;
}

/* All rows of all sequences with output. On failure the outcome says why and no row is left to run.
 */
static void make_rows(struct scorer *s, struct score_task *t)
{
    const struct job *j = t->job;
    if (!make_columns(t))
        t->outcome = RECORD_OUTCOME_SCORER_FAILED;
    for (uint32_t i = 0; i < j->seq_count && !t->outcome; i++) {
        int32_t *ids = NULL;
        uint32_t beside = j->seq[i].n_out ? rows_beside(t, i) : 0;
        for (uint32_t kind = 0; j->seq[i].n_out && kind <= beside && !t->outcome; kind++)
            (void)make_row(s, t, i, kind, &ids);
    }
    if (t->outcome)
        t->submitted = t->finished = t->row_count;
}

/* ---- indexes ---- */

/* false: one of them is being made. */
static bool find_indexes(const struct scorer *s, struct score_task *t)
{
    bool settled = true;
    for (uint32_t k = 0; k < t->job->adapter_count; k++) {
        const struct job_adapter *a = &t->job->adapter[k];
        struct score_part *p = &t->part[k];
        struct index_found found = {.state = INDEX_NONE};
        if (a->index != JOB_INDEX_NONE && s->opt.indexes)
            indexes_find(s->opt.indexes, a->id, a->index == JOB_INDEX_OWN ? NULL : a->document_root,
                         &found);
        else
            snprintf(found.why, sizeof(found.why), "%s",
                     a->index == JOB_INDEX_NONE ? "no index: this adapter has no datanet"
                                                : "no index: scoring is off (score_rows_max 0)");
        index_release(p->index);
        p->index = found.index;
        p->state = found.state;
        memcpy(p->why, found.why, sizeof(p->why));
        settled &= p->state != INDEX_WAITING && p->state != INDEX_BUILDING;
    }
    return settled;
}

static void place_task(struct scorer *s, struct score_task *t)
{
    if (!find_indexes(s, t)) {
        list_push(&s->parked, t);
        return;
    }
    make_rows(s, t);
    list_push(&s->queue, t);
}

void scorer_add(struct scorer *s, struct job *job, bool preview)
{
    struct score_task *t = mem_alloc(sizeof(*t));
    t->job = job;
    t->preview = preview;
    t->since_ns = clock_mono_ns();
    s->task_count++;
    place_task(s, t);
}

/* Something was made, or could not be. */
static void unpark(struct scorer *s)
{
    uint64_t epoch = s->opt.indexes ? indexes_epoch(s->opt.indexes) : 0;
    if (epoch == s->epoch)
        return;
    s->epoch = epoch;
    struct score_task *t = s->parked.head;
    s->parked = (struct task_list){0};
    while (t) {
        struct score_task *after = t->next;
        place_task(s, t);
        t = after;
    }
}

/* ---- running ---- */

static void submit_rows(struct scorer *s)
{
    for (struct score_task *t = s->queue.head; t; t = t->next) {
        while (t->submitted < t->row_count) {
            if (s->rows_inside == s->opt.rows_max)
                return;
            enum status st = engine_submit_score(s->opt.engine, &t->row[t->submitted].job);
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
        uint32_t kinds = gain_row_count(t->job->adapter_count);
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
        if (row->kind >= kinds) /* it ran for its keys alone */
            continue;
        int32_t *q8 = t->q8[row->seq_idx * kinds + row->kind];
        for (uint32_t i = 0; i < t->job->seq[row->seq_idx].n_out; i++)
            q8[i] = job_q8(row->job.logprob[i]);
    }
}

/* The next task that is over: computed, or without anything to compute. Those whose rows are all
 * there go to the computing thread on the way. */
static struct score_task *next_over(struct scorer *s)
{
    struct score_task *before = NULL, *after, *t = mailbox_pop(&s->ready);
    if (t) {
        s->computing--;
        return t;
    }
    for (t = s->queue.head; t; t = after) {
        after = t->next;
        if (t->finished < t->row_count && t->submitted == 0)
            break; /* nothing behind it has begun */
        bool over = t->finished == t->row_count && (t->outcome || s->computing < COMPUTING_MAX);
        if (!over) {
            before = t;
            continue;
        }
        list_cut(&s->queue, before, t);
        if (t->outcome)
            return t;
        CHECK(mailbox_push(&s->todo, t) == STATUS_OK);
        s->computing++;
    }
    return NULL;
}

struct score_task *scorer_poll(struct scorer *s)
{
    collect_rows(s);
    unpark(s);
    submit_rows(s);
    struct score_task *t = next_over(s);
    s->task_count -= t != NULL;
    return t;
}

void scorer_expire(struct scorer *s, uint64_t age_ns)
{
    uint64_t now_ns = clock_mono_ns();
    for (struct score_task *t = s->queue.head; t; t = t->next) {
        if (t->submitted > 0 || now_ns - t->since_ns < age_ns)
            continue;
        t->outcome = RECORD_OUTCOME_INPUTS_LOST;
        t->submitted = t->finished = t->row_count;
    }
    while (s->parked.head && now_ns - s->parked.head->since_ns >= age_ns) {
        struct score_task *t = s->parked.head;
        list_cut(&s->parked, NULL, t);
        t->outcome = RECORD_OUTCOME_INPUTS_LOST;
        list_push(&s->queue, t);
    }
}

void scorer_computed(const struct scorer *s, uint64_t *count, uint64_t *ns)
{
    *count = atomic_load(&s->compute_count);
    *ns = atomic_load(&s->compute_ns);
}

uint64_t scorer_queued(const struct scorer *s)
{
    return s->task_count;
}

static void drop_list(struct task_list *l)
{
    while (l->head) {
        struct score_task *t = l->head;
        l->head = t->next;
        score_task_free(t);
    }
}

void scorer_destroy(struct scorer *s)
{
    struct score_task *t;
    if (!s)
        return;
    while (s->rows_inside > 0) {
        mailbox_wait(&s->done, 100);
        collect_rows(s);
    }
    mailbox_close(&s->todo);
    pthread_join(s->thread, NULL);
    while ((t = mailbox_pop(&s->ready)))
        score_task_free(t);
    drop_list(&s->queue);
    drop_list(&s->parked);
    mailbox_fini(&s->done);
    mailbox_fini(&s->todo);
    mailbox_fini(&s->ready);
    mem_free(s);
}
