/* Methods of strings, dicts, lists and loops. What would change a value in place is known by name
 * and refused, as the reference's immutable sandbox refuses it. */
#include "server/base/check.h"
#include "server/text/jinja/format.h"
#include "server/text/jinja/text.h"
#include "server/text/utf8.h"

#include <string.h>

enum method {
    M_STRIP,
    M_LSTRIP,
    M_RSTRIP,
    M_SPLIT,
    M_RSPLIT,
    M_SPLITLINES,
    M_STARTSWITH,
    M_ENDSWITH,
    M_REPLACE,
    M_UPPER,
    M_LOWER,
    M_TITLE,
    M_CAPITALIZE,
    M_JOIN,
    M_FIND,
    M_RFIND,
    M_COUNT,
    M_REMOVEPREFIX,
    M_REMOVESUFFIX,
    M_FORMAT,
    M_ISDIGIT,
    M_ISALPHA,
    M_ISALNUM,
    M_ISSPACE,
    M_ISUPPER,
    M_ISLOWER,
    M_GET,
    M_ITEMS,
    M_KEYS,
    M_VALUES,
    M_COPY,
    M_INDEX,
    M_CYCLE,
    M_CHANGED,
    M_REFUSED
};

static const struct {
    enum jkind kind;
    const char *name;
    enum method method;
} methods[] = {{JV_STRING, "strip", M_STRIP},
               {JV_STRING, "lstrip", M_LSTRIP},
               {JV_STRING, "rstrip", M_RSTRIP},
               {JV_STRING, "split", M_SPLIT},
               {JV_STRING, "rsplit", M_RSPLIT},
               {JV_STRING, "splitlines", M_SPLITLINES},
               {JV_STRING, "startswith", M_STARTSWITH},
               {JV_STRING, "endswith", M_ENDSWITH},
               {JV_STRING, "replace", M_REPLACE},
               {JV_STRING, "upper", M_UPPER},
               {JV_STRING, "lower", M_LOWER},
               {JV_STRING, "title", M_TITLE},
               {JV_STRING, "capitalize", M_CAPITALIZE},
               {JV_STRING, "join", M_JOIN},
               {JV_STRING, "find", M_FIND},
               {JV_STRING, "rfind", M_RFIND},
               {JV_STRING, "count", M_COUNT},
               {JV_STRING, "removeprefix", M_REMOVEPREFIX},
               {JV_STRING, "removesuffix", M_REMOVESUFFIX},
               {JV_STRING, "format", M_FORMAT},
               {JV_STRING, "isdigit", M_ISDIGIT},
               {JV_STRING, "isalpha", M_ISALPHA},
               {JV_STRING, "isalnum", M_ISALNUM},
               {JV_STRING, "isspace", M_ISSPACE},
               {JV_STRING, "isupper", M_ISUPPER},
               {JV_STRING, "islower", M_ISLOWER},
               {JV_DICT, "get", M_GET},
               {JV_DICT, "items", M_ITEMS},
               {JV_DICT, "keys", M_KEYS},
               {JV_DICT, "values", M_VALUES},
               {JV_DICT, "copy", M_COPY},
               {JV_LIST, "copy", M_COPY},
               {JV_LIST, "index", M_INDEX},
               {JV_LIST, "count", M_COUNT},
               {JV_TUPLE, "index", M_INDEX},
               {JV_TUPLE, "count", M_COUNT},
               {JV_LOOP, "cycle", M_CYCLE},
               {JV_LOOP, "changed", M_CHANGED},
               {JV_DICT, "clear", M_REFUSED},
               {JV_DICT, "pop", M_REFUSED},
               {JV_DICT, "popitem", M_REFUSED},
               {JV_DICT, "setdefault", M_REFUSED},
               {JV_DICT, "update", M_REFUSED},
               {JV_LIST, "append", M_REFUSED},
               {JV_LIST, "clear", M_REFUSED},
               {JV_LIST, "pop", M_REFUSED},
               {JV_LIST, "reverse", M_REFUSED},
               {JV_LIST, "insert", M_REFUSED},
               {JV_LIST, "sort", M_REFUSED},
               {JV_LIST, "extend", M_REFUSED},
               {JV_LIST, "remove", M_REFUSED},
               /* understood, not implemented: an error when called, not a missing attribute */
               {JV_STRING, "format_map", M_REFUSED},
               {JV_STRING, "encode", M_REFUSED},
               {JV_STRING, "translate", M_REFUSED},
               {JV_STRING, "index", M_REFUSED},
               {JV_STRING, "partition", M_REFUSED},
               {JV_STRING, "rpartition", M_REFUSED},
               {JV_STRING, "center", M_REFUSED},
               {JV_STRING, "ljust", M_REFUSED},
               {JV_STRING, "rjust", M_REFUSED},
               {JV_STRING, "zfill", M_REFUSED},
               {JV_STRING, "swapcase", M_REFUSED},
               {JV_STRING, "casefold", M_REFUSED}};

