/* Bodies in, requests or sentences out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>

#include "server/http/auth.h"
#include "server/http/parse_state.h"
#include "server/http/request_parse.h"
#include "tests/unit/http_double.h"

static struct world w;
static struct parse_env env;
static struct gen_spec spec;
static struct errtext err;

static struct request *parse(bool chat, const char *body)
{
    struct request *r = NULL;
    err_clear(&err);
    env.chat = chat;
    gen_spec_fini(&spec);
    enum status st = request_parse(&env, body, strlen(body), &spec, &r, &err);
    if (!!st == !!r)
        fail_msg("status %d with request %p for %s", st, (void *)r, body);
    return r;
}

/* "FIELDS" in place of a body's rest. */
static struct request *parse_with(bool chat, const char *fields)
{
    struct buf b;
    buf_init(&b, 1u << 20);
    buf_printf(&b, "{\"model\":\"base\",%s%s%s}",
               chat ? "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
                    : "\"prompt\":\"hello there\"",
               *fields ? "," : "", fields);
    struct request *r = parse(chat, b.data);
    buf_fini(&b);
    return r;
}

static void good(bool chat, const char *fields)
{
    struct request *r = parse_with(chat, fields);
    if (!r)
        fail_msg("%s: %s", fields, err.text);
    request_discard(r);
}

static void bad(bool chat, const char *fields, const char *param)
{
    struct request *r = parse_with(chat, fields);
    if (r)
        fail_msg("accepted: %s", fields);
    if (strcmp(err.param, param) != 0)
        fail_msg("%s: param '%s', expected '%s' (%s)", fields, err.param, param, err.text);
    assert_true(err.text[0]);
}

static void test_defaults(void **state)
{
    (void)state;
    struct request *r = parse_with(false, "");
    assert_non_null(r);
    assert_int_equal(r->params.max_tokens, 16);
    assert_true(r->params.temperature == 1.0f && r->params.top_p == 1.0f);
    assert_true(r->params.repetition == 1.0f);
    assert_int_equal(r->params.n, 1);
    assert_int_equal(r->params.prompt_top_count, -1);
    assert_false(r->params.logprobs);
    assert_false(r->params.has_seed);
    assert_int_equal(r->comp.n, 0);
    request_discard(r);
    r = parse_with(true, "");
    assert_non_null(r);
    assert_int_equal(r->params.max_tokens, 512 - r->prompt[0].n_ids);
    assert_memory_equal(r->template_digest, env.chat_digest, 32);
    request_discard(r);
}

static void test_null_is_absent_everywhere(void **state)
{
    static const char *const keys[] = {"max_tokens",
                                       "temperature",
                                       "top_p",
                                       "top_k",
                                       "min_p",
                                       "n",
                                       "seed",
                                       "stop",
                                       "stream",
                                       "stream_options",
                                       "logprobs",
                                       "echo",
                                       "logit_bias",
                                       "presence_penalty",
                                       "frequency_penalty",
                                       "repetition_penalty",
                                       "min_tokens",
                                       "ignore_eos",
                                       "stop_token_ids",
                                       "bad_words",
                                       "adapters",
                                       "tools",
                                       "tool_choice",
                                       "response_format",
                                       "suffix",
                                       "best_of",
                                       "priority",
                                       "cache_salt",
                                       "prompt_logprobs",
                                       "guided_json",
                                       "structured_outputs",
                                       "chat_template",
                                       "truncate_prompt_tokens",
                                       "user",
                                       "adapter_id",
                                       "max_completion_tokens",
                                       "top_logprobs",
                                       "chat_template_kwargs",
                                       "add_special_tokens"};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        char field[64];
        snprintf(field, sizeof(field), "\"%s\":null", keys[i]);
        good(false, field);
        good(true, field);
    }
}

