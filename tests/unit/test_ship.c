/* The shipper against a real redis-server that each test starts, kills and empties: every record is
 * in the stream exactly once, under its own number, with its own bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/spool/redis_link.h"
#include "server/spool/ship.h"

static char dir[64], url[64], password_path[80];
static int port;
static pid_t redis_pid;
static struct spool *spool;
static struct ship *ship;

static int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    close(fd);
    return ntohs(a.sin_port);
}

static redisContext *client(const char *password)
{
    for (int i = 0; i < 1000; i++) {
        redisContext *c = redisConnect("127.0.0.1", port);
        assert_non_null(c);
        if (!c->err) {
            redisReply *r = password ? redisCommand(c, "AUTH %s", password) : NULL;
            if (r)
                freeReplyObject(r);
            r = redisCommand(c, "PING");
            bool good = r && r->type == REDIS_REPLY_STATUS;
            if (r)
                freeReplyObject(r);
            if (good)
                return c;
        }
        redisFree(c);
        usleep(10000);
    }
    fail_msg("redis-server does not answer; it is installed by deploy/setup");
    return NULL;
}

static void start_redis(const char *password)
{
    char text[16];
    snprintf(text, sizeof(text), "%d", port);
    redis_pid = fork();
    assert_true(redis_pid >= 0);
    if (redis_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 1);
        dup2(null, 2);
        execlp("redis-server", "redis-server", "--port", text, "--bind", "127.0.0.1", "--dir", dir,
               "--appendonly", "yes", "--appendfsync", "always", "--save", "", "--requirepass",
               password ? password : "", (char *)NULL);
        _exit(127);
    }
    redisFree(client(password));
}

static void kill_redis(void)
{
    if (redis_pid > 0) {
        kill(redis_pid, SIGKILL);
        waitpid(redis_pid, NULL, 0);
    }
    redis_pid = 0;
}

static int setup(void **state)
{
    (void)state;
    log_set_level((enum log_level) - 1);
    snprintf(dir, sizeof(dir), "/tmp/rs-ship-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    port = free_port();
    snprintf(url, sizeof(url), "redis://127.0.0.1:%d", port);
    snprintf(password_path, sizeof(password_path), "%s/password", dir);
    char path[80];
    snprintf(path, sizeof(path), "%s/spool", dir);
    struct spool_options opt = {.dir = path, .segment_bytes_max = 4096, .bytes_max = 1 << 24};
    return spool_open(&spool, &opt, NULL) ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    char cmd[96];
    ship_stop(ship, 0);
    ship = NULL;
    kill_redis();
    spool_close(spool);
    snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    return system(cmd);
}

/* Bodies hold bytes that a careless protocol would trip over. */
static size_t body_of(uint64_t seq, char body[64])
{
    size_t n = 20 + seq % 30;
    for (size_t i = 0; i < n; i++)
        body[i] = (char)(seq * 7 + i * 3);
    body[3] = '\0';
    body[5] = '\r';
    body[6] = '\n';
    return n;
}

static void append(uint64_t count)
{
    char body[64];
    for (uint64_t i = 0; i < count; i++) {
        uint64_t seq = spool_next_seq(spool);
        size_t n = body_of(seq, body);
        assert_int_equal(spool_append(spool, seq, body, n, NULL), STATUS_OK);
    }
    assert_int_equal(spool_sync(spool, NULL), STATUS_OK);
    if (ship)
        ship_kick(ship);
}

/* Signed by the lane: here, what body_of makes for the number, whatever follows its first byte. */
static bool is_own(const void *arg, uint64_t seq, const void *entry, size_t len)
{
    char body[64];
    assert_ptr_equal(arg, dir);
    return len == body_of(seq, body) && memcmp(entry, body, 1) == 0;
}

static uint64_t read_final(const void *arg, const char *text)
{
    assert_ptr_equal(arg, dir);
    return strncmp(text, "ours ", 5) == 0 ? strtoull(text + 5, NULL, 10) : 0;
}

static enum status start_saying(const char *password_file, struct errtext *err)
{
    struct ship_options opt = {.redis_url = url,
                               .password_file = password_file,
                               .lane = 9,
                               .is_own = is_own,
                               .read_final = read_final,
                               .arg = dir};
    return ship_start(&ship, &opt, spool, err);
}

static enum status start(const char *password_file)
{
    return start_saying(password_file, NULL);
}

static void wait_shipped(uint64_t seq)
{
    for (int i = 0; i < 3000 && ship_shipped_seq(ship) != seq; i++)
        usleep(5000);
    assert_int_equal(ship_shipped_seq(ship), seq);
}

