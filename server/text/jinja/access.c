/* a.b, a[b] and a[b:c:d]. `.` finds a method before a key, `[]` a key before a method, and what is
 * not there is an undefined value that remembers how to complain. */
#include "server/text/jinja/run.h"
#include "server/text/utf8.h"

#include <string.h>

static struct jval missing_attr(struct jrun *r, struct jval obj, struct jstr name)
{
    return jval_undefined(r, "'%s object' has no attribute '%.*s'", jv_type_name(obj),
                          (int)(name.len < 100 ? name.len : 100), name.s);
}

static bool loop_attr(struct jrun *r, struct jloop *loop, struct jstr name, struct jval *out)
{
    size_t n = loop->items->n, idx = loop->idx;
    if (jstr_is(name, "index"))
        *out = jv_int((int64_t)idx + 1);
    else if (jstr_is(name, "index0"))
        *out = jv_int((int64_t)idx);
    else if (jstr_is(name, "revindex"))
        *out = jv_int((int64_t)(n - idx));
    else if (jstr_is(name, "revindex0"))
        *out = jv_int((int64_t)(n - idx) - 1);
    else if (jstr_is(name, "first"))
        *out = jv_bool(idx == 0);
    else if (jstr_is(name, "last"))
        *out = jv_bool(idx + 1 == n);
    else if (jstr_is(name, "length"))
        *out = jv_int((int64_t)n);
    else if (jstr_is(name, "depth"))
        *out = jv_int((int64_t)loop->depth0 + 1);
    else if (jstr_is(name, "depth0"))
        *out = jv_int(loop->depth0);
    else if (jstr_is(name, "previtem"))
        *out = idx ? loop->items->items[idx - 1] : jval_undefined(r, "there is no previous item");
    else if (jstr_is(name, "nextitem"))
        *out =
            idx + 1 < n ? loop->items->items[idx + 1] : jval_undefined(r, "there is no next item");
    else
        return false;
    return true;
}

/* What would change a list or dict is an undefined value that says why, as in the reference. */
static bool make_method(struct jrun *r, struct jval self, struct jstr name, struct jval *out)
{
    bool refused = jinja_method_refused(self, name);
    if (refused && self.kind != JV_STRING) {
        *out = jval_undefined(r, "access to attribute '%.*s' of '%s' object is unsafe.",
                              (int)name.len, name.s, jv_type_name(self));
        return !r->st;
    }
    struct jfunc *f = jrun_alloc(r, sizeof(*f));
    if (!f)
        return false;
    *f = (struct jfunc){.kind = refused ? JFUNC_REFUSED : JFUNC_METHOD, .self = self, .name = name};
    *out = (struct jval){.kind = JV_FUNC, .func = f};
    return true;
}

/* A built-in attribute or method. */
static bool find_attr(struct jrun *r, struct jval obj, struct jstr name, struct jval *out)
{
    if (obj.kind == JV_LOOP && loop_attr(r, obj.loop, name, out))
        return true;
    if (jinja_method_exists(obj, name) || jinja_method_refused(obj, name))
        return make_method(r, obj, name, out);
    return false;
}

static const struct jval *find_key(struct jrun *r, struct jval obj, struct jval key)
{
    if (obj.kind == JV_DICT && (key.kind != JV_LIST && key.kind != JV_DICT))
        return jdict_get(r, obj.dict, key);
    return NULL;
}

bool jinja_getattr(struct jrun *r, struct jval obj, struct jstr name, struct jval *out)
{
    if (obj.kind == JV_UNDEFINED)
        return jrun_fail_undefined(r, obj);
    if (obj.kind == JV_NAMESPACE) {
        const struct jval *v = jdict_get_str(r, obj.dict, name);
        *out = v ? *v : missing_attr(r, obj, name);
        return !r->st;
    }
    if (find_attr(r, obj, name, out))
        return true;
    const struct jval *v = r->st ? NULL : find_key(r, obj, jv_str(name));
    *out = v ? *v : missing_attr(r, obj, name);
    return !r->st;
}

static bool index_str(struct jrun *r, struct jstr s, int64_t idx, struct jval *out)
{
    int64_t n = (int64_t)utf8_count(s.s, s.len);
    if (!jrun_work(r, s.len / 16))
        return false;
    if (idx < 0)
        idx += n;
    if (idx < 0 || idx >= n) {
        *out = jval_undefined(r, "str object has no element %lld", (long long)idx);
        return !r->st;
    }
    size_t at = 0, step;
    for (; idx >= 0; idx--, at += step)
        utf8_next(s.s + at, s.len - at, &step);
    *out = jv_str((struct jstr){.s = s.s + at - step, .len = step});
    return true;
}

