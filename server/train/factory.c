/* See factory.h and factory_impl.h: life, and what was under way when the server ended. */
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/train/factory_impl.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool factory_has_ended(enum factory_status s)
{
    return s == FACTORY_SUCCEEDED || s == FACTORY_FAILED || s == FACTORY_CANCELLED;
}

#define DEVICE_SLACK ((uint64_t)1 << 20) /* what allocations take beside their bytes */

static enum status check_limits(const struct factory_options *o, const struct train_base *base,
                                struct errtext *err)
{
    if (o->tokens == 0 || o->tokens > base->model->config.pos_max)
        return err_param(err, STATUS_INVALID, "train_tokens",
                         "train_tokens: found %u, expected 1 to %u, the base's context", o->tokens,
                         base->model->config.pos_max);
    if (o->running_max == 0 || o->running_max > FACTORY_RUNNING_MAX)
        return err_param(err, STATUS_INVALID, "train_running_max",
                         "train_running_max: found %u, expected 1 to %d", o->running_max,
                         FACTORY_RUNNING_MAX);
    if (o->learners_max > FACTORY_LEARNERS_MAX)
        return err_param(err, STATUS_INVALID, "train_learners_max",
                         "train_learners_max: found %u, expected at most %d", o->learners_max,
                         FACTORY_LEARNERS_MAX);
    return STATUS_OK;
}

/* What passes may take where the ops compute. */
static uint64_t pass_bytes(const struct factory_options *o)
{
    return o->device_bytes ? o->device_bytes : o->bytes_max;
}

static struct train_pass_options pass_for(const struct factory *f)
{
    return (struct train_pass_options){.tokens = f->opt.tokens,
                                       .adapters_max = FACTORY_RUNNING_MAX + FACTORY_LEARNERS_MAX,
                                       .rank_sum_max = f->rank_sum_max,
                                       .dropout = true,
                                       .bytes_max = pass_bytes(&f->opt) / 2,
                                       .stop = &f->stop};
}

enum status factory_check_device(const struct factory *f, const struct train_lora *lora,
                                 struct errtext *err)
{
    const struct train_pass_options o = pass_for(f);
    uint64_t need = train_pass_adapter_bytes(&f->deps.base, lora);
    uint64_t taken = train_pass_bytes(&f->deps.base, &o) + DEVICE_SLACK;
    uint64_t room = f->opt.device_bytes - MIN(f->opt.device_bytes, taken);
    if (need <= room)
        return STATUS_OK;
    return err_param(err, STATUS_TOO_LARGE, "rank",
                     "rank: %llu weights take %llu bytes of the device, passes leave %llu of "
                     "train_bytes_max",
                     (unsigned long long)lora->weights, (unsigned long long)need,
                     (unsigned long long)room);
}

enum status factory_make_pass(struct factory *f, struct errtext *err)
{
    const struct train_pass_options o = pass_for(f);
    return f->pass ? STATUS_OK : train_pass_create(&f->pass, &f->deps.base, &o, err);
}

enum status factory_create(struct factory **out, const struct factory_options *opt,
                           const struct factory_deps *deps, struct errtext *err)
{
    *out = NULL;
    enum status st = check_limits(opt, &deps->base, err);
    if (st)
        return st;
    struct factory *f = mem_alloc(sizeof(*f));
    f->opt = *opt;
    f->deps = *deps;
    f->rank_sum_max = 3 * opt->rank_max;
    f->job_room = opt->jobs_max + opt->ended_max + 1;
    f->job = mem_array(f->job_room, sizeof(struct train_job *));
    pthread_mutex_init(&f->lock, NULL);
    thread_cond_init(&f->work);
    const struct train_pass_options o = pass_for(f);
    uint64_t bytes = train_pass_bytes(&deps->base, &o);
    if (bytes > pass_bytes(opt))
        st = err_param(err, STATUS_TOO_LARGE, "train_bytes_max",
                       "train_bytes_max: found %llu, passes of %u tokens (train_tokens) need %llu",
                       (unsigned long long)pass_bytes(opt), opt->tokens, (unsigned long long)bytes);
    if (!st)
        st = background_create(&f->background, opt->yields, err);
    if (st)
        factory_destroy(f);
    else
        *out = f;
    return st;
}

