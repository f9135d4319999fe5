/* The server over real sockets, with the doubles of http_double.h behind it. Run with
 * `--serve PORT [STEP_MS]` it stays up, for trying clients by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <jansson.h>

#include "server/http/page.h"
#include "tests/unit/http_client.h"
#include "tests/unit/http_double.h"

#define TEXT " The lighthouse keeper counts nine ships."

static struct world w;

static struct reply call(const char *line, const char *body)
{
    return client_call(http_port(w.server), line, NULL, body);
}

static json_t *body_json(const struct reply *r)
{
    json_error_t e;
    json_t *j = json_loadb(r->body.data, r->body.len, 0, &e);
    if (!j)
        fail_msg("not JSON: %s: %s", e.text, r->body.data);
    return j;
}

/* "a.b.0.c" of a JSON value. */
static const json_t *at(const json_t *j, const char *path)
{
    char key[64];
    while (j && *path) {
        size_t n = strcspn(path, ".");
        snprintf(key, sizeof(key), "%.*s", (int)n, path);
        j = json_is_array(j) ? json_array_get(j, strtoul(key, NULL, 10)) : json_object_get(j, key);
        path += n + (path[n] == '.');
    }
    return j;
}

static const char *text_at(const json_t *j, const char *path)
{
    const char *s = json_string_value(at(j, path));
    return s ? s : "(absent)";
}

static void assert_error(const char *line, const char *body, int code, const char *param)
{
    struct reply r = call(line, body);
    json_t *j = body_json(&r);
    if (r.code != code || (param && strcmp(text_at(j, "error.param"), param) != 0))
        fail_msg("%s %s\n-> %d %s, expected %d %s", line, body ? body : "", r.code, r.body.data,
                 code, param ? param : "");
    assert_true(json_is_string(at(j, "error.message")));
    assert_true(json_is_string(at(j, "error.type")));
    json_decref(j);
    reply_fini(&r);
}

static void test_completion_has_the_openai_shape(void **state)
{
    (void)state;
    struct reply r =
        call("POST /v1/completions", "{\"model\":\"alpha\",\"prompt\":\"Hello\",\"max_tokens\":64,"
                                     "\"temperature\":0,\"stop\":null}");
    json_t *j = body_json(&r);
    assert_int_equal(r.code, 200);
    assert_string_equal(text_at(j, "object"), "text_completion");
    assert_string_equal(text_at(j, "model"), "alpha");
    assert_string_equal(text_at(j, "choices.0.text"), TEXT);
    assert_string_equal(text_at(j, "choices.0.finish_reason"), "stop");
    assert_true(json_is_null(at(j, "choices.0.stop_reason")));
    assert_true(json_is_null(at(j, "choices.0.logprobs")));
    assert_int_equal(json_integer_value(at(j, "usage.completion_tokens")), w.engine.script.n);
    assert_int_equal(json_integer_value(at(j, "usage.prompt_tokens_details.cached_tokens")), 0);
    assert_true(json_is_string(at(j, "residual.request_id")));
    assert_non_null(strstr(r.head.data, "x-request-id: "));
    assert_non_null(strstr(r.head.data, "openai-processing-ms: "));
    json_decref(j);
    reply_fini(&r);
}

static void test_chat_has_the_openai_shape(void **state)
{
    (void)state;
    struct reply r =
        call("POST /v1/chat/completions",
             "{\"model\":\"base:org/beta\",\"messages\":[{\"role\":\"user\",\"content\":[{"
             "\"type\":\"text\",\"text\":\"Hi\"}]}],\"logprobs\":true,\"top_logprobs\":2}");
    json_t *j = body_json(&r);
    assert_int_equal(r.code, 200);
    assert_string_equal(text_at(j, "object"), "chat.completion");
    assert_string_equal(text_at(j, "choices.0.message.role"), "assistant");
    assert_string_equal(text_at(j, "choices.0.message.content"), TEXT);
    assert_true(json_is_null(at(j, "choices.0.message.refusal")));
    assert_int_equal(json_array_size(at(j, "choices.0.logprobs.content")), w.engine.script.n);
    assert_int_equal(json_array_size(at(j, "choices.0.logprobs.content.0.top_logprobs")), 2);
    assert_true(json_is_array(at(j, "choices.0.logprobs.content.0.bytes")));
    json_decref(j);
    reply_fini(&r);
}

/* Split a stream into its events' JSON; the last must be [DONE]. */
static json_t *events(const struct reply *r)
{
    json_t *list = json_array();
    bool done = false;
    for (const char *p = r->body.data; *p;) {
        const char *end = strstr(p, "\n\n");
        assert_non_null(end);
        if (*p != ':') {
            assert_int_equal(strncmp(p, "data: ", 6), 0);
            assert_false(done);
            if (strncmp(p, "data: [DONE]", 12) == 0) {
                done = true;
            } else {
                json_error_t e;
                json_t *j = json_loadb(p + 6, (size_t)(end - p) - 6, 0, &e);
                if (!j)
                    fail_msg("%s", e.text);
                json_array_append_new(list, j);
            }
        }
        p = end + 2;
    }
    assert_true(done);
    return list;
}

