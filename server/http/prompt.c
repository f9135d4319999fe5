/* Prompts to token ids. Completions take text (with the tokenizer's own special tokens) or ids,
 * one or many. Chat messages are checked, brought to one shape (content a string), rendered by the
 * model's template, and tokenized without adding what the template already wrote. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/http/json_field.h"
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

static enum status truncate_prompts(struct parse_state *p)
{
    int64_t keep = 0;
    const char *key = "truncate_prompt_tokens";
    enum status st = json_field_int(p->root, key, -1, INT32_MAX, &keep, p->err);
    if (st || !json_field(p->root, key))
        return st;
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
    }
    return STATUS_OK;
}

static enum status add_text(struct parse_state *p, const json_t *v, unsigned flags)
{
    CHECK(p->prompt_count < REQUEST_PROMPTS_MAX);
    return prompt_encode(p->env, json_string_value(v), json_string_length(v), flags,
                         &p->prompt[p->prompt_count++], p->err);
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
        if (!json_is_integer(item) || id < 0 || id >= n_vocab) {
            char found[96];
            json_picture(item, found, sizeof(found));
            return err_param(p->err, STATUS_INVALID, "prompt",
                             "'prompt' has %s where a token id from 0 to %lld is expected", found,
                             (long long)n_vocab - 1);
        }
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

/* What `echo` gives back: the text as it was sent; ids as they decode. */
static enum status keep_echo(struct parse_state *p, const json_t *v)
{
    bool many = json_is_array(v) && !json_is_integer(json_array_get(v, 0));
    struct gen_text *text = mem_try_array(p->prompt_count, sizeof(*text));
    enum status st = text ? STATUS_OK : STATUS_NO_MEMORY;
    p->spec->echo_text = text;
    for (uint32_t i = 0; !st && i < p->prompt_count; i++) {
        const json_t *item = many ? json_array_get(v, i) : v;
        p->spec->echo_count = i + 1;
        if (json_is_string(item)) {
            text[i].len = json_string_length(item);
            text[i].data = mem_try_strndup(json_string_value(item), text[i].len);
        } else {
            struct buf out;
            buf_init(&out, REQUEST_TEXT_BYTES_MAX);
            st = tokenizer_decode(p->env->model->tokenizer, p->prompt[i].ids, p->prompt[i].n,
                                  p->spec->skip_special, &out, p->err);
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
    bool add_special = true;
    size_t idx;
    json_t *item;
    enum status st = json_field_bool(p->root, "add_special_tokens", &add_special, p->err);
    if (st)
        return st;
    unsigned flags = TOKENIZE_PARSE_SPECIAL | (add_special ? TOKENIZE_ADD_SPECIAL : 0);
    if (!v)
        return err_param(p->err, STATUS_INVALID, "prompt", "'prompt' is missing");
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

static enum status refuse_part(const json_t *part, size_t idx, struct errtext *err)
{
    char param[64];
    const char *type = json_string_value(json_object_get(part, "type"));
    snprintf(param, sizeof(param), "messages[%zu].content", idx);
    if (!type)
        return err_param(err, STATUS_INVALID, param,
                         "each part of '%s' must be an object with a string 'type'", param);
    if (strcmp(type, "text") == 0 || strcmp(type, "refusal") == 0)
        return err_param(err, STATUS_INVALID, param,
                         "a part of '%s' has the type '%s' but no string '%s'", param, type, type);
    return err_param(err, STATUS_UNSUPPORTED, param,
                     "a content part of type '%.40s' is not supported by this server; only 'text' "
                     "is",
                     type);
}

/* A list of text parts -> one string, parts joined by a line break. */
static enum status join_parts(const json_t *parts, size_t idx, json_t **out, struct errtext *err)
{
    struct buf text;
    size_t k;
    json_t *part;
    enum status st = STATUS_OK;
    buf_init(&text, REQUEST_TEXT_BYTES_MAX);
    json_array_foreach(parts, k, part)
    {
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *v = json_object_get(part, "text");
        if (type && strcmp(type, "refusal") == 0)
            v = json_object_get(part, "refusal");
        else if (!type || strcmp(type, "text") != 0)
            v = NULL;
        if (!json_is_string(v)) {
            st = refuse_part(part, idx, err);
            break;
        }
        if (k > 0)
            buf_putc(&text, '\n');
        buf_put(&text, json_string_value(v), json_string_length(v));
    }
    if (!st && text.failed)
        st = err_param(err, STATUS_INVALID, "messages", "'messages' has more than %u bytes of text",
                       REQUEST_TEXT_BYTES_MAX);
    if (!st)
        *out = json_stringn(text.data ? text.data : "", text.len);
    if (!st && !*out)
        st = err_set(err, STATUS_NO_MEMORY, "there is no memory for this request now");
    buf_fini(&text);
    return st;
}

static enum status check_content(json_t *copy, size_t idx, const char *role, struct errtext *err)
{
    const json_t *v = json_object_get(copy, "content");
    json_t *text = NULL;
    char param[64];
    snprintf(param, sizeof(param), "messages[%zu].content", idx);
    if (json_is_string(v))
        return STATUS_OK;
    if (json_is_array(v)) {
        enum status st = join_parts(v, idx, &text, err);
        if (!st && json_object_set_new(copy, "content", text))
            st = err_set(err, STATUS_NO_MEMORY, "there is no memory for this request now");
        return st;
    }
    if ((!v || json_is_null(v)) && strcmp(role, "assistant") == 0)
        return json_object_set_new(copy, "content", json_string(""))
                   ? err_set(err, STATUS_NO_MEMORY, "there is no memory for this request now")
                   : STATUS_OK;
    return err_param(err, STATUS_INVALID, param, "'%s' must be a string or a list of content parts",
                     param);
}

/* A message in the one shape templates get: role known to old templates, content a string. */
static enum status normalize_message(const json_t *message, size_t idx, json_t *list,
                                     struct errtext *err)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool", "function"};
    char param[64];
    bool known = false;
    snprintf(param, sizeof(param), "messages[%zu].role", idx);
    const char *role = json_string_value(json_object_get(message, "role"));
    if (!json_is_object(message))
        return err_param(err, STATUS_INVALID, "messages", "messages[%zu] must be an object", idx);
    if (role && strcmp(role, "developer") == 0)
        role = "system";
    for (size_t i = 0; role && i < ARRAY_COUNT(roles); i++)
        known = known || strcmp(role, roles[i]) == 0;
    if (!known)
        return err_param(err, STATUS_INVALID, param,
                         "'%s' must be developer, system, user, assistant or tool", param);
    json_t *copy = json_copy((json_t *)(uintptr_t)message);
    if (!copy || json_object_set_new(copy, "role", json_string(role))) {
        json_decref(copy);
        return err_set(err, STATUS_NO_MEMORY, "there is no memory for this request now");
    }
    enum status st = check_content(copy, idx, role, err);
    if (!st && json_array_append(list, copy))
        st = err_set(err, STATUS_NO_MEMORY, "there is no memory for this request now");
    json_decref(copy);
    return st;
}

/* {messages, tools, add_generation_prompt, bos_token, eos_token} + chat_template_kwargs. */
static enum status make_context(const struct parse_env *env, const json_t *root, json_t *context,
                                json_t *messages, struct errtext *err)
{
    const json_t *kwargs = json_field(root, "chat_template_kwargs");
    const json_t *tools = json_field(root, "tools");
    bool generation = true, go_on = false;
    enum status st = json_field_bool(root, "add_generation_prompt", &generation, err);
    if (!st)
        st = json_field_bool(root, "continue_final_message", &go_on, err);
    if (!st && kwargs && !json_is_object(kwargs))
        st = err_param(err, STATUS_INVALID, "chat_template_kwargs",
                       "'chat_template_kwargs' must be an object");
    if (st)
        return st;
    if (go_on && json_field(root, "add_generation_prompt") && generation)
        return err_param(err, STATUS_INVALID, "continue_final_message",
                         "'continue_final_message' and 'add_generation_prompt' exclude each other");
    int failed = kwargs ? json_object_update(context, (json_t *)(uintptr_t)kwargs) : 0;
    failed |= json_object_set(context, "messages", messages);
    if (json_is_array(tools) && json_array_size(tools) > 0)
        failed |= json_object_set(context, "tools", (json_t *)(uintptr_t)tools);
    failed |=
        json_object_set_new(context, "add_generation_prompt", json_boolean(generation && !go_on));
    failed |= json_object_set_new(context, "bos_token", json_string(env->model->bos_token));
    failed |= json_object_set_new(context, "eos_token", json_string(env->model->eos_token));
    return failed ? err_set(err, STATUS_NO_MEMORY, "there is no memory for this request now")
                  : STATUS_OK;
}

/* continue_final_message: cut what the template put after the last message's text. */
static enum status cut_after_final(const json_t *root, const json_t *messages, struct buf *text,
                                   struct errtext *err)
{
    bool go_on = false;
    enum status st = json_field_bool(root, "continue_final_message", &go_on, err);
    if (st || !go_on)
        return st;
    const json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    const char *content = json_string_value(json_object_get(last, "content"));
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
    const json_t *list = json_field(root, "messages");
    size_t idx;
    json_t *item, *messages = NULL, *context = NULL;
    enum status st = STATUS_OK;
    if (!env->model->chat)
        return err_param(err, STATUS_INVALID, "messages",
                         "this model has no chat template; use /v1/completions");
    if (!json_is_array(list) || json_array_size(list) == 0 ||
        json_array_size(list) > REQUEST_MESSAGES_MAX)
        return err_param(err, STATUS_INVALID, "messages",
                         "'messages' must be a list of 1 to %d messages", REQUEST_MESSAGES_MAX);
    messages = json_array();
    context = json_object();
    if (!messages || !context)
        st = err_set(err, STATUS_NO_MEMORY, "there is no memory for this request now");
    json_array_foreach(list, idx, item)
    {
        if (!st)
            st = normalize_message(item, idx, messages, err);
    }
    if (!st)
        st = make_context(env, root, context, messages, err);
    if (!st) {
        st = chat_template_render(env->model->chat, context, text, err);
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
    bool add_special = false;
    enum status st = json_field_bool(p->root, "add_special_tokens", &add_special, p->err);
    buf_init(&text, REQUEST_TEXT_BYTES_MAX);
    if (!st)
        st = prompt_render_chat(p->env, p->root, &text, p->err);
    if (!st)
        st = prompt_encode(p->env, text.data ? text.data : "", text.len,
                           TOKENIZE_PARSE_SPECIAL | (add_special ? TOKENIZE_ADD_SPECIAL : 0),
                           &p->prompt[p->prompt_count++], p->err);
    buf_fini(&text);
    return st ? st : truncate_prompts(p);
}
