/* The control thread: takes up jobs, composes rounds of what has something to do, has them computed
 * in the background, and keeps what came of them. It holds the lock only to look at the tables; the
 * pass itself runs without. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/train/factory_impl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PASS_IDLE_NS 10000000000ull /* its memory goes back after so long without work */
#define SECOND_NS    1000000000ull
#define METRICS_MAX  8000u
#define EVENTS_KEPT  200u /* of all events, for messages */

struct round { /* what the background computes at once */
    struct factory *f;
    struct learner *optim[FACTORY_LEARNERS_MAX]; /* whose first work is OPTIM */
    struct learner *pass[FACTORY_LEARNERS_MAX];  /* PASS */
    struct learner *file[FACTORY_LEARNERS_MAX];  /* for the control thread itself */
    uint32_t n_optim, n_pass, n_file;
    enum status st;
    struct errtext err; /* of st */
    /* of f->run */
    struct train_step step[FACTORY_RUNNING_MAX];
    enum status step_st[FACTORY_RUNNING_MAX];
    struct errtext step_err[FACTORY_RUNNING_MAX];
    bool stepped[FACTORY_RUNNING_MAX];
};

/* ---- rounds ---- */

static void sort_works(struct factory *f, struct round *r)
{
    for (uint32_t i = 0; i < f->n_learner; i++) {
        struct learner *l = f->learner[i];
        if (!l->first || l->closed)
            continue;
        if (l->first->kind == FACTORY_PASS)
            r->pass[r->n_pass++] = l;
        else if (l->first->kind == FACTORY_OPTIM)
            r->optim[r->n_optim++] = l;
        else
            r->file[r->n_file++] = l;
    }
}

/* Those that were closed go, with what they were asked. The lock is held. */
static void drop_closed(struct factory *f)
{
    for (uint32_t i = f->n_learner; i-- > 0;) {
        struct learner *l = f->learner[i];
        const struct errtext why = {.text = "the adapter is not trained any more"};
        if (!l->closed && !atomic_load(&f->stop))
            continue;
        while (l->first)
            learner_end_work(f, l, STATUS_CANCELLED, &why);
        if (!l->closed)
            continue;
        f->learner_bytes -= l->bytes;
        learner_free(l);
        f->learner[i] = f->learner[--f->n_learner];
    }
}

/* Background. */
static void compute(void *arg)
{
    struct round *r = arg;
    struct factory *f = r->f;
    struct seq_source source[FACTORY_RUNNING_MAX + FACTORY_LEARNERS_MAX];
    struct trainer *trainer[FACTORY_RUNNING_MAX];
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n_optim; i++)
        learner_optim(r->optim[i], r->optim[i]->first);
    for (uint32_t i = 0; i < r->n_pass; i++)
        source[n++] = learner_source(r->pass[i]);
    for (uint32_t i = 0; i < f->n_run; i++) {
        trainer[i] = f->run[i]->trainer;
        source[n++] = trainer_source(trainer[i]);
    }
    if (n && !r->st)
        train_pass_fill(f->pass, source, n, f->turn++ % n);
    if (n && !r->st && train_pass_tokens(f->pass))
        r->st = train_pass_run(f->pass);
    for (uint32_t i = 0; i < r->n_pass && !r->st; i++)
        learner_ran(r->pass[i]);
    train_round_end(&(struct train_round){.trainer = trainer,
                                          .step = r->step,
                                          .st = r->step_st,
                                          .stepped = r->stepped,
                                          .n = f->n_run,
                                          .err = r->step_err},
                    r->st);
}

static uint32_t metrics_every(const struct job_run *r)
{
    return trainer_steps(r->trainer) / METRICS_MAX + 1;
}

/* The steps that are left find room for theirs. */
static bool has_room_for_event(const struct job_run *r)
{
    const struct factory_job *j = &r->job->now;
    uint32_t left = (trainer_steps(r->trainer) - j->done) / metrics_every(r);
    return j->events + left + EVENTS_KEPT < FACTORY_EVENTS_MAX;
}