static void test_types_and_ranges(void **state)
{
    (void)state;
    bad(false, "\"temperature\":\"hot\"", "temperature");
    bad(false, "\"temperature\":2.1", "temperature");
    bad(false, "\"temperature\":-0.1", "temperature");
    bad(false, "\"top_p\":1.01", "top_p");
    bad(false, "\"min_p\":-1", "min_p");
    bad(false, "\"top_k\":1.5", "top_k");
    bad(false, "\"top_k\":-2", "top_k");
    bad(false, "\"n\":0", "n");
    bad(false, "\"n\":9", "n");
    bad(false, "\"n\":true", "n");
    bad(false, "\"max_tokens\":-1", "max_tokens");
    bad(false, "\"max_tokens\":\"16\"", "max_tokens");
    bad(false, "\"max_tokens\":100000", "max_tokens");
    bad(false, "\"min_tokens\":17", "min_tokens");
    bad(false, "\"presence_penalty\":3", "presence_penalty");
    bad(false, "\"frequency_penalty\":[]", "frequency_penalty");
    bad(false, "\"repetition_penalty\":0", "repetition_penalty");
    bad(false, "\"seed\":1.5", "seed");
    bad(false, "\"stream\":1", "stream");
    bad(false, "\"echo\":\"yes\"", "echo");
    bad(false, "\"logprobs\":21", "logprobs");
    bad(false, "\"logprobs\":true", "logprobs");
    bad(true, "\"logprobs\":3", "logprobs");
    bad(true, "\"top_logprobs\":3", "top_logprobs");
    bad(true, "\"logprobs\":true,\"top_logprobs\":21", "top_logprobs");
    bad(false, "\"stop\":5", "stop");
    bad(false, "\"stop\":\"\"", "stop");
    bad(false, "\"stop\":[\"a\",1]", "stop");
    bad(false, "\"stop_token_ids\":[99999999]", "stop_token_ids");
    bad(false, "\"logit_bias\":[]", "logit_bias");
    bad(false, "\"logit_bias\":{\"x\":1}", "logit_bias");
    bad(false, "\"logit_bias\":{\"1\":101}", "logit_bias");
    bad(false, "\"logit_bias\":{\"-1\":1}", "logit_bias");
    bad(false, "\"logit_bias\":{\"99999999\":1}", "logit_bias");
    bad(false, "\"stream_options\":{\"include_usage\":true}", "stream_options");
    bad(false, "\"stream\":true,\"stream_options\":[]", "stream_options");
    bad(false, "\"stream\":true,\"stream_options\":{\"include_usage\":1}",
        "stream_options.include_usage");
    bad(false, "\"stream\":true,\"prompt_logprobs\":1", "prompt_logprobs");
    bad(false, "\"cache_salt\":\"\"", "cache_salt");
    bad(false, "\"truncate_prompt_tokens\":0", "truncate_prompt_tokens");
    bad(true, "\"chat_template_kwargs\":[]", "chat_template_kwargs");
    good(false, "\"max_tokens\":16.0");
    good(false, "\"seed\":-9223372036854775808");
    good(false, "\"nobody_knows_this\":{\"a\":[1,2,{}]}");
}

