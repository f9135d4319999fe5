/* Statements. The grammar is Jinja's; what a sandboxed chat template cannot use (include, import,
 * extends, block, do, autoescape, trans) is refused by name. Nesting of the source is bounded here,
 * so that the evaluator's recursion is bounded by macro calls only. */
#include "server/text/jinja/ast.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool jparse_fail(struct jparser *p, enum status st, const char *fmt, ...)
{
    if (p->st)
        return false;
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    p->st = st;
    err_set(p->err, st, "chat template, line %u: %s", p->tok.line, text);
    return false;
}

struct jnode *jparse_node(struct jparser *p, enum jnode_kind kind)
{
    struct jnode *node = p->st ? NULL : arena_alloc(p->arena, sizeof(*node));
    if (!node) {
        jparse_fail(p, STATUS_TOO_LARGE, "the template is too large");
        return NULL;
    }
    node->kind = kind;
    node->line = p->tok.line;
    return node;
}

void jnodes_init(struct jnodes *list, struct jnode **head)
{
    *list = (struct jnodes){.tail = head};
}

void jnodes_add(struct jnodes *list, struct jnode *node)
{
    *list->tail = node;
    list->tail = &node->next;
}

bool jparse_advance(struct jparser *p)
{
    if (p->st)
        return false;
    p->tok = jlex_next(&p->lex);
    if (p->tok.kind == JT_ERROR)
        return jparse_fail(p, STATUS_INVALID, "%.*s", (int)p->tok.text.len, p->tok.text.s);
    return true;
}

bool jparse_is_op(const struct jparser *p, const char *op)
{
    return !p->st && p->tok.kind == JT_OP && jstr_is(p->tok.text, op);
}

bool jparse_is_name(const struct jparser *p, const char *name)
{
    return !p->st && p->tok.kind == JT_NAME && jstr_is(p->tok.text, name);
}

bool jparse_skip_op(struct jparser *p, const char *op)
{
    return jparse_is_op(p, op) && jparse_advance(p);
}

bool jparse_skip_name(struct jparser *p, const char *name)
{
    return jparse_is_name(p, name) && jparse_advance(p);
}

static bool unexpected(struct jparser *p, const char *wanted)
{
    static const char *const kinds[] = {
        [JT_DATA] = "text",        [JT_PRINT_BEGIN] = "'{{'", [JT_PRINT_END] = "'}}'",
        [JT_BLOCK_BEGIN] = "'{%'", [JT_BLOCK_END] = "'%}'",   [JT_END] = "the end of the template"};
    if (p->tok.text.len && p->tok.kind != JT_DATA)
        return jparse_fail(p, STATUS_INVALID, "expected %s, found '%.*s'", wanted,
                           (int)(p->tok.text.len < 60 ? p->tok.text.len : 60), p->tok.text.s);
    return jparse_fail(p, STATUS_INVALID, "expected %s, found %s", wanted,
                       kinds[p->tok.kind] ? kinds[p->tok.kind] : "an empty string");
}

bool jparse_expect_op(struct jparser *p, const char *op)
{
    if (p->st || jparse_skip_op(p, op))
        return !p->st;
    char wanted[16];
    snprintf(wanted, sizeof(wanted), "'%s'", op);
    return unexpected(p, wanted);
}

bool jparse_expect_name(struct jparser *p, struct jstr *name)
{
    if (p->st)
        return false;
    if (p->tok.kind != JT_NAME)
        return unexpected(p, "a name");
    *name = p->tok.text;
    return jparse_advance(p);
}

static bool expect_kind(struct jparser *p, enum jtoken_kind kind, const char *wanted)
{
    if (p->st)
        return false;
    if (p->tok.kind != kind)
        return unexpected(p, wanted);
    return jparse_advance(p);
}

static bool end_tag(struct jparser *p)
{
    return expect_kind(p, JT_BLOCK_END, "'%}'");
}

bool jparse_enter(struct jparser *p)
{
    if (p->nest == JINJA_NEST_MAX)
        return jparse_fail(p, STATUS_TOO_LARGE, "nested more than %u deep", JINJA_NEST_MAX);
    p->nest++;
    return !p->st;
}

void jparse_leave(struct jparser *p)
{
    p->nest--;
}

static struct jnode *parse_statement(struct jparser *p);

/* One of the names in a NULL-terminated list. */
static bool is_one_of(const struct jparser *p, const char *const *names)
{
    for (; *names; names++) {
        if (jparse_is_name(p, *names))
            return true;
    }
    return false;
}

/* Statements up to `{% name`, name one of `ends` (left as the current token), or, with ends NULL,
 * to the end of the template. */
