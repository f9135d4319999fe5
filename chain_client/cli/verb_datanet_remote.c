/* residual datanet show ID|ROOT --server URL or --rpc URL: what a server holds of a datanet, or
 * which versions the chain has. */
#include "chain_client/cli/datanet_remote.h"
#include "chain_client/cli/http.h"
#include "chain_client/cli/node.h"
#include "chain_client/registry/views.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define OUTPUT_BYTES_MAX (256u << 20)
#define SHOWN_MAX        100 /* versions of the chain, the newest */

/* ---- a server ---- */

/* ID alone: the newest version of that datanet, where ID is no document root. */
static enum status find_newest(struct http *h, const char *id, char path[160], struct errtext *err)
{
    size_t i;
    const json_t *held;
    uint8_t want[32], is[32];
    json_t *list = NULL;
    json_int_t newest = 0;
    enum status st = http_call(h, "GET", "/v1/datanets", NULL, &list, err);
    bool bytes = hex_decode(want, 32, id);
    json_array_foreach(json_object_get(list, "data"), i, held)
    {
        const char *hex = json_string_value(json_object_get(held, "datanet"));
        json_int_t version = json_integer_value(json_object_get(held, "version"));
        if (bytes && hex && hex_decode(is, 32, hex) && !memcmp(is, want, 32) && version > newest)
            newest = version;
    }
    json_decref(list);
    snprintf(path, 160, "/v1/datanets/%.80s/%" JSON_INTEGER_FORMAT, id, newest);
    return st || newest ? st
                        : err_set(err, STATUS_NOT_FOUND,
                                  "the server holds no datanet of this id or document root");
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static long long number_of(const json_t *o, const char *key)
{
    return (long long)json_integer_value(json_object_get(o, key));
}

static void put_held_text(struct buf *out, const json_t *a)
{
    size_t i;
    const json_t *doc, *data = json_object_get(a, "data");
    buf_printf(out, "%s version %lld: %lld documents, %lld bytes, %lld texts missing\nroot %s",
               text_of(a, "name"), number_of(a, "version"), number_of(a, "documents"),
               number_of(a, "bytes"), number_of(a, "missing"), text_of(a, "document_root"));
    json_array_foreach(data, i, doc)
    {
        const json_t *of = json_object_get(doc, "copy_of");
        buf_printf(out, "\n%lld  %s  %s  %s  %s", number_of(doc, "docId"), text_of(doc, "owner"),
                   text_of(doc, "licence"),
                   json_is_true(json_object_get(doc, "display")) ? "shown" : "not shown",
                   text_of(doc, "digest"));
        if (of)
            buf_printf(out, "  %lld %% of it stand in %s of %s, which was here before",
                       number_of(of, "ppm") / 10000, text_of(of, "digest"), text_of(of, "owner"));
    }
    if (json_array_size(data) < (size_t)number_of(a, "documents"))
        buf_printf(out, "\nand %lld more",
                   number_of(a, "documents") - (long long)json_array_size(data));
}

static int show_server(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct http *h = NULL;
    struct buf out;
    char path[160];
    json_t *answer = NULL;
    buf_init(&out, OUTPUT_BYTES_MAX);
    snprintf(path, sizeof(path), "/v1/datanets/%.120s", c->operand[0]);
    enum status st =
        http_open(&h, c->value[OPT_SERVER], c->value[OPT_API_KEY_FILE], "server", &err);
    if (!st)
        st = http_call(h, "GET", path, NULL, &answer, &err);
    if (st == STATUS_NOT_FOUND && h && !strchr(c->operand[0], '/')) {
        err_clear(&err);
        st = find_newest(h, c->operand[0], path, &err);
        if (!st)
            st = http_call(h, "GET", path, NULL, &answer, &err);
    }
    char *text = !st && cli_has(c, OPT_JSON) ? json_dumps(answer, JSON_COMPACT) : NULL;
    if (text)
        buf_puts(&out, text);
    else if (!st)
        put_held_text(&out, answer);
    int code = st ? cli_fail(c, st, &err, http_hint(st)) : cli_print(&out, CLI_FINE);
    mem_free(text);
    json_decref(answer);
    buf_fini(&out);
    http_close(h);
    return code;
}

/* ---- the chain ---- */

static void put_version(struct buf *out, const struct cli *c, const struct registry_datanet *d,
                        bool first)
{
    if (!cli_has(c, OPT_JSON)) {
        buf_printf(out,
                   "%sversion %" PRIu64 ": %u documents of %u owners, active from second %" PRIu64
                   ", root ",
                   first ? "" : "\n", d->version, d->documents, d->owners, d->active_at);
        buf_put_hex(out, d->document_root, 32);
        return;
    }
    buf_printf(
        out, "%s{\"version\":%" PRIu64 ",\"documents\":%u,\"owners\":%u,\"active_at\":%" PRIu64 ",",
        first ? "" : ",", d->version, d->documents, d->owners, d->active_at);
    buf_put_json_hex(out, "document_root", d->document_root, 32);
    buf_putc(out, ',');
    buf_put_json_hex(out, "owner_root", d->owner_root, 32);
    buf_putc(out, '}');
}

static enum status read_chain(struct node *n, const struct cli *c, struct buf *out,
                              struct errtext *err)
{
    uint8_t id[32];
    struct registry_datanet d;
    if (!hex_decode(id, 32, c->operand[0]))
        return err_set(err, STATUS_INVALID, "expected a datanet's id, 64 hex digits");
    enum status st = registry_datanet_at(&n->view.registry, "latest", id, UINT64_MAX, &d, err);
    if (!st && !d.registered)
        st = err_set(err, STATUS_NOT_FOUND, "no datanet of this id is registered on this chain");
    uint64_t newest = st ? 0 : d.version, oldest = newest > SHOWN_MAX ? newest - SHOWN_MAX + 1 : 1;
    for (uint64_t v = newest; !st && v >= oldest; v--) {
        st = registry_datanet_version(&n->view.registry, "latest", id, v, &d, err);
        if (!st)
            put_version(out, c, &d, v == newest);
    }
    return st;
}

static int show_chain(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct node n = {0};
    struct buf out;
    bool json = cli_has(c, OPT_JSON);
    buf_init(&out, OUTPUT_BYTES_MAX);
    enum status st = node_open(&n, c, &err);
    buf_puts(&out, json ? "{\"ok\":true,\"versions\":[" : "");
    if (!st)
        st = read_chain(&n, c, &out, &err);
    buf_puts(&out, json ? "]}" : "");
    int code = st ? cli_fail(c, st, &err, node_hint(st)) : cli_print(&out, CLI_FINE);
    buf_fini(&out);
    node_close(&n);
    return code;
}

int datanet_remote_show(struct cli *c)
{
    return cli_has(c, OPT_SERVER) ? show_server(c) : show_chain(c);
}
