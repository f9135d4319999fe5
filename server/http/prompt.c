/* Prompts to token ids. Completions take text (with the tokenizer's own special tokens) or ids,
 * one or many. Chat messages take the shape the model's template wants (text/messages.c), are
 * rendered by it, and tokenized without adding what the template already wrote. A token that the
 * model has no row for (a tokenizer may have more than the embedding) is refused where it is used.
 */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/http/parse_state.h"

#include <stdio.h>
#include <string.h>

enum status prompt_encode(const struct parse_env *env, const char *text, size_t len, unsigned flags,
                          struct token_list *out, struct errtext *err)
{
    const char *param = env->chat ? "messages" : "prompt";
    if (len > REQUEST_TEXT_BYTES_MAX)
        return err_param(err, STATUS_INVALID, param,
                         "'%s' has %zu bytes of text; at most %u are "
                         "accepted",
                         param, len, REQUEST_TEXT_BYTES_MAX);
    /* One id more than the context, so that the refusal can be told from a prompt that just fits.
     * A count past it is not known exactly, and need not be. */
    out->n_max = TOKENIZE_TEXT_BYTES_MAX;
    enum status st = tokenizer_encode(env->model->tokenizer, text, len, flags, out, err);
    if (st)
        err_prefix(err, "'%s' cannot be tokenized", param);
    return st;
}

enum status prompt_check_bytes(const struct parse_state *p, size_t len)
{
    const char *param = p->env->chat ? "messages" : "prompt";
    size_t per_id = tokenizer_bytes_per_id_max(p->env->model->tokenizer);
    if (per_id == SIZE_MAX || len / per_id < p->env->context_max ||
        json_field(p->root, "truncate_prompt_tokens"))
        return STATUS_OK;
    return err_coded(p->err, STATUS_INVALID, "context_length_exceeded", param,
                     "This model's maximum context length is %u tokens. However, your prompt has "
                     "%zu bytes, which are more: no token stands for more than %zu bytes. Shorten "
                     "it.",
                     p->env->context_max, len, per_id);
}

/* All texts of a list, before the first is tokenized. */
static enum status check_texts(const struct parse_state *p, const json_t *v)
{
    size_t idx;
    json_t *item;
    if (json_is_string(v))
        return prompt_check_bytes(p, json_string_length(v));
    json_array_foreach(v, idx, item)
    {
        enum status st =
            json_is_string(item) ? prompt_check_bytes(p, json_string_length(item)) : STATUS_OK;
        if (st)
            return st;
    }
    return STATUS_OK;
}

static enum status truncate_prompts(struct parse_state *p)
{
    const char *key = "truncate_prompt_tokens";
    int64_t keep = json_read_int(&p->in, key, (struct json_range){-1, INT32_MAX}, 0);
    if (p->in.st || !json_has(&p->in, key))
        return p->in.st;
    if (keep == 0)
        return err_param(p->err, STATUS_INVALID, key,
                         "'%s' must be at least 1, or -1 for the context length", key);
    size_t n_keep = keep < 0 ? p->env->context_max - 1 : (size_t)keep;
    for (uint32_t i = 0; i < p->prompt_count; i++) {
        struct token_list *t = &p->prompt[i];
        if (t->n <= n_keep)
            continue;
        memmove(t->ids, t->ids + (t->n - n_keep), n_keep * sizeof(*t->ids));
        t->n = n_keep;
        p->truncated[i] = true;
    }
    return STATUS_OK;
}

/* Ids past the embedding exist in some tokenizers ([PAD] behind a full vocabulary). */
static enum status check_rows(const struct parse_env *env, const struct token_list *ids,
                              struct errtext *err)
{
    const char *param = env->chat ? "messages" : "prompt";
    for (size_t i = 0; i < ids->n; i++) {
        size_t len;
        int32_t id = ids->ids[i];
        if ((uint32_t)id < env->model->config.n_vocab)
            continue;
        const char *text = tokenizer_token_bytes(env->model->tokenizer, id, &len);
        return err_param(err, STATUS_INVALID, param,
                         "'%s' has the token '%.*s' (id %d), which the tokenizer knows and the "
                         "model does not: it has %u tokens",
                         param, (int)MIN(len, 64), text ? text : "", id,
                         env->model->config.n_vocab);
    }
    return STATUS_OK;
}

static enum status add_text(struct parse_state *p, const json_t *v, unsigned flags)
{
    CHECK(p->prompt_count < REQUEST_PROMPTS_MAX);
    struct token_list *ids = &p->prompt[p->prompt_count++];
    enum status st =
        prompt_encode(p->env, json_string_value(v), json_string_length(v), flags, ids, p->err);
    return st ? st : check_rows(p->env, ids, p->err);
}

