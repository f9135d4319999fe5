/* See jsonget.h. */
#include "server/text/jsonget.h"
#include "server/base/mem.h"

enum status json_get_type(const json_t *obj, const char *where, const char **type,
                          struct errtext *err)
{
    const json_t *v = json_object_get(obj, "type");
    if (!json_is_string(v))
        return err_set(err, STATUS_INVALID, "%s: expected an object with a \"type\" string", where);
    *type = json_string_value(v);
    return STATUS_OK;
}

enum status json_get_bool(const json_t *obj, const char *where, const char *key, bool missing,
                          bool *out, struct errtext *err)
{
    const json_t *v = json_object_get(obj, key);
    *out = missing;
    if (!v || json_is_null(v))
        return STATUS_OK;
    if (!json_is_boolean(v))
        return err_set(err, STATUS_INVALID, "%s: \"%s\" must be true or false", where, key);
    *out = json_is_true(v);
    return STATUS_OK;
}

static enum status copy_string(const json_t *v, char **out, size_t *len, struct errtext *err)
{
    *len = json_string_length(v);
    *out = mem_try_strndup(json_string_value(v), *len);
    return *out ? STATUS_OK : err_set(err, STATUS_NO_MEMORY, "no memory for a string");
}

enum status json_get_text(const json_t *obj, const char *where, const char *key, char **out,
                          size_t *len, struct errtext *err)
{
    const json_t *v = json_object_get(obj, key);
    if (!json_is_string(v))
        return err_set(err, STATUS_INVALID, "%s: \"%s\" must be a string", where, key);
    return copy_string(v, out, len, err);
}

enum status json_get_count(const json_t *obj, const char *where, const char *key, uint32_t max,
                           uint32_t *out, struct errtext *err)
{
    const json_t *v = json_object_get(obj, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > (json_int_t)max)
        return err_set(err, STATUS_INVALID, "%s: \"%s\" must be an integer from 0 to %u", where,
                       key, max);
    *out = (uint32_t)json_integer_value(v);
    return STATUS_OK;
}

enum status json_get_array(const json_t *obj, const char *where, const char *key, size_t count_max,
                           json_t **out, struct errtext *err)
{
    json_t *v = json_object_get(obj, key);
    if (!json_is_array(v))
        return err_set(err, STATUS_INVALID, "%s: \"%s\" must be an array", where, key);
    if (json_array_size(v) > count_max)
        return err_set(err, STATUS_TOO_LARGE, "%s: \"%s\" has %zu items; at most %zu", where, key,
                       json_array_size(v), count_max);
    *out = v;
    return STATUS_OK;
}

enum status json_get_pattern(const json_t *obj, const char *where, char **out, size_t *len,
                             bool *is_regex, struct errtext *err)
{
    const json_t *pattern = json_object_get(obj, "pattern");
    const json_t *text = json_object_get(pattern, "String");
    const json_t *regex = json_object_get(pattern, "Regex");
    if (json_object_size(pattern) != 1 || !(json_is_string(text) || json_is_string(regex)))
        return err_set(err, STATUS_INVALID,
                       "%s: \"pattern\" must be {\"String\": text} or {\"Regex\": text}", where);
    *is_regex = regex != NULL;
    return copy_string(regex ? regex : text, out, len, err);
}
