/* Values of the template language: what Python has, as far as chat templates reach. Strings, lists
 * and dicts live in the arena of the render and are never changed after they are built, except
 * lists and dicts while their builder fills them, and namespaces. Plain C, no reference counts. */
#ifndef RS_TEXT_JINJA_VALUE_H
#define RS_TEXT_JINJA_VALUE_H

#include "server/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct jrun; /* one render: run.h */

enum jkind {
    JV_UNDEFINED,
    JV_NONE,
    JV_BOOL,
    JV_INT,
    JV_FLOAT,
    JV_STRING,
    JV_LIST,
    JV_TUPLE,
    JV_DICT,
    JV_NAMESPACE,
    JV_LOOP,
    JV_FUNC
};

struct jstr {
    const char *s; /* valid UTF-8, not terminated */
    size_t len;
};

struct jval {
    enum jkind kind;
    union {
        bool b;
        int64_t i;
        double f;
        struct jstr str;
        struct jlist *list; /* LIST, TUPLE */
        struct jdict *dict; /* DICT, NAMESPACE */
        struct jloop *loop;
        struct jfunc *func;
        struct jstr why; /* UNDEFINED: the message when it is used */
    };
};

/* A list made by map, select and their kin is lazy: always true, without length or index, and
 * empty once it has been walked. */
struct jlist {
    struct jval *items;
    size_t n, cap;
    bool lazy, spent;
};

struct jpair {
    struct jval key, value;
};

struct jdict {
    struct jpair *pairs;
    size_t n, cap;
};

#define JSTR(literal) ((struct jstr){.s = (literal), .len = sizeof(literal) - 1})

static inline struct jval jv_none(void)
{
    return (struct jval){.kind = JV_NONE};
}
static inline struct jval jv_bool(bool b)
{
    return (struct jval){.kind = JV_BOOL, .b = b};
}
static inline struct jval jv_int(int64_t i)
{
    return (struct jval){.kind = JV_INT, .i = i};
}
static inline struct jval jv_float(double f)
{
    return (struct jval){.kind = JV_FLOAT, .f = f};
}
static inline struct jval jv_str(struct jstr s)
{
    return (struct jval){.kind = JV_STRING, .str = s};
}
static inline struct jval jv_list(struct jlist *list)
{
    return (struct jval){.kind = JV_LIST, .list = list};
}
static inline struct jval jv_dict(struct jdict *dict)
{
    return (struct jval){.kind = JV_DICT, .dict = dict};
}
static inline bool jv_is_number(struct jval v)
{
    return v.kind == JV_INT || v.kind == JV_FLOAT || v.kind == JV_BOOL;
}
static inline bool jv_is_list(struct jval v)
{
    return v.kind == JV_LIST || v.kind == JV_TUPLE;
}
static inline double jv_number(struct jval v)
{
    return v.kind == JV_FLOAT ? v.f : v.kind == JV_BOOL ? (double)v.b : (double)v.i;
}
static inline int64_t jv_integer(struct jval v)
{
    return v.kind == JV_BOOL ? v.b : v.i;
}

bool jstr_eq(struct jstr a, struct jstr b);
bool jstr_is(struct jstr a, const char *literal);

/* All below return false after having set the error of the run. */
bool jlist_add(struct jrun *r, struct jlist *list, struct jval v);
bool jdict_set(struct jrun *r, struct jdict *dict, struct jval key, struct jval value);
struct jlist *jlist_new(struct jrun *r); /* NULL: out of budget */
struct jdict *jdict_new(struct jrun *r);
/* NULL when the key is not there (or the run has failed). */
const struct jval *jdict_get(struct jrun *r, const struct jdict *dict, struct jval key);
const struct jval *jdict_get_str(struct jrun *r, const struct jdict *dict, struct jstr key);

bool jv_truth(struct jval v);
const char *jv_type_name(struct jval v); /* Python's name of the type */
bool jv_equal(struct jrun *r, struct jval a, struct jval b, bool *equal);
/* -1, 0, 1; an error for types that have no order. */
bool jv_compare(struct jrun *r, struct jval a, struct jval b, int *order);
/* str(v) and repr(v), appended. */
bool jv_put_str(struct jrun *r, struct jval v, struct buf *out);
bool jv_put_repr(struct jrun *r, struct jval v, struct buf *out);
/* str(v) as a string of the arena. */
bool jv_to_str(struct jrun *r, struct jval v, struct jstr *out);
/* The items of an iterable: list items, dict keys, characters. An undefined value has none. */
bool jv_items(struct jrun *r, struct jval v, struct jlist **out);
/* Python's repr of a float. */
void jv_put_float(double f, struct buf *out);

#endif