static void test_chat_stream_obeys_the_client_rules(void **state)
{
    (void)state;
    char text[256] = "";
    size_t idx;
    json_t *e, *list;
    uint32_t roles = 0, finishes = 0;
    struct reply r = call("POST /v1/chat/completions",
                          "{\"model\":\"alpha\",\"messages\":[{\"role\":\"user\",\"content\":"
                          "\"Hi\"}],\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    assert_int_equal(r.code, 200);
    assert_non_null(strstr(r.head.data, "text/event-stream; charset=utf-8"));
    assert_non_null(strstr(r.head.data, "Cache-Control: no-cache"));
    list = events(&r);
    size_t count = json_array_size(list);
    json_array_foreach(list, idx, e)
    {
        if (idx + 1 == count) {
            assert_int_equal(json_array_size(at(e, "choices")), 0);
            assert_int_equal(json_integer_value(at(e, "usage.completion_tokens")),
                             w.engine.script.n);
            assert_true(json_is_object(at(e, "residual")));
            break;
        }
        assert_true(json_is_null(json_object_get(e, "usage")));
        if (at(e, "choices.0.delta.role")) {
            roles++;
            assert_int_equal(idx, 0);
        }
        if (at(e, "choices.0.delta.content"))
            strcat(text, text_at(e, "choices.0.delta.content"));
        if (json_is_string(at(e, "choices.0.finish_reason"))) {
            finishes++;
            assert_int_equal(idx + 2, count);
            assert_int_equal(json_object_size(at(e, "choices.0.delta")), 0);
            assert_true(json_is_object(at(e, "residual")));
        } else {
            assert_null(json_object_get(e, "residual"));
        }
    }
    assert_string_equal(text, TEXT);
    assert_int_equal(roles, 1);
    assert_int_equal(finishes, 1);
    json_decref(list);
    reply_fini(&r);
}

static void test_choices_begin_in_index_order(void **state)
{
    (void)state;
    size_t idx;
    json_t *e;
    int next = 0;
    struct reply r = call("POST /v1/completions",
                          "{\"model\":\"base\",\"prompt\":[\"a\",\"b\"],\"n\":3,\"stream\":true,"
                          "\"max_tokens\":4}");
    json_t *list = events(&r);
    json_array_foreach(list, idx, e)
    {
        int i = (int)json_integer_value(at(e, "choices.0.index"));
        assert_true(i <= next);
        next += i == next;
    }
    assert_int_equal(next, 6);
    json_decref(list);
    reply_fini(&r);
}

static void test_stop_string_is_cut_and_named(void **state)
{
    (void)state;
    struct reply r = call("POST /v1/completions",
                          "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":64,\"stop\":["
                          "\"zzz\",\"keeper co\"]}");
    json_t *j = body_json(&r);
    assert_string_equal(text_at(j, "choices.0.text"), " The lighthouse ");
    assert_string_equal(text_at(j, "choices.0.finish_reason"), "stop");
    assert_string_equal(text_at(j, "choices.0.stop_reason"), "keeper co");
    json_decref(j);
    reply_fini(&r);
    r = call("POST /v1/completions",
             "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":64,\"stop\":\"keeper co\","
             "\"stream\":true,\"include_stop_str_in_output\":true}");
    char text[128] = "";
    size_t idx;
    json_t *e, *list = events(&r);
    json_array_foreach(list, idx, e) strcat(text, text_at(e, "choices.0.text"));
    assert_string_equal(text, " The lighthouse keeper co");
    json_decref(list);
    reply_fini(&r);
}

static void test_echo_with_logprobs_is_what_lm_eval_reads(void **state)
{
    (void)state;
    struct reply r = call("POST /v1/completions",
                          "{\"model\":\"base\",\"prompt\":\"Hello there\",\"max_tokens\":1,"
                          "\"logprobs\":1,\"echo\":true,\"temperature\":0,\"seed\":1234}");
    json_t *j = body_json(&r);
    const json_t *lp = at(j, "choices.0.logprobs");
    size_t n = json_array_size(at(lp, "tokens"));
    assert_int_equal(n, json_integer_value(at(j, "usage.total_tokens")));
    assert_int_equal(json_array_size(at(lp, "token_logprobs")), n);
    assert_int_equal(json_array_size(at(lp, "top_logprobs")), n);
    assert_int_equal(json_array_size(at(lp, "text_offset")), n);
    assert_true(json_is_null(at(lp, "token_logprobs.0")));
    assert_true(json_is_null(at(lp, "top_logprobs.0")));
    assert_int_equal(strncmp(text_at(j, "choices.0.text"), "Hello there", 11), 0);
    for (size_t i = 1; i < n; i++) { /* greedy: the token's value is the largest, as a text */
        double mine = json_number_value(json_array_get(at(lp, "token_logprobs"), i)), best = -1e9;
        const char *key;
        json_t *v;
        json_object_foreach(json_array_get(at(lp, "top_logprobs"), i), key, v) best =
            MAX(best, json_number_value(v));
        assert_true(mine == best);
    }
    json_decref(j);
    reply_fini(&r);
}

static void test_errors_are_openai_objects(void **state)
{
    (void)state;
    const char *c = "POST /v1/completions", *chat = "POST /v1/chat/completions";
    assert_error(c, "{\"model\":\"nobody\",\"prompt\":\"a\"}", 404, "model");
    assert_error(c, "{\"prompt\":\"a\"}", 400, "model");
    assert_error(c, "{", 400, NULL);
    assert_error(c, "[]", 400, NULL);
    assert_error(c, "{\"model\":\"base\",\"model\":\"base\"}", 400, NULL);
    assert_error(c, "{\"model\":\"base\",\"prompt\":\"a\",\"suffix\":\"b\"}", 400, "suffix");
    assert_error(c, "{\"model\":\"base\",\"prompt\":\"a\",\"best_of\":4}", 400, "best_of");
    assert_error(chat, "{\"model\":\"base\",\"messages\":[],\"tools\":[{}]}", 400, "tools");
    assert_error(chat, "{\"model\":\"base\",\"messages\":[]}", 400, "messages");
    assert_error("GET /nowhere", NULL, 404, NULL);
    assert_error("DELETE /v1/completions", NULL, 405, NULL);
    assert_error("GET /v1/receipts/xyz", NULL, 404, "id");
}

static void test_prompt_over_context_names_both_numbers(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 1u << 20);
    buf_puts(&b, "{\"model\":\"base\",\"prompt\":[");
    for (int i = 0; i < 600; i++)
        buf_puts(&b, i ? ",5" : "5");
    buf_puts(&b, "]}");
    struct reply r = call("POST /v1/completions", b.data);
    assert_int_equal(r.code, 400);
    assert_non_null(strstr(r.body.data, "512"));
    assert_non_null(strstr(r.body.data, "600"));
    assert_non_null(strstr(r.body.data, "context_length_exceeded"));
    buf_fini(&b);
    reply_fini(&r);
}

