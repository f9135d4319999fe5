/* tojson: Python's json.dumps(x, ensure_ascii=False, indent=None, separators=None,
 * sort_keys=False), without HTML escapes. */
#include "server/text/jinja/run.h"
#include "server/text/utf8.h"

#include <string.h>

struct json_out {
    struct jrun *r;
    struct buf *b;
    struct jstr item_sep, key_sep, indent;
    bool pretty, ascii, sort_keys;
    uint32_t level;
};

static bool put_value(struct json_out *o, struct jval v);

static void put_escape(struct buf *b, uint32_t cp)
{
    if (cp >= 0x10000) {
        cp -= 0x10000;
        buf_printf(b, "\\u%04x\\u%04x", 0xD800 | cp >> 10, 0xDC00 | (cp & 0x3FF));
    } else {
        buf_printf(b, "\\u%04x", cp);
    }
}

static bool put_string(struct json_out *o, struct jstr s)
{
    static const char shorts[] = {
        ['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
    buf_putc(o->b, '"');
    for (size_t i = 0, n; i < s.len; i += n) {
        uint32_t cp = utf8_next(s.s + i, s.len - i, &n);
        if (cp == '"' || cp == '\\')
            buf_printf(o->b, "\\%c", (char)cp);
        else if (cp < sizeof(shorts) && shorts[cp])
            buf_printf(o->b, "\\%c", shorts[cp]);
        else if (cp < 0x20 || (o->ascii && cp > 0x7E))
            put_escape(o->b, cp);
        else
            buf_put(o->b, s.s + i, n);
    }
    buf_putc(o->b, '"');
    return jrun_work(o->r, 1 + s.len);
}

static void new_line(struct json_out *o)
{
    if (!o->pretty)
        return;
    buf_putc(o->b, '\n');
    for (uint32_t i = 0; i < o->level && !o->b->failed; i++)
        buf_put(o->b, o->indent.s, o->indent.len);
}

static bool put_list(struct json_out *o, const struct jlist *list)
{
    if (list->n == 0) {
        buf_puts(o->b, "[]");
        return true;
    }
    buf_putc(o->b, '[');
    o->level++;
    for (size_t i = 0; i < list->n; i++) {
        if (i)
            buf_put(o->b, o->item_sep.s, o->item_sep.len);
        new_line(o);
        if (!put_value(o, list->items[i]))
            return false;
    }
    o->level--;
    new_line(o);
    buf_putc(o->b, ']');
    return true;
}

static bool put_float(struct json_out *o, double f)
{
    if (f != f)
        buf_puts(o->b, "NaN");
    else if (f - f != 0)
        buf_puts(o->b, f < 0 ? "-Infinity" : "Infinity");
    else
        jv_put_float(f, o->b);
    return true;
}

static bool put_key(struct json_out *o, struct jval key)
{
    if (key.kind == JV_STRING)
        return put_string(o, key.str);
    if (key.kind != JV_NONE && !jv_is_number(key))
        return jrun_fail(o->r, STATUS_INVALID, "keys must be str, int, float, bool or None, not %s",
                         jv_type_name(key));
    buf_putc(o->b, '"');
    bool ok = put_value(o, key);
    buf_putc(o->b, '"');
    return ok;
}

/* A copy of the pairs, sorted by key: merge sort would be more than keys of a schema need, but the
 * keys come from a client, so the sort must not be quadratic. */
static bool sort_pairs(struct jrun *r, struct jpair *pairs, struct jpair *spare, size_t n)
{
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t start = 0; start < n; start += 2 * width) {
            size_t mid = start + width < n ? start + width : n;
            size_t end = start + 2 * width < n ? start + 2 * width : n;
            size_t a = start, b = mid;
            for (size_t to = start; to < end; to++) {
                int order = 0;
                if (a < mid && b < end && !jv_compare(r, pairs[a].key, pairs[b].key, &order))
                    return false;
                bool left = a < mid && (b == end || order <= 0);
                spare[to] = left ? pairs[a++] : pairs[b++];
            }
        }
        memcpy(pairs, spare, n * sizeof(*pairs));
    }
    return true;
}

