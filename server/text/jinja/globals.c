/* The functions a template finds without being given them: range, namespace, dict, joiner,
 * raise_exception, strftime_now. None of them reaches the host, except for the time of day. */
#include "server/text/jinja/run.h"

#include <string.h>
#include <time.h>

enum global {
    GLOBAL_RANGE,
    GLOBAL_NAMESPACE,
    GLOBAL_DICT,
    GLOBAL_JOINER,
    GLOBAL_RAISE,
    GLOBAL_TIME
};

static const char *const global_names[] = {
    [GLOBAL_RANGE] = "range",   [GLOBAL_NAMESPACE] = "namespace",   [GLOBAL_DICT] = "dict",
    [GLOBAL_JOINER] = "joiner", [GLOBAL_RAISE] = "raise_exception", [GLOBAL_TIME] = "strftime_now"};

int jinja_global_find(struct jstr name)
{
    for (size_t i = 0; i < sizeof(global_names) / sizeof(global_names[0]); i++) {
        if (jstr_is(name, global_names[i]))
            return (int)i;
    }
    return -1;
}

static bool call_range(struct jrun *r, const struct jargs *args, struct jval *out)
{
    int64_t at[3] = {0, 0, 1};
    if (args->n_pos < 1 || args->n_pos > 3 || args->n_named)
        return jrun_fail(r, STATUS_INVALID, "range takes 1 to 3 arguments");
    for (size_t i = 0; i < args->n_pos; i++) {
        if (!jargs_int(r, args, i, "", 0, &at[args->n_pos == 1 ? 1 : i]))
            return false;
    }
    if (at[2] == 0)
        return jrun_fail(r, STATUS_INVALID, "range() arg 3 must not be zero");
    struct jlist *list = jlist_new(r);
    for (int64_t i = at[0]; list && (at[2] > 0 ? i < at[1] : i > at[1]);) {
        if (list->n == JINJA_RANGE_MAX)
            return jrun_fail(r, STATUS_TOO_LARGE, "range too big: at most %d items",
                             JINJA_RANGE_MAX);
        if (!jlist_add(r, list, jv_int(i)))
            return false;
        if (__builtin_add_overflow(i, at[2], &i))
            break;
    }
    *out = jv_list(list);
    return list != NULL;
}

static bool call_dict(struct jrun *r, const struct jargs *args, bool is_namespace, struct jval *out)
{
    struct jdict *dict = jdict_new(r);
    if (!dict)
        return false;
    if (args->n_pos > 1 || (args->n_pos && args->pos[0].kind != JV_DICT))
        return jrun_fail(r, STATUS_INVALID, "%s takes one mapping and named arguments",
                         is_namespace ? "namespace" : "dict");
    for (size_t i = 0; args->n_pos && i < args->pos[0].dict->n; i++) {
        const struct jpair *pair = &args->pos[0].dict->pairs[i];
        if (!jdict_set(r, dict, pair->key, pair->value))
            return false;
    }
    for (size_t i = 0; i < args->n_named; i++) {
        if (is_namespace && args->named[i].key.str.s[0] == '_')
            return jrun_fail(r, STATUS_INVALID,
                             "chat templates cannot store underscore-prefixed attributes");
        if (!jdict_set(r, dict, args->named[i].key, args->named[i].value))
            return false;
    }
    *out = jv_dict(dict);
    out->kind = is_namespace ? JV_NAMESPACE : JV_DICT;
    return true;
}

static bool call_joiner(struct jrun *r, const struct jargs *args, struct jval *out)
{
    struct jstr sep;
    struct jfunc *f = jrun_alloc(r, sizeof(*f));
    if (!f || !jargs_str(r, args, 0, "sep", JSTR(", "), &sep))
        return false;
    *f = (struct jfunc){.kind = JFUNC_JOINER, .self = jv_str(sep), .name = JSTR("joiner")};
    *out = (struct jval){.kind = JV_FUNC, .func = f};
    return true;
}

/* The template's own refusal: its text is the whole error. */
static bool call_raise(struct jrun *r, const struct jargs *args)
{
    const struct jval *v = jargs_get(args, 0, "message");
    struct jstr text = JSTR("");
    if (v && !jv_to_str(r, *v, &text))
        return false;
    r->st = STATUS_INVALID;
    err_set(r->err, STATUS_INVALID, "%.*s", (int)(text.len < 500 ? text.len : 500), text.s);
    return false;
}

static bool call_time(struct jrun *r, const struct jargs *args, struct jval *out)
{
    struct jstr format;
    char pattern[128], text[512];
    if (!jargs_str(r, args, 0, "format", JSTR(""), &format))
        return false;
    if (format.len >= sizeof(pattern))
        return jrun_fail(r, STATUS_INVALID, "strftime_now: a format of %zu bytes", format.len);
    memcpy(pattern, format.s, format.len);
    pattern[format.len] = '\0';
    time_t now = time(NULL);
    struct tm tm;
    if (!localtime_r(&now, &tm))
        return jrun_fail(r, STATUS_INVALID, "strftime_now: no local time");
    size_t n = format.len ? strftime(text, sizeof(text), pattern, &tm) : 0;
    return jrun_string(r, text, n, out);
}

bool jinja_global_call(struct jrun *r, int global, const struct jargs *args, struct jval *out)
{
    switch ((enum global)global) {
    case GLOBAL_RANGE:
        return call_range(r, args, out);
    case GLOBAL_NAMESPACE:
        return call_dict(r, args, true, out);
    case GLOBAL_DICT:
        return call_dict(r, args, false, out);
    case GLOBAL_JOINER:
        return call_joiner(r, args, out);
    case GLOBAL_TIME:
        return call_time(r, args, out);
    case GLOBAL_RAISE:
        break;
    }
    return call_raise(r, args);
}