static bool parse_body(struct jparser *p, const char *const *ends, struct jnode **out)
{
    struct jnodes list;
    jnodes_init(&list, out);
    if (!jparse_enter(p))
        return false;
    while (!p->st) {
        struct jnode *node = NULL;
        if (p->tok.kind == JT_END) {
            while (ends && ends[1])
                ends++; /* the last name is the one that closes */
            if (ends)
                jparse_fail(p, STATUS_INVALID, "the template ends before '%s'", ends[0]);
            break;
        }
        if (p->tok.kind == JT_DATA) {
            if ((node = jparse_node(p, JN_DATA)))
                node->value = jv_str(p->tok.text);
            jparse_advance(p);
        } else if (p->tok.kind == JT_PRINT_BEGIN) {
            node = jparse_node(p, JN_PRINT);
            if (node && jparse_advance(p))
                node->a = jparse_tuple(p, true, false);
            expect_kind(p, JT_PRINT_END, "'}}'");
        } else {
            expect_kind(p, JT_BLOCK_BEGIN, "a tag");
            if (!p->st && ends && is_one_of(p, ends))
                break;
            node = p->st ? NULL : parse_statement(p);
        }
        if (node && !p->st)
            jnodes_add(&list, node);
    }
    jparse_leave(p);
    return !p->st;
}

/* A body closed by exactly `{% name %}`. */
static bool parse_closed_body(struct jparser *p, const char *end, struct jnode **out)
{
    const char *const ends[] = {end, NULL};
    return parse_body(p, ends, out) && jparse_advance(p) && end_tag(p);
}

static struct jnode *parse_if(struct jparser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct jnode *top = jparse_node(p, JN_IF), *node = top;
    while (node && jparse_advance(p)) {
        node->a = jparse_tuple(p, false, false);
        if (!end_tag(p) || !parse_body(p, ends, &node->list))
            return NULL;
        if (jparse_is_name(p, "elif")) {
            node->orelse = jparse_node(p, JN_IF);
            node->flag = true;
            node = node->orelse;
            continue;
        }
        bool has_else = jparse_is_name(p, "else");
        if (!jparse_advance(p) || !end_tag(p))
            return NULL;
        return !has_else || parse_closed_body(p, "endif", &node->orelse) ? top : NULL;
    }
    return NULL;
}

static struct jnode *parse_for(struct jparser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    struct jnode *node = jparse_node(p, JN_FOR);
    if (!node || !jparse_advance(p) || !(node->a = jparse_target(p, false)))
        return NULL;
    if (!jparse_skip_name(p, "in")) {
        unexpected(p, "'in'");
        return NULL;
    }
    node->b = jparse_tuple(p, false, false);
    if (jparse_skip_name(p, "if"))
        node->c = jparse_expression(p);
    node->flag = jparse_skip_name(p, "recursive");
    p->loops++;
    bool ok = end_tag(p) && parse_body(p, ends, &node->list);
    p->loops--;
    bool has_else = ok && jparse_is_name(p, "else");
    if (!ok || !jparse_advance(p) || !end_tag(p))
        return NULL;
    return !has_else || parse_closed_body(p, "endfor", &node->orelse) ? node : NULL;
}

static struct jnode *parse_set(struct jparser *p)
{
    struct jnode *node = jparse_node(p, JN_SET);
    if (!node || !jparse_advance(p) || !(node->a = jparse_target(p, false)))
        return NULL;
    if (jparse_skip_op(p, "=")) {
        node->b = jparse_tuple(p, true, false);
        return end_tag(p) ? node : NULL;
    }
    node->kind = JN_SET_BLOCK;
    node->b = jparse_filters(p, NULL, false);
    return !p->st && end_tag(p) && parse_closed_body(p, "endset", &node->list) ? node : NULL;
}

/* `(a, b=1)` of a macro or call block. */
static bool parse_macro_params(struct jparser *p, struct jnode **out)
{
    struct jnodes list;
    jnodes_init(&list, out);
    if (!jparse_expect_op(p, "("))
        return false;
    bool defaults = false;
    while (!jparse_skip_op(p, ")")) {
        if (*out && !jparse_expect_op(p, ","))
            return false;
        if (*out && jparse_skip_op(p, ")"))
            break;
        struct jnode *param = jparse_node(p, JN_ARG);
        if (!param || !jparse_expect_name(p, &param->name))
            return false;
        if (jparse_skip_op(p, "=")) {
            param->a = jparse_expression(p);
            defaults = true;
        } else if (defaults) {
            return jparse_fail(p, STATUS_INVALID, "a parameter without default follows one with");
        }
        if (p->st)
            return false;
        jnodes_add(&list, param);
    }
    return !p->st;
}

static struct jnode *parse_macro(struct jparser *p)
{
    struct jnode *node = jparse_node(p, JN_MACRO);
    uint32_t loops = p->loops;
    p->loops = 0;
    if (!node || !jparse_advance(p) || !jparse_expect_name(p, &node->name) ||
        !parse_macro_params(p, &node->params) || !end_tag(p) ||
        !parse_closed_body(p, "endmacro", &node->list))
        return NULL;
    p->loops = loops;
    return node;
}

