/* Sessions and futures of Tinker's API where nothing is trained: what waits, what ends, what is
 * bounded. Over real sockets, with the doubles of http_double.h and a clock that can be moved. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "server/base/proto.h"
#include "server/http/tinker.h"
#include "tests/unit/http_client.h"
#include "tests/unit/http_double.h"

static struct world w;
static _Atomic uint64_t moved_ns;
static char session[64];

static uint64_t moving_clock(void)
{
    return clock_mono_ns() + atomic_load(&moved_ns);
}

static void move_s(uint64_t s)
{
    atomic_fetch_add(&moved_ns, s * 1000000000);
}

static struct reply post(const char *call, const char *body)
{
    char line[128];
    snprintf(line, sizeof(line), "POST /api/v1/%s", call);
    return client_call(http_port(w.server), line, NULL, body);
}

/* The status; the body has `says` in it. */
static int said(const char *call, const char *body, const char *says)
{
    struct reply r = post(call, body);
    if (!strstr(r.body.data, says))
        fail_msg("%s: %d %s, expected \"%s\"", call, r.code, r.body.data, says);
    reply_fini(&r);
    return r.code;
}

static void new_session(void)
{
    char body[256];
    struct reply r = post("create_session", "{\"tags\":[],\"sdk_version\":\"0\"}");
    const char *at = strstr(r.body.data, "ses-");
    assert_int_equal(r.code, 200);
    assert_non_null(at);
    snprintf(session, sizeof(session), "%.*s", (int)strcspn(at, "\""), at);
    reply_fini(&r);
    snprintf(body, sizeof(body),
             "{\"session_id\":\"%s\",\"sampling_session_seq_id\":0,\"base_model\":\"base\"}",
             session);
    assert_int_equal(said("create_sampling_session", body, ":sample:0"), 200);
    assert_int_equal(said("create_sampling_session", body, ":sample:0"), 200); /* repeated */
}

/* An id may be longer than the session's; what is made of it is the session's own. */
static void test_ids_are_made_here(void **state)
{
    char body[256], want[128];
    (void)state;
    new_session();
    snprintf(body, sizeof(body),
             "{\"session_id\":\"%s:\\\"x\",\"sampling_session_seq_id\":7,\"base_model\":\"base\"}",
             session);
    snprintf(want, sizeof(want), "\"sampling_session_id\":\"%s:sample:7\"}", session);
    assert_int_equal(said("create_sampling_session", body, want), 200);
}

static int beat(void)
{
    char body[128];
    snprintf(body, sizeof(body), "{\"session_id\":\"%s\"}", session);
    struct reply r = post("session_heartbeat", body);
    reply_fini(&r);
    return r.code;
}

static int sample(int seq, const char *more, const char *says)
{
    char body[512];
    snprintf(
        body, sizeof(body),
        "{\"sampling_session_id\":\"%s:sample:0\",\"seq_id\":%d,\"prompt\":{\"chunks\":[{"
        "\"type\":\"encoded_text\",\"tokens\":[5,6,7]}]},\"sampling_params\":{\"max_tokens\":2,"
        "\"temperature\":1.0,\"top_k\":-1,\"top_p\":1}%s}",
        session, seq, more);
    return said("asample", body, says);
}

static struct reply ask(int seq)
{
    char body[256];
    snprintf(body, sizeof(body), "{\"request_id\":\"%s:sample:0:%d\",\"allow_metadata_only\":true}",
             session, seq);
    return post("retrieve_future", body);
}

/* Field `number` of a message as bytes; its length in *len. */
static const uint8_t *field(const void *data, size_t bytes, uint32_t number, size_t *len)
{
    struct proto_reader r = proto_open("answer", data, bytes, NULL);
    struct proto_field f;
    while (proto_next(&r, &f)) {
        if (f.number == number && f.wire == PROTO_BYTES) {
            *len = f.len;
            return f.data;
        }
    }
    fail_msg("there is no field %u", number);
    return NULL;
}

static void test_a_question_waits_for_its_answer(void **state)
{
    size_t len, n;
    (void)state;
    new_session();
    atomic_store(&w.engine.step_ms, 200);
    uint32_t before = atomic_load(&w.engine.submitted);
    assert_int_equal(
        sample(0, ",\"num_samples\":2,\"prompt_logprobs\":true", "\"sample_sequence_ids\""), 200);
    assert_int_equal(sample(0, "", ":sample:0:0"), 200); /* repeated: nothing new begins */
    assert_int_equal(atomic_load(&w.engine.submitted), before + 1);
    uint64_t begin = clock_mono_ns();
    struct reply r = ask(0);
    assert_int_equal(r.code, 200);
    assert_true(clock_mono_ns() - begin > 100000000);
    assert_non_null(strstr(r.head.data, "application/x-protobuf"));
    const uint8_t *seq = field(r.body.data, r.body.len, 1, &len);
    (void)field(seq, len, 2, &n);
    assert_int_equal(n, 2 * sizeof(int32_t));
    float logprob[3];
    const uint8_t *prompt = field(r.body.data, r.body.len, 2, &n);
    assert_int_equal(n, sizeof(logprob));
    memcpy(logprob, prompt, n);
    assert_true(logprob[0] != logprob[0] && logprob[1] == -2.5f && logprob[2] == -3.5f);
    reply_fini(&r);
    r = ask(0); /* again is fine */
    assert_int_equal(r.code, 200);
    reply_fini(&r);
    atomic_store(&w.engine.step_ms, 1);
}