static void test_a_huge_body_is_refused_without_being_kept(void **state)
{
    (void)state;
    size_t len = 100u << 20;
    char *body = mem_alloc(1u << 20);
    memset(body, ' ', 1u << 20);
    int fd = client_connect(http_port(w.server));
    char head[256];
    int n = snprintf(head, sizeof(head),
                     "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                     "Content-Length: %zu\r\n\r\n",
                     len);
    client_send(fd, head, (size_t)n);
    for (int i = 0; i < 100; i++)
        client_send(fd, body, 1u << 20);
    struct reply r = client_read(fd);
    assert_int_equal(r.code, 413);
    reply_fini(&r);
    mem_free(body);
}

static void test_full_says_when_to_retry(void **state)
{
    (void)state;
    w.engine.submit_status = STATUS_FULL;
    struct reply r = call("POST /v1/completions", "{\"model\":\"base\",\"prompt\":\"a\"}");
    assert_int_equal(r.code, 429);
    assert_non_null(strstr(r.head.data, "Retry-After: 1\r\n"));
    assert_non_null(strstr(r.head.data, "retry-after-ms: 1000"));
    assert_non_null(strstr(r.head.data, "x-should-retry: true"));
    assert_int_equal(atomic_load(&w.recorder.unadmitted), 1);
    reply_fini(&r);
    w.engine.submit_status = STATUS_OK;
    w.recorder.admit_status = STATUS_FULL;
    r = call("POST /v1/completions", "{\"model\":\"base\",\"prompt\":\"a\"}");
    assert_int_equal(r.code, 503);
    w.recorder.admit_status = STATUS_OK;
    reply_fini(&r);
}

static void test_a_failure_before_any_token_is_an_http_error(void **state)
{
    (void)state;
    w.engine.finish_status = STATUS_BUSY;
    assert_error("POST /v1/completions", "{\"model\":\"alpha\",\"prompt\":\"a\",\"stream\":true}",
                 503, NULL);
    w.engine.fail_after = 3;
    struct reply r =
        call("POST /v1/completions", "{\"model\":\"alpha\",\"prompt\":\"a\",\"stream\":true}");
    assert_int_equal(r.code, 200);
    json_t *list = events(&r);
    assert_true(
        json_is_string(at(json_array_get(list, json_array_size(list) - 1), "error.message")));
    json_decref(list);
    reply_fini(&r);
    w.engine.finish_status = STATUS_OK;
    w.engine.fail_after = 0;
}

