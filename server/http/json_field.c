/* The parser is jansson; before it runs, one scan bounds the nesting, because its own bound (2048)
 * is deeper than what any field needs and recursion costs stack. */
#include "server/http/json_field.h"
#include "server/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static uint32_t depth_of(const char *text, size_t len)
{
    uint32_t depth = 0, deepest = 0;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            depth++;
            deepest = depth > deepest ? depth : deepest;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return deepest;
}

enum status json_body_parse(const char *text, size_t len, json_t **out, struct errtext *err)
{
    json_error_t e;
    *out = NULL;
    if (len == 0)
        return err_set(err, STATUS_INVALID, "the body is empty; expected a JSON object");
    uint32_t depth = depth_of(text, len);
    if (depth > JSON_BODY_DEPTH_MAX)
        return err_set(err, STATUS_INVALID, "the JSON body nests %u deep; at most %u is accepted",
                       depth, JSON_BODY_DEPTH_MAX);
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (!root)
        return err_set(err, STATUS_INVALID,
                       "the body is not valid JSON: %.200s (line %d, column %d)", e.text, e.line,
                       e.column);
    if (!json_is_object(root)) {
        json_decref(root);
        return err_set(err, STATUS_INVALID, "the body must be a JSON object, found an array");
    }
    *out = root;
    return STATUS_OK;
}

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

void json_picture(const json_t *v, char *out, size_t out_bytes)
{
    switch (v ? json_typeof(v) : JSON_NULL) {
    case JSON_STRING: {
        size_t len = strlen(json_string_value(v)), cut = cut_utf8(json_string_value(v), len, 40);
        snprintf(out, out_bytes, "\"%.*s%s\"", (int)cut, json_string_value(v),
                 cut < len ? "..." : "");
        break;
    }
    case JSON_INTEGER:
        snprintf(out, out_bytes, "%lld", (long long)json_integer_value(v));
        break;
    case JSON_REAL:
        snprintf(out, out_bytes, "%.9g", json_real_value(v));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        snprintf(out, out_bytes, "%s", json_is_true(v) ? "true" : "false");
        break;
    case JSON_OBJECT:
        snprintf(out, out_bytes, "an object");
        break;
    case JSON_ARRAY:
        snprintf(out, out_bytes, "an array");
        break;
    default:
        snprintf(out, out_bytes, "null");
    }
}

enum status json_field_double(const json_t *obj, const char *key, double min, double max,
                              double *out, struct errtext *err)
{
    const json_t *v = json_field(obj, key);
    char found[96];
    if (!v)
        return STATUS_OK;
    double d = json_number_value(v);
    if (!json_is_number(v) || !isfinite(d) || d < min || d > max) {
        json_picture(v, found, sizeof(found));
        return err_param(err, STATUS_INVALID, key,
                         "'%s' must be a number between %g and %g, found %s", key, min, max, found);
    }
    *out = d;
    return STATUS_OK;
}

enum status json_field_int(const json_t *obj, const char *key, int64_t min, int64_t max,
                           int64_t *out, struct errtext *err)
{
    const json_t *v = json_field(obj, key);
    char found[96];
    if (!v)
        return STATUS_OK;
    bool whole = json_is_integer(v);
    int64_t i = whole ? (int64_t)json_integer_value(v) : 0;
    if (json_is_real(v)) { /* 16.0 is what some clients send for 16 */
        double d = json_real_value(v);
        whole = d == floor(d) && fabs(d) < 9007199254740992.0;
        i = whole ? (int64_t)d : 0;
    }
    if (!whole || i < min || i > max) {
        json_picture(v, found, sizeof(found));
        return err_param(err, STATUS_INVALID, key,
                         "'%s' must be an integer between %lld and %lld, found %s", key,
                         (long long)min, (long long)max, found);
    }
    *out = i;
    return STATUS_OK;
}

enum status json_field_bool(const json_t *obj, const char *key, bool *out, struct errtext *err)
{
    const json_t *v = json_field(obj, key);
    char found[96];
    if (!v)
        return STATUS_OK;
    if (!json_is_boolean(v)) {
        json_picture(v, found, sizeof(found));
        return err_param(err, STATUS_INVALID, key, "'%s' must be true or false, found %s", key,
                         found);
    }
    *out = json_is_true(v);
    return STATUS_OK;
}

enum status json_field_string(const json_t *obj, const char *key, const char **out,
                              struct errtext *err)
{
    const json_t *v = json_field(obj, key);
    char found[96];
    if (!v)
        return STATUS_OK;
    if (!json_is_string(v)) {
        json_picture(v, found, sizeof(found));
        return err_param(err, STATUS_INVALID, key, "'%s' must be a string, found %s", key, found);
    }
    if (strlen(json_string_value(v)) != json_string_length(v))
        return err_param(err, STATUS_INVALID, key, "'%s' must not hold a NUL character", key);
    *out = json_string_value(v);
    return STATUS_OK;
}
