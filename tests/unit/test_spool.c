/* The spool's promises: dense, durable, whole after a crash at any byte, honest when the disk is
 * full. */
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/spool/crc32c.h"
#include "server/spool/repair.h"
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
    log_set_level((enum log_level) - 1);
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
    assert_int_equal(spool_flush(s, NULL), STATUS_OK);
}

static void append_synced(struct spool *s, uint64_t first, uint64_t last)
{
    for (uint64_t seq = first; seq <= last; seq++)
        append(s, seq);
    assert_int_equal(spool_sync(s, NULL), STATUS_OK);
}

/* The start is refused, and says so. */
static void expect_refusal(uint64_t segment_bytes_max, enum status want, const char *said)
{
    struct spool *s;
    struct errtext err = ERRTEXT_INIT;
    struct spool_options opt = {
        .dir = dir, .segment_bytes_max = segment_bytes_max, .bytes_max = 1 << 20};
    assert_int_equal(spool_open(&s, &opt, &err), want);
    assert_null(s);
    if (!strstr(err.text, said))
        fail_msg("'%s' does not say '%s'", err.text, said);
}

/* A file of the spool: its bytes, to be written back changed. */
struct image {
    char path[160], *data;
    size_t len;
};

static struct image load(const char *name)
{
    struct image m;
    snprintf(m.path, sizeof(m.path), "%s/%s", dir, name);
    assert_int_equal(file_read(m.path, 1 << 24, &m.data, &m.len, NULL), STATUS_OK);
    return m;
}

static void store(const struct image *m, size_t len)
{
    assert_int_equal(file_write_atomic(m->path, m->data, len, 0600, NULL), STATUS_OK);
}

#define SEGMENT_1 "seg-00000000000000000001.log"

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

/* Record 1 was synced, 2 to 4 only written. Cut the file at every byte: what was whole before the
 * cut is there after recovery and appending goes on, unless the cut goes into what was promised. */
static void test_torn_tail_at_every_byte(void **state)
{
    struct spool *s = open_spool(1 << 20, 1 << 20);
    append_synced(s, 1, 1);
    for (uint64_t seq = 2; seq <= 4; seq++)
        append(s, seq);
    spool_close(s);
    struct image log = load(SEGMENT_1), mark = load("mark");
    size_t frame = log.len / 4;
    for (size_t cut = 0; cut <= log.len; cut++) {
        store(&log, cut);
        store(&mark, mark.len);
        uint64_t kept = cut / frame;
        if (kept == 0) {
            expect_refusal(1 << 20, STATUS_CORRUPT, cut ? "damaged at byte 0" : "ends at record 0");
            continue;
        }
        s = open_spool(1 << 20, 1 << 20);
        assert_int_equal(spool_next_seq(s), kept + 1);
        append_synced(s, kept + 1, kept + 1);
        expect_records(s, 1, kept + 1);
        spool_close(s);
    }
    mem_free(log.data);
    mem_free(mark.data);
}

/* Any flipped byte of what was synced stops the start, in the newest segment and in an older one,
 * and the sentence names the file, the place, what is lost and what to do. */
static void flip_each(const char *name)
{
    struct image log = load(name);
    for (size_t i = 0; i < log.len; i++) {
        log.data[i] ^= 0x10;
        store(&log, log.len);
        expect_refusal(60, STATUS_CORRUPT, name);
        expect_refusal(60, STATUS_CORRUPT, "damaged at byte");
        expect_refusal(60, STATUS_CORRUPT, "residual lane void");
        log.data[i] ^= 0x10;
    }
    store(&log, log.len);
    mem_free(log.data);
}

static void test_flipped_bytes_are_seen(void **state)
{
    struct spool *s = open_spool(60, 1 << 20);
    append_synced(s, 1, 1);
    spool_close(s);
    flip_each(SEGMENT_1); /* the newest */
    s = open_spool(180, 1 << 20);
    append_synced(s, 2, 20);
    spool_close(s);
    struct image log = load(SEGMENT_1);
    log.data[30] ^= 1; /* an older one: record 2 of 6 */
    store(&log, log.len);
    expect_refusal(180, STATUS_CORRUPT, "1 records from 2 on cannot be read, 4 behind them can");
    log.data[30] ^= 1;
    store(&log, log.len);
    mem_free(log.data);
    spool_close(open_spool(180, 1 << 20));
}

