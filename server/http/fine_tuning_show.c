/* Jobs, events and checkpoints in OpenAI's shapes. What a job was asked is in its note; what it has
 * done the factory says. The result file is made when its job is first shown after it succeeded. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/hex.h"
#include "server/base/json.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/http/files.h"
#include "server/http/fine_tuning.h"
#include "server/http/state.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JOB_PREFIX   "ftjob-"
#define RESULT_NAME  "step_metrics.csv"
#define RESULT_MAX   (4u << 20)
#define EVENTS_CHUNK 256u

/* ---- pieces ---- */

static void put_float(struct buf *out, const char *key, float v)
{
    if (isfinite(v))
        buf_printf(out, "\"%s\":%.9g", key, (double)v);
    else
        buf_printf(out, "\"%s\":null", key);
}

static void put_text(struct buf *out, const char *key, const char *text)
{
    buf_printf(out, "\"%s\":", key);
    if (text)
        buf_put_json_string(out, text, strlen(text));
    else
        buf_puts(out, "null");
}

static void put_time(struct buf *out, const char *key, int64_t ms)
{
    if (ms)
        buf_printf(out, "\"%s\":%" PRId64, key, ms / 1000);
    else
        buf_printf(out, "\"%s\":null", key);
}

static void put_root(struct buf *out, const char *key, const uint8_t root[32], bool has)
{
    if (has)
        buf_put_json_hex(out, key, root, 32);
    else
        buf_printf(out, "\"%s\":null", key);
}

static void put_value(struct buf *out, const char *key, const json_t *v)
{
    char *text = v ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    buf_printf(out, "\"%s\":%s", key, text ? text : "null");
    mem_free(text);
}

static bool is_over(const struct factory_job *j)
{
    return j->status == FACTORY_SUCCEEDED || j->status == FACTORY_FAILED ||
           j->status == FACTORY_CANCELLED;
}

/* ---- events ---- */

void tune_event_id(char out[TUNE_EVENT_ID_BYTES], const char *prefix, const char *job, uint32_t seq)
{
    snprintf(out, TUNE_EVENT_ID_BYTES, "%s-%.24s-%u", prefix, job + sizeof(JOB_PREFIX) - 1, seq);
}

bool tune_event_seq(const char *id, const char *prefix, const char *job, uint32_t *seq)
{
    char same[TUNE_EVENT_ID_BYTES];
    const char *last = strrchr(id, '-');
    unsigned long n = last ? strtoul(last + 1, NULL, 10) : 0;
    *seq = (uint32_t)n;
    tune_event_id(same, prefix, job, *seq);
    return n <= UINT32_MAX && strcmp(id, same) == 0;
}

static void put_metrics(struct buf *out, const struct factory_event *e)
{
    buf_printf(out, "{\"step\":%u,", e->step);
    put_float(out, "train_loss", e->loss);
    if (isfinite(e->eval_loss)) {
        buf_putc(out, ',');
        put_float(out, "valid_loss", e->eval_loss);
    }
}

void tune_put_event(struct buf *out, const char *job, const struct factory_event *e)
{
    static const char *const level[] = {"info", "warn", "error"};
    char id[TUNE_EVENT_ID_BYTES], text[80];
    bool metrics = e->type == FACTORY_EVENT_METRICS;
    tune_event_id(id, "ftevent", job, e->seq);
    buf_printf(out, "{\"object\":\"fine_tuning.job.event\",\"id\":\"%s\",", id);
    put_time(out, "created_at", e->at_ms);
    buf_printf(out, ",\"level\":\"%s\",\"type\":\"%s\",",
               level[MIN(e->level, ARRAY_COUNT(level) - 1)], metrics ? "metrics" : "message");
    snprintf(text, sizeof(text),
             e->type == FACTORY_EVENT_CHECKPOINT ? "checkpoint at step %u"
                                                 : "step %u: training loss=%.4f",
             e->step, (double)e->loss);
    put_text(out, "message", e->text[0] ? e->text : text);
    buf_puts(out, ",\"data\":");
    if (metrics) {
        put_metrics(out, e);
        buf_putc(out, ',');
        put_float(out, "learning_rate", e->lr);
        buf_putc(out, ',');
        put_float(out, "gradient_norm", e->norm);
        buf_printf(out, ",\"tokens_per_second\":%u}", e->tokens_per_s);
    } else {
        buf_puts(out, "{}");
    }
    buf_putc(out, '}');
}

void tune_put_checkpoint(struct buf *out, const struct factory_job *j,
                         const struct factory_event *e)
{
    char id[TUNE_EVENT_ID_BYTES];
    bool is_model = j->status == FACTORY_SUCCEEDED && e->step == j->steps;
    tune_event_id(id, "ftckpt", j->id, e->seq);
    buf_printf(out, "{\"object\":\"fine_tuning.job.checkpoint\",\"id\":\"%s\",", id);
    put_time(out, "created_at", e->at_ms);
    buf_printf(out, ",\"fine_tuning_job_id\":\"%s\",", j->id);
    put_text(out, "fine_tuned_model_checkpoint", is_model ? j->name : NULL);
    buf_printf(out, ",\"step_number\":%u,\"metrics\":", e->step);
    put_metrics(out, e);
    buf_puts(out, "}}");
}