static int find_method(struct jval self, struct jstr name)
{
    if (self.kind == JV_LIST && self.list->lazy)
        return -1;
    for (size_t i = 0; i < ARRAY_COUNT(methods); i++) {
        if (methods[i].kind == self.kind && jstr_is(name, methods[i].name))
            return (int)methods[i].method;
    }
    return -1;
}

bool jinja_method_exists(struct jval self, struct jstr name)
{
    int m = find_method(self, name);
    return m >= 0 && m != M_REFUSED;
}

bool jinja_method_refused(struct jval self, struct jstr name)
{
    return find_method(self, name) == M_REFUSED;
}

static bool call_strip(struct jrun *r, struct jstr s, enum method m, const struct jargs *args,
                       struct jval *out)
{
    struct jstr chars;
    const struct jval *given = jargs_get(args, 0, "chars");
    bool blank = !given || given->kind == JV_NONE;
    if (!blank && !jargs_str(r, args, 0, "chars", JSTR(""), &chars))
        return false;
    if (!blank && !jrun_work(r, (uint64_t)s.len * (1 + chars.len / 4) / 8))
        return false;
    *out = jv_str(jtext_strip(s, blank ? NULL : &chars, m != M_RSTRIP, m != M_LSTRIP));
    return jrun_work(r, 1);
}

static bool call_split(struct jrun *r, struct jstr s, enum method m, const struct jargs *args,
                       struct jval *out)
{
    struct jstr sep;
    struct jtext_split_args how = {.right = m == M_RSPLIT};
    const struct jval *given = jargs_get(args, 0, "sep");
    if (given && given->kind != JV_NONE) {
        if (!jargs_str(r, args, 0, "sep", JSTR(""), &sep))
            return false;
        how.sep = &sep;
    }
    return jargs_int(r, args, 1, "maxsplit", -1, &how.max) && jtext_split(r, s, &how, out);
}

static bool has_affix(struct jstr s, struct jstr affix, bool at_end)
{
    return s.len >= affix.len &&
           memcmp(at_end ? s.s + s.len - affix.len : s.s, affix.s, affix.len) == 0;
}

/* startswith and endswith take one string or a tuple of them. */
static bool call_affix(struct jrun *r, struct jstr s, bool at_end, const struct jargs *args,
                       struct jval *out)
{
    struct jstr one;
    *out = jv_bool(false);
    if (args->n_pos && args->pos[0].kind == JV_TUPLE) {
        const struct jlist *list = args->pos[0].list;
        for (size_t i = 0; i < list->n; i++) {
            if (list->items[i].kind == JV_STRING && has_affix(s, list->items[i].str, at_end))
                *out = jv_bool(true);
        }
        return jrun_work(r, list->n);
    }
    if (args->n_pos != 1)
        return jrun_fail(r, STATUS_INVALID, "startswith and endswith take one argument");
    if (!jargs_str(r, args, 0, "prefix", JSTR(""), &one))
        return false;
    *out = jv_bool(has_affix(s, one, at_end));
    return true;
}

static bool call_remove_affix(struct jrun *r, struct jstr s, bool at_end, const struct jargs *args,
                              struct jval *out)
{
    struct jstr affix;
    if (!jargs_str(r, args, 0, "affix", JSTR(""), &affix))
        return false;
    if (has_affix(s, affix, at_end)) {
        s.len -= affix.len;
        s.s += at_end ? 0 : affix.len;
    }
    *out = jv_str(s);
    return true;
}

static bool call_replace(struct jrun *r, struct jstr s, const struct jargs *args, struct jval *out)
{
    struct jstr from_to[2];
    int64_t max;
    if (!jargs_get(args, 0, "old") || !jargs_get(args, 1, "new"))
        return jrun_fail(r, STATUS_INVALID, "replace takes two strings");
    return jargs_str(r, args, 0, "old", JSTR(""), &from_to[0]) &&
           jargs_str(r, args, 1, "new", JSTR(""), &from_to[1]) &&
           jargs_int(r, args, 2, "count", -1, &max) && jtext_replace(r, s, from_to, max, out);
}

