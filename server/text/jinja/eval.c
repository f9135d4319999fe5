/* Expressions and calls. A tree walk: each node gives a value or fails the run. Names are looked up
 * through scopes, then globals; what is not found is a value that complains when it is used.
 * Recursion is bounded by JINJA_DEPTH_MAX nodes, macro calls included. */
#include "server/text/jinja/run.h"

#include <string.h>

bool jscope_push(struct jrun *r, const struct jscope *parent, struct jscope **saved)
{
    struct jscope *scope = jrun_alloc(r, sizeof(*scope));
    if (!scope)
        return false;
    scope->parent = parent;
    *saved = r->scope;
    r->scope = scope;
    return true;
}

bool jscope_set(struct jrun *r, struct jstr name, struct jval value)
{
    for (struct jscope_var *v = r->scope->vars; v; v = v->next) {
        if (jstr_eq(v->name, name)) {
            v->value = value;
            return jrun_work(r, 1);
        }
    }
    struct jscope_var *v = jrun_alloc(r, sizeof(*v));
    if (!v)
        return false;
    *v = (struct jscope_var){.name = name, .value = value, .next = r->scope->vars};
    r->scope->vars = v;
    return true;
}

bool jinja_resolve(struct jrun *r, struct jstr name, struct jval *out)
{
    for (const struct jscope *s = r->scope; s; s = s->parent) {
        for (const struct jscope_var *v = s->vars; v; v = v->next) {
            if (!jrun_work(r, 1))
                return false;
            if (jstr_eq(v->name, name)) {
                *out = v->value;
                return true;
            }
        }
    }
    int global = jinja_global_find(name);
    if (global < 0) {
        *out = jval_undefined(r, "'%.*s' is undefined", (int)(name.len < 100 ? name.len : 100),
                              name.s);
        return !r->st;
    }
    struct jfunc *f = jrun_alloc(r, sizeof(*f));
    if (!f)
        return false;
    *f = (struct jfunc){.kind = JFUNC_GLOBAL, .global = global, .name = name};
    *out = (struct jval){.kind = JV_FUNC, .func = f};
    return true;
}

bool jinja_eval_args(struct jrun *r, const struct jnode *list, struct jargs *args)
{
    size_t n = 0;
    for (const struct jnode *a = list; a; a = a->next)
        n++;
    *args = (struct jargs){0};
    if (!n)
        return true;
    args->pos = jrun_alloc(r, n * sizeof(*args->pos));
    args->named = jrun_alloc(r, n * sizeof(*args->named));
    if (!args->pos || !args->named)
        return false;
    for (const struct jnode *a = list; a; a = a->next) {
        struct jval v;
        if (!jinja_eval(r, a->a, &v))
            return false;
        if (a->name.len)
            args->named[args->n_named++] = (struct jpair){.key = jv_str(a->name), .value = v};
        else
            args->pos[args->n_pos++] = v;
    }
    return true;
}

/* Bind the arguments of a macro in the fresh scope. */
static bool bind_params(struct jrun *r, const struct jnode *macro, const struct jargs *args)
{
    size_t idx = 0, used = 0;
    for (const struct jnode *p = macro->params; p; p = p->next, idx++) {
        struct jval v;
        const struct jval *given = idx < args->n_pos ? &args->pos[idx] : NULL;
        for (size_t i = 0; !given && i < args->n_named; i++) {
            if (jstr_eq(args->named[i].key.str, p->name)) {
                given = &args->named[i].value;
                used++;
            }
        }
        if (given)
            v = *given;
        else if (!p->a)
            v = jval_undefined(r, "parameter '%.*s' was not provided", (int)p->name.len, p->name.s);
        else if (!jinja_eval(r, p->a, &v))
            return false;
        if (!jscope_set(r, p->name, v))
            return false;
    }
    if (args->n_pos > idx)
        return jrun_fail(r, STATUS_INVALID,
                         "macro '%.*s' takes not more than %zu arguments, %zu were given",
                         (int)macro->name.len, macro->name.s, idx, args->n_pos);
    if (used < args->n_named)
        return jrun_fail(r, STATUS_INVALID, "macro '%.*s' was given an unknown named argument",
                         (int)macro->name.len, macro->name.s);
    return !r->st;
}

static bool call_macro(struct jrun *r, const struct jfunc *f, const struct jargs *args,
                       struct jval caller, struct jval *out)
{
    struct jscope *saved;
    if (!jscope_push(r, f->closure, &saved))
        return false;
    bool ok = true;
    if (!jstr_is(f->macro->name, "caller")) {
        if (caller.kind != JV_FUNC)
            caller = jval_undefined(r, "no caller defined");
        ok = jscope_set(r, JSTR("caller"), caller);
    }
    ok = ok && bind_params(r, f->macro, args) && jinja_capture(r, f->macro->list, out);
    r->scope = saved;
    return ok;
}