static bool put_dict(struct json_out *o, const struct jdict *dict)
{
    struct jpair *pairs = dict->pairs;
    if (dict->n == 0) {
        buf_puts(o->b, "{}");
        return true;
    }
    if (o->sort_keys) {
        pairs = jrun_alloc(o->r, dict->n * sizeof(*pairs));
        struct jpair *spare = jrun_alloc(o->r, dict->n * sizeof(*spare));
        if (!pairs || !spare)
            return false;
        memcpy(pairs, dict->pairs, dict->n * sizeof(*pairs));
        if (!sort_pairs(o->r, pairs, spare, dict->n))
            return false;
    }
    buf_putc(o->b, '{');
    o->level++;
    for (size_t i = 0; i < dict->n; i++) {
        if (i)
            buf_put(o->b, o->item_sep.s, o->item_sep.len);
        new_line(o);
        if (!put_key(o, pairs[i].key))
            return false;
        buf_put(o->b, o->key_sep.s, o->key_sep.len);
        if (!put_value(o, pairs[i].value))
            return false;
    }
    o->level--;
    new_line(o);
    buf_putc(o->b, '}');
    return true;
}

static bool put_value(struct json_out *o, struct jval v)
{
    if (o->level > JINJA_VALUE_DEPTH_MAX)
        return jrun_fail(o->r, STATUS_TOO_LARGE, "tojson: nested more than %u deep",
                         JINJA_VALUE_DEPTH_MAX);
    if (!jrun_work(o->r, 1))
        return false;
    switch (v.kind) {
    case JV_NONE:
        buf_puts(o->b, "null");
        return true;
    case JV_BOOL:
        buf_puts(o->b, v.b ? "true" : "false");
        return true;
    case JV_INT:
        buf_printf(o->b, "%lld", (long long)v.i);
        return true;
    case JV_FLOAT:
        return put_float(o, v.f);
    case JV_STRING:
        return put_string(o, v.str);
    case JV_LIST:
    case JV_TUPLE:
        if (!v.list->lazy)
            return put_list(o, v.list);
        break;
    case JV_DICT:
        return put_dict(o, v.dict);
    default:
        break;
    }
    return jrun_fail(o->r, STATUS_INVALID, "Object of type %s is not JSON serializable",
                     jv_type_name(v));
}

static bool read_layout(struct json_out *o, const struct jargs *args)
{
    const struct jval *indent = jargs_get(args, 1, "indent");
    const struct jval *seps = jargs_get(args, 2, "separators");
    struct jval spaces;
    if (indent && indent->kind != JV_NONE) {
        o->pretty = true;
        o->item_sep = JSTR(",");
        o->indent = indent->kind == JV_STRING ? indent->str : JSTR("");
        if (indent->kind == JV_INT || indent->kind == JV_BOOL) {
            if (!jinja_binary(o->r, JOP_MUL, jv_str(JSTR(" ")), *indent, &spaces))
                return false;
            o->indent = spaces.str;
        } else if (indent->kind != JV_STRING) {
            return jrun_fail(o->r, STATUS_INVALID, "tojson: indent must be an integer");
        }
    }
    if (!seps || seps->kind == JV_NONE)
        return true;
    if (!jv_is_list(*seps) || seps->list->n != 2 || seps->list->items[0].kind != JV_STRING ||
        seps->list->items[1].kind != JV_STRING)
        return jrun_fail(o->r, STATUS_INVALID, "tojson: separators must be two strings");
    o->item_sep = seps->list->items[0].str;
    o->key_sep = seps->list->items[1].str;
    return true;
}

bool jinja_tojson(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct buf b;
    jrun_buf(r, &b);
    struct json_out o = {.r = r,
                         .b = &b,
                         .item_sep = JSTR(", "),
                         .key_sep = JSTR(": "),
                         .ascii = jargs_bool(args, 0, "ensure_ascii", false),
                         .sort_keys = jargs_bool(args, 3, "sort_keys", false)};
    bool ok = read_layout(&o, args) && put_value(&o, v);
    return jrun_take(r, &b, out) && ok;
}