/* The stream holds exactly records first..last. */
static void expect_stream(const char *password, uint64_t first, uint64_t last)
{
    redisContext *c = client(password);
    redisReply *r = redisCommand(c, "XRANGE residual:lane:9 - +");
    assert_non_null(r);
    assert_int_equal(r->type, REDIS_REPLY_ARRAY);
    assert_int_equal(r->elements, last - first + 1);
    for (size_t i = 0; i < r->elements; i++) {
        char id[32], body[64];
        const redisReply *entry = r->element[i], *fields = entry->element[1];
        snprintf(id, sizeof(id), "%llu-0", (unsigned long long)(first + i));
        assert_string_equal(entry->element[0]->str, id);
        assert_int_equal(fields->elements, 2);
        assert_string_equal(fields->element[0]->str, "r");
        size_t n = body_of(first + i, body);
        assert_int_equal(fields->element[1]->len, n);
        assert_memory_equal(fields->element[1]->str, body, n);
    }
    freeReplyObject(r);
    redisFree(c);
}

static void command(const char *text)
{
    redisContext *c = client(NULL);
    redisReply *r = redisCommand(c, text);
    assert_non_null(r);
    if (r->type == REDIS_REPLY_ERROR)
        fail_msg("%s: %s", text, r->str);
    freeReplyObject(r);
    redisFree(c);
}

static void test_ship(void **state)
{
    start_redis(NULL);
    append(200); /* before it starts, over several segments */
    assert_int_equal(start(NULL), STATUS_OK);
    wait_shipped(200);
    assert_true(ship_is_connected(ship));
    append(1);
    append(99);
    wait_shipped(300);
    expect_stream(NULL, 1, 300);
    ship_stop(ship, 1000);
    ship = NULL;
    append(10);
    assert_int_equal(start(NULL), STATUS_OK); /* another run goes on where the stream ends */
    wait_shipped(310);
    expect_stream(NULL, 1, 310);
}

/* Redis away at the start, killed under load, back: nothing is lost, nothing twice. */
static void test_kills(void **state)
{
    assert_int_equal(start(NULL), STATUS_OK);
    append(50);
    usleep(50000);
    assert_false(ship_is_connected(ship));
    start_redis(NULL);
    wait_shipped(50);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 20; i++) {
            append(10);
            if (i == 10)
                kill_redis();
        }
        start_redis(NULL);
        wait_shipped(50 + 200 * (uint64_t)(round + 1));
    }
    expect_stream(NULL, 1, 650);
}

/* The stream has so many entries and ends where the spool does. */
static void wait_stream(uint64_t count)
{
    for (int i = 0; i < 1000; i++) { /* an idle shipper looks about once a second */
        redisContext *c = client(NULL);
        redisReply *r = redisCommand(c, "XINFO STREAM residual:lane:9");
        bool done = r && r->type == REDIS_REPLY_ARRAY && r->elements > 1 &&
                    (uint64_t)r->element[1]->integer == count;
        for (size_t j = 0; done && j + 1 < r->elements; j += 2)
            if (strcmp(r->element[j]->str, "last-generated-id") == 0)
                done = strtoull(r->element[j + 1]->str, NULL, 10) == spool_durable_seq(spool);
        freeReplyObject(r);
        redisFree(c);
        if (done)
            return;
        usleep(10000);
    }
}

/* The stream is gone or shorter (a flush, an old backup): it is filled again. */
static void test_refill(void **state)
{
    start_redis(NULL);
    append(120);
    assert_int_equal(start(NULL), STATUS_OK);
    wait_shipped(120);
    command("FLUSHALL");
    wait_stream(120);
    expect_stream(NULL, 1, 120);
    append(5);
    wait_shipped(125);
    expect_stream(NULL, 1, 125);
}

/* The worker trims the stream: the numbers go on. */
static void test_trimmed_stream(void **state)
{
    start_redis(NULL);
    append(20);
    assert_int_equal(start(NULL), STATUS_OK);
    wait_shipped(20);
    command("XTRIM residual:lane:9 MAXLEN 0");
    append(10);
    wait_shipped(30);
    expect_stream(NULL, 21, 30);
}

static void add(uint64_t seq, const char *sub, const void *entry, size_t len)
{
    redisContext *c = client(NULL);
    redisReply *r = redisCommand(c, "XADD residual:lane:9 %llu%s r %b", (unsigned long long)seq,
                                 sub, entry, len);
    assert_non_null(r);
    if (r->type == REDIS_REPLY_ERROR)
        fail_msg("XADD %llu%s: %s", (unsigned long long)seq, sub, r->str);
    freeReplyObject(r);
    redisFree(c);
}