static void test_what_we_do_not_do_is_refused_by_name(void **state)
{
    (void)state;
    bad(true, "\"tools\":[{\"type\":\"function\"}]", "tools");
    bad(true, "\"tools\":[{\"type\":\"function\"}],\"tool_choice\":\"auto\"", "tools");
    bad(true, "\"tools\":{},\"tool_choice\":\"none\"", "tools");
    bad(true, "\"tools\":[1],\"tool_choice\":\"none\"", "tools");
    bad(true, "\"tool_choice\":\"auto\"", "tool_choice");
    bad(true, "\"functions\":[{}]", "functions");
    bad(true, "\"response_format\":{\"type\":\"json_object\"}", "response_format");
    bad(true, "\"response_format\":\"json\"", "response_format");
    bad(false, "\"response_format\":{\"type\":\"json_schema\"}", "response_format");
    bad(true, "\"modalities\":[\"text\",\"audio\"]", "modalities");
    bad(true, "\"chat_template\":\"{{ x }}\"", "chat_template");
    bad(false, "\"suffix\":\"end\"", "suffix");
    bad(false, "\"best_of\":2", "best_of");
    bad(false, "\"n\":2,\"best_of\":1", "best_of");
    bad(false, "\"guided_json\":{}", "guided_json");
    bad(false, "\"guided_regex\":\"a\"", "guided_regex");
    bad(false, "\"structured_outputs\":{\"json\":{}}", "structured_outputs");
    bad(false, "\"allowed_token_ids\":[1]", "allowed_token_ids");
    bad(false, "\"use_beam_search\":true", "use_beam_search");
    good(true, "\"tool_choice\":\"none\",\"tools\":[]");
    good(true, "\"tool_choice\":\"none\",\"tools\":[{\"type\":\"function\"}]");
    good(true, "\"function_call\":\"none\",\"functions\":[{\"name\":\"f\"}]");
    good(true, "\"response_format\":{\"type\":\"text\"}");
    good(false, "\"n\":2,\"best_of\":2");
    good(false, "\"tools\":[{}]"); /* not a field of completions */
}

/* What OpenAI's ranges allow at their ends. */
static void test_the_ends_of_the_ranges(void **state)
{
    (void)state;
    struct request *r = parse_with(false, "\"max_tokens\":0,\"echo\":true,\"logprobs\":1");
    assert_non_null(r);
    assert_int_equal(r->params.max_tokens, 0);
    assert_int_equal(r->params.prompt_top_count, 1);
    request_discard(r);
    bad(true, "\"max_tokens\":0", "max_tokens");
    bad(false, "\"max_tokens\":-1", "max_tokens");
    r = parse_with(false, "\"top_p\":0");
    assert_non_null(r);
    assert_true(r->params.top_p > 0 && r->params.top_p < 1e-5f);
    request_discard(r);
    good(false, "\"best_of\":0");
    good(true, "\"top_logprobs\":0");
    good(true, "\"temperature\":2,\"top_p\":1,\"presence_penalty\":-2,\"frequency_penalty\":2");
    good(true, "\"logprobs\":true,\"top_logprobs\":20,\"n\":8,\"seed\":9223372036854775807");
    good(false, "\"logit_bias\":{\"0\":-100,\"1\":100},\"logprobs\":0,\"best_of\":1");
    /* all of the context for the prompt, when nothing is to follow it */
    uint32_t context = env.context_max;
    env.context_max = 3;
    r = parse(false, "{\"model\":\"base\",\"prompt\":[1,2,3],\"max_tokens\":0}");
    assert_non_null(r);
    request_discard(r);
    assert_null(parse(false, "{\"model\":\"base\",\"prompt\":[1,2,3],\"max_tokens\":1}"));
    assert_null(parse(false, "{\"model\":\"base\",\"prompt\":[1,2,3,4],\"max_tokens\":0}"));
    assert_string_equal(err.param, "prompt");
    env.context_max = context;
}

static void test_prompt_forms(void **state)
{
    (void)state;
    struct request *r = parse(false, "{\"model\":\"base\",\"prompt\":[\"a\",\"b c\"],\"n\":3}");
    assert_non_null(r);
    assert_int_equal(r->prompt_count, 2);
    assert_int_equal(r->seq_count, 6);
    assert_int_equal(r->seq[4].prompt_idx, 1);
    assert_int_equal(r->seq[4].choice_idx, 1);
    request_discard(r);
    r = parse(false, "{\"model\":\"base\",\"prompt\":[5,6,7]}");
    assert_int_equal(r->prompt_count, 1);
    assert_int_equal(r->prompt[0].n_ids, 3);
    assert_int_equal(r->prompt[0].ids[2], 7);
    request_discard(r);
    r = parse(false, "{\"model\":\"base\",\"prompt\":[[5],[6,7]]}");
    assert_int_equal(r->prompt_count, 2);
    request_discard(r);
    static const char *const wrong[] = {"1",    "[]",     "{}",         "\"\"",
                                        "[[]]", "[\"\"]", "[5,\"a\"]",  "[\"a\",5]",
                                        "[-1]", "[1.5]",  "[99999999]", "[[\"a\"]]"};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        char body[96];
        snprintf(body, sizeof(body), "{\"model\":\"base\",\"prompt\":%s}", wrong[i]);
        assert_null(parse(false, body));
        assert_string_equal(err.param, "prompt");
    }
    assert_null(parse(false, "{\"model\":\"base\"}"));
    assert_string_equal(err.param, "prompt");
    r = parse_with(false, "\"truncate_prompt_tokens\":1");
    assert_int_equal(r->prompt[0].n_ids, 1);
    request_discard(r);
}

