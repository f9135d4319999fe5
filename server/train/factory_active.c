/* Jobs on the control thread: into memory, out of it, and what is kept and told of them. Only this
 * thread changes a job's members once it is in the table; the lock is for those who read them. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/train/factory_impl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- telling ---- */

void factory_tell(struct factory *f, struct train_job *j)
{
    void (*fn)(void *, const char *);
    void *arg;
    char id[FACTORY_ID_BYTES];
    pthread_mutex_lock(&f->lock);
    fn = f->on_change;
    arg = f->on_change_arg;
    memcpy(id, j->now.id, sizeof(id));
    pthread_mutex_unlock(&f->lock);
    if (fn)
        fn(arg, id);
}

void factory_put_event(struct factory *f, struct train_job *j, struct factory_event *e)
{
    struct factory_job copy = j->now;
    factory_add_event(f, &copy, e);
    pthread_mutex_lock(&f->lock);
    j->now.events = copy.events;
    pthread_mutex_unlock(&f->lock);
}

void factory_say_checkpoint(struct factory *f, struct train_job *j)
{
    struct factory_event e = {.type = FACTORY_EVENT_CHECKPOINT,
                              .step = j->now.done,
                              .loss = j->now.loss,
                              .eval_loss = j->now.eval_loss,
                              .norm = NAN,
                              .lr = NAN};
    snprintf(e.text, sizeof(e.text), "checkpoint at step %u", j->now.done);
    factory_put_event(f, j, &e);
    factory_tell(f, j);
}

void factory_say(struct factory *f, struct train_job *j, uint8_t level, const char *text)
{
    struct factory_event e = {.type = FACTORY_EVENT_MESSAGE,
                              .level = level,
                              .step = j->now.done,
                              .loss = NAN,
                              .eval_loss = NAN,
                              .norm = NAN,
                              .lr = NAN};
    snprintf(e.text, sizeof(e.text), "%s", text);
    factory_put_event(f, j, &e);
}

/* What is on disk follows; one that cannot be written is said, and a restart takes the job up from
 * what was there. */
void factory_keep(struct factory *f, struct train_job *j)
{
    struct errtext why = ERRTEXT_INIT;
    if (factory_write_job(f, &j->now, j->quota_bytes, &why))
        log_warn("train", "%s: its state is not kept: %s", j->now.id, why.text);
    factory_tell(f, j);
}

static void set_status(struct factory *f, struct train_job *j, enum factory_status s)
{
    int64_t now_ms = (int64_t)clock_wall_ms();
    pthread_mutex_lock(&f->lock);
    j->now.status = s;
    j->wish = FACTORY_WISH_NONE;
    if (s == FACTORY_RUNNING && !j->now.started_ms)
        j->now.started_ms = now_ms;
    if (factory_has_ended(s))
        j->now.finished_ms = now_ms;
    f->stats.succeeded += s == FACTORY_SUCCEEDED;
    f->stats.failed += s == FACTORY_FAILED;
    f->stats.cancelled += s == FACTORY_CANCELLED;
    pthread_mutex_unlock(&f->lock);
    log_info("train", "%s is %s", j->now.id, factory_status_name(s));
}

void factory_fail(struct factory *f, struct train_job *j, const struct errtext *why)
{
    pthread_mutex_lock(&f->lock);
    snprintf(j->now.error, sizeof(j->now.error), "%.*s", FACTORY_TEXT_BYTES - 1, why->text);
    snprintf(j->now.error_param, sizeof(j->now.error_param), "%.63s", why->param);
    pthread_mutex_unlock(&f->lock);
    factory_say(f, j, 2, why->text);
    set_status(f, j, FACTORY_FAILED);
    factory_keep(f, j);
}

/* ---- jobs in memory ---- */

static void state_path(const struct factory *f, const struct job_run *r, char out[PATH_MAX])
{
    factory_job_path(f, r->job->now.id, TRAIN_STATE_FILE, out);
}

enum status factory_save_state(struct factory *f, struct job_run *r, struct errtext *err)
{
    char path[PATH_MAX];
    state_path(f, r, path);
    r->saved_ns = clock_mono_ns();
    return trainer_save(r->trainer, path, r->what, err);
}

void factory_fail_kept(struct factory *f, struct job_run *r, const struct errtext *why)
{
    struct errtext unsaved = ERRTEXT_INIT;
    if (factory_save_state(f, r, &unsaved))
        log_warn("train", "%s: %s", r->job->now.id, unsaved.text);
    factory_fail(f, r->job, why);
}