/* Records that were promised and are not there at all: a file cut between two frames, a segment
 * that is gone, a mark that is gone. */
static void test_what_is_missing_is_seen(void **state)
{
    struct spool *s = open_spool(180, 1 << 20);
    append_synced(s, 1, 20);
    uint64_t newest = spool_whole_seq(s) + 1;
    spool_close(s);
    char name[64];
    snprintf(name, sizeof(name), "seg-%020llu.log", (unsigned long long)newest);
    struct image log = load(name), mark = load("mark"), first = load(SEGMENT_1);
    store(&log, log.len / (20 - newest + 1));
    expect_refusal(180, STATUS_CORRUPT, "its mark says that 20 were signed");
    store(&log, log.len);
    unlink(first.path);
    expect_refusal(180, STATUS_CORRUPT, "a segment is missing");
    store(&first, first.len);
    unlink(mark.path);
    expect_refusal(180, STATUS_CORRUPT, "mark: there is no such file");
    memset(mark.data, 0, mark.len);
    store(&mark, mark.len);
    expect_refusal(180, STATUS_CORRUPT, "mark: it is damaged");
    mem_free(log.data);
    mem_free(mark.data);
    mem_free(first.data);
}

static void test_others_who_know_more(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct spool *s = open_spool(180, 1 << 20);
    append_synced(s, 1, 5);
    assert_int_equal(spool_check_used(s, 5, "the stream", &err), STATUS_OK);
    assert_int_equal(spool_check_used(s, 6, "the chain", &err), STATUS_CONFLICT);
    assert_non_null(strstr(err.text, "ends at record 5, but the chain knows 6"));
    assert_non_null(strstr(err.text, "residual lane void --upto 6"));
    spool_close(s);
}

/* ---- the way out ---- */

static bool is_ours(const void *arg, uint64_t seq, const void *entry, size_t len)
{
    return len > 7 && (memcmp(entry, "record ", 7) == 0 || memcmp(entry, "void ", 5) == 0);
}

static enum status fill(const void *arg, uint64_t seq, enum spool_loss_kind why, struct buf *entry,
                        struct errtext *err)
{
    buf_printf(entry, "void %llu %d", (unsigned long long)seq, (int)why);
    return STATUS_OK;
}

static struct spool_survey *repair(uint64_t upto)
{
    struct errtext err = ERRTEXT_INIT;
    struct spool_survey *f = mem_alloc(sizeof(*f));
    const struct spool_repair r = {.dir = dir, .upto = upto, .is_own = is_ours, .fill = fill};
    if (spool_find_losses(&r, f, &err) || spool_fill_losses(&r, f, &err))
        fail_msg("%s", err.text);
    return f;
}

/* Every record but those from..to, which are voids of that kind. */
static void expect_filled(struct spool *s, uint64_t first, uint64_t last, uint64_t from,
                          uint64_t to, int kind)
{
    struct spool_cursor c;
    struct buf body;
    uint64_t seq;
    buf_init(&body, SPOOL_BODY_BYTES_MAX);
    assert_int_equal(spool_first_seq(s), first);
    assert_int_equal(spool_durable_seq(s), last);
    assert_int_equal(spool_cursor_open(&c, s, first, NULL), STATUS_OK);
    for (uint64_t want = first; want <= last; want++) {
        char text[64];
        bool is_void = want >= from && want <= to;
        assert_int_equal(spool_cursor_next(&c, &seq, &body, NULL), STATUS_OK);
        assert_int_equal(seq, want);
        snprintf(text, sizeof(text), is_void ? "void %llu %d" : "record %llu",
                 (unsigned long long)want, kind);
        assert_string_equal(body.data, text);
    }
    spool_cursor_close(&c);
    buf_fini(&body);
}

