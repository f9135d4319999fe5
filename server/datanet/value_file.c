/* See value_file.h. Rendered and checked by one dump: what does not dump to its own bytes is not
 * canonical. */
#include "server/datanet/value_file.h"
#include "chain_client/eth/addr.h"
#include "server/base/hex.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DUMP_FLAGS (JSON_SORT_KEYS | JSON_COMPACT | JSON_REAL_PRECISION(17))
#define MOST       ((int64_t)1 << 52) /* micronats */

int value_line_order(const void *a, const void *b)
{
    const struct value_line *x = a, *y = b;
    if (x->worth.value != y->worth.value)
        return x->worth.value > y->worth.value ? -1 : 1;
    return memcmp(x->owner, y->owner, 20);
}

void value_report_free(struct value_report *r)
{
    if (!r)
        return;
    mem_free(r->line);
    mem_free(r);
}

/* ---- writing ---- */

static json_t *hex_json(const uint8_t *v, size_t n)
{
    char hex[67] = "0x";
    hex_encode(hex + 2, v, n);
    return json_string(hex);
}

static void put_int(json_t *o, const char *key, int64_t v)
{
    json_object_set_new(o, key, json_integer((json_int_t)v));
}

static void put_figure(json_t *o, const struct value_figure *f)
{
    put_int(o, "high", f->high);
    put_int(o, "low", f->low);
    put_int(o, "tokens", (int64_t)f->tokens);
    put_int(o, "total", f->total);
    put_int(o, "value", f->value);
}

static json_t *line_json(const struct value_line *l)
{
    json_t *o = json_object();
    put_figure(o, &l->worth);
    json_object_set_new(o, "own", l->has_own ? json_integer((json_int_t)l->own) : json_null());
    json_object_set_new(o, "owner", hex_json(l->owner, 20));
    put_int(o, "repeated", l->repeated);
    put_int(o, "rows", l->rows);
    return o;
}

static json_t *report_json(const struct value_report *r, const struct value_recipe *recipe)
{
    json_t *o = json_object(), *gain = json_object(), *lines = json_array(), *seeds = json_array();
    for (uint32_t i = 0; i < r->n; i++)
        json_array_append_new(lines, line_json(&r->line[i]));
    for (uint32_t k = 0; k < r->seeds; k++)
        json_array_append_new(seeds, json_integer((json_int_t)(r->seed + k)));
    put_figure(gain, &r->gain);
    json_object_set_new(o, "base", hex_json(r->base, 32));
    put_int(o, "baseLoss", r->base_loss);
    json_object_set_new(o, "contributors", lines);
    json_object_set_new(o, "documentRoot", hex_json(r->document_root, 32));
    json_object_set_new(o, "eval", r->has_eval ? hex_json(r->eval, 32) : json_null());
    put_int(o, "folds", r->folds);
    json_object_set_new(o, "format", json_string(VALUE_FORMAT));
    json_object_set_new(o, "gain", gain);
    put_int(o, "loss", r->loss);
    json_object_set_new(o, "options", json_deep_copy(recipe->options));
    json_object_set_new(o, "program", json_string(recipe->program));
    json_object_set_new(o, "seeds", seeds);
    json_object_set_new(o, "training", hex_json(r->training, 32));
    json_object_set_new(o, "unit", json_string("micronat"));
    return o;
}

enum status value_report_render(struct buf *out, struct value_report *r,
                                const struct value_recipe *recipe, struct errtext *err)
{
    json_t *o = report_json(r, recipe);
    char *text = json_dumps(o, DUMP_FLAGS);
    size_t first = out->len;
    json_decref(o);
    if (text) {
        buf_puts(out, text);
        buf_putc(out, '\n');
    }
    mem_free(text);
    if (!text || out->failed)
        return err_set(err, STATUS_NO_MEMORY, VALUE_FILE ": no memory for it");
    crypto_generichash(r->digest, 32, (const uint8_t *)out->data + first, out->len - first, NULL,
                       0);
    return STATUS_OK;
}

/* ---- reading ---- */

static const struct json_range any = {-MOST, MOST}, count = {0, MOST};

static void read_figure(struct json_reader *r, struct value_figure *out)
{
    out->value = json_need_int(r, "value", any);
    out->low = json_need_int(r, "low", any);
    out->high = json_need_int(r, "high", any);
    out->total = json_need_int(r, "total", any);
    out->tokens = (uint64_t)json_need_int(r, "tokens", count);
    if (!r->st && (out->low > out->value || out->value > out->high))
        json_fail(r, STATUS_INVALID, "value", "found %lld, expected it in %lld to %lld (low, high)",
                  (long long)out->value, (long long)out->low, (long long)out->high);
}

static bool has_owner(const struct datanet *d, const uint8_t owner[20])
{
    const struct documents *all = datanet_documents(d);
    for (uint32_t i = 0; i < all->owner_count; i++) {
        if (memcmp(all->owner[i].owner, owner, 20) == 0)
            return true;
    }
    return false;
}

