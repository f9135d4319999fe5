/* Truth, equality, order, str() and repr() as Python has them. Nested values are walked with a
 * depth limit, because a template can nest lists without end. */
#include "server/text/jinja/value.h"
#include "server/base/check.h"
#include "server/text/jinja/run.h"
#include "server/text/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

bool jstr_eq(struct jstr a, struct jstr b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.s, b.s, a.len) == 0);
}

bool jstr_is(struct jstr a, const char *literal)
{
    return jstr_eq(a, (struct jstr){.s = literal, .len = strlen(literal)});
}

struct jlist *jlist_new(struct jrun *r)
{
    return jrun_alloc(r, sizeof(struct jlist));
}

struct jdict *jdict_new(struct jrun *r)
{
    return jrun_alloc(r, sizeof(struct jdict));
}

bool jlist_add(struct jrun *r, struct jlist *list, struct jval v)
{
    if (list->n == list->cap) {
        size_t cap = list->cap ? list->cap * 2 : 8;
        struct jval *items = jrun_alloc(r, cap * sizeof(*items));
        if (!items)
            return false;
        if (list->n)
            memcpy(items, list->items, list->n * sizeof(*items));
        list->items = items;
        list->cap = cap;
    }
    list->items[list->n++] = v;
    return jrun_work(r, 1);
}

static struct jpair *find_pair(struct jrun *r, const struct jdict *dict, struct jval key)
{
    if (!jrun_work(r, 1 + dict->n / 8))
        return NULL;
    for (size_t i = 0; i < dict->n; i++) {
        struct jpair *pair = &dict->pairs[i];
        bool same = false;
        if (key.kind == JV_STRING && pair->key.kind == JV_STRING)
            same = jstr_eq(key.str, pair->key.str);
        else if (!jv_equal(r, pair->key, key, &same))
            return NULL;
        if (same)
            return pair;
    }
    return NULL;
}

bool jdict_set(struct jrun *r, struct jdict *dict, struct jval key, struct jval value)
{
    if (key.kind == JV_LIST || key.kind == JV_DICT)
        return jrun_fail(r, STATUS_INVALID, "unhashable type: '%s'", jv_type_name(key));
    struct jpair *pair = find_pair(r, dict, key);
    if (r->st)
        return false;
    if (pair) {
        pair->value = value;
        return true;
    }
    if (dict->n == dict->cap) {
        size_t cap = dict->cap ? dict->cap * 2 : 8;
        struct jpair *pairs = jrun_alloc(r, cap * sizeof(*pairs));
        if (!pairs)
            return false;
        if (dict->n)
            memcpy(pairs, dict->pairs, dict->n * sizeof(*pairs));
        dict->pairs = pairs;
        dict->cap = cap;
    }
    dict->pairs[dict->n++] = (struct jpair){.key = key, .value = value};
    return true;
}

const struct jval *jdict_get(struct jrun *r, const struct jdict *dict, struct jval key)
{
    const struct jpair *pair = find_pair(r, dict, key);
    return pair ? &pair->value : NULL;
}

const struct jval *jdict_get_str(struct jrun *r, const struct jdict *dict, struct jstr key)
{
    return jdict_get(r, dict, jv_str(key));
}

bool jv_truth(struct jval v)
{
    switch (v.kind) {
    case JV_UNDEFINED:
    case JV_NONE:
        return false;
    case JV_BOOL:
        return v.b;
    case JV_INT:
        return v.i != 0;
    case JV_FLOAT:
        return v.f != 0;
    case JV_STRING:
        return v.str.len != 0;
    case JV_LIST:
    case JV_TUPLE:
        return v.list->lazy || v.list->n != 0;
    case JV_DICT:
        return v.dict->n != 0;
    default:
        return true;
    }
}

const char *jv_type_name(struct jval v)
{
    static const char *const names[] = {[JV_UNDEFINED] = "Undefined", [JV_NONE] = "NoneType",
                                        [JV_BOOL] = "bool",           [JV_INT] = "int",
                                        [JV_FLOAT] = "float",         [JV_STRING] = "str",
                                        [JV_LIST] = "list",           [JV_TUPLE] = "tuple",
                                        [JV_DICT] = "dict",           [JV_NAMESPACE] = "Namespace",
                                        [JV_LOOP] = "LoopContext",    [JV_FUNC] = "function"};
    return v.kind == JV_LIST && v.list->lazy ? "generator" : names[v.kind];
}

static bool value_enter(struct jrun *r)
{
    if (r->value_depth == JINJA_VALUE_DEPTH_MAX)
        return jrun_fail(r, STATUS_TOO_LARGE, "a value is nested more than %u deep",
                         JINJA_VALUE_DEPTH_MAX);
    r->value_depth++;
    return jrun_work(r, 1);
}