static bool call_joiner(struct jfunc *f, struct jval *out)
{
    *out = f->global ? f->self : jv_str(JSTR(""));
    f->global = 1;
    return true;
}

/* loop(children) inside a recursive loop. */
static bool call_loop(struct jrun *r, struct jloop *loop, const struct jargs *args,
                      struct jval *out)
{
    if (!loop->node || args->n_pos != 1)
        return jrun_fail(r, STATUS_INVALID,
                         "'loop' can only be called with one argument in a recursive loop");
    struct jscope *saved;
    struct buf text, *outer = r->out;
    if (!jscope_push(r, loop->scope, &saved))
        return false;
    jrun_buf(r, &text);
    r->out = &text;
    bool ok = jinja_loop(r, loop->node, args->pos[0], loop->depth0 + 1);
    r->out = outer;
    r->scope = saved;
    return jrun_take(r, &text, out) && ok;
}

bool jinja_call_value(struct jrun *r, struct jval func, const struct jargs *args,
                      struct jval caller, struct jval *out)
{
    if (func.kind == JV_UNDEFINED)
        return jrun_fail_undefined(r, func);
    if (func.kind == JV_LOOP)
        return call_loop(r, func.loop, args, out);
    if (func.kind != JV_FUNC)
        return jrun_fail(r, STATUS_INVALID, "'%s' object is not callable", jv_type_name(func));
    struct jfunc *f = func.func;
    switch (f->kind) {
    case JFUNC_MACRO:
        return call_macro(r, f, args, caller, out);
    case JFUNC_GLOBAL:
        return jinja_global_call(r, f->global, args, out);
    case JFUNC_METHOD:
        return jinja_method_call(r, f->self, f->name, args, out);
    case JFUNC_JOINER:
        return call_joiner(f, out);
    case JFUNC_REFUSED:
        break;
    }
    return jrun_fail(r, STATUS_INVALID, "the method '%.*s' of '%s' is not supported",
                     (int)f->name.len, f->name.s, jv_type_name(f->self));
}

static bool eval_call(struct jrun *r, const struct jnode *node, struct jval *out)
{
    struct jval func;
    struct jargs args;
    return jinja_eval(r, node->a, &func) && jinja_eval_args(r, node->list, &args) &&
           jinja_call_value(r, func, &args, jv_none(), out);
}

static bool eval_list(struct jrun *r, const struct jnode *node, struct jval *out)
{
    struct jlist *list = jlist_new(r);
    if (!list)
        return false;
    for (const struct jnode *i = node->list; i; i = i->next) {
        struct jval v;
        if (!jinja_eval(r, i->a, &v) || !jlist_add(r, list, v))
            return false;
    }
    *out = jv_list(list);
    out->kind = node->kind == JN_LIST ? JV_LIST : JV_TUPLE;
    return true;
}

static bool eval_dict(struct jrun *r, const struct jnode *node, struct jval *out)
{
    struct jdict *dict = jdict_new(r);
    if (!dict)
        return false;
    for (const struct jnode *i = node->list; i; i = i->next) {
        struct jval k, v;
        if (!jinja_eval(r, i->a, &k) || !jinja_eval(r, i->b, &v) || !jdict_set(r, dict, k, v))
            return false;
    }
    *out = jv_dict(dict);
    return true;
}

static bool eval_slice(struct jrun *r, const struct jnode *node, struct jval *out)
{
    struct jval obj, bounds[3];
    const struct jnode *parts[3] = {node->b, node->c, node->d};
    if (!jinja_eval(r, node->a, &obj))
        return false;
    for (size_t i = 0; i < 3; i++) {
        bounds[i] = jv_none();
        if (parts[i] && !jinja_eval(r, parts[i], &bounds[i]))
            return false;
    }
    return jinja_slice(r, obj, bounds, out);
}

static bool eval_concat(struct jrun *r, const struct jnode *node, struct jval *out)
{
    struct buf b;
    bool ok = true;
    jrun_buf(r, &b);
    for (const struct jnode *i = node->list; ok && i; i = i->next) {
        struct jval v;
        ok = jinja_eval(r, i, &v) && jv_put_str(r, v, &b);
    }
    return jrun_take(r, &b, out) && ok;
}

static bool eval_compare(struct jrun *r, const struct jnode *node, struct jval *out)
{
    struct jval left, right;
    if (!jinja_eval(r, node->a, &left))
        return false;
    for (const struct jnode *i = node->list; i; i = i->next) {
        if (!jinja_eval(r, i->a, &right) || !jinja_binary(r, i->op, left, right, out))
            return false;
        if (!jv_truth(*out))
            return true;
        left = right;
    }
    return true;
}

