/* Expressions, from the inline if down to names and literals: one function for each level of
 * Jinja's precedence, each calling the next tighter one. `not`, comparisons chained as Python
 * chains them, and filters and tests behind a unary operand are where Jinja differs. */
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/text/jinja/ast.h"
#include "server/text/jinja/run.h"
#include "server/text/utf8.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct jnode *parse_or(struct jparser *p);
static struct jnode *parse_unary(struct jparser *p, bool with_filter);
static struct jnode *parse_postfix(struct jparser *p, struct jnode *node);
static struct jnode *parse_primary(struct jparser *p);

struct jnode *jparse_expression_no_if(struct jparser *p)
{
    return parse_or(p);
}

struct jnode *jparse_expression(struct jparser *p)
{
    if (!jparse_enter(p))
        return NULL;
    struct jnode *node = parse_or(p);
    while (!p->st && jparse_skip_name(p, "if")) {
        struct jnode *cond = jparse_node(p, JN_COND);
        if (!cond)
            return NULL;
        cond->b = node;
        cond->a = parse_or(p);
        if (jparse_skip_name(p, "else"))
            cond->c = jparse_expression(p);
        node = cond;
    }
    jparse_leave(p);
    return p->st ? NULL : node;
}

static struct jnode *join(struct jparser *p, enum jnode_kind kind, struct jnode *a, struct jnode *b)
{
    struct jnode *node = jparse_node(p, kind);
    if (!node)
        return NULL;
    node->a = a;
    node->b = b;
    return node;
}

static struct jnode *parse_binary(struct jparser *p, int level);

/* item op item op item: comparisons chain as in Python. */
static struct jnode *parse_compare(struct jparser *p)
{
    static const struct {
        const char *text;
        enum jop op;
    } ops[] = {{"==", JOP_EQ}, {"!=", JOP_NE}, {"<", JOP_LT},
               {"<=", JOP_LE}, {">", JOP_GT},  {">=", JOP_GE}};
    struct jnode *node = jparse_node(p, JN_COMPARE);
    if (!node)
        return NULL;
    struct jnodes list;
    jnodes_init(&list, &node->list);
    node->a = parse_binary(p, 0);
    while (!p->st) {
        struct jnode *operand = jparse_node(p, JN_OPERAND);
        if (!operand)
            return NULL;
        bool found = false;
        for (size_t i = 0; !found && i < ARRAY_COUNT(ops); i++) {
            operand->op = ops[i].op;
            found = jparse_skip_op(p, ops[i].text);
        }
        if (!found && jparse_skip_name(p, "in")) {
            operand->op = JOP_IN;
            found = true;
        } else if (!found && jparse_is_name(p, "not")) {
            struct jparser ahead = *p; /* `not` here can only begin `not in` */
            ahead.err = NULL;
            if (!jparse_advance(&ahead) || !jparse_is_name(&ahead, "in"))
                break;
            found = jparse_advance(p) && jparse_advance(p);
            operand->op = JOP_NOT_IN;
        }
        if (!found)
            break;
        operand->a = parse_binary(p, 0);
        jnodes_add(&list, operand);
    }
    return p->st ? NULL : node->list ? node : node->a;
}

static struct jnode *parse_not(struct jparser *p)
{
    if (!jparse_is_name(p, "not"))
        return parse_compare(p);
    if (!jparse_enter(p) || !jparse_advance(p))
        return NULL;
    struct jnode *node = join(p, JN_NOT, parse_not(p), NULL);
    jparse_leave(p);
    return node;
}

static struct jnode *parse_and(struct jparser *p)
{
    struct jnode *node = parse_not(p);
    while (!p->st && jparse_skip_name(p, "and"))
        node = join(p, JN_AND, node, parse_not(p));
    return node;
}

static struct jnode *parse_or(struct jparser *p)
{
    struct jnode *node = parse_and(p);
    while (!p->st && jparse_skip_name(p, "or"))
        node = join(p, JN_OR, node, parse_and(p));
    return node;
}

static struct jnode *parse_concat(struct jparser *p)
{
    struct jnode *first = parse_binary(p, 1);
    if (p->st || !jparse_is_op(p, "~"))
        return first;
    struct jnode *node = jparse_node(p, JN_CONCAT);
    if (!node)
        return NULL;
    struct jnodes list;
    jnodes_init(&list, &node->list);
    jnodes_add(&list, first);
    while (jparse_skip_op(p, "~")) {
        struct jnode *item = parse_binary(p, 1);
        if (!item)
            return NULL;
        jnodes_add(&list, item);
    }
    return p->st ? NULL : node;
}

