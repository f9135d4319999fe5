/* Arithmetic, containment. Integers have 64 bits; past that is an error, not a wrong number. */
#include "server/base/check.h"
#include "server/text/jinja/run.h"

#include <math.h>
#include <string.h>

static bool fail_types(struct jrun *r, const char *op, struct jval a, struct jval b)
{
    if (a.kind == JV_UNDEFINED || b.kind == JV_UNDEFINED)
        return jrun_fail_undefined(r, a.kind == JV_UNDEFINED ? a : b);
    return jrun_fail(r, STATUS_INVALID, "'%s' does not work on '%s' and '%s'", op, jv_type_name(a),
                     jv_type_name(b));
}

static bool fail_overflow(struct jrun *r)
{
    return jrun_fail(r, STATUS_INVALID, "an integer past 64 bits");
}

static bool add_strings(struct jrun *r, struct jstr a, struct jstr b, struct jval *out)
{
    char *s = jrun_alloc(r, a.len + b.len + 1);
    if (!s)
        return false;
    memcpy(s, a.s ? a.s : "", a.len);
    memcpy(s + a.len, b.s ? b.s : "", b.len);
    *out = jv_str((struct jstr){.s = s, .len = a.len + b.len});
    return jrun_work(r, 1 + (a.len + b.len) / 64);
}

static bool add_lists(struct jrun *r, struct jval a, struct jval b, struct jval *out)
{
    struct jlist *list = jlist_new(r);
    if (!list)
        return false;
    for (size_t i = 0; i < a.list->n + b.list->n; i++) {
        struct jval v = i < a.list->n ? a.list->items[i] : b.list->items[i - a.list->n];
        if (!jlist_add(r, list, v))
            return false;
    }
    *out = (struct jval){.kind = a.kind, .list = list};
    return true;
}

static bool repeat(struct jrun *r, struct jval v, int64_t times, struct jval *out)
{
    if (times < 0)
        times = 0;
    if (v.kind == JV_STRING) {
        struct buf b;
        if (v.str.len && times && !jrun_work(r, (uint64_t)times))
            return false;
        jrun_buf(r, &b);
        for (int64_t i = 0; v.str.len && i < times && !b.failed; i++)
            buf_put(&b, v.str.s, v.str.len);
        return jrun_take(r, &b, out);
    }
    struct jlist *list = jlist_new(r);
    for (int64_t i = 0; list && v.list->n && i < times; i++) {
        for (size_t k = 0; k < v.list->n; k++) {
            if (!jlist_add(r, list, v.list->items[k]))
                return false;
        }
    }
    *out = (struct jval){.kind = v.kind, .list = list};
    return list != NULL;
}

static bool int_power(struct jrun *r, int64_t base, int64_t exp, struct jval *out)
{
    if (exp < 0) {
        *out = jv_float(pow((double)base, (double)exp));
        return true;
    }
    int64_t result = 1;
    while (exp) {
        if ((exp & 1) && __builtin_mul_overflow(result, base, &result))
            return fail_overflow(r);
        exp >>= 1;
        if (exp && __builtin_mul_overflow(base, base, &base))
            return fail_overflow(r);
    }
    *out = jv_int(result);
    return true;
}

static bool int_divide(struct jrun *r, enum jop op, int64_t a, int64_t b, struct jval *out)
{
    if (b == 0)
        return jrun_fail(r, STATUS_INVALID, "division by zero");
    if (op == JOP_DIV) {
        *out = jv_float((double)a / (double)b);
        return true;
    }
    if (a == INT64_MIN && b == -1)
        return fail_overflow(r);
    int64_t q = a / b, rest = a % b;
    if (rest && (rest < 0) != (b < 0)) { /* Python rounds down */
        q--;
        rest += b;
    }
    *out = jv_int(op == JOP_MOD ? rest : q);
    return true;
}

static bool int_binary(struct jrun *r, enum jop op, int64_t a, int64_t b, struct jval *out)
{
    int64_t v = 0;
    bool overflow = false;
    switch (op) {
    case JOP_ADD:
        overflow = __builtin_add_overflow(a, b, &v);
        break;
    case JOP_SUB:
        overflow = __builtin_sub_overflow(a, b, &v);
        break;
    case JOP_MUL:
        overflow = __builtin_mul_overflow(a, b, &v);
        break;
    case JOP_POW:
        return int_power(r, a, b, out);
    default:
        return int_divide(r, op, a, b, out);
    }
    *out = jv_int(v);
    return overflow ? fail_overflow(r) : true;
}

