/* Getters over jansson with one rule for all: null means absent, a wrong type or a value out of
 * range is an error that shows what was found. */
#include "server/model/config_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *cfg_shown(const json_t *v)
{
    static _Thread_local char text[96];
    switch (v ? json_typeof(v) : JSON_NULL) {
    case JSON_STRING:
        snprintf(text, sizeof(text), "\"%.80s\"", json_string_value(v));
        break;
    case JSON_INTEGER:
        snprintf(text, sizeof(text), "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        break;
    case JSON_REAL:
        snprintf(text, sizeof(text), "%.9g", json_real_value(v));
        break;
    case JSON_OBJECT:
        snprintf(text, sizeof(text), "an object");
        break;
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

void cfg_fail(struct cfg_reader *r, enum status st, const char *key, const char *fmt, ...)
{
    char text[320];
    va_list ap;
    if (r->st)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    r->st = err_param(r->err, st, key, "%s: %s: %s", r->where, key, text);
}

static const json_t *lookup(const struct cfg_reader *r, const char *key)
{
    const json_t *v = json_object_get(r->obj, key);
    return v && !json_is_null(v) ? v : NULL;
}

bool cfg_has(const struct cfg_reader *r, const char *key)
{
    return lookup(r, key) != NULL;
}

int64_t cfg_int(struct cfg_reader *r, const char *key, struct cfg_range range, int64_t absent)
{
    const json_t *v = lookup(r, key);
    if (!v || r->st)
        return absent;
    /* transformers writes some integers as 4096.0 */
    double real = json_is_real(v) ? json_real_value(v) : 0.5;
    bool whole = json_is_integer(v) || (real == floor(real) && fabs(real) < 9e15);
    int64_t n = json_is_integer(v) ? json_integer_value(v) : whole ? (int64_t)real : 0;
    if (!whole || n < range.lo || n > range.hi) {
        cfg_fail(r, STATUS_INVALID, key,
                 "found %s, expected an integer from %" PRId64 " to %" PRId64, cfg_shown(v),
                 range.lo, range.hi);
        return absent;
    }
    return n;
}

int64_t cfg_int_required(struct cfg_reader *r, const char *key, struct cfg_range range)
{
    if (!lookup(r, key))
        cfg_fail(r, STATUS_INVALID, key,
                 "missing, expected an integer from %" PRId64 " to %" PRId64, range.lo, range.hi);
    return cfg_int(r, key, range, range.lo);
}

double cfg_num(struct cfg_reader *r, const char *key, double lo, double hi, double absent)
{
    const json_t *v = lookup(r, key);
    if (!v || r->st)
        return absent;
    double d = json_is_number(v) ? json_number_value(v) : NAN;
    if (!(d >= lo && d <= hi)) {
        cfg_fail(r, STATUS_INVALID, key, "found %s, expected a number from %.9g to %.9g",
                 cfg_shown(v), lo, hi);
        return absent;
    }
    return d;
}

double cfg_num_required(struct cfg_reader *r, const char *key, double lo, double hi)
{
    if (!lookup(r, key))
        cfg_fail(r, STATUS_INVALID, key, "missing, expected a number from %.9g to %.9g", lo, hi);
    return cfg_num(r, key, lo, hi, lo);
}

bool cfg_bool(struct cfg_reader *r, const char *key, bool absent)
{
    const json_t *v = lookup(r, key);
    if (!v || r->st)
        return absent;
    if (!json_is_boolean(v)) {
        cfg_fail(r, STATUS_INVALID, key, "found %s, expected true or false", cfg_shown(v));
        return absent;
    }
    return json_is_true(v);
}

const char *cfg_string(struct cfg_reader *r, const char *key)
{
    const json_t *v = lookup(r, key);
    if (!v || r->st)
        return NULL;
    if (!json_is_string(v)) {
        cfg_fail(r, STATUS_INVALID, key, "found %s, expected a string", cfg_shown(v));
        return NULL;
    }
    return json_string_value(v);
}
