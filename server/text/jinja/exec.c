/* Statements. A loop's body gets a fresh scope for each round, as assignments in it do not outlive
 * the round; an `if` has none. */
#include "server/text/jinja/run.h"

#include <string.h>

bool jinja_capture(struct jrun *r, const struct jnode *body, struct jval *out)
{
    struct buf text, *outer = r->out;
    jrun_buf(r, &text);
    r->out = &text;
    bool ok = jinja_exec(r, body);
    r->out = outer;
    return jrun_take(r, &text, out) && ok;
}

static bool assign(struct jrun *r, const struct jnode *target, struct jval v);

static bool unpack(struct jrun *r, const struct jnode *target, struct jval v)
{
    struct jlist *items;
    size_t idx = 0, wanted = 0;
    if (!jv_items(r, v, &items))
        return false;
    for (const struct jnode *i = target->list; i; i = i->next)
        wanted++;
    if (items->n != wanted)
        return jrun_fail(r, STATUS_INVALID, "%zu values to unpack into %zu names", items->n,
                         wanted);
    for (const struct jnode *i = target->list; i; i = i->next, idx++) {
        if (!assign(r, i->a, items->items[idx]))
            return false;
    }
    return true;
}

static bool assign(struct jrun *r, const struct jnode *target, struct jval v)
{
    if (target->kind == JN_TUPLE)
        return unpack(r, target, v);
    if (target->kind == JN_NAME)
        return jscope_set(r, target->name, v);
    struct jval ns;
    if (!jinja_resolve(r, target->a->name, &ns))
        return false;
    if (ns.kind != JV_NAMESPACE)
        return jrun_fail(r, STATUS_INVALID, "cannot assign attribute on non-namespace object");
    if (target->name.s[0] == '_')
        return jrun_fail(r, STATUS_INVALID,
                         "chat templates cannot store underscore-prefixed attributes");
    return jdict_set(r, ns.dict, jv_str(target->name), v);
}

static bool exec_if(struct jrun *r, const struct jnode *node)
{
    for (; node; node = node->orelse) {
        struct jval v;
        r->line = node->line;
        if (!jinja_eval(r, node->a, &v))
            return false;
        if (jv_truth(v))
            return jinja_exec(r, node->list);
        if (!node->flag) /* orelse is the body of `else`, not an `elif` */
            return jinja_exec(r, node->orelse);
    }
    return true;
}

/* Bind the loop's target to an item in a fresh scope; the caller restores the scope. */
static bool enter_round(struct jrun *r, const struct jnode *node, const struct jscope *parent,
                        struct jval item, struct jscope **saved)
{
    return jscope_push(r, parent, saved) && assign(r, node->a, item);
}

static bool filter_items(struct jrun *r, const struct jnode *node, const struct jlist *all,
                         struct jlist *kept)
{
    struct jscope *saved = r->scope, *ignored;
    for (size_t i = 0; i < all->n; i++) {
        struct jval keep;
        bool ok =
            enter_round(r, node, saved, all->items[i], &ignored) && jinja_eval(r, node->c, &keep);
        r->scope = saved;
        if (!ok || (jv_truth(keep) && !jlist_add(r, kept, all->items[i])))
            return false;
    }
    return true;
}

static bool run_rounds(struct jrun *r, const struct jnode *node, struct jloop *loop)
{
    struct jscope *saved = r->scope, *ignored;
    struct jval value = {.kind = JV_LOOP, .loop = loop};
    for (loop->idx = 0; loop->idx < loop->items->n; loop->idx++) {
        bool ok = enter_round(r, node, saved, loop->items->items[loop->idx], &ignored) &&
                  jscope_set(r, JSTR("loop"), value) && jinja_exec(r, node->list);
        r->scope = saved;
        if (!ok)
            return false;
        bool stop = r->flow == JFLOW_BREAK;
        r->flow = JFLOW_NONE;
        if (stop)
            break;
    }
    return true;
}

bool jinja_loop(struct jrun *r, const struct jnode *node, struct jval iterable, uint32_t depth0)
{
    struct jlist *items;
    struct jloop *loop = jrun_alloc(r, sizeof(*loop));
    if (!loop || !jv_items(r, iterable, &items))
        return false;
    if (node->c) {
        struct jlist *kept = jlist_new(r);
        if (!kept || !filter_items(r, node, items, kept))
            return false;
        items = kept;
    }
    *loop = (struct jloop){
        .items = items, .depth0 = depth0, .node = node->flag ? node : NULL, .scope = r->scope};
    if (items->n == 0)
        return jinja_exec(r, node->orelse);
    return run_rounds(r, node, loop);
}

static bool exec_for(struct jrun *r, const struct jnode *node)
{
    struct jval iterable;
    return jinja_eval(r, node->b, &iterable) && jinja_loop(r, node, iterable, 0);
}

