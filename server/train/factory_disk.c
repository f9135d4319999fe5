/* Jobs on disk: DIR/jobs/<id>/ with job.json (what it is and how far), training.json,
 * adapter_config.json, note.json as they came, train.state, and events, records of 256 bytes one
 * after another, of which a cut last one is not read. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/train/factory_impl.h"
#include "server/train/train_options.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define JOB_BYTES_MAX (64u << 10)
#define JOB_FORMAT    "residual.job.1"

void factory_job_path(const struct factory *f, const char *id, const char *file, char out[PATH_MAX])
{
    snprintf(out, PATH_MAX, "%s/jobs/%s%s%s", f->opt.dir, id, file ? "/" : "", file ? file : "");
}

/* ---- job.json ---- */

static void put_text(struct buf *out, const char *key, const char *text)
{
    buf_printf(out, "\"%s\":", key);
    buf_put_json_string(out, text, strlen(text));
    buf_putc(out, ',');
}

static void put_hex32(struct buf *out, const char *key, const uint8_t v[32])
{
    buf_put_json_hex(out, key, v, 32);
    buf_putc(out, ',');
}

static void put_job(struct buf *out, const struct factory_job *j, uint64_t quota_bytes)
{
    buf_puts(out, "{\"format\":\"" JOB_FORMAT "\",");
    put_text(out, "id", j->id);
    put_text(out, "owner", j->owner);
    put_text(out, "name", j->name);
    put_text(out, "price", j->price);
    put_text(out, "status", factory_status_name(j->status));
    put_text(out, "error", j->error);
    put_text(out, "errorParam", j->error_param);
    put_hex32(out, "documentRoot", j->document_root);
    put_hex32(out, "evalRoot", j->eval_root);
    put_hex32(out, "training", j->training_digest);
    put_hex32(out, "adapterId", j->adapter_id);
    buf_printf(out,
               "\"hasAdapter\":%s,\"created\":%" PRId64 ",\"started\":%" PRId64
               ",\"finished\":%" PRId64 ",\"rows\":%u,\"evalRows\":%u,\"steps\":%u,\"done\":%u,"
               "\"trainedTokens\":%" PRIu64 ",\"tokensAll\":%" PRIu64 ",\"quotaBytes\":%" PRIu64
               ",\"options\":{",
               j->has_adapter ? "true" : "false", j->created_ms, j->started_ms, j->finished_ms,
               j->rows, j->eval_rows, j->steps, j->done, j->trained_tokens, j->tokens_all,
               quota_bytes);
    train_options_put(out, &j->train);
    buf_puts(out, "}}\n");
}

enum status factory_write_job(const struct factory *f, const struct factory_job *j,
                              uint64_t quota_bytes, struct errtext *err)
{
    char path[PATH_MAX];
    struct buf text;
    buf_init(&text, JOB_BYTES_MAX);
    factory_job_path(f, j->id, FACTORY_JOB_FILE, path);
    put_job(&text, j, quota_bytes);
    enum status st = text.failed ? err_set(err, STATUS_NO_MEMORY, "%s: no memory for it", path)
                                 : file_write_atomic(path, text.data, text.len, 0600, err);
    buf_fini(&text);
    return st;
}

static void copy_text(struct json_reader *in, const char *key, char *out, size_t bytes)
{
    snprintf(out, bytes, "%s", json_need_string(in, key));
}

static enum factory_status read_status(struct json_reader *in)
{
    const char *name = json_need_string(in, "status");
    for (uint32_t s = 0; s < FACTORY_STATUS_COUNT; s++) {
        if (strcmp(name, factory_status_name((enum factory_status)s)) == 0)
            return (enum factory_status)s;
    }
    json_fail(in, STATUS_CORRUPT, "status", "found '%.32s', expected the state of a job", name);
    return FACTORY_FAILED;
}

static uint64_t need_count(struct json_reader *in, const char *key, int64_t most)
{
    return (uint64_t)json_need_int(in, key, (struct json_range){0, most});
}

