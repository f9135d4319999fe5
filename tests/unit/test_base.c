/* The small pieces of server/base: HOST:PORT in every form, a bound socket that says who has the
 * port, deadlines, names of threads, hex digits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/hex.h"
#include "server/base/hostport.h"
#include "server/base/thread.h"

static void test_parse(void **state)
{
    static const struct {
        const char *text, *host;
        uint16_t port;
    } good[] = {{"127.0.0.1:8080", "127.0.0.1", 8080},
                {"localhost:0", "localhost", 0},
                {"[::1]:65535", "::1", 65535},
                {"0.0.0.0:1", "0.0.0.0", 1}};
    static const char *const bad[] = {"",
                                      ":80",
                                      "127.0.0.1",
                                      "127.0.0.1:",
                                      "127.0.0.1:65536",
                                      "127.0.0.1:-1",
                                      "a: 80",
                                      "a:+80",
                                      "a:80x",
                                      "::1:80",
                                      "[]:80",
                                      "[::1]",
                                      "a:99999999999999999999"};
    struct hostport hp;
    for (size_t i = 0; i < ARRAY_COUNT(good); i++) {
        assert_int_equal(hostport_parse(&hp, "listen", good[i].text, NULL), STATUS_OK);
        assert_string_equal(hp.host, good[i].host);
        assert_int_equal(hp.port, good[i].port);
    }
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct errtext err = ERRTEXT_INIT;
        if (hostport_parse(&hp, "listen", bad[i], &err) != STATUS_INVALID)
            fail_msg("'%s' was taken", bad[i]);
        assert_string_equal(err.param, "listen");
        assert_non_null(strstr(err.text, "expected HOST:PORT"));
    }
}

static void test_bind(void **state)
{
    struct hostport hp = {.host = "127.0.0.1"};
    struct hostport_address at, bound;
    struct errtext err = ERRTEXT_INIT;
    int first = -1, second = -1;
    assert_int_equal(hostport_resolve(&at, &hp, "listen", &err), STATUS_OK);
    assert_true(hostport_is_loopback(&at));
    assert_int_equal(hostport_bind(&first, &at, &hp, "listen", &err), STATUS_OK);
    assert_int_equal(hostport_listen(first, 8, &hp, "listen", &err), STATUS_OK);
    bound = hostport_bound(first);
    hp.port = hostport_port(&bound);
    assert_int_not_equal(hp.port, 0);
    assert_int_equal(hostport_bind(&second, &bound, &hp, "listen", &err), STATUS_IO);
    assert_non_null(strstr(err.text, "address already in use"));
    assert_int_equal(second, -1);
    close(first);
    snprintf(hp.host, sizeof(hp.host), "0.0.0.0");
    assert_int_equal(hostport_resolve(&at, &hp, "listen", NULL), STATUS_OK);
    assert_false(hostport_is_loopback(&at));
    snprintf(hp.host, sizeof(hp.host), "no such host");
    err_clear(&err);
    assert_int_equal(hostport_resolve(&at, &hp, "listen", &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "no such host"));
}

static void test_deadline(void **state)
{
    static const uint32_t waits[] = {0, 1, 999, 1000, 1999, 60000};
    for (size_t i = 0; i < ARRAY_COUNT(waits); i++) {
        uint64_t before = clock_mono_ns();
        struct timespec t = thread_deadline(waits[i]);
        uint64_t after = clock_mono_ns(),
                 ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
        assert_in_range(t.tv_nsec, 0, 999999999);
        assert_true(ns >= before + waits[i] * 1000000ull && ns <= after + waits[i] * 1000000ull);
    }
}

static void *own_name(void *arg)
{
    char *out = arg;
    thread_name_self("a-name-that-is-too-long");
    assert_int_equal(pthread_getname_np(pthread_self(), out, 32), 0);
    return NULL;
}

static void test_thread_names(void **state)
{
    char name[32] = "";
    pthread_t t;
    assert_int_equal(thread_start(&t, "rs-test", own_name, name, NULL), STATUS_OK);
    assert_int_equal(pthread_join(t, NULL), 0);
    assert_string_equal(name, "a-name-that-is-");
}

static void test_hex_digits(void **state)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    for (int c = 0; c < 256; c++) {
        const char *at = c ? strchr(digits, c) : NULL;
        int want = !at ? -1 : at - digits > 15 ? (int)(at - digits) - 6 : (int)(at - digits);
        assert_int_equal(hex_digit((char)c), want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),      cmocka_unit_test(test_bind),
        cmocka_unit_test(test_deadline),   cmocka_unit_test(test_thread_names),
        cmocka_unit_test(test_hex_digits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
