/* A batch in the archive and in a store: published once, read back, damaged, mended or named. */
#include "chain_client/eth/keccak.h"
#include "chain_client/settle/batches_impl.h"
#include "chain_client/settle/serve_impl.h"
#include "chain_client/tree.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RECORDS 40

static char dir[64], archive[96], second[96], records_path[192];
static struct worker w;
static struct settings set;
static struct settle_lane lane;
static struct secp_key key;

static void need(enum status st, const struct errtext *err)
{
    if (st)
        fail_msg("%s", err->text);
}

/* Void records, taken in, closed as batch 1 and published. */
static void make_batch(void)
{
    static uint8_t bytes[RECORDS][256];
    struct lanes_entry e[RECORDS];
    struct errtext err = ERRTEXT_INIT;
    for (uint64_t i = 0; i < RECORDS; i++) {
        union record r = {.voided = {.prefix = {CANON_SPEC, RECORD_VOID, 1, i + 1}, .reason = 1}};
        uint8_t digest[32];
        size_t len;
        need(canon_sign(&r, digest, w.domain, w.secp, &key, &err), &err);
        need(canon_encode(bytes[i], &len, &r, &err), &err);
        entry_tag(bytes[i] + len, lane.transport_key, bytes[i], len);
        e[i] = (struct lanes_entry){.seq = i + 1, .bytes = {bytes[i], len + ENTRY_TAG_BYTES}};
    }
    need(db_begin(&w.db, &err), &err);
    need(lanes_take(&w, &lane, e, RECORDS, &err), &err);
    need(lanes_advance(&w, &lane, &err), &err);
    need(db_end(&w.db, STATUS_OK, &err), &err);
    need(db_run(&w.db, &err, "INSERT INTO batches (seq, state, closed_at) VALUES (1, 'closed', 9)",
                ""),
         &err);
    need(db_run(&w.db, &err, "INSERT INTO batch_lanes VALUES (1, 1, 1, ?)", "u", (uint64_t)RECORDS),
         &err);
    need(batches_make(&w, 1, BATCH_CLOSED, &err), &err);
}

