/* The routes of /v1/fine_tuning/jobs. All wait for a disk, so they run on that lane; but a stream
 * of events is filled by its connection's thread, from what was written a moment ago. */
#include "server/http/fine_tuning.h"
#include "server/base/check.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/http/audit.h"
#include "server/http/auth.h"
#include "server/http/files.h"
#include "server/http/handlers.h"
#include "server/http/state.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define PAGE_MAX      100u
#define PAGE_STANDARD 20u
#define STREAM_CHUNK  64u

/* ---- one's own jobs ---- */

static enum status has_factory(const struct exchange *x, struct errtext *err)
{
    return x->server->deps.factory
               ? STATUS_OK
               : err_coded(err, STATUS_UNSUPPORTED, "training_is_off", "",
                           "nothing is trained on this server: its backend serves alone, or its "
                           "operator switched training off (train)");
}

static enum status find_job(struct exchange *x, const char *id, struct factory_job *j,
                            struct errtext *err)
{
    bool found =
        factory_get(x->server->deps.factory, id, j) && strcmp(j->owner, auth_key_name(x->key)) == 0;
    return found ? STATUS_OK
                 : err_param(err, STATUS_NOT_FOUND, "fine_tuning_job_id",
                             "there is no fine-tuning job '%.60s' of this key", id);
}

static void reply_job(struct exchange *x, const char *id)
{
    struct errtext err = ERRTEXT_INIT;
    struct factory_job j;
    enum status st = find_job(x, id, &j, &err);
    if (!st)
        st = tune_put_job(x, &j, &err);
    if (st)
        exchange_fail(x, st, &err);
    else
        exchange_json(x, 200);
}

/* ---- create ---- */

/* SUFFIX-XXXXXXXX, as OpenAI's names end in something new: a job never replaces an adapter. */
static enum status make_name(const struct exchange *x, const struct tune_ask *a,
                             char name[CATALOG_NAME_MAX + 1], struct errtext *err)
{
    const char *suffix = a->suffix ? a->suffix : "ft";
    snprintf(name, CATALOG_NAME_MAX + 1, "%s-%08x", suffix, randombytes_random());
    enum status st = catalog_check_name(x->server->deps.catalog, name, err);
    if (!st && !auth_allows_adapter(x->key, name))
        st = err_set(err, STATUS_DENIED, "this API key may not publish as '%.128s'", name);
    if (st) {
        err_prefix(err, "suffix");
        snprintf(err->param, sizeof(err->param), "suffix");
    }
    return st;
}

static enum status fill_roots(struct exchange *x, struct tune_ask *a, struct factory_spec *s,
                              struct errtext *err)
{
    uint32_t rows = 0;
    enum status st = tune_source(x, a->training_file, "training_file", s->document_root, err);
    if (!st && a->validation_file)
        st = tune_source(x, a->validation_file, "validation_file", s->eval_root, err);
    if (!st && (a->auto_epochs || a->auto_batch))
        st = tune_rows(x, s->document_root, &rows, err);
    tune_ask_settle(a, rows);
    return st;
}

static enum status submit(struct exchange *x, struct tune_ask *a, char id[FACTORY_ID_BYTES],
                          struct errtext *err)
{
    char name[CATALOG_NAME_MAX + 1];
    struct factory_spec s = {.owner = auth_key_name(x->key),
                             .name = name,
                             .quota_bytes = x->key ? x->key->publish_bytes_max : 0,
                             .peft_config = a->config.data,
                             .peft_config_bytes = a->config.len,
                             .warmup_percent = a->warmup_percent,
                             .price = x->server->opt.train_price};
    enum status st = make_name(x, a, name, err);
    if (!st)
        st = fill_roots(x, a, &s, err);
    if (st)
        return st;
    json_t *note = tune_ask_note(a, x);
    char *text = note ? json_dumps(note, JSON_COMPACT) : NULL;
    json_decref(note);
    if (!text)
        return err_set(err, STATUS_NO_MEMORY, "there is no memory for this job now");
    s.train = a->train;
    s.note = text;
    s.note_bytes = strlen(text);
    st = factory_submit(x->server->deps.factory, &s, id, err);
    mem_free(text);
    return st;
}

void handle_tune_create(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct tune_ask a = {.training_file = ""};
    char id[FACTORY_ID_BYTES] = "";
    json_t *root = NULL;
    enum status st = has_factory(x, &err);
    if (!st)
        st = json_doc_parse(&root, "the body", x->body.data, x->body.len, 0, &err);
    if (!st)
        st = tune_ask_read(&a, x, root, &err);
    if (!st)
        st = submit(x, &a, id, &err);
    tune_ask_fini(&a);
    json_decref(root);
    audit_action(x, "fine-tune", id, st, &err);
    if (st)
        exchange_fail(x, st, &err);
    else
        reply_job(x, id);
}