static void test_an_answer_without_a_record_is_not_given(void **state)
{
    (void)state;
    w.recorder.never_records = true;
    assert_error("POST /v1/completions", "{\"model\":\"base\",\"prompt\":\"a\"}", 503, NULL);
    w.recorder.never_records = false;
}

static void test_idempotency_key_is_answered_once(void **state)
{
    (void)state;
    const char *h = "Idempotency-Key: order-1\r\n", *line = "POST /v1/completions";
    uint16_t port = http_port(w.server);
    struct reply r = client_call(port, line, h, "{\"model\":\"base\",\"prompt\":\"a\"}");
    json_t *j = body_json(&r);
    char id[80];
    assert_int_equal(r.code, 200);
    snprintf(id, sizeof(id), "%s", text_at(j, "residual.request_id"));
    json_decref(j);
    reply_fini(&r);
    r = client_call(port, line, h, "{\"model\":\"base\",\"prompt\":\"a\"}");
    assert_int_equal(r.code, 409);
    assert_non_null(strstr(r.head.data, "x-should-retry: false"));
    assert_non_null(strstr(r.body.data, id));
    reply_fini(&r);
    r = client_call(port, line, h, "{\"model\":\"base\",\"prompt\":\"b\"}");
    assert_int_equal(r.code, 422);
    reply_fini(&r);
}

static void test_a_client_that_leaves_cancels_its_request(void **state)
{
    (void)state;
    atomic_store(&w.engine.step_ms, 20);
    for (int stream = 0; stream < 2; stream++) {
        char body[160];
        uint32_t before = atomic_load(&w.engine.cancelled);
        snprintf(body, sizeof(body),
                 "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":400,\"ignore_eos\":true,"
                 "\"stream\":%s}",
                 stream ? "true" : "false");
        int fd = client_connect(http_port(w.server));
        client_request(fd, "POST /v1/completions", NULL, body, strlen(body));
        clock_sleep_ms(100);
        close(fd);
        for (int i = 0; i < 500 && atomic_load(&w.engine.cancelled) == before; i++)
            clock_sleep_ms(10); /* it may only have ended its side, until it is probed */
        assert_int_equal(atomic_load(&w.engine.cancelled), before + 1);
    }
    atomic_store(&w.engine.step_ms, 1);
}

static void test_models_and_adapters_are_listed(void **state)
{
    (void)state;
    struct reply r = call("GET /v1/models", NULL);
    json_t *j = body_json(&r);
    assert_int_equal(json_array_size(at(j, "data")), 3);
    assert_string_equal(text_at(j, "data.0.id"), "base");
    assert_true(json_is_null(at(j, "data.0.parent")));
    assert_string_equal(text_at(j, "data.1.parent"), "base");
    json_decref(j);
    reply_fini(&r);
    r = call("GET /v1/models/org/beta", NULL);
    assert_int_equal(r.code, 200);
    reply_fini(&r);
    r = call("GET /v1/adapters/alpha", NULL);
    j = body_json(&r);
    assert_string_equal(text_at(j, "state"), "disk");
    json_decref(j);
    reply_fini(&r);
    assert_error("GET /v1/models/nobody", NULL, 404, "model");
}

static void test_a_refused_adapter_says_why(void **state)
{
    (void)state;
    struct errtext why = {.text = "adapter 'broken': no lora_B"};
    catalog_refuse(w.catalog, "broken", &why);
    struct reply r = call("GET /v1/adapters", NULL);
    json_t *j = body_json(&r), *last = json_array_get(at(j, "data"), 2);
    assert_int_equal(json_integer_value(at(j, "count")), 2);
    assert_int_equal(json_integer_value(at(j, "refused")), 1);
    assert_string_equal(text_at(last, "name"), "broken");
    assert_string_equal(text_at(last, "state"), "refused");
    assert_string_equal(text_at(last, "error"), why.text);
    json_decref(j);
    reply_fini(&r);
    r = call("GET /v1/adapters/broken", NULL);
    assert_int_equal(r.code, 200);
    assert_non_null(strstr(r.body.data, why.text));
    reply_fini(&r);
    r = call("POST /v1/completions", "{\"model\":\"broken\",\"prompt\":\"a\"}");
    assert_int_equal(r.code, 404);
    assert_non_null(strstr(r.body.data, why.text));
    reply_fini(&r);
    r = call("POST /tokenize", "{\"model\":\"broken\",\"prompt\":\"a\"}");
    assert_non_null(strstr(r.body.data, why.text));
    reply_fini(&r);
    assert_error("GET /v1/models/broken", NULL, 404, "model");
    assert_error("DELETE /v1/adapters/broken", NULL, 404, "name");
    r = call("GET /metrics", NULL);
    assert_non_null(strstr(r.body.data, "residual_adapters_refused 1\n"));
    reply_fini(&r);
    r = call("POST /v1/load_lora_adapter",
             "{\"lora_name\":\"broken\",\"lora_path\":\"/adapters/b\"}");
    assert_int_equal(r.code, 200);
    reply_fini(&r);
    assert_int_equal(catalog_refused_count(w.catalog), 0);
    r = call("POST /unload_lora_adapter", "{\"lora_name\":\"broken\"}");
    assert_int_equal(r.code, 200);
    reply_fini(&r);
}

