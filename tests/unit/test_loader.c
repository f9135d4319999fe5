/* When a load may skip the hash, and when it must not: seals on real files, through the real loader
 * and, where something happens between two reads, through the reader itself. All adapters are
 * written before the first test, and then given the time that a seal demands. */
#include "server/adapter/peft/reader.h"
#include "server/adapter/store.h"
#include "server/base/clock.h"
#include "tests/unit/adapter_fixture.h"

#include <fcntl.h>

#define RANK 4

static const char *const names[] = {"kept",  "written", "replaced", "alpha", "read",
                                    "grown", "shrunk",  "used",     "linked"};
static struct store *store;

static int make_settled_world(void **state)
{
    char dir[128];
    if (make_world(state))
        return -1;
    for (uint32_t i = 0; i < ARRAY_COUNT(names); i++) {
        snprintf(dir, sizeof(dir), "%s/%s", test_dir, names[i]);
        write_adapter(dir, i, RANK);
    }
    clock_sleep_ms(SEAL_SETTLE_MS + 100);
    return 0;
}

static void dir_of(char dir[128], const char *name)
{
    snprintf(dir, 128, "%s/%s", test_dir, name);
}

static void tensors_of(char path[256], const char *name)
{
    snprintf(path, 256, "%s/%s/adapter_model.safetensors", test_dir, name);
}

static struct adapter_entry *settled_entry(const char *name)
{
    char dir[128];
    dir_of(dir, name);
    return entry_of(name, dir);
}

static void test_every_field_of_a_stamp_counts(void **state)
{
    const struct seal_stamp a = {1, 2, 3, 4, 5};
    for (uint32_t i = 0; i < 5; i++) {
        struct seal_stamp b = a;
        assert_true(seal_stamp_equal(&a, &b));
        *(i == 0 ? &b.dev : i == 1 ? &b.ino : &b.bytes) ^= i < 3;
        *(i == 3 ? &b.mtime_ns : &b.ctime_ns) ^= i >= 3;
        assert_false(seal_stamp_equal(&a, &b));
    }
}

/* ---- through the store ---- */

static void open_store_with(const struct file_roots *roots)
{
    struct store_options opt = {.slots_max = 4,
                                .layouts_max = 4,
                                .host_bytes_max = 1 << 20,
                                .dtype = DTYPE_F32,
                                .model = &base,
                                .roots = roots};
    struct errtext err = ERRTEXT_INIT;
    if (store_create(&store, &opt, &err))
        fail_msg("%s", err.text);
}

static void open_store(void)
{
    open_store_with(NULL);
}

static struct store_stats stats(void)
{
    struct store_stats st;
    store_get_stats(store, &st);
    return st;
}

static void on_done(void *arg)
{
    *(bool *)arg = true;
}

static void unload(const struct adapter_entry *e)
{
    bool done = false;
    assert_int_equal(store_unload(store, e->id, on_done, &done), STATUS_OK);
    for (int i = 0; i < 20000 && !done; i++) {
        (void)store_poll(store, 1);
        usleep(500);
    }
    assert_true(done);
}

/* Load from disk, check the blob, and forget it again. */
static enum status load(struct adapter_entry *e, uint32_t seed, struct errtext *err)
{
    uint32_t slot;
    static uint64_t now_ms;
    enum status st = STATUS_BUSY;
    now_ms += 10000; /* failures are retried */
    for (int i = 0; i < 20000 && st == STATUS_BUSY; i++) {
        st = store_acquire(store, e, now_ms, &slot, err);
        if (st == STATUS_BUSY) {
            usleep(500);
            (void)store_poll(store, now_ms);
        }
    }
    if (st)
        return st;
    const struct lora_slot *s = &store_table(store)->slot[slot];
    const struct lora_entry *q = &store_table(store)->layout[s->layout].entry[LORA_MODULE_Q];
    const float *a = (const float *)((const char *)s->blob + q->a_off);
    const float *b = (const float *)((const char *)s->blob + q->b_off);
    for (uint32_t i = 0; i < RANK * 16; i++) /* the fixture's formula */
        assert_true(a[i] == (float)((i * 7 + seed * 13) % 11) / 8 - 0.5f);
    for (uint32_t i = 0; i < 24 * RANK; i++)
        assert_true(b[i % RANK * 24 + i / RANK] == (float)((i * 7 + seed * 13) % 11) / 8 - 0.5f);
    store_release(store, slot);
    unload(e);
    return STATUS_OK;
}

