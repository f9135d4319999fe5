/* Filters on sequences. Sorting is a merge sort (stable, n log n); unique compares with what it has
 * kept, which the work budget bounds. */
#include "server/base/check.h"
#include "server/text/jinja/filters.h"
#include "server/text/jinja/text.h"
#include "server/text/utf8.h"

#include <string.h>

bool jfilter_length(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    (void)args;
    if (v.kind == JV_STRING)
        *out = jv_int((int64_t)utf8_count(v.str.s, v.str.len));
    else if (jv_is_list(v) && !v.list->lazy)
        *out = jv_int((int64_t)v.list->n);
    else if (v.kind == JV_DICT)
        *out = jv_int((int64_t)v.dict->n);
    else if (v.kind == JV_UNDEFINED)
        *out = jv_int(0);
    else if (v.kind == JV_LOOP)
        *out = jv_int((int64_t)v.loop->items->n);
    else
        return jrun_fail(r, STATUS_INVALID, "object of type '%s' has no len()", jv_type_name(v));
    return jrun_work(r, 1 + (v.kind == JV_STRING ? v.str.len / 16 : 0));
}

static struct jval lazy(struct jlist *list)
{
    list->lazy = true;
    return jv_list(list);
}

/* "a.b.0": the value's attribute path, each part as a[b]. */
static bool get_path(struct jrun *r, struct jval v, struct jval path, struct jval *out)
{
    *out = v;
    if (path.kind == JV_INT)
        return jinja_getitem(r, v, path, out);
    if (path.kind != JV_STRING)
        return jrun_fail(r, STATUS_INVALID, "an attribute must be a string or an integer");
    struct jstr rest = path.str;
    for (;;) {
        const char *dot = rest.len ? memchr(rest.s, '.', rest.len) : NULL;
        struct jstr part = rest;
        if (dot)
            part.len = (size_t)(dot - rest.s);
        bool digits = part.len > 0 && part.len < 10;
        int64_t idx = 0;
        for (size_t i = 0; digits && i < part.len; i++) {
            digits = part.s[i] >= '0' && part.s[i] <= '9';
            idx = idx * 10 + (part.s[i] - '0');
        }
        if (!jinja_getitem(r, *out, digits ? jv_int(idx) : jv_str(part), out))
            return false;
        if (!dot)
            return true;
        rest.len -= part.len + 1;
        rest.s = dot + 1;
    }
}

static bool get_named_path(struct jrun *r, struct jval v, const struct jval *path, struct jval *out)
{
    *out = v;
    return !path || path->kind == JV_NONE || get_path(r, v, *path, out);
}

bool jfilter_join(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jlist *list;
    struct jstr sep = JSTR("");
    const struct jval *given = jargs_get(args, 0, "d"), *path = jargs_get(args, 1, "attribute");
    struct buf b;
    if (!jv_items(r, v, &list) || (given && !jv_to_str(r, *given, &sep)))
        return false;
    jrun_buf(r, &b);
    bool ok = true;
    for (size_t i = 0; ok && i < list->n; i++) {
        struct jval item;
        if (i)
            buf_put(&b, sep.s, sep.len);
        ok = get_named_path(r, list->items[i], path, &item) && jv_put_str(r, item, &b);
    }
    return jrun_take(r, &b, out) && ok;
}

bool jfilter_list(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jlist *list;
    (void)args;
    if (!jv_items(r, v, &list))
        return false;
    *out = jv_list(list);
    return true;
}

bool jfilter_items(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jlist *empty;
    (void)args;
    if (v.kind == JV_UNDEFINED) {
        empty = jlist_new(r);
        if (empty)
            *out = lazy(empty);
        return empty != NULL;
    }
    if (v.kind != JV_DICT)
        return jrun_fail(r, STATUS_INVALID, "items: can only get item pairs from a mapping");
    if (!jinja_method_call(r, v, JSTR("items"), &(struct jargs){0}, out))
        return false;
    *out = lazy(out->list);
    return true;
}