static void test_message_forms(void **state)
{
    static const struct {
        const char *messages, *param;
    } wrong[] = {
        {"[]", "messages"},
        {"{}", "messages"},
        {"[1]", "messages"},
        {"[{\"role\":\"King\",\"content\":\"x\"}]", "messages[0].role"},
        {"[{\"content\":\"x\"}]", "messages[0].role"},
        {"[{\"role\":\"user\"}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":5}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"input_audio\"}]}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":[5]}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":5}]}]",
         "messages[0].content"}};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        char body[256];
        snprintf(body, sizeof(body), "{\"model\":\"base\",\"messages\":%s}", wrong[i].messages);
        assert_null(parse(true, body));
        if (strcmp(err.param, wrong[i].param) != 0)
            fail_msg("%s: %s (%s)", body, err.param, err.text);
    }
    struct request *a = parse(true, "{\"model\":\"base\",\"messages\":[{\"role\":\"developer\","
                                    "\"content\":\"s\"},{\"role\":\"user\",\"content\":\"a\\nb\"}"
                                    "]}");
    struct request *b =
        parse(true, "{\"model\":\"base\",\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{"
                    "\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":"
                    "\"text\",\"text\":\"b\"}]}]}");
    assert_int_equal(a->prompt[0].n_ids, b->prompt[0].n_ids);
    assert_memory_equal(a->prompt[0].ids, b->prompt[0].ids, 4 * a->prompt[0].n_ids);
    request_discard(a);
    request_discard(b);
}

static void expect_shaped(const char *list, struct chat_shape shape, const char *want)
{
    json_t *in = json_loads(list, 0, NULL), *expected = json_loads(want, 0, NULL), *out = NULL;
    err_clear(&err);
    assert_non_null(in);
    if (messages_shape(in, &shape, &out, &err))
        fail_msg("%s: %s", list, err.text);
    assert_non_null(expected);
    if (!json_equal(out, expected)) {
        char *got = json_dumps(out, 0);
        fail_msg("%s\n  gives %s\n  want  %s", list, got, want);
    }
    json_decref(in);
    json_decref(expected);
    json_decref(out);
}

