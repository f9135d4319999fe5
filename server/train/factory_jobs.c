/* Jobs as others see them: submitted, looked at, wished away. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/train/factory_impl.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

const char *factory_status_name(enum factory_status s)
{
    static const char *const name[FACTORY_STATUS_COUNT] = {"queued",    "running", "paused",
                                                           "succeeded", "failed",  "cancelled"};
    return name[s];
}

struct train_job *factory_find(struct factory *f, const char *id)
{
    for (uint32_t i = 0; i < f->n_job; i++) {
        if (strcmp(f->job[i]->now.id, id) == 0)
            return f->job[i];
    }
    return NULL;
}

/* ---- submitting ---- */

static enum status check_spec(const struct factory_spec *s, struct errtext *err)
{
    size_t digits = strspn(s->price, "0123456789");
    if (s->note_bytes > FACTORY_NOTE_BYTES)
        return err_param(err, STATUS_TOO_LARGE, "metadata", "note: %zu bytes, at most %u",
                         s->note_bytes, FACTORY_NOTE_BYTES);
    if (!digits || s->price[digits])
        return err_set(err, STATUS_INVALID, "price: found '%.47s', expected a whole number",
                       s->price);
    return STATUS_OK;
}

/* The lock is held. */
static enum status check_room(const struct factory *f, const char *owner, struct errtext *err)
{
    uint32_t open = f->coming, own = 0;
    for (uint32_t i = 0; i < f->n_job; i++) {
        const struct factory_job *j = &f->job[i]->now;
        if (factory_has_ended(j->status))
            continue;
        open++;
        own += strcmp(j->owner, owner) == 0;
    }
    if (open >= f->opt.jobs_max)
        return err_coded(err, STATUS_FULL, "train_queue_full", "",
                         "%u training jobs wait or run, as many as there may be; retry later",
                         open);
    if (own >= f->opt.account_max)
        return err_coded(err, STATUS_FULL, "train_account_full", "",
                         "%u training jobs of this key wait or run, as many as there may be", own);
    return STATUS_OK;
}

static enum status check_name(struct factory *f, const struct factory_spec *s, struct errtext *err)
{
    enum status st = catalog_check_name(f->deps.catalog, s->name, err);
    if (st)
        return st;
    struct adapter_entry *e = catalog_find(f->deps.catalog, s->name);
    bool taken = e && strcmp(e->publisher, s->owner) != 0;
    catalog_release(e);
    return taken ? err_param(err, STATUS_CONFLICT, "suffix",
                             "'%.128s' is the name of somebody else's adapter", s->name)
                 : STATUS_OK;
}

static enum status write_part(const struct factory *f, const char *id, const char *name,
                              const char *text, size_t len, struct errtext *err)
{
    char path[PATH_MAX];
    factory_job_path(f, id, name, path);
    return file_write_atomic(path, text, len, 0600, err);
}

static enum status write_job(struct factory *f, const struct factory_spec *s,
                             const struct job_run *r, struct train_job *j, struct errtext *err)
{
    const char *id = j->now.id;
    char dir[PATH_MAX];
    struct buf training;
    buf_init(&training, TRAINING_BYTES_MAX);
    factory_job_path(f, id, NULL, dir);
    enum status st = file_spare(f->opt.dir, 4 * r->bytes, err);
    if (!st)
        st = file_mkdirs(dir, 0700, err);
    if (!st)
        st = training_render(&training, r->training, r->datanet, err);
    if (!st)
        st = write_part(f, id, TRAINING_FILE, training.data, training.len, err);
    if (!st)
        st = write_part(f, id, FACTORY_CONFIG_FILE, s->peft_config, s->peft_config_bytes, err);
    if (!st)
        st = write_part(f, id, FACTORY_NOTE_FILE, s->note, s->note_bytes, err);
    if (!st)
        st = factory_write_job(f, &j->now, j->quota_bytes, err);
    if (st)
        factory_remove_job(f, id);
    buf_fini(&training);
    return st;
}

