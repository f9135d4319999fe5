/* /v1/models: the base and every adapter this key may use, as vLLM lists them (root: where it comes
 * from; parent: the base of a LoRA). Controllers read it to learn whether an adapter is loaded. */
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/http/auth.h"
#include "server/http/handlers.h"
#include "server/http/parse_state.h"
#include "server/http/state.h"

#include <stdio.h>
#include <string.h>

static void put_model(struct exchange *x, const char *id, const char *root, bool adapter,
                      int64_t created_unix)
{
    const struct http_server *s = x->server;
    struct buf *out = &x->out;
    buf_puts(out, "{\"id\":");
    buf_put_json_string(out, id, strlen(id));
    buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"residual\",\"root\":",
               (long long)created_unix);
    buf_put_json_string(out, root, strlen(root));
    buf_puts(out, ",\"parent\":");
    if (adapter)
        buf_put_json_string(out, s->opt.model_name, strlen(s->opt.model_name));
    else
        buf_puts(out, "null");
    buf_printf(out, ",\"max_model_len\":%u,\"permission\":[]}", s->context_max);
}

static void put_base(struct exchange *x)
{
    const struct http_options *o = &x->server->opt;
    put_model(x, o->model_name, o->model_path ? o->model_path : o->model_name, false,
              (int64_t)(x->server->start_wall_ms / 1000));
}

/* An adapter's root is its content id: the same for every server that holds it. */
static void put_adapter(struct exchange *x, const struct adapter_entry *e)
{
    char root[80] = "blake2b:";
    hex_encode(root + 8, e->id, sizeof(e->id));
    put_model(x, e->name, e->dir ? e->dir : root, true, e->created_unix);
}

static bool visit(void *arg, struct adapter_entry *e)
{
    struct exchange *x = arg;
    if (auth_allows_adapter(x->key, e->name)) {
        buf_putc(&x->out, ',');
        put_adapter(x, e);
    }
    return true;
}

void handle_models(struct exchange *x)
{
    buf_puts(&x->out, "{\"object\":\"list\",\"data\":[");
    put_base(x);
    catalog_each(x->server->deps.catalog, visit, x);
    buf_puts(&x->out, "]}");
    exchange_json(x, 200);
}

void handle_model(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct catalog *c = auth_allows_adapter(x->key, x->tail) ? x->server->deps.catalog : NULL;
    if (strcmp(x->tail, x->server->opt.model_name) == 0) {
        put_base(x);
        exchange_json(x, 200);
        return;
    }
    struct adapter_entry *e = c ? catalog_find(c, x->tail) : NULL;
    if (e) {
        put_adapter(x, e);
        exchange_json(x, 200);
        catalog_release(e);
        return;
    }
    exchange_fail(x, target_unknown(c, "model", x->tail, &err), &err);
}
