/* The server's borders: how messages are framed, and what one client, or many, may take of
 * connections, time, memory and workers. Over real sockets, with the doubles of http_double.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/unit/http_client.h"
#include "tests/unit/http_double.h"

static struct world w;

/* One request given as bytes: its status, and the body in *text if not NULL. */
static int raw_status(const char *bytes, struct buf *text)
{
    int fd = client_connect(http_port(w.server));
    client_send(fd, bytes, strlen(bytes));
    struct reply r = client_read(fd);
    if (text)
        buf_puts(text, r.body.data);
    reply_fini(&r);
    return r.code;
}

#define BODY       "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":2}"
#define BODY_BYTES "44"
#define POST       "POST /v1/completions HTTP/1.1\r\nConnection: close\r\n"

/* RFC 9112: what two readers could take for two different messages is refused. */
static void test_framing_is_of_one_meaning(void **state)
{
    static const struct {
        const char *bytes;
        int code;
    } cases[] = {
        {POST "Host: localhost\r\nContent-Length: " BODY_BYTES "\r\n\r\n" BODY, 200},
        {POST "Content-Length: " BODY_BYTES "\r\n\r\n" BODY, 400},
        {POST "Host: localhost\r\nHost: localhost\r\nContent-Length: " BODY_BYTES "\r\n\r\n" BODY,
         400},
        {POST "Host: localhost\r\nContent-Length: " BODY_BYTES "\r\nContent-Length: 3\r\n\r\n" BODY,
         400},
        {POST "Host: localhost\r\nContent-Length: " BODY_BYTES "\r\nContent-Length: " BODY_BYTES
              "\r\n\r\n" BODY,
         200},
        {POST "Host: localhost\r\nContent-Length : " BODY_BYTES "\r\n\r\n" BODY, 400},
        {POST "Host: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         400},
        {POST "Host: localhost\r\nTransfer-Encoding: Chunked\r\n\r\n2c\r\n" BODY "\r\n0\r\n\r\n",
         200},
        {POST "Host: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
        {POST "Host: localhost\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400},
        {POST "Host: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
              "0\r\n\r\n",
         400},
        {"POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
        {"POST /v1/completions HTTP/1.0\r\nContent-Length: " BODY_BYTES "\r\n\r\n" BODY, 200},
        {POST
         "Host: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x01",
         415},
        {POST "Host: localhost\r\nContent-Encoding: identity\r\nContent-Length: " BODY_BYTES
              "\r\n\r\n" BODY,
         200},
        {"GET http://localhost:9/readyz?x=1 HTTP/1.1\r\nHost: localhost\r\nConnection: "
         "close\r\n\r\n",
         200},
        {"GET HTTPS://localhost HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200},
        {"GET http:///readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 400}};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        int code = raw_status(cases[i].bytes, NULL);
        if (code != cases[i].code)
            fail_msg("%s\n-> %d, expected %d", cases[i].bytes, code, cases[i].code);
    }
}

/* A page may not drive a server without keys by naming it in an absolute target. */
static void test_an_absolute_target_stands_for_the_host(void **state)
{
    (void)state;
    struct buf text;
    buf_init(&text, 4096);
    assert_int_equal(raw_status("GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost\r\n"
                                "Origin: http://localhost\r\nConnection: close\r\n\r\n",
                                NULL),
                     403);
    assert_int_equal(
        raw_status(POST "Host: localhost\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
                   &text),
        415);
    assert_non_null(strstr(text.data, "Content-Encoding 'br'"));
    buf_fini(&text);
}

/* By their bytes alone, all of a list before the first: no token stands for so many. */
static void test_hopeless_prompts_are_not_tokenized(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 1u << 20);
    buf_puts(&b, "{\"model\":\"base\",\"prompt\":[\"a\",\"");
    for (int i = 0; i < 50000; i++)
        buf_puts(&b, "none of it ");
    buf_puts(&b, "\"]}");
    struct reply r = client_call(http_port(w.server), "POST /v1/completions", NULL, b.data);
    assert_int_equal(r.code, 400);
    assert_non_null(strstr(r.body.data, "550000 bytes"));
    assert_non_null(strstr(r.body.data, "context_length_exceeded"));
    buf_fini(&b);
    reply_fini(&r);
}

/* Sends text and keeps the connection. */
static int half_request(uint16_t port, const char *text)
{
    int fd = client_connect(port);
    client_send(fd, text, strlen(text));
    return fd;
}

/* Does it end within the time? Bytes that come before are dropped. */
static bool ends_within(int fd, uint32_t ms)
{
    char part[4096];
    uint64_t until = clock_mono_ns() + ms * 1000000ull;
    ssize_t n = -1;
    while (n != 0 && clock_mono_ns() < until) {
        n = recv(fd, part, sizeof(part), MSG_DONTWAIT);
        if (n < 0 && errno == ECONNRESET)
            n = 0;
        if (n < 0)
            clock_sleep_ms(5);
    }
    close(fd);
    return n == 0;
}

static void test_what_trickles_is_cut(void **state)
{
    (void)state;
    struct world own;
    world_init(&own);
    own.opt.header_timeout_s = own.opt.body_timeout_s = 1;
    world_serve(&own);
    uint16_t port = http_port(own.server);
    int quiet = client_connect(port);
    int head = half_request(port, "POST /v1/completions HTTP/1.1\r\nHost: local");
    int body = half_request(port, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                                  "Content-Length: 100\r\n\r\n{");
    for (int i = 0; i < 8; i++) {
        clock_sleep_ms(100);
        client_send(head, "h", 1);
        client_send(body, " ", 1);
    }
    for (int i = 0; i < 2; i++) {
        struct reply r = client_read(i ? body : head);
        assert_int_equal(r.code, 408);
        assert_non_null(strstr(r.body.data, i ? "request's body took" : "request's header took"));
        reply_fini(&r);
    }
    assert_true(ends_within(quiet, 2000));
    world_fini(&own);
}

/* Idle sockets give their places to newcomers; when all are busy there are still those for health.
 */
static void test_a_full_house_answers_health(void **state)
{
    (void)state;
    enum { PLACES = 8 };
    const char *stream = "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":400,"
                         "\"ignore_eos\":true,\"stream\":true}";
    struct world own;
    int idle[3 * PLACES], busy[PLACES];
    world_init(&own);
    own.opt.connections_max = 2 * PLACES;
    own.opt.connections_per_ip_max = PLACES;
    atomic_store(&own.engine.step_ms, 50);
    world_serve(&own);
    uint16_t port = http_port(own.server);
    for (int i = 0; i < 3 * PLACES; i++)
        idle[i] = client_connect(port);
    struct reply r = client_call(port, "GET /readyz", NULL, NULL);
    assert_int_equal(r.code, 200);
    reply_fini(&r);
    assert_true(ends_within(idle[0], 2000));
    for (int i = 0; i < PLACES; i++) {
        busy[i] = client_connect(port);
        client_request(busy[i], "POST /v1/completions", NULL, stream, strlen(stream));
    }
    while (atomic_load(&own.engine.submitted) < PLACES)
        clock_sleep_ms(5);
    for (int i = 0; i < 3; i++) { /* every idle place is gone by now */
        r = client_call(port, i == 1 ? "GET /metrics" : "GET /readyz", NULL, NULL);
        assert_int_equal(r.code, 200);
        reply_fini(&r);
    }
    r = client_call(port, "POST /v1/completions", NULL, stream);
    assert_int_equal(r.code, 503);
    assert_non_null(strstr(r.body.data, "too_many_connections"));
    assert_non_null(strcasestr(r.head.data, "Retry-After: 1"));
    reply_fini(&r);
    for (int i = 0; i < 3 * PLACES; i++)
        assert_true(i == 0 || ends_within(idle[i], 2000));
    for (int i = 0; i < PLACES; i++)
        close(busy[i]);
    world_fini(&own);
}

static void test_bodies_have_a_budget_in_all(void **state)
{
    (void)state;
    enum { BYTES = 60000 };
    struct world own;
    char head[128], *part = mem_alloc(BYTES);
    int fd[2];
    world_init(&own);
    own.opt.body_bytes_max = 65000; /* so the budget is two of these, each in 64 KiB of memory */
    world_serve(&own);
    uint16_t port = http_port(own.server);
    memset(part, ' ', BYTES);
    snprintf(head, sizeof(head),
             "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
             "Content-Length: 65000\r\n\r\n");
    for (int i = 0; i < 2; i++) {
        fd[i] = half_request(port, head);
        client_send(fd[i], part, BYTES);
    }
    int code = 0;
    for (int i = 0; i < 200 && code != 503; i++) { /* until both have been read */
        int third = client_connect(port);
        client_request(third, "POST /tokenize", NULL, part, BYTES);
        struct reply r = client_read(third);
        code = r.code;
        if (code == 503)
            assert_non_null(strstr(r.body.data, "bodies_bytes_max"));
        reply_fini(&r);
    }
    assert_int_equal(code, 503);
    for (int i = 0; i < 2; i++)
        close(fd[i]);
    for (int i = 0; i < 200 && code != 400; i++) { /* blanks are no JSON */
        int third = client_connect(port);
        client_request(third, "POST /tokenize", NULL, part, BYTES);
        struct reply r = client_read(third);
        code = r.code;
        reply_fini(&r);
    }
    assert_int_equal(code, 400);
    mem_free(part);
    world_fini(&own);
}

/* Receipts do not stand in line behind long prompts. */
static void test_a_long_prompt_holds_up_no_receipt(void **state)
{
    (void)state;
    enum { COUNT = 6 };
    struct buf b;
    int fd[COUNT];
    uint32_t before = atomic_load(&w.engine.submitted);
    buf_init(&b, 1u << 20);
    buf_puts(&b, "{\"model\":\"base\",\"max_tokens\":1,\"truncate_prompt_tokens\":8,\"prompt\":\"");
    for (int i = 0; i < 20000; i++)
        buf_puts(&b, "none of it ");
    buf_puts(&b, "\"}");
    for (int i = 0; i < COUNT; i++) {
        fd[i] = client_connect(http_port(w.server));
        client_request(fd[i], "POST /v1/completions", NULL, b.data, b.len);
    }
    struct reply r =
        client_call(http_port(w.server),
                    "GET /v1/receipts/aa00000000000000000000000000000000000000000000000000000000000"
                    "000",
                    NULL, NULL);
    assert_int_equal(r.code, 200);
    assert_true(atomic_load(&w.engine.submitted) - before < COUNT);
    reply_fini(&r);
    for (int i = 0; i < COUNT; i++) {
        r = client_read(fd[i]);
        assert_int_equal(r.code, 200);
        reply_fini(&r);
    }
    buf_fini(&b);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_framing_is_of_one_meaning),
        cmocka_unit_test(test_an_absolute_target_stands_for_the_host),
        cmocka_unit_test(test_hopeless_prompts_are_not_tokenized),
        cmocka_unit_test(test_what_trickles_is_cut),
        cmocka_unit_test(test_a_full_house_answers_health),
        cmocka_unit_test(test_bodies_have_a_budget_in_all),
        cmocka_unit_test(test_a_long_prompt_holds_up_no_receipt)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
