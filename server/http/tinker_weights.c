/* Models and what samples from them: names, learners, adapters. */
#include "server/base/check.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/http/adapters.h"
#include "server/http/handlers.h"
#include "server/http/tinker_parts.h"
#include "server/train/train_config.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define SCHEME       "tinker://"
#define CONFIG_BYTES 4096u
#define RUN_DIGITS   12 /* of a session's id, in an adapter's name */
#define ID_PREFIX    4  /* "ses-" */

/* ---- names ---- */

enum status tinker_check_name(const char *name, const char *param, struct errtext *err)
{
    size_t len = strlen(name);
    bool ok = len > 0 && len <= TINKER_NAME_MAX && name[0] != '.';
    for (size_t i = 0; ok && i < len; i++)
        ok = isalnum((unsigned char)name[i]) || strchr("._-", name[i]);
    bool made =
        ok && len >= strlen(TINKER_NEW) && strcmp(name + len - strlen(TINKER_NEW), TINKER_NEW) == 0;
    return ok && !made
               ? STATUS_OK
               : err_param(err, STATUS_INVALID, param,
                           "%s: found \"%.80s\", expected 1 to %u of A-Z a-z 0-9 . _ - that "
                           "do not begin with . nor end in " TINKER_NEW,
                           param, name, TINKER_NAME_MAX);
}

enum status tinker_path_parse(const char *path, const char *kind, char model[TINKER_ID_BYTES],
                              char name[TINKER_NAME_MAX + 1], struct errtext *err)
{
    char middle[32];
    size_t scheme = strlen(SCHEME), len = 0;
    bool ok = strncmp(path, SCHEME, scheme) == 0;
    snprintf(middle, sizeof(middle), "/%s/", kind);
    if (ok)
        len = strspn(path + scheme, "abcdefghijklmnopqrstuvwxyz0123456789:-");
    ok = ok && len > ID_PREFIX + RUN_DIGITS && len < TINKER_ID_BYTES &&
         strncmp(path + scheme + len, middle, strlen(middle)) == 0;
    if (!ok)
        return err_param(err, STATUS_INVALID, "path",
                         "found \"%.200s\", expected tinker://MODEL/%s/NAME", path, kind);
    memcpy(model, path + scheme, len);
    model[len] = '\0';
    const char *rest = path + scheme + len + strlen(middle);
    enum status st = tinker_check_name(rest, "path", err);
    snprintf(name, TINKER_NAME_MAX + 1, "%s", st ? "" : rest);
    return st;
}

void tinker_adapter_name(char out[CATALOG_NAME_MAX + 1], const char *model, const char *name)
{
    const char *seq = strrchr(model, ':');
    snprintf(out, CATALOG_NAME_MAX + 1, "tinker/%.*s/%.10s/%s", RUN_DIGITS, model + ID_PREFIX,
             seq ? seq + 1 : "", name);
}

void tinker_sampler_id(struct tinker_sampler *a, const char *session, int64_t seq)
{
    snprintf(a->id, sizeof(a->id), "%.*s:sample:%lld", TINKER_SESSION_ID, session, (long long)seq);
}

void tinker_put_path(struct tinker_future *f, const char *kind, const char *name)
{
    snprintf(f->path, sizeof(f->path), SCHEME "%s/%s/%s", f->model->id, kind, name);
}

/* ---- models ---- */

static void put_config(struct buf *out, const struct tinker_lora *lora, const char *base)
{
    static const char *const module[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                         "gate_proj", "up_proj", "down_proj"};
    const uint32_t attn = 4, all = (uint32_t)ARRAY_COUNT(module), first = lora->attn ? 0 : attn;
    train_config_put(out, &(struct train_config){.base = base,
                                                 .rank = lora->rank,
                                                 .alpha = TINKER_ALPHA,
                                                 .module = module + first,
                                                 .modules = (lora->mlp ? all : attn) - first});
}