/* A byte flipped in any record of an old and of the newest segment: that one is lost, no other. */
static void test_repair_keeps_what_is_behind_the_damage(void **state)
{
    char cmd[200];
    struct spool *s = open_spool(180, 1 << 20);
    append_synced(s, 1, 9);
    spool_close(s);
    snprintf(cmd, sizeof(cmd), "cp -r %s %s.kept", dir, dir);
    assert_int_equal(system(cmd), 0);
    for (uint64_t bad = 1; bad <= 9; bad++) {
        char name[64];
        uint64_t at = bad <= 6 ? bad - 1 : bad - 7;
        snprintf(name, sizeof(name), "seg-%020d.log", bad <= 6 ? 1 : 7);
        struct image log = load(name);
        log.data[at * 28 + 22] ^= 4;
        store(&log, log.len);
        expect_refusal(180, STATUS_CORRUPT, name);
        struct spool_survey *f = repair(0);
        assert_int_equal(f->lost, 1);
        assert_int_equal(f->readable, 8);
        assert_int_equal(f->loss[0].first, bad);
        assert_int_equal(f->loss[0].offset, at * 28);
        s = open_spool(180, 1 << 20);
        expect_filled(s, 1, 9, bad, bad, SPOOL_LOSS_DAMAGED);
        append_synced(s, 10, 10);
        expect_filled(s, 1, 10, bad, bad, SPOOL_LOSS_DAMAGED);
        spool_close(s);
        mem_free(f);
        mem_free(log.data);
        snprintf(cmd, sizeof(cmd), "rm -r %s && cp -r %s.kept %s", dir, dir, dir);
        assert_int_equal(system(cmd), 0);
    }
    snprintf(cmd, sizeof(cmd), "rm -r %s.kept", dir);
    assert_int_equal(system(cmd), 0);
}

/* The whole newest file, what somebody else knows of, and everything. */
static void test_repair_of_what_is_gone(void **state)
{
    char path[160], cmd[200];
    struct spool *s = open_spool(180, 1 << 20);
    append_synced(s, 1, 9);
    spool_close(s);
    snprintf(path, sizeof(path), "%s/seg-%020d.log", dir, 7);
    unlink(path);
    mem_free(repair(0));
    s = open_spool(180, 1 << 20);
    expect_filled(s, 1, 9, 7, 9, SPOOL_LOSS_GONE);
    spool_close(s);
    mem_free(repair(12));
    s = open_spool(180, 1 << 20);
    assert_int_equal(spool_next_seq(s), 13);
    expect_filled(s, 1, 12, 7, 12, SPOOL_LOSS_GONE);
    spool_close(s);
    snprintf(cmd, sizeof(cmd), "rm %s/seg-*.log", dir);
    assert_int_equal(system(cmd), 0);
    expect_refusal(180, STATUS_CORRUPT, "12 records are lost");
    mem_free(repair(0));
    s = open_spool(180, 1 << 20);
    expect_filled(s, 1, 12, 1, 12, SPOOL_LOSS_GONE);
    spool_close(s);
}

/* Numbers that are final are never signed again, not even as voids. */
static void test_repair_leaves_final_numbers_alone(void **state)
{
    struct spool *s = open_spool(180, 1 << 20);
    append_synced(s, 1, 20);
    spool_note_final(s, 8);
    append_synced(s, 21, 22);
    spool_close(s);
    struct image log = load("seg-00000000000000000007.log");
    log.data[22] ^= 1;         /* 7: final */
    log.data[28 * 4 + 5] ^= 1; /* 11 */
    store(&log, log.len);
    struct spool_survey *f = repair(0);
    assert_int_equal(f->loss_count, 2);
    assert_int_equal(f->loss[0].kind, SPOOL_LOSS_FINAL);
    assert_int_equal(f->lost, 1);
    s = open_spool(180, 1 << 20);
    expect_filled(s, 8, 22, 11, 11, SPOOL_LOSS_DAMAGED);
    spool_close(s);
    mem_free(f);
    mem_free(log.data);
}

