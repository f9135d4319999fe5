/* /tokenize and /detokenize in vLLM's shapes: text or chat messages -> ids, ids -> text. Both
 * answer for the base's tokenizer, which every adapter shares; `model` is checked if given.
 * /tokenizer_info shows that tokenizer's settings, chat template included. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/http/auth.h"
#include "server/http/handlers.h"
#include "server/http/parse_state.h"
#include "server/http/reply.h"
#include "server/http/state.h"

#include <string.h>

#define DETOKENIZE_COUNT_MAX (1u << 20)

static struct parse_env make_env(struct exchange *x, bool chat)
{
    struct http_server *s = x->server;
    return (struct parse_env){.model = s->deps.model,
                              .catalog = s->deps.catalog,
                              .model_name = s->opt.model_name,
                              .context_max = s->context_max,
                              .key = x->key,
                              .roles = x->roles,
                              .chat = chat};
}

/* *out: the adapter that `model` names, a reference; NULL for the base. */
static enum status find_model(struct exchange *x, const json_t *root, struct adapter_entry **out,
                              struct errtext *err)
{
    struct json_reader in = {.obj = root, .err = err};
    const char *name = json_read_string(&in, "model");
    *out = NULL;
    if (!name || strcmp(name, x->server->opt.model_name) == 0)
        return in.st;
    struct catalog *c = auth_allows_adapter(x->key, name) ? x->server->deps.catalog : NULL;
    *out = c ? catalog_find(c, name) : NULL;
    return *out ? STATUS_OK : target_unknown(c, "model", name, err);
}

static enum status encode(struct exchange *x, const json_t *root, struct adapter_entry *adapter,
                          struct token_list *ids, struct errtext *err)
{
    struct json_reader in = {.obj = root, .err = err};
    const json_t *prompt = json_field(root, "prompt");
    bool chat = !prompt && json_has(&in, "messages");
    bool add_special = json_read_bool(&in, "add_special_tokens", !chat);
    struct parse_env env = make_env(x, chat);
    struct buf text;
    if (in.st)
        return in.st;
    unsigned flags = TOKENIZE_PARSE_SPECIAL | (add_special ? TOKENIZE_ADD_SPECIAL : 0);
    if (json_is_string(prompt))
        return prompt_encode(&env, json_string_value(prompt), json_string_length(prompt), flags,
                             ids, err);
    if (!chat)
        return err_param(err, STATUS_INVALID, "prompt",
                         "give 'prompt' (a string) or 'messages' (a list)");
    buf_init(&text, REQUEST_TEXT_BYTES_MAX);
    enum status st = target_chat(&env, &adapter, adapter ? 1 : 0, err);
    if (!st)
        st = prompt_render_chat(&env, root, &text, err);
    if (!st)
        st = prompt_encode(&env, text.data ? text.data : "", text.len, flags, ids, err);
    buf_fini(&text);
    return st;
}

static void put_token_strings(struct exchange *x, const struct token_list *ids)
{
    buf_putc(&x->out, '[');
    for (size_t i = 0; i < ids->n; i++) {
        size_t len = 0;
        const char *bytes =
            tokenizer_token_bytes(x->server->deps.model->tokenizer, ids->ids[i], &len);
        buf_puts(&x->out, i ? "," : "");
        buf_put_json_string(&x->out, bytes ? bytes : "", bytes ? len : 0);
    }
    buf_putc(&x->out, ']');
}

void handle_tokenize(struct exchange *x)
{
    json_t *root = NULL;
    struct errtext err = ERRTEXT_INIT;
    struct token_list ids = {0};
    struct adapter_entry *adapter = NULL;
    enum status st =
        json_doc_parse(&root, "the body", x->body.data, x->body.len, JSON_DOC_NUL, &err);
    struct json_reader in = {.obj = root, .st = st, .err = &err};
    bool strings = json_read_bool(&in, "return_token_strs", false);
    st = in.st;
    if (!st)
        st = find_model(x, root, &adapter, &err);
    if (!st)
        st = encode(x, root, adapter, &ids, &err);
    if (st) {
        exchange_fail(x, st, &err);
    } else {
        buf_printf(&x->out, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":", ids.n,
                   x->server->context_max);
        reply_put_ids(&x->out, ids.ids, (uint32_t)ids.n);
        buf_puts(&x->out, ",\"token_strs\":");
        if (strings)
            put_token_strings(x, &ids);
        else
            buf_puts(&x->out, "null");
        buf_putc(&x->out, '}');
        exchange_json(x, 200);
    }
    catalog_release(adapter);
    mem_free(ids.ids);
    json_decref(root);
}

static enum status read_tokens(struct exchange *x, const json_t *root, struct token_list *ids,
                               struct errtext *err)
{
    const json_t *list = json_field(root, "tokens");
    const struct model *m = x->server->deps.model;
    int64_t n_vocab = MAX(m->config.n_vocab, tokenizer_vocab_size(m->tokenizer));
    size_t idx;
    json_t *item;
    if (!json_is_array(list) || json_array_size(list) > DETOKENIZE_COUNT_MAX)
        return err_param(err, STATUS_INVALID, "tokens",
                         "'tokens' must be a list of at most %u token ids", DETOKENIZE_COUNT_MAX);
    ids->ids = mem_try_array(json_array_size(list), sizeof(*ids->ids));
    if (!ids->ids)
        return err_set(err, STATUS_NO_MEMORY, "there is no memory for this request now");
    json_array_foreach(list, idx, item)
    {
        int64_t id = (int64_t)json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id >= n_vocab)
            return err_param(err, STATUS_INVALID, "tokens",
                             "tokens[%zu] must be a token id from 0 to %lld", idx,
                             (long long)n_vocab - 1);
        ids->ids[ids->n++] = (int32_t)id;
    }
    return STATUS_OK;
}

void handle_detokenize(struct exchange *x)
{
    json_t *root = NULL;
    struct errtext err = ERRTEXT_INIT;
    struct token_list ids = {0};
    struct adapter_entry *adapter = NULL;
    struct buf text;
    buf_init(&text, REQUEST_TEXT_BYTES_MAX);
    enum status st =
        json_doc_parse(&root, "the body", x->body.data, x->body.len, JSON_DOC_NUL, &err);
    if (!st)
        st = find_model(x, root, &adapter, &err);
    if (!st)
        st = read_tokens(x, root, &ids, &err);
    if (!st)
        st = tokenizer_decode(x->server->deps.model->tokenizer, ids.ids, ids.n, false, &text, &err);
    if (st) {
        exchange_fail(x, st, &err);
    } else {
        buf_puts(&x->out, "{\"prompt\":");
        buf_put_json_string(&x->out, text.data ? text.data : "", text.len);
        buf_putc(&x->out, '}');
        exchange_json(x, 200);
    }
    buf_fini(&text);
    catalog_release(adapter);
    mem_free(ids.ids);
    json_decref(root);
}

void handle_tokenizer_info(struct exchange *x)
{
    buf_puts(&x->out, x->server->deps.model->tokenizer_info);
    exchange_json(x, 200);
}