/* ---- list ---- */

/* Those that the query asks for, behind `after`; page has PAGE_MAX places. */
static enum status put_jobs(struct exchange *x, const char *after, uint32_t max,
                            struct factory_job *page, struct errtext *err)
{
    char last[FACTORY_ID_BYTES];
    uint32_t shown = 0;
    bool more = true, full = false;
    enum status st = STATUS_OK;
    buf_puts(&x->out, "{\"object\":\"list\",\"data\":[");
    while (!st && more && !full) {
        uint32_t n = factory_list(x->server->deps.factory, auth_key_name(x->key), after, page,
                                  PAGE_MAX, &more);
        for (uint32_t i = 0; i < n && !st && !full; i++) {
            if (!tune_has_metadata(x, &page[i]))
                continue;
            full = shown == max;
            buf_puts(&x->out, !full && shown ? "," : "");
            st = full ? STATUS_OK : tune_put_job(x, &page[i], err);
            shown += !full;
        }
        if (n)
            memcpy(last, page[n - 1].id, sizeof(last));
        after = last;
    }
    buf_printf(&x->out, "],\"has_more\":%s}", full ? "true" : "false");
    return st;
}

static enum status list_jobs(struct exchange *x, struct errtext *err)
{
    struct factory_job *page = mem_array(PAGE_MAX, sizeof(*page));
    const char *after = *x->query_after ? x->query_after : NULL;
    uint32_t max = 0;
    enum status st = files_read_limit(x, 1, PAGE_MAX, PAGE_STANDARD, &max, err);
    if (!st && after)
        st = find_job(x, after, &page[0], err);
    if (!st)
        st = put_jobs(x, after, max, page, err);
    mem_free(page);
    return st;
}

void handle_tune_list(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    enum status st = has_factory(x, &err);
    if (!st)
        st = list_jobs(x, &err);
    if (st)
        exchange_fail(x, st, &err);
    else
        exchange_json(x, 200);
}

/* ---- events, checkpoints ---- */

/* The page's range of [0, all): those before `after`, the newest first. */
static enum status read_range(struct exchange *x, const struct factory_job *j, const char *prefix,
                              uint32_t *end, uint32_t *max, struct errtext *err)
{
    *end = j->events;
    if (*x->query_after && !tune_event_seq(x->query_after, prefix, j->id, end))
        return err_param(err, STATUS_NOT_FOUND, "after", "after: '%.60s' is none of this job",
                         x->query_after);
    *end = MIN(*end, j->events);
    return files_read_limit(x, 1, PAGE_MAX, PAGE_STANDARD, max, err);
}

static enum status list_events(struct exchange *x, const struct factory_job *j, struct errtext *err)
{
    struct factory_event *e = mem_array(PAGE_MAX, sizeof(*e));
    uint32_t end = 0, max = 0, n = 0;
    enum status st = read_range(x, j, "ftevent", &end, &max, err);
    uint32_t first = end > max ? end - max : 0;
    if (!st)
        st = factory_events(x->server->deps.factory, j->id, first, e, end - first, &n, err);
    buf_puts(&x->out, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = n; !st && i-- > 0;) {
        tune_put_event(&x->out, j->id, &e[i]);
        buf_puts(&x->out, i ? "," : "");
    }
    buf_printf(&x->out, "],\"has_more\":%s}", first > 0 ? "true" : "false");
    mem_free(e);
    return st;
}

/* Checkpoints are rare among the events. */
static enum status list_checkpoints(struct exchange *x, const struct factory_job *j,
                                    struct errtext *err)
{
    struct factory_event *e = mem_array(PAGE_MAX, sizeof(*e));
    uint32_t end = 0, max = 0, n = 0, shown = 0;
    bool more = false;
    enum status st = read_range(x, j, "ftckpt", &end, &max, err);
    buf_puts(&x->out, "{\"object\":\"list\",\"data\":[");
    while (!st && end > 0 && !more) {
        uint32_t first = end > PAGE_MAX ? end - PAGE_MAX : 0;
        st = factory_events(x->server->deps.factory, j->id, first, e, end - first, &n, err);
        for (uint32_t i = n; !st && i-- > 0 && !more;) {
            if (e[i].type != FACTORY_EVENT_CHECKPOINT)
                continue;
            more = shown == max;
            buf_puts(&x->out, !more && shown++ ? "," : "");
            if (!more)
                tune_put_checkpoint(&x->out, j, &e[i]);
        }
        end = first;
    }
    buf_printf(&x->out, "],\"has_more\":%s}", more ? "true" : "false");
    mem_free(e);
    return st;
}