static void test_messages_take_the_shape_of_the_template(void **state)
{
#define CALLED(content, arguments)                                                                 \
    "[{\"role\":\"assistant\"," content "\"tool_calls\":[{\"id\":\"c\",\"type\":\"function\","     \
    "\"function\":{\"name\":\"f\"" arguments "}}]}]"
#define TEXT_ARGUMENTS   ",\"arguments\":\"{\\\"a\\\": [1.5, \\\"\xC3\xA9\\\"]}\""
#define OBJECT_ARGUMENTS ",\"arguments\":{\"a\":[1.5,\"\xC3\xA9\"]}"
    static const struct chat_shape object = {.arguments_text = false};
    static const struct chat_shape text = {.arguments_text = true, .null_call = CHAT_NULL_EMPTY};
    static const struct chat_shape parts = {.content_parts = true, .null_plain = CHAT_NULL_EMPTY};
    static const struct chat_shape absent = {.null_plain = CHAT_NULL_ABSENT};
    (void)state;
    /* what model_dump() of an answer sends back */
    expect_shaped("[{\"role\":\"assistant\",\"content\":\"x\",\"refusal\":null,\"annotations\":[],"
                  "\"audio\":null,\"function_call\":null,\"tool_calls\":null}]",
                  object, "[{\"role\":\"assistant\",\"content\":\"x\",\"annotations\":[]}]");
    expect_shaped("[{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[]}]", object,
                  "[{\"role\":\"assistant\",\"content\":\"x\"}]");
    expect_shaped("[{\"role\":\"assistant\",\"content\":\"x\",\"reasoning\":\"r\"}]", object,
                  "[{\"role\":\"assistant\",\"content\":\"x\",\"reasoning\":\"r\","
                  "\"reasoning_content\":\"r\"}]");
    expect_shaped(CALLED("\"content\":null,", TEXT_ARGUMENTS), object,
                  CALLED("\"content\":null,", OBJECT_ARGUMENTS));
    expect_shaped(CALLED("", OBJECT_ARGUMENTS), object,
                  CALLED("\"content\":null,", OBJECT_ARGUMENTS));
    expect_shaped(CALLED("", TEXT_ARGUMENTS), text, CALLED("\"content\":\"\",", TEXT_ARGUMENTS));
    expect_shaped(CALLED("", OBJECT_ARGUMENTS), text, CALLED("\"content\":\"\",", TEXT_ARGUMENTS));
    expect_shaped(CALLED("", ",\"arguments\":null"), object,
                  CALLED("\"content\":null,", ",\"arguments\":{}"));
    expect_shaped(CALLED("", ",\"arguments\":\" \""), object,
                  CALLED("\"content\":null,", ",\"arguments\":{}"));
    expect_shaped(CALLED("", ""), text, CALLED("\"content\":\"\",", ",\"arguments\":\"{}\""));
    expect_shaped(
        "[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\"},{\"role\":\"user\","
        "\"content\":[{\"type\":\"text\",\"text\":\"b\",\"cache_control\":{}},{\"type\":"
        "\"refusal\",\"refusal\":\"c\"}]}]",
        parts,
        "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]},{\"role\":"
        "\"assistant\",\"content\":[]},{\"role\":\"user\",\"content\":[{\"type\":\"text\","
        "\"text\":\"b\"},{\"type\":\"text\",\"text\":\"c\"}]}]");
    expect_shaped("[{\"role\":\"ipython\",\"content\":\"1\"}]", object,
                  "[{\"role\":\"ipython\",\"content\":\"1\"}]");
    expect_shaped("[{\"role\":\"assistant\",\"content\":null}]", absent,
                  "[{\"role\":\"assistant\"}]");
    static const char *const wrong[] = {
        "[{\"role\":\"assistant\",\"tool_calls\":{}}]",
        "[{\"role\":\"assistant\",\"tool_calls\":[1]}]", CALLED("", ",\"arguments\":\"{\""),
        CALLED("", ",\"arguments\":\"[1]\""), CALLED("", ",\"arguments\":7")};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        json_t *in = json_loads(wrong[i], 0, NULL), *out = NULL;
        err_clear(&err);
        assert_int_equal(messages_shape(in, &object, &out, &err), STATUS_INVALID);
        assert_string_equal(err.param, "messages[0].tool_calls");
        assert_null(out);
        json_decref(in);
    }
}

/* The double's tokenizer with a [PAD] behind the model's last row. */
static void test_tokens_without_a_row_are_refused_where_used(void **state)
{
    (void)state;
    struct model *m = &w.model;
    uint32_t rows = m->config.n_vocab;
    m->config.n_vocab = tokenizer_vocab_size(m->tokenizer);
    int32_t last = -1;
    struct request *r = parse(false, "{\"model\":\"base\",\"prompt\":\"hello\"}");
    for (uint32_t i = 0; i < r->prompt[0].n_ids; i++)
        last = MAX(last, r->prompt[0].ids[i]);
    request_discard(r);
    m->config.n_vocab = (uint32_t)last; /* now the largest id has no row */
    assert_null(parse(false, "{\"model\":\"base\",\"prompt\":\"hello\"}"));
    assert_string_equal(err.param, "prompt");
    assert_non_null(strstr(err.text, "the model does not"));
    m->config.n_vocab = rows;
}

