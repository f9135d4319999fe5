/* The lifecycle of adapters over HTTP: vLLM's load and unload, and our listing with residency,
 * publisher, terms and use. An unload is answered when the bytes are free. All that waits runs on a
 * worker thread. */
#include "server/http/adapters.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/hex.h"
#include "server/base/json.h"
#include "server/base/log.h"
#include "server/http/adapter_files.h"
#include "server/http/audit.h"
#include "server/http/auth.h"
#include "server/http/handlers.h"
#include "server/http/reply.h"
#include "server/http/state.h"
#include "server/influence/indexes.h"

#include <stdio.h>
#include <string.h>

#define UNLOAD_WAIT_MS 30000u

static const char *tier_name(uint32_t state)
{
    switch (state) {
    case ADAPTER_HOST:
    case ADAPTER_DRAINING:
        return "host";
    case ADAPTER_DEVICE:
        return "device";
    default:
        return "disk";
    }
}

static void put_entry(const struct http_server *s, struct buf *out, const struct adapter_entry *e)
{
    char id[65];
    uint32_t state = atomic_load_explicit(&e->state, memory_order_relaxed);
    hex_encode(id, e->id, sizeof(e->id));
    buf_puts(out, "{\"name\":");
    buf_put_json_string(out, e->name, strlen(e->name));
    buf_printf(out,
               ",\"id\":\"%s\",\"object\":\"adapter\",\"state\":\"%s\",\"tier\":\"%s\","
               "\"rank_max\":%u,\"bytes\":%llu,\"created\":%lld",
               id, adapter_state_name((enum adapter_state)state), tier_name(state), e->rank_max,
               (unsigned long long)e->blob_bytes, (long long)e->created_unix);
    buf_printf(out, ",\"chat_template\":\"%s\"",
               !e->chat        ? "base"
               : e->chat->chat ? "own"
                               : "refused");
    buf_puts(out, ",\"publisher\":");
    buf_put_json_string(out, e->publisher, strlen(e->publisher));
    buf_puts(out, ",\"warning\":");
    if (e->warning[0])
        buf_put_json_string(out, e->warning, strlen(e->warning));
    else
        buf_puts(out, "null");
    buf_printf(out,
               ",\"published\":%s,\"requests\":%llu,\"tokens\":%llu,\"loads\":%u,\"failures\":%u,"
               "\"answers_without_effect\":%u,\"last_used_ms\":%llu",
               e->has_manifest ? "true" : "false",
               (unsigned long long)atomic_load_explicit(&e->request_count, memory_order_relaxed),
               (unsigned long long)atomic_load_explicit(&e->token_count, memory_order_relaxed),
               atomic_load_explicit(&e->load_count, memory_order_relaxed),
               atomic_load_explicit(&e->fail_count, memory_order_relaxed),
               atomic_load_explicit(&e->dead, memory_order_relaxed),
               (unsigned long long)atomic_load_explicit(&e->last_used_ms, memory_order_relaxed));
    buf_putc(out, ',');
    book_put_json(s->deps.book, e->id, clock_wall_ms() / 1000, 0, out);
    buf_putc(out, '}');
}

static void put_refusal(struct buf *out, const struct catalog_refusal *r)
{
    buf_puts(out, "{\"name\":");
    buf_put_json_string(out, r->name, strlen(r->name));
    buf_printf(out, ",\"object\":\"adapter\",\"state\":\"refused\",\"created\":%lld,\"error\":",
               (long long)r->unix_s);
    buf_put_json_string(out, r->why.text, strlen(r->why.text));
    buf_putc(out, '}');
}

struct listing {
    struct exchange *x;
    uint32_t count, refused;
    uint32_t tier[3]; /* disk, host, device */
};

static bool visit(void *arg, struct adapter_entry *e)
{
    struct listing *l = arg;
    const char *tier = tier_name(atomic_load_explicit(&e->state, memory_order_relaxed));
    if (!auth_allows_adapter(l->x->key, e->name))
        return true;
    if (l->count++ > 0)
        buf_putc(&l->x->out, ',');
    l->tier[tier[0] == 'h' ? 1 : tier[1] == 'e' ? 2 : 0]++;
    put_entry(l->x->server, &l->x->out, e);
    return true;
}