void factory_destroy(struct factory *f)
{
    if (!f)
        return;
    factory_stop(f);
    background_destroy(f->background);
    train_pass_free(f->pass);
    for (uint32_t i = 0; i < f->n_job; i++)
        mem_free(f->job[i]);
    for (uint32_t i = 0; i < f->n_learner; i++)
        learner_free(f->learner[i]);
    pthread_cond_destroy(&f->work);
    pthread_mutex_destroy(&f->lock);
    mem_free(f->job);
    mem_free(f);
}

/* ---- what there was ---- */

static int by_age(const void *a, const void *b)
{
    const struct train_job *x = *(struct train_job *const *)a, *y = *(struct train_job *const *)b;
    int64_t d = x->now.created_ms - y->now.created_ms;
    return d ? (d < 0 ? -1 : 1) : strcmp(x->now.id, y->now.id);
}

static void take_up(struct factory *f, const char *id)
{
    struct errtext why = ERRTEXT_INIT;
    struct train_job *j = mem_alloc(sizeof(*j));
    enum status st =
        f->n_job == f->job_room
            ? err_set(&why, STATUS_FULL, "jobs/%s: more than %u are kept", id, f->job_room)
            : factory_read_job(f, id, j, &why);
    if (st) {
        log_warn("train", "a job is left as it lies: %s", why.text);
        mem_free(j);
        return;
    }
    if (j->now.status == FACTORY_RUNNING)
        j->now.status = FACTORY_QUEUED;
    f->job[f->n_job++] = j;
}

static enum status take_all_up(struct factory *f, struct errtext *err)
{
    char dir[PATH_MAX];
    uint32_t waiting = 0;
    const struct dirent *e;
    snprintf(dir, sizeof(dir), "%s/jobs", f->opt.dir);
    enum status st = file_mkdirs(dir, 0700, err);
    DIR *d = st ? NULL : opendir(dir);
    if (!st && !d)
        st = err_set(err, STATUS_IO, "%s: %s", dir, strerror(errno));
    while (d && (e = readdir(d))) {
        if (strncmp(e->d_name, "ftjob-", 6) == 0)
            take_up(f, e->d_name);
    }
    if (d)
        closedir(d);
    qsort(f->job, f->n_job, sizeof(struct train_job *), by_age);
    for (uint32_t i = 0; i < f->n_job; i++) {
        f->job[i]->order = ++f->order;
        waiting += f->job[i]->now.status == FACTORY_QUEUED;
    }
    if (waiting)
        log_info("train", "%u jobs go on", waiting);
    return st;
}

enum status factory_start(struct factory *f, struct errtext *err)
{
    enum status st = take_all_up(f, err);
    if (!st)
        st = thread_start(&f->thread, "rs-factory", factory_main, f, err);
    f->started = !st;
    return st;
}

void factory_stop(struct factory *f)
{
    if (!f->started)
        return;
    pthread_mutex_lock(&f->lock);
    atomic_store(&f->stop, true);
    pthread_cond_broadcast(&f->work);
    pthread_mutex_unlock(&f->lock);
    pthread_join(f->thread, NULL);
    f->started = false;
}

void factory_listen(struct factory *f, void (*on_change)(void *arg, const char *id), void *arg)
{
    pthread_mutex_lock(&f->lock);
    f->on_change = on_change;
    f->on_change_arg = arg;
    pthread_mutex_unlock(&f->lock);
}

void factory_get_stats(struct factory *f, struct factory_stats *out)
{
    pthread_mutex_lock(&f->lock);
    *out = f->stats;
    out->learners = f->n_learner;
    for (uint32_t i = 0; i < f->n_job; i++) {
        enum factory_status s = f->job[i]->now.status;
        out->queued += s == FACTORY_QUEUED;
        out->running += s == FACTORY_RUNNING;
        out->paused += s == FACTORY_PAUSED;
    }
    pthread_mutex_unlock(&f->lock);
}