static void test_continue_final_message_cuts_the_template(void **state)
{
    (void)state;
    struct request *r = parse(true, "{\"model\":\"base\",\"messages\":[{\"role\":\"user\","
                                    "\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":"
                                    "\"well\"}],\"continue_final_message\":true}");
    assert_non_null(r);
    struct buf text;
    buf_init(&text, 1000);
    assert_int_equal(tokenizer_decode(env.model->tokenizer, r->prompt[0].ids, r->prompt[0].n_ids,
                                      false, &text, NULL),
                     STATUS_OK);
    assert_string_equal(text.data + text.len - 4, "well");
    buf_fini(&text);
    request_discard(r);
    bad(true, "\"continue_final_message\":true,\"add_generation_prompt\":true",
        "continue_final_message");
}

static void test_targets(void **state)
{
    (void)state;
    struct request *r = parse(false, "{\"model\":\"alpha\",\"prompt\":\"a\"}");
    assert_int_equal(r->comp.n, 1);
    assert_int_equal(r->comp.part[0].weight_q16, 65536);
    assert_string_equal(r->entry[0]->name, "alpha");
    assert_string_equal(spec.model, "alpha");
    request_discard(r);
    r = parse(false, "{\"model\":\"base:org/beta\",\"prompt\":\"a\"}");
    assert_string_equal(r->entry[0]->name, "org/beta");
    request_discard(r);
    r = parse(false, "{\"model\":\"base\",\"prompt\":\"a\",\"adapters\":[{\"model\":\"org/beta\","
                     "\"weight\":-0.5},{\"model\":\"alpha\"}]}");
    assert_int_equal(r->comp.n, 2);
    assert_string_equal(r->entry[0]->name, "alpha"); /* ids ascending */
    assert_string_equal(r->entry[1]->name, "org/beta");
    assert_int_equal(r->comp.part[1].weight_q16, -32768);
    request_discard(r);
    good(false, "\"lora_path\":\"alpha\"");
    bad(false, "\"adapter_id\":\"nobody\"", "model");
    bad(false, "\"adapters\":[{\"model\":\"nobody\"}]", "adapters[0].model");
    bad(false, "\"adapters\":[{\"model\":\"alpha\",\"weight\":0}]", "adapters[0].weight");
    bad(false, "\"adapters\":[{\"model\":\"alpha\",\"weight\":17}]", "adapters[0].weight");
    bad(false, "\"adapters\":[{\"model\":\"alpha\",\"weight\":\"1\"}]", "adapters[0].weight");
    bad(false, "\"adapters\":[{\"weight\":1}]", "adapters[0].model");
    bad(false, "\"adapters\":[1]", "adapters[0]");
    bad(false, "\"adapters\":{}", "adapters");
    bad(false, "\"adapters\":[1,2,3,4,5,6,7,8,9]", "adapters");
    assert_null(parse_with(false, "\"adapters\":[{\"model\":\"alpha\"},{\"model\":\"alpha\"}]"));
    assert_null(parse(false, "{\"model\":\"alpha\",\"prompt\":\"a\",\"adapters\":[{\"model\":"
                             "\"org/beta\"}]}"));
    assert_string_equal(err.param, "adapters");
    assert_null(parse(false, "{\"model\":\"\\u0000\",\"prompt\":\"a\"}"));
    assert_string_equal(err.param, "model");
}