static void visit_refusal(void *arg, const struct catalog_refusal *r)
{
    struct listing *l = arg;
    if (!auth_allows_adapter(l->x->key, r->name))
        return;
    if (l->count + l->refused++ > 0)
        buf_putc(&l->x->out, ',');
    put_refusal(&l->x->out, r);
}

void handle_adapters_list(struct exchange *x)
{
    struct listing l = {.x = x};
    buf_puts(&x->out, "{\"object\":\"list\",\"data\":[");
    catalog_each(x->server->deps.catalog, visit, &l);
    catalog_each_refusal(x->server->deps.catalog, visit_refusal, &l);
    buf_printf(&x->out,
               "],\"count\":%u,\"refused\":%u,\"residency\":{\"disk\":%u,\"host\":%u,"
               "\"device\":%u}}",
               l.count, l.refused, l.tier[0], l.tier[1], l.tier[2]);
    exchange_json(x, 200);
}

static void fail_unknown(struct exchange *x, const char *param, const char *name)
{
    struct errtext err = ERRTEXT_INIT;
    struct catalog_refusal r;
    if (auth_allows_adapter(x->key, name) &&
        catalog_find_refusal(x->server->deps.catalog, name, &r))
        (void)err_param(&err, STATUS_NOT_FOUND, param,
                        "The adapter '%.128s' is not registered, it was refused at the start: %s",
                        name, r.why.text);
    else
        (void)err_param(&err, STATUS_NOT_FOUND, param,
                        "The adapter '%.128s' is not registered on this server", name);
    err.code = "adapter_not_found";
    exchange_fail_as(x, 404, &err);
}

/* By name, or by content id. */
static struct adapter_entry *find(struct exchange *x, const char *name)
{
    uint8_t id[32];
    struct catalog *c = x->server->deps.catalog;
    struct adapter_entry *e = catalog_find(c, name);
    if (!e && hex_decode(id, sizeof(id), name))
        e = catalog_find_id(c, id);
    if (e && !auth_allows_adapter(x->key, e->name)) {
        catalog_release(e);
        e = NULL;
    }
    return e;
}

void handle_adapter_get(struct exchange *x)
{
    char name[CATALOG_NAME_MAX + 1];
    const char *part = adapter_files_find(x->tail, name);
    struct adapter_entry *e = find(x, part ? name : x->tail);
    struct catalog_refusal r;
    if (e && part) {
        adapter_files_send(x, e, part);
        catalog_release(e);
        return;
    }
    if (!e && auth_allows_adapter(x->key, x->tail) &&
        catalog_find_refusal(x->server->deps.catalog, x->tail, &r)) {
        put_refusal(&x->out, &r);
        exchange_json(x, 200);
        return;
    }
    if (!e) {
        fail_unknown(x, "name", x->tail);
        return;
    }
    put_entry(x->server, &x->out, e);
    exchange_json(x, 200);
    catalog_release(e);
}

enum status adapters_unload(struct http_server *s, const char *name, bool forget,
                            struct errtext *err)
{
    struct http_deps *d = &s->deps;
    enum status st = STATUS_OK;
    struct adapter_entry *e = catalog_remove(d->catalog, name);
    if (!e)
        return err_set(err, STATUS_NOT_FOUND, "there is no such adapter");
    struct adapter_entry *other = catalog_find_id(d->catalog, e->id);
    if (other) {
        catalog_release(other);
    } else {
        st = engine_unload_adapter(d->engine, e->id, UNLOAD_WAIT_MS, err);
    }
    if (!st && forget)
        publisher_forget(d->publisher, e);
    if (!st && forget && !other)
        datanet_store_drop_training(d->datanets, e->id);
    if (st) {
        struct errtext again = ERRTEXT_INIT;
        struct adapter_entry *old = NULL;
        if (catalog_put(d->catalog, e, false, &old, &again))
            err_prefix(err, "the name could not be kept (%s)", again.text);
        if (old)
            catalog_release(old);
        st = st == STATUS_TIMEOUT ? STATUS_BUSY : st;
    }
    catalog_release(e);
    return st;
}

bool adapters_may_dispose(const struct exchange *x, const struct adapter_entry *e)
{
    bool mine = x->key && e->publisher[0] && strcmp(e->publisher, x->key->name) == 0;
    return mine || (x->roles & HTTP_ROLE_ADMIN);
}

