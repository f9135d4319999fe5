/* The public face: newlines made LF, UTF-8 checked, the template parsed into its own arena and
 * probed for its shape, and for each render a fresh arena with the context copied into it. */
#include "server/text/chat.h"
#include "server/base/mem.h"
#include "server/text/jinja/run.h"
#include "server/text/shape.h"
#include "server/text/utf8.h"

#include <string.h>

#define CONTEXT_DEPTH_MAX 128

struct chat_template {
    char *text;
    size_t len;
    struct arena arena;
    struct jnode *top;
    struct chat_shape shape;
    bool marks;
};

/* \r\n and \r become \n, as the reference's lexer does. */
static void unify_newlines(char *s, size_t *len)
{
    size_t n = 0;
    for (size_t i = 0; i < *len; i++) {
        if (s[i] == '\r' && i + 1 < *len && s[i + 1] == '\n')
            continue;
        s[n++] = s[i] == '\r' ? '\n' : s[i];
    }
    *len = n;
}

enum status chat_template_parse(struct chat_template **out, const char *text, size_t len,
                                struct errtext *err)
{
    *out = NULL;
    if (len > CHAT_TEMPLATE_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "chat template: %zu bytes; at most %zu", len,
                       CHAT_TEMPLATE_BYTES_MAX);
    size_t valid = utf8_valid_prefix(text, len);
    if (valid != len)
        return err_set(err, STATUS_INVALID, "chat template: not UTF-8 at byte %zu", valid);
    struct chat_template *t = mem_try_alloc(sizeof(*t));
    if (t)
        t->text = mem_try_strndup(text, len);
    if (!t || !t->text) {
        chat_template_free(t);
        return err_set(err, STATUS_NO_MEMORY, "chat template: no memory");
    }
    t->len = len;
    unify_newlines(t->text, &t->len);
    arena_init(&t->arena, JINJA_AST_BYTES_MAX);
    struct jparser p = {.arena = &t->arena, .err = err};
    t->top = jinja_parse(&p, t->text, t->len);
    if (!t->top) {
        chat_template_free(t);
        return p.st ? p.st : STATUS_INVALID;
    }
    t->marks = p.marks;
    t->shape = chat_shape_probe(t);
    *out = t;
    return STATUS_OK;
}

void chat_template_free(struct chat_template *t)
{
    if (!t)
        return;
    arena_fini(&t->arena);
    mem_free(t->text);
    mem_free(t);
}

bool chat_template_has_marks(const struct chat_template *t)
{
    return t->marks;
}

const struct chat_shape *chat_template_shape(const struct chat_template *t)
{
    return &t->shape;
}

static bool value_of_json(struct jrun *r, const json_t *json, int depth, struct jval *out);

static bool list_of_json(struct jrun *r, const json_t *json, int depth, struct jval *out)
{
    struct jlist *list = jlist_new(r);
    for (size_t i = 0; list && i < json_array_size(json); i++) {
        struct jval v;
        if (!value_of_json(r, json_array_get(json, i), depth - 1, &v) || !jlist_add(r, list, v))
            return false;
    }
    *out = jv_list(list);
    return list != NULL;
}

/* JSON objects have no duplicate keys: no search is needed. */
static bool dict_of_json(struct jrun *r, const json_t *json, int depth, struct jval *out)
{
    struct jdict *dict = jdict_new(r);
    size_t n = json_object_size(json);
    struct jpair *pairs = dict ? jrun_alloc(r, (n + 1) * sizeof(*pairs)) : NULL;
    if (!pairs)
        return false;
    dict->pairs = pairs;
    dict->cap = n + 1;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)json, key, value)
    {
        struct jpair *pair = &dict->pairs[dict->n++];
        if (!jrun_string(r, key, strlen(key), &pair->key) ||
            !value_of_json(r, value, depth - 1, &pair->value))
            return false;
    }
    *out = jv_dict(dict);
    return true;
}

static bool value_of_json(struct jrun *r, const json_t *json, int depth, struct jval *out)
{
    if (depth == 0)
        return jrun_fail(r, STATUS_TOO_LARGE, "the messages are nested more than %d deep",
                         CONTEXT_DEPTH_MAX);
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return dict_of_json(r, json, depth, out);
    case JSON_ARRAY:
        return list_of_json(r, json, depth, out);
    case JSON_STRING:
        return jrun_string(r, json_string_value(json), json_string_length(json), out);
    case JSON_INTEGER:
        *out = jv_int(json_integer_value(json));
        return true;
    case JSON_REAL:
        *out = jv_float(json_real_value(json));
        return true;
    case JSON_NULL:
        *out = jv_none();
        return true;
    default:
        *out = jv_bool(json_is_true(json));
        return true;
    }
}

static bool bind_context(struct jrun *r, const json_t *context)
{
    struct jscope *none;
    struct jval all;
    if (!json_is_object(context))
        return jrun_fail(r, STATUS_INVALID, "the context is not an object");
    if (!jscope_push(r, NULL, &none) || !value_of_json(r, context, CONTEXT_DEPTH_MAX, &all))
        return false;
    for (size_t i = 0; i < all.dict->n; i++) {
        if (!jscope_set(r, all.dict->pairs[i].key.str, all.dict->pairs[i].value))
            return false;
    }
    return true;
}

static struct jrun run_make(struct buf *out, uint64_t work, struct errtext *err)
{
    struct jrun r = {.out = out,
                     .out_bytes_max = out->bytes_max,
                     .work_left = work,
                     .line = 1,
                     .block_text = jv_none(),
                     .err = err};
    arena_init(&r.arena, JINJA_MEMORY_BYTES_MAX);
    return r;
}

static enum status render(const struct chat_template *t, const json_t *context, struct jrun *r)
{
    if (bind_context(r, context))
        jinja_exec(r, t->top);
    arena_fini(&r->arena);
    return r->st;
}

enum status chat_template_try(const struct chat_template *t, const json_t *context, uint64_t *work,
                              struct buf *out, struct errtext *err)
{
    struct jrun r = run_make(out, *work, err);
    enum status st = render(t, context, &r);
    *work = r.work_left;
    return st;
}

enum status chat_template_render(const struct chat_template *t, const json_t *context,
                                 struct buf *out, struct errtext *err)
{
    uint64_t work = JINJA_WORK_MAX;
    return chat_template_try(t, context, &work, out, err);
}

enum status chat_template_render_marked(const struct chat_template *t, const json_t *context,
                                        struct buf *out, struct chat_spans *marks,
                                        struct errtext *err)
{
    struct jrun r = run_make(out, JINJA_WORK_MAX, err);
    r.marks = marks;
    r.top = out;
    marks->n = 0;
    return render(t, context, &r);
}

enum status chat_json_text(const json_t *v, struct buf *out, struct errtext *err)
{
    struct jrun r = run_make(out, JINJA_WORK_MAX, err);
    struct jargs none = {0};
    struct jval value, text;
    if (value_of_json(&r, v, CONTEXT_DEPTH_MAX, &value) && jinja_tojson(&r, value, &none, &text))
        buf_put(out, text.str.s, text.str.len);
    if (!r.st && out->failed)
        jrun_fail(&r, STATUS_TOO_LARGE, "a text grew over %zu bytes", out->bytes_max);
    arena_fini(&r.arena);
    return r.st;
}