/* ---- the result file ---- */

static void put_row(struct buf *out, const struct factory_event *e)
{
    const float number[] = {e->loss, e->eval_loss, e->lr, e->norm};
    if (e->type != FACTORY_EVENT_METRICS)
        return;
    buf_printf(out, "%u", e->step);
    for (size_t i = 0; i < ARRAY_COUNT(number); i++) {
        if (isfinite(number[i]))
            buf_printf(out, ",%.9g", (double)number[i]);
        else
            buf_putc(out, ',');
    }
    buf_printf(out, ",%u\n", e->tokens_per_s);
}

static enum status render_result(struct exchange *x, const struct factory_job *j, struct buf *csv,
                                 struct errtext *err)
{
    struct factory_event *e = mem_array(EVENTS_CHUNK, sizeof(*e));
    enum status st = STATUS_OK;
    uint32_t n = EVENTS_CHUNK;
    buf_puts(csv, "step,train_loss,valid_loss,learning_rate,gradient_norm,tokens_per_second\n");
    for (uint32_t first = 0; !st && n == EVENTS_CHUNK; first += n) {
        st = factory_events(x->server->deps.factory, j->id, first, e, EVENTS_CHUNK, &n, err);
        for (uint32_t i = 0; i < n; i++)
            put_row(csv, &e[i]);
    }
    mem_free(e);
    return st;
}

static enum status make_result(struct exchange *x, const struct factory_job *j, const char *id,
                               struct errtext *err)
{
    struct buf csv;
    struct stored_file f = {.name = RESULT_NAME, .purpose = FILES_RESULTS};
    buf_init(&csv, RESULT_MAX);
    snprintf(f.id, sizeof(f.id), "%s", id);
    snprintf(f.owner, sizeof(f.owner), "%s", j->owner);
    enum status st = render_result(x, j, &csv, err);
    if (!st)
        st = csv.failed ? err_set(err, STATUS_TOO_LARGE, "more than %u bytes", RESULT_MAX)
                        : file_store_put(x->server->deps.files, &f, csv.data, csv.len, err);
    buf_fini(&csv);
    return st == STATUS_EXISTS ? STATUS_OK : st;
}

/* One for each job: its id is the job's. */
static void put_result(struct exchange *x, const struct factory_job *j)
{
    char id[FILE_STORE_ID_BYTES];
    struct stored_file f;
    struct errtext why = ERRTEXT_INIT;
    snprintf(id, sizeof(id), "file-%.24s", j->id + sizeof(JOB_PREFIX) - 1);
    bool there = j->status == FACTORY_SUCCEEDED;
    if (there && !file_store_get(x->server->deps.files, j->owner, id, &f) &&
        make_result(x, j, id, &why)) {
        log_warn("train", "%s: no result file: %s", j->id, why.text);
        there = false;
    }
    buf_printf(&x->out, "\"result_files\":[%s%s%s]", there ? "\"" : "", there ? id : "",
               there ? "\"" : "");
}

/* ---- the job ---- */

static void put_error(struct buf *out, const struct factory_job *j)
{
    if (j->status != FACTORY_FAILED) {
        buf_puts(out, "\"error\":null");
        return;
    }
    buf_puts(out, "\"error\":{\"code\":\"job_failed\",");
    put_text(out, "message", j->error);
    buf_putc(out, ',');
    put_text(out, "param", j->error_param[0] ? j->error_param : NULL);
    buf_putc(out, '}');
}

static void put_estimate(struct buf *out, const struct factory_job *j)
{
    uint64_t left = j->tokens_all > j->trained_tokens ? j->tokens_all - j->trained_tokens : 0;
    bool known = j->status == FACTORY_RUNNING && j->tokens_per_s > 0;
    double ms = known ? 1000 * (double)left / j->tokens_per_s : 0;
    put_time(out, "estimated_finish",
             known && ms < 1e15 ? (int64_t)clock_wall_ms() + (int64_t)ms : 0);
}

/* OpenAI's three at the top, all in method. */
static void put_hyperparameters(struct buf *out, const json_t *h)
{
    static const char *const top[] = {"n_epochs", "batch_size", "learning_rate_multiplier"};
    buf_puts(out, "\"hyperparameters\":{");
    for (size_t i = 0; i < ARRAY_COUNT(top); i++) {
        buf_puts(out, i ? "," : "");
        put_value(out, top[i], json_object_get(h, top[i]));
    }
    buf_puts(out, "},\"method\":{\"type\":\"supervised\",\"supervised\":{");
    put_value(out, "hyperparameters", h);
    buf_puts(out, "}}");
}