static int setup(void **state)
{
    uint8_t secret[32];
    struct errtext err = ERRTEXT_INIT;
    snprintf(dir, sizeof(dir), "/tmp/rs-scrub-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(archive, sizeof(archive), "%s/archive", dir);
    snprintf(second, sizeof(second), "%s/second", dir);
    snprintf(records_path, sizeof(records_path), "%s/batch-00000001/records.bin", archive);
    memset(secret, 3, 32);
    set = (struct settings){.batch_seconds_max = 1800, .archive_dir = archive, .scrub_mib_s = 8};
    w = (struct worker){.set = &set, .lane = &lane, .lane_count = 1};
    w.dep.chain_id = 31337;
    lane = (struct settle_lane){.id = 1};
    canon_domain(w.domain, 31337, w.dep.ledger);
    tree_log_domain(w.log_dom, 31337, w.dep.ledger);
    need(secp_create(&w.secp, &err), &err);
    need(crew_create(&w.crew, 2, &err), &err);
    need(secp_key_init(w.secp, &key, secret, &err), &err);
    need(db_open(&w.db, dir, &err), &err);
    need(lanes_load(&w, &err), &err);
    need(store_open(&w.store[0], second, &(struct store_config){NULL, NULL, NULL}, &err), &err);
    w.store_count = 1;
    memcpy(lane.key, key.address, 20);
    make_batch();
    return 0;
}

static int teardown(void **state)
{
    char cmd[128];
    stores_close(&w);
    db_close(&w.db);
    crew_destroy(w.crew);
    secp_destroy(w.secp);
    snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    return system(cmd);
}

static void flip(const char *path, size_t at)
{
    char *data;
    size_t len;
    struct errtext err = ERRTEXT_INIT;
    need(file_read(path, 1u << 20, &data, &len, &err), &err);
    data[at % len] ^= 1;
    need(file_write_atomic(path, data, len, 0644, &err), &err);
    mem_free(data);
}

/* Is the archive's batch the one of the row? */
static bool is_whole(void)
{
    struct archive_batch b = {.lane = NULL}, row = {.lane = NULL};
    enum status st = archive_batch_read(&b, archive, 1, NULL);
    if (!st)
        st = archive_batch_records(&b, archive, NULL);
    if (!st)
        st = batches_load(&w, &row, 1, NULL);
    bool same = !st && memcmp(b.hash, row.hash, 32) == 0;
    archive_batch_fini(&b);
    archive_batch_fini(&row);
    return same;
}

static uint64_t troubles(const char *kind)
{
    uint64_t n = 0;
    assert_int_equal(
        db_value(&w.db, &n, 0, NULL, "SELECT count(*) FROM troubles WHERE kind = ?", "t", kind),
        STATUS_OK);
    return n;
}

static void scrub(void)
{
    struct errtext err = ERRTEXT_INIT;
    need(scrub_range(&w, 1, 1, &err), &err);
}

static void store_path(char out[256], const char *file)
{
    char hex[65];
    struct archive_batch row;
    assert_int_equal(batches_load(&w, &row, 1, NULL), STATUS_OK);
    hex_encode(hex, row.hash, 32);
    snprintf(out, 256, "%s/batch-00000001-%s/%s", second, hex, file);
    archive_batch_fini(&row);
}

static void test_mended_from_the_database(void **state)
{
    static const char *const names[] = {"header.json", "manifest.json", "records.bin"};
    for (size_t f = 0; f < ARRAY_COUNT(names); f++)
        for (size_t at = 0; at < 300; at += 41) {
            char path[192];
            snprintf(path, sizeof(path), "%s/batch-00000001/%s", archive, names[f]);
            flip(path, at);
            assert_false(is_whole());
            scrub();
            assert_true(is_whole());
        }
    assert_int_equal(unlink(records_path), 0);
    scrub();
    assert_true(is_whole());
    assert_int_equal(troubles("archive_batch"), 0);
}

/* What is final has no bodies in the database: a store has them, or nobody. */
static void test_mended_from_a_store_or_named(void **state)
{
    char path[256];
    assert_int_equal(records_drop_bodies(&w.db, 1, RECORDS, NULL), STATUS_OK);
    flip(records_path, 100);
    scrub();
    assert_true(is_whole());
    store_path(path, "records.bin");
    flip(path, 100);
    flip(records_path, 100); /* both hold the same wrong bytes: no two of them outvote the hash */
    scrub();
    assert_false(is_whole());
    assert_int_equal(troubles("archive_batch"), 1);
    flip(path, 100);
    scrub();
    assert_true(is_whole());
    assert_int_equal(troubles("archive_batch"), 0);
}

/* ---- epochs ---- */

static void make_epoch(void)
{
    static const char *const names[5] = {"accounts.json", "missing.json", "owners.json",
                                         "refused.json", "snapshot.json"};
    struct errtext err = ERRTEXT_INIT;
    struct epoch_header h = {.epoch = 1};
    struct reward_stats stats = {0};
    struct archive_epoch e = {.header = &h, .stats = &stats};
    struct archive_file file[6];
    struct buf text;
    uint8_t manifest[32];
    for (size_t i = 0; i < 5; i++)
        file[i] = e.file[i] = (struct archive_file){names[i], names[i], strlen(names[i])};
    buf_init(&text, 1u << 20);
    archive_put_epoch_manifest(&text, &e);
    file[5] = (struct archive_file){"manifest.json", text.data, text.len};
    keccak_256(manifest, text.data, text.len);
    struct archive_folder f = {archive, "epoch-00000001", file, 6, true};
    need(archive_publish(&f, &err), &err);
    need(stores_publish(&w, &f, manifest, &err), &err);
    need(db_run(&w.db, &err,
                "INSERT INTO epochs (epoch, state, previous, prev_root, paid_from, paid, evidence,"
                " planned_at, manifest) VALUES (1, 'active', 0, x'', 0, 1, 1, 9, ?)",
                "b", manifest, (size_t)32),
         &err);
    buf_fini(&text);
}

static void scrub_steps(void)
{
    for (uint32_t i = 0; i < 4; i++) { /* batch and epoch, whatever came first */
        struct errtext err = ERRTEXT_INIT;
        w.scrub_ns = 0;
        need(scrub_step(&w, &err), &err);
    }
}

/* A flipped bit of an epoch's folder is found before an auditor needs it, and mended or named. */
static void test_an_epoch_is_mended_or_named(void **state)
{
    char path[256], cmd[128];
    struct errtext err = ERRTEXT_INIT;
    make_epoch();
    need(db_run(&w.db, &err, "UPDATE batches SET state = 'final'", ""), &err);
    for (size_t i = 0; i < ARCHIVE_EPOCH_FILES; i++) {
        char *before, *after;
        size_t len;
        snprintf(path, sizeof(path), "%s/epoch-00000001/%s", archive, archive_epoch_files[i]);
        need(file_read(path, 4096, &before, &len, &err), &err);
        flip(path, 5 + i);
        scrub_steps();
        need(file_read(path, 4096, &after, &len, &err), &err);
        assert_string_equal(before, after);
        mem_free(before);
        mem_free(after);
    }
    assert_int_equal(troubles("archive_epoch"), 0);
    snprintf(cmd, sizeof(cmd), "rm -rf %s/epoch-*", second);
    assert_int_equal(system(cmd), 0);
    flip(path, 7);
    scrub_steps();
    assert_int_equal(troubles("archive_epoch"), 1);
    flip(path, 7);
    scrub_steps();
    assert_int_equal(troubles("archive_epoch"), 0);
}

/* A place that is named later gets what was published before. */
static void test_a_store_is_filled(void **state)
{
    char path[256], cmd[128];
    store_path(path, "records.bin");
    assert_true(file_exists(path));
    snprintf(cmd, sizeof(cmd), "rm -rf %s/batch-*", second);
    assert_int_equal(system(cmd), 0);
    scrub();
    assert_true(file_exists(path));
}

/* The same batch is put again, another one beside it; a store that cannot hold it holds it up. */
static void test_a_store_refuses(void **state)
{
    char cmd[160];
    struct errtext err = ERRTEXT_INIT;
    snprintf(cmd, sizeof(cmd), "rm -rf %s && touch %s", second, second);
    assert_int_equal(system(cmd), 0);
    need(db_run(&w.db, &err, "UPDATE batches SET state = 'built'", ""), &err);
    assert_int_not_equal(batches_make(&w, 1, BATCH_BUILT, &err), STATUS_OK);
    assert_int_equal(troubles("archive_store"), 1);
    snprintf(cmd, sizeof(cmd), "rm %s", second);
    assert_int_equal(system(cmd), 0);
    err_clear(&err);
    need(batches_make(&w, 1, BATCH_BUILT, &err), &err);
    assert_int_equal(troubles("archive_store"), 0);
}

static void test_places(void **state)
{
    static const char *const bad[] = {"s3://", "s3:///x", "s3://b/..", "s3://b/a b", "s3://b//c"};
    struct depot *s = NULL;
    struct errtext err = ERRTEXT_INIT;
    char file[128];
    struct store_config c = {"http://127.0.0.1:1", "r", NULL};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        assert_int_equal(store_open(&s, bad[i], &c, NULL), STATUS_INVALID);
    assert_int_equal(store_open(&s, "s3://bucket/a", &c, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "s3_key_file: missing"));
    snprintf(file, sizeof(file), "%s/s3.key", dir);
    c.key_file = file;
    assert_int_equal(file_write_atomic(file, "id:secret", 9, 0644, NULL), STATUS_OK);
    assert_int_equal(store_open(&s, "s3://bucket/a", &c, NULL), STATUS_DENIED);
    assert_int_equal(file_write_atomic(file, "idsecret", 8, 0600, NULL), STATUS_OK);
    assert_int_equal(store_open(&s, "s3://bucket/a", &c, NULL), STATUS_INVALID);
    assert_int_equal(file_write_atomic(file, "id:secret", 9, 0600, NULL), STATUS_OK);
    assert_int_equal(store_open(&s, "s3://bucket/a", &c, NULL), STATUS_OK);
    store_close(s);
}

/* The page's way of a record: its batch, and the newest epoch that pays and was not vetoed. */
static void test_a_vetoed_epoch_is_no_payer(void **state)
{
    static const struct {
        const char *add, *payer;
    } steps[] = {{"(1, 'vetoed', 0, x'', 0, 1, 1, 9)", "}"},
                 {"(2, 'active', 0, x'', 0, 1, 1, 9)", ",\"epoch\":2,\"epoch_state\":\"active\"}"},
                 {"(3, 'vetoed', 2, x'', 0, 1, 1, 9)", ",\"epoch\":2,\"epoch_state\":\"active\"}"}};
    struct errtext err = ERRTEXT_INIT;
    for (size_t i = 0; i < ARRAY_COUNT(steps); i++) {
        char sql[256];
        struct buf out;
        snprintf(sql, sizeof(sql),
                 "INSERT INTO epochs (epoch, state, previous, prev_root, paid_from, paid, evidence,"
                 " planned_at) VALUES %s",
                 steps[i].add);
        assert_int_equal(sqlite3_exec(w.db.h, sql, NULL, NULL, NULL), SQLITE_OK);
        buf_init(&out, 1024);
        need(serve_record(&w.db, "1/1", &out, &err), &err);
        const char *got = strstr(out.data, "\"batch\":1,\"batch_state\":\"");
        assert_non_null(got);
        got = strchr(got + strlen("\"batch\":1,\"batch_state\":\""), '"') + 1;
        assert_int_equal(out.len, (size_t)(got - out.data) + strlen(steps[i].payer));
        assert_memory_equal(got, steps[i].payer, strlen(steps[i].payer));
        buf_fini(&out);
    }
    assert_int_equal(sqlite3_exec(w.db.h, "DELETE FROM epochs", NULL, NULL, NULL), SQLITE_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_mended_from_the_database, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_vetoed_epoch_is_no_payer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mended_from_a_store_or_named, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_store_is_filled, setup, teardown),
        cmocka_unit_test_setup_teardown(test_an_epoch_is_mended_or_named, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_store_refuses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_places, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