static enum status add_ids(struct parse_state *p, const json_t *list)
{
    struct token_list *out = &p->prompt[p->prompt_count];
    size_t n = json_array_size(list), idx;
    int64_t n_vocab = p->env->model->config.n_vocab;
    json_t *item;
    out->ids = mem_try_array(n, sizeof(*out->ids));
    if (!out->ids)
        return err_set(p->err, STATUS_NO_MEMORY, "there is no memory for this request now");
    p->prompt_count++;
    json_array_foreach(list, idx, item)
    {
        int64_t id = (int64_t)json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id >= n_vocab)
            return err_param(p->err, STATUS_INVALID, "prompt",
                             "'prompt' has %s where a token id from 0 to %lld is expected",
                             json_shown(item), (long long)n_vocab - 1);
        out->ids[out->n++] = (int32_t)id;
    }
    return STATUS_OK;
}

static enum status add_item(struct parse_state *p, const json_t *item, unsigned flags)
{
    if (json_is_string(item))
        return add_text(p, item, flags);
    if (json_is_array(item))
        return add_ids(p, item);
    return err_param(p->err, STATUS_INVALID, "prompt",
                     "'prompt' must be a string, a list of strings, a list of token ids or a list "
                     "of such lists");
}

/* What `echo` gives back: the text as it was sent; ids, and what is left of a text that was cut, as
 * they decode. */
static enum status keep_echo(struct parse_state *p, const json_t *v)
{
    bool many = json_is_array(v) && !json_is_integer(json_array_get(v, 0));
    struct gen_text *text = mem_try_array(p->prompt_count, sizeof(*text));
    enum status st = text ? STATUS_OK : STATUS_NO_MEMORY;
    p->spec->echo_text = text;
    for (uint32_t i = 0; !st && i < p->prompt_count; i++) {
        const json_t *item = many ? json_array_get(v, i) : v;
        p->spec->echo_count = i + 1;
        text[i].sent = json_is_string(item) && !p->truncated[i];
        if (text[i].sent) {
            text[i].len = json_string_length(item);
            text[i].data = mem_try_strndup(json_string_value(item), text[i].len);
        } else {
            struct buf out;
            buf_init(&out, REQUEST_TEXT_BYTES_MAX);
            st = tokenizer_decode(p->env->model->tokenizer, p->prompt[i].ids, p->prompt[i].n,
                                  !p->params.show_special, &out, p->err);
            text[i].data = buf_steal(&out, &text[i].len);
        }
        if (!st && !text[i].data)
            st = STATUS_NO_MEMORY;
    }
    return st == STATUS_NO_MEMORY ? err_set(p->err, st, "there is no memory to echo the prompt now")
                                  : st;
}

enum status parse_prompts(struct parse_state *p)
{
    const json_t *v = json_field(p->root, "prompt");
    bool add_special = json_read_bool(&p->in, "add_special_tokens", true);
    size_t idx;
    json_t *item;
    enum status st = p->in.st;
    if (st)
        return st;
    unsigned flags = TOKENIZE_PARSE_SPECIAL | (add_special ? TOKENIZE_ADD_SPECIAL : 0);
    if (!v)
        return err_param(p->err, STATUS_INVALID, "prompt", "'prompt' is missing");
    st = check_texts(p, v);
    if (st)
        return st;
    if (!json_is_array(v)) {
        st = add_item(p, v, flags);
    } else if (json_array_size(v) == 0) {
        st = err_param(p->err, STATUS_INVALID, "prompt", "'prompt' is an empty list");
    } else if (json_is_integer(json_array_get(v, 0))) {
        st = add_ids(p, v);
    } else if (json_array_size(v) > REQUEST_PROMPTS_MAX) {
        st = err_param(p->err, STATUS_INVALID, "prompt",
                       "'prompt' has %zu prompts; at most %d are accepted", json_array_size(v),
                       REQUEST_PROMPTS_MAX);
    } else {
        json_array_foreach(v, idx, item)
        {
            st = add_item(p, item, flags);
            if (st)
                break;
        }
    }
    if (!st)
        st = truncate_prompts(p);
    if (!st && p->spec->echo)
        st = keep_echo(p, v);
    return st;
}

/* ---- chat ---- */

/* What the reference gives a template: the special tokens, no tools and no documents unless they
 * are given, chat_template_kwargs over these, and the messages. */
