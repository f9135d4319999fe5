/* The small pieces of server/base: HOST:PORT in every form, a bound socket that says who has the
 * port, deadlines, names of threads, hex digits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/env.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/hostport.h"
#include "server/base/logfile.h"
#include "server/base/mailbox.h"
#include "server/base/mem.h"
#include "server/base/notify.h"
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

static void *wait_for_close(void *arg)
{
    struct mailbox *m = arg;
    while (!mailbox_is_closed(m))
        mailbox_wait(m, 20000);
    return NULL;
}

/* Several threads sleep on one mailbox; none sleeps on after it was closed. */
static void test_close_wakes_every_receiver(void **state)
{
    struct mailbox m;
    pthread_t t[3];
    mailbox_init(&m, 1);
    for (size_t i = 0; i < ARRAY_COUNT(t); i++)
        assert_int_equal(thread_start(&t[i], "rs-test", wait_for_close, &m, NULL), STATUS_OK);
    clock_sleep_ms(50); /* long enough that they sleep */
    uint64_t at = clock_mono_ns();
    mailbox_close(&m);
    for (size_t i = 0; i < ARRAY_COUNT(t); i++)
        assert_int_equal(pthread_join(t[i], NULL), 0);
    assert_true(clock_mono_ns() - at < 10000000000ull);
    mailbox_fini(&m);
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

/* A manager's socket, by path and by abstract name; without one nothing happens. */
static void test_notify(void **state)
{
    static const char *const names[] = {"/tmp/rs-notify-test", "@rs-notify-test"};
    char got[600];
    unsetenv("NOTIFY_SOCKET");
    notify_ready("nobody listens");
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        struct sockaddr_un at = {.sun_family = AF_UNIX};
        char name[64];
        int len = snprintf(name, sizeof(name), "%s-%d", names[i], getpid());
        memcpy(at.sun_path, name, (size_t)len);
        at.sun_path[0] = name[0] == '@' ? '\0' : name[0];
        int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
        socklen_t bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)len);
        assert_int_equal(bind(fd, (struct sockaddr *)&at, bytes), 0);
        setenv("NOTIFY_SOCKET", name, 1);
        notify_ready("ready on x");
        ssize_t n = recv(fd, got, sizeof(got) - 1, 0);
        assert_true(n > 0);
        got[n] = '\0';
        assert_ptr_equal(strstr(got, "READY=1\nSTATUS=ready on x\nMAINPID="), got);
        notify_reloading();
        n = recv(fd, got, sizeof(got) - 1, 0);
        got[n] = '\0';
        assert_ptr_equal(strstr(got, "RELOADING=1\nMONOTONIC_USEC="), got);
        notify_stopping("draining");
        n = recv(fd, got, sizeof(got) - 1, 0);
        got[n] = '\0';
        assert_string_equal(got, "STOPPING=1\nSTATUS=draining");
        close(fd);
        notify_ready("the manager is away");
        if (name[0] == '/')
            unlink(name);
    }
    unsetenv("NOTIFY_SOCKET");
}

static void test_service_folders(void **state)
{
    char path[256];
    setenv("XDG_STATE_HOME", "/xdg", 1);
    setenv("STATE_DIRECTORY", "/var/lib/a:/var/lib/b", 1);
    env_state_dir(path, sizeof(path), "residual");
    assert_string_equal(path, "/var/lib/a");
    unsetenv("STATE_DIRECTORY");
    env_state_dir(path, sizeof(path), "residual");
    assert_string_equal(path, "/xdg/residual");
    setenv("XDG_STATE_HOME", "relative", 1);
    setenv("HOME", "/home/u", 1);
    env_state_dir(path, sizeof(path), "residual");
    assert_string_equal(path, "/home/u/.local/state/residual");
    setenv("LOGS_DIRECTORY", "/var/log/a:/var/log/b", 1);
    env_log_path(path, sizeof(path), "access.log");
    assert_string_equal(path, "/var/log/a/access.log");
    env_log_path(path, sizeof(path), "/x/access.log");
    assert_string_equal(path, "/x/access.log");
    unsetenv("LOGS_DIRECTORY");
    env_log_path(path, sizeof(path), "access.log");
    assert_string_equal(path, "access.log");
}

/* Moved away and reopened: the old file keeps its lines, the new one gets the next. */
static void test_logfile(void **state)
{
    char path[64], old[80], *text;
    size_t len;
    struct logfile f;
    struct errtext err = ERRTEXT_INIT;
    snprintf(path, sizeof(path), "/tmp/rs-logfile-%d", getpid());
    snprintf(old, sizeof(old), "%s.1", path);
    assert_int_equal(logfile_open(&f, path, NULL), STATUS_OK);
    int fd = f.fd;
    logfile_write(&f, "one\n", 4);
    assert_int_equal(rename(path, old), 0);
    logfile_write(&f, "two\n", 4);
    assert_int_equal(logfile_reopen(&f, NULL), STATUS_OK);
    assert_int_equal(f.fd, fd);
    logfile_write(&f, "three\n", 6);
    logfile_close(&f);
    assert_int_equal(file_read(old, 100, &text, &len, NULL), STATUS_OK);
    assert_string_equal(text, "one\ntwo\n");
    mem_free(text);
    assert_int_equal(file_read(path, 100, &text, &len, NULL), STATUS_OK);
    assert_string_equal(text, "three\n");
    mem_free(text);
    unlink(path);
    unlink(old);
    assert_int_equal(logfile_open(&f, "/no/such/folder/x", &err), STATUS_IO);
    assert_non_null(strstr(err.text, "/no/such/folder/x"));
}

static void test_room_that_is_kept(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    (void)state;
    assert_int_equal(file_spare("/dev/shm", 0, &err), STATUS_OK);
    assert_int_equal(file_spare("/dev/shm", UINT64_MAX, &err), STATUS_FULL);
    assert_non_null(strstr(err.text, "/dev/shm: "));
    assert_int_equal(file_spare("/no/such/folder", 0, NULL), STATUS_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_bind),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_thread_names),
        cmocka_unit_test(test_hex_digits),
        cmocka_unit_test(test_notify),
        cmocka_unit_test(test_service_folders),
        cmocka_unit_test(test_logfile),
        cmocka_unit_test(test_room_that_is_kept),
        cmocka_unit_test(test_close_wakes_every_receiver),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