static void test_a_key_reaches_only_its_adapters(void **state)
{
    struct http_key key = {.name = "app", .roles = HTTP_ROLE_INFER, .adapter_count = 1};
    struct request *r = NULL;
    (void)state;
    snprintf(key.adapter[0], sizeof(key.adapter[0]), "org/*");
    env.key = &key;
    env.roles = HTTP_ROLE_INFER;
    err_clear(&err);
    const char *body = "{\"model\":\"alpha\",\"prompt\":\"a\"}";
    assert_int_equal(request_parse(&env, body, strlen(body), &spec, &r, &err), STATUS_DENIED);
    body = "{\"model\":\"unknown\",\"prompt\":\"a\"}"; /* the same refusal: nothing is told */
    assert_int_equal(request_parse(&env, body, strlen(body), &spec, &r, &err), STATUS_DENIED);
    r = parse(false, "{\"model\":\"org/beta\",\"prompt\":\"a\"}");
    assert_non_null(r);
    request_discard(r);
    good(false, "");
    bad(false, "\"priority\":-1", "priority");
    env.key = NULL;
    env.roles = AUTH_ROLES_ALL;
    r = parse_with(false, "\"priority\":-1");
    assert_int_equal(r->params.priority, 1);
    request_discard(r);
}

static void test_fields_arrive(void **state)
{
    (void)state;
    struct request *r = parse_with(
        false, "\"temperature\":0.5,\"top_p\":0.9,\"top_k\":40,\"min_p\":0.1,\"n\":2,\"seed\":7,"
               "\"presence_penalty\":1,\"frequency_penalty\":-1,\"repetition_penalty\":1.5,"
               "\"logit_bias\":{\"5\":-100,\"6\":2.5},\"stop\":[\"x\",\"yy\"],\"min_tokens\":2,"
               "\"stop_token_ids\":[9],\"ignore_eos\":true,\"logprobs\":2,\"echo\":true,"
               "\"cache_salt\":\"s\",\"max_tokens\":20");
    assert_non_null(r);
    const struct request_params *p = &r->params;
    assert_true(p->temperature == 0.5f && p->top_p == 0.9f && p->min_p == 0.1f);
    assert_true(p->presence == 1 && p->frequency == -1 && p->repetition == 1.5f);
    assert_int_equal(p->top_k, 40);
    assert_int_equal(p->max_tokens, 20);
    assert_int_equal(p->min_tokens, 2);
    assert_true(p->has_seed && p->ignore_eos && p->logprobs);
    assert_int_equal(r->seq[0].seed, 7);
    assert_int_equal(r->seq[1].seed, 8);
    assert_int_equal(p->bias_count, 2);
    assert_int_equal(p->stop_count, 2);
    assert_int_equal(p->stop[1].len, 2);
    assert_int_equal(p->stop_id[0], 9);
    assert_int_equal(p->top_count, 2);
    assert_int_equal(p->prompt_top_count, 2);
    assert_non_null(r->prompt[0].logprob);
    assert_non_null(r->seq[1].out_top);
    assert_string_equal(spec.echo_text[0].data, "hello there");
    request_discard(r);
    r = parse_with(true, "\"max_tokens\":5,\"max_completion_tokens\":9");
    assert_int_equal(r->params.max_tokens, 9);
    request_discard(r);
}

/* Numbers as Python and JavaScript write them: what nobody reads never refuses a request, what is
 * read is exact or refused by its name. */
static void test_numbers_of_other_clients(void **state)
{
    static const char *const fine[] = {"\"metadata\":{\"trace\":18446744073709551615}",
                                       "\"user_seq\":9223372036854775808",
                                       "\"x\":1e999,\"y\":-1e999",
                                       "\"x\":123456789012345678901234567890",
                                       "\"max_tokens\":1e0,\"n\":1.0",
                                       "\"temperature\":-0,\"top_p\":1E0",
                                       "\"seed\":-9223372036854775808"};
    static const char *const limits[] = {"\"seed\":9223372036854775808", "\"seed\":1e999",
                                         "\"seed\":9007199254740992.0", "\"seed\":0.5"};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(fine); i++) {
        good(false, fine[i]);
        good(true, fine[i]);
    }
    for (size_t i = 0; i < ARRAY_COUNT(limits); i++)
        bad(false, limits[i], "seed");
    bad(false, "\"stop_token_ids\":[18446744073709551615]", "stop_token_ids");
    bad(false, "\"temperature\":1e999", "temperature");
    struct request *r = parse_with(false, "\"x\":1e999,\"seed\":9007199254740993");
    assert_non_null(r);
    assert_int_equal(r->params.seed, 9007199254740993);
    request_discard(r);
    r = parse(false, "\xEF\xBB\xBF{\"model\":\"base\",\"prompt\":\"hello\"}");
    assert_non_null(r); /* a byte order mark is no part of the text */
    request_discard(r);
}