bool jinja_getitem(struct jrun *r, struct jval obj, struct jval key, struct jval *out)
{
    if (obj.kind == JV_UNDEFINED)
        return jrun_fail_undefined(r, obj);
    if (key.kind == JV_INT || key.kind == JV_BOOL) {
        int64_t idx = jv_integer(key);
        if (obj.kind == JV_STRING)
            return index_str(r, obj.str, idx, out);
        if (jv_is_list(obj) && !obj.list->lazy) {
            if (idx < 0)
                idx += (int64_t)obj.list->n;
            bool there = idx >= 0 && (uint64_t)idx < obj.list->n;
            *out = there ? obj.list->items[idx]
                         : jval_undefined(r, "%s object has no element %lld", jv_type_name(obj),
                                          (long long)jv_integer(key));
            return !r->st;
        }
    }
    const struct jval *v = find_key(r, obj, key);
    if (r->st)
        return false;
    if (v) {
        *out = *v;
        return true;
    }
    if (key.kind == JV_STRING && obj.kind != JV_NAMESPACE && find_attr(r, obj, key.str, out))
        return true;
    if (key.kind == JV_STRING)
        *out = missing_attr(r, obj, key.str);
    else
        *out = jval_undefined(r, "%s object has no such element", jv_type_name(obj));
    return !r->st;
}

/* Python's slice.indices. */
static bool slice_bounds(struct jrun *r, const struct jval bounds[3], int64_t n, int64_t out[3])
{
    int64_t given[3];
    for (size_t i = 0; i < 3; i++) {
        if (bounds[i].kind == JV_UNDEFINED)
            return jrun_fail_undefined(r, bounds[i]);
        if (bounds[i].kind != JV_NONE && bounds[i].kind != JV_INT && bounds[i].kind != JV_BOOL)
            return jrun_fail(r, STATUS_INVALID, "slice indices must be integers or none");
        given[i] = bounds[i].kind == JV_NONE ? 0 : jv_integer(bounds[i]);
    }
    int64_t step = bounds[2].kind == JV_NONE ? 1 : given[2];
    if (step == 0)
        return jrun_fail(r, STATUS_INVALID, "slice step cannot be zero");
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
    for (size_t i = 0; i < 2; i++) {
        if (bounds[i].kind == JV_NONE) {
            out[i] = (i == 0) == (step > 0) ? low : high;
            continue;
        }
        int64_t at = given[i];
        if (at < 0)
            at = at < -n ? low : at + n;
        out[i] = at < low ? low : at > high ? high : at;
    }
    out[2] = step;
    return true;
}

/* The characters of a slice with a step other than 1. */
static bool slice_chars(struct jrun *r, struct jval obj, const int64_t at[3], struct jval *out)
{
    struct jlist *chars;
    struct buf b;
    if (!jv_items(r, obj, &chars))
        return false;
    jrun_buf(r, &b);
    for (int64_t i = at[0]; at[2] > 0 ? i < at[1] : i > at[1];) {
        buf_put(&b, chars->items[i].str.s, chars->items[i].str.len);
        if (__builtin_add_overflow(i, at[2], &i))
            break;
    }
    return jrun_take(r, &b, out);
}

static bool slice_str(struct jrun *r, struct jval obj, const int64_t at[3], struct jval *out)
{
    struct jstr s = obj.str;
    if (at[2] != 1)
        return slice_chars(r, obj, at, out);
    size_t start = 0, step;
    int64_t i = 0;
    for (; i < at[0] && start < s.len; i++, start += step)
        utf8_next(s.s + start, s.len - start, &step);
    size_t end = start;
    for (; i < at[1] && end < s.len; i++, end += step)
        utf8_next(s.s + end, s.len - end, &step);
    *out = jv_str((struct jstr){.s = s.s + start, .len = end - start});
    return jrun_work(r, end / 16);
}

bool jinja_slice(struct jrun *r, struct jval obj, const struct jval bounds[3], struct jval *out)
{
    int64_t at[3];
    if (obj.kind == JV_UNDEFINED)
        return jrun_fail_undefined(r, obj);
    if (obj.kind != JV_STRING && (!jv_is_list(obj) || obj.list->lazy)) {
        *out = jval_undefined(r, "%s object cannot be sliced", jv_type_name(obj));
        return !r->st;
    }
    int64_t n = (int64_t)(obj.kind == JV_STRING ? utf8_count(obj.str.s, obj.str.len) : obj.list->n);
    if (!slice_bounds(r, bounds, n, at))
        return false;
    if (obj.kind == JV_STRING)
        return slice_str(r, obj, at, out);
    struct jlist *list = jlist_new(r);
    if (!list)
        return false;
    for (int64_t i = at[0]; at[2] > 0 ? i < at[1] : i > at[1];) {
        if (!jlist_add(r, list, obj.list->items[i]))
            return false;
        if (__builtin_add_overflow(i, at[2], &i))
            break;
    }
    *out = jv_list(list);
    out->kind = obj.kind;
    return true;
}