void factory_drop_run(struct factory *f, uint32_t at)
{
    struct job_run *r = f->run[at];
    pthread_mutex_lock(&f->lock);
    f->run_bytes -= r->bytes;
    r->job->in_memory = false;
    pthread_mutex_unlock(&f->lock);
    factory_close_run(r);
    mem_free(r);
    f->run[at] = f->run[--f->n_run];
}

static enum status read_part(const struct factory *f, const char *id, const char *name, size_t most,
                             char **text, size_t *len, struct errtext *err)
{
    char path[PATH_MAX];
    factory_job_path(f, id, name, path);
    return file_read(path, most, text, len, err);
}

static enum status resume(const struct factory *f, struct job_run *r, struct errtext *err)
{
    char path[PATH_MAX];
    state_path(f, r, path);
    if (!file_exists(path))
        return STATUS_OK;
    return trainer_resume(r->trainer, path, r->what, err);
}

static enum status open_job(struct factory *f, struct job_run *r, struct errtext *err)
{
    struct factory_job *j = &r->job->now;
    char *training = NULL, *config = NULL;
    size_t training_len = 0, config_len = 0;
    enum status st =
        read_part(f, j->id, TRAINING_FILE, TRAINING_BYTES_MAX, &training, &training_len, err);
    if (!st)
        st = read_part(f, j->id, FACTORY_CONFIG_FILE, PEFT_CONFIG_BYTES_MAX, &config, &config_len,
                       err);
    const struct job_from from = {j->document_root, j->eval_root, training,  config,
                                  training_len,     config_len,   &j->train, UINT32_MAX};
    if (!st)
        st = factory_open_run(f, &from, r, err);
    if (!st)
        st = resume(f, r, err);
    mem_free(training);
    mem_free(config);
    return st;
}

/* Of those that are not in memory: one with a wish, or else the oldest that waits. */
static struct train_job *look(struct factory *f, enum factory_wish *w)
{
    struct train_job *found = NULL;
    *w = FACTORY_WISH_NONE;
    pthread_mutex_lock(&f->lock);
    for (uint32_t i = 0; i < f->n_job && !*w; i++) {
        struct train_job *j = f->job[i];
        if (j->in_memory || factory_has_ended(j->now.status))
            continue;
        *w = j->wish;
        if (*w || (!found && j->now.status == FACTORY_QUEUED))
            found = j;
    }
    pthread_mutex_unlock(&f->lock);
    return found;
}

static void do_wish_waiting(struct factory *f, struct train_job *j, enum factory_wish w)
{
    static const struct {
        enum factory_status status;
        const char *text;
    } to[] = {[FACTORY_WISH_GO] = {FACTORY_QUEUED, "it waits again"},
              [FACTORY_WISH_PAUSE] = {FACTORY_PAUSED, "paused"},
              [FACTORY_WISH_CANCEL] = {FACTORY_CANCELLED, "cancelled"}};
    factory_say(f, j, 0, to[w].text);
    set_status(f, j, to[w].status);
    factory_keep(f, j);
}

/* Does it fit beside what is in memory? */
static bool fits(struct factory *f, uint64_t bytes)
{
    pthread_mutex_lock(&f->lock);
    bool ok = f->run_bytes + f->learner_bytes + bytes <= f->opt.bytes_max / 2;
    pthread_mutex_unlock(&f->lock);
    return ok;
}

/* false: it waits on. */
static bool start_job(struct factory *f, struct train_job *j)
{
    struct errtext why = ERRTEXT_INIT;
    if (j->bytes && !fits(f, j->bytes))
        return false;
    struct job_run *r = mem_alloc(sizeof(*r));
    r->job = j;
    enum status st = open_job(f, r, &why);
    j->bytes = r->bytes;
    if (st || !fits(f, r->bytes)) {
        factory_close_run(r);
        mem_free(r);
        if (st && st != STATUS_CANCELLED)
            factory_fail(f, j, &why);
        return st && st != STATUS_CANCELLED;
    }
    pthread_mutex_lock(&f->lock);
    f->run_bytes += r->bytes;
    j->in_memory = true;
    j->now.done = trainer_done(r->trainer);
    const struct train_eval *e = trainer_evals(r->trainer, &r->evals);
    j->now.eval_loss = r->evals ? e[r->evals - 1].loss : NAN;
    if (j->now.done)
        r->asked = (struct train_step){.step = j->now.done - 1,
                                       .loss = trainer_losses(r->trainer)[j->now.done - 1],
                                       .norm = NAN,
                                       .lr = NAN};
    pthread_mutex_unlock(&f->lock);
    r->saved_ns = r->begin_ns = clock_mono_ns();
    f->run[f->n_run++] = r;
    set_status(f, j, FACTORY_RUNNING);
    factory_say(f, j, 0, j->now.done ? "it goes on from its checkpoint" : "training begins");
    factory_keep(f, j);
    return true;
}