/* A spool of another lane is not filled with voids. */
static void test_repair_refuses_foreign_records(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct spool_survey *f = mem_alloc(sizeof(*f));
    const struct spool_repair r = {.dir = dir, .is_own = is_ours, .fill = fill};
    struct spool *s = open_spool(180, 1 << 20);
    assert_int_equal(spool_append(s, 1, "another's", 9, NULL), STATUS_OK);
    assert_int_equal(spool_sync(s, NULL), STATUS_OK);
    spool_close(s);
    assert_int_equal(spool_find_losses(&r, f, &err), STATUS_DENIED);
    assert_non_null(strstr(err.text, "not of this lane"));
    mem_free(f);
}

/* ---- budget, disk ---- */

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
        st = st ? st : spool_flush(s, &err);
        bool good = st == STATUS_IO || st == STATUS_FULL;
        _exit(good && spool_next_seq(s) == 2 ? 0 : 1);
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
    const struct spool_keep hour = {.seq_max = 9, .age_s_min = 3600, .bytes_full = UINT64_MAX},
                            none = {.seq_max = 9},
                            many = {.seq_max = 9, .bytes_min = 1 << 20, .bytes_full = UINT64_MAX},
                            few = {.seq_max = 1, .any = true},
                            full = {.seq_max = 9,
                                    .bytes_min = 1 << 20,
                                    .age_s_min = 3600,
                                    .bytes_full = 150};
    struct spool *s = open_spool(60, 1 << 20);
    append_synced(s, 1, 6); /* two in a segment */
    spool_trim(s, &none);
    assert_int_equal(spool_first_seq(s), 1); /* not final */
    spool_trim(s, &few);
    assert_int_equal(spool_first_seq(s), 1); /* its second record stays */
    spool_note_final(s, 3);
    spool_trim(s, &hour);
    spool_trim(s, &many);
    assert_int_equal(spool_first_seq(s), 1);
    spool_trim(s, &full); /* no room: the minimum does not count */
    assert_int_equal(spool_first_seq(s), 3);
    spool_note_final(s, 1000); /* more than there is */
    assert_int_equal(spool_final_seq(s), 6);
    spool_trim(s, &none);
    assert_int_equal(spool_first_seq(s), 5); /* the newest stays */
    expect_records(s, 5, 6);
    struct spool_cursor c;
    assert_int_equal(spool_cursor_open(&c, s, 1, NULL), STATUS_NOT_FOUND);
    spool_close(s);
    s = open_spool(60, 1 << 20); /* what was trimmed is not missed */
    append_synced(s, 7, 8);
    spool_trim(s, &(struct spool_keep){.seq_max = 6, .any = true}); /* settled with nobody */
    expect_records(s, 7, 8);
    spool_close(s);
}

