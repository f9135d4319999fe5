/* residual datanet value NAME --server URL: what the publisher of a datanet measured, as the server
 * shows it. */
#include "chain_client/cli/datanet_remote.h"
#include "chain_client/cli/http.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define OUTPUT_BYTES_MAX (16u << 20)

static const char *text_of(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

/* The one of this name, datanet id or document root; of several versions the newest. */
static const json_t *find(const json_t *list, const char *named, json_int_t version)
{
    size_t i;
    const json_t *held, *found = NULL;
    json_int_t newest = 0;
    json_array_foreach(json_object_get(list, "data"), i, held)
    {
        json_int_t is = json_integer_value(json_object_get(held, "version"));
        bool same = strcmp(text_of(held, "name"), named) == 0 ||
                    strcmp(text_of(held, "datanet"), named) == 0 ||
                    strcmp(text_of(held, "document_root"), named) == 0;
        if (!same || (version && is != version) || is <= newest)
            continue;
        newest = is;
        found = held;
    }
    return found;
}

static void put_figure(struct buf *out, const json_t *o, const char *key)
{
    const json_t *f = json_object_get(o, key);
    buf_printf(out, "%+9.4f %+9.4f %+9.4f %+10.1f",
               json_number_value(json_object_get(f, "nats_per_token")),
               json_number_value(json_object_get(f, "low")),
               json_number_value(json_object_get(f, "high")),
               json_number_value(json_object_get(f, "nats")));
}

static void put_text(struct buf *out, const json_t *held)
{
    size_t i;
    const json_t *one, *v = json_object_get(held, "value");
    json_int_t seeds = json_integer_value(json_object_get(v, "seeds"));
    buf_printf(
        out,
        "%s version %" JSON_INTEGER_FORMAT ": %s's claim, measured by %s, %" JSON_INTEGER_FORMAT
        " %s\n%-42s %6s %9s %20s %10s\n%-42s %6s ",
        text_of(held, "name"), json_integer_value(json_object_get(held, "version")),
        text_of(v, "measured_by"),
        strcmp(text_of(v, "judged_by"), "eval") == 0 ? "rows that judge" : "parts of its own rows",
        seeds, seeds == 1 ? "seed" : "seeds", "nats a token", "rows", "worth", "95 %", "in all",
        "all", "");
    put_figure(out, v, "gain");
    json_array_foreach(json_object_get(v, "contributors"), i, one)
    {
        buf_printf(out, "\n%-42s %6" JSON_INTEGER_FORMAT " ", text_of(one, "owner"),
                   json_integer_value(json_object_get(one, "rows")));
        put_figure(out, one, "worth");
    }
}

static enum status ask(const struct cli *c, struct http *h, json_t **held, struct errtext *err)
{
    uint64_t range[2] = {1, INT64_MAX}, version;
    char path[160];
    json_t *list = NULL;
    enum status st = args_number(c, OPT_VERSION, range, 0, &version, err);
    if (!st)
        st = http_call(h, "GET", "/v1/datanets", NULL, &list, err);
    const json_t *found = st ? NULL : find(list, c->operand[0], (json_int_t)version);
    if (!st && !found)
        st = err_set(err, STATUS_NOT_FOUND, "the server holds no datanet %.80s%s", c->operand[0],
                     version ? " of this version" : "");
    snprintf(path, sizeof(path), "/v1/datanets/%.80s?first=0&last=0",
             text_of(found, "document_root"));
    json_decref(list);
    if (!st)
        st = http_call(h, "GET", path, NULL, held, err);
    if (!st && !json_object_get(*held, "value"))
        st = err_set(err, STATUS_NOT_FOUND, "nobody has measured what %.80s is worth",
                     c->operand[0]);
    return st;
}

int datanet_remote_value(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct http *h = NULL;
    struct buf out;
    json_t *held = NULL;
    buf_init(&out, OUTPUT_BYTES_MAX);
    enum status st =
        http_open(&h, c->value[OPT_SERVER], c->value[OPT_API_KEY_FILE], "server", &err);
    if (!st)
        st = ask(c, h, &held, &err);
    char *text = !st && cli_has(c, OPT_JSON)
                     ? json_dumps(json_object_get(held, "value"), JSON_COMPACT)
                     : NULL;
    if (text)
        buf_puts(&out, text);
    else if (!st)
        put_text(&out, held);
    int code = st ? cli_fail(c, st, &err, http_hint(st)) : cli_print(&out, CLI_FINE);
    mem_free(text);
    json_decref(held);
    buf_fini(&out);
    http_close(h);
    return code;
}
