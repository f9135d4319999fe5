/* The parsed template: nodes in an arena, linked by pointers, never changed after the parse. */
#ifndef RS_TEXT_JINJA_AST_H
#define RS_TEXT_JINJA_AST_H

#include "server/base/arena.h"
#include "server/base/errtext.h"
#include "server/text/jinja/lex.h"
#include "server/text/jinja/value.h"

#define JINJA_AST_BYTES_MAX ((size_t)64 << 20)
#define JINJA_NEST_MAX      100u /* nested expressions and statements in the source */

enum jnode_kind {
    /* expressions */
    JN_CONST,   /* value */
    JN_NAME,    /* name */
    JN_LIST,    /* list: items */
    JN_TUPLE,   /* list: items */
    JN_DICT,    /* list: JN_PAIR a: b */
    JN_PAIR,    /* a: b */
    JN_GETATTR, /* a.name */
    JN_GETITEM, /* a[b] */
    JN_SLICE,   /* a[b:c:d] */
    JN_CALL,    /* a(list of JN_ARG) */
    JN_ARG,     /* name (or empty) = a */
    JN_FILTER,  /* a|name(list); a NULL in a filter block */
    JN_TEST,    /* a is name(list) */
    JN_COND,    /* b if a else c (c may be NULL) */
    JN_AND,
    JN_OR,
    JN_NOT,
    JN_NEG,
    JN_POS,
    JN_BINARY,  /* a op b */
    JN_CONCAT,  /* list */
    JN_COMPARE, /* a, list of JN_OPERAND */
    JN_OPERAND, /* op a */
    /* statements */
    JN_DATA,         /* value */
    JN_PRINT,        /* a */
    JN_IF,           /* a; list; orelse: a body, or with flag the JN_IF of an elif */
    JN_FOR,          /* a target, b iterable, c filter; list; orelse; flag recursive */
    JN_SET,          /* a target = b */
    JN_SET_BLOCK,    /* a target; list; b filters or NULL */
    JN_MACRO,        /* name; params JN_ARG (a default or NULL); list */
    JN_CALL_BLOCK,   /* a call; b JN_MACRO of the caller */
    JN_FILTER_BLOCK, /* a filters; list */
    JN_SCOPE,        /* params JN_ARG; list: with, generation (flag) */
    JN_BREAK,
    JN_CONTINUE
};

enum jop {
    JOP_ADD,
    JOP_SUB,
    JOP_MUL,
    JOP_DIV,
    JOP_FLOORDIV,
    JOP_MOD,
    JOP_POW,
    JOP_EQ,
    JOP_NE,
    JOP_LT,
    JOP_LE,
    JOP_GT,
    JOP_GE,
    JOP_IN,
    JOP_NOT_IN
};

struct jnode {
    enum jnode_kind kind;
    enum jop op;
    uint32_t line;
    bool flag;
    int builtin; /* filter or test number */
    struct jstr name;
    struct jval value;
    struct jnode *a, *b, *c, *d;
    struct jnode *list, *params, *orelse;
    struct jnode *next; /* in the list this node is in */
};

/* A list under construction. */
struct jnodes {
    struct jnode *head, **tail;
};

struct jparser {
    struct jlex lex;
    struct jtoken tok; /* the current token */
    struct arena *arena;
    uint32_t nest, loops;
    bool marks; /* a generation block was read */
    enum status st;
    struct errtext *err;
};

/* Parse a whole template; NULL after filling err and p->st. */
struct jnode *jinja_parse(struct jparser *p, const char *text, size_t len);

/* Shared by the parser's two files. All return NULL or false after a failure. */
bool jparse_fail(struct jparser *p, enum status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
struct jnode *jparse_node(struct jparser *p, enum jnode_kind kind);
void jnodes_init(struct jnodes *list, struct jnode **head);
void jnodes_add(struct jnodes *list, struct jnode *node);
bool jparse_advance(struct jparser *p);
bool jparse_is_op(const struct jparser *p, const char *op);
bool jparse_is_name(const struct jparser *p, const char *name);
bool jparse_skip_op(struct jparser *p, const char *op); /* false: was not there, or failed */
bool jparse_skip_name(struct jparser *p, const char *name);
bool jparse_expect_op(struct jparser *p, const char *op);
bool jparse_expect_name(struct jparser *p, struct jstr *name);
bool jparse_enter(struct jparser *p);
void jparse_leave(struct jparser *p);

struct jnode *jparse_expression(struct jparser *p);
struct jnode *jparse_expression_no_if(struct jparser *p);
struct jnode *jparse_tuple(struct jparser *p, bool with_if, bool in_parens);
struct jnode *jparse_target(struct jparser *p, bool one);
struct jnode *jparse_primary_postfix(struct jparser *p);
struct jnode *jparse_filters(struct jparser *p, struct jnode *value, bool start_inline);
bool jparse_call_args(struct jparser *p, struct jnode **list);

#endif
