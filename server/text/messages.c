/* Chat messages as they are sent -> messages as the template was written for. Clients send
 * what SDKs dump: nulls for what is not there, empty lists, tool arguments as JSON text, content as
 * a string, as parts or as null. Templates test `is defined`, iterate or concatenate, each its own
 * way (struct chat_shape). So every field that is absent, null or an empty list of calls is dropped
 * here, and content and arguments take the form that the template wants. Everything else that a
 * message carries is passed on. */
#include "server/text/messages.h"
#include "server/base/buf.h"
#include "server/base/json.h"

#include <stdio.h>
#include <string.h>

#define CALLS_MAX      128
#define ROLE_BYTES_MAX 32

struct shaping {
    const struct chat_shape *shape;
    size_t idx; /* of the message, for errors */
    struct errtext *err;
};

static enum status no_memory(struct errtext *err)
{
    return err_set(err, STATUS_NO_MEMORY, "there is no memory for this request now");
}

/* "messages[idx].field" as the param of the error, and the text as given. */
static enum status refuse(const struct shaping *s, enum status st, const char *field,
                          const char *text)
{
    char param[96];
    snprintf(param, sizeof(param), "messages[%zu].%s", s->idx, field);
    return err_param(s->err, st, param, "'%s' %s", param, text);
}

static enum status set_member(const struct shaping *s, json_t *obj, const char *key, json_t *value)
{
    return json_object_set_new(obj, key, value) ? no_memory(s->err) : STATUS_OK;
}

static void drop_nulls(json_t *obj)
{
    const char *key;
    void *next;
    json_t *value;
    json_object_foreach_safe(obj, next, key, value)
    {
        if (json_is_null(value))
            (void)json_object_del(obj, key);
    }
}

/* ---- content ---- */

/* The string of a text or refusal part. */
static enum status part_text(const struct shaping *s, const json_t *part, const json_t **out)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    char text[128];
    if (!type)
        return refuse(s, STATUS_INVALID, "content",
                      "has a part that is no object with a string 'type'");
    if (strcmp(type, "text") != 0 && strcmp(type, "refusal") != 0) {
        snprintf(
            text, sizeof(text),
            "has a part of type '%.40s', which is not supported by this server; only 'text' is",
            type);
        return refuse(s, STATUS_UNSUPPORTED, "content", text);
    }
    *out = json_object_get(part, type);
    if (json_is_string(*out))
        return STATUS_OK;
    snprintf(text, sizeof(text), "has a part of the type '%s' but no string '%s' in it", type,
             type);
    return refuse(s, STATUS_INVALID, "content", text);
}

static json_t *one_part(const char *text, size_t len)
{
    json_t *part = json_object();
    if (json_object_set_new(part, "type", json_string("text")) ||
        json_object_set_new(part, "text", json_stringn(text, len))) {
        json_decref(part);
        return NULL;
    }
    return part;
}

/* Parts -> a list of text parts, or one string with a line break between them. */
static enum status shape_parts(const struct shaping *s, json_t *message, const json_t *parts)
{
    struct buf text;
    size_t i;
    json_t *item, *list = json_array();
    enum status st = list ? STATUS_OK : no_memory(s->err);
    buf_init(&text, CHAT_TEXT_BYTES_MAX);
    json_array_foreach(parts, i, item)
    {
        const json_t *v = NULL;
        st = st ? st : part_text(s, item, &v);
        if (st)
            break;
        buf_puts(&text, i ? "\n" : "");
        buf_put(&text, json_string_value(v), json_string_length(v));
        if (json_array_append_new(list, one_part(json_string_value(v), json_string_length(v))))
            st = no_memory(s->err);
    }
    if (!st && text.failed)
        st = err_param(s->err, STATUS_INVALID, "messages",
                       "'messages' has more than %u bytes of text", CHAT_TEXT_BYTES_MAX);
    if (!st)
        st = set_member(s, message, "content",
                        s->shape->content_parts
                            ? json_incref(list)
                            : json_stringn(text.data ? text.data : "", text.len));
    json_decref(list);
    buf_fini(&text);
    return st;
}

/* content: null of an assistant, in the form this template understands. */
static enum status shape_null(const struct shaping *s, json_t *message)
{
    bool calls = json_object_get(message, "tool_calls") != NULL;
    switch (calls ? s->shape->null_call : s->shape->null_plain) {
    case CHAT_NULL_NONE:
        return set_member(s, message, "content", json_null());
    case CHAT_NULL_EMPTY:
        return set_member(s, message, "content",
                          s->shape->content_parts ? json_array() : json_string(""));
    default:
        return STATUS_OK;
    }
}

static enum status shape_content(const struct shaping *s, json_t *message, const char *role)
{
    json_t *v = json_object_get(message, "content");
    if (!v && strcmp(role, "assistant") == 0)
        return shape_null(s, message);
    if (json_is_array(v))
        return shape_parts(s, message, v);
    if (!json_is_string(v))
        return refuse(s, STATUS_INVALID, "content", "must be a string or a list of content parts");
    if (!s->shape->content_parts)
        return STATUS_OK;
    json_t *list = json_array();
    if (json_array_append_new(list, one_part(json_string_value(v), json_string_length(v)))) {
        json_decref(list);
        return no_memory(s->err);
    }
    return set_member(s, message, "content", list);
}

/* ---- tool calls ---- */

