/* The calls between the files of this folder, by file, in the order a step makes them. Engine
 * thread only, but for the calls that engine.h declares. */
#ifndef RS_ENGINE_STEPS_H
#define RS_ENGINE_STEPS_H

#include "server/engine/state.h"

/* engine.c */
/* One step. false: nothing could run. Tests call it without a thread. */
bool engine_step(struct engine *e);
/* End everything with FINISH_ERROR and st; nothing is running or waiting afterwards. */
void engine_end_all(struct engine *e, enum status st, const char *why);
void *engine_main(void *engine);

/* job.c: requests inside the engine */
void job_receive(struct engine *e);
void job_finish_seq(struct engine *e, struct engine_job *j, uint32_t idx, enum finish_reason why);
/* Every unfinished sequence; the job is gone afterwards. */
void job_finish_all(struct engine *e, struct engine_job *j, enum finish_reason why);
void job_fail(struct engine *e, struct engine_job *j, enum status st, const struct errtext *why);
/* Frees the job and passes the request on if all its sequences are done. */
bool job_end_if_done(struct engine *e, struct engine_job *j);
void job_wake(struct engine *e, struct engine_job *j);
struct sched_rank job_rank(const struct engine *e, const struct engine_job *j);

/* admit.c */
void admit_requests(struct engine *e);

/* share.c: slots and pages for keys that hold less than their share */
/* Pages of each key into sched.key[].pages, and how many are more than its part. */
void share_count_pages(struct engine *e);
bool share_exceeds(const struct engine *e, const struct seq *s);
/* Whether now is a time to look for claims; the calls below are for such a pass. */
bool share_looks(struct engine *e);
bool share_claims(const struct engine *e, const struct engine_job *j);
/* Make a slot free for j, or pages for the rest of s; false: nobody has to give. */
bool share_slot(struct engine *e, const struct engine_job *j);
bool share_pages(struct engine *e, struct seq *s);

/* seq.c: slots of the running set */
struct seq *seq_start(struct engine *e, uint32_t slot, const struct seq *init);
void seq_stop(struct engine *e, struct seq *s);
void seq_start_job(struct engine *e, struct engine_job *j, uint32_t idx, struct seq *s);
void seq_preempt(struct engine *e, struct seq *s);
void seq_attach_cached(struct engine *e, struct seq *s);
void seq_attach_sibling(struct engine *e, struct seq *s, const struct seq *sibling, uint32_t pages);
/* The order is as of now. */
void seq_settle_order(struct engine *e);
bool seq_reserve(struct engine *e, struct seq *s, uint32_t n_pos);
/* Full pages below n_pos become findable: their rows are given to the device, their ids known. */
void seq_key_pages(struct engine *e, struct seq *s, uint32_t n_pos);
static inline uint32_t *seq_pages(const struct engine *e, const struct seq *s)
{
    return e->page_table + (size_t)s->slot * e->page_stride;
}
static inline uint32_t pages_for(uint32_t n_pos)
{
    return (n_pos + KV_PAGE_TOK - 1) / KV_PAGE_TOK;
}
/* Pages it needs for what it knows but does not hold yet, and one. */
static inline uint32_t seq_owes(const struct seq *s)
{
    uint32_t need = pages_for(s->n_tok);
    return (need > s->page_count ? need - s->page_count : 0) + 1;
}
static inline bool pages_fit(const struct engine *e)
{
    return kv_free_count(&e->kv) >= e->pages_owed;
}

/* pins.c */
enum status pins_take(struct engine *e, const struct composition *comp,
                      struct adapter_entry *const *entry, uint32_t *slot, struct errtext *err);
void pins_drop(struct engine *e, const struct composition *comp, const uint32_t *slot);

/* plan.c: rows of the step and pages for them, preempting if need be; false: nothing to run */
bool plan_step(struct engine *e);

/* run.c: the planned step to the backend; f is its flight afterwards */
enum status run_launch(struct engine *e, struct flight *f);
/* What the flight found into e->head, waiting for the device. */
enum status run_collect(struct engine *e, const struct flight *f);

static inline const void *run_hidden_row(const struct engine *e, uint32_t row)
{
    size_t row_bytes = e->model->config.d_model * dtype_bytes(e->backend->act);
    return (const char *)e->head.hidden + row * row_bytes;
}

/* keys.c: of the wanted rows, after the forward pass */
enum status keys_run(struct engine *e, struct flight *f);
enum status keys_read_hidden(struct engine *e, const struct flight *f);
static inline const int8_t *keys_row(const struct engine *e, uint32_t row)
{
    return e->head.key + (size_t)row * SKETCH_DIM;
}

/* deliver.c */
void deliver_step(struct engine *e, const struct flight *f);

/* score.c */
void score_admit(struct engine *e);
/* row: of the wanted ones. */
void score_deliver(struct engine *e, struct seq *s, const struct flight *f, uint32_t row);
/* The rows of a flight are back. */
void score_advance(struct engine *e, struct seq *s, const struct flight_seq *done);
void score_yield(struct engine *e);
void score_preempt(struct engine *e, struct score_run *run);
void score_end_all(struct engine *e, enum status st);

/* stats.c */
void stats_publish(struct engine *e);
void engine_verify(struct engine *e);

/* mail.c */
void unload_receive(struct engine *e);

#endif