static void put_with_template(const char *name, uint8_t id, const char *text)
{
    struct adapter_entry *old, *e = catalog_entry_new();
    snprintf(e->name, sizeof(e->name), "%s", name);
    memset(e->id, id, sizeof(e->id));
    assert_int_equal(chat_own_make(&e->chat, text, strlen(text), "chat_template.jinja", NULL),
                     STATUS_OK);
    assert_int_equal(catalog_put(w.catalog, e, false, &old, NULL), STATUS_OK);
    catalog_release(e);
}

static json_t *tokens_of(const char *body)
{
    struct reply r = call("POST /tokenize", body);
    assert_int_equal(r.code, 200);
    json_t *j = body_json(&r), *tokens = json_deep_copy(at(j, "tokens"));
    json_decref(j);
    reply_fini(&r);
    return tokens;
}

#define HELLO "\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]"

/* Chat with an adapter that brings a template uses it, in /tokenize too; two that differ have none
 * for both; one that cannot be used says why, and completions go on. */
static void test_an_adapters_own_template(void **state)
{
    (void)state;
    put_with_template("own", 0x51, "Own: {{ messages[0].content }}!");
    put_with_template("other", 0x52, "Other: {{ messages[0].content }}!");
    put_with_template("unusable", 0x53, "{% if %}");
    json_t *want = tokens_of("{\"model\":\"base\",\"prompt\":\"Own: Hello!\"}"),
           *found = tokens_of("{\"model\":\"own\"," HELLO "}"),
           *base = tokens_of("{\"model\":\"base\"," HELLO "}"),
           *plain = tokens_of("{\"model\":\"alpha\"," HELLO "}");
    assert_true(json_equal(want, found));
    assert_false(json_equal(base, found));
    assert_true(json_equal(base, plain));
    struct reply r =
        call("POST /v1/chat/completions", "{\"model\":\"own\",\"max_tokens\":1," HELLO "}");
    assert_int_equal(r.code, 200);
    json_t *j = body_json(&r);
    assert_int_equal(json_integer_value(at(j, "usage.prompt_tokens")), json_array_size(want));
    json_decref(j);
    reply_fini(&r);
    assert_error(
        "POST /v1/chat/completions",
        "{\"model\":\"base\",\"adapters\":[{\"model\":\"own\"},{\"model\":\"other\"}]," HELLO "}",
        400, "adapters");
    assert_error("POST /v1/chat/completions", "{\"model\":\"unusable\"," HELLO "}", 400,
                 "messages");
    assert_error("POST /tokenize", "{\"model\":\"unusable\"," HELLO "}", 400, "messages");
    r = call("POST /v1/completions", "{\"model\":\"unusable\",\"prompt\":\"a\",\"max_tokens\":1}");
    assert_int_equal(r.code, 200);
    reply_fini(&r);
    r = call("GET /v1/adapters/unusable", NULL);
    assert_non_null(strstr(r.body.data, "\"chat_template\":\"refused\""));
    reply_fini(&r);
    static const char *const names[] = {"own", "other", "unusable"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        catalog_release(catalog_remove(w.catalog, names[i]));
    json_decref(want);
    json_decref(found);
    json_decref(base);
    json_decref(plain);
}

static void test_vllm_load_and_unload(void **state)
{
    (void)state;
    const char *load = "POST /v1/load_lora_adapter", *unload = "POST /unload_lora_adapter";
    struct reply r = call(load, "{\"lora_name\":\"gamma\",\"lora_path\":\"/adapters/g\"}");
    assert_int_equal(r.code, 200);
    assert_string_equal(r.body.data, "Success: LoRA adapter 'gamma' added successfully.");
    reply_fini(&r);
    assert_error(load, "{\"lora_name\":\"gamma\",\"lora_path\":\"/adapters/other\"}", 400, NULL);
    assert_error(load, "{\"lora_name\":\"d\",\"lora_path\":\"/adapters/none\"}", 404, "lora_path");
    assert_error(load, "{\"lora_path\":\"/adapters/none\"}", 400, "lora_name");
    r = call(unload, "{\"lora_name\":\"gamma\"}");
    assert_int_equal(r.code, 200);
    assert_string_equal(r.body.data, "Success: LoRA adapter 'gamma' removed successfully.");
    assert_int_equal(atomic_load(&w.engine.unloads), 1);
    reply_fini(&r);
    assert_error(unload, "{\"lora_name\":\"gamma\"}", 404, "lora_name");
}

static void test_publish_is_two_uploads_and_a_call(void **state)
{
    (void)state;
    const char *ask = "{\"name\":\"org/new\",\"manifest\":{}}";
    assert_error("POST /v1/adapters", ask, 400, "name");
    struct reply r = call("PUT /v1/uploads/org/new/adapter_config.json", "{\"r\":8}");
    assert_int_equal(r.code, 201);
    reply_fini(&r);
    r = call("PUT /v1/uploads/org/new/adapter_model.safetensors", "0123456789");
    assert_int_equal(r.code, 201);
    reply_fini(&r);
    r = call("POST /v1/adapters", "{\"name\":\"org/new\",\"dry_run\":true}");
    assert_int_equal(r.code, 200);
    assert_true(w.publisher.dry_run);
    reply_fini(&r);
    r = call("POST /v1/adapters", ask);
    assert_int_equal(r.code, 201);
    assert_int_equal(w.publisher.config_bytes, 7);
    assert_int_equal(w.publisher.tensor_bytes, 10);
    assert_true(w.publisher.had_manifest);
    reply_fini(&r);
    assert_error("PUT /v1/uploads/org/new/evil.bin", "x", 404, NULL);
    assert_error("POST /v1/adapters", ask, 400, "name");
    r = call("DELETE /v1/adapters/org/new", NULL);
    assert_int_equal(r.code, 200);
    assert_int_equal(atomic_load(&w.publisher.forgotten), 1);
    reply_fini(&r);
}

static void test_metrics_have_what_routers_read(void **state)
{
    (void)state;
    static const char *const names[] = {
        "vllm:num_requests_running{",
        "vllm:num_requests_waiting{",
        "vllm:kv_cache_usage_perc{model_name=\"base\",engine=\"0\"} 0.25",
        "vllm:cache_config_info{block_size=\"16\"",
        "vllm:lora_requests_info{max_lora=\"8\"",
        "vllm:time_to_first_token_seconds_bucket{",
        "vllm:request_success_total{",
        "residual_adapters_resident{tier=\"host\"}",
        "residual_adapter_device_bytes 3145728",
        "residual_adapter_device_bytes_max 8388608",
        "residual_adapter_uploads_total 7",
        "residual_spool_bytes 4096",
        "residual_adapter_tokens_total{adapter=\"_other\"}"};
    struct reply r = call("GET /metrics", NULL);
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        if (!strstr(r.body.data, names[i]))
            fail_msg("no %s", names[i]);
    }
    assert_null(strstr(r.body.data, "# EOF"));
    reply_fini(&r);
    r = client_call(http_port(w.server), "GET /metrics", "Accept: application/openmetrics-text\r\n",
                    NULL);
    assert_non_null(strstr(r.body.data, "# TYPE vllm:prompt_tokens counter"));
    assert_string_equal(r.body.data + r.body.len - 6, "# EOF\n");
    reply_fini(&r);
}

