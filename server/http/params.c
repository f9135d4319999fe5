/* Sampling and answer fields. Limits are the OpenAI documents' where they give one; the defaults of
 * temperature and the like come from the model's generation_config.json, as vLLM does. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/http/parse_state.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Fields we understand and do not do. An empty list, false, or "none" asks for nothing. */
static bool asks_for_nothing(const json_t *v)
{
    return !v || json_is_null(v) || json_is_false(v) ||
           (json_is_array(v) && json_array_size(v) == 0) ||
           (json_is_string(v) &&
            (json_string_length(v) == 0 || strcmp(json_string_value(v), "none") == 0));
}

static enum status refuse(struct parse_state *p, const char *key)
{
    return err_param(p->err, STATUS_UNSUPPORTED, key, "'%s' is not supported by this server", key);
}

static enum status check_response_format(struct parse_state *p)
{
    const json_t *v = json_field(p->root, "response_format");
    const char *type = json_string_value(json_object_get(v, "type"));
    if (!v)
        return STATUS_OK;
    if (!json_is_object(v) || !type)
        return err_param(p->err, STATUS_INVALID, "response_format",
                         "'response_format' must be an object with a string 'type'");
    if (strcmp(type, "text") != 0)
        return err_param(p->err, STATUS_UNSUPPORTED, "response_format",
                         "'response_format' of type '%.40s' is not supported by this server; only "
                         "'text' is",
                         type);
    return STATUS_OK;
}

static enum status check_modalities(struct parse_state *p)
{
    const json_t *list = json_field(p->root, "modalities");
    size_t idx;
    json_t *item;
    json_array_foreach(list, idx, item)
    {
        const char *name = json_string_value(item);
        if (!name || strcmp(name, "text") != 0)
            return err_param(p->err, STATUS_UNSUPPORTED, "modalities",
                             "'modalities' other than [\"text\"] are not supported by this server");
    }
    return STATUS_OK;
}

/* Tools that may be called are refused. With a choice of "none" they only describe themselves to
 * the template (prompt.c), as in vLLM. */
static enum status check_tools(struct parse_state *p, const char *key, const char *choice_key)
{
    const json_t *list = json_field(p->root, key), *choice = json_field(p->root, choice_key), *tool;
    size_t idx;
    if (list && !json_is_array(list))
        return err_param(p->err, STATUS_INVALID, key, "'%s' must be a list of objects", key);
    json_array_foreach(list, idx, tool)
    {
        if (!json_is_object(tool))
            return err_param(p->err, STATUS_INVALID, key, "%s[%zu] must be an object", key, idx);
    }
    if (!asks_for_nothing(choice))
        return refuse(p, json_array_size(list) > 0 ? key : choice_key);
    return choice || json_array_size(list) == 0
               ? STATUS_OK
               : err_param(p->err, STATUS_UNSUPPORTED, key,
                           "'%s' is not supported by this server unless '%s' is \"none\"", key,
                           choice_key);
}

enum status parse_refusals(struct parse_state *p)
{
    static const char *const both[] = {"guided_json",
                                       "guided_regex",
                                       "guided_choice",
                                       "guided_grammar",
                                       "guided_decoding_backend",
                                       "structured_outputs",
                                       "use_beam_search",
                                       "allowed_token_ids",
                                       "logits_processors",
                                       "prompt_embeds",
                                       "kv_transfer_params"};
    static const char *const chat_only[] = {"audio", "web_search_options", "chat_template",
                                            "documents"};
    for (size_t i = 0; i < ARRAY_COUNT(both); i++) {
        if (!asks_for_nothing(json_object_get(p->root, both[i])))
            return refuse(p, both[i]);
    }
    for (size_t i = 0; p->env->chat && i < ARRAY_COUNT(chat_only); i++) {
        if (!asks_for_nothing(json_object_get(p->root, chat_only[i])))
            return refuse(p, chat_only[i]);
    }
    if (!p->env->chat && !asks_for_nothing(json_object_get(p->root, "suffix")))
        return refuse(p, "suffix");
    enum status st = p->env->chat ? check_tools(p, "tools", "tool_choice") : STATUS_OK;
    if (!st && p->env->chat)
        st = check_tools(p, "functions", "function_call");
    if (!st)
        st = check_response_format(p);
    return st ? st : check_modalities(p);
}