/* Level 0: + -; between it and level 1 (* / // %) stands ~; level 2: **. */
static struct jnode *parse_binary(struct jparser *p, int level)
{
    static const struct {
        const char *text;
        enum jop op;
        int level;
    } ops[] = {{"+", JOP_ADD, 0},       {"-", JOP_SUB, 0}, {"*", JOP_MUL, 1}, {"/", JOP_DIV, 1},
               {"//", JOP_FLOORDIV, 1}, {"%", JOP_MOD, 1}, {"**", JOP_POW, 2}};
    struct jnode *node = level == 0   ? parse_concat(p)
                         : level == 1 ? parse_binary(p, 2)
                                      : parse_unary(p, true);
    for (bool found = true; found && !p->st;) {
        found = false;
        for (size_t i = 0; !found && i < ARRAY_COUNT(ops); i++) {
            if (ops[i].level != level || !jparse_skip_op(p, ops[i].text))
                continue;
            found = true;
            struct jnode *right = level == 0   ? parse_concat(p)
                                  : level == 1 ? parse_binary(p, 2)
                                               : parse_unary(p, true);
            node = join(p, JN_BINARY, node, right);
            if (node)
                node->op = ops[i].op;
        }
    }
    return p->st ? NULL : node;
}

static struct jnode *parse_unary(struct jparser *p, bool with_filter)
{
    struct jnode *node;
    bool is_neg = jparse_is_op(p, "-");
    if (!jparse_enter(p))
        return NULL;
    if (is_neg || jparse_is_op(p, "+")) {
        node = jparse_node(p, is_neg ? JN_NEG : JN_POS);
        if (!node || !jparse_advance(p))
            return NULL;
        node->a = parse_unary(p, false);
    } else {
        node = parse_primary(p);
    }
    node = parse_postfix(p, node);
    if (with_filter && !p->st)
        node = jparse_filters(p, node, false);
    jparse_leave(p);
    return p->st ? NULL : node;
}

struct jnode *jparse_primary_postfix(struct jparser *p)
{
    return parse_postfix(p, parse_primary(p));
}

/* The digits of \xHH, \uHHHH and \UHHHHHHHH. */
static size_t decode_hex(struct jstr s, size_t at, size_t digits, char *out)
{
    uint32_t cp = 0;
    for (size_t i = 0; i < digits; i++) {
        int v = at + i < s.len ? hex_digit(s.s[at + i]) : -1;
        if (v < 0)
            return 0;
        cp = cp << 4 | (uint32_t)v;
    }
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000))
        return 0;
    return utf8_put(cp, out);
}

/* Python's escapes; an unknown one keeps its backslash. */
static bool decode_string(struct jparser *p, struct jstr s, struct jstr *out)
{
    static const char from[] = "ntrabfv0\\'\"", to[] = "\n\t\r\a\b\f\v\0\\'\"";
    *out = s;
    if (!memchr(s.s, '\\', s.len))
        return true;
    char *copy = arena_alloc(p->arena, s.len + 1);
    if (!copy)
        return jparse_fail(p, STATUS_TOO_LARGE, "the template is too large");
    size_t n = 0;
    for (size_t i = 0; i < s.len; i++) {
        if (s.s[i] != '\\' || i + 1 == s.len) {
            copy[n++] = s.s[i];
            continue;
        }
        char c = s.s[++i];
        const char *known = memchr(from, c, sizeof(from) - 1);
        size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
        if (digits) {
            size_t made = decode_hex(s, i + 1, digits, copy + n);
            if (!made)
                return jparse_fail(p, STATUS_INVALID, "a bad \\%c escape in a string", c);
            n += made;
            i += digits;
        } else if (known) {
            copy[n++] = to[known - from];
        } else if (c != '\n') {
            copy[n++] = '\\';
            copy[n++] = c;
        }
    }
    *out = (struct jstr){.s = copy, .len = n};
    return true;
}

