/* One render of a template: its budgets, its scopes, its output, its error. Every function of the
 * evaluator returns false after jrun_fail, and the caller returns false at once. */
#ifndef RS_TEXT_JINJA_RUN_H
#define RS_TEXT_JINJA_RUN_H

#include "server/base/arena.h"
#include "server/base/errtext.h"
#include "server/text/chat.h"
#include "server/text/jinja/ast.h"
#include "server/text/jinja/value.h"

#define JINJA_WORK_MAX         50000000u /* nodes evaluated plus items and bytes touched */
#define JINJA_MEMORY_BYTES_MAX ((size_t)256 << 20)
#define JINJA_DEPTH_MAX        400u /* nested nodes, macro calls included */
#define JINJA_VALUE_DEPTH_MAX  200u /* nested lists and dicts */
#define JINJA_RANGE_MAX        100000

struct jscope_var {
    struct jstr name;
    struct jval value;
    struct jscope_var *next;
};

struct jscope {
    const struct jscope *parent;
    struct jscope_var *vars;
};

enum jflow { JFLOW_NONE, JFLOW_BREAK, JFLOW_CONTINUE };

struct jrun {
    struct arena arena;
    struct jscope *scope;
    struct buf *out;
    size_t out_bytes_max; /* for captures */
    uint64_t work_left;
    uint32_t depth, value_depth;
    enum jflow flow;
    uint32_t line;            /* of the node being evaluated */
    struct jval block_text;   /* what the filters of a block apply to */
    struct chat_spans *marks; /* bytes of `top` that generation blocks wrote; NULL: not asked */
    const struct buf *top;
    enum status st;
    struct errtext *err;
};

/* The state of one running loop. */
struct jloop {
    const struct jlist *items;
    size_t idx;
    uint32_t depth0;
    const struct jnode *node;   /* recursive loops: the for node, else NULL */
    const struct jscope *scope; /* where a recursive loop was written */
    struct jval *last_changed;
};

enum jfunc_kind { JFUNC_MACRO, JFUNC_GLOBAL, JFUNC_METHOD, JFUNC_REFUSED, JFUNC_JOINER };

struct jfunc {
    enum jfunc_kind kind;
    const struct jnode *macro;
    struct jscope *closure;
    struct jval self; /* METHOD: the object; JOINER: the separator */
    struct jstr name;
    int global; /* GLOBAL: its number; JOINER: 1 once it has been called */
};

/* Evaluated arguments of a call. */
struct jargs {
    struct jval *pos;
    size_t n_pos;
    struct jpair *named; /* keys are strings */
    size_t n_named;
};

bool jrun_fail(struct jrun *r, enum status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Spend work; false when the budget is gone. */
bool jrun_work(struct jrun *r, uint64_t amount);
void *jrun_alloc(struct jrun *r, size_t bytes); /* NULL after failing the run */
bool jrun_string(struct jrun *r, const char *s, size_t len, struct jval *out); /* a copy */
/* Take what b holds as a string of the arena and free b. */
bool jrun_take(struct jrun *r, struct buf *b, struct jval *out);
void jrun_buf(struct jrun *r, struct buf *b); /* init a scratch buffer under the output maximum */

struct jval jval_undefined(struct jrun *r, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Using an undefined value: fails with its message. */
bool jrun_fail_undefined(struct jrun *r, struct jval v);

/* eval.c: expressions; exec.c: statements */
bool jinja_eval(struct jrun *r, const struct jnode *node, struct jval *out);
bool jinja_exec(struct jrun *r, const struct jnode *body);
/* Run body in the current scope and take its output as a string. */
bool jinja_capture(struct jrun *r, const struct jnode *body, struct jval *out);
/* The body of a loop over items, for the loop itself and for loop(...) in a recursive one. */
bool jinja_loop(struct jrun *r, const struct jnode *node, struct jval items, uint32_t depth0);
bool jinja_resolve(struct jrun *r, struct jstr name, struct jval *out);
bool jinja_eval_args(struct jrun *r, const struct jnode *list, struct jargs *args);
bool jinja_call_value(struct jrun *r, struct jval func, const struct jargs *args,
                      struct jval caller, struct jval *out);
bool jscope_push(struct jrun *r, const struct jscope *parent, struct jscope **saved);
bool jscope_set(struct jrun *r, struct jstr name, struct jval value);

/* access.c: a.b and a[b], with Python's order of looking things up */
bool jinja_getattr(struct jrun *r, struct jval obj, struct jstr name, struct jval *out);
bool jinja_getitem(struct jrun *r, struct jval obj, struct jval key, struct jval *out);
bool jinja_slice(struct jrun *r, struct jval obj, const struct jval bounds[3], struct jval *out);

/* ops.c */
bool jinja_binary(struct jrun *r, enum jop op, struct jval a, struct jval b, struct jval *out);
bool jinja_contains(struct jrun *r, struct jval item, struct jval in, bool *out);

/* args.c: reading arguments by position or name */
const struct jval *jargs_get(const struct jargs *args, size_t idx, const char *name);
bool jargs_int(struct jrun *r, const struct jargs *args, size_t idx, const char *name,
               int64_t missing, int64_t *out);
bool jargs_bool(const struct jargs *args, size_t idx, const char *name, bool missing);
bool jargs_str(struct jrun *r, const struct jargs *args, size_t idx, const char *name,
               struct jstr missing, struct jstr *out);

/* Filters, tests, methods and globals, by the number their name has. */
int jinja_filter_find(struct jstr name); /* -1 */
bool jinja_filter_call(struct jrun *r, int filter, struct jval v, const struct jargs *args,
                       struct jval *out);
int jinja_test_find(struct jstr name);
bool jinja_test_call(struct jrun *r, int test, struct jval v, const struct jargs *args, bool *out);
bool jinja_method_exists(struct jval self, struct jstr name);
bool jinja_method_refused(struct jval self, struct jstr name);
bool jinja_method_call(struct jrun *r, struct jval self, struct jstr name, const struct jargs *args,
                       struct jval *out);
int jinja_global_find(struct jstr name);
bool jinja_global_call(struct jrun *r, int global, const struct jargs *args, struct jval *out);

/* json.c */
bool jinja_tojson(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out);

#endif