static void expect_loads(uint64_t loads, uint64_t verified)
{
    assert_int_equal(stats().loads, loads);
    assert_int_equal(stats().loads_verified, verified);
}

static void test_untouched_file_is_hashed_once(void **state)
{
    struct adapter_entry *e = settled_entry("kept");
    open_store();
    assert_int_equal(load(e, 0, NULL), STATUS_OK);
    expect_loads(1, 1);
    for (uint32_t i = 2; i < 6; i++) {
        assert_int_equal(load(e, 0, NULL), STATUS_OK);
        expect_loads(i, 1);
    }
    store_destroy(store);
    catalog_release(e);
}

/* What admission read and hashed need not be hashed again by the first load. */
static void test_admission_leaves_a_seal(void **state)
{
    struct adapter_entry *e = settled_entry("kept");
    struct peft_adapter a;
    char dir[128];
    dir_of(dir, "kept");
    assert_int_equal(peft_read_dir(&a, dir, NULL, &base, 1 << 20, NULL), STATUS_OK);
    assert_true(a.seal.is_set);
    e->seal = a.seal;
    peft_fini(&a);
    open_store();
    assert_int_equal(load(e, 0, NULL), STATUS_OK);
    expect_loads(1, 0);
    store_destroy(store);
    catalog_release(e);
}

/* A file of this very moment could change again without a trace in its ctime. */
static void test_young_file_is_hashed_every_time(void **state)
{
    struct adapter_entry *e = make_entry("young", 3, RANK);
    open_store();
    assert_int_equal(load(e, 3, NULL), STATUS_OK);
    assert_int_equal(load(e, 3, NULL), STATUS_OK);
    expect_loads(2, 2);
    store_destroy(store);
    catalog_release(e);
}

static void expect_refused(struct adapter_entry *e)
{
    struct errtext err = ERRTEXT_INIT;
    char want[96], id[65];
    hex_encode(id, e->id, 32);
    assert_int_equal(load(e, 0, &err), STATUS_CORRUPT);
    snprintf(want, sizeof(want), "adapter '%s'", e->name);
    assert_non_null(strstr(err.text, want));
    assert_non_null(strstr(err.text, "changed since it was registered"));
    assert_non_null(strstr(err.text, id));
    assert_false(e->seal.is_set);
}

/* Other bytes in place, size as before, mtime put back: only ctime tells. */
static void write_in_place(const char *path, char byte)
{
    struct stat sb;
    char old;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &sb), 0);
    assert_int_equal(pread(fd, &old, 1, sb.st_size - 3), 1);
    assert_true(byte != old);
    assert_int_equal(pwrite(fd, &byte, 1, sb.st_size - 3), 1);
    struct timespec times[2] = {sb.st_atim, sb.st_mtim};
    assert_int_equal(futimens(fd, times), 0);
    close(fd);
}

static void test_restored_mtime_is_noticed(void **state)
{
    struct adapter_entry *e = settled_entry("written");
    char path[256];
    char *bytes;
    size_t len;
    tensors_of(path, "written");
    open_store();
    assert_int_equal(load(e, 1, NULL), STATUS_OK);
    assert_true(e->seal.is_set);
    assert_int_equal(file_read(path, 1 << 20, &bytes, &len, NULL), STATUS_OK);
    write_in_place(path, 0x11);
    expect_refused(e);
    expect_refused(e);
    write_in_place(path, bytes[len - 3]); /* the right content again: it serves, hashed */
    uint64_t verified = stats().loads_verified;
    assert_int_equal(load(e, 1, NULL), STATUS_OK);
    assert_int_equal(stats().loads_verified, verified + 1);
    mem_free(bytes);
    store_destroy(store);
    catalog_release(e);
}