static enum status get_f32(struct parse_state *p, const char *key, double min, double max,
                           float *out)
{
    *out = (float)json_read_num(&p->in, key, min, max, (double)*out);
    return p->in.st;
}

static enum status get_u32(struct parse_state *p, const char *key, int64_t min, int64_t max,
                           uint32_t *out)
{
    *out = (uint32_t)json_read_int(&p->in, key, (struct json_range){min, max}, *out);
    return p->in.st;
}

static void set_defaults(struct parse_state *p)
{
    const struct model_config *c = &p->env->model->config;
    struct request_params *q = &p->params;
    q->temperature = c->default_temperature >= 0 ? c->default_temperature : 1.0f;
    q->top_p = c->default_top_p > 0 ? c->default_top_p : 1.0f;
    q->min_p = c->default_min_p > 0 ? c->default_min_p : 0.0f;
    q->repetition = c->default_repetition > 0 ? c->default_repetition : 1.0f;
    q->top_k = c->default_top_k > 0 ? c->default_top_k : 0;
    q->n = 1;
    q->prompt_top_count = -1;
}

static enum status parse_sampling(struct parse_state *p)
{
    struct request_params *q = &p->params;
    enum status st = get_f32(p, "temperature", 0, REQUEST_TEMPERATURE_MAX, &q->temperature);
    if (!st)
        st = get_f32(p, "top_p", 0, 1, &q->top_p);
    q->top_p = MAX(q->top_p, FLT_EPSILON); /* 0 is the likeliest token alone */
    if (!st)
        st = get_f32(p, "min_p", 0, 1, &q->min_p);
    if (!st)
        st = get_f32(p, "presence_penalty", -2, 2, &q->presence);
    if (!st)
        st = get_f32(p, "frequency_penalty", -2, 2, &q->frequency);
    if (!st)
        st = get_f32(p, "repetition_penalty", 0.01, 10, &q->repetition);
    if (st)
        return st;
    int64_t top_k = json_read_int(&p->in, "top_k", (struct json_range){-1, INT32_MAX}, q->top_k);
    q->top_k = (int32_t)MAX(top_k, 0);
    return p->in.st;
}

static enum status parse_seed(struct parse_state *p)
{
    struct json_range any = {INT64_MIN, INT64_MAX};
    p->params.has_seed = json_has(&p->in, "seed");
    p->params.seed = (uint64_t)json_read_int(&p->in, "seed", any, 0);
    return p->in.st;
}

static enum status parse_counts(struct parse_state *p)
{
    struct request_params *q = &p->params;
    uint32_t best_of = 0;
    const char *key = "max_tokens";
    enum status st = get_u32(p, "n", 1, p->env->n_max, &q->n);
    if (!st && !p->env->chat)
        st = get_u32(p, "best_of", 0, 20, &best_of);
    if (!st && best_of && best_of != q->n)
        st = err_param(p->err, best_of > q->n ? STATUS_UNSUPPORTED : STATUS_INVALID, "best_of",
                       "'best_of' is %u and n is %u; this server supports only best_of equal to n",
                       best_of, q->n);
    if (!st)
        st = get_u32(p, key, p->env->chat ? 1 : 0, INT32_MAX, &q->max_tokens);
    p->has_max_tokens = json_field(p->root, key) != NULL;
    if (!st && p->env->chat && json_field(p->root, "max_completion_tokens")) {
        st = get_u32(p, "max_completion_tokens", 1, INT32_MAX, &q->max_tokens);
        p->has_max_tokens = true;
    }
    if (!st)
        st = get_u32(p, "min_tokens", 0, INT32_MAX, &q->min_tokens);
    return st;
}