static void set_mtime(const char *name, int64_t seconds_from_now)
{
    char path[160];
    int64_t at = (int64_t)(clock_wall_ms() / 1000) + seconds_from_now;
    struct timespec times[2] = {{.tv_sec = at}, {.tv_sec = at}};
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

/* Written while the clock was a day ahead: such a segment is young, not older than time. One of
 * yesterday is old. The segments of this run have the age that a monotonic clock says. */
static void test_ages_with_a_clock_that_jumped(void **state)
{
    const struct spool_keep hour = {
        .seq_max = UINT64_MAX, .any = true, .age_s_min = 3600, .bytes_full = UINT64_MAX};
    struct spool *s = open_spool(60, 1 << 20);
    append_synced(s, 1, 6);
    spool_close(s);
    set_mtime(SEGMENT_1, 86400);
    s = open_spool(60, 1 << 20);
    spool_trim(s, &hour);
    assert_int_equal(spool_first_seq(s), 1);
    spool_close(s);
    set_mtime(SEGMENT_1, -86400);
    s = open_spool(60, 1 << 20);
    set_mtime("seg-00000000000000000003.log", -86400); /* known already: no matter */
    spool_trim(s, &hour);
    assert_int_equal(spool_first_seq(s), 3);
    spool_close(s);
}

/* However many records: the service goes on in a small budget while all that is there is final. */
static void test_small_budget_for_ever(void **state)
{
    const struct spool_keep keep = {
        .seq_max = UINT64_MAX, .age_s_min = 3600, .bytes_min = 4096, .bytes_full = 4096};
    struct spool *s = open_spool(1024, 8192);
    for (uint64_t seq = 1; seq <= 5000; seq++) {
        append(s, seq);
        if (seq % 20)
            continue;
        assert_int_equal(spool_sync(s, NULL), STATUS_OK);
        spool_note_final(s, seq);
        spool_trim(s, &keep);
    }
    assert_true(spool_first_seq(s) > 4700);
    expect_records(s, spool_first_seq(s), 5000);
    spool_close(s);
    s = open_spool(1024, 8192);
    assert_int_equal(spool_next_seq(s), 5001);
    spool_close(s);
}

/* What is settled is not read at the start: a byte flipped there is not seen then, but by whoever
 * reads it. */
static void test_settled_segments_are_not_read(void **state)
{
    struct spool *s = open_spool(180, 1 << 20);
    struct spool_cursor c;
    struct buf body;
    uint64_t seq;
    append_synced(s, 1, 20);
    spool_note_final(s, 6);
    append_synced(s, 21, 21);
    spool_close(s);
    struct image log = load(SEGMENT_1);
    log.data[25] ^= 1;
    store(&log, log.len);
    s = open_spool(180, 1 << 20);
    assert_int_equal(spool_final_seq(s), 6);
    expect_records(s, 7, 21);
    buf_init(&body, SPOOL_BODY_BYTES_MAX);
    assert_int_equal(spool_cursor_open(&c, s, 1, NULL), STATUS_OK);
    assert_int_equal(spool_cursor_next(&c, &seq, &body, NULL), STATUS_CORRUPT);
    spool_cursor_close(&c);
    buf_fini(&body);
    spool_close(s);
    store(&log, log.len - 3); /* its footer does not fit: it is read, and found out */
    expect_refusal(180, STATUS_CORRUPT, SEGMENT_1);
    mem_free(log.data);
}

/* What is kept for convenience alone never stops a start. */
static void test_a_cache_forgets_what_is_damaged(void **state)
{
    struct spool *s;
    struct spool_options opt = {
        .dir = dir, .segment_bytes_max = 180, .bytes_max = 1 << 20, .is_cache = true};
    assert_int_equal(spool_open(&s, &opt, NULL), STATUS_OK);
    for (uint64_t seq = 1; seq <= 20; seq++)
        append(s, seq);
    expect_records(s, 1, 20); /* written is good enough */
    spool_close(s);
    struct image log = load("seg-00000000000000000007.log");
    log.data[28 + 22] ^= 1;
    store(&log, log.len);
    assert_int_equal(spool_open(&s, &opt, NULL), STATUS_OK);
    assert_int_equal(spool_next_seq(s), 8);
    expect_records(s, 1, 7);
    append(s, 8);
    expect_records(s, 1, 8);
    spool_close(s);
    mem_free(log.data);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc32c_known_answers),
        TEST(test_records_survive_reopen_across_segments),
        TEST(test_reader_does_not_see_unsynced_records),
        TEST(test_torn_tail_at_every_byte),
        TEST(test_flipped_bytes_are_seen),
        TEST(test_what_is_missing_is_seen),
        TEST(test_others_who_know_more),
        TEST(test_repair_keeps_what_is_behind_the_damage),
        TEST(test_repair_of_what_is_gone),
        TEST(test_repair_leaves_final_numbers_alone),
        TEST(test_repair_refuses_foreign_records),
        TEST(test_budget_refuses_and_keeps_the_log_whole),
        TEST(test_partial_write_is_cut_back),
        TEST(test_trim_deletes_only_final_whole_segments),
        TEST(test_small_budget_for_ever),
        TEST(test_ages_with_a_clock_that_jumped),
        TEST(test_settled_segments_are_not_read),
        TEST(test_a_cache_forgets_what_is_damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