static void test_tokenize_and_back(void **state)
{
    (void)state;
    struct reply r = call("POST /tokenize", "{\"prompt\":\"Hello there\"}");
    json_t *j = body_json(&r), *ask = json_object();
    assert_int_equal(json_integer_value(at(j, "count")), json_array_size(at(j, "tokens")));
    json_object_set(ask, "tokens", json_object_get(j, "tokens"));
    char *text = json_dumps(ask, 0);
    reply_fini(&r);
    r = call("POST /detokenize", text);
    assert_string_equal(r.body.data, "{\"prompt\":\"Hello there\"}");
    free(text);
    json_decref(ask);
    json_decref(j);
    reply_fini(&r);
    r = call("POST /tokenize", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
    assert_int_equal(r.code, 200);
    reply_fini(&r);
}

static void test_foreign_pages_cannot_drive_a_keyless_server(void **state)
{
    (void)state;
    struct reply r = client_call(http_port(w.server), "GET /v1/models",
                                 "Origin: https://evil.example\r\n", NULL);
    assert_int_equal(r.code, 403);
    reply_fini(&r);
    r = client_call(http_port(w.server), "GET /v1/models", "Origin: http://localhost:3000\r\n",
                    NULL);
    assert_int_equal(r.code, 200);
    reply_fini(&r);
    r = client_call(http_port(w.server), "OPTIONS /v1/completions",
                    "Access-Control-Request-Headers: authorization,x-stainless-os\r\n", NULL);
    assert_int_equal(r.code, 204);
    assert_non_null(strstr(r.head.data, "authorization,x-stainless-os"));
    reply_fini(&r);
}

static void test_many_streams_all_finish(void **state)
{
    (void)state;
    enum { COUNT = 1000 };
    int *fd = mem_array(COUNT, sizeof(int));
    const char *body = "{\"model\":\"alpha\",\"prompt\":\"a\",\"stream\":true,\"max_tokens\":32}";
    atomic_store(&w.engine.step_ms, 10);
    for (int i = 0; i < COUNT; i++) {
        fd[i] = client_connect(http_port(w.server));
        client_request(fd[i], "POST /v1/completions", NULL, body, strlen(body));
    }
    for (int i = 0; i < COUNT; i++) {
        struct reply r = client_read(fd[i]);
        if (r.code != 200 || r.body.len < 14 ||
            strcmp(r.body.data + r.body.len - 14, "data: [DONE]\n\n") != 0)
            fail_msg("stream %d: %d %s", i, r.code, r.body.data);
        reply_fini(&r);
    }
    atomic_store(&w.engine.step_ms, 1);
    mem_free(fd);
}

/* A client that reads slowly: chunks are cut by a full socket, and nothing may be lost or doubled.
 */
static void test_a_slow_reader_gets_every_byte(void **state)
{
    (void)state;
    enum { CHOICES = 8, TOKENS = 400 };
    const char *body = "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":400,"
                       "\"ignore_eos\":true,\"stream\":true,\"n\":8,\"logprobs\":20}";
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(http_port(w.server))};
    int small = 128 << 10, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    size_t tokens = 0;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    client_request(fd, "POST /v1/completions", NULL, body, strlen(body));
    clock_sleep_ms(700);
    struct reply r = client_read(fd);
    json_t *list = events(&r);
    assert_non_null(strstr(r.body.data, "[DONE]"));
    for (size_t i = 0; i < json_array_size(list); i++)
        tokens += json_array_size(at(json_array_get(list, i), "choices.0.logprobs.tokens"));
    assert_int_equal(tokens, CHOICES * TOKENS);
    assert_null(strstr(r.body.data, ": ping")); /* it never waited for one to go on */
    json_decref(list);
    reply_fini(&r);
}

