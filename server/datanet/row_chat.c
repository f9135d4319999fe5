/* See row_chat.h. */
#include "server/datanet/row_chat.h"
#include "server/text/messages.h"
#include "server/text/turns.h"

#include <string.h>

#define TOOLS_MAX 128

/* ---- the line ---- */

static void check_message(struct json_reader *r, size_t i, const json_t *message)
{
    struct json_reader m = json_enter_item(r, "messages", i, message);
    const char *role = json_need_string(&m, "role");
    const json_t *content = json_field(m.obj, "content");
    bool assistant = strcmp(role, "assistant") == 0;
    (void)json_read_string(&m, "name");
    if (!content && !(assistant && json_has(&m, "tool_calls")))
        (void)json_need_string(&m, "content");
    else if (content && !json_is_array(content))
        (void)json_read_string(&m, "content");
    if (json_has(&m, "weight") && !assistant)
        json_fail(&m, STATUS_INVALID, "weight",
                  "found one of the role %.32s, expected weights of assistant messages alone",
                  role);
    (void)json_read_int(&m, "weight", (struct json_range){0, 1}, 1);
    if (json_has(&m, "function_call"))
        json_fail(&m, STATUS_UNSUPPORTED, "function_call", "found one, expected tool_calls");
}

void row_chat_check(struct json_reader *r)
{
    const json_t *list = json_need_list(r, "messages", CHAT_MESSAGES_MAX);
    for (size_t i = 0; i < json_array_size(list); i++)
        check_message(r, i, json_array_get(list, i));
    if (!r->st && json_array_size(list) == 0)
        json_fail(r, STATUS_INVALID, "messages", "found none, expected {role, content}");
    (void)json_read_list(r, "tools", TOOLS_MAX);
    if (json_has(r, "functions"))
        json_fail(r, STATUS_UNSUPPORTED, "functions", "found some, expected tools");
    if (r->st)
        return;
    const struct chat_shape any = {.arguments_text = true}; /* calls and parts of content */
    json_t *shaped;
    struct errtext why = ERRTEXT_INIT;
    enum status st = messages_shape(list, &any, &shaped, &why);
    if (st)
        json_fail(r, st, why.param[0] ? why.param : "messages", "%s", why.text);
    else
        json_decref(shaped);
}

/* ---- the conversation ---- */

static enum status make_context(struct row_chat *c, const struct row_form *form,
                                struct errtext *err)
{
    const struct model *m = form->model;
    json_t *tools = json_object_get(c->row, "tools");
    int failed = (c->context = json_object()) ? 0 : 1;
    for (size_t i = 0; i < json_array_size(c->messages); i++)
        (void)json_object_del(json_array_get(c->messages, i), "weight");
    for (size_t i = 0; i < m->special_count; i++)
        failed |=
            json_object_set_new(c->context, m->special[i].name, json_string(m->special[i].text));
    failed |= json_object_set_new(c->context, "tools", json_null());
    if (json_is_array(tools) && json_array_size(tools) > 0)
        failed |= json_object_set(c->context, "tools", tools);
    failed |= json_object_set_new(c->context, "documents", json_null());
    failed |= json_object_set_new(c->context, "add_generation_prompt", json_false());
    failed |= json_object_set(c->context, "messages", c->messages);
    return failed ? err_set(err, STATUS_NO_MEMORY, "no memory for a row") : STATUS_OK;
}

enum status row_chat_open(struct row_chat *c, const struct row_form *form, const char *row,
                          size_t len, struct errtext *err)
{
    *c = (struct row_chat){0};
    if (!form || !form->chat)
        return err_set(err, STATUS_UNSUPPORTED,
                       "a row of messages needs a chat template, and the model has none");
    enum status st = json_doc_parse(&c->row, "row", row, len, 0, err);
    if (!st)
        st = messages_shape(json_object_get(c->row, "messages"), chat_template_shape(form->chat),
                            &c->messages, err);
    if (!st)
        st = make_context(c, form, err);
    if (st)
        row_chat_close(c);
    return st;
}

void row_chat_close(struct row_chat *c)
{
    json_decref(c->context);
    json_decref(c->messages);
    json_decref(c->row);
    *c = (struct row_chat){0};
}

enum status row_chat_render(const struct row_chat *c, const struct row_form *form, struct buf *out,
                            struct chat_spans *marks, struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    enum status st = marks ? chat_template_render_marked(form->chat, c->context, out, marks, &why)
                           : chat_template_render(form->chat, c->context, out, &why);
    if (st != STATUS_INVALID)
        return st ? err_set(err, st, "%s", why.text) : STATUS_OK;
    size_t m = chat_turn_refused(form->chat, c->context);
    const json_t *role = json_object_get(json_array_get(c->messages, m), "role");
    return err_set(err, st, "messages[%zu] (role %.32s) is refused by the base's chat template: %s",
                   m, json_string_value(role), why.text);
}