static void read_line(struct json_reader *r, struct value_report *out, uint32_t i,
                      const struct datanet *d)
{
    struct value_line *l = &out->line[i];
    char who[ADDR_TEXT_BYTES];
    json_need_hex(r, "owner", l->owner, 20);
    l->rows = (uint32_t)json_need_int(r, "rows", (struct json_range){0, UINT32_MAX});
    l->repeated = (uint32_t)json_need_int(r, "repeated", (struct json_range){0, UINT32_MAX});
    l->has_own = json_has(r, "own");
    l->own = json_read_int(r, "own", any, 0);
    read_figure(r, &l->worth);
    addr_format(who, l->owner);
    if (!r->st && !has_owner(d, l->owner))
        json_fail(r, STATUS_INVALID, "owner", "found %s, who owns no document of this datanet",
                  who);
    if (!r->st && i && value_line_order(&out->line[i - 1], l) >= 0)
        json_fail(r, STATUS_INVALID, "value", "expected contributors the worthiest first, once");
}

static void read_seeds(struct json_reader *r, struct value_report *out)
{
    const json_t *list = json_need_list(r, "seeds", VALUE_SEEDS_MAX);
    out->seeds = (uint32_t)json_array_size(list);
    if (!r->st && !out->seeds)
        json_fail(r, STATUS_INVALID, "seeds", "expected one or more");
    for (uint32_t k = 0; k < out->seeds && !r->st; k++) {
        int64_t v = json_item_int(r, "seeds", k, json_array_get(list, k),
                                  (struct json_range){0, INT64_MAX});
        out->seed = k ? out->seed : (uint64_t)v;
        if (!r->st && (uint64_t)v != out->seed + k)
            json_fail(r, STATUS_INVALID, "seeds", "expected each to be one more than the last");
    }
}

static void read_lines(struct json_reader *r, struct value_report *out, const struct datanet *d)
{
    const json_t *list = json_need_list(r, "contributors", VALUE_CONTRIBUTORS_MAX);
    out->n = r->st ? 0 : (uint32_t)json_array_size(list);
    out->line = mem_array((size_t)out->n + 1, sizeof(*out->line));
    for (uint32_t i = 0; i < out->n && !r->st; i++) {
        struct json_reader one = json_enter_item(r, "contributors", i, json_array_get(list, i));
        read_line(&one, out, i, d);
    }
}

static void read_names(struct json_reader *r, struct value_report *out, const struct datanet *d)
{
    char want[65];
    const char *format = json_need_string(r, "format"), *unit = json_need_string(r, "unit");
    if (!r->st && strcmp(format, VALUE_FORMAT) != 0)
        json_fail(r, STATUS_INVALID, "format", "found '%.40s', expected " VALUE_FORMAT, format);
    if (!r->st && strcmp(unit, "micronat") != 0)
        json_fail(r, STATUS_INVALID, "unit", "found '%.40s', expected micronat", unit);
    json_need_hex(r, "documentRoot", out->document_root, 32);
    json_need_hex(r, "base", out->base, 32);
    json_need_hex(r, "training", out->training, 32);
    out->has_eval = json_has(r, "eval");
    if (out->has_eval)
        json_need_hex(r, "eval", out->eval, 32);
    hex_encode(want, datanet_head(d)->document_root, 32);
    if (!r->st && memcmp(out->document_root, datanet_head(d)->document_root, 32) != 0)
        json_fail(r, STATUS_INVALID, "documentRoot",
                  "it was measured on other documents than 0x%s; residual datanet value measures "
                  "again",
                  want);
}

static void check_canonical(struct json_reader *r, const char *text, size_t len)
{
    char *again = json_dumps(r->obj, DUMP_FLAGS);
    size_t n = again ? strlen(again) : 0;
    if (!again)
        json_fail(r, STATUS_NO_MEMORY, "format", "no memory for it");
    else if (n + 1 != len || memcmp(again, text, n) != 0 || text[n] != '\n')
        json_fail(r, STATUS_INVALID, "format",
                  "the text is not canonical: expected it as residual datanet value writes it");
    mem_free(again);
}

enum status value_report_parse(struct value_report **out, const char *text, size_t len,
                               const struct datanet *d, struct errtext *err)
{
    json_t *json = NULL;
    *out = NULL;
    enum status st = json_doc_parse(&json, VALUE_FILE, text, len, 0, err);
    if (st)
        return st;
    struct value_report *v = mem_alloc(sizeof(*v));
    struct json_reader r = {.obj = json, .where = VALUE_FILE, .err = err};
    *v = (struct value_report){0};
    read_names(&r, v, d);
    v->folds = (uint32_t)json_need_int(&r, "folds", (struct json_range){2, VALUE_FOLDS_MAX});
    v->base_loss = json_need_int(&r, "baseLoss", any);
    v->loss = json_need_int(&r, "loss", any);
    read_seeds(&r, v);
    struct json_reader gain = json_enter(&r, "gain");
    read_figure(&gain, &v->gain);
    read_lines(&r, v, d);
    if (!json_is_object(json_field(json, "options")))
        json_fail(&r, STATUS_INVALID, "options", "expected the options of training");
    (void)json_need_string(&r, "program");
    if (!r.st)
        check_canonical(&r, text, len);
    crypto_generichash(v->digest, 32, (const uint8_t *)text, len, NULL, 0);
    json_decref(json);
    if (r.st)
        value_report_free(v);
    else
        *out = v;
    return r.st;
}