static bool lists_equal(struct jrun *r, const struct jlist *a, const struct jlist *b, bool *equal)
{
    *equal = a->n == b->n;
    for (size_t i = 0; *equal && i < a->n; i++) {
        if (!jv_equal(r, a->items[i], b->items[i], equal))
            return false;
    }
    return true;
}

static bool dicts_equal(struct jrun *r, const struct jdict *a, const struct jdict *b, bool *equal)
{
    *equal = a->n == b->n;
    for (size_t i = 0; *equal && i < a->n; i++) {
        const struct jval *other = jdict_get(r, b, a->pairs[i].key);
        *equal = other != NULL;
        if (r->st || (other && !jv_equal(r, a->pairs[i].value, *other, equal)))
            return false;
    }
    return !r->st;
}

bool jv_equal(struct jrun *r, struct jval a, struct jval b, bool *equal)
{
    *equal = false;
    if (jv_is_number(a) && jv_is_number(b)) {
        *equal = a.kind != JV_FLOAT && b.kind != JV_FLOAT ? jv_integer(a) == jv_integer(b)
                                                          : jv_number(a) == jv_number(b);
        return true;
    }
    if (a.kind != b.kind)
        return true;
    bool ok = true;
    switch (a.kind) {
    case JV_UNDEFINED:
    case JV_NONE:
        *equal = true;
        return true;
    case JV_STRING:
        *equal = jstr_eq(a.str, b.str);
        return jrun_work(r, 1 + a.str.len / 64);
    case JV_LIST:
    case JV_TUPLE:
        ok = value_enter(r) && lists_equal(r, a.list, b.list, equal);
        break;
    case JV_DICT:
        ok = value_enter(r) && dicts_equal(r, a.dict, b.dict, equal);
        break;
    default:
        *equal = a.dict == b.dict;
        return true;
    }
    if (ok)
        r->value_depth--;
    return ok;
}

static int compare_str(struct jstr a, struct jstr b)
{
    int c = memcmp(a.s ? a.s : "", b.s ? b.s : "", MIN(a.len, b.len));
    return c ? (c < 0 ? -1 : 1) : (a.len > b.len) - (a.len < b.len);
}

static bool compare_lists(struct jrun *r, const struct jlist *a, const struct jlist *b, int *order)
{
    for (size_t i = 0; i < a->n && i < b->n; i++) {
        bool equal;
        if (!jv_equal(r, a->items[i], b->items[i], &equal))
            return false;
        if (!equal)
            return jv_compare(r, a->items[i], b->items[i], order);
    }
    *order = (a->n > b->n) - (a->n < b->n);
    return true;
}

bool jv_compare(struct jrun *r, struct jval a, struct jval b, int *order)
{
    if (a.kind == JV_UNDEFINED || b.kind == JV_UNDEFINED)
        return jrun_fail_undefined(r, a.kind == JV_UNDEFINED ? a : b);
    if (jv_is_number(a) && jv_is_number(b)) {
        if (a.kind != JV_FLOAT && b.kind != JV_FLOAT)
            *order = (jv_integer(a) > jv_integer(b)) - (jv_integer(a) < jv_integer(b));
        else
            *order = (jv_number(a) > jv_number(b)) - (jv_number(a) < jv_number(b));
        return true;
    }
    if (a.kind == JV_STRING && b.kind == JV_STRING) {
        *order = compare_str(a.str, b.str);
        return jrun_work(r, 1 + MIN(a.str.len, b.str.len) / 64);
    }
    if (jv_is_list(a) && a.kind == b.kind) {
        bool ok = value_enter(r) && compare_lists(r, a.list, b.list, order);
        if (ok)
            r->value_depth--;
        return ok;
    }
    return jrun_fail(r, STATUS_INVALID, "'%s' and '%s' have no order", jv_type_name(a),
                     jv_type_name(b));
}