/* What things are sorted and compared by: the value at the path, strings without case. */
static bool sort_key(struct jrun *r, struct jval v, const struct jval *path, bool with_case,
                     struct jval *out)
{
    if (!get_named_path(r, v, path, out))
        return false;
    if (out->kind == JV_STRING && !with_case)
        return jtext_case(r, out->str, JTEXT_LOWER, out);
    return true;
}

struct keyed {
    struct jval key, value;
};

/* after: -1 when a later item must be smaller to go before (ascending), 1 for descending. */
static bool merge_sort(struct jrun *r, struct keyed *items, size_t n, bool descending)
{
    struct keyed *spare = jrun_alloc(r, (n + 1) * sizeof(*spare));
    if (!spare)
        return false;
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t start = 0; start < n; start += 2 * width) {
            size_t mid = MIN(start + width, n), end = MIN(start + 2 * width, n);
            size_t a = start, b = mid;
            for (size_t to = start; to < end; to++) {
                int order = 0;
                if (a < mid && b < end && !jv_compare(r, items[a].key, items[b].key, &order))
                    return false;
                bool left = a < mid && (b == end || (descending ? order >= 0 : order <= 0));
                spare[to] = left ? items[a++] : items[b++];
            }
        }
        memcpy(items, spare, n * sizeof(*items));
        if (!jrun_work(r, n))
            return false;
    }
    return true;
}

struct sort_by {
    const struct jval *path;
    bool with_case, descending;
};

static bool sorted(struct jrun *r, const struct jlist *list, const struct sort_by *by,
                   struct jval *out)
{
    struct keyed *items = jrun_alloc(r, (list->n + 1) * sizeof(*items));
    struct jlist *result = jlist_new(r);
    if (!items || !result)
        return false;
    for (size_t i = 0; i < list->n; i++) {
        items[i].value = list->items[i];
        if (!sort_key(r, list->items[i], by->path, by->with_case, &items[i].key))
            return false;
    }
    if (!merge_sort(r, items, list->n, by->descending))
        return false;
    for (size_t i = 0; i < list->n; i++) {
        if (!jlist_add(r, result, items[i].value))
            return false;
    }
    *out = jv_list(result);
    return true;
}

bool jfilter_sort(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jlist *list;
    struct sort_by by = {.path = jargs_get(args, 2, "attribute"),
                         .with_case = jargs_bool(args, 1, "case_sensitive", false),
                         .descending = jargs_bool(args, 0, "reverse", false)};
    return jv_items(r, v, &list) && sorted(r, list, &by, out);
}

bool jfilter_dictsort(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jstr by_what;
    struct jval pairs, idx;
    if (v.kind != JV_DICT)
        return jrun_fail(r, STATUS_INVALID, "dictsort works on a mapping, not '%s'",
                         jv_type_name(v));
    if (!jargs_str(r, args, 1, "by", JSTR("key"), &by_what) ||
        !jinja_method_call(r, v, JSTR("items"), &(struct jargs){0}, &pairs))
        return false;
    idx = jv_int(jstr_is(by_what, "value"));
    struct sort_by by = {.path = &idx,
                         .with_case = jargs_bool(args, 0, "case_sensitive", false),
                         .descending = jargs_bool(args, 2, "reverse", false)};
    return sorted(r, pairs.list, &by, out);
}

/* The arguments after the first n. */
static struct jargs rest_of(const struct jargs *args, size_t n)
{
    struct jargs rest = *args;
    n = MIN(n, args->n_pos);
    if (n)
        rest.pos += n;
    rest.n_pos -= n;
    return rest;
}

static bool map_one(struct jrun *r, struct jval item, const struct jargs *args, int filter,
                    struct jval *out)
{
    const struct jval *path = jargs_get(args, SIZE_MAX, "attribute");
    const struct jval *missing = jargs_get(args, SIZE_MAX, "default");
    struct jargs rest = rest_of(args, 1);
    if (!path)
        return jinja_filter_call(r, filter, item, &rest, out);
    if (!get_path(r, item, *path, out))
        return false;
    if (out->kind == JV_UNDEFINED && missing)
        *out = *missing;
    return true;
}