static void test_stop_with_running_streams_ends_them(void **state)
{
    (void)state;
    struct world own;
    const char *body = "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":400,"
                       "\"ignore_eos\":true,\"stream\":true}";
    world_init(&own);
    atomic_store(&own.engine.step_ms, 20);
    world_serve(&own);
    int fd = client_connect(http_port(own.server));
    client_request(fd, "POST /v1/completions", NULL, body, strlen(body));
    clock_sleep_ms(100);
    http_begin_drain(own.server);
    struct reply r = client_call(http_port(own.server), "GET /readyz", NULL, NULL);
    assert_int_equal(r.code, 503);
    assert_non_null(strstr(r.head.data, "Connection: close"));
    reply_fini(&r);
    world_fini(&own);
    r = client_read(fd);
    json_t *list = events(&r);
    assert_true(json_is_object(at(json_array_get(list, json_array_size(list) - 1), "error")));
    json_decref(list);
    reply_fini(&r);
}

/* RFC 9112 9.6: a client may end its side after its request, and reads its answer all the same. The
 * whole one takes long enough to be probed: an interim reply comes before it. */
static void test_waiting_and_half_closed_is_not_idling_or_gone(void **state)
{
    (void)state;
    struct world own;
    static const char interim[] = "HTTP/1.1 100 Continue\r\n\r\n";
    world_init(&own);
    own.opt.idle_timeout_s = 1;
    atomic_store(&own.engine.step_ms, 50);
    world_serve(&own);
    for (int stream = 0; stream < 2; stream++) { /* 3.5 s of computing, idle timeout 1 s */
        char body[160];
        snprintf(body, sizeof(body),
                 "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":70,\"ignore_eos\":true,"
                 "\"stream\":%s}",
                 stream ? "true" : "false");
        int fd = client_connect(http_port(own.server));
        client_request(fd, "POST /v1/completions", NULL, body, strlen(body));
        assert_int_equal(shutdown(fd, SHUT_WR), 0);
        if (!stream) {
            char head[sizeof(interim)] = "";
            assert_int_equal(recv(fd, head, sizeof(interim) - 1, MSG_WAITALL), sizeof(interim) - 1);
            assert_string_equal(head, interim);
        }
        struct reply r = client_read(fd);
        assert_int_equal(r.code, 200);
        assert_non_null(strstr(r.body.data, stream ? "[DONE]" : "\"completion_tokens\":70"));
        reply_fini(&r);
    }
    world_fini(&own);
}

/* Before a model is loaded: the address is refused when it is bound. */
static void test_a_port_in_use_is_said_so(void **state)
{
    (void)state;
    int fd = -1;
    struct errtext err = ERRTEXT_INIT;
    struct http_options opt = w.opt;
    opt.listen.port = http_port(w.server);
    assert_int_equal(http_bind(&fd, &opt, &err), STATUS_IO);
    assert_non_null(strstr(err.text, "address already in use"));
    err_clear(&err);
    opt.listen = (struct hostport){.host = "0.0.0.0"};
    assert_int_equal(http_bind(&fd, &opt, &err), STATUS_DENIED);
    assert_int_equal(fd, -1);
}