void handle_adapter_delete(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct adapter_entry *e = find(x, x->tail);
    if (!e) {
        fail_unknown(x, "name", x->tail);
        return;
    }
    bool may = adapters_may_dispose(x, e);
    char name[CATALOG_NAME_MAX + 1];
    snprintf(name, sizeof(name), "%s", e->name);
    catalog_release(e);
    if (!may) {
        (void)err_param(&err, STATUS_DENIED, "name",
                        "'%s' was published with another key; only that key or an admin may "
                        "delete it",
                        name);
        audit_action(x, "delete adapter", name, STATUS_DENIED, &err);
        exchange_fail(x, STATUS_DENIED, &err);
        return;
    }
    enum status st = adapters_unload(x->server, name, true, &err);
    audit_action(x, "delete adapter", name, st, &err);
    if (st == STATUS_NOT_FOUND) {
        fail_unknown(x, "name", name);
    } else if (st) {
        exchange_fail(x, st, &err);
    } else {
        buf_puts(&x->out, "{\"name\":");
        buf_put_json_string(&x->out, name, strlen(name));
        buf_puts(&x->out, ",\"object\":\"adapter\",\"deleted\":true}");
        exchange_json(x, 200);
    }
}

/* ---- vLLM's routes ---- */

static bool runtime_loading_is_on(struct exchange *x, const char *action)
{
    struct errtext err = ERRTEXT_INIT;
    if (x->server->opt.allow_runtime_loading)
        return true;
    (void)err_set(&err, STATUS_DENIED,
                  "loading adapters at run time is switched off on this server "
                  "(allow_runtime_loading)");
    audit_action(x, action, NULL, STATUS_DENIED, &err);
    exchange_fail_as(x, 403, &err);
    return false;
}

static void put_success(struct exchange *x, const char *name, const char *what)
{
    buf_printf(&x->out, "Success: LoRA adapter '%s' %s.", name, what);
    x->content_type = "text/plain; charset=utf-8";
    x->code = 200;
}

/* A name or path that must be there; NULL and a fault if it is missing or empty. */
static const char *need_text(struct json_reader *in, const char *key)
{
    const char *text = json_need_string(in, key);
    if (!*text)
        json_fail(in, STATUS_INVALID, key, "found \"\", expected a string that is not empty");
    return in->st ? NULL : text;
}

/* What lies beside the adapter: its datanet's list and texts, and what it was trained on. */
static void note_datanet(struct exchange *x, const char *name)
{
    struct errtext err = ERRTEXT_INIT;
    struct adapter_entry *e = catalog_find(x->server->deps.catalog, name);
    if (e && datanet_store_add_dir(x->server->deps.datanets, e->dir,
                                   publisher_roots(x->server->deps.publisher), e->id, &err))
        log_warn("datanets", "'%s': %s", name, err.text);
    if (e && x->server->deps.indexes)
        indexes_expect(x->server->deps.indexes, e->id);
    catalog_release(e);
}

void handle_lora_load(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    json_t *root = NULL;
    if (!runtime_loading_is_on(x, "load adapter"))
        return;
    enum status st =
        json_doc_parse(&root, "the body", x->body.data, x->body.len, JSON_DOC_NUL, &err);
    struct json_reader in = {.obj = root, .st = st, .err = &err};
    const char *name = need_text(&in, "lora_name"), *path = need_text(&in, "lora_path");
    bool replace = json_read_bool(&in, "load_inplace", false);
    st = in.st;
    if (!st)
        st = publisher_load_dir(x->server->deps.publisher, name, path, false, replace, &err);
    audit_action(x, "load adapter", name, st, &err);
    if (!st)
        note_datanet(x, name);
    if (!st)
        put_success(x, name, "added successfully");
    else
        exchange_fail(x, st, &err);
    json_decref(root);
}

void handle_lora_unload(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    json_t *root = NULL;
    if (!runtime_loading_is_on(x, "unload adapter"))
        return;
    enum status st =
        json_doc_parse(&root, "the body", x->body.data, x->body.len, JSON_DOC_NUL, &err);
    struct json_reader in = {.obj = root, .st = st, .err = &err};
    const char *name = need_text(&in, "lora_name");
    st = in.st;
    if (!st)
        st = adapters_unload(x->server, name, false, &err);
    audit_action(x, "unload adapter", name, st, &err);
    if (!st)
        put_success(x, name, "removed successfully");
    else if (st == STATUS_NOT_FOUND && name)
        fail_unknown(x, "lora_name", name);
    else
        exchange_fail(x, st, &err);
    json_decref(root);
}