bool jfilter_map(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jlist *list, *result = jlist_new(r);
    int filter = -1;
    if (!result || !jv_items(r, v, &list))
        return false;
    if (!jargs_get(args, SIZE_MAX, "attribute")) {
        if (!args->n_pos || args->pos[0].kind != JV_STRING)
            return jrun_fail(r, STATUS_INVALID, "map requires a filter argument");
        filter = jinja_filter_find(args->pos[0].str);
        if (filter < 0)
            return jrun_fail(r, STATUS_UNSUPPORTED, "there is no filter '%.*s'",
                             (int)MIN(args->pos[0].str.len, 60), args->pos[0].str.s);
    }
    for (size_t i = 0; i < list->n; i++) {
        struct jval item;
        if (!map_one(r, list->items[i], args, filter, &item) || !jlist_add(r, result, item))
            return false;
    }
    *out = lazy(result);
    return true;
}

/* select, reject and their attr forms: with_path takes the first argument as the attribute. */
static bool choose(struct jrun *r, struct jval v, const struct jargs *args, bool with_path,
                   struct jval *out)
{
    struct jlist *list;
    bool keep_true = out->b;
    size_t at = with_path ? 1 : 0;
    struct jlist *result = jlist_new(r);
    struct jargs rest = rest_of(args, at + 1);
    int test = -1;
    if (!result || !jv_items(r, v, &list))
        return false;
    if (with_path && !args->n_pos)
        return jrun_fail(r, STATUS_INVALID, "selectattr and rejectattr need an attribute");
    if (args->n_pos > at) {
        if (args->pos[at].kind != JV_STRING || (test = jinja_test_find(args->pos[at].str)) < 0)
            return jrun_fail(r, STATUS_UNSUPPORTED, "there is no such test");
    }
    for (size_t i = 0; i < list->n; i++) {
        struct jval item = list->items[i];
        if (with_path && !get_path(r, item, args->pos[0], &item))
            return false;
        bool truth = jv_truth(item);
        if (test >= 0 && !jinja_test_call(r, test, item, &rest, &truth))
            return false;
        if (!jrun_work(r, 1) || (truth == keep_true && !jlist_add(r, result, list->items[i])))
            return false;
    }
    *out = lazy(result);
    return true;
}

bool jfilter_select(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    *out = jv_bool(true);
    return choose(r, v, args, false, out);
}

bool jfilter_reject(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    *out = jv_bool(false);
    return choose(r, v, args, false, out);
}

bool jfilter_selectattr(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    *out = jv_bool(true);
    return choose(r, v, args, true, out);
}

bool jfilter_rejectattr(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    *out = jv_bool(false);
    return choose(r, v, args, true, out);
}

static bool end_item(struct jrun *r, struct jval v, bool last, struct jval *out)
{
    struct jlist *list;
    if (last && v.kind == JV_LIST && v.list->lazy)
        return jrun_fail(r, STATUS_INVALID, "'generator' object is not reversible");
    if (!jv_items(r, v, &list))
        return false;
    *out = list->n ? list->items[last ? list->n - 1 : 0]
                   : jval_undefined(r, "No %s item, sequence was empty.", last ? "last" : "first");
    return !r->st;
}

bool jfilter_first(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    (void)args;
    return end_item(r, v, false, out);
}

bool jfilter_last(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    (void)args;
    return end_item(r, v, true, out);
}

bool jfilter_unique(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jlist *list, *result = jlist_new(r), *keys = jlist_new(r);
    const struct jval *path = jargs_get(args, 1, "attribute");
    bool with_case = jargs_bool(args, 0, "case_sensitive", false);
    if (!result || !keys || !jv_items(r, v, &list))
        return false;
    for (size_t i = 0; i < list->n; i++) {
        struct jval key;
        bool seen = false;
        if (!sort_key(r, list->items[i], path, with_case, &key) ||
            !jinja_contains(r, key, jv_list(keys), &seen))
            return false;
        if (!seen && (!jlist_add(r, keys, key) || !jlist_add(r, result, list->items[i])))
            return false;
    }
    *out = lazy(result);
    return true;
}