static enum status add_model(struct tinker *t, struct tinker_session *s, struct tinker_model *m,
                             struct errtext *err)
{
    uint32_t n = 0;
    bool twice = false;
    pthread_mutex_lock(&t->lock);
    for (const struct tinker_model *o = s->model; o; o = o->next) {
        twice = twice || o->seq == m->seq;
        n++;
    }
    bool fits = !twice && n < TINKER_MODELS_MAX && !s->closed;
    if (fits) {
        m->next = s->model;
        s->model = m;
    }
    pthread_mutex_unlock(&t->lock);
    if (twice)
        return err_param(err, STATUS_INVALID, "model_seq_id",
                         "model_seq_id: this session has a model %u", m->seq);
    return fits ? STATUS_OK
                : err_set(err, STATUS_FULL, "this session has %u models, as many as there may be",
                          n);
}

enum status tinker_new_model(struct exchange *x, struct tinker_session *s, uint32_t seq,
                             const struct tinker_lora *lora, struct tinker_model **out,
                             struct errtext *err)
{
    struct tinker *t = x->server->tinker;
    struct tinker_model *m = mem_alloc(sizeof(*m));
    struct buf config;
    m->session = s;
    m->seq = seq;
    m->lora = *lora;
    snprintf(m->id, sizeof(m->id), "%s:train:%u", s->id, seq);
    buf_init(&config, CONFIG_BYTES);
    put_config(&config, lora, x->server->opt.model_name);
    struct factory_learner_spec spec = {.owner = s->owner,
                                        .peft_config = config.data,
                                        .peft_config_bytes = config.len,
                                        .seed = lora->seed};
    enum status st = factory_learner_open(t->factory, &spec, &m->learner, err);
    buf_fini(&config);
    if (!st) {
        st = add_model(t, s, m, err);
        if (st)
            factory_learner_close(t->factory, m->learner);
    }
    if (st)
        mem_free(m);
    *out = st ? NULL : m;
    return st;
}

/* ---- save_weights_for_sampler ---- */

/* Nothing was trained yet, nor is about to be: what would be published is the base. */
static bool is_base(struct tinker_future *f)
{
    struct tinker *t = f->t;
    pthread_mutex_lock(&t->lock);
    bool base = !f->model->stepped;
    for (const struct tinker_future *o = f->session->future; o && base; o = o->next)
        base = o->model != f->model || o->stage != TINKER_RUNNING ||
               (o->kind != TINKER_OPTIM && o->kind != TINKER_LOAD);
    pthread_mutex_unlock(&t->lock);
    return base;
}

static void prepare_names(struct tinker_future *f, const char *name, int64_t seq)
{
    char unnamed[TINKER_NAME_MAX + 1];
    snprintf(unnamed, sizeof(unnamed), "sampler-%lld", (long long)seq);
    tinker_adapter_name(f->name, f->model->id, name ? name : unnamed);
    tinker_put_path(f, TINKER_SAMPLER_WEIGHTS, name ? name : unnamed);
    f->at_once = is_base(f);
    if (name && !f->at_once)
        return;
    f->sampler = mem_alloc(sizeof(*f->sampler));
    snprintf(f->sampler->path, sizeof(f->sampler->path), "%s", f->path);
    snprintf(f->sampler->adapter, sizeof(f->sampler->adapter), "%s", f->at_once ? "" : f->name);
    if (name) /* a path that the session knows */
        snprintf(f->sampler->id, sizeof(f->sampler->id), "%s", f->path);
    else
        tinker_sampler_id(f->sampler, f->session->id, seq);
}

