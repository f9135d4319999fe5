/* Tinker's calls that begin no work: what the server is, sessions, samplers. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/http/auth.h"
#include "server/http/handlers.h"
#include "server/http/tinker_parts.h"

#include <stdio.h>
#include <string.h>

#define FINISH     "/finish"
#define BODY_SHARE 2 /* of body_bytes_max: spans and field names are not in the SDK's estimate */

void handle_tinker_health(struct exchange *x)
{
    buf_puts(&x->out, "{\"status\":\"ok\"}");
    exchange_json(x, 200);
}

void handle_tinker_config(struct exchange *x)
{
    buf_printf(&x->out,
               "{\"pjwt_auth_enabled\":false,\"credential_default_source\":\"api_key\","
               "\"parallel_fwdbwd_chunks\":false,\"proto_compress_fwdbwd\":false,"
               "\"fwdbwd_max_chunk_len\":%u,\"fwdbwd_max_chunk_bytes_count\":%llu,"
               "\"sample_max_concurrent_requests\":256,\"sample_use_retrieve_futures\":false,"
               "\"sample_join_sampling_session\":false,\"custom_loss_server_side\":false}",
               TINKER_DATUMS_MAX,
               (unsigned long long)MIN(x->server->opt.body_bytes_max / BODY_SHARE, 5000000));
    exchange_json(x, 200);
}

void handle_tinker_dynamic_config(struct exchange *x)
{
    buf_puts(&x->out, "{\"refresh_interval_sec\":300,\"sample_cancel_enabled\":false}");
    exchange_json(x, 200);
}

void handle_tinker_telemetry(struct exchange *x)
{
    buf_puts(&x->out, "{\"status\":\"accepted\"}");
    exchange_json(x, 200);
}

void handle_tinker_capabilities(struct exchange *x)
{
    const struct http_server *s = x->server;
    buf_puts(&x->out, "{\"supported_models\":[{\"model_name\":");
    buf_put_json_string(&x->out, s->opt.model_name, strlen(s->opt.model_name));
    buf_printf(&x->out, ",\"max_context_length\":%u,\"trainable\":%s,\"sampleable\":true}]}",
               s->context_max, s->deps.factory ? "true" : "false");
    exchange_json(x, 200);
}

void handle_tinker_create_session(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    char id[TINKER_SESSION_ID];
    enum status st = tinker_session_new(x, id, &err);
    if (st) {
        tinker_fail(x, st, &err);
        return;
    }
    buf_printf(&x->out, "{\"type\":\"create_session\",\"session_id\":\"%s\"", id);
    if (!x->server->deps.factory)
        buf_puts(&x->out, ",\"warning_message\":\"this server does not train, it only samples\"");
    else
        buf_puts(&x->out, ",\"warning_message\":\"LoRA on the unembedding is not trained by this "
                          "server: train_unembed is taken as false\"");
    buf_puts(&x->out, "}");
    exchange_json(x, 200);
}

/* The session that a body's session_id names, held; NULL: x has its answer. */
static struct tinker_session *hold_named(struct exchange *x, json_t **root, struct json_reader *in,
                                         struct errtext *err)
{
    tinker_body(x, root, in, err);
    const char *id = json_need_string(in, "session_id");
    if (!in->st)
        return tinker_hold(x, id);
    tinker_fail(x, in->st, err);
    return NULL;
}

void handle_tinker_heartbeat(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct json_reader in;
    json_t *root = NULL;
    struct tinker_session *s = hold_named(x, &root, &in, &err);
    if (s) {
        tinker_release(x->server->tinker, s);
        buf_puts(&x->out, "{\"type\":\"session_heartbeat\"}");
        exchange_json(x, 200);
    }
    json_decref(root);
}

/* POST /api/v1/sessions/ID/finish. One that has ended has ended. */
void handle_tinker_finish(struct exchange *x)
{
    char id[TINKER_SESSION_ID];
    size_t len = strlen(x->tail), end = strlen(FINISH);
    bool ok = len > end && len - end < sizeof(id) && strcmp(x->tail + len - end, FINISH) == 0;
    snprintf(id, sizeof(id), "%.*s", ok ? (int)(len - end) : 0, x->tail);
    struct tinker_session *s = tinker_hold(x, id);
    if (!s)
        return;
    tinker_session_close(x->server->tinker, s);
    tinker_release(x->server->tinker, s);
    buf_puts(&x->out, "null");
    exchange_json(x, 200);
}