/* eval_loss: NaN, or of the held-out rows behind this step, which is said in any case. */
static void add_metrics(struct factory *f, struct job_run *r, const struct train_step *s,
                        float eval_loss)
{
    uint32_t every = metrics_every(r);
    struct factory_event e = {.type = FACTORY_EVENT_METRICS,
                              .step = s->step + 1,
                              .loss = s->loss,
                              .eval_loss = eval_loss,
                              .norm = (float)s->norm,
                              .lr = (float)s->lr,
                              .tokens_per_s = (uint32_t)r->job->now.tokens_per_s};
    bool asked = isfinite(eval_loss) && has_room_for_event(r);
    if (e.step % every && e.step != trainer_steps(r->trainer) && !asked)
        return;
    int n = snprintf(e.text, sizeof(e.text), "step %u of %u: loss %.4f", e.step,
                     trainer_steps(r->trainer), (double)s->loss);
    if (isfinite(eval_loss))
        snprintf(e.text + n, sizeof(e.text) - (size_t)n, ", of held-out rows %.4f",
                 (double)eval_loss);
    factory_put_event(f, r->job, &e);
    factory_tell(f, r->job);
}

static void checkpoint(struct factory *f, struct job_run *r)
{
    struct errtext why = ERRTEXT_INIT;
    char text[FACTORY_TEXT_BYTES];
    if (clock_mono_ns() - r->saved_ns < f->opt.checkpoint_s * SECOND_NS)
        return;
    enum status st = factory_save_state(f, r, &why);
    if (st) {
        snprintf(text, sizeof(text), "checkpoint not written: %.160s", why.text);
        factory_say(f, r->job, 1, text);
        log_warn("train", "%s: %s", r->job->now.id, text);
    } else if (has_room_for_event(r)) {
        factory_say_checkpoint(f, r->job);
    }
    factory_keep(f, r->job);
}

/* What the held-out rows said last, if they were asked anew: with the metrics of the step. */
static void end_evaluation(struct factory *f, struct job_run *r)
{
    uint32_t n;
    const struct train_eval *e = trainer_evals(r->trainer, &n);
    if (n == r->evals)
        return;
    r->evals = n;
    pthread_mutex_lock(&f->lock);
    r->job->now.eval_loss = e[n - 1].loss;
    pthread_mutex_unlock(&f->lock);
    add_metrics(f, r, &r->asked, e[n - 1].loss);
}

/* true: it leaves memory. */
static bool end_step(struct factory *f, struct job_run *r, const struct train_step *s)
{
    struct train_job *j = r->job;
    r->begin_tokens += s->tokens;
    double took_s = (double)(clock_mono_ns() - r->begin_ns) * 1e-9;
    pthread_mutex_lock(&f->lock);
    j->now.done = trainer_done(r->trainer);
    j->now.loss = s->loss;
    j->now.trained_tokens += s->tokens;
    j->now.tokens_per_s = (double)r->begin_tokens / MAX(took_s, 1e-3);
    f->stats.steps++;
    bool unwanted = j->wish == FACTORY_WISH_CANCEL;
    pthread_mutex_unlock(&f->lock);
    if (trainer_is_evaluating(r->trainer))
        r->asked = *s;
    else
        add_metrics(f, r, s, NAN);
    if (!trainer_ended(r->trainer) || unwanted) {
        checkpoint(f, r);
        return false;
    }
    factory_finish_job(f, r);
    return true;
}

static bool end_round_of(struct factory *f, const struct round *r, uint32_t i)
{
    struct job_run *run = f->run[i];
    if (r->st && r->st != STATUS_CANCELLED) {
        factory_fail(f, run->job, &r->err);
        return true;
    }
    end_evaluation(f, run);
    if (!r->stepped[i]) {
        bool ended = !r->st && trainer_ended(run->trainer);
        if (ended)
            factory_finish_job(f, run);
        return ended;
    }
    if (!r->step_st[i])
        return end_step(f, run, &r->step[i]);
    factory_fail_kept(f, run, &r->step_err[i]);
    return true;
}