/* find, rfind, count: positions are in characters. */
static bool call_search(struct jrun *r, struct jstr s, enum method m, const struct jargs *args,
                        struct jval *out)
{
    struct jstr what;
    if (args->n_pos != 1)
        return jrun_fail(r, STATUS_INVALID, "find, rfind and count take one string");
    if (!jargs_str(r, args, 0, "sub", JSTR(""), &what) || !jrun_work(r, 1 + s.len))
        return false;
    int64_t count = 0, at = -1;
    for (size_t i = 0; s.len - i >= what.len && i <= s.len;) {
        const char *hit = memmem(s.s + i, s.len - i, what.s, what.len);
        if (!hit)
            break;
        count++;
        if (at < 0 || m == M_RFIND)
            at = (int64_t)(hit - s.s);
        size_t next = (size_t)(hit - s.s) + (what.len ? what.len : 1);
        i = m == M_RFIND ? (size_t)(hit - s.s) + 1 : next;
        if (m == M_FIND || i > s.len)
            break;
    }
    if (m == M_COUNT)
        *out = jv_int(what.len ? count : (int64_t)utf8_count(s.s, s.len) + 1);
    else
        *out = jv_int(at < 0 ? -1 : (int64_t)utf8_count(s.s, (size_t)at));
    return true;
}

static bool call_join(struct jrun *r, struct jstr sep, const struct jargs *args, struct jval *out)
{
    struct jlist *list;
    struct buf b;
    if (args->n_pos != 1 || !jv_items(r, args->pos[0], &list))
        return jrun_fail(r, STATUS_INVALID, "join takes one iterable");
    jrun_buf(r, &b);
    bool ok = true;
    for (size_t i = 0; ok && i < list->n; i++) {
        if (i)
            buf_put(&b, sep.s, sep.len);
        if (list->items[i].kind != JV_STRING)
            ok = jrun_fail(r, STATUS_INVALID, "join: item %zu is '%s', not a string", i,
                           jv_type_name(list->items[i]));
        else
            buf_put(&b, list->items[i].str.s, list->items[i].str.len);
    }
    return jrun_take(r, &b, out) && ok;
}

static bool call_class(struct jrun *r, struct jstr s, enum method m, struct jval *out)
{
    bool all = s.len > 0;
    for (size_t i = 0, n; all && i < s.len; i += n) {
        uint32_t cp = utf8_next(s.s + i, s.len - i, &n);
        bool digit = cp < 0x80 ? cp >= '0' && cp <= '9' : cp_is_numeric(cp);
        if (m == M_ISSPACE)
            all = jtext_is_space(cp);
        else if (m == M_ISDIGIT)
            all = digit;
        else
            all = cp_is_letter(cp) || (m == M_ISALNUM && digit);
    }
    *out = jv_bool(all);
    return jrun_work(r, 1 + s.len / 8);
}

static bool call_string(struct jrun *r, struct jstr s, enum method m, const struct jargs *args,
                        struct jval *out)
{
    bool truth;
    switch (m) {
    case M_STRIP:
    case M_LSTRIP:
    case M_RSTRIP:
        return call_strip(r, s, m, args, out);
    case M_SPLIT:
    case M_RSPLIT:
        return call_split(r, s, m, args, out);
    case M_SPLITLINES:
        return jtext_splitlines(r, s, jargs_bool(args, 0, "keepends", false), out);
    case M_STARTSWITH:
    case M_ENDSWITH:
        return call_affix(r, s, m == M_ENDSWITH, args, out);
    case M_REMOVEPREFIX:
    case M_REMOVESUFFIX:
        return call_remove_affix(r, s, m == M_REMOVESUFFIX, args, out);
    case M_FORMAT:
        return jinja_format(r, s, args, out);
    case M_REPLACE:
        return call_replace(r, s, args, out);
    case M_UPPER:
        return jtext_case(r, s, JTEXT_UPPER, out);
    case M_LOWER:
        return jtext_case(r, s, JTEXT_LOWER, out);
    case M_TITLE:
        return jtext_case(r, s, JTEXT_TITLE, out);
    case M_CAPITALIZE:
        return jtext_case(r, s, JTEXT_CAPITALIZE, out);
    case M_JOIN:
        return call_join(r, s, args, out);
    case M_FIND:
    case M_RFIND:
    case M_COUNT:
        return call_search(r, s, m, args, out);
    case M_ISUPPER:
    case M_ISLOWER:
        if (!jinja_test_call(r, jinja_test_find(m == M_ISUPPER ? JSTR("upper") : JSTR("lower")),
                             jv_str(s), args, &truth))
            return false;
        *out = jv_bool(truth);
        return true;
    default:
        return call_class(r, s, m, out);
    }
}