static void wait_final(uint64_t seq)
{
    for (int i = 0; i < 1000 && ship_final_seq(ship) != seq; i++)
        usleep(5000);
    assert_int_equal(ship_final_seq(ship), seq);
}

/* The worker's word, and nobody else's; never of what was not shipped, never back. */
static void test_final(void **state)
{
    start_redis(NULL);
    append(5);
    assert_int_equal(start(NULL), STATUS_OK);
    wait_shipped(5);
    command("SET residual:lane:9:final ours_3");
    usleep(1200000);
    assert_int_equal(ship_final_seq(ship), 0);
    redisContext *c = client(NULL);
    freeReplyObject(redisCommand(c, "SET residual:lane:9:final %s", "ours 3"));
    wait_final(3);
    freeReplyObject(redisCommand(c, "SET residual:lane:9:final %s", "ours 6"));
    usleep(1200000);
    assert_int_equal(ship_final_seq(ship), 3);
    append(1);
    wait_final(6);
    redisFree(c);
}

/* Signed records that this spool never wrote: it was rolled back. The start is refused; met later,
 * nothing is shipped and nothing may be signed. The stream is not touched. */
static void expect_refusal(uint64_t seq, const char *body, size_t n, const char *said)
{
    struct errtext err = ERRTEXT_INIT;
    add(seq, "-0", body, n);
    add(seq + 3, "-0", "garbage does not hide it", 24);
    assert_int_equal(start_saying(NULL, &err), STATUS_CONFLICT);
    assert_non_null(strstr(err.text, said));
    kill_redis();
    assert_int_equal(start(NULL), STATUS_OK);
    assert_false(ship_is_foreign(ship));
    start_redis(NULL);
    for (int i = 0; i < 3000 && !ship_is_foreign(ship); i++)
        usleep(5000);
    assert_true(ship_is_foreign(ship));
    append(20); /* past its number: still not ours to mix with */
    usleep(800000);
    assert_false(ship_is_connected(ship));
    assert_int_equal(ship_shipped_seq(ship), 0);
    redisContext *c = client(NULL);
    redisReply *r = redisCommand(c, "XRANGE residual:lane:9 - +");
    assert_int_equal(r->elements, 1);
    assert_memory_equal(r->element[0]->element[1]->element[1]->str, body, n);
    freeReplyObject(r);
    redisFree(c);
    command("DEL residual:lane:9"); /* the person's decision */
    wait_shipped(25);
    assert_false(ship_is_foreign(ship));
    expect_stream(NULL, 1, 25);
}

static void test_ahead(void **state)
{
    char body[64];
    start_redis(NULL);
    append(5);
    size_t n = body_of(9, body);
    body[n - 1] ^= 1;
    expect_refusal(9, body, n, "ends at record 5, but the stream residual:lane:9 knows 9");
}

static void test_other_record(void **state)
{
    char body[64];
    start_redis(NULL);
    append(5);
    size_t n = body_of(4, body);
    body[n - 1] ^= 1;
    expect_refusal(4, body, n, "holds another record 4 than this spool");
}

/* What this lane did not sign holds no number of its records: at rest on an idle stream, before the
 * shipper starts, at the last number there is, and more of it than one look takes. */
static void test_foreign(void **state)
{
    char body[64];
    start_redis(NULL);
    add(3, "-0", "before the first record", 23);
    append(5);
    assert_int_equal(start(NULL), STATUS_OK);
    wait_shipped(5);
    wait_stream(5);
    expect_stream(NULL, 1, 5);
    add(6, "-0", body, body_of(2, body)); /* a record of the lane under another number */
    add(8, "-7", "no number", 9);
    command("XADD residual:lane:9 9-0 other field more fields");
    add(UINT64_MAX, "-18446744073709551615", "the end of numbers", 18);
    wait_stream(5);
    expect_stream(NULL, 1, 5);
    append(5); /* and again before the shipper has looked */
    wait_shipped(10);
    for (uint64_t i = 0; i < 300; i++)
        add(1000 + i, "-0", "many", 4);
    append(5);
    wait_stream(15);
    expect_stream(NULL, 1, 15);
    command("XTRIM residual:lane:9 MAXLEN 0");
    add(16, "-0", "alone", 5);
    wait_stream(0);
    append(5);
    wait_stream(5);
    expect_stream(NULL, 16, 20);
}