static void test_what_takes_long_is_asked_for_again(void **state)
{
    (void)state;
    new_session();
    atomic_store(&w.engine.step_ms, 3000);
    assert_int_equal(sample(0, "", "request_id"), 200);
    int fd = client_connect(http_port(w.server));
    char body[256];
    snprintf(body, sizeof(body), "{\"request_id\":\"%s:sample:0:0\"}", session);
    client_request(fd, "POST /api/v1/retrieve_future", NULL, body, strlen(body));
    clock_sleep_ms(300);
    move_s(TINKER_WAIT_MS / 1000);
    struct reply r = client_read(fd);
    assert_int_equal(r.code, 408);
    assert_non_null(strstr(r.body.data, "\"try_again\""));
    reply_fini(&r);
    atomic_store(&w.engine.step_ms, 1);
    r = ask(0);
    assert_int_equal(r.code, 200);
    reply_fini(&r);
    r = ask(1);
    assert_int_equal(r.code, 410);
    reply_fini(&r);
}

static void test_what_fails_says_why(void **state)
{
    (void)state;
    new_session();
    w.engine.finish_status = STATUS_IO;
    w.engine.fail_after = 1;
    assert_int_equal(sample(0, "", "request_id"), 200);
    struct reply r = ask(0);
    assert_int_equal(r.code, 200);
    assert_non_null(
        strstr(r.body.data, "{\"error\":\"the double fails\",\"category\":\"server\"}"));
    reply_fini(&r);
    w.engine.finish_status = STATUS_OK;
    w.engine.submit_status = STATUS_FULL;
    assert_int_equal(sample(1, "", "the double refuses"), 429);
    w.engine.submit_status = STATUS_OK;
    assert_int_equal(sample(1, "", "request_id"), 200); /* the refused one left nothing */
    assert_int_equal(sample(2, ",\"prompt_alt_tokens_k\":2", "prompt_alt_tokens_k"), 400);
    assert_int_equal(sample(3, ",\"num_samples\":1000", "num_samples"), 400);
    assert_int_equal(said("asample", "{", "JSON"), 400);
    assert_int_equal(said("create_model", "{}", "trains no adapters"), 400);
    assert_int_equal(said("forward_backward", "x", "trains no adapters"), 400);
    r = ask(1);
    reply_fini(&r);
}

static void test_a_session_ends_when_nobody_calls(void **state)
{
    (void)state;
    new_session();
    move_s(TINKER_SESSION_IDLE_S - 5);
    clock_sleep_ms(600);
    assert_int_equal(beat(), 200);
    move_s(TINKER_SESSION_IDLE_S - 5);
    clock_sleep_ms(600);
    assert_int_equal(beat(), 200); /* a call keeps it */
    atomic_store(&w.engine.step_ms, 500);
    uint32_t cancelled = atomic_load(&w.engine.cancelled);
    assert_int_equal(sample(0, "", "request_id"), 200);
    move_s(TINKER_SESSION_IDLE_S + 1);
    clock_sleep_ms(600);
    assert_int_equal(beat(), 410);
    atomic_store(&w.engine.step_ms, 1);
    for (int i = 0; i < 400; i++) {
        struct reply r = client_call(http_port(w.server), "GET /metrics", NULL, NULL);
        bool gone = strstr(r.body.data, "\nresidual_tinker_sessions 0\n") != NULL;
        reply_fini(&r);
        if (gone)
            break;
        clock_sleep_ms(10);
        assert_true(i < 399);
    }
    assert_int_equal(atomic_load(&w.engine.cancelled), cancelled + 1);
}

static void test_sessions_of_a_key_are_bounded(void **state)
{
    char call[128];
    (void)state;
    for (uint32_t i = 0; i < TINKER_SESSIONS_KEY; i++)
        new_session();
    assert_int_equal(said("create_session", "{}", "sessions"), 429);
    snprintf(call, sizeof(call), "sessions/%s/finish", session);
    assert_int_equal(said(call, "{\"reason\":{\"type\":\"success\"}}", "null"), 200);
    assert_int_equal(beat(), 410);
    new_session();
    move_s(TINKER_SESSION_IDLE_S + 1);
    clock_sleep_ms(600);
}

static void test_futures_of_a_session_are_bounded(void **state)
{
    (void)state;
    new_session();
    atomic_store(&w.engine.step_ms, 0);
    for (uint32_t i = 0; i < TINKER_FUTURES_MAX; i++)
        assert_int_equal(sample((int)i, "", "request_id"), 200);
    assert_int_equal(sample(TINKER_FUTURES_MAX, "", "never asked for"), 429);
    struct reply r = ask(3);
    assert_int_equal(r.code, 200);
    reply_fini(&r);
    assert_int_equal(sample(TINKER_FUTURES_MAX, "", "request_id"), 200); /* in its place */
    r = ask(3);
    assert_int_equal(r.code, 410);
    reply_fini(&r);
    atomic_store(&w.engine.step_ms, 1);
}

static int setup(void **state)
{
    (void)state;
    world_init(&w);
    w.opt.clock_ns = moving_clock;
    world_serve(&w);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    world_fini(&w);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ids_are_made_here),
                                       cmocka_unit_test(test_a_question_waits_for_its_answer),
                                       cmocka_unit_test(test_what_takes_long_is_asked_for_again),
                                       cmocka_unit_test(test_what_fails_says_why),
                                       cmocka_unit_test(test_a_session_ends_when_nobody_calls),
                                       cmocka_unit_test(test_sessions_of_a_key_are_bounded),
                                       cmocka_unit_test(test_futures_of_a_session_are_bounded)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