/* ---- events as they come ---- */

static bool fill_events(struct feed *f, struct exchange *x, struct buf *out)
{
    struct factory_event e[STREAM_CHUNK];
    struct factory_job j;
    uint32_t n = 0;
    struct errtext why = ERRTEXT_INIT;
    struct factory *factory = x->server->deps.factory;
    bool found = factory_get(factory, f->topic, &j);
    if (found && factory_events(factory, f->topic, (uint32_t)f->at, e, STREAM_CHUNK, &n, &why))
        found = false;
    for (uint32_t i = 0; i < n; i++) {
        buf_puts(out, "data: ");
        tune_put_event(out, f->topic, &e[i]);
        buf_puts(out, "\n\n");
    }
    f->at += n;
    bool over = !found || (f->at >= j.events && j.finished_ms);
    if (over)
        buf_puts(out, "data: [DONE]\n\n");
    return over;
}

static enum status stream_events(struct exchange *x, const struct factory_job *j,
                                 struct errtext *err)
{
    return feed_begin(x, j->id, fill_events)
               ? STATUS_OK
               : err_set(err, STATUS_NO_MEMORY, "there is no memory for this stream now");
}

/* The factory's thread. */
static void on_change(void *arg, const char *id)
{
    struct http_server *s = arg;
    feeds_wake(&s->feeds, id);
}

void tune_listen(struct http_server *s, bool yes)
{
    if (s->deps.factory)
        factory_listen(s->deps.factory, yes ? on_change : NULL, s);
}

/* ---- one job ---- */

/* ID, or ID/what. */
static const char *split_tail(const char *tail, char id[FACTORY_ID_BYTES])
{
    size_t len = strcspn(tail, "/");
    snprintf(id, FACTORY_ID_BYTES, "%.*s", (int)MIN(len, FACTORY_ID_BYTES - 1), tail);
    return len < FACTORY_ID_BYTES ? tail + len : "/";
}

static enum status show_part(struct exchange *x, const struct factory_job *j, const char *what,
                             struct errtext *err)
{
    bool stream = strcmp(x->query_stream, "true") == 0 || strcmp(x->query_stream, "1") == 0;
    if (strcmp(what, "/events") == 0)
        return stream ? stream_events(x, j, err) : list_events(x, j, err);
    if (strcmp(what, "/checkpoints") == 0)
        return list_checkpoints(x, j, err);
    return *what ? err_set(err, STATUS_NOT_FOUND,
                           "expected /v1/fine_tuning/jobs/ID, and /events "
                           "or /checkpoints behind it")
                 : tune_put_job(x, j, err);
}

void handle_tune_get(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    char id[FACTORY_ID_BYTES];
    struct factory_job j;
    const char *what = split_tail(x->tail, id);
    enum status st = has_factory(x, &err);
    if (!st)
        st = find_job(x, id, &j, &err);
    if (!st)
        st = show_part(x, &j, what, &err);
    if (st)
        exchange_fail(x, st, &err);
    else if (!x->feed)
        exchange_json(x, 200);
}

void handle_tune_act(struct exchange *x)
{
    static const struct {
        const char *what, *name;
        enum status (*act)(struct factory *f, const char *id, struct errtext *err);
    } known[] = {{"/cancel", "cancel fine-tuning", factory_cancel},
                 {"/pause", "pause fine-tuning", factory_pause},
                 {"/resume", "resume fine-tuning", factory_resume}};
    struct errtext err = ERRTEXT_INIT;
    char id[FACTORY_ID_BYTES];
    struct factory_job j;
    const char *what = split_tail(x->tail, id);
    size_t k = 0;
    while (k < ARRAY_COUNT(known) && strcmp(known[k].what, what) != 0)
        k++;
    enum status st = has_factory(x, &err);
    if (!st)
        st = find_job(x, id, &j, &err);
    if (!st && k == ARRAY_COUNT(known))
        st = err_set(&err, STATUS_NOT_FOUND,
                     "POST /v1/fine_tuning/jobs/ID/cancel, /pause or /resume");
    if (!st)
        st = known[k].act(x->server->deps.factory, id, &err);
    if (k < ARRAY_COUNT(known))
        audit_action(x, known[k].name, id, st, &err);
    if (st)
        exchange_fail(x, st, &err);
    else
        reply_job(x, id);
}
