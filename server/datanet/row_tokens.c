/* A row as the model reads it. A conversation goes through the adapter's template, which writes the
 * control tokens; everything else is plain text, whatever it looks like. */
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/datanet/rows.h"

#include <string.h>

#define TEXT_BYTES_MAX (8u << 20) /* a line of JSON, rendered */

/* Templates that walk content as parts get one part of text. */
static int shape_messages(json_t *messages, const struct chat_shape *shape)
{
    size_t i;
    json_t *m;
    int failed = 0;
    if (!shape->content_parts)
        return 0;
    json_array_foreach(messages, i, m)
    {
        json_t *content = json_object_get(m, "content");
        failed |= json_object_set_new(m, "content",
                                      json_pack("[{s:s, s:O}]", "type", "text", "text", content));
    }
    return failed;
}

static enum status render(const struct row_form *form, json_t *row, struct buf *out,
                          struct errtext *err)
{
    json_t *messages = json_object_get(row, "messages"), *context = json_object();
    int failed = shape_messages(messages, chat_template_shape(form->chat));
    for (size_t i = 0; i < form->model->special_count; i++)
        failed |= json_object_set_new(context, form->model->special[i].name,
                                      json_string(form->model->special[i].text));
    failed |= json_object_set_new(context, "tools", json_null());
    failed |= json_object_set_new(context, "documents", json_null());
    failed |= json_object_set_new(context, "add_generation_prompt", json_false());
    failed |= json_object_set(context, "messages", messages);
    enum status st = failed ? err_set(err, STATUS_NO_MEMORY, "no memory for a row")
                            : chat_template_render(form->chat, context, out, err);
    json_decref(context);
    return st;
}

static void put(struct buf *out, const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    if (v)
        buf_put(out, json_string_value(v), json_string_length(v));
}

enum status row_render(const struct row_form *form, enum rows_kind kind, const char *row,
                       size_t len, struct buf *out, struct errtext *err)
{
    json_t *json;
    if (kind == ROWS_TEXT || kind == ROWS_MARKDOWN) {
        buf_put(out, row, len);
        return out->failed ? err_set(err, STATUS_NO_MEMORY, "no memory for a row") : STATUS_OK;
    }
    if (kind == ROWS_CHATS && (!form || !form->chat))
        return err_set(err, STATUS_UNSUPPORTED,
                       "a row of messages needs a chat template, and the model has none");
    enum status st = json_doc_parse(&json, "row", row, len, 0, err);
    if (st)
        return st;
    if (kind == ROWS_CHATS) {
        st = render(form, json, out, err);
    } else {
        put(out, json, "text");
        put(out, json, "prompt");
        put(out, json, "completion");
    }
    json_decref(json);
    return st || !out->failed ? st : err_set(err, STATUS_NO_MEMORY, "no memory for a row");
}

static enum status put_special(const struct row_form *form, const char *name,
                               struct token_list *out, struct errtext *err)
{
    const char *text = model_special_text(form->model, name);
    int32_t id = text ? tokenizer_token_to_id(form->model->tokenizer, text) : -1;
    if (id < 0)
        return err_set(err, STATUS_INVALID,
                       "training.json asks for the %s around rows, the tokenizer has none", name);
    return token_list_add(out, id, err);
}

enum status row_prompt(const struct row_form *form, enum rows_kind kind, const char *row,
                       size_t len, struct token_list *out, struct errtext *err)
{
    json_t *json;
    out->n_max = out->n + TEXT_BYTES_MAX;
    if (kind != ROWS_ROWS)
        return STATUS_OK;
    enum status st = json_doc_parse(&json, "row", row, len, 0, err);
    if (st)
        return st;
    const json_t *text = json_object_get(json, "prompt");
    if (text && form->bos)
        st = put_special(form, "bos_token", out, err);
    if (!st && json_string_length(text) > 0)
        st = tokenizer_encode(form->model->tokenizer, json_string_value(text),
                              json_string_length(text), 0, out, err);
    json_decref(json);
    return st;
}

enum status row_tokens(const struct row_form *form, enum rows_kind kind, const char *row,
                       size_t len, struct token_list *out, bool *cut, struct errtext *err)
{
    struct buf text;
    size_t first = out->n;
    bool chat = kind == ROWS_CHATS;
    buf_init(&text, TEXT_BYTES_MAX);
    out->n_max = first + TEXT_BYTES_MAX;
    enum status st = row_render(form, kind, row, len, &text, err);
    if (!st && form->bos && !chat)
        st = put_special(form, "bos_token", out, err);
    if (!st && text.len)
        st = tokenizer_encode(form->model->tokenizer, text.data, text.len,
                              chat ? TOKENIZE_PARSE_SPECIAL : 0, out, err);
    if (!st && form->eos && !chat)
        st = put_special(form, "eos_token", out, err);
    buf_fini(&text);
    *cut = out->n > first + ROW_TOKENS_MAX;
    if (*cut)
        out->n = first + ROW_TOKENS_MAX;
    return st;
}