void factory_start_jobs(struct factory *f)
{
    enum factory_wish w;
    struct train_job *j;
    while (!atomic_load(&f->stop) && (j = look(f, &w)) != NULL) {
        if (w)
            do_wish_waiting(f, j, w);
        else if (f->n_run == f->opt.running_max || !start_job(f, j))
            break;
    }
}

/* ---- the end of a job ---- */

static enum status publish_job(struct factory *f, struct job_run *r, const struct buf *weights,
                               uint8_t id[32], struct errtext *err)
{
    struct buf training;
    buf_init(&training, TRAINING_BYTES_MAX);
    enum status st = training_render(&training, r->training, r->datanet, err);
    struct publish_upload u = {.name = r->job->now.name,
                               .key_name = r->job->now.owner,
                               .quota_bytes = r->job->quota_bytes,
                               .training = training.data,
                               .training_bytes = training.len,
                               .id = id};
    if (!st)
        st = factory_publish_weights(f, &r->lora, weights, &u, err);
    buf_fini(&training);
    return st;
}

/* The published adapter is kept elsewhere; one that was not stays here, and its state. */
static void end_unpublished(struct factory *f, struct job_run *r, const struct buf *weights,
                            struct errtext *why)
{
    char path[PATH_MAX];
    struct errtext unsaved = ERRTEXT_INIT;
    factory_job_path(f, r->job->now.id, FACTORY_TENSORS_FILE, path);
    if (weights->data && file_write_atomic(path, weights->data, weights->len, 0644, &unsaved))
        log_warn("train", "%s: %s", r->job->now.id, unsaved.text);
    err_prefix(why, "trained, and not published");
    factory_fail_kept(f, r, why);
}

static void end_published(struct factory *f, struct job_run *r, const uint8_t id[32])
{
    struct train_job *j = r->job;
    char path[PATH_MAX], hex[65], text[128];
    state_path(f, r, path);
    (void)unlink(path);
    pthread_mutex_lock(&f->lock);
    j->now.has_adapter = true;
    memcpy(j->now.adapter_id, id, 32);
    pthread_mutex_unlock(&f->lock);
    factory_say_checkpoint(f, j);
    hex_encode(hex, id, 32);
    snprintf(text, sizeof(text), "adapter 0x%s is served", hex);
    factory_say(f, j, 0, text);
    set_status(f, j, FACTORY_SUCCEEDED);
    factory_keep(f, j);
}

void factory_finish_job(struct factory *f, struct job_run *r)
{
    struct errtext why = ERRTEXT_INIT;
    struct buf weights;
    uint8_t id[32];
    char dir[PATH_MAX];
    buf_init(&weights, SIZE_MAX / 2);
    factory_job_path(f, r->job->now.id, NULL, dir);
    enum status st = train_lora_render(&r->lora, &weights, &why);
    if (!st)
        st = train_output_report(dir, &r->report, &weights, id, &why);
    if (!st)
        st = publish_job(f, r, &weights, id, &why);
    if (st)
        end_unpublished(f, r, &weights, &why);
    else
        end_published(f, r, id);
    buf_fini(&weights);
}

/* true: it leaves memory. */
bool factory_do_wish(struct factory *f, struct job_run *r)
{
    struct errtext why = ERRTEXT_INIT;
    pthread_mutex_lock(&f->lock);
    enum factory_wish w = r->job->wish;
    if (w == FACTORY_WISH_GO)
        r->job->wish = FACTORY_WISH_NONE;
    pthread_mutex_unlock(&f->lock);
    if (w == FACTORY_WISH_CANCEL) {
        set_status(f, r->job, FACTORY_CANCELLED);
        factory_say(f, r->job, 0, "cancelled");
    } else if (w == FACTORY_WISH_PAUSE) {
        if (factory_save_state(f, r, &why))
            log_warn("train", "%s: %s; it will go on from an earlier checkpoint", r->job->now.id,
                     why.text);
        set_status(f, r->job, FACTORY_PAUSED);
        factory_say(f, r->job, 0, "paused");
    } else {
        return false;
    }
    factory_keep(f, r->job);
    return true;
}
