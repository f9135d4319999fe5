/* The spool's promises: dense, durable, whole after a crash at any byte, honest when the disk is
 * full. */
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/spool/crc32c.h"
#include "server/spool/spool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];

static int setup(void **state)
{
    snprintf(dir, sizeof(dir), "/tmp/rs-spool-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    char cmd[128];
    snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    return system(cmd);
}

static struct spool *open_spool(uint64_t segment_bytes_max, uint64_t bytes_max)
{
    struct spool *s;
    struct errtext err = ERRTEXT_INIT;
    struct spool_options opt = {
        .dir = dir, .segment_bytes_max = segment_bytes_max, .bytes_max = bytes_max};
    if (spool_open(&s, &opt, &err))
        fail_msg("%s", err.text);
    return s;
}

static void append(struct spool *s, uint64_t seq)
{
    char body[64];
    int n = snprintf(body, sizeof(body), "record %llu", (unsigned long long)seq);
    assert_int_equal(spool_append(s, seq, body, (size_t)n, NULL), STATUS_OK);
}

static void expect_records(struct spool *s, uint64_t first, uint64_t last)
{
    struct spool_cursor c;
    struct buf body;
    buf_init(&body, SPOOL_BODY_BYTES_MAX);
    assert_int_equal(spool_cursor_open(&c, s, first, NULL), STATUS_OK);
    for (uint64_t want = first; want <= last; want++) {
        char text[64];
        uint64_t seq;
        assert_int_equal(spool_cursor_next(&c, &seq, &body, NULL), STATUS_OK);
        assert_int_equal(seq, want);
        snprintf(text, sizeof(text), "record %llu", (unsigned long long)want);
        assert_string_equal(body.data, text);
    }
    uint64_t seq;
    assert_int_equal(spool_cursor_next(&c, &seq, &body, NULL), STATUS_NOT_FOUND);
    spool_cursor_close(&c);
    buf_fini(&body);
}

static void test_crc32c_known_answers(void **state)
{
    uint8_t zeros[32] = {0};
    assert_int_equal(crc32c(0, "123456789", 9), 0xE3069283u);
    assert_int_equal(crc32c(0, zeros, 32), 0x8A9136AAu);
    assert_int_equal(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xE3069283u);
}

static void test_records_survive_reopen_across_segments(void **state)
{
    struct spool *s = open_spool(200, 1 << 20);
    for (uint64_t seq = 1; seq <= 50; seq++)
        append(s, seq);
    assert_int_equal(spool_durable_seq(s), 0);
    assert_int_equal(spool_sync(s, NULL), STATUS_OK);
    assert_int_equal(spool_durable_seq(s), 50);
    expect_records(s, 1, 50);
    expect_records(s, 33, 50);
    spool_close(s);
    s = open_spool(200, 1 << 20);
    assert_int_equal(spool_next_seq(s), 51);
    expect_records(s, 1, 50);
    append(s, 51);
    assert_int_equal(spool_sync(s, NULL), STATUS_OK);
    expect_records(s, 49, 51);
    spool_close(s);
}

static void test_reader_does_not_see_unsynced_records(void **state)
{
    struct spool *s = open_spool(1 << 20, 1 << 20);
    append(s, 1);
    expect_records(s, 1, 0);
    assert_int_equal(spool_sync(s, NULL), STATUS_OK);
    append(s, 2);
    expect_records(s, 1, 1);
    spool_close(s);
}

/* Cut the file at every byte: what was whole before the cut is there after recovery, and appending
 * goes on. */
static void test_torn_tail_at_every_byte(void **state)
{
    char path[160];
    snprintf(path, sizeof(path), "%s/seg-%020d.log", dir, 1);
    struct spool *s = open_spool(1 << 20, 1 << 20);
    for (uint64_t seq = 1; seq <= 4; seq++)
        append(s, seq);
    assert_int_equal(spool_sync(s, NULL), STATUS_OK);
    spool_close(s);
    char *whole;
    size_t len;
    assert_int_equal(file_read(path, 1 << 20, &whole, &len, NULL), STATUS_OK);
    size_t frame = len / 4;
    for (size_t cut = 0; cut <= len; cut++) {
        assert_int_equal(file_write_atomic(path, whole, cut, 0600, NULL), STATUS_OK);
        s = open_spool(1 << 20, 1 << 20);
        uint64_t kept = cut / frame;
        assert_int_equal(spool_next_seq(s), kept + 1);
        append(s, kept + 1);
        assert_int_equal(spool_sync(s, NULL), STATUS_OK);
        expect_records(s, 1, kept + 1);
        spool_close(s);
    }
    mem_free(whole);
}

/* Any flipped byte of the newest segment cuts there; in an older segment it is an error that names
 * the file. */
static void test_flipped_bytes_are_seen(void **state)
{
    char path[160];
    struct errtext err = ERRTEXT_INIT;
    struct spool *s = open_spool(60, 1 << 20);
    for (uint64_t seq = 1; seq <= 6; seq++)
        append(s, seq);
    assert_int_equal(spool_sync(s, NULL), STATUS_OK);
    spool_close(s);
    snprintf(path, sizeof(path), "%s/seg-%020d.log", dir, 1);
    char *data;
    size_t len;
    assert_int_equal(file_read(path, 1 << 20, &data, &len, NULL), STATUS_OK);
    for (size_t i = 0; i < len; i++) {
        data[i] ^= 0x10;
        assert_int_equal(file_write_atomic(path, data, len, 0600, NULL), STATUS_OK);
        struct spool_options opt = {.dir = dir, .segment_bytes_max = 60, .bytes_max = 1 << 20};
        err_clear(&err);
        assert_int_equal(spool_open(&s, &opt, &err), STATUS_CORRUPT);
        assert_non_null(strstr(err.text, "seg-"));
        data[i] ^= 0x10;
    }
    mem_free(data);
}

static void test_budget_refuses_and_keeps_the_log_whole(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct spool *s = open_spool(1 << 20, 100);
    append(s, 1);
    append(s, 2);
    append(s, 3);
    assert_int_equal(spool_append(s, 4, "record 4", 8, &err), STATUS_FULL);
    assert_non_null(strstr(err.text, "spool_bytes_max"));
    assert_int_equal(spool_sync(s, NULL), STATUS_OK);
    expect_records(s, 1, 3);
    spool_close(s);
}

/* A real full disk: /dev/full refuses every write with ENOSPC; here a file size limit does the same
 * in the middle of a frame. */
static void test_partial_write_is_cut_back(void **state)
{
    struct spool *s = open_spool(1 << 20, 1 << 20);
    append(s, 1);
    char big[4096];
    memset(big, 'x', sizeof(big));
    assert_int_equal(spool_sync(s, NULL), STATUS_OK);
    pid_t child = fork();
    if (child == 0) {
        struct errtext err = ERRTEXT_INIT;
        signal(SIGXFSZ, SIG_IGN);
        struct rlimit lim = {.rlim_cur = 100, .rlim_max = 100};
        setrlimit(RLIMIT_FSIZE, &lim);
        enum status st = spool_append(s, 2, big, sizeof(big), &err);
        _exit(st == STATUS_IO || st == STATUS_FULL ? 0 : 1);
    }
    int rc;
    waitpid(child, &rc, 0);
    assert_int_equal(rc, 0);
    spool_close(s);
    s = open_spool(1 << 20, 1 << 20);
    assert_int_equal(spool_next_seq(s), 2);
    expect_records(s, 1, 1);
    spool_close(s);
}

static void test_trim_deletes_only_final_whole_segments(void **state)
{
    struct spool *s = open_spool(60, 1 << 20);
    for (uint64_t seq = 1; seq <= 6; seq++)
        append(s, seq);
    assert_int_equal(spool_sync(s, NULL), STATUS_OK);
    spool_trim(s, 3, 3600);
    assert_int_equal(spool_first_seq(s), 1);
    spool_trim(s, 3, 0);
    assert_true(spool_first_seq(s) > 1 && spool_first_seq(s) <= 4);
    expect_records(s, spool_first_seq(s), 6);
    struct spool_cursor c;
    assert_int_equal(spool_cursor_open(&c, s, 1, NULL), STATUS_NOT_FOUND);
    spool_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc32c_known_answers),
        cmocka_unit_test_setup_teardown(test_records_survive_reopen_across_segments, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_reader_does_not_see_unsynced_records, setup, teardown),
        cmocka_unit_test_setup_teardown(test_torn_tail_at_every_byte, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flipped_bytes_are_seen, setup, teardown),
        cmocka_unit_test_setup_teardown(test_budget_refuses_and_keeps_the_log_whole, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_partial_write_is_cut_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trim_deletes_only_final_whole_segments, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