/* Base units for what was read so far; a part of one is not asked. */
static void put_price(struct buf *out, const struct factory_job *j)
{
    u128 price;
    char amount[40];
    put_text(out, "price_per_1000_tokens", j->price);
    if (!u128_parse(&price, j->price) || price >> 64) {
        buf_puts(out, ",\"amount\":null");
        return;
    }
    u128_format(amount, price * j->trained_tokens / 1000);
    buf_printf(out, ",\"amount\":\"%s\"", amount);
}

static void put_residual(struct buf *out, const struct factory_job *j)
{
    static const uint8_t none[32];
    buf_puts(out, "\"residual\":{");
    put_price(out, j);
    buf_putc(out, ',');
    put_root(out, "document_root", j->document_root, true);
    buf_putc(out, ',');
    put_root(out, "validation_root", j->eval_root, memcmp(j->eval_root, none, 32) != 0);
    buf_putc(out, ',');
    put_root(out, "training_digest", j->training_digest, true);
    buf_putc(out, ',');
    put_root(out, "adapter_id", j->adapter_id, j->has_adapter);
    buf_printf(out,
               ",\"rows\":%u,\"validation_rows\":%u,\"steps\":%u,\"steps_done\":%u,"
               "\"tokens\":%" PRIu64 ",\"tokens_done\":%" PRIu64 ",",
               j->rows, j->eval_rows, j->steps, j->done, j->tokens_all, j->trained_tokens);
    put_float(out, "train_loss", j->loss);
    buf_putc(out, ',');
    put_float(out, "valid_loss", j->eval_loss);
    buf_printf(out, ",\"tokens_per_second\":%.1f}", j->tokens_per_s);
}

static void put_job(struct exchange *x, const struct factory_job *j, const json_t *note)
{
    struct buf *out = &x->out;
    buf_printf(out, "{\"object\":\"fine_tuning.job\",\"id\":\"%s\",", j->id);
    put_value(out, "model", json_object_get(note, "model"));
    buf_putc(out, ',');
    put_time(out, "created_at", j->created_ms);
    buf_putc(out, ',');
    put_time(out, "finished_at", is_over(j) ? j->finished_ms : 0);
    buf_putc(out, ',');
    put_estimate(out, j);
    buf_putc(out, ',');
    put_text(out, "fine_tuned_model", j->status == FACTORY_SUCCEEDED ? j->name : NULL);
    buf_putc(out, ',');
    put_text(out, "organization_id", j->owner);
    buf_printf(out, ",\"status\":\"%s\",", factory_status_name(j->status));
    put_value(out, "training_file", json_object_get(note, "training_file"));
    buf_putc(out, ',');
    put_value(out, "validation_file", json_object_get(note, "validation_file"));
    buf_putc(out, ',');
    put_value(out, "metadata", json_object_get(note, "metadata"));
    buf_putc(out, ',');
    put_value(out, "user_provided_suffix", json_object_get(note, "suffix"));
    buf_putc(out, ',');
    put_hyperparameters(out, json_object_get(note, "hyperparameters"));
    buf_printf(out, ",\"seed\":%" PRIu64 ",\"integrations\":[],", j->train.seed);
    if (is_over(j))
        buf_printf(out, "\"trained_tokens\":%" PRIu64 ",", j->trained_tokens);
    else
        buf_puts(out, "\"trained_tokens\":null,");
    put_error(out, j);
    buf_putc(out, ',');
    put_result(x, j);
    buf_putc(out, ',');
    put_residual(out, j);
    buf_putc(out, '}');
}

static enum status read_note(struct exchange *x, const struct factory_job *j, json_t **note,
                             struct errtext *err)
{
    struct buf text;
    *note = NULL;
    buf_init(&text, FACTORY_NOTE_BYTES);
    enum status st = factory_note(x->server->deps.factory, j->id, &text, err);
    if (!st)
        st = json_doc_parse(note, "the job's note", text.data, text.len, 0, err);
    buf_fini(&text);
    return st;
}

enum status tune_put_job(struct exchange *x, const struct factory_job *j, struct errtext *err)
{
    json_t *note;
    enum status st = read_note(x, j, &note, err);
    if (!st)
        put_job(x, j, note);
    json_decref(note);
    return st;
}

bool tune_has_metadata(struct exchange *x, const struct factory_job *j)
{
    json_t *note, *value;
    const char *key;
    if (!x->query_metadata)
        return true;
    bool has = read_note(x, j, &note, NULL) == STATUS_OK;
    const json_t *own = json_object_get(note, "metadata");
    json_object_foreach(x->query_metadata, key, value)
    {
        has = has && json_equal(json_object_get(own, key), value);
    }
    json_decref(note);
    return has;
}