static enum status make_context(const struct parse_env *env, const json_t *root, json_t *context,
                                json_t *messages, struct errtext *err)
{
    struct json_reader in = {.obj = root, .err = err};
    const json_t *kwargs = json_enter(&in, "chat_template_kwargs").obj;
    const json_t *tools = json_field(root, "tools");
    bool generation = json_read_bool(&in, "add_generation_prompt", true);
    bool go_on = json_read_bool(&in, "continue_final_message", false);
    if (in.st)
        return in.st;
    if (go_on && json_has(&in, "add_generation_prompt") && generation)
        return err_param(err, STATUS_INVALID, "continue_final_message",
                         "'continue_final_message' and 'add_generation_prompt' exclude each other");
    int failed = 0;
    for (size_t i = 0; i < env->model->special_count; i++)
        failed |= json_object_set_new(context, env->model->special[i].name,
                                      json_string(env->model->special[i].text));
    failed |= json_object_set_new(context, "tools", json_null());
    failed |= json_object_set_new(context, "documents", json_null());
    if (kwargs)
        failed |= json_object_update(context, (json_t *)(uintptr_t)kwargs);
    failed |= json_object_set(context, "messages", messages);
    if (json_is_array(tools) && json_array_size(tools) > 0)
        failed |= json_object_set(context, "tools", (json_t *)(uintptr_t)tools);
    failed |=
        json_object_set_new(context, "add_generation_prompt", json_boolean(generation && !go_on));
    return failed ? err_set(err, STATUS_NO_MEMORY, "there is no memory for this request now")
                  : STATUS_OK;
}

/* The text of the last message, in either form of content. */
static const char *final_text(const json_t *messages)
{
    const json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    const json_t *v = json_object_get(last, "content");
    if (json_is_array(v))
        v = json_object_get(json_array_get(v, json_array_size(v) - 1), "text");
    return json_is_string(v) ? json_string_value(v) : "";
}

/* continue_final_message: cut what the template put after the last message's text. */
static enum status cut_after_final(const json_t *root, const json_t *messages, struct buf *text,
                                   struct errtext *err)
{
    struct json_reader in = {.obj = root, .err = err};
    if (!json_read_bool(&in, "continue_final_message", false))
        return in.st;
    const char *content = final_text(messages);
    size_t len = strlen(content);
    while (len > 0 && strchr(" \t\r\n", content[len - 1]))
        len--;
    for (size_t at = text->len >= len ? text->len - len + 1 : 0; at-- > 0 && len > 0;) {
        if (memcmp(text->data + at, content, len) == 0) {
            text->len = at + len;
            text->data[text->len] = '\0';
            return STATUS_OK;
        }
    }
    return err_param(err, STATUS_INVALID, "continue_final_message",
                     "'continue_final_message' cannot be used: the last message's text does not "
                     "appear in the rendered prompt");
}

enum status prompt_render_chat(const struct parse_env *env, const json_t *root, struct buf *text,
                               struct errtext *err)
{
    json_t *messages = NULL, *context = json_object();
    if (!env->chat_template) {
        json_decref(context);
        return env->chat_refusal
                   ? err_coded(err, STATUS_INVALID, "no_chat_template", "messages",
                               "no chat is served with this model, for its chat template cannot be "
                               "used (%s); use /v1/completions",
                               env->chat_refusal)
                   : err_coded(err, STATUS_INVALID, "no_chat_template", "messages",
                               "this model has no chat template; use /v1/completions");
    }
    enum status st =
        context ? STATUS_OK
                : err_set(err, STATUS_NO_MEMORY, "there is no memory for this request now");
    if (!st)
        st = messages_shape(json_field(root, "messages"), chat_template_shape(env->chat_template),
                            &messages, err);
    if (!st)
        st = make_context(env, root, context, messages, err);
    if (!st) {
        st = chat_template_render(env->chat_template, context, text, err);
        if (st) {
            err_prefix(err, "the chat template refused the messages");
            if (err && !err->param[0])
                snprintf(err->param, sizeof(err->param), "messages");
            st = st == STATUS_NO_MEMORY ? st : STATUS_INVALID;
        }
    }
    if (!st)
        st = cut_after_final(root, messages, text, err);
    json_decref(messages);
    json_decref(context);
    return st;
}

enum status parse_messages(struct parse_state *p)
{
    struct buf text;
    bool add_special = json_read_bool(&p->in, "add_special_tokens", false);
    enum status st = p->in.st;
    buf_init(&text, REQUEST_TEXT_BYTES_MAX);
    if (!st)
        st = prompt_render_chat(p->env, p->root, &text, p->err);
    if (!st)
        st = prompt_check_bytes(p, text.len);
    if (!st)
        st = prompt_encode(p->env, text.data ? text.data : "", text.len,
                           TOKENIZE_PARSE_SPECIAL | (add_special ? TOKENIZE_ADD_SPECIAL : 0),
                           &p->prompt[p->prompt_count++], p->err);
    if (!st)
        st = check_rows(p->env, &p->prompt[p->prompt_count - 1], p->err);
    buf_fini(&text);
    return st ? st : truncate_prompts(p);
}