static void fill_job(struct train_job *j, const struct factory_spec *s, const struct job_run *r)
{
    struct factory_job *now = &j->now;
    uint8_t draw[12];
    char hex[25];
    randombytes_buf(draw, sizeof(draw));
    hex_encode(hex, draw, sizeof(draw));
    *now = (struct factory_job){.status = FACTORY_QUEUED,
                                .created_ms = (int64_t)clock_wall_ms(),
                                .rows = r->rows.n,
                                .eval_rows = r->held_rows.n,
                                .steps = trainer_steps(r->trainer),
                                .tokens_all = r->tokens * r->opt.epochs,
                                .loss = NAN,
                                .eval_loss = NAN,
                                .train = r->opt};
    snprintf(now->id, sizeof(now->id), "ftjob-%s", hex);
    snprintf(now->owner, sizeof(now->owner), "%s", s->owner);
    snprintf(now->name, sizeof(now->name), "%s", s->name);
    snprintf(now->price, sizeof(now->price), "%s", s->price);
    memcpy(now->document_root, s->document_root, 32);
    memcpy(now->eval_root, s->eval_root, 32);
    memcpy(now->training_digest, r->training->digest, 32);
    j->quota_bytes = s->quota_bytes;
    j->bytes = r->bytes;
}

/* Of the tokens that jobs of one owner still have to read. */
static enum status check_tokens(struct factory *f, const struct train_job *mine,
                                struct errtext *err)
{
    uint64_t left = mine->now.tokens_all;
    pthread_mutex_lock(&f->lock);
    for (uint32_t i = 0; i < f->n_job; i++) {
        const struct factory_job *j = &f->job[i]->now;
        if (!factory_has_ended(j->status) && strcmp(j->owner, mine->now.owner) == 0)
            left += j->tokens_all - MIN(j->trained_tokens, j->tokens_all);
    }
    pthread_mutex_unlock(&f->lock);
    return !f->opt.account_tokens_max || left <= f->opt.account_tokens_max
               ? STATUS_OK
               : err_coded(err, STATUS_FULL, "train_tokens_full", "",
                           "with this job %" PRIu64
                           " tokens of this key wait to be trained, at most %" PRIu64
                           " may (train_account_tokens_max)",
                           left, f->opt.account_tokens_max);
}

static void say_cut(const struct factory *f, struct train_job *j, uint32_t rows)
{
    struct factory_event e = {.type = FACTORY_EVENT_MESSAGE, .level = 1};
    snprintf(e.text, sizeof(e.text),
             "%u rows are longer than %d tokens: what follows is not learned", rows,
             ROW_TOKENS_MAX);
    factory_add_event(f, &j->now, &e);
}

static enum status make_job(struct factory *f, const struct factory_spec *s, struct train_job *j,
                            struct errtext *err)
{
    struct job_run r = {0};
    const struct job_from from = {s->document_root, s->eval_root,      s->training,
                                  s->peft_config,   s->training_bytes, s->peft_config_bytes,
                                  &s->train,        s->warmup_percent};
    enum status st = check_name(f, s, err);
    if (!st)
        st = factory_open_run(f, &from, &r, err);
    if (!st) {
        struct factory_event e = {.type = FACTORY_EVENT_MESSAGE, .text = "job accepted: it waits"};
        fill_job(j, s, &r);
        st = check_tokens(f, j, err);
        if (!st)
            st = write_job(f, s, &r, j, err);
        if (!st)
            factory_add_event(f, &j->now, &e);
        if (!st && r.rows.cut)
            say_cut(f, j, r.rows.cut);
        if (!st)
            log_info("train", "%s: '%s' of '%s' waits: %u rows, %u steps", j->now.id, s->name,
                     s->owner, j->now.rows, j->now.steps);
    }
    factory_close_run(&r);
    return st;
}

/* Its files and its entry. The lock is held. */
static void forget_at(struct factory *f, uint32_t at)
{
    factory_remove_job(f, f->job[at]->now.id);
    mem_free(f->job[at]);
    memmove(f->job + at, f->job + at + 1, (--f->n_job - at) * sizeof(struct train_job *));
}

/* The oldest ended one gives its place. The lock is held. */
static void make_place(struct factory *f)
{
    uint32_t ended = 0, oldest = UINT32_MAX;
    for (uint32_t i = 0; i < f->n_job; i++) {
        if (!factory_has_ended(f->job[i]->now.status) || f->job[i]->in_memory)
            continue;
        ended++;
        oldest = MIN(oldest, i);
    }
    if (ended <= f->opt.ended_max && f->n_job < f->job_room)
        return;
    CHECK(oldest != UINT32_MAX);
    forget_at(f, oldest);
}

