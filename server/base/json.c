/* The getters. One rule for all: null means absent, a wrong type or a value out of range is a fault
 * that names the path and shows what was found, and the first fault stays. */
#include "server/base/json.h"
#include "server/base/hex.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define SHOWN_STRING_BYTES 80
#define EXACT_REAL_MAX     9007199254740992.0 /* 2^53: below, a whole real is one integer */

const json_t *json_field(const json_t *obj, const char *key)
{
    const json_t *v = json_object_get(obj, key);
    return json_is_null(v) ? NULL : v;
}

/* Cut a text for a message at a character boundary. */
static size_t cut_utf8(const char *s, size_t len, size_t max)
{
    if (len <= max)
        return len;
    while (max > 0 && ((unsigned char)s[max] & 0xC0) == 0x80)
        max--;
    return max;
}

static void show_real(char *out, size_t out_bytes, double d)
{
    bool whole = d == floor(d) && fabs(d) < 1e21;
    snprintf(out, out_bytes, whole ? "%.0f" : "%.9g", d);
}

const char *json_shown(const json_t *v)
{
    static _Thread_local char text[SHOWN_STRING_BYTES + 16];
    const char *s = json_string_value(v);
    size_t len = s ? strlen(s) : 0, cut = s ? cut_utf8(s, len, SHOWN_STRING_BYTES) : 0;
    switch (v ? json_typeof(v) : JSON_NULL) {
    case JSON_STRING:
        snprintf(text, sizeof(text), "\"%.*s%s\"", (int)cut, s, cut < len ? "..." : "");
        break;
    case JSON_INTEGER:
        snprintf(text, sizeof(text), "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        break;
    case JSON_REAL:
        show_real(text, sizeof(text), json_real_value(v));
        break;
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        snprintf(text, sizeof(text), "a list of %zu", json_array_size(v));
        break;
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    default:
        return v ? "null" : "nothing";
    }
    return text;
}

void json_fail(struct json_reader *r, enum status st, const char *key, const char *fmt, ...)
{
    char text[320], path[160];
    va_list ap;
    if (r->st)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    snprintf(path, sizeof(path), "%s%.95s", r->at, key);
    for (struct json_reader *p = r; p; p = p->up)
        p->st = p->st ? p->st : st;
    (void)err_param(r->err, st, path, "%s%s%s: %s", r->where ? r->where : "", r->where ? ": " : "",
                    path, text);
}

static enum status wrong(const struct json_reader *r)
{
    return r->wrong ? r->wrong : STATUS_INVALID;
}

static void fail_type(struct json_reader *r, const char *key, const json_t *v, const char *expected)
{
    json_fail(r, wrong(r), key, "%s%s, expected %s", v ? "found " : "missing",
              v ? json_shown(v) : "", expected);
}

static const json_t *lookup(const struct json_reader *r, const char *key)
{
    return r->st ? NULL : json_field(r->obj, key);
}

bool json_has(const struct json_reader *r, const char *key)
{
    return json_field(r->obj, key) != NULL;
}

/* Exact, or false. */
static bool as_int(const json_t *v, int64_t *out)
{
    double real = json_is_real(v) ? json_real_value(v) : 0.5;
    bool whole = real == floor(real) && fabs(real) < EXACT_REAL_MAX;
    *out = json_is_integer(v) ? (int64_t)json_integer_value(v) : whole ? (int64_t)real : 0;
    return json_is_integer(v) || whole;
}

static int64_t take_int(struct json_reader *r, const char *key, const json_t *v,
                        struct json_range range, int64_t absent)
{
    int64_t n;
    char expected[80];
    if (v && as_int(v, &n) && n >= range.lo && n <= range.hi)
        return n;
    snprintf(expected, sizeof(expected), "an integer from %" PRId64 " to %" PRId64, range.lo,
             range.hi);
    fail_type(r, key, v, expected);
    return absent;
}

int64_t json_read_int(struct json_reader *r, const char *key, struct json_range range,
                      int64_t absent)
{
    const json_t *v = lookup(r, key);
    return v ? take_int(r, key, v, range, absent) : absent;
}

int64_t json_need_int(struct json_reader *r, const char *key, struct json_range range)
{
    return take_int(r, key, lookup(r, key), range, range.lo);
}

int64_t json_item_int(struct json_reader *r, const char *key, size_t idx, const json_t *v,
                      struct json_range range)
{
    char name[96];
    snprintf(name, sizeof(name), "%.64s[%zu]", key, idx);
    return take_int(r, name, v, range, range.lo);
}

static double take_num(struct json_reader *r, const char *key, const json_t *v, double lo,
                       double hi, double absent)
{
    char expected[80];
    double d = json_is_number(v) ? json_number_value(v) : NAN;
    if (d >= lo && d <= hi)
        return d;
    snprintf(expected, sizeof(expected), "a number from %.9g to %.9g", lo, hi);
    fail_type(r, key, v, expected);
    return absent;
}

double json_read_num(struct json_reader *r, const char *key, double lo, double hi, double absent)
{
    const json_t *v = lookup(r, key);
    return v ? take_num(r, key, v, lo, hi, absent) : absent;
}

double json_need_num(struct json_reader *r, const char *key, double lo, double hi)
{
    return take_num(r, key, lookup(r, key), lo, hi, lo);
}

bool json_read_bool(struct json_reader *r, const char *key, bool absent)
{
    const json_t *v = lookup(r, key);
    if (!v || json_is_boolean(v))
        return v ? json_is_true(v) : absent;
    fail_type(r, key, v, "true or false");
    return absent;
}

static const char *take_string(struct json_reader *r, const char *key, const json_t *v)
{
    const char *text = json_string_value(v);
    if (!text)
        fail_type(r, key, v, "a string");
    else if (strlen(text) != json_string_length(v))
        json_fail(r, wrong(r), key, "found a NUL character, expected a string without");
    return r->st ? NULL : text;
}

const char *json_read_string(struct json_reader *r, const char *key)
{
    const json_t *v = lookup(r, key);
    return v ? take_string(r, key, v) : NULL;
}

const char *json_need_string(struct json_reader *r, const char *key)
{
    const char *text = take_string(r, key, lookup(r, key));
    return text ? text : "";
}

char *json_need_copy(struct json_reader *r, const char *key, size_t *len)
{
    const json_t *v = lookup(r, key);
    char *copy = NULL;
    *len = json_string_length(v);
    if (!json_is_string(v))
        fail_type(r, key, v, "a string");
    else if (!(copy = mem_try_strndup(json_string_value(v), *len)))
        json_fail(r, STATUS_NO_MEMORY, key, "no memory for %zu bytes", *len);
    return copy;
}

void json_need_hex(struct json_reader *r, const char *key, uint8_t *out, size_t n)
{
    char expected[48];
    const json_t *v = lookup(r, key);
    const char *text = json_string_value(v);
    if (text && strlen(text) == json_string_length(v) && hex_decode(out, n, text))
        return;
    memset(out, 0, n);
    snprintf(expected, sizeof(expected), "0x and %zu hex digits", 2 * n);
    fail_type(r, key, v, expected);
}

static const json_t *take_list(struct json_reader *r, const char *key, const json_t *v,
                               size_t count_max)
{
    if (!json_is_array(v))
        fail_type(r, key, v, "a list");
    else if (json_array_size(v) > count_max)
        json_fail(r, STATUS_TOO_LARGE, key, "found %zu items, expected at most %zu",
                  json_array_size(v), count_max);
    return r->st ? NULL : v;
}

const json_t *json_read_list(struct json_reader *r, const char *key, size_t count_max)
{
    const json_t *v = lookup(r, key);
    return v ? take_list(r, key, v, count_max) : NULL;
}

const json_t *json_need_list(struct json_reader *r, const char *key, size_t count_max)
{
    return take_list(r, key, lookup(r, key), count_max);
}

static struct json_reader enter(struct json_reader *r, const char *key, const json_t *v)
{
    struct json_reader in = {
        .obj = v, .where = r->where, .wrong = r->wrong, .st = r->st, .err = r->err, .up = r};
    if (v && !json_is_object(v)) {
        fail_type(r, key, v, "an object");
        in.obj = NULL;
        in.st = r->st;
    }
    snprintf(in.at, sizeof(in.at), "%s%.40s.", r->at, key);
    return in;
}

struct json_reader json_enter(struct json_reader *r, const char *key)
{
    return enter(r, key, lookup(r, key));
}

struct json_reader json_enter_item(struct json_reader *r, const char *key, size_t idx,
                                   const json_t *item)
{
    char name[96];
    snprintf(name, sizeof(name), "%.64s[%zu]", key, idx);
    return enter(r, name, item);
}
