/* What every part of the evaluator does to a render: spend its budgets, fail it (the first failure
 * stays), keep a string in its arena, read an argument by place or name. Functions return false
 * once the run has failed, so that callers need no second check. */
#include "server/text/jinja/run.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool jrun_fail(struct jrun *r, enum status st, const char *fmt, ...)
{
    if (r->st)
        return false;
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    r->st = st;
    err_set(r->err, st, "chat template, line %u: %s", r->line, text);
    return false;
}

bool jrun_work(struct jrun *r, uint64_t amount)
{
    if (r->work_left >= amount) {
        r->work_left -= amount;
        return !r->st;
    }
    r->work_left = 0;
    return jrun_fail(r, STATUS_TOO_LARGE, "the template used up its budget of steps");
}

void *jrun_alloc(struct jrun *r, size_t bytes)
{
    void *p = r->st ? NULL : arena_alloc(&r->arena, bytes);
    if (!p)
        jrun_fail(r, STATUS_TOO_LARGE, "the template used up its budget of memory");
    return p;
}

bool jrun_string(struct jrun *r, const char *s, size_t len, struct jval *out)
{
    char *copy = jrun_alloc(r, len + 1);
    if (!copy)
        return false;
    if (len)
        memcpy(copy, s, len);
    *out = jv_str((struct jstr){.s = copy, .len = len});
    return jrun_work(r, 1 + len / 64);
}

void jrun_buf(struct jrun *r, struct buf *b)
{
    buf_init(b, r->out_bytes_max);
}

bool jrun_take(struct jrun *r, struct buf *b, struct jval *out)
{
    *out = jv_str(JSTR(""));
    bool ok = !b->failed && jrun_string(r, b->data ? b->data : "", b->len, out);
    if (b->failed)
        jrun_fail(r, STATUS_TOO_LARGE, "a text grew over %zu bytes", b->bytes_max);
    buf_fini(b);
    return ok;
}

struct jval jval_undefined(struct jrun *r, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    struct jval v = jv_none();
    jrun_string(r, text, strlen(text), &v);
    return (struct jval){.kind = JV_UNDEFINED, .why = v.kind == JV_STRING ? v.str : JSTR("")};
}

bool jrun_fail_undefined(struct jrun *r, struct jval v)
{
    return jrun_fail(r, STATUS_INVALID, "%.*s", (int)v.why.len, v.why.s);
}

const struct jval *jargs_get(const struct jargs *args, size_t idx, const char *name)
{
    if (idx < args->n_pos)
        return &args->pos[idx];
    for (size_t i = 0; i < args->n_named; i++) {
        if (jstr_is(args->named[i].key.str, name))
            return &args->named[i].value;
    }
    return NULL;
}

bool jargs_int(struct jrun *r, const struct jargs *args, size_t idx, const char *name,
               int64_t missing, int64_t *out)
{
    const struct jval *v = jargs_get(args, idx, name);
    *out = missing;
    if (!v || v->kind == JV_NONE)
        return true;
    if (v->kind == JV_UNDEFINED)
        return jrun_fail_undefined(r, *v);
    if (v->kind != JV_INT && v->kind != JV_BOOL)
        return jrun_fail(r, STATUS_INVALID, "argument '%s' must be an integer, not '%s'", name,
                         jv_type_name(*v));
    *out = jv_integer(*v);
    return true;
}

bool jargs_bool(const struct jargs *args, size_t idx, const char *name, bool missing)
{
    const struct jval *v = jargs_get(args, idx, name);
    return v ? jv_truth(*v) : missing;
}

bool jargs_str(struct jrun *r, const struct jargs *args, size_t idx, const char *name,
               struct jstr missing, struct jstr *out)
{
    const struct jval *v = jargs_get(args, idx, name);
    *out = missing;
    if (!v)
        return true;
    if (v->kind == JV_UNDEFINED)
        return jrun_fail_undefined(r, *v);
    if (v->kind != JV_STRING)
        return jrun_fail(r, STATUS_INVALID, "argument '%s' must be a string, not '%s'", name,
                         jv_type_name(*v));
    *out = v->str;
    return true;
}