enum status factory_submit(struct factory *f, const struct factory_spec *spec,
                           char id[FACTORY_ID_BYTES], struct errtext *err)
{
    enum status st = check_spec(spec, err);
    if (st)
        return st;
    pthread_mutex_lock(&f->lock);
    st = check_room(f, spec->owner, err);
    f->coming += !st;
    pthread_mutex_unlock(&f->lock);
    if (st)
        return st;
    struct train_job *j = mem_alloc(sizeof(*j));
    st = make_job(f, spec, j, err);
    pthread_mutex_lock(&f->lock);
    f->coming--;
    if (!st) {
        memcpy(id, j->now.id, FACTORY_ID_BYTES);
        make_place(f);
        j->order = ++f->order;
        f->job[f->n_job++] = j;
        pthread_cond_broadcast(&f->work);
    }
    pthread_mutex_unlock(&f->lock);
    if (st)
        mem_free(j);
    return st;
}

/* ---- looking ---- */

/* What was wished is as good as done. */
static struct factory_job view(const struct train_job *j)
{
    struct factory_job now = j->now;
    if (j->wish == FACTORY_WISH_CANCEL)
        now.status = FACTORY_CANCELLED;
    else if (j->wish == FACTORY_WISH_PAUSE)
        now.status = FACTORY_PAUSED;
    else if (j->wish == FACTORY_WISH_GO && now.status == FACTORY_PAUSED)
        now.status = FACTORY_QUEUED;
    return now;
}

bool factory_get(struct factory *f, const char *id, struct factory_job *out)
{
    pthread_mutex_lock(&f->lock);
    const struct train_job *j = factory_find(f, id);
    if (j)
        *out = view(j);
    pthread_mutex_unlock(&f->lock);
    return j != NULL;
}

enum status factory_note(struct factory *f, const char *id, struct buf *out, struct errtext *err)
{
    char path[PATH_MAX], *text;
    size_t len;
    struct factory_job j;
    if (!factory_get(f, id, &j))
        return err_set(err, STATUS_NOT_FOUND, "no training job '%.40s'", id);
    factory_job_path(f, j.id, FACTORY_NOTE_FILE, path);
    enum status st = file_read(path, FACTORY_NOTE_BYTES, &text, &len, err);
    if (st)
        return st;
    buf_put(out, text, len);
    mem_free(text);
    return STATUS_OK;
}

uint32_t factory_list(struct factory *f, const char *owner, const char *after,
                      struct factory_job *out, uint32_t max, bool *more)
{
    uint32_t n = 0;
    *more = false;
    pthread_mutex_lock(&f->lock);
    const struct train_job *behind = after ? factory_find(f, after) : NULL;
    uint64_t below = behind ? behind->order : UINT64_MAX;
    for (uint32_t i = f->n_job; i-- > 0 && !(after && !behind);) {
        const struct train_job *j = f->job[i];
        if (j->order >= below || strcmp(j->now.owner, owner) != 0)
            continue;
        *more = n == max;
        if (*more)
            break;
        out[n++] = view(j);
    }
    pthread_mutex_unlock(&f->lock);
    return n;
}

/* ---- wishes ---- */

static enum status ended(const struct train_job *j, struct errtext *err)
{
    return err_set(err, STATUS_CONFLICT, "training job %s has ended: it is %s", j->now.id,
                   factory_status_name(view(j).status));
}

/* The control thread does it when it comes by. */
static enum status wish(struct factory *f, const char *id, enum factory_wish w, struct errtext *err)
{
    pthread_mutex_lock(&f->lock);
    struct train_job *j = factory_find(f, id);
    enum status st = STATUS_OK;
    if (!j)
        st = err_set(err, STATUS_NOT_FOUND, "no training job '%.40s'", id);
    else if (factory_has_ended(view(j).status))
        st = w == FACTORY_WISH_CANCEL && view(j).status == FACTORY_CANCELLED ? STATUS_OK
                                                                             : ended(j, err);
    else
        j->wish = w;
    pthread_cond_broadcast(&f->work);
    pthread_mutex_unlock(&f->lock);
    return st;
}

enum status factory_cancel(struct factory *f, const char *id, struct errtext *err)
{
    return wish(f, id, FACTORY_WISH_CANCEL, err);
}

enum status factory_pause(struct factory *f, const char *id, struct errtext *err)
{
    return wish(f, id, FACTORY_WISH_PAUSE, err);
}

enum status factory_resume(struct factory *f, const char *id, struct errtext *err)
{
    return wish(f, id, FACTORY_WISH_GO, err);
}