/* Text -> object: what the call's arguments are when the template iterates or dumps them. */
static enum status decode_arguments(const struct shaping *s, json_t *holder, const json_t *v)
{
    const char *text = json_string_value(v);
    size_t len = json_string_length(v);
    json_t *object = NULL;
    struct errtext why = ERRTEXT_INIT;
    if (strspn(text, " \t\r\n") == len)
        return set_member(s, holder, "arguments", json_object());
    if (!json_doc_parse(&object, "the text", text, len, JSON_DOC_NUL | JSON_DOC_REPEATS, &why))
        return set_member(s, holder, "arguments", object);
    char says[400];
    snprintf(says, sizeof(says),
             "has a call whose 'arguments' are not the text of a JSON object, which this model's "
             "chat template needs: %.200s",
             why.text);
    return refuse(s, STATUS_INVALID, "tool_calls", says);
}

static enum status encode_arguments(const struct shaping *s, json_t *holder, const json_t *v)
{
    struct buf text;
    buf_init(&text, CHAT_TEXT_BYTES_MAX);
    enum status st = chat_json_text(v, &text, s->err);
    if (!st)
        st = set_member(s, holder, "arguments", json_stringn(text.data, text.len));
    buf_fini(&text);
    return st;
}

/* One call, ours to change: {"function": {"name", "arguments"}} or the flat form. */
static enum status shape_call(const struct shaping *s, json_t *call)
{
    drop_nulls(call);
    json_t *function = json_object_get(call, "function");
    json_t *holder = json_is_object(function) ? function : call;
    drop_nulls(holder);
    const json_t *v = json_object_get(holder, "arguments");
    bool named = json_object_get(holder, "name") != NULL;
    if (!v && !named)
        return STATUS_OK; /* a call of a kind we do not know: the template's matter */
    if (!v)
        return set_member(s, holder, "arguments",
                          s->shape->arguments_text ? json_string("{}") : json_object());
    if (json_is_string(v))
        return s->shape->arguments_text ? STATUS_OK : decode_arguments(s, holder, v);
    if (!json_is_object(v))
        return refuse(s, STATUS_INVALID, "tool_calls",
                      "has a call whose 'arguments' are neither text nor an object");
    return s->shape->arguments_text ? encode_arguments(s, holder, v) : STATUS_OK;
}

static enum status shape_calls(const struct shaping *s, json_t *message)
{
    const json_t *v = json_object_get(message, "tool_calls");
    if (!v)
        return STATUS_OK;
    if (!json_is_array(v) || json_array_size(v) > CALLS_MAX)
        return refuse(s, STATUS_INVALID, "tool_calls", "must be a list of at most 128 calls");
    if (json_array_size(v) == 0) {
        (void)json_object_del(message, "tool_calls");
        return STATUS_OK;
    }
    json_t *calls = json_deep_copy(v);
    enum status st = calls ? STATUS_OK : no_memory(s->err);
    for (size_t i = 0; !st && i < json_array_size(calls); i++) {
        json_t *call = json_array_get(calls, i);
        st = json_is_object(call)
                 ? shape_call(s, call)
                 : refuse(s, STATUS_INVALID, "tool_calls", "must be a list of objects");
    }
    if (!st)
        return set_member(s, message, "tool_calls", calls);
    json_decref(calls);
    return st;
}

/* ---- messages ---- */

/* A role is a name in lower case. Templates have more of them than the API (ipython, document), so
 * the template judges; `developer` is what newer clients call `system`. NULL: refused. */
static const char *role_of(const json_t *message)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz_-";
    const json_t *v = json_object_get(message, "role");
    const char *role = json_string_value(v);
    if (!role || json_string_length(v) > ROLE_BYTES_MAX || *role == '\0' ||
        strspn(role, letters) != json_string_length(v))
        return NULL;
    return strcmp(role, "developer") == 0 ? "system" : role;
}

static enum status shape_message(const struct shaping *s, json_t *message, const char *role)
{
    const json_t *reasoning = json_object_get(message, "reasoning");
    enum status st = set_member(s, message, "role", json_string(role));
    drop_nulls(message);
    if (!st && json_is_string(reasoning) && !json_object_get(message, "reasoning_content"))
        st = set_member(s, message, "reasoning_content",
                        json_stringn(json_string_value(reasoning), json_string_length(reasoning)));
    if (!st)
        st = shape_calls(s, message);
    return st ? st : shape_content(s, message, role);
}

enum status messages_shape(const json_t *list, const struct chat_shape *shape, json_t **out,
                           struct errtext *err)
{
    struct shaping s = {.shape = shape, .err = err};
    enum status st = STATUS_OK;
    *out = NULL;
    if (!json_is_array(list) || json_array_size(list) == 0 ||
        json_array_size(list) > CHAT_MESSAGES_MAX)
        return err_param(err, STATUS_INVALID, "messages",
                         "'messages' must be a list of 1 to %d messages", CHAT_MESSAGES_MAX);
    json_t *shaped = json_array();
    for (; !st && s.idx < json_array_size(list); s.idx++) {
        json_t *item = json_array_get(list, s.idx);
        const char *role = role_of(item);
        json_t *copy = json_is_object(item) && role ? json_copy(item) : NULL;
        if (!json_is_object(item))
            st = err_param(err, STATUS_INVALID, "messages", "messages[%zu] must be an object",
                           s.idx);
        else if (!role)
            st = refuse(&s, STATUS_INVALID, "role",
                        "must be developer, system, user, assistant or tool, or another name in "
                        "lower case that the model's chat template knows");
        else
            st = copy ? shape_message(&s, copy, role) : no_memory(err);
        if (!st && json_array_append(shaped, copy))
            st = no_memory(err);
        json_decref(copy);
    }
    if (!st)
        *out = shaped;
    else
        json_decref(shaped);
    return st;
}