/* What a program goes by is a member of the error, whatever the text says. */
static void test_codes(void **state)
{
    (void)state;
    bad(false, "\"max_tokens\":100000", "max_tokens");
    assert_string_equal(err.code, "context_length_exceeded");
    bad(false, "\"adapters\":[{\"model\":\"nobody\"}]", "adapters[0].model");
    assert_string_equal(err.code, "model_not_found");
    bad(false, "\"stop\":[\"maximum context length\",5]", "stop");
    assert_null(err.code);
}

static void test_hostile_bodies(void **state)
{
    struct buf b;
    (void)state;
    buf_init(&b, 4u << 20);
    for (int i = 0; i < 100000; i++)
        buf_putc(&b, '[');
    assert_null(parse(false, b.data));
    assert_non_null(strstr(err.text, "nests 100000 deep"));
    buf_clear(&b);
    buf_puts(&b, "{\"model\":\"base\",\"prompt\":\"");
    for (int i = 0; i < 1 << 20; i++)
        buf_putc(&b, 'a');
    buf_puts(&b, "\"}");
    assert_null(parse(false, b.data));
    assert_string_equal(err.param, "prompt");
    buf_fini(&b);
    static const char *const bodies[] = {"",
                                         " ",
                                         "null",
                                         "1",
                                         "\"x\"",
                                         "[]",
                                         "{",
                                         "{}",
                                         "{\"model\":\"base\",\"prompt\":\"\xFF\"}",
                                         "{\"model\":\"base\",\"prompt\":\"\\ud800\"}",
                                         "{\"model\":\"base\",\"n\":1e400}",
                                         "{\"model\":\"base\",\"seed\":99999999999999999999999}",
                                         "{\"model\":\"base\"}x",
                                         "{\"a\":1,\"a\":2}",
                                         "{'model':'base'}",
                                         "{\"model\":\"base\",\"top_p\":NaN}"};
    for (size_t i = 0; i < ARRAY_COUNT(bodies); i++) {
        assert_null(parse(false, bodies[i]));
        assert_true(err.text[0]);
    }
    struct request *r = parse(false, "{\"model\":\"base\",\"prompt\":\"a\\u0000b\"}");
    assert_non_null(r); /* a NUL is a character of a prompt */
    request_discard(r);
}

static int setup(void **state)
{
    (void)state;
    world_init(&w);
    static uint8_t digest[32] = {9};
    env = (struct parse_env){.model = &w.model,
                             .catalog = w.catalog,
                             .model_name = "base",
                             .chat_digest = digest,
                             .n_max = 8,
                             .context_max = 512,
                             .roles = AUTH_ROLES_ALL};
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    gen_spec_fini(&spec);
    world_fini(&w);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_null_is_absent_everywhere),
        cmocka_unit_test(test_types_and_ranges),
        cmocka_unit_test(test_what_we_do_not_do_is_refused_by_name),
        cmocka_unit_test(test_the_ends_of_the_ranges),
        cmocka_unit_test(test_prompt_forms),
        cmocka_unit_test(test_message_forms),
        cmocka_unit_test(test_messages_take_the_shape_of_the_template),
        cmocka_unit_test(test_tokens_without_a_row_are_refused_where_used),
        cmocka_unit_test(test_continue_final_message_cuts_the_template),
        cmocka_unit_test(test_targets),
        cmocka_unit_test(test_a_key_reaches_only_its_adapters),
        cmocka_unit_test(test_fields_arrive),
        cmocka_unit_test(test_numbers_of_other_clients),
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_hostile_bodies)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