static bool exec_set(struct jrun *r, const struct jnode *node)
{
    struct jval v;
    return jinja_eval(r, node->b, &v) && assign(r, node->a, v);
}

/* Capture the body in a scope of its own and apply the filters, if any. */
static bool filtered_body(struct jrun *r, const struct jnode *body, const struct jnode *filters,
                          struct jval *out)
{
    struct jscope *saved;
    if (!jscope_push(r, r->scope, &saved))
        return false;
    bool ok = jinja_capture(r, body, out);
    r->scope = saved;
    if (!ok || !filters)
        return ok;
    struct jval outer = r->block_text;
    r->block_text = *out;
    ok = jinja_eval(r, filters, out);
    r->block_text = outer;
    return ok;
}

static bool make_macro(struct jrun *r, const struct jnode *node, struct jval *out)
{
    struct jfunc *f = jrun_alloc(r, sizeof(*f));
    if (!f)
        return false;
    *f = (struct jfunc){.kind = JFUNC_MACRO, .macro = node, .closure = r->scope};
    *out = (struct jval){.kind = JV_FUNC, .func = f};
    return true;
}

static bool put_value(struct jrun *r, struct jval v)
{
    if (!jv_put_str(r, v, r->out))
        return false;
    if (r->out->failed)
        return jrun_fail(r, STATUS_TOO_LARGE, "the rendered text is over %zu bytes",
                         r->out->bytes_max);
    return true;
}

static bool exec_call_block(struct jrun *r, const struct jnode *node)
{
    struct jval func, caller, v;
    struct jargs args;
    return make_macro(r, node->b, &caller) && jinja_eval(r, node->a->a, &func) &&
           jinja_eval_args(r, node->a->list, &args) &&
           jinja_call_value(r, func, &args, caller, &v) && put_value(r, v);
}

/* What a generation block has put behind `begin`. */
static bool mark(struct jrun *r, size_t begin)
{
    struct chat_spans *m = r->marks;
    if (r->out != r->top)
        return jrun_fail(r, STATUS_UNSUPPORTED,
                         "'generation' inside of a macro, a call, a filter or a set block: where "
                         "its text ends up is not known");
    if (m->n == CHAT_SPANS_MAX)
        return jrun_fail(r, STATUS_TOO_LARGE, "more than %u 'generation' blocks", CHAT_SPANS_MAX);
    m->at[m->n++] = (struct chat_span){begin, r->out->len};
    return true;
}

static bool exec_scope(struct jrun *r, const struct jnode *node)
{
    size_t begin = r->out->len;
    struct jscope *saved;
    struct jargs args;
    if (!jinja_eval_args(r, node->params, &args) || !jscope_push(r, r->scope, &saved))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < args.n_named; i++)
        ok = jscope_set(r, args.named[i].key.str, args.named[i].value);
    ok = ok && jinja_exec(r, node->list);
    r->scope = saved;
    return ok && node->flag && r->marks ? mark(r, begin) : ok;
}

static bool exec_node(struct jrun *r, const struct jnode *node)
{
    struct jval v;
    switch (node->kind) {
    case JN_DATA:
        return put_value(r, node->value);
    case JN_PRINT:
        return jinja_eval(r, node->a, &v) && put_value(r, v);
    case JN_IF:
        return exec_if(r, node);
    case JN_FOR:
        return exec_for(r, node);
    case JN_SET:
        return exec_set(r, node);
    case JN_SET_BLOCK:
        return filtered_body(r, node->list, node->b, &v) && assign(r, node->a, v);
    case JN_MACRO:
        return make_macro(r, node, &v) && jscope_set(r, node->name, v);
    case JN_CALL_BLOCK:
        return exec_call_block(r, node);
    case JN_FILTER_BLOCK:
        return filtered_body(r, node->list, node->a, &v) && put_value(r, v);
    case JN_SCOPE:
        return exec_scope(r, node);
    case JN_BREAK:
        r->flow = JFLOW_BREAK;
        return true;
    case JN_CONTINUE:
        r->flow = JFLOW_CONTINUE;
        return true;
    default:
        return jrun_fail(r, STATUS_INVALID, "not a statement");
    }
}

bool jinja_exec(struct jrun *r, const struct jnode *body)
{
    if (r->depth >= JINJA_DEPTH_MAX)
        return jrun_fail(r, STATUS_TOO_LARGE, "nested more than %u deep", JINJA_DEPTH_MAX);
    r->depth++;
    bool ok = true;
    for (const struct jnode *node = body; ok && node && r->flow == JFLOW_NONE; node = node->next) {
        r->line = node->line;
        ok = jrun_work(r, 1) && exec_node(r, node);
    }
    r->depth--;
    return ok;
}