static void copy_over(const char *path, const char *bytes, size_t len, const struct stat *like)
{
    struct timespec times[2] = {like->st_atim, like->st_mtim};
    assert_int_equal(file_write_atomic(path, bytes, len, 0600, NULL), STATUS_OK);
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void test_replaced_inode_is_noticed(void **state)
{
    struct adapter_entry *e = settled_entry("replaced");
    char path[256], *bytes;
    size_t len;
    struct stat sb;
    tensors_of(path, "replaced");
    open_store();
    assert_int_equal(load(e, 2, NULL), STATUS_OK);
    assert_int_equal(stat(path, &sb), 0);
    assert_int_equal(file_read(path, 1 << 20, &bytes, &len, NULL), STATUS_OK);
    copy_over(path, bytes, len, &sb); /* the same content: fine, but hashed */
    assert_int_equal(load(e, 2, NULL), STATUS_OK);
    expect_loads(2, 2);
    bytes[len - 3] ^= 1;
    copy_over(path, bytes, len, &sb);
    expect_refused(e);
    mem_free(bytes);
    store_destroy(store);
    catalog_release(e);
}

/* The config is half of the id: scale and rank come from it. */
static void test_changed_config_is_noticed(void **state)
{
    static const char same[] = "{ \"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8,"
                               "\"target_modules\":[\"q_proj\"]}";
    static const char other[] = "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":9,"
                                "\"target_modules\":[\"q_proj\"]}";
    struct adapter_entry *e = settled_entry("alpha");
    open_store();
    assert_int_equal(load(e, 3, NULL), STATUS_OK);
    write_file(e->dir, "adapter_config.json", same, strlen(same));
    assert_int_equal(load(e, 3, NULL), STATUS_OK);
    expect_loads(2, 2);
    write_file(e->dir, "adapter_config.json", other, strlen(other));
    expect_refused(e);
    store_destroy(store);
    catalog_release(e);
}

/* ---- through the reader: what happens between open and the last byte ---- */

struct fill {
    struct peft_reader r;
    struct lora_entry layout[2 * LORA_MODULE_COUNT];
    uint64_t blob_bytes;
    char *blob, *piece;
    uint8_t id[32];
    struct seal seal;
    struct peft_proof proof;
};

static void fill_open(struct fill *f, const char *name)
{
    struct errtext err = ERRTEXT_INIT;
    char dir[128];
    dir_of(dir, name);
    if (peft_reader_open(&f->r, dir, NULL, &base, 1 << 20, &err))
        fail_msg("%s", err.text);
}

static enum status fill_run(struct fill *f, struct errtext *err)
{
    struct peft_target to = {.dtype = DTYPE_F32, .n_layer = 2, .entry = f->layout, .blob = f->blob};
    enum status st = peft_reader_fill(&f->r, &to, f->piece, &f->proof, err);
    peft_reader_close(&f->r);
    return st;
}

/* Opened, with the seal that admission left. */
static void fill_begin(struct fill *f, const char *name)
{
    struct peft_adapter a;
    char dir[128];
    memset(f, 0, sizeof(*f));
    dir_of(dir, name);
    assert_int_equal(peft_read_dir(&a, dir, NULL, &base, 1 << 20, NULL), STATUS_OK);
    assert_true(a.seal.is_set);
    f->seal = a.seal;
    memcpy(f->id, a.id, 32);
    f->proof = (struct peft_proof){.id = f->id, .seal = &f->seal};
    peft_layout(&a, 2, DTYPE_F32, f->layout, &f->blob_bytes);
    peft_fini(&a);
    f->blob = mem_alloc_aligned(f->blob_bytes);
    f->piece = mem_alloc_aligned(PEFT_PIECE_BYTES);
    fill_open(f, name);
}

static void fill_end(struct fill *f)
{
    mem_free_aligned(f->blob, f->blob_bytes);
    mem_free_aligned(f->piece, PEFT_PIECE_BYTES);
}

static void test_file_changed_while_read_is_noticed(void **state)
{
    struct fill f;
    struct errtext err = ERRTEXT_INIT;
    char path[256];
    tensors_of(path, "read");
    fill_begin(&f, "read");
    assert_int_equal(utimensat(AT_FDCWD, path, NULL, 0), 0); /* touched: right, but hashed */
    assert_int_equal(fill_run(&f, NULL), STATUS_OK);
    assert_true(f.proof.hashed);
    assert_false(f.seal.is_set);
    fill_end(&f);
    clock_sleep_ms(SEAL_SETTLE_MS + 100);
    fill_begin(&f, "read");
    write_in_place(path, 0x11);
    assert_int_equal(fill_run(&f, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.text, "files changed"));
    assert_true(f.proof.hashed);
    assert_false(f.seal.is_set);
    fill_end(&f);
}

static void test_changed_size_is_refused(void **state)
{
    struct fill f;
    struct errtext err = ERRTEXT_INIT;
    char path[256];
    tensors_of(path, "grown");
    fill_begin(&f, "grown");
    assert_int_equal(truncate(path, (off_t)f.r.seen.file.bytes + 1), 0);
    assert_int_equal(fill_run(&f, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.text, "size changed"));
    fill_end(&f);
    tensors_of(path, "shrunk");
    fill_begin(&f, "shrunk");
    assert_int_equal(truncate(path, (off_t)f.r.seen.file.bytes - 1), 0);
    err_clear(&err);
    assert_int_equal(fill_run(&f, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.text, "shrank"));
    assert_false(f.seal.is_set);
    fill_end(&f);
}

static void test_seal_wears_out(void **state)
{
    struct fill f;
    fill_begin(&f, "used");
    for (uint32_t i = 0; i < 2 * (SEAL_USES_MAX + 1); i++) {
        assert_int_equal(fill_run(&f, NULL), STATUS_OK);
        assert_int_equal(f.proof.hashed, i % (SEAL_USES_MAX + 1) == SEAL_USES_MAX);
        fill_open(&f, "used");
    }
    peft_reader_close(&f.r);
    fill_end(&f);
}

/* The loader follows the links that admission followed, and no others. */
static void test_links_lead_beneath_the_roots(void **state)
{
    struct adapter_entry *e = settled_entry("linked");
    struct file_roots roots = {.root = {test_dir}, .count = 1};
    struct errtext err = ERRTEXT_INIT;
    char path[256], moved[256];
    tensors_of(path, "linked");
    snprintf(moved, sizeof(moved), "%s/moved", test_dir);
    assert_int_equal(rename(path, moved), 0);
    assert_int_equal(symlink("../moved", path), 0);
    open_store_with(&roots);
    assert_int_equal(load(e, 8, NULL), STATUS_OK);
    store_destroy(store);
    open_store();
    assert_int_equal(load(e, 8, &err), STATUS_DENIED);
    assert_non_null(strstr(err.text, moved));
    store_destroy(store);
    catalog_release(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_field_of_a_stamp_counts),
        cmocka_unit_test(test_untouched_file_is_hashed_once),
        cmocka_unit_test(test_admission_leaves_a_seal),
        cmocka_unit_test(test_young_file_is_hashed_every_time),
        cmocka_unit_test(test_restored_mtime_is_noticed),
        cmocka_unit_test(test_replaced_inode_is_noticed),
        cmocka_unit_test(test_changed_config_is_noticed),
        cmocka_unit_test(test_file_changed_while_read_is_noticed),
        cmocka_unit_test(test_changed_size_is_refused),
        cmocka_unit_test(test_seal_wears_out),
        cmocka_unit_test(test_links_lead_beneath_the_roots),
    };
    return cmocka_run_group_tests(tests, make_settled_world, drop_world);
}