static void end_passes(struct factory *f, struct round *r)
{
    pthread_mutex_lock(&f->lock);
    for (uint32_t i = 0; i < r->n_pass; i++) {
        struct learner *l = r->pass[i];
        if (r->st)
            memset(l->grad, 0, l->lora.n * sizeof(*l->grad));
        if (r->st || learner_complete(l))
            learner_end_work(f, l, r->st, &r->err);
    }
    for (uint32_t i = 0; i < r->n_optim; i++) {
        const struct errtext why = {.text = "the gradient is no number: nothing was changed"};
        bool is_number = isfinite(r->optim[i]->first->norm);
        learner_end_work(f, r->optim[i], is_number ? STATUS_OK : STATUS_CORRUPT, &why);
    }
    pthread_mutex_unlock(&f->lock);
}

static void do_files(struct factory *f, struct round *r)
{
    for (uint32_t i = 0; i < r->n_file; i++) {
        struct errtext why = ERRTEXT_INIT;
        enum status st = learner_file_work(f, r->file[i], r->file[i]->first, &why);
        pthread_mutex_lock(&f->lock);
        learner_end_work(f, r->file[i], st, &why);
        pthread_mutex_unlock(&f->lock);
    }
}

static void count_round(struct factory *f)
{
    struct train_pass_stats s = train_pass_stats(f->pass);
    pthread_mutex_lock(&f->lock);
    f->stats.tokens += s.tokens - f->counted.tokens;
    f->stats.passes += s.passes - f->counted.passes;
    f->stats.pass_room += s.room - f->counted.room;
    pthread_mutex_unlock(&f->lock);
    f->counted = s;
}

static void say_failed(struct round *r)
{
    (void)err_set(&r->err, r->st, "the backend failed"); /* unless more is known */
    log_error("train", "%s", r->err.text);
}

static void run_round(struct factory *f, struct round *r)
{
    r->st = r->n_pass + f->n_run ? factory_make_pass(f, &r->err) : STATUS_OK;
    background_run(f->background, compute, r);
    f->pass_used_ns = clock_mono_ns();
    if (r->st && r->st != STATUS_CANCELLED)
        say_failed(r);
    if (f->pass)
        count_round(f);
    for (uint32_t i = f->n_run; i-- > 0;) {
        if (end_round_of(f, r, i) || factory_do_wish(f, f->run[i]))
            factory_drop_run(f, i);
    }
    end_passes(f, r);
}

/* ---- the loop ---- */

static void give_pass_back(struct factory *f)
{
    if (!f->pass || clock_mono_ns() - f->pass_used_ns < PASS_IDLE_NS)
        return;
    train_pass_free(f->pass);
    f->pass = NULL;
    f->counted = (struct train_pass_stats){0};
}

/* Until there is something to do: a job, a work, a wish. */
static bool gather(struct factory *f, struct round *r)
{
    *r = (struct round){.f = f};
    factory_start_jobs(f);
    pthread_mutex_lock(&f->lock);
    drop_closed(f);
    sort_works(f, r);
    bool any = f->n_run || r->n_pass || r->n_optim || r->n_file || atomic_load(&f->stop);
    if (!any) {
        struct timespec until = thread_deadline(1000);
        pthread_cond_timedwait(&f->work, &f->lock, &until);
    }
    pthread_mutex_unlock(&f->lock);
    return any;
}

static void leave(struct factory *f)
{
    struct errtext why = ERRTEXT_INIT;
    while (f->n_run) {
        struct job_run *r = f->run[f->n_run - 1];
        if (factory_save_state(f, r, &why))
            log_warn("train", "%s: %s", r->job->now.id, why.text);
        factory_keep(f, r->job);
        factory_drop_run(f, f->n_run - 1);
    }
    pthread_mutex_lock(&f->lock);
    drop_closed(f);
    pthread_mutex_unlock(&f->lock);
}

void *factory_main(void *arg)
{
    struct factory *f = arg;
    struct round *r = mem_alloc(sizeof(*r));
    while (!atomic_load(&f->stop)) {
        if (!gather(f, r)) {
            give_pass_back(f);
            continue;
        }
        do_files(f, r);
        if (f->n_run || r->n_pass || r->n_optim)
            run_round(f, r);
    }
    leave(f);
    mem_free(r);
    return NULL;
}