/* "a" "b" is one string. */
static bool parse_strings(struct jparser *p, struct jstr *out)
{
    if (!decode_string(p, p->tok.text, out) || !jparse_advance(p))
        return false;
    while (p->tok.kind == JT_STRING) {
        struct jstr more;
        if (!decode_string(p, p->tok.text, &more))
            return false;
        char *both = arena_alloc(p->arena, out->len + more.len + 1);
        if (!both)
            return jparse_fail(p, STATUS_TOO_LARGE, "the template is too large");
        memcpy(both, out->s, out->len);
        memcpy(both + out->len, more.s, more.len);
        *out = (struct jstr){.s = both, .len = out->len + more.len};
        if (!jparse_advance(p))
            return false;
    }
    return true;
}

static bool parse_number(struct jparser *p, struct jval *out)
{
    char text[64];
    size_t n = 0;
    for (size_t i = 0; i < p->tok.text.len; i++) {
        if (p->tok.text.s[i] == '_')
            continue;
        if (n == sizeof(text) - 1)
            return jparse_fail(p, STATUS_INVALID, "a number is too long");
        text[n++] = p->tok.text.s[i];
    }
    text[n] = '\0';
    errno = 0;
    *out = p->tok.kind == JT_INT ? jv_int(strtoll(text, NULL, 10)) : jv_float(strtod(text, NULL));
    if (p->tok.kind == JT_INT && errno)
        return jparse_fail(p, STATUS_INVALID, "the integer %s is too large", text);
    return jparse_advance(p);
}

static bool parse_name(struct jparser *p, struct jnode *node)
{
    struct jstr name = p->tok.text;
    node->kind = JN_CONST;
    if (jstr_is(name, "true") || jstr_is(name, "True"))
        node->value = jv_bool(true);
    else if (jstr_is(name, "false") || jstr_is(name, "False"))
        node->value = jv_bool(false);
    else if (jstr_is(name, "none") || jstr_is(name, "None"))
        node->value = jv_none();
    else
        node->kind = JN_NAME;
    node->name = name;
    return jparse_advance(p);
}

/* Items up to `close`, after its opening bracket. */
static bool parse_items(struct jparser *p, const char *close, bool pairs, struct jnode **out)
{
    struct jnodes list;
    jnodes_init(&list, out);
    while (!jparse_skip_op(p, close)) {
        if (*out && !jparse_expect_op(p, ","))
            return false;
        if (*out && jparse_skip_op(p, close))
            break;
        struct jnode *item = jparse_node(p, pairs ? JN_PAIR : JN_ARG);
        if (!item || !(item->a = jparse_expression(p)))
            return false;
        if (pairs && (!jparse_expect_op(p, ":") || !(item->b = jparse_expression(p))))
            return false;
        jnodes_add(&list, item);
    }
    return !p->st;
}

static struct jnode *parse_primary(struct jparser *p)
{
    struct jnode *node = jparse_node(p, JN_CONST);
    if (!node)
        return NULL;
    bool ok = true;
    switch (p->tok.kind) {
    case JT_NAME:
        ok = parse_name(p, node);
        break;
    case JT_STRING:
        node->value.kind = JV_STRING;
        ok = parse_strings(p, &node->value.str);
        break;
    case JT_INT:
    case JT_FLOAT:
        ok = parse_number(p, &node->value);
        break;
    default:
        if (jparse_skip_op(p, "(")) {
            node = jparse_tuple(p, true, true);
            ok = jparse_expect_op(p, ")");
        } else if (jparse_skip_op(p, "[")) {
            node->kind = JN_LIST;
            ok = parse_items(p, "]", false, &node->list);
        } else if (jparse_skip_op(p, "{")) {
            node->kind = JN_DICT;
            ok = parse_items(p, "}", true, &node->list);
        } else {
            ok = jparse_fail(p, STATUS_INVALID, "expected an expression, found '%.*s'",
                             (int)(p->tok.text.len < 60 ? p->tok.text.len : 60),
                             p->tok.text.s ? p->tok.text.s : "");
        }
    }
    return ok && !p->st ? node : NULL;
}

static bool is_tuple_end(const struct jparser *p)
{
    return p->tok.kind == JT_PRINT_END || p->tok.kind == JT_BLOCK_END || jparse_is_op(p, ")") ||
           jparse_is_op(p, "=");
}

