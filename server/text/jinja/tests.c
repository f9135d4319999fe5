/* `x is name`: a table of names, each with what it asks of Python's types. A boolean is a number
 * but no integer, a string is iterable, and an undefined value may be asked about but not used. */
#include "server/base/check.h"
#include "server/text/jinja/run.h"
#include "server/text/utf8.h"

enum test {
    TEST_DEFINED,
    TEST_UNDEFINED,
    TEST_NONE,
    TEST_STRING,
    TEST_MAPPING,
    TEST_ITERABLE,
    TEST_SEQUENCE,
    TEST_NUMBER,
    TEST_INTEGER,
    TEST_FLOAT,
    TEST_BOOLEAN,
    TEST_TRUE,
    TEST_FALSE,
    TEST_CALLABLE,
    TEST_ODD,
    TEST_EVEN,
    TEST_DIVISIBLE,
    TEST_LOWER,
    TEST_UPPER,
    TEST_SAMEAS,
    TEST_BINARY /* the rest compare with their argument */
};

static const struct {
    const char *name;
    enum test test;
    enum jop op;
} tests[] = {{"defined", TEST_DEFINED, 0},
             {"undefined", TEST_UNDEFINED, 0},
             {"none", TEST_NONE, 0},
             {"string", TEST_STRING, 0},
             {"mapping", TEST_MAPPING, 0},
             {"iterable", TEST_ITERABLE, 0},
             {"sequence", TEST_SEQUENCE, 0},
             {"number", TEST_NUMBER, 0},
             {"integer", TEST_INTEGER, 0},
             {"float", TEST_FLOAT, 0},
             {"boolean", TEST_BOOLEAN, 0},
             {"true", TEST_TRUE, 0},
             {"false", TEST_FALSE, 0},
             {"callable", TEST_CALLABLE, 0},
             {"odd", TEST_ODD, 0},
             {"even", TEST_EVEN, 0},
             {"divisibleby", TEST_DIVISIBLE, 0},
             {"lower", TEST_LOWER, 0},
             {"upper", TEST_UPPER, 0},
             {"sameas", TEST_SAMEAS, 0},
             {"equalto", TEST_BINARY, JOP_EQ},
             {"eq", TEST_BINARY, JOP_EQ},
             {"==", TEST_BINARY, JOP_EQ},
             {"ne", TEST_BINARY, JOP_NE},
             {"!=", TEST_BINARY, JOP_NE},
             {"lt", TEST_BINARY, JOP_LT},
             {"lessthan", TEST_BINARY, JOP_LT},
             {"<", TEST_BINARY, JOP_LT},
             {"le", TEST_BINARY, JOP_LE},
             {"<=", TEST_BINARY, JOP_LE},
             {"gt", TEST_BINARY, JOP_GT},
             {"greaterthan", TEST_BINARY, JOP_GT},
             {">", TEST_BINARY, JOP_GT},
             {"ge", TEST_BINARY, JOP_GE},
             {">=", TEST_BINARY, JOP_GE},
             {"in", TEST_BINARY, JOP_IN}};

int jinja_test_find(struct jstr name)
{
    for (size_t i = 0; i < ARRAY_COUNT(tests); i++) {
        if (jstr_is(name, tests[i].name))
            return (int)i;
    }
    return -1;
}

/* str.islower and str.isupper: some letter, and none of the other case. */
static bool has_case(struct jrun *r, struct jval v, enum test test, bool *out)
{
    struct jstr s;
    struct jval same, other;
    struct jargs none = {0};
    if (!jv_to_str(r, v, &s))
        return false;
    struct jval text = jv_str(s);
    if (!jinja_method_call(r, text, test == TEST_LOWER ? JSTR("lower") : JSTR("upper"), &none,
                           &same) ||
        !jinja_method_call(r, text, test == TEST_LOWER ? JSTR("upper") : JSTR("lower"), &none,
                           &other))
        return false;
    *out = jstr_eq(same.str, s) && !jstr_eq(other.str, s);
    return true;
}

static bool test_number(struct jrun *r, struct jval v, const struct jargs *args, enum test test,
                        bool *out)
{
    int64_t by = 2;
    struct jval rest;
    if (test == TEST_DIVISIBLE && !jargs_int(r, args, 0, "num", 0, &by))
        return false;
    if (!jinja_binary(r, JOP_MOD, v, jv_int(by), &rest))
        return false;
    *out = jv_is_number(rest) && jv_number(rest) == (test == TEST_ODD ? 1 : 0);
    return true;
}

static bool test_sameas(struct jrun *r, struct jval v, const struct jargs *args, bool *out)
{
    const struct jval *other = jargs_get(args, 0, "other");
    if (!other)
        return jrun_fail(r, STATUS_INVALID, "the test 'sameas' needs an argument");
    *out = false;
    if (v.kind != other->kind)
        return true;
    if (jv_is_list(v) || v.kind >= JV_DICT)
        *out = v.dict == other->dict;
    else
        return jv_equal(r, v, *other, out);
    return true;
}

static bool test_binary(struct jrun *r, struct jval v, const struct jargs *args, int test,
                        bool *out)
{
    const struct jval *other = args->n_pos ? &args->pos[0] : NULL;
    struct jval result;
    if (!other)
        return jrun_fail(r, STATUS_INVALID, "the test '%s' needs an argument", tests[test].name);
    if (!jinja_binary(r, tests[test].op, v, *other, &result))
        return false;
    *out = jv_truth(result);
    return true;
}

static bool is_kind(struct jval v, enum test test)
{
    bool lazy = v.kind == JV_LIST && v.list->lazy;
    switch (test) {
    case TEST_DEFINED:
        return v.kind != JV_UNDEFINED;
    case TEST_UNDEFINED:
        return v.kind == JV_UNDEFINED;
    case TEST_NONE:
        return v.kind == JV_NONE;
    case TEST_STRING:
        return v.kind == JV_STRING;
    case TEST_MAPPING:
        return v.kind == JV_DICT;
    case TEST_ITERABLE:
        return jv_is_list(v) || v.kind == JV_DICT || v.kind == JV_STRING ||
               v.kind == JV_UNDEFINED || v.kind == JV_LOOP;
    case TEST_SEQUENCE:
        return (jv_is_list(v) && !lazy) || v.kind == JV_DICT || v.kind == JV_STRING;
    case TEST_NUMBER:
        return jv_is_number(v);
    case TEST_INTEGER:
        return v.kind == JV_INT;
    case TEST_FLOAT:
        return v.kind == JV_FLOAT;
    case TEST_BOOLEAN:
        return v.kind == JV_BOOL;
    case TEST_TRUE:
        return v.kind == JV_BOOL && v.b;
    case TEST_FALSE:
        return v.kind == JV_BOOL && !v.b;
    default:
        return v.kind == JV_FUNC || v.kind == JV_LOOP || v.kind == JV_UNDEFINED;
    }
}

bool jinja_test_call(struct jrun *r, int test, struct jval v, const struct jargs *args, bool *out)
{
    switch (tests[test].test) {
    case TEST_BINARY:
        return test_binary(r, v, args, test, out);
    case TEST_SAMEAS:
        return test_sameas(r, v, args, out);
    case TEST_ODD:
    case TEST_EVEN:
    case TEST_DIVISIBLE:
        return test_number(r, v, args, tests[test].test, out);
    case TEST_LOWER:
    case TEST_UPPER:
        return has_case(r, v, tests[test].test, out);
    default:
        *out = is_kind(v, tests[test].test);
        return true;
    }
}