static enum status prepare_sampler(struct exchange *x, struct tinker_future *f,
                                   struct json_reader *in)
{
    struct tinker_rows rows = {.row = NULL};
    size_t len = 0;
    const char *name = json_read_string(in, "path"), *kind = json_read_string(in, "kind");
    int64_t seq =
        json_read_int(in, "sampling_session_seq_id", (struct json_range){0, INT32_MAX}, -1);
    if (json_has(in, "ttl_seconds"))
        json_fail(in, STATUS_UNSUPPORTED, "ttl_seconds",
                  "what is published stays until DELETE /v1/adapters/NAME");
    if (kind && strcmp(kind, "snapshot") != 0)
        json_fail(in, STATUS_UNSUPPORTED, "kind", "found \"%.40s\", this server has snapshot",
                  kind);
    if (!in->st && !name && seq < 0)
        json_fail(in, STATUS_INVALID, "path", "is missing, and so is sampling_session_seq_id");
    enum status st = in->st;
    if (!st && name)
        st = tinker_check_name(name, "path", in->err);
    if (!st) {
        prepare_names(f, name, seq);
        st = tinker_rows_asked(f->model, &rows, NULL, in->err);
    }
    if (!st)
        st = tinker_rows_render(&f->training, &len, &rows, x->server, in->err);
    tinker_rows_fini(&rows);
    f->work = (struct factory_work){.kind = FACTORY_PUBLISH,
                                    .name = f->name,
                                    .training = f->training,
                                    .training_bytes = len,
                                    .quota_bytes = x->key ? x->key->publish_bytes_max : 0};
    return st;
}

void handle_tinker_save_sampler(struct exchange *x)
{
    tinker_call(x, TINKER_SAVE_SAMPLER, prepare_sampler);
}

static void forget(struct tinker *t, const char *name)
{
    struct errtext err = ERRTEXT_INIT;
    enum status st = adapters_unload(t->server, name, true, &err);
    if (st && st != STATUS_NOT_FOUND)
        log_warn("tinker", "%s: %s", name, err.text);
}

void tinker_forget_samplers(struct tinker *t, struct tinker_model *m)
{
    for (uint32_t i = 0; i < TINKER_SAMPLERS_KEPT; i++) {
        if (m->ephemeral[i][0])
            forget(t, m->ephemeral[i]);
    }
}

/* One without a name takes the place of the oldest of its model. */
static void keep_newest(struct tinker *t, struct tinker_model *m, const char *name)
{
    char *place = m->ephemeral[m->ephemerals++ % TINKER_SAMPLERS_KEPT];
    if (place[0])
        forget(t, place);
    snprintf(place, CATALOG_NAME_MAX + 1, "%s", name);
}

static enum status finish_sampler(struct tinker_future *f, struct errtext *err)
{
    bool named = !f->sampler || strcmp(f->sampler->id, f->path) == 0;
    if (!f->at_once)
        log_audit("tinker", "publish adapter '%s' by key '%s': done", f->name, f->session->owner);
    if (named)
        buf_printf(&f->out, "{\"type\":\"save_weights_for_sampler\",\"path\":\"%s\"}", f->path);
    else
        buf_printf(&f->out,
                   "{\"type\":\"save_weights_for_sampler\",\"sampling_session_id\":\"%s\"}",
                   f->sampler->id);
    if (!named && !f->at_once)
        keep_newest(f->t, f->model, f->name);
    if (!f->sampler)
        return STATUS_OK;
    if (!tinker_add_sampler(f->t, f->session, f->sampler))
        return err_set(err, STATUS_FULL, "this session has %u samplers, as many as there may be",
                       TINKER_SAMPLERS_MAX);
    f->sampler = NULL;
    return STATUS_OK;
}

void tinker_finish_weights(struct tinker_future *f)
{
    struct errtext err = f->work.err;
    enum status st = f->work.status;
    if (f->kind == TINKER_CREATE)
        buf_printf(&f->out, "{\"type\":\"create_model\",\"model_id\":\"%s\"}", f->model->id);
    else if (!st && f->kind == TINKER_SAVE)
        st = tinker_finish_save(f, &err);
    else if (!st && f->kind == TINKER_LOAD)
        tinker_finish_load(f);
    else if (!st)
        st = finish_sampler(f, &err);
    if (st && f->kind == TINKER_SAVE)
        tinker_drop_save(f);
    if (st)
        tinker_put_failure(f, st, &err);
}
