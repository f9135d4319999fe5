/* The job store's promises: encrypted, whole after a crash at any byte, erased in place, bounded.
 */
#include "server/influence/jobstore.h"
#include "tests/unit/influence_fixture.h"

#include <dirent.h>
#include <sys/stat.h>

static const uint8_t key[32] = {1, 2, 3};

struct seen {
    uint64_t seq[64];
    size_t len[64];
    uint32_t count;
    uint64_t refuse; /* this one is not wanted */
};

static enum status visit(void *arg, uint64_t seq, const uint8_t *plain, size_t len,
                         struct errtext *err)
{
    struct seen *s = arg;
    for (size_t i = 0; i < len; i++)
        assert_int_equal(plain[i], (uint8_t)(seq * 31 + i));
    if (seq == s->refuse)
        return err_set(err, STATUS_NOT_FOUND, "orphan");
    s->seq[s->count] = seq;
    s->len[s->count++] = len;
    return STATUS_OK;
}

static struct jobstore *open_store(uint64_t bytes_max, struct seen *seen)
{
    struct jobstore *s;
    struct errtext err = ERRTEXT_INIT;
    if (jobstore_open(&s, test_dir, key, bytes_max, visit, seen, &err))
        fail_msg("%s", err.text);
    return s;
}

static enum status append(struct jobstore *s, uint64_t seq, size_t len)
{
    uint8_t *plain = mem_alloc(len);
    for (size_t i = 0; i < len; i++)
        plain[i] = (uint8_t)(seq * 31 + i);
    enum status st = jobstore_append(s, seq, plain, len, NULL);
    mem_free(plain);
    return st;
}

/* The only file, whole. */
static char *read_only_file(char path[PATH_MAX], size_t *len)
{
    char *data = NULL;
    DIR *d = opendir(test_dir);
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.')
            continue;
        assert_null(data);
        snprintf(path, PATH_MAX, "%s/%s", test_dir, e->d_name);
        assert_int_equal(file_read(path, 1u << 30, &data, len, NULL), STATUS_OK);
    }
    closedir(d);
    return data;
}

static void test_keep_and_erase(void **state)
{
    struct seen seen = {0};
    struct jobstore *s = open_store(1 << 20, &seen);
    for (uint64_t i = 1; i <= 5; i++)
        assert_int_equal(append(s, i * 3, 100), STATUS_OK);
    assert_int_equal(jobstore_sync(s, NULL), STATUS_OK);
    assert_int_equal(jobstore_count(s), 5);
    assert_int_equal(jobstore_bytes(s), 5 * (100 + 40));
    jobstore_erase(s, 9);
    jobstore_erase(s, 9);
    jobstore_erase(s, 10);
    assert_int_equal(jobstore_count(s), 4);
    jobstore_close(s);
    s = open_store(1 << 20, &seen);
    assert_int_equal(seen.count, 4);
    assert_int_equal(seen.seq[2], 12);
    assert_int_equal(jobstore_bytes(s), 4 * 140);
    /* erasing in a file of an earlier run */
    for (uint64_t i = 1; i <= 5; i++)
        jobstore_erase(s, i * 3);
    assert_int_equal(jobstore_count(s), 0);
    assert_int_equal(append(s, 20, 8), STATUS_OK);
    jobstore_close(s);
    seen.count = 0;
    s = open_store(1 << 20, &seen);
    assert_int_equal(seen.count, 1);
    assert_int_equal(seen.seq[0], 20);
    jobstore_close(s);
}

static bool contains(const char *hay, size_t len, const void *needle, size_t n)
{
    return memmem(hay, len, needle, n) != NULL;
}

/* Nothing of a job is readable on disk, and nothing of its ciphertext is left after erasing. */
static void test_private(void **state)
{
    struct seen seen = {0};
    char path[PATH_MAX];
    size_t len;
    struct stat sb;
    struct jobstore *s = open_store(1 << 20, &seen);
    uint8_t plain[64];
    for (size_t i = 0; i < sizeof(plain); i++)
        plain[i] = (uint8_t)(31 + i);
    assert_int_equal(jobstore_append(s, 1, plain, sizeof(plain), NULL), STATUS_OK);
    assert_int_equal(append(s, 2, 64), STATUS_OK);
    char *before = read_only_file(path, &len);
    assert_int_equal(len, 2 * (12 + 64 + 40));
    assert_int_equal(stat(path, &sb), 0);
    assert_int_equal(sb.st_mode & 077, 0);
    for (size_t i = 0; i + 8 <= sizeof(plain); i++)
        assert_false(contains(before, len, plain + i, 8));
    jobstore_erase(s, 1);
    char *after = read_only_file(path, &len);
    assert_memory_equal(after, before, 12);
    assert_true(sodium_is_zero((const uint8_t *)after + 12, 104));
    assert_memory_equal(after + 116, before + 116, 116);
    mem_free(before);
    mem_free(after);
    jobstore_close(s);
}