bool jfilter_sum(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jlist *list;
    const struct jval *path = jargs_get(args, 0, "attribute"), *start = jargs_get(args, 1, "start");
    if (!jv_items(r, v, &list))
        return false;
    *out = start ? *start : jv_int(0);
    for (size_t i = 0; i < list->n; i++) {
        struct jval item;
        if (!get_named_path(r, list->items[i], path, &item) ||
            !jinja_binary(r, JOP_ADD, *out, item, out))
            return false;
    }
    return true;
}

static bool extreme(struct jrun *r, struct jval v, const struct jargs *args, int wanted,
                    struct jval *out)
{
    struct jlist *list;
    struct jval best, key;
    const struct jval *path = jargs_get(args, 1, "attribute");
    bool with_case = jargs_bool(args, 0, "case_sensitive", false);
    if (!jv_items(r, v, &list))
        return false;
    *out = jval_undefined(r, "No aggregated item, sequence was empty.");
    for (size_t i = 0; i < list->n; i++) {
        int order = wanted;
        if (!sort_key(r, list->items[i], path, with_case, &key) ||
            (i && !jv_compare(r, key, best, &order)))
            return false;
        if (order == wanted) {
            best = key;
            *out = list->items[i];
        }
    }
    return !r->st;
}

bool jfilter_min(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    return extreme(r, v, args, -1, out);
}

bool jfilter_max(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    return extreme(r, v, args, 1, out);
}

bool jfilter_reverse(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jval step[3] = {jv_none(), jv_none(), jv_int(-1)};
    struct jlist *list;
    (void)args;
    if (v.kind == JV_STRING)
        return jinja_slice(r, v, step, out);
    if (!jv_items(r, v, &list) || !jinja_slice(r, jv_list(list), step, out))
        return false;
    *out = lazy(out->list);
    return true;
}

/* Lists of (key, items), in order of the key. */
bool jfilter_groupby(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jlist *list, *groups = jlist_new(r), *group = NULL;
    struct jval ordered, last = jv_none();
    struct sort_by by = {.path = jargs_get(args, 0, "attribute"),
                         .with_case = jargs_bool(args, 2, "case_sensitive", false)};
    if (!groups || !by.path || !jv_items(r, v, &list) || !sorted(r, list, &by, &ordered))
        return jrun_fail(r, STATUS_INVALID, "groupby needs an attribute");
    for (size_t i = 0; i < ordered.list->n; i++) {
        struct jval key, shown;
        bool same = false;
        if (!sort_key(r, ordered.list->items[i], by.path, by.with_case, &key) ||
            (group && !jv_equal(r, key, last, &same)))
            return false;
        if (!same) {
            struct jlist *pair = jlist_new(r);
            group = jlist_new(r);
            if (!pair || !group || !get_path(r, ordered.list->items[i], *by.path, &shown) ||
                !jlist_add(r, pair, shown) || !jlist_add(r, pair, jv_list(group)) ||
                !jlist_add(r, groups, (struct jval){.kind = JV_TUPLE, .list = pair}))
                return false;
            last = key;
        }
        if (!jlist_add(r, group, ordered.list->items[i]))
            return false;
    }
    *out = jv_list(groups);
    return true;
}

bool jfilter_attr(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out)
{
    struct jstr name;
    if (!jargs_str(r, args, 0, "name", JSTR(""), &name))
        return false;
    bool builtin = v.kind != JV_DICT || jinja_method_exists(v, name);
    if (builtin)
        return jinja_getattr(r, v, name, out);
    *out =
        jval_undefined(r, "'dict object' has no attribute '%.*s'", (int)MIN(name.len, 100), name.s);
    return !r->st;
}