static void test_the_page_loads_nothing_from_elsewhere(void **state)
{
    static const char *const files[] = {"GET /", "GET /page/page.js", "GET /page/page.css"};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        struct reply r = call(files[i], NULL);
        assert_int_equal(r.code, 200);
        assert_non_null(strstr(r.head.data, "Content-Security-Policy: default-src 'none'; "
                                            "script-src 'self'; style-src 'self'; "
                                            "img-src data:; connect-src 'self'; "));
        assert_non_null(strstr(r.head.data, "X-Content-Type-Options: nosniff"));
        reply_fini(&r);
    }
    struct reply r = call("GET /page/settings", NULL);
    assert_string_equal(r.body.data,
                        "{\"model\":\"base\",\"key_needed\":false,\"settle_url\":null}");
    reply_fini(&r);
    assert_error("GET /page/nothing.js", NULL, 404, NULL);
    assert_error("POST /", "{}", 405, NULL);
    struct world own; /* a page that is switched off */
    world_init(&own);
    own.opt.page = false;
    world_serve(&own);
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        r = client_call(http_port(own.server), files[i], NULL, NULL);
        assert_int_equal(r.code, 404);
        assert_non_null(strstr(r.body.data, "switched off"));
        reply_fini(&r);
    }
    world_fini(&own);
}

/* It goes into a header: what could end the directive, or begin another, is refused. */
static void test_the_workers_address_is_one_origin(void **state)
{
    static const char *const bad[] = {
        "javascript:alert(1)", "https://",      "https://a; script-src *",
        "https://a/ 'unsafe'", "ftp://a",       "https://a/?b=c",
        "https://a\r\nX: y",   "https://u:p@a/"};
    char policy[PAGE_POLICY_BYTES_MAX];
    int fd = -1;
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct errtext err = ERRTEXT_INIT;
        struct http_options opt = w.opt;
        opt.settle_url = bad[i];
        assert_int_equal(http_bind(&fd, &opt, &err), STATUS_INVALID);
        assert_string_equal(err.param, "settle_url");
    }
    page_put_policy(policy, "https://pay.example:8443/worker/");
    assert_non_null(strstr(policy, "connect-src 'self' https://pay.example:8443; base-uri"));
}

static int setup(void **state)
{
    (void)state;
    world_init(&w);
    world_serve(&w);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    world_fini(&w);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_completion_has_the_openai_shape),
        cmocka_unit_test(test_chat_has_the_openai_shape),
        cmocka_unit_test(test_chat_stream_obeys_the_client_rules),
        cmocka_unit_test(test_choices_begin_in_index_order),
        cmocka_unit_test(test_stop_string_is_cut_and_named),
        cmocka_unit_test(test_echo_with_logprobs_is_what_lm_eval_reads),
        cmocka_unit_test(test_errors_are_openai_objects),
        cmocka_unit_test(test_prompt_over_context_names_both_numbers),
        cmocka_unit_test(test_a_huge_body_is_refused_without_being_kept),
        cmocka_unit_test(test_full_says_when_to_retry),
        cmocka_unit_test(test_a_failure_before_any_token_is_an_http_error),
        cmocka_unit_test(test_an_answer_without_a_record_is_not_given),
        cmocka_unit_test(test_idempotency_key_is_answered_once),
        cmocka_unit_test(test_a_client_that_leaves_cancels_its_request),
        cmocka_unit_test(test_models_and_adapters_are_listed),
        cmocka_unit_test(test_vllm_load_and_unload),
        cmocka_unit_test(test_a_refused_adapter_says_why),
        cmocka_unit_test(test_an_adapters_own_template),
        cmocka_unit_test(test_publish_is_two_uploads_and_a_call),
        cmocka_unit_test(test_metrics_have_what_routers_read),
        cmocka_unit_test(test_tokenize_and_back),
        cmocka_unit_test(test_foreign_pages_cannot_drive_a_keyless_server),
        cmocka_unit_test(test_many_streams_all_finish),
        cmocka_unit_test(test_a_slow_reader_gets_every_byte),
        cmocka_unit_test(test_stop_with_running_streams_ends_them),
        cmocka_unit_test(test_waiting_and_half_closed_is_not_idling_or_gone),
        cmocka_unit_test(test_the_page_loads_nothing_from_elsewhere),
        cmocka_unit_test(test_the_workers_address_is_one_origin),
        cmocka_unit_test(test_a_port_in_use_is_said_so)};
    if (argc >= 3 && strcmp(argv[1], "--serve") == 0) {
        world_init(&w);
        if (argc > 3)
            atomic_store(&w.engine.step_ms, (unsigned)strtoul(argv[3], NULL, 10));
        w.opt.listen.port = (uint16_t)strtoul(argv[2], NULL, 10);
        world_serve(&w);
        pause();
    }
    return cmocka_run_group_tests(tests, setup, teardown);
}