/* One expression, or several with commas between: a tuple. */
struct jnode *jparse_tuple(struct jparser *p, bool with_if, bool in_parens)
{
    struct jnode *tuple = jparse_node(p, JN_TUPLE);
    if (!tuple || !jparse_enter(p))
        return NULL;
    struct jnodes list;
    jnodes_init(&list, &tuple->list);
    struct jnode *only = NULL;
    bool comma = false;
    while (!p->st && !is_tuple_end(p)) {
        struct jnode *item = jparse_node(p, JN_ARG);
        if (!item)
            return NULL;
        item->a = with_if ? jparse_expression(p) : parse_or(p);
        if (p->st)
            return NULL;
        only = item->a;
        jnodes_add(&list, item);
        if (!jparse_skip_op(p, ","))
            break;
        comma = true;
    }
    jparse_leave(p);
    if (!tuple->list && !in_parens)
        jparse_fail(p, STATUS_INVALID, "expected an expression");
    if (p->st)
        return NULL;
    return comma || !only ? tuple : only;
}

/* A name, name.attr (a namespace), or several names. */
struct jnode *jparse_target(struct jparser *p, bool one)
{
    struct jnode *tuple = jparse_node(p, JN_TUPLE);
    if (!tuple)
        return NULL;
    struct jnodes list;
    jnodes_init(&list, &tuple->list);
    bool comma = false, parens = !one && jparse_skip_op(p, "(");
    struct jnode *node = NULL;
    while (!p->st && p->tok.kind == JT_NAME && !jparse_is_name(p, "in")) {
        node = jparse_node(p, JN_NAME);
        struct jnode *item = jparse_node(p, JN_ARG);
        if (!node || !item || !jparse_expect_name(p, &node->name))
            return NULL;
        if (jparse_skip_op(p, ".")) {
            struct jnode *attr = join(p, JN_GETATTR, node, NULL);
            if (!attr || !jparse_expect_name(p, &attr->name))
                return NULL;
            node = attr;
        }
        item->a = node;
        jnodes_add(&list, item);
        if (!jparse_skip_op(p, ","))
            break;
        comma = true;
    }
    if (parens && !jparse_expect_op(p, ")"))
        return NULL;
    if (!node)
        jparse_fail(p, STATUS_INVALID, "expected a name to assign to");
    return p->st ? NULL : comma ? tuple : node;
}

bool jparse_call_args(struct jparser *p, struct jnode **out)
{
    struct jnodes list;
    jnodes_init(&list, out);
    bool named = false;
    while (!jparse_skip_op(p, ")")) {
        if (*out && !jparse_expect_op(p, ","))
            return false;
        if (*out && jparse_skip_op(p, ")"))
            break;
        if (jparse_is_op(p, "*") || jparse_is_op(p, "**"))
            return jparse_fail(p, STATUS_UNSUPPORTED, "'*' in the arguments of a call");
        struct jnode *arg = jparse_node(p, JN_ARG);
        if (!arg || !(arg->a = jparse_expression(p)))
            return false;
        if (arg->a->kind == JN_NAME && jparse_skip_op(p, "=")) {
            arg->name = arg->a->name;
            arg->a = jparse_expression(p);
            named = true;
        } else if (named) {
            return jparse_fail(p, STATUS_INVALID, "an argument without name follows a named one");
        }
        if (p->st)
            return false;
        jnodes_add(&list, arg);
    }
    return !p->st;
}

/* What stands between the brackets of a[...]: an index or a slice. */
static struct jnode *parse_subscript(struct jparser *p, struct jnode *obj)
{
    struct jnode *node = join(p, JN_GETITEM, obj, NULL);
    if (!node)
        return NULL;
    struct jnode **part[3] = {&node->b, &node->c, &node->d};
    size_t idx = 0;
    while (!p->st && !jparse_is_op(p, "]")) {
        if (jparse_skip_op(p, ":")) {
            node->kind = JN_SLICE;
            if (++idx == 3)
                jparse_fail(p, STATUS_INVALID, "a slice has three parts");
            continue;
        }
        if (*part[idx] || jparse_is_op(p, ","))
            jparse_fail(p, STATUS_INVALID, "expected ']'");
        else
            *part[idx] = jparse_expression(p);
    }
    if (node->kind == JN_GETITEM && !node->b)
        jparse_fail(p, STATUS_INVALID, "expected an index between '[' and ']'");
    return jparse_expect_op(p, "]") ? node : NULL;
}

static struct jnode *parse_dot(struct jparser *p, struct jnode *obj)
{
    struct jnode *node = join(p, JN_GETATTR, obj, NULL);
    if (!node)
        return NULL;
    if (p->tok.kind != JT_INT)
        return jparse_expect_name(p, &node->name) ? node : NULL;
    struct jnode *idx = jparse_node(p, JN_CONST);
    node->kind = JN_GETITEM;
    node->b = idx;
    return idx && parse_number(p, &idx->value) ? node : NULL;
}

