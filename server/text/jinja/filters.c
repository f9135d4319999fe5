/* The table of filters, and those that work on one string or number. */
#include "server/text/jinja/filters.h"
#include "server/base/check.h"
#include "server/text/jinja/text.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool filter_default(struct jrun *r, struct jval v, const struct jargs *args,
                           struct jval *out)
{
    const struct jval *missing = jargs_get(args, 0, "default_value");
    bool boolean = jargs_bool(args, 1, "boolean", false);
    (void)r;
    *out = v;
    if (v.kind == JV_UNDEFINED || (boolean && !jv_truth(v)))
        *out = missing ? *missing : jv_str(JSTR(""));
    return true;
}

static bool filter_trim(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jstr s, chars;
    const struct jval *given = jargs_get(args, 0, "chars");
    bool blank = !given || given->kind == JV_NONE;
    if (!jv_to_str(r, v, &s) || (!blank && !jargs_str(r, args, 0, "chars", JSTR(""), &chars)))
        return false;
    *out = jv_str(jtext_strip(s, blank ? NULL : &chars, true, true));
    return jrun_work(r, 1 + s.len / 16);
}

static bool filter_lower(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jstr s;
    (void)args;
    return jv_to_str(r, v, &s) && jtext_case(r, s, JTEXT_LOWER, out);
}

static bool filter_upper(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jstr s;
    (void)args;
    return jv_to_str(r, v, &s) && jtext_case(r, s, JTEXT_UPPER, out);
}

static bool filter_capitalize(struct jrun *r, struct jval v, const struct jargs *args,
                              struct jval *out)
{
    struct jstr s;
    (void)args;
    return jv_to_str(r, v, &s) && jtext_case(r, s, JTEXT_CAPITALIZE, out);
}

static bool filter_title(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jstr s;
    (void)args;
    return jv_to_str(r, v, &s) && jtext_title_words(r, s, out);
}

static bool filter_replace(struct jrun *r, struct jval v, const struct jargs *args,
                           struct jval *out)
{
    struct jstr s, from_to[2];
    int64_t max;
    const struct jval *from = jargs_get(args, 0, "old"), *to = jargs_get(args, 1, "new");
    if (!from || !to)
        return jrun_fail(r, STATUS_INVALID, "replace takes two strings");
    return jv_to_str(r, v, &s) && jv_to_str(r, *from, &from_to[0]) &&
           jv_to_str(r, *to, &from_to[1]) && jargs_int(r, args, 2, "count", -1, &max) &&
           jtext_replace(r, s, from_to, max, out);
}

static bool filter_string(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jstr s;
    (void)args;
    if (!jv_to_str(r, v, &s))
        return false;
    *out = jv_str(s);
    return true;
}

static bool filter_escape(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jstr s;
    struct buf b;
    (void)args;
    if (!jv_to_str(r, v, &s))
        return false;
    jrun_buf(r, &b);
    for (size_t i = 0; i < s.len; i++) {
        char c = s.s[i];
        if (c == '&' || c == '<' || c == '>' || c == '"' || c == '\'')
            buf_puts(&b, c == '&'   ? "&amp;"
                         : c == '<' ? "&lt;"
                         : c == '>' ? "&gt;"
                         : c == '"' ? "&#34;"
                                    : "&#39;");
        else
            buf_putc(&b, c);
    }
    return jrun_take(r, &b, out) && jrun_work(r, s.len);
}

/* A number at the start and end of blanks, by Python's int(text) or float(text). */
static bool parse_number(struct jstr s, bool is_int, int base, struct jval *out)
{
    char text[64];
    char *end;
    s = jtext_strip(s, NULL, true, true);
    if (s.len == 0 || s.len >= sizeof(text) || memchr(s.s, '\0', s.len))
        return false;
    memcpy(text, s.s, s.len);
    text[s.len] = '\0';
    errno = 0;
    if (is_int) {
        *out = jv_int(strtoll(text, &end, base));
        return *end == '\0' && end != text && errno == 0;
    }
    if (strpbrk(text, "xXpP"))
        return false;
    *out = jv_float(strtod(text, &end));
    return *end == '\0' && end != text;
}

static bool filter_int(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    const struct jval *missing = jargs_get(args, 0, "default");
    int64_t base;
    struct jval f;
    if (!jargs_int(r, args, 1, "base", 10, &base))
        return false;
    if (v.kind == JV_UNDEFINED)
        return jrun_fail_undefined(r, v);
    *out = missing ? *missing : jv_int(0);
    if (v.kind == JV_INT || v.kind == JV_BOOL) {
        *out = jv_int(jv_integer(v));
    } else if (v.kind == JV_FLOAT || v.kind == JV_STRING) {
        if (v.kind == JV_STRING && parse_number(v.str, true, (int)(base & 63), &f))
            *out = f;
        else if ((v.kind == JV_FLOAT || parse_number(v.str, false, 10, &f)) &&
                 fabs(v.kind == JV_FLOAT ? v.f : f.f) < 9e18)
            *out = jv_int((int64_t)(v.kind == JV_FLOAT ? v.f : f.f));
    }
    return true;
}

static bool filter_float(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    const struct jval *missing = jargs_get(args, 0, "default");
    struct jval f;
    if (v.kind == JV_UNDEFINED)
        return jrun_fail_undefined(r, v);
    *out = missing ? *missing : jv_float(0);
    if (jv_is_number(v))
        *out = jv_float(jv_number(v));
    else if (v.kind == JV_STRING && parse_number(v.str, false, 10, &f))
        *out = f;
    return true;
}