void jv_put_float(double f, struct buf *out)
{
    if (isnan(f) || isinf(f)) {
        buf_puts(out, isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
        return;
    }
    char text[64];
    int digits = 1;
    for (; digits < 17; digits++) {
        snprintf(text, sizeof(text), "%.*e", digits - 1, f);
        if (strtod(text, NULL) == f)
            break;
    }
    snprintf(text, sizeof(text), "%.*e", digits - 1, f);
    long exp = strtol(strchr(text, 'e') + 1, NULL, 10);
    if (exp < -4 || exp >= 16) { /* Python: 1e+16, 1.5e-05 */
        buf_puts(out, text);
        return;
    }
    int decimals = digits - 1 - (int)exp;
    snprintf(text, sizeof(text), "%.*f", decimals > 0 ? decimals : 1, f);
    buf_puts(out, text);
}

static bool is_printable(uint32_t cp)
{
    if (cp < 0x7F)
        return cp >= 0x20;
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

static void put_repr_char(uint32_t cp, char quote, struct buf *out)
{
    char bytes[4];
    if (cp == '\n' || cp == '\r' || cp == '\t')
        buf_puts(out, cp == '\n' ? "\\n" : cp == '\r' ? "\\r" : "\\t");
    else if (cp == '\\' || cp == (uint32_t)quote)
        buf_printf(out, "\\%c", (char)cp);
    else if (is_printable(cp))
        buf_put(out, bytes, utf8_put(cp, bytes));
    else
        buf_printf(out, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
}

static void put_repr_str(struct jstr s, struct buf *out)
{
    bool single = s.len && memchr(s.s, '\'', s.len), dbl = s.len && memchr(s.s, '"', s.len);
    char quote = single && !dbl ? '"' : '\'';
    buf_putc(out, quote);
    for (size_t i = 0, n; i < s.len; i += n)
        put_repr_char(utf8_next(s.s + i, s.len - i, &n), quote, out);
    buf_putc(out, quote);
}

static bool put_list(struct jrun *r, struct jval v, struct buf *out)
{
    bool is_tuple = v.kind == JV_TUPLE;
    buf_putc(out, is_tuple ? '(' : '[');
    for (size_t i = 0; i < v.list->n; i++) {
        if (i)
            buf_puts(out, ", ");
        if (!jv_put_repr(r, v.list->items[i], out))
            return false;
    }
    if (is_tuple && v.list->n == 1)
        buf_putc(out, ',');
    buf_putc(out, is_tuple ? ')' : ']');
    return true;
}

static bool put_dict(struct jrun *r, const struct jdict *dict, struct buf *out)
{
    buf_putc(out, '{');
    for (size_t i = 0; i < dict->n; i++) {
        if (i)
            buf_puts(out, ", ");
        if (!jv_put_repr(r, dict->pairs[i].key, out))
            return false;
        buf_puts(out, ": ");
        if (!jv_put_repr(r, dict->pairs[i].value, out))
            return false;
    }
    buf_putc(out, '}');
    return true;
}

bool jv_put_repr(struct jrun *r, struct jval v, struct buf *out)
{
    bool ok = value_enter(r);
    if (!ok)
        return false;
    switch (v.kind) {
    case JV_UNDEFINED:
        buf_puts(out, "Undefined");
        break;
    case JV_STRING:
        put_repr_str(v.str, out);
        ok = jrun_work(r, v.str.len);
        break;
    case JV_NONE:
        buf_puts(out, "None");
        break;
    case JV_BOOL:
        buf_puts(out, v.b ? "True" : "False");
        break;
    case JV_INT:
        buf_printf(out, "%lld", (long long)v.i);
        break;
    case JV_FLOAT:
        jv_put_float(v.f, out);
        break;
    case JV_LIST:
    case JV_TUPLE:
        ok = put_list(r, v, out);
        break;
    case JV_DICT:
        ok = put_dict(r, v.dict, out);
        break;
    default:
        buf_printf(out, "<%s>", jv_type_name(v));
    }
    if (ok)
        r->value_depth--;
    return ok;
}

bool jv_put_str(struct jrun *r, struct jval v, struct buf *out)
{
    if (v.kind == JV_UNDEFINED)
        return true;
    if (v.kind != JV_STRING)
        return jv_put_repr(r, v, out);
    buf_put(out, v.str.s, v.str.len);
    return jrun_work(r, 1 + v.str.len / 8);
}

bool jv_to_str(struct jrun *r, struct jval v, struct jstr *out)
{
    if (v.kind == JV_STRING) {
        *out = v.str;
        return true;
    }
    struct buf b;
    struct jval made;
    jrun_buf(r, &b);
    bool ok = jv_put_str(r, v, &b);
    ok = jrun_take(r, &b, &made) && ok;
    *out = made.str;
    return ok;
}

static bool chars_of(struct jrun *r, struct jstr s, struct jlist *list)
{
    for (size_t i = 0, n; i < s.len; i += n) {
        utf8_next(s.s + i, s.len - i, &n);
        if (!jlist_add(r, list, jv_str((struct jstr){.s = s.s + i, .len = n})))
            return false;
    }
    return true;
}

bool jv_items(struct jrun *r, struct jval v, struct jlist **out)
{
    if (jv_is_list(v) && !v.list->lazy) {
        *out = v.list;
        return true;
    }
    *out = jlist_new(r);
    if (!*out)
        return false;
    switch (v.kind) {
    case JV_UNDEFINED:
        return true;
    case JV_LIST:
        if (!v.list->spent) {
            **out = *v.list;
            (*out)->lazy = false;
        }
        v.list->spent = true;
        return true;
    case JV_STRING:
        return chars_of(r, v.str, *out);
    case JV_DICT:
        for (size_t i = 0; i < v.dict->n; i++) {
            if (!jlist_add(r, *out, v.dict->pairs[i].key))
                return false;
        }
        return true;
    default:
        return jrun_fail(r, STATUS_INVALID, "'%s' object is not iterable", jv_type_name(v));
    }
}