void handle_tinker_get_info(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct json_reader in;
    json_t *root = NULL;
    const char *name = x->server->opt.model_name;
    tinker_body(x, &root, &in, &err);
    const char *id = json_need_string(&in, "model_id");
    struct tinker_session *s = in.st ? NULL : tinker_hold(x, id);
    struct tinker_model *m = s ? tinker_find_model(x, s, id) : NULL;
    if (in.st)
        tinker_fail(x, in.st, &err);
    if (m) {
        buf_puts(&x->out, "{\"type\":\"get_info\",\"model_data\":{\"arch\":");
        buf_printf(&x->out, "\"%s\",\"model_name\":", x->server->deps.model->config.family_name);
        buf_put_json_string(&x->out, name, strlen(name));
        buf_printf(&x->out, "},\"model_id\":\"%s\",\"is_lora\":true,\"lora_rank\":%u}", m->id,
                   m->lora.rank);
        exchange_json(x, 200);
    }
    if (s)
        tinker_release(x->server->tinker, s);
    json_decref(root);
}

/* ---- samplers ---- */

/* The adapter that tinker://MODEL/sampler_weights/NAME names, if the key may have it. */
static enum status adapter_of_path(struct exchange *x, const char *path, char *out,
                                   struct errtext *err)
{
    char model[TINKER_ID_BYTES], name[TINKER_NAME_MAX + 1];
    enum status st = tinker_path_parse(path, TINKER_SAMPLER_WEIGHTS, model, name, err);
    if (!st)
        tinker_adapter_name(out, model, name);
    struct adapter_entry *e = st ? NULL : catalog_find(x->server->deps.catalog, out);
    bool mine = e && strcmp(e->publisher, auth_key_name(x->key)) == 0;
    if (e)
        catalog_release(e);
    if (!st && !mine)
        st = err_param(err, STATUS_NOT_FOUND, "model_path",
                       "there are no sampler weights %.200s of this key", path);
    return st;
}

static enum status read_sampler(struct exchange *x, struct tinker_session *s,
                                struct json_reader *in, struct tinker_sampler *a)
{
    struct tinker_sampler known;
    const char *base = json_read_string(in, "base_model");
    const char *path = json_read_string(in, "model_path");
    int64_t seq = json_need_int(in, "sampling_session_seq_id", (struct json_range){0, INT32_MAX});
    if (in->st)
        return in->st;
    if (base && strcmp(base, x->server->opt.model_name) != 0)
        return err_param(in->err, STATUS_NOT_FOUND, "base_model",
                         "base_model: found \"%.128s\", this server has \"%s\"", base,
                         x->server->opt.model_name);
    if (!base && !path)
        return err_param(in->err, STATUS_INVALID, "base_model",
                         "base_model or model_path is needed");
    tinker_sampler_id(a, s->id, seq);
    snprintf(a->path, sizeof(a->path), "%s", path ? path : "");
    if (!path || tinker_get_sampler(x->server->tinker, s, path, &known))
        return STATUS_OK; /* what was saved before any step is the base */
    return adapter_of_path(x, path, a->adapter, in->err);
}

void handle_tinker_create_sampler(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct json_reader in;
    json_t *root = NULL;
    struct tinker_sampler *a = mem_alloc(sizeof(*a));
    struct tinker_session *s = hold_named(x, &root, &in, &err);
    enum status st = s ? read_sampler(x, s, &in, a) : STATUS_OK;
    if (st)
        tinker_fail(x, st, &err);
    if (s && !st) {
        buf_printf(&x->out, "{\"type\":\"create_sampling_session\",\"sampling_session_id\":\"%s\"}",
                   a->id);
        exchange_json(x, 200);
        /* One of this id is there already: the call is a repeated one. */
        if (tinker_add_sampler(x->server->tinker, s, a))
            a = NULL;
    }
    if (s)
        tinker_release(x->server->tinker, s);
    mem_free(a);
    json_decref(root);
}

void handle_tinker_sampler(struct exchange *x)
{
    struct tinker_sampler a;
    const char *name = x->server->opt.model_name;
    struct tinker_session *s = tinker_hold(x, x->tail);
    if (!s)
        return;
    if (tinker_get_sampler(x->server->tinker, s, x->tail, &a)) {
        buf_printf(&x->out, "{\"sampler_id\":\"%s\",\"base_model\":", a.id);
        buf_put_json_string(&x->out, name, strlen(name));
        buf_puts(&x->out, ",\"model_path\":");
        if (a.path[0])
            buf_put_json_string(&x->out, a.path, strlen(a.path));
        else
            buf_puts(&x->out, "null");
        buf_puts(&x->out, "}");
        exchange_json(x, 200);
    } else {
        tinker_gone(x, "sampling session", x->tail);
    }
    tinker_release(x->server->tinker, s);
}