static bool filter_abs(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    (void)args;
    if (v.kind == JV_UNDEFINED)
        return jrun_fail_undefined(r, v);
    if (!jv_is_number(v))
        return jrun_fail(r, STATUS_INVALID, "bad operand type for abs(): '%s'", jv_type_name(v));
    if (v.kind == JV_FLOAT) {
        *out = jv_float(fabs(v.f));
        return true;
    }
    *out = jv_int(jv_integer(v));
    return out->i >= 0 || jinja_binary(r, JOP_SUB, jv_int(0), *out, out);
}

static bool filter_round(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jstr how;
    int64_t precision;
    if (!jargs_int(r, args, 0, "precision", 0, &precision) ||
        !jargs_str(r, args, 1, "method", JSTR("common"), &how))
        return false;
    if (!jv_is_number(v))
        return jrun_fail(r, STATUS_INVALID, "round does not work on '%s'", jv_type_name(v));
    bool common = jstr_is(how, "common"), up = jstr_is(how, "ceil");
    if (!common && !up && !jstr_is(how, "floor"))
        return jrun_fail(r, STATUS_INVALID, "method must be common, ceil or floor");
    if (precision < -15 || precision > 15)
        return jrun_fail(r, STATUS_INVALID, "round: a precision of %lld", (long long)precision);
    if (common && v.kind != JV_FLOAT && precision >= 0) {
        *out = jv_int(jv_integer(v));
        return true;
    }
    double scale = pow(10, (double)precision), x = jv_number(v);
    if (!common) {
        *out = jv_float((up ? ceil(x * scale) : floor(x * scale)) / scale);
        return true;
    }
    char text[400]; /* decimal rounding of the exact binary value, ties to even, as Python does */
    if (precision >= 0) {
        snprintf(text, sizeof(text), "%.*f", (int)precision, x);
        *out = jv_float(strtod(text, NULL));
    } else {
        *out = jv_float(nearbyint(x * scale) / scale);
    }
    if (v.kind != JV_FLOAT)
        *out = jv_int((int64_t)out->f);
    return true;
}

static bool filter_indent(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jstr s, pad = JSTR("    ");
    struct jval lines, made;
    struct buf b;
    const struct jval *width = jargs_get(args, 0, "width");
    bool first = jargs_bool(args, 1, "first", false), blank = jargs_bool(args, 2, "blank", false);
    if (!jv_to_str(r, v, &s))
        return false;
    if (width && width->kind == JV_STRING) {
        pad = width->str;
    } else if (width) {
        if (!jinja_binary(r, JOP_MUL, jv_str(JSTR(" ")), *width, &made))
            return false;
        pad = made.str;
    }
    if (!jinja_binary(r, JOP_ADD, jv_str(s), jv_str(JSTR("\n")), &made) ||
        !jtext_splitlines(r, made.str, false, &lines))
        return false;
    jrun_buf(r, &b);
    for (size_t i = 0; i < lines.list->n; i++) {
        struct jstr line = lines.list->items[i].str;
        if (i)
            buf_putc(&b, '\n');
        if (i ? (line.len || blank) : first)
            buf_put(&b, pad.s, pad.len);
        buf_put(&b, line.s, line.len);
    }
    return jrun_take(r, &b, out);
}

static bool filter_wordcount(struct jrun *r, struct jval v, const struct jargs *args,
                             struct jval *out)
{
    struct jstr s;
    struct jval words;
    (void)args;
    if (!jv_to_str(r, v, &s) || !jtext_split(r, s, &(struct jtext_split_args){.max = -1}, &words))
        return false;
    *out = jv_int((int64_t)words.list->n);
    return true;
}

static bool filter_tojson(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    return jinja_tojson(r, v, args, out);
}

static const struct {
    const char *name;
    jfilter *call;
} filters[] = {{"tojson", filter_tojson},
               {"trim", filter_trim},
               {"length", jfilter_length},
               {"count", jfilter_length},
               {"join", jfilter_join},
               {"list", jfilter_list},
               {"items", jfilter_items},
               {"dictsort", jfilter_dictsort},
               {"map", jfilter_map},
               {"select", jfilter_select},
               {"reject", jfilter_reject},
               {"selectattr", jfilter_selectattr},
               {"rejectattr", jfilter_rejectattr},
               {"first", jfilter_first},
               {"last", jfilter_last},
               {"lower", filter_lower},
               {"upper", filter_upper},
               {"title", filter_title},
               {"capitalize", filter_capitalize},
               {"replace", filter_replace},
               {"default", filter_default},
               {"d", filter_default},
               {"string", filter_string},
               {"int", filter_int},
               {"float", filter_float},
               {"safe", filter_string},
               {"escape", filter_escape},
               {"e", filter_escape},
               {"indent", filter_indent},
               {"unique", jfilter_unique},
               {"sort", jfilter_sort},
               {"round", filter_round},
               {"abs", filter_abs},
               {"sum", jfilter_sum},
               {"min", jfilter_min},
               {"max", jfilter_max},
               {"reverse", jfilter_reverse},
               {"groupby", jfilter_groupby},
               {"attr", jfilter_attr},
               {"wordcount", filter_wordcount}};

int jinja_filter_find(struct jstr name)
{
    for (size_t i = 0; i < ARRAY_COUNT(filters); i++) {
        if (jstr_is(name, filters[i].name))
            return (int)i;
    }
    return -1;
}

bool jinja_filter_call(struct jrun *r, int filter, struct jval v, const struct jargs *args,
                       struct jval *out)
{
    if (!jrun_work(r, 1))
        return false;
    if (r->depth >= JINJA_DEPTH_MAX)
        return jrun_fail(r, STATUS_TOO_LARGE, "nested more than %u deep", JINJA_DEPTH_MAX);
    r->depth++; /* map can call filters from filters */
    bool ok = filters[filter].call(r, v, args, out);
    r->depth--;
    return ok;
}