static bool eval_filter(struct jrun *r, const struct jnode *node, struct jval *out)
{
    struct jval v = r->block_text;
    struct jargs args;
    if (node->a && !jinja_eval(r, node->a, &v))
        return false;
    return jinja_eval_args(r, node->list, &args) &&
           jinja_filter_call(r, node->builtin, v, &args, out);
}

static bool eval_test(struct jrun *r, const struct jnode *node, struct jval *out)
{
    struct jval v;
    struct jargs args;
    bool truth;
    if (!jinja_eval(r, node->a, &v) || !jinja_eval_args(r, node->list, &args) ||
        !jinja_test_call(r, node->builtin, v, &args, &truth))
        return false;
    *out = jv_bool(truth);
    return true;
}

static bool eval_sign(struct jrun *r, const struct jnode *node, struct jval *out)
{
    if (!jinja_eval(r, node->a, out))
        return false;
    if (out->kind == JV_UNDEFINED)
        return jrun_fail_undefined(r, *out);
    if (!jv_is_number(*out))
        return jrun_fail(r, STATUS_INVALID, "bad operand type for unary sign: '%s'",
                         jv_type_name(*out));
    if (out->kind == JV_FLOAT) {
        out->f = node->kind == JN_NEG ? -out->f : out->f;
        return true;
    }
    return jinja_binary(r, node->kind == JN_NEG ? JOP_SUB : JOP_ADD, jv_int(0), *out, out);
}

static bool eval_logic(struct jrun *r, const struct jnode *node, struct jval *out)
{
    if (!jinja_eval(r, node->a, out))
        return false;
    if (node->kind == JN_NOT) {
        *out = jv_bool(!jv_truth(*out));
        return true;
    }
    if (jv_truth(*out) == (node->kind == JN_AND))
        return jinja_eval(r, node->b, out);
    return true;
}

static bool eval_cond(struct jrun *r, const struct jnode *node, struct jval *out)
{
    if (!jinja_eval(r, node->a, out))
        return false;
    if (jv_truth(*out))
        return jinja_eval(r, node->b, out);
    if (node->c)
        return jinja_eval(r, node->c, out);
    *out = jval_undefined(r, "the inline if-expression evaluated to false and no else section "
                             "was defined.");
    return !r->st;
}

static bool eval_pair(struct jrun *r, const struct jnode *node, struct jval *out)
{
    struct jval a, b;
    if (!jinja_eval(r, node->a, &a))
        return false;
    if (node->kind == JN_GETATTR)
        return jinja_getattr(r, a, node->name, out);
    if (!jinja_eval(r, node->b, &b))
        return false;
    if (node->kind == JN_GETITEM)
        return jinja_getitem(r, a, b, out);
    return jinja_binary(r, node->op, a, b, out);
}

static bool eval_node(struct jrun *r, const struct jnode *node, struct jval *out)
{
    switch (node->kind) {
    case JN_CONST:
        *out = node->value;
        return true;
    case JN_NAME:
        return jinja_resolve(r, node->name, out);
    case JN_LIST:
    case JN_TUPLE:
        return eval_list(r, node, out);
    case JN_DICT:
        return eval_dict(r, node, out);
    case JN_GETATTR:
    case JN_GETITEM:
    case JN_BINARY:
        return eval_pair(r, node, out);
    case JN_SLICE:
        return eval_slice(r, node, out);
    case JN_CALL:
        return eval_call(r, node, out);
    case JN_FILTER:
        return eval_filter(r, node, out);
    case JN_TEST:
        return eval_test(r, node, out);
    case JN_COND:
        return eval_cond(r, node, out);
    case JN_AND:
    case JN_OR:
    case JN_NOT:
        return eval_logic(r, node, out);
    case JN_NEG:
    case JN_POS:
        return eval_sign(r, node, out);
    case JN_CONCAT:
        return eval_concat(r, node, out);
    case JN_COMPARE:
        return eval_compare(r, node, out);
    default:
        return jrun_fail(r, STATUS_INVALID, "not an expression");
    }
}

bool jinja_eval(struct jrun *r, const struct jnode *node, struct jval *out)
{
    if (r->depth >= JINJA_DEPTH_MAX)
        return jrun_fail(r, STATUS_TOO_LARGE, "nested more than %u deep", JINJA_DEPTH_MAX);
    uint32_t line = r->line;
    r->depth++;
    r->line = node->line;
    bool ok = jrun_work(r, 1) && eval_node(r, node, out);
    r->depth--;
    if (ok)
        r->line = line;
    return ok;
}