static bool float_binary(struct jrun *r, enum jop op, double a, double b, struct jval *out)
{
    if (b == 0 && (op == JOP_DIV || op == JOP_FLOORDIV || op == JOP_MOD))
        return jrun_fail(r, STATUS_INVALID, "division by zero");
    double v = op == JOP_ADD   ? a + b
               : op == JOP_SUB ? a - b
               : op == JOP_MUL ? a * b
               : op == JOP_DIV ? a / b
               : op == JOP_POW ? pow(a, b)
                               : floor(a / b);
    if (op == JOP_MOD) {
        v = fmod(a, b);
        if (v != 0 && (v < 0) != (b < 0))
            v += b;
    }
    *out = jv_float(v);
    return true;
}

bool jinja_contains(struct jrun *r, struct jval item, struct jval in, bool *out)
{
    *out = false;
    if (in.kind == JV_STRING) {
        if (item.kind == JV_UNDEFINED)
            return jrun_fail_undefined(r, item);
        if (item.kind != JV_STRING)
            return jrun_fail(r, STATUS_INVALID, "'in <string>' needs a string, not '%s'",
                             jv_type_name(item));
        *out = item.str.len == 0 ||
               (in.str.len && memmem(in.str.s, in.str.len, item.str.s, item.str.len));
        return jrun_work(r, 1 + in.str.len / 16);
    }
    if (in.kind == JV_DICT) {
        if (item.kind == JV_LIST || item.kind == JV_DICT)
            return jrun_fail(r, STATUS_INVALID, "unhashable type: '%s'", jv_type_name(item));
        *out = jdict_get(r, in.dict, item) != NULL;
        return !r->st;
    }
    struct jlist *list;
    if (!jv_items(r, in, &list))
        return false;
    for (size_t i = 0; !*out && i < list->n; i++) {
        if (!jv_equal(r, list->items[i], item, out) || !jrun_work(r, 1))
            return false;
    }
    return true;
}

static bool compare(struct jrun *r, enum jop op, struct jval a, struct jval b, struct jval *out)
{
    bool truth = false;
    int order = 0;
    if (op == JOP_EQ || op == JOP_NE) {
        if (!jv_equal(r, a, b, &truth))
            return false;
        *out = jv_bool(truth == (op == JOP_EQ));
        return true;
    }
    if (op == JOP_IN || op == JOP_NOT_IN) {
        if (!jinja_contains(r, a, b, &truth))
            return false;
        *out = jv_bool(truth == (op == JOP_IN));
        return true;
    }
    if (!jv_compare(r, a, b, &order))
        return false;
    *out = jv_bool(op == JOP_LT   ? order < 0
                   : op == JOP_LE ? order <= 0
                   : op == JOP_GT ? order > 0
                                  : order >= 0);
    return true;
}

bool jinja_binary(struct jrun *r, enum jop op, struct jval a, struct jval b, struct jval *out)
{
    static const char *const names[] = {
        [JOP_ADD] = "+",       [JOP_SUB] = "-", [JOP_MUL] = "*", [JOP_DIV] = "/",
        [JOP_FLOORDIV] = "//", [JOP_MOD] = "%", [JOP_POW] = "**"};
    if (op >= JOP_EQ)
        return compare(r, op, a, b, out);
    if (jv_is_number(a) && jv_is_number(b)) {
        if (a.kind != JV_FLOAT && b.kind != JV_FLOAT)
            return int_binary(r, op, jv_integer(a), jv_integer(b), out);
        return float_binary(r, op, jv_number(a), jv_number(b), out);
    }
    if (op == JOP_ADD && a.kind == JV_STRING && b.kind == JV_STRING)
        return add_strings(r, a.str, b.str, out);
    if (op == JOP_ADD && jv_is_list(a) && a.kind == b.kind && !a.list->lazy && !b.list->lazy)
        return add_lists(r, a, b, out);
    bool repeats_a = a.kind == JV_STRING || (jv_is_list(a) && !a.list->lazy);
    bool repeats_b = b.kind == JV_STRING || (jv_is_list(b) && !b.list->lazy);
    if (op == JOP_MUL && repeats_a && (b.kind == JV_INT || b.kind == JV_BOOL))
        return repeat(r, a, jv_integer(b), out);
    if (op == JOP_MUL && repeats_b && (a.kind == JV_INT || a.kind == JV_BOOL))
        return repeat(r, b, jv_integer(a), out);
    return fail_types(r, names[op], a, b);
}