static bool dict_list(struct jrun *r, const struct jdict *dict, enum method m, struct jval *out)
{
    struct jlist *list = jlist_new(r);
    for (size_t i = 0; list && i < dict->n; i++) {
        const struct jpair *pair = &dict->pairs[i];
        struct jval v = m == M_KEYS ? pair->key : pair->value;
        if (m == M_ITEMS) {
            struct jlist *two = jlist_new(r);
            if (!two || !jlist_add(r, two, pair->key) || !jlist_add(r, two, pair->value))
                return false;
            v = (struct jval){.kind = JV_TUPLE, .list = two};
        }
        if (!jlist_add(r, list, v))
            return false;
    }
    *out = jv_list(list);
    return list != NULL;
}

static bool call_dict(struct jrun *r, struct jval self, enum method m, const struct jargs *args,
                      struct jval *out)
{
    if (m == M_COPY) {
        *out = self; /* values never change: a copy is the value */
        return true;
    }
    if (m != M_GET)
        return dict_list(r, self.dict, m, out);
    const struct jval *key = jargs_get(args, 0, "key"), *missing = jargs_get(args, 1, "default");
    if (!key)
        return jrun_fail(r, STATUS_INVALID, "get takes a key");
    if (key->kind == JV_LIST || key->kind == JV_DICT)
        return jrun_fail(r, STATUS_INVALID, "unhashable type: '%s'", jv_type_name(*key));
    const struct jval *v = jdict_get(r, self.dict, *key);
    *out = v ? *v : missing ? *missing : jv_none();
    return !r->st;
}

static bool call_list(struct jrun *r, struct jval self, enum method m, const struct jargs *args,
                      struct jval *out)
{
    int64_t count = 0;
    if (m == M_COPY) {
        *out = self;
        return true;
    }
    if (args->n_pos != 1)
        return jrun_fail(r, STATUS_INVALID, "index and count take one argument");
    for (size_t i = 0; i < self.list->n; i++) {
        bool equal;
        if (!jv_equal(r, self.list->items[i], args->pos[0], &equal) || !jrun_work(r, 1))
            return false;
        count += equal;
        if (equal && m == M_INDEX) {
            *out = jv_int((int64_t)i);
            return true;
        }
    }
    *out = jv_int(count);
    return m == M_COUNT || jrun_fail(r, STATUS_INVALID, "index: the value is not in the list");
}

static bool call_loop(struct jrun *r, struct jloop *loop, enum method m, const struct jargs *args,
                      struct jval *out)
{
    if (m == M_CYCLE) {
        if (!args->n_pos)
            return jrun_fail(r, STATUS_INVALID, "no items for cycling given");
        *out = args->pos[loop->idx % args->n_pos];
        return true;
    }
    struct jlist *now = jlist_new(r);
    struct jval *kept = jrun_alloc(r, sizeof(*kept));
    for (size_t i = 0; now && i < args->n_pos; i++) {
        if (!jlist_add(r, now, args->pos[i]))
            return false;
    }
    if (!now || !kept)
        return false;
    *kept = jv_list(now);
    bool same = false;
    if (loop->last_changed && !jv_equal(r, *loop->last_changed, *kept, &same))
        return false;
    loop->last_changed = kept;
    *out = jv_bool(!same);
    return true;
}

bool jinja_method_call(struct jrun *r, struct jval self, struct jstr name, const struct jargs *args,
                       struct jval *out)
{
    enum method m = (enum method)find_method(self, name);
    for (size_t i = 0; i < args->n_pos; i++) {
        if (args->pos[i].kind == JV_UNDEFINED && self.kind == JV_STRING && m != M_FORMAT)
            return jrun_fail_undefined(r, args->pos[i]);
    }
    switch (self.kind) {
    case JV_STRING:
        return call_string(r, self.str, m, args, out);
    case JV_DICT:
        return call_dict(r, self, m, args, out);
    case JV_LOOP:
        return call_loop(r, self.loop, m, args, out);
    default:
        return call_list(r, self, m, args, out);
    }
}