/* Between two looks records come after a foreign entry: it stays where it is, they are there. */
static void test_foreign_in_the_middle(void **state)
{
    start_redis(NULL);
    append(5);
    assert_int_equal(start(NULL), STATUS_OK);
    wait_shipped(5);
    add(5, "-3", "between two numbers", 19);
    append(5);
    wait_shipped(10);
    redisContext *c = client(NULL);
    redisReply *r = redisCommand(c, "XRANGE residual:lane:9 6-0 10-0");
    assert_int_equal(r->elements, 5);
    freeReplyObject(r);
    redisFree(c);
    assert_true(ship_is_connected(ship));
}

/* Redis refuses writes: asked now and then, not in a loop, and served once it takes them again. */
static void test_refusing(void **state)
{
    start_redis(NULL);
    command("CONFIG SET maxmemory 1");
    append(5);
    assert_int_equal(start(NULL), STATUS_OK);
    usleep(600000);
    assert_int_equal(ship_shipped_seq(ship), 0);
    redisContext *c = client(NULL);
    redisReply *r = redisCommand(c, "INFO stats");
    const char *at = strstr(r->str, "total_connections_received:");
    assert_non_null(at);
    assert_true(atol(at + 27) < 30);
    freeReplyObject(r);
    redisFree(c);
    command("CONFIG SET maxmemory 0");
    wait_shipped(5);
    expect_stream(NULL, 1, 5);
}

static void write_password(const char *text, unsigned mode)
{
    assert_int_equal(file_write_atomic(password_path, text, strlen(text), mode, NULL), STATUS_OK);
}

static void test_password(void **state)
{
    start_redis("open sesame");
    append(3);
    write_password("wrong\n", 0600);
    assert_int_equal(start(password_path), STATUS_OK);
    usleep(300000);
    assert_false(ship_is_connected(ship));
    assert_int_equal(ship_shipped_seq(ship), 0);
    ship_stop(ship, 0);
    ship = NULL;
    write_password("open sesame\n", 0600);
    assert_int_equal(start(password_path), STATUS_OK);
    wait_shipped(3);
    expect_stream("open sesame", 1, 3);
    ship_stop(ship, 0);
    ship = NULL;
    assert_int_equal(chmod(password_path, 0644), 0);
    assert_int_equal(start(password_path), STATUS_DENIED);
    unlink(password_path);
    assert_int_equal(start(password_path), STATUS_NOT_FOUND);
}

static void run_in_dir(const char *text)
{
    char cmd[700];
    snprintf(cmd, sizeof(cmd), "cd %s && { %s; } >/dev/null 2>&1", dir, text);
    if (system(cmd) != 0)
        fail_msg("%s", cmd);
}

/* A Redis that speaks TLS alone, with a certificate for 127.0.0.1 that a CA of ours signed, and
 * knows one user. */
static void start_secure_redis(void)
{
    char text[16];
    run_in_dir("openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out "
               "ca.pem");
    run_in_dir("openssl req -newkey rsa:2048 -nodes -subj /CN=r -keyout r.key -out r.csr");
    run_in_dir("echo subjectAltName=IP:127.0.0.1 > ext && openssl x509 -req -in r.csr -CA ca.pem "
               "-CAkey ca.key -CAcreateserial -days 2 -extfile ext -out r.pem");
    run_in_dir("openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other -keyout o.key "
               "-out other.pem");
    run_in_dir("printf 'user default off\nuser lane on >secret ~* +@all\n' > acl");
    snprintf(text, sizeof(text), "%d", port);
    redis_pid = fork();
    assert_true(redis_pid >= 0);
    if (redis_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 1);
        dup2(null, 2);
        if (chdir(dir) != 0)
            _exit(126);
        execlp("redis-server", "redis-server", "--port", "0", "--tls-port", text, "--bind",
               "127.0.0.1", "--dir", dir, "--tls-cert-file", "r.pem", "--tls-key-file", "r.key",
               "--tls-ca-cert-file", "ca.pem", "--tls-auth-clients", "no", "--aclfile", "acl",
               "--save", "", (char *)NULL);
        _exit(127);
    }
}

/* The reason why the way to that Redis ends; "": it does not. */
static const char *try_secure(const char *user, const char *ca, struct redisContext **c)
{
    static struct errtext err;
    struct redis_link link;
    char at[96], ca_path[96];
    snprintf(at, sizeof(at), "rediss://%s127.0.0.1:%d", user, port);
    snprintf(ca_path, sizeof(ca_path), "%s/%s", dir, ca);
    memset(&err, 0, sizeof(err));
    *c = NULL;
    enum status st = redis_link_open(&link, at, password_path, ca_path, &err);
    for (int i = 0; !st && i < 300; i++) {
        err_clear(&err);
        st = redis_link_connect(&link, c, &err);
        if (st != STATUS_IO || !strstr(err.text, "refused"))
            break;
        usleep(10000); /* it starts */
        st = STATUS_OK;
    }
    redis_link_close(&link);
    return err.text;
}