static void read_members(struct json_reader *in, struct train_job *out)
{
    struct factory_job *j = &out->now;
    copy_text(in, "id", j->id, sizeof(j->id));
    copy_text(in, "owner", j->owner, sizeof(j->owner));
    copy_text(in, "name", j->name, sizeof(j->name));
    copy_text(in, "price", j->price, sizeof(j->price));
    copy_text(in, "error", j->error, sizeof(j->error));
    copy_text(in, "errorParam", j->error_param, sizeof(j->error_param));
    j->status = read_status(in);
    json_need_hex(in, "documentRoot", j->document_root, 32);
    json_need_hex(in, "evalRoot", j->eval_root, 32);
    json_need_hex(in, "training", j->training_digest, 32);
    json_need_hex(in, "adapterId", j->adapter_id, 32);
    j->has_adapter = json_read_bool(in, "hasAdapter", false);
    j->created_ms = (int64_t)need_count(in, "created", INT64_MAX);
    j->started_ms = (int64_t)need_count(in, "started", INT64_MAX);
    j->finished_ms = (int64_t)need_count(in, "finished", INT64_MAX);
    j->rows = (uint32_t)need_count(in, "rows", UINT32_MAX);
    j->eval_rows = (uint32_t)need_count(in, "evalRows", UINT32_MAX);
    j->steps = (uint32_t)need_count(in, "steps", UINT32_MAX);
    j->done = (uint32_t)need_count(in, "done", UINT32_MAX);
    j->trained_tokens = need_count(in, "trainedTokens", INT64_MAX);
    j->tokens_all = need_count(in, "tokensAll", INT64_MAX);
    out->quota_bytes = need_count(in, "quotaBytes", INT64_MAX);
    struct json_reader options = json_enter(in, "options");
    train_options_read(&options, &j->train);
}

static uint32_t count_events(const struct factory *f, const char *id)
{
    char path[PATH_MAX];
    struct stat s;
    factory_job_path(f, id, FACTORY_EVENTS_FILE, path);
    return stat(path, &s) ? 0 : (uint32_t)((uint64_t)s.st_size / sizeof(struct factory_event));
}

enum status factory_read_job(const struct factory *f, const char *id, struct train_job *out,
                             struct errtext *err)
{
    char path[PATH_MAX];
    json_t *root;
    factory_job_path(f, id, FACTORY_JOB_FILE, path);
    enum status st = json_doc_load(&root, path, JOB_BYTES_MAX, 0, err);
    if (st)
        return st;
    struct json_reader in = {.obj = root, .where = path, .wrong = STATUS_CORRUPT, .err = err};
    *out = (struct train_job){.now = {.loss = NAN, .eval_loss = NAN}};
    read_members(&in, out);
    if (!in.st && strcmp(out->now.id, id) != 0)
        json_fail(&in, STATUS_CORRUPT, "id", "found '%.31s', the folder is '%.31s'", out->now.id,
                  id);
    out->now.events = count_events(f, id);
    json_decref(root);
    return in.st;
}

void factory_remove_job(const struct factory *f, const char *id)
{
    char dir[PATH_MAX], path[PATH_MAX];
    const struct dirent *e;
    factory_job_path(f, id, NULL, dir);
    DIR *d = opendir(dir);
    while (d && (e = readdir(d))) {
        factory_job_path(f, id, e->d_name, path);
        if (e->d_name[0] != '.' && unlink(path))
            log_warn("train", "%s: %s", path, strerror(errno));
    }
    if (d)
        closedir(d);
    (void)rmdir(dir);
}

/* ---- events ---- */

static enum status append_event(const char *path, const struct factory_event *e,
                                struct errtext *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    ssize_t n = pwrite(fd, e, sizeof(*e), (off_t)e->seq * (off_t)sizeof(*e));
    int why = errno;
    close(fd);
    return n == (ssize_t)sizeof(*e)
               ? STATUS_OK
               : err_set(err, STATUS_IO, "%s: %s", path, n < 0 ? strerror(why) : "cut short");
}

void factory_add_event(const struct factory *f, struct factory_job *j, struct factory_event *e)
{
    char path[PATH_MAX];
    struct errtext why = ERRTEXT_INIT;
    if (j->events >= FACTORY_EVENTS_MAX)
        return;
    e->seq = j->events;
    e->at_ms = (int64_t)clock_wall_ms();
    factory_job_path(f, j->id, FACTORY_EVENTS_FILE, path);
    if (append_event(path, e, &why))
        log_warn("train", "an event of %s is lost: %s", j->id, why.text);
    else
        j->events++;
}

enum status factory_events(struct factory *f, const char *id, uint32_t first,
                           struct factory_event *out, uint32_t max, uint32_t *count,
                           struct errtext *err)
{
    char path[PATH_MAX];
    struct factory_job j;
    *count = 0;
    if (!factory_get(f, id, &j))
        return err_set(err, STATUS_NOT_FOUND, "no training job '%.40s'", id);
    if (first >= j.events || !max)
        return STATUS_OK;
    factory_job_path(f, j.id, FACTORY_EVENTS_FILE, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    size_t want = (size_t)MIN(max, j.events - first) * sizeof(*out);
    ssize_t n = pread(fd, out, want, (off_t)first * (off_t)sizeof(*out));
    close(fd);
    if (n < 0)
        return err_set(err, STATUS_IO, "%s cannot be read", path);
    *count = (uint32_t)((size_t)n / sizeof(*out));
    for (uint32_t i = 0; i < *count; i++)
        out[i].text[sizeof(out[i].text) - 1] = 0;
    return STATUS_OK;
}
