/* A row as the model reads it. A conversation goes through the adapter's template, which writes the
 * control tokens; everything else is plain text, whatever it looks like. */
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/datanet/row_chat.h"

#include <string.h>

#define TEXT_BYTES_MAX (8u << 20) /* a line of JSON, rendered */

static void put(struct buf *out, const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    if (v)
        buf_put(out, json_string_value(v), json_string_length(v));
}

static enum status render_chat(const struct row_form *form, const char *row, size_t len,
                               struct buf *out, struct errtext *err)
{
    struct row_chat c;
    enum status st = row_chat_open(&c, form, row, len, err);
    if (st)
        return st;
    st = row_chat_render(&c, form, out, NULL, err);
    row_chat_close(&c);
    return st;
}

enum status row_render(const struct row_form *form, enum rows_kind kind, const char *row,
                       size_t len, struct buf *out, struct errtext *err)
{
    json_t *json;
    if (kind == ROWS_TEXT || kind == ROWS_MARKDOWN) {
        buf_put(out, row, len);
        return out->failed ? err_set(err, STATUS_NO_MEMORY, "no memory for a row") : STATUS_OK;
    }
    if (kind == ROWS_CHATS)
        return render_chat(form, row, len, out, err);
    enum status st = json_doc_parse(&json, "row", row, len, 0, err);
    if (st)
        return st;
    put(out, json, "text");
    put(out, json, "prompt");
    put(out, json, "completion");
    json_decref(json);
    return out->failed ? err_set(err, STATUS_NO_MEMORY, "no memory for a row") : STATUS_OK;
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