static struct jnode *parse_call_block(struct jparser *p)
{
    struct jnode *node = jparse_node(p, JN_CALL_BLOCK);
    struct jnode *caller = jparse_node(p, JN_MACRO);
    if (!node || !caller || !jparse_advance(p))
        return NULL;
    caller->name = JSTR("caller");
    node->b = caller;
    if (jparse_is_op(p, "(") && !parse_macro_params(p, &caller->params))
        return NULL;
    node->a = jparse_expression(p);
    if (node->a && node->a->kind != JN_CALL) {
        jparse_fail(p, STATUS_INVALID, "expected a call after 'call'");
        return NULL;
    }
    return end_tag(p) && parse_closed_body(p, "endcall", &caller->list) ? node : NULL;
}

static struct jnode *parse_filter_block(struct jparser *p)
{
    struct jnode *node = jparse_node(p, JN_FILTER_BLOCK);
    if (!node || !jparse_advance(p))
        return NULL;
    node->a = jparse_filters(p, NULL, true);
    return !p->st && end_tag(p) && parse_closed_body(p, "endfilter", &node->list) ? node : NULL;
}

static struct jnode *parse_with(struct jparser *p)
{
    struct jnode *node = jparse_node(p, JN_SCOPE);
    if (!node || !jparse_advance(p))
        return NULL;
    struct jnodes list;
    jnodes_init(&list, &node->params);
    while (!p->st && p->tok.kind != JT_BLOCK_END) {
        if (node->params && !jparse_expect_op(p, ","))
            return NULL;
        struct jnode *var = jparse_node(p, JN_ARG);
        if (!var || !jparse_expect_name(p, &var->name) || !jparse_expect_op(p, "=") ||
            !(var->a = jparse_expression(p)))
            return NULL;
        jnodes_add(&list, var);
    }
    return end_tag(p) && parse_closed_body(p, "endwith", &node->list) ? node : NULL;
}

static struct jnode *parse_generation(struct jparser *p)
{
    struct jnode *node = jparse_node(p, JN_SCOPE);
    if (!node || !jparse_advance(p) || !end_tag(p))
        return NULL;
    node->flag = p->marks = true;
    return parse_closed_body(p, "endgeneration", &node->list) ? node : NULL;
}

static struct jnode *parse_jump(struct jparser *p, enum jnode_kind kind)
{
    struct jnode *node = jparse_node(p, kind);
    if (!p->loops) {
        jparse_fail(p, STATUS_INVALID, "'%.*s' outside of a loop", (int)p->tok.text.len,
                    p->tok.text.s);
        return NULL;
    }
    return node && jparse_advance(p) && end_tag(p) ? node : NULL;
}

/* `print a, b` prints one after the other. */
static struct jnode *parse_print(struct jparser *p)
{
    struct jnode *node = jparse_node(p, JN_PRINT);
    struct jnode *both = jparse_node(p, JN_CONCAT);
    if (!node || !both || !jparse_advance(p))
        return NULL;
    struct jnodes list;
    jnodes_init(&list, &both->list);
    node->a = both;
    do {
        struct jnode *item = jparse_expression(p);
        if (!item)
            return NULL;
        jnodes_add(&list, item);
    } while (jparse_skip_op(p, ","));
    return end_tag(p) ? node : NULL;
}

static struct jnode *parse_statement(struct jparser *p)
{
    static const char *const refused[] = {"include", "import",     "from",  "extends", "block",
                                          "do",      "autoescape", "trans", "debug",   NULL};
    if (jparse_is_name(p, "if"))
        return parse_if(p);
    if (jparse_is_name(p, "for"))
        return parse_for(p);
    if (jparse_is_name(p, "set"))
        return parse_set(p);
    if (jparse_is_name(p, "macro"))
        return parse_macro(p);
    if (jparse_is_name(p, "call"))
        return parse_call_block(p);
    if (jparse_is_name(p, "filter"))
        return parse_filter_block(p);
    if (jparse_is_name(p, "with"))
        return parse_with(p);
    if (jparse_is_name(p, "generation"))
        return parse_generation(p);
    if (jparse_is_name(p, "break"))
        return parse_jump(p, JN_BREAK);
    if (jparse_is_name(p, "continue"))
        return parse_jump(p, JN_CONTINUE);
    if (jparse_is_name(p, "print"))
        return parse_print(p);
    if (is_one_of(p, refused))
        jparse_fail(p, STATUS_UNSUPPORTED, "the statement '%.*s' is not supported",
                    (int)p->tok.text.len, p->tok.text.s);
    else
        unexpected(p, "a statement");
    return NULL;
}

struct jnode *jinja_parse(struct jparser *p, const char *text, size_t len)
{
    jlex_init(&p->lex, text, len);
    struct jnode *top = jparse_node(p, JN_SCOPE);
    if (!top || !jparse_advance(p) || !parse_body(p, NULL, &top->list))
        return NULL;
    return top;
}