/* An entry that recovery does not want, or that another key wrote, is zeroed where it lies. */
static void test_unwanted(void **state)
{
    struct seen seen = {.refuse = 2};
    char path[PATH_MAX];
    size_t len;
    struct jobstore *s = open_store(1 << 20, &seen);
    for (uint64_t i = 1; i <= 3; i++)
        assert_int_equal(append(s, i, 32), STATUS_OK);
    jobstore_close(s);
    s = open_store(1 << 20, &seen);
    assert_int_equal(seen.count, 2);
    assert_int_equal(jobstore_count(s), 2);
    char *data = read_only_file(path, &len);
    assert_true(sodium_is_zero((const uint8_t *)data + 84 + 12, 72));
    mem_free(data);
    jobstore_close(s);
    uint8_t other[32] = {9};
    seen.count = 0;
    assert_int_equal(jobstore_open(&s, test_dir, other, 1 << 20, visit, &seen, NULL), STATUS_OK);
    assert_int_equal(seen.count, 0);
    assert_int_equal(jobstore_count(s), 0);
    assert_null(read_only_file(path, &len)); /* nothing live: the file is gone */
    jobstore_close(s);
}

/* A number used again after its first job was dropped. */
static void test_number_twice(void **state)
{
    struct seen seen = {0};
    struct jobstore *s = open_store(1 << 20, &seen);
    assert_int_equal(append(s, 5, 10), STATUS_OK);
    assert_int_equal(append(s, 6, 10), STATUS_OK);
    jobstore_erase(s, 6);
    assert_int_equal(append(s, 6, 20), STATUS_OK);
    assert_int_equal(append(s, 7, 10), STATUS_OK);
    jobstore_erase(s, 6);
    assert_int_equal(jobstore_count(s), 2);
    assert_int_equal(jobstore_bytes(s), 2 * 50);
    jobstore_close(s);
    s = open_store(1 << 20, &seen);
    assert_int_equal(seen.count, 2);
    assert_int_equal(seen.seq[1], 7);
    jobstore_close(s);
}

static void write_file(const char *path, const char *data, size_t len)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    fclose(f);
}

/* Cut the file after every byte: whole entries before the cut are there, and appending goes on. */
static void test_crash_at_every_byte(void **state)
{
    struct seen seen = {0};
    char path[PATH_MAX];
    size_t len;
    struct jobstore *s = open_store(1 << 20, &seen);
    for (uint64_t i = 1; i <= 3; i++)
        assert_int_equal(append(s, i, 8 * i), STATUS_OK);
    jobstore_close(s);
    char *data = read_only_file(path, &len);
    size_t end[4] = {0, 12 + 48, 2 * 12 + 48 + 56, 3 * 12 + 48 + 56 + 64};
    assert_int_equal(len, end[3]);
    for (size_t cut = 0; cut <= len; cut++) {
        write_file(path, data, cut);
        uint32_t whole = 0;
        while (whole < 3 && end[whole + 1] <= cut)
            whole++;
        seen.count = 0;
        s = open_store(1 << 20, &seen);
        assert_int_equal(seen.count, whole);
        assert_int_equal(jobstore_count(s), whole);
        assert_int_equal(append(s, 10, 5), STATUS_OK);
        for (uint64_t i = 1; i <= 3; i++)
            jobstore_erase(s, i);
        jobstore_close(s);
        seen.count = 0;
        s = open_store(1 << 20, &seen);
        assert_int_equal(seen.count, 1);
        assert_int_equal(seen.seq[0], 10);
        jobstore_erase(s, 10);
        jobstore_close(s);
        assert_int_equal(drop_dir(NULL), 0);
        assert_int_equal(mkdir(test_dir, 0700), 0);
    }
    /* and one flipped byte anywhere loses at most what it touches and what a broken length hides */
    for (size_t at = 0; at < len; at += 3) {
        write_file(path, data, len);
        data[at] ^= 0x40;
        write_file(path, data, len);
        data[at] ^= 0x40;
        seen.count = 0;
        s = open_store(1 << 20, &seen);
        assert_true(seen.count < 3);
        assert_int_equal(jobstore_count(s), seen.count);
        jobstore_close(s);
    }
    mem_free(data);
}

static void test_budget(void **state)
{
    struct seen seen = {0};
    struct errtext err = ERRTEXT_INIT;
    struct jobstore *s = open_store(300, &seen);
    uint8_t plain[100] = {0};
    assert_int_equal(append(s, 1, 100), STATUS_OK);
    assert_int_equal(append(s, 2, 100), STATUS_OK);
    assert_int_equal(jobstore_append(s, 3, plain, sizeof(plain), &err), STATUS_FULL);
    assert_non_null(strstr(err.text, "score_bytes_max"));
    jobstore_erase(s, 1);
    assert_int_equal(append(s, 3, 100), STATUS_OK);
    assert_int_equal(jobstore_count(s), 2);
    jobstore_close(s);
}

/* Files roll over; one whose entries are all erased is deleted. */
static void test_files(void **state)
{
    struct seen seen = {0};
    char path[PATH_MAX];
    size_t len;
    struct jobstore *s = open_store(1u << 30, &seen);
    uint8_t *plain = mem_alloc(6u << 20);
    for (uint64_t i = 1; i <= 4; i++)
        assert_int_equal(jobstore_append(s, i, plain, 6u << 20, NULL), STATUS_OK);
    mem_free(plain);
    for (uint64_t i = 1; i <= 3; i++)
        jobstore_erase(s, i);
    char *data = read_only_file(path, &len); /* asserts that one file is left */
    assert_int_equal(len, (6u << 20) + 52);
    mem_free(data);
    jobstore_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_keep_and_erase, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(test_private, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(test_unwanted, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(test_number_twice, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(test_crash_at_every_byte, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(test_budget, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(test_files, make_dir, drop_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
