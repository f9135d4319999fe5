/* Files that clients brought: each its owner's, whole or not at all, within bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/train/file_store.h"
#include "tests/unit/full_disk.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[PATH_MAX];
static struct file_store *store;
static struct errtext err;

static void open_store(void)
{
    const struct file_store_options opt = {
        .dir = dir, .bytes_max = 100, .owner_bytes_max = 64, .owner_files_max = 4};
    err_clear(&err);
    if (file_store_open(&store, &opt, &err))
        fail_msg("%s", err.text);
}

static int setup(void **state)
{
    (void)state;
    disk_is_full = false;
    snprintf(dir, sizeof(dir), "/tmp/rs-files-XXXXXX");
    assert_non_null(mkdtemp(dir));
    open_store();
    return 0;
}

static int teardown(void **state)
{
    char command[PATH_MAX + 16];
    (void)state;
    file_store_close(store);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    return system(command);
}

static void again(void)
{
    file_store_close(store);
    open_store();
}

static enum status put(const char *owner, const char *name, size_t len, struct stored_file *f)
{
    static const char bytes[101];
    *f = (struct stored_file){.purpose = "fine-tune"};
    snprintf(f->owner, sizeof(f->owner), "%s", owner);
    snprintf(f->name, sizeof(f->name), "%s", name);
    err_clear(&err);
    return file_store_put(store, f, bytes, len, &err);
}

static void path_of(char path[PATH_MAX], const struct stored_file *f, const char *suffix)
{
    snprintf(path, PATH_MAX, "%.*s/%s%s", PATH_MAX - 64, dir, f->id, suffix);
}

static void test_its_owners_alone(void **state)
{
    (void)state;
    struct stored_file f, found;
    assert_int_equal(put("anna", "rows \"1\".jsonl", 10, &f), STATUS_OK);
    for (int i = 0; i < 2; i++) { /* and after a restart */
        assert_true(file_store_get(store, "anna", f.id, &found));
        assert_memory_equal(&f, &found, sizeof(f));
        assert_false(file_store_get(store, "bert", f.id, &found));
        assert_int_equal(file_store_remove(store, "bert", f.id, &err), STATUS_NOT_FOUND);
        again();
    }
    char *data;
    size_t len;
    assert_int_equal(file_store_read(store, &f, &data, &len, &err), STATUS_OK);
    assert_int_equal(len, 10);
    mem_free(data);
    assert_int_equal(file_store_remove(store, "anna", f.id, &err), STATUS_OK);
    assert_false(file_store_get(store, "anna", f.id, &found));
    again();
    assert_false(file_store_get(store, "anna", f.id, &found));
}

static uint32_t list(const struct file_page *page, uint32_t max, struct stored_file *out,
                     bool *more)
{
    uint32_t count;
    err_clear(&err);
    assert_int_equal(file_store_list(store, page, out, max, &count, more, &err), STATUS_OK);
    return count;
}

static void test_pages(void **state)
{
    (void)state;
    struct stored_file f[3], other, out[4];
    bool more;
    assert_int_equal(put("bert", "b", 1, &other), STATUS_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(put("anna", "a", 1, &f[i]), STATUS_OK);
    struct file_page page = {.owner = "anna"};
    assert_int_equal(list(&page, 2, out, &more), 2);
    assert_true(more && strcmp(out[0].id, f[2].id) == 0 && strcmp(out[1].id, f[1].id) == 0);
    page.after = out[1].id;
    char last[FILE_STORE_ID_BYTES];
    snprintf(last, sizeof(last), "%s", out[1].id);
    page.after = last;
    assert_int_equal(list(&page, 2, out, &more), 1);
    assert_true(!more && strcmp(out[0].id, f[0].id) == 0);
    page = (struct file_page){.owner = "anna", .oldest_first = true, .purpose = "fine-tune"};
    assert_int_equal(list(&page, 4, out, &more), 3);
    assert_true(!more && strcmp(out[0].id, f[0].id) == 0);
    page.purpose = "batch";
    assert_int_equal(list(&page, 4, out, &more), 0);
    page.after = other.id; /* is not hers */
    uint32_t count;
    assert_int_equal(file_store_list(store, &page, out, 4, &count, &more, &err), STATUS_NOT_FOUND);
}

static void test_bounds(void **state)
{
    (void)state;
    struct stored_file f;
    assert_int_equal(put("anna", "a", 65, &f), STATUS_TOO_LARGE);
    assert_string_equal(err.code, "file_quota_exceeded");
    assert_int_equal(put("anna", "a", 60, &f), STATUS_OK);
    assert_int_equal(put("anna", "a", 5, &f), STATUS_TOO_LARGE);
    assert_int_equal(put("bert", "b", 41, &f), STATUS_TOO_LARGE); /* of all keys */
    assert_int_equal(put("bert", "b", 40, &f), STATUS_OK);
    assert_int_equal(file_store_remove(store, "bert", f.id, &err), STATUS_OK);
    for (int i = 0; i < 4; i++)
        assert_int_equal(put("bert", "b", 1, &f), STATUS_OK);
    assert_int_equal(put("bert", "b", 1, &f), STATUS_TOO_LARGE);
    assert_int_equal(file_store_stats(store).files, 5);
    assert_int_equal(file_store_stats(store).bytes, 64);
}

static void test_a_full_disk(void **state)
{
    (void)state;
    struct stored_file f;
    disk_is_full = true;
    assert_int_equal(put("anna", "a", 1, &f), STATUS_FULL);
    assert_string_equal(err.code, FILE_DISK_FULL);
    disk_is_full = false;
    assert_int_equal(put("anna", "a", 1, &f), STATUS_OK);
}

static void test_names(void **state)
{
    (void)state;
    struct stored_file f;
    assert_int_equal(put("anna", "", 1, &f), STATUS_INVALID);
    assert_int_equal(put("anna", "a\nb", 1, &f), STATUS_INVALID);
    assert_int_equal(put("anna", "a\xff", 1, &f), STATUS_INVALID);
    assert_int_equal(file_store_stats(store).files, 0);
}

/* Facts come last and go first: what a crash leaves between is swept, and shown to nobody. */
static void test_a_crash(void **state)
{
    (void)state;
    struct stored_file f, found;
    char path[PATH_MAX], facts[PATH_MAX], other[PATH_MAX];
    assert_int_equal(put("anna", "a", 10, &f), STATUS_OK);
    path_of(path, &f, "");
    path_of(facts, &f, ".json");
    path_of(other, &f, ".json.tmp-1");
    assert_int_equal(link(facts, other), 0);
    assert_int_equal(unlink(facts), 0);
    again();
    assert_false(file_store_get(store, "anna", f.id, &found));
    assert_false(file_exists(path) || file_exists(other));
}

static void test_changed_on_disk(void **state)
{
    (void)state;
    struct stored_file f;
    char path[PATH_MAX], *data;
    size_t len;
    assert_int_equal(put("anna", "a", 10, &f), STATUS_OK);
    path_of(path, &f, "");
    FILE *file = fopen(path, "r+");
    assert_true(file && fputc('x', file) == 'x' && fclose(file) == 0);
    assert_int_equal(file_store_read(store, &f, &data, &len, &err), STATUS_CORRUPT);
    assert_null(data);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_its_owners_alone), TEST(test_pages), TEST(test_bounds),
        TEST(test_a_full_disk),      TEST(test_names), TEST(test_a_crash),
        TEST(test_changed_on_disk)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