static struct jnode *parse_call(struct jparser *p, struct jnode *func)
{
    struct jnode *node = join(p, JN_CALL, func, NULL);
    return node && jparse_call_args(p, &node->list) ? node : NULL;
}

/* a.b.c and a(b)(c) nest in the tree as they grow: each link counts as a level. */
static struct jnode *parse_postfix(struct jparser *p, struct jnode *node)
{
    uint32_t links = 0;
    while (!p->st && node) {
        if (jparse_skip_op(p, "."))
            node = parse_dot(p, node);
        else if (jparse_skip_op(p, "["))
            node = parse_subscript(p, node);
        else if (jparse_skip_op(p, "("))
            node = parse_call(p, node);
        else
            break;
        if (++links > JINJA_NEST_MAX)
            jparse_fail(p, STATUS_TOO_LARGE, "more than %u subscripts in a row", JINJA_NEST_MAX);
    }
    return p->st ? NULL : node;
}

static bool parse_dotted(struct jparser *p, struct jstr *name)
{
    if (!jparse_expect_name(p, name))
        return false;
    if (jparse_is_op(p, "."))
        return jparse_fail(p, STATUS_UNSUPPORTED, "dotted names of filters and tests");
    return true;
}

static struct jnode *parse_filter(struct jparser *p, struct jnode *value)
{
    struct jnode *node = join(p, JN_FILTER, value, NULL);
    if (!node || !parse_dotted(p, &node->name))
        return NULL;
    node->builtin = jinja_filter_find(node->name);
    if (node->builtin < 0)
        jparse_fail(p, STATUS_UNSUPPORTED, "there is no filter '%.*s'",
                    (int)(node->name.len < 60 ? node->name.len : 60), node->name.s);
    if (jparse_skip_op(p, "(") && !jparse_call_args(p, &node->list))
        return NULL;
    return p->st ? NULL : node;
}

static struct jnode *parse_test(struct jparser *p, struct jnode *value)
{
    bool negated = jparse_skip_name(p, "not");
    struct jnode *node = join(p, JN_TEST, value, NULL);
    if (!node || !parse_dotted(p, &node->name))
        return NULL;
    node->builtin = jinja_test_find(node->name);
    if (node->builtin < 0)
        jparse_fail(p, STATUS_UNSUPPORTED, "there is no test '%.*s'",
                    (int)(node->name.len < 60 ? node->name.len : 60), node->name.s);
    bool starts_value = (p->tok.kind == JT_NAME && !jparse_is_name(p, "else") &&
                         !jparse_is_name(p, "or") && !jparse_is_name(p, "and")) ||
                        p->tok.kind == JT_STRING || p->tok.kind == JT_INT ||
                        p->tok.kind == JT_FLOAT || jparse_is_op(p, "[") || jparse_is_op(p, "{");
    if (jparse_skip_op(p, "(")) {
        jparse_call_args(p, &node->list);
    } else if (starts_value) {
        if (jparse_is_name(p, "is"))
            jparse_fail(p, STATUS_INVALID, "tests cannot be chained with 'is'");
        node->list = jparse_node(p, JN_ARG);
        if (!node->list || !(node->list->a = jparse_primary_postfix(p)))
            return NULL;
    }
    if (negated && !p->st)
        node = join(p, JN_NOT, node, NULL);
    return p->st ? NULL : node;
}

/* Filters, tests and calls after a value. value NULL: the filters of a block; start_inline: the
 * first has no '|' before it. */
struct jnode *jparse_filters(struct jparser *p, struct jnode *value, bool start_inline)
{
    struct jnode *node = value;
    bool in_block = value == NULL;
    uint32_t links = 0;
    while (!p->st) {
        if (start_inline || jparse_skip_op(p, "|"))
            node = parse_filter(p, node);
        else if (!in_block && jparse_skip_name(p, "is"))
            node = parse_test(p, node);
        else if (!in_block && jparse_skip_op(p, "("))
            node = parse_call(p, node);
        else
            break;
        start_inline = false;
        if (++links > JINJA_NEST_MAX)
            jparse_fail(p, STATUS_TOO_LARGE, "more than %u filters in a row", JINJA_NEST_MAX);
    }
    return p->st ? NULL : node;
}