static enum status add_stop(struct parse_state *p, const json_t *v)
{
    if (!json_is_string(v))
        return err_param(p->err, STATUS_INVALID, "stop",
                         "'stop' must be a string or a list of strings");
    size_t len = json_string_length(v);
    if (len == 0 || len > REQUEST_STOP_BYTES_MAX)
        return err_param(p->err, STATUS_INVALID, "stop",
                         "a 'stop' string has %zu bytes; 1 to %d are accepted", len,
                         REQUEST_STOP_BYTES_MAX);
    struct request_stop *s = &p->params.stop[p->params.stop_count++];
    memcpy(s->text, json_string_value(v), len);
    s->len = (uint32_t)len;
    return STATUS_OK;
}

static enum status parse_stop(struct parse_state *p)
{
    const json_t *v = json_field(p->root, "stop");
    size_t count = json_is_array(v) ? json_array_size(v) : 1, idx;
    json_t *item;
    if (!v || count == 0)
        return STATUS_OK;
    if (count > REQUEST_STOPS_MAX)
        return err_param(p->err, STATUS_INVALID, "stop",
                         "'stop' has %zu strings; at most %d are accepted", count,
                         REQUEST_STOPS_MAX);
    p->params.stop = mem_try_array(count, sizeof(*p->params.stop));
    if (!p->params.stop)
        return err_set(p->err, STATUS_NO_MEMORY, "there is no memory for this request now");
    if (!json_is_array(v))
        return add_stop(p, v);
    json_array_foreach(v, idx, item)
    {
        enum status st = add_stop(p, item);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static enum status parse_stop_ids(struct parse_state *p)
{
    const json_t *v = json_field(p->root, "stop_token_ids");
    int64_t n_vocab = p->env->model->config.n_vocab;
    size_t idx;
    json_t *item;
    if (!v)
        return STATUS_OK;
    if (!json_is_array(v) || json_array_size(v) > REQUEST_STOP_IDS_MAX)
        return err_param(p->err, STATUS_INVALID, "stop_token_ids",
                         "'stop_token_ids' must be a list of at most %d token ids",
                         REQUEST_STOP_IDS_MAX);
    json_array_foreach(v, idx, item)
    {
        int64_t id = (int64_t)json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id >= n_vocab)
            return err_param(p->err, STATUS_INVALID, "stop_token_ids",
                             "stop_token_ids[%zu] must be a token id from 0 to %lld", idx,
                             (long long)n_vocab - 1);
        p->params.stop_id[p->params.stop_id_count++] = (int32_t)id;
    }
    return STATUS_OK;
}

static enum status add_bias(struct parse_state *p, int32_t id, float bias)
{
    for (uint32_t i = 0; i < p->params.bias_count; i++) {
        if (p->params.bias[i].id == id) { /* a bad word wins over a bias */
            p->params.bias[i].bias = MIN(p->params.bias[i].bias, bias);
            return STATUS_OK;
        }
    }
    if (p->params.bias_count == REQUEST_BIAS_MAX)
        return err_param(p->err, STATUS_INVALID, "logit_bias",
                         "'logit_bias' and 'bad_words' name more than %d tokens", REQUEST_BIAS_MAX);
    if (!p->params.bias)
        p->params.bias = mem_try_array(REQUEST_BIAS_MAX, sizeof(*p->params.bias));
    if (!p->params.bias)
        return err_set(p->err, STATUS_NO_MEMORY, "there is no memory for this request now");
    p->params.bias[p->params.bias_count++] = (struct sample_bias){.id = id, .bias = bias};
    return STATUS_OK;
}

static enum status parse_logit_bias(struct parse_state *p)
{
    const json_t *v = json_field(p->root, "logit_bias");
    int64_t n_vocab = p->env->model->config.n_vocab;
    const char *key;
    json_t *item;
    if (!v)
        return STATUS_OK;
    if (!json_is_object(v))
        return err_param(p->err, STATUS_INVALID, "logit_bias",
                         "'logit_bias' must be an object of token id to bias");
    if (json_object_size(v) > REQUEST_BIAS_MAX)
        return err_param(p->err, STATUS_INVALID, "logit_bias",
                         "'logit_bias' has %zu tokens; at most %d are accepted",
                         json_object_size(v), REQUEST_BIAS_MAX);
    json_object_foreach((json_t *)(uintptr_t)v, key, item)
    {
        char *end = NULL;
        errno = 0;
        long long id = strtoll(key, &end, 10);
        double bias = json_number_value(item);
        if (*key < '0' || *key > '9' || *end || errno || id >= n_vocab)
            return err_param(p->err, STATUS_INVALID, "logit_bias",
                             "'logit_bias' has the key \"%.40s\"; keys are token ids from 0 to "
                             "%lld as strings",
                             key, (long long)n_vocab - 1);
        if (!json_is_number(item) || !(fabs(bias) <= 100))
            return err_param(p->err, STATUS_INVALID, "logit_bias",
                             "the 'logit_bias' of token %lld must be a number between -100 and 100",
                             id);
        enum status st = add_bias(p, (int32_t)id, (float)bias);
        if (st)
            return st;
    }
    return STATUS_OK;
}

/* A bad word is banned as it begins a text and as it follows a space. */
static enum status ban_word(struct parse_state *p, const char *word, bool with_space)
{
    char text[128];
    struct token_list ids = {.n_max = 8};
    int n = snprintf(text, sizeof(text), "%s%s", with_space ? " " : "", word);
    enum status st = STATUS_OK;
    if (n <= 0 || (size_t)n >= sizeof(text) ||
        tokenizer_encode(p->env->model->tokenizer, text, (size_t)n, 0, &ids, NULL) || ids.n != 1 ||
        (uint32_t)ids.ids[0] >= p->env->model->config.n_vocab)
        st = err_param(p->err, STATUS_UNSUPPORTED, "bad_words",
                       "the bad word \"%.40s\" is not one token of this model; only words of one "
                       "token can be banned",
                       word);
    else
        st = add_bias(p, ids.ids[0], -INFINITY);
    mem_free(ids.ids);
    return st;
}

static enum status parse_bad_words(struct parse_state *p)
{
    const json_t *v = json_field(p->root, "bad_words");
    size_t idx;
    json_t *item;
    if (!v)
        return STATUS_OK;
    if (!json_is_array(v) || json_array_size(v) > REQUEST_BAD_WORDS_MAX)
        return err_param(p->err, STATUS_INVALID, "bad_words",
                         "'bad_words' must be a list of at most %d strings", REQUEST_BAD_WORDS_MAX);
    json_array_foreach(v, idx, item)
    {
        const char *word = json_string_value(item);
        if (!word || !*word)
            return err_param(p->err, STATUS_INVALID, "bad_words",
                             "bad_words[%zu] must be a non-empty string", idx);
        enum status st = ban_word(p, word, false);
        if (!st)
            st = ban_word(p, word, true);
        if (st)
            return st;
    }
    return STATUS_OK;
}

/* chat: logprobs bool + top_logprobs; completions: logprobs count. echo and prompt_logprobs ask for
 * the prompt's too. */
static enum status parse_logprobs(struct parse_state *p)
{
    struct request_params *q = &p->params;
    struct json_range range = {0, SAMPLE_TOP_MAX};
    int64_t count = -1;
    enum status st = STATUS_OK;
    if (p->env->chat) {
        q->logprobs = json_read_bool(&p->in, "logprobs", q->logprobs);
        st = get_u32(p, "top_logprobs", 0, SAMPLE_TOP_MAX, &q->top_count);
        if (!st && q->top_count > 0 && !q->logprobs)
            st = err_param(p->err, STATUS_INVALID, "top_logprobs",
                           "'top_logprobs' needs 'logprobs': true");
    } else {
        count = json_read_int(&p->in, "logprobs", range, -1);
        q->logprobs = count >= 0;
        q->top_count = (uint32_t)MAX(count, 0);
    }
    int64_t prompt = json_read_int(&p->in, "prompt_logprobs", range, -1);
    st = st ? st : p->in.st;
    if (!st && prompt >= 0 && p->spec->stream)
        st = err_param(p->err, STATUS_INVALID, "prompt_logprobs",
                       "'prompt_logprobs' cannot be streamed");
    p->spec->prompt_logprobs = (int32_t)prompt;
    q->prompt_top_count = (int32_t)MAX(prompt, p->spec->echo ? count : -1);
    return st;
}

static enum status parse_stream(struct parse_state *p)
{
    struct json_reader options = json_enter(&p->in, "stream_options");
    p->spec->stream = json_read_bool(&p->in, "stream", p->spec->stream);
    if (p->in.st || !options.obj)
        return p->in.st;
    if (!p->spec->stream)
        return err_param(p->err, STATUS_INVALID, "stream_options",
                         "'stream_options' needs 'stream': true");
    p->spec->include_usage = json_read_bool(&options, "include_usage", false);
    p->spec->continuous_usage = json_read_bool(&options, "continuous_usage_stats", false);
    return p->in.st;
}

/* vLLM's priority: lower runs first. Ahead of everybody is for the operator. */
static enum status parse_priority(struct parse_state *p)
{
    int64_t v = json_read_int(&p->in, "priority", (struct json_range){-1000000, 1000000}, 0);
    enum status st = p->in.st;
    if (!st && v < 0 && !(p->env->roles & HTTP_ROLE_ADMIN))
        st = err_param(p->err, STATUS_DENIED, "priority",
                       "'priority' below 0 (ahead of others) needs a key with the role admin");
    p->params.priority = (int32_t)-v;
    return st;
}

static enum status parse_salt(struct parse_state *p)
{
    const char *salt = json_read_string(&p->in, "cache_salt");
    if (!salt)
        return p->in.st;
    size_t len = strlen(salt);
    if (len == 0 || len > REQUEST_SALT_BYTES_MAX)
        return err_param(p->err, STATUS_INVALID, "cache_salt",
                         "'cache_salt' has %zu bytes; 1 to %d are accepted", len,
                         REQUEST_SALT_BYTES_MAX);
    crypto_generichash(p->params.cache_salt, sizeof(p->params.cache_salt), (const uint8_t *)salt,
                       len, NULL, 0);
    return STATUS_OK;
}

static enum status parse_flags(struct parse_state *p)
{
    bool skip_special = true;
    const struct {
        const char *key;
        bool *out;
    } flag[] = {{"ignore_eos", &p->params.ignore_eos},
                {"include_stop_str_in_output", &p->spec->include_stop},
                {"skip_special_tokens", &skip_special},
                {"return_tokens_as_token_ids", &p->spec->tokens_as_ids},
                {"return_token_ids", &p->spec->return_token_ids}};
    for (size_t i = 0; i < ARRAY_COUNT(flag); i++)
        *flag[i].out = json_read_bool(&p->in, flag[i].key, *flag[i].out);
    p->params.show_special = !skip_special;
    if (!p->env->chat)
        p->spec->echo = json_read_bool(&p->in, "echo", false);
    return p->in.st;
}

enum status parse_params(struct parse_state *p)
{
    static enum status (*const step[])(struct parse_state *) = {
        parse_stream,     parse_flags,     parse_sampling, parse_seed,
        parse_counts,     parse_stop,      parse_stop_ids, parse_logprobs,
        parse_logit_bias, parse_bad_words, parse_priority, parse_salt};
    enum status st = STATUS_OK;
    set_defaults(p);
    for (size_t i = 0; !st && i < ARRAY_COUNT(step); i++)
        st = step[i](p);
    return st;
}
