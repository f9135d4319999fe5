/* Inside of the factory. Who owns what:
 *
 *   under the lock    the table of jobs and what is known of each, the learners, their queues
 *   control thread    what is in memory of running jobs; publishes, reads and writes their files
 *   background        computes what the control thread gives it, and touches no lock
 *
 * A job's entry stays where it is until it is forgotten, which running ones cannot be. */
#ifndef RS_TRAIN_FACTORY_IMPL_H
#define RS_TRAIN_FACTORY_IMPL_H

#include "server/train/background.h"
#include "server/train/factory_learners.h"
#include "server/train/train_output.h"

#include <limits.h>
#include <pthread.h>

#define FACTORY_RUNNING_MAX  64
#define FACTORY_LEARNERS_MAX 64
#define FACTORY_JOB_FILE     "job.json"
#define FACTORY_NOTE_FILE    "note.json"
#define FACTORY_EVENTS_FILE  "events"
#define FACTORY_CONFIG_FILE  "adapter_config.json"
#define FACTORY_TENSORS_FILE "adapter_model.safetensors"

enum factory_wish { FACTORY_WISH_NONE, FACTORY_WISH_GO, FACTORY_WISH_PAUSE, FACTORY_WISH_CANCEL };

struct train_job {
    struct factory_job now;
    uint64_t quota_bytes;
    uint64_t order; /* of arrival; the newest has the highest */
    uint64_t bytes; /* that it takes in memory; 0: not known yet */
    enum factory_wish wish;
    bool in_memory; /* the control thread has it */
};

/* What a job or its check needs in memory. */
struct job_run {
    struct train_job *job;
    struct datanet *datanet, *eval;
    struct training *training;
    struct training_rows rows;
    /* of eval, held out */
    struct training *held;
    struct training_rows held_rows;
    struct train_evaluation evaluation;
    uint32_t evals;          /* told so far */
    struct train_step asked; /* behind which they are asked */
    struct train_lora lora;
    struct train_options opt;
    struct trainer *trainer;
    struct train_report report;
    uint8_t what[32];
    uint64_t bytes;  /* of the adapter and its trainer */
    uint64_t tokens; /* of an epoch */
    uint64_t saved_ns, begin_ns, begin_tokens;
};

struct learner {
    uint64_t id;
    char owner[64];
    struct train_lora lora;
    float *grad, *m, *v;
    uint32_t steps;
    uint64_t bytes;
    struct factory_work *first, *last; /* under the lock */
    bool closed;                       /* under the lock */
    /* the first work, a PASS: background */
    uint32_t taken, ran;
    bool weighed; /* its weights are known */
};

struct factory {
    struct factory_options opt;
    struct factory_deps deps;
    struct background *background;
    pthread_t thread;
    bool started;
    _Atomic bool stop; /* what computes looks at it */
    /* control thread */
    struct train_pass *pass; /* NULL: nothing trains */
    uint64_t pass_used_ns;
    struct train_pass_stats counted; /* of it, that stats have */
    uint32_t rank_sum_max;
    struct job_run *run[FACTORY_RUNNING_MAX];
    uint32_t n_run, turn;
    /* under the lock */
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct train_job **job;           /* [n_job] oldest first */
    uint32_t n_job, job_room, coming; /* coming: submitted and not in the table yet */
    uint64_t order;
    struct learner *learner[FACTORY_LEARNERS_MAX];
    uint32_t n_learner;
    uint64_t learner_ids, learner_bytes, run_bytes;
    uint32_t n_work;
    struct factory_stats stats;
    void (*on_change)(void *arg, const char *id);
    void *on_change_arg;
};

/* ---- factory.c; the lock is held ---- */

/* TOO_LARGE: no pass on this device would hold it. */
MUST_CHECK enum status factory_check_device(const struct factory *f, const struct train_lora *lora,
                                            struct errtext *err);
/* The one pass of all; made when it is first wanted. Control thread. */
MUST_CHECK enum status factory_make_pass(struct factory *f, struct errtext *err);
struct train_job *factory_find(struct factory *f, const char *id);
bool factory_has_ended(enum factory_status s);