/* TLS to a server whose CA is named, as a user; everything else is refused with its reason. */
static void test_tls_and_user(void **state)
{
    struct redisContext *c;
    static char big[200000];
    write_password("secret", 0600);
    start_secure_redis();
    assert_string_equal(try_secure("lane@", "ca.pem", &c), "");
    memset(big, 'x', sizeof(big));
    redisReply *r = redisCommand(c, "SET big %b", big, sizeof(big));
    assert_int_equal(r->type, REDIS_REPLY_STATUS);
    freeReplyObject(r);
    for (int i = 0; i < 20; i++)
        assert_int_equal(redisAppendCommand(c, "GET big"), REDIS_OK);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(redisGetReply(c, (void **)&r), REDIS_OK);
        assert_int_equal(r->len, sizeof(big));
        assert_memory_equal(r->str, big, sizeof(big));
        freeReplyObject(r);
    }
    redisFree(c);
    assert_non_null(strstr(try_secure("lane@", "other.pem", &c), "TLS: "));
    assert_non_null(strstr(try_secure("", "ca.pem", &c), "user or the password was refused"));
    assert_non_null(strstr(try_secure("nobody@", "ca.pem", &c), "user or the password"));
    assert_non_null(strstr(try_secure("lane@", "none.pem", &c), "redis_ca_file"));
    append(50);
    char ca[96];
    snprintf(ca, sizeof(ca), "%s/ca.pem", dir);
    snprintf(url, sizeof(url), "rediss://lane@127.0.0.1:%d", port);
    const struct ship_options opt = {.redis_url = url,
                                     .password_file = password_path,
                                     .ca_file = ca,
                                     .lane = 9,
                                     .is_own = is_own,
                                     .read_final = read_final,
                                     .arg = dir};
    assert_int_equal(ship_start(&ship, &opt, spool, NULL), STATUS_OK);
    wait_shipped(50);
}

static void test_urls(void **state)
{
    static const char *const bad[] = {"",
                                      "http://x:1",
                                      "redis://",
                                      "redis://:1",
                                      "redis://h:0",
                                      "redis://h:65536",
                                      "redis://h:",
                                      "redis://h:6379/0x",
                                      "unix:",
                                      "redis://:hunter2@h:6379",
                                      "redis://[::1",
                                      "redis://u:hunter2@h",
                                      "rediss://u:hunter2@h",
                                      "rediss://@127.0.0.1",
                                      "redis://h", /* beyond loopback: not in the clear, */
                                      "redis://u@10.0.0.1:6379",
                                      "rediss://h:6379", /* nor as anybody, */
                                      "rediss://u@h" /* nor without a password */};
    static const char *const good[] = {
        "redis://localhost",    "redis://127.0.0.1:1", "redis://u@127.8.0.1:1", "redis://[::1]:7",
        "rediss://u@localhost", "redis://[::1]",       "unix:/run/redis"};
    struct redis_link link;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        struct errtext err = ERRTEXT_INIT;
        struct ship_options opt = {.redis_url = bad[i], .lane = 9};
        assert_int_equal(ship_start(&ship, &opt, spool, &err), STATUS_INVALID);
        assert_string_equal(err.param, "redis_url");
        assert_null(ship);
        assert_null(strstr(err.text, "hunter2")); /* a secret is not repeated */
        assert_int_equal(ship_check(&opt, NULL), STATUS_INVALID);
    }
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        assert_int_equal(redis_link_open(&link, good[i], NULL, NULL, NULL), STATUS_OK);
        redis_link_close(&link);
    }
    assert_string_equal(redis_link_name(&link), "/run/redis");
    write_password("secret", 0600);
    assert_int_equal(redis_link_open(&link, "rediss://u@h.example", password_path, NULL, NULL),
                     STATUS_OK);
    assert_string_equal(link.user, "u");
    redis_link_close(&link);
    assert_int_equal(redis_link_open(&link, "redis://[::1]", NULL, NULL, NULL), STATUS_OK);
    assert_string_equal(link.tcp.host, "::1");
    assert_int_equal(link.tcp.port, 6379);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_ship),           TEST(test_kills),    TEST(test_refill),
        TEST(test_trimmed_stream), TEST(test_final),    TEST(test_ahead),
        TEST(test_other_record),   TEST(test_foreign),  TEST(test_foreign_in_the_middle),
        TEST(test_refusing),       TEST(test_password), TEST(test_tls_and_user),
        TEST(test_urls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