/* ---- factory_disk.c ---- */

/* Of a file of the job's folder; NULL: of the folder. */
void factory_job_path(const struct factory *f, const char *id, const char *file,
                      char out[PATH_MAX]);
/* job.json as it is now. */
MUST_CHECK enum status factory_write_job(const struct factory *f, const struct factory_job *j,
                                         uint64_t quota_bytes, struct errtext *err);
MUST_CHECK enum status factory_read_job(const struct factory *f, const char *id,
                                        struct train_job *out, struct errtext *err);
/* Appends; seq and time are set. A full disk loses the event and is said. */
void factory_add_event(const struct factory *f, struct factory_job *j, struct factory_event *e);
void factory_remove_job(const struct factory *f, const char *id);

/* ---- factory_open.c ---- */

/* spec's or a kept job's rows, adapter and trainer. training: manifest text, or NULL: all rows. */
struct job_from {
    const uint8_t *document_root, *eval_root;
    const char *training, *peft_config;
    size_t training_bytes, peft_config_bytes;
    const struct train_options *train;
    uint32_t warmup_percent; /* UINT32_MAX: train's own warm-up stands */
};
MUST_CHECK enum status factory_open_run(struct factory *f, const struct job_from *from,
                                        struct job_run *out, struct errtext *err);
void factory_close_run(struct job_run *r); /* its members */
/* A fresh adapter of no more rank than passes have room for; bytes: of it and what trains it.
 * Errors: as train_lora_new; INVALID, its rank. train_lora_fini frees it in any case. */
MUST_CHECK enum status factory_new_adapter(const struct factory *f, const char *config, size_t len,
                                           uint64_t seed, struct train_lora *lora, uint64_t *bytes,
                                           struct errtext *err);
/* Publishes weights (of train_lora_render) in the place of what u's name has; u says the rest. */
MUST_CHECK enum status factory_publish_weights(const struct factory *f,
                                               const struct train_lora *lora,
                                               const struct buf *weights, struct publish_upload *u,
                                               struct errtext *err);

/* ---- factory_learners.c ---- */

void learner_free(struct learner *l);
/* Tells the first work what came of it. The lock is held, and given back meanwhile. */
void learner_end_work(struct factory *f, struct learner *l, enum status st,
                      const struct errtext *err);
struct seq_source learner_source(struct learner *l);
/* A pass with its sequences has run: forward_only ones may have to come again. */
void learner_ran(struct learner *l);
bool learner_complete(const struct learner *l);
/* OPTIM, on the background thread; SAVE, LOAD, PUBLISH, on the control thread. */
void learner_optim(struct learner *l, struct factory_work *w);
MUST_CHECK enum status learner_file_work(struct factory *f, struct learner *l,
                                         struct factory_work *w, struct errtext *err);

/* ---- factory_active.c; control thread ---- */

void factory_tell(struct factory *f, struct train_job *j);
void factory_put_event(struct factory *f, struct train_job *j, struct factory_event *e);
/* What it has made so far can be gone on from. */
void factory_say_checkpoint(struct factory *f, struct train_job *j);
void factory_say(struct factory *f, struct train_job *j, uint8_t level, const char *text);
/* What is on disk follows, and who listens is told. */
void factory_keep(struct factory *f, struct train_job *j);
void factory_fail(struct factory *f, struct train_job *j, const struct errtext *why);
MUST_CHECK enum status factory_save_state(struct factory *f, struct job_run *r,
                                          struct errtext *err);
/* The same of one in memory: its last good weights stay in its state. */
void factory_fail_kept(struct factory *f, struct job_run *r, const struct errtext *why);
void factory_drop_run(struct factory *f, uint32_t at);
/* Those that wait, while there is room; and wishes of those that are not in memory. */
void factory_start_jobs(struct factory *f);
/* It has made its steps: published, SUCCEEDED or FAILED. */
void factory_finish_job(struct factory *f, struct job_run *r);
/* true: it leaves memory. */
bool factory_do_wish(struct factory *f, struct job_run *r);

/* ---- factory_run.c ---- */

void *factory_main(void *arg);

#endif
