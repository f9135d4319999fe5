/* What the worker takes in, holds, quarantines, or stops for; and the database under it. */
#include "chain_client/eth/keccak.h"
#include "chain_client/settle/worker.h"
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

static char dir[64];
static struct worker w;
static struct settle_lane lane;
static struct secp_key key;

static int open_world(void **state)
{
    uint8_t secret[32];
    struct errtext err = ERRTEXT_INIT;
    memset(secret, 3, 32);
    w = (struct worker){.lane = &lane, .lane_count = 1};
    lane = (struct settle_lane){.id = 1};
    memset(lane.transport_key, 9, 32);
    canon_domain(w.domain, 31337, secret);
    if (sodium_init() < 0 || secp_create(&w.secp, &err) ||
        secp_key_init(w.secp, &key, secret, &err) || db_open(&w.db, dir, &err) ||
        lanes_load(&w, &err))
        return -1;
    memcpy(lane.key, key.address, 20); /* as the ledger says */
    return 0;
}

static int setup(void **state)
{
    snprintf(dir, sizeof(dir), "/tmp/rs-lanes-XXXXXX");
    return mkdtemp(dir) ? open_world(state) : -1;
}

static int close_world(void **state)
{
    db_close(&w.db);
    secp_destroy(w.secp);
    return 0;
}

static int teardown(void **state)
{
    char cmd[128];
    close_world(state);
    snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    return system(cmd);
}

/* A void record of a number, signed and tagged. */
static struct canon_bytes entry(uint64_t seq, uint8_t reason)
{
    static uint8_t bytes[4][ENTRY_WHOLE_BYTES_MAX];
    static int next;
    uint8_t *out = bytes[next++ % 4], digest[32];
    size_t len;
    union record r = {.voided = {.prefix = {CANON_SPEC, RECORD_VOID, 1, seq}, .reason = reason}};
    assert_int_equal(canon_sign(&r, digest, w.domain, w.secp, &key, NULL), 0);
    assert_int_equal(canon_encode(out, &len, &r, NULL), 0);
    crypto_generichash(out + len, ENTRY_TAG_BYTES, out, len, lane.transport_key, 32);
    return (struct canon_bytes){out, len + ENTRY_TAG_BYTES};
}

static enum lanes_verdict take(uint64_t seq, struct canon_bytes e)
{
    enum lanes_verdict v = LANES_HOLD;
    struct errtext err = ERRTEXT_INIT;
    enum status st = db_begin(&w.db, &err);
    if (!st)
        st = lanes_take(&w, &lane, seq, &e, &v, &err);
    if (!st)
        st = lanes_advance(&w, &lane, &err);
    st = db_end(&w.db, st, &err);
    if (st)
        fail_msg("%s", err.text);
    return v;
}

static uint64_t count(const char *sql)
{
    uint64_t n;
    assert_int_equal(db_value(&w.db, &n, 0, NULL, sql, ""), STATUS_OK);
    return n;
}

static void test_order_does_not_matter(void **state)
{
    static const uint64_t order[] = {3, 1, 5, 2, 2, 1};
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(take(order[i], entry(order[i], 1)), LANES_TAKEN);
    assert_int_equal(lane.ingested, 3);
    assert_int_equal(lane.top, 5);
    assert_int_equal(take(4, entry(4, 1)), LANES_TAKEN);
    assert_int_equal(lane.ingested, 5);
    assert_int_equal(count("SELECT count(*) FROM records"), 5);
    assert_int_equal(count("SELECT count(*) FROM quarantine"), 0);
}

static void test_damage_leaves_a_gap(void **state)
{
    struct canon_bytes bad = entry(2, 1);
    ((uint8_t *)(uintptr_t)bad.data)[bad.len - 1] ^= 1;
    assert_int_equal(take(1, entry(1, 1)), LANES_TAKEN);
    assert_int_equal(take(2, bad), LANES_TAKEN); /* acknowledged: it is in quarantine */
    assert_int_equal(take(2, bad), LANES_TAKEN);
    assert_int_equal(count("SELECT count(*) FROM quarantine WHERE reason = 'bad tag'"), 1);
    assert_int_equal(lane.ingested, 1);
    assert_int_equal(lane.top, 2);
    /* the gap is still there after a restart */
    assert_int_equal(close_world(state), 0);
    assert_int_equal(open_world(state), 0);
    assert_int_equal(lane.top, 2);
    assert_int_equal(take(2, entry(2, 1)), LANES_TAKEN);
    assert_int_equal(lane.ingested, 2);
    assert_false(lane.stopped);
}

/* Whoever can write to Redis chooses numbers: a far one makes no gap, is not kept for later, and
 * only the newest entries are kept, cut to what a record can be. */
static void test_foreign_numbers(void **state)
{
    static char big[2 << 20];
    struct canon_bytes e = {(const uint8_t *)big, sizeof(big)};
    assert_int_equal(take(1, entry(1, 1)), LANES_TAKEN);
    assert_int_equal(take(UINT64_MAX, e), LANES_TAKEN);
    assert_int_equal(take((uint64_t)1 << 62, e), LANES_TAKEN);
    assert_int_equal(lane.top, 1);
    assert_true(lane.met_foreign);
    assert_true(count("SELECT max(length(body)) FROM quarantine") <
                CANON_RECORD_BYTES_MAX + 2 * ENTRY_TAG_BYTES);
    e.len = 40;
    for (uint64_t i = 0; i < 1100; i++) {
        big[0] = (char)i;
        big[1] = (char)(i >> 8);
        assert_int_equal(take(1000 + i, e), LANES_TAKEN);
    }
    assert_int_equal(count("SELECT count(*) FROM quarantine"), 1024);
    assert_int_equal(count("SELECT max(seq) FROM quarantine"), 2099);
    assert_int_equal(lane.top, 1);
    assert_int_equal(close_world(state), 0);
    assert_int_equal(open_world(state), 0);
    assert_int_equal(lane.top, 1);
    assert_int_equal(take(2, entry(2, 1)), LANES_TAKEN);
    assert_int_equal(lane.ingested, 2);
}

static void test_record_of_another_place(void **state)
{
    assert_int_equal(take(7, entry(6, 1)), LANES_TAKEN);
    assert_int_equal(count("SELECT count(*) FROM quarantine WHERE reason = 'bad record'"), 1);
    struct canon_bytes nothing = {(const uint8_t *)"", 0};
    assert_int_equal(take(8, nothing), LANES_TAKEN);
    assert_int_equal(count("SELECT count(*) FROM records"), 0);
}

static void test_two_records_of_one_number(void **state)
{
    assert_int_equal(take(1, entry(1, 1)), LANES_TAKEN);
    assert_int_equal(take(1, entry(1, 2)), LANES_TAKEN);
    assert_true(lane.stopped);
    assert_int_equal(count("SELECT count(*) FROM quarantine WHERE reason = 'conflict'"), 1);
    assert_int_equal(take(2, entry(2, 1)), LANES_HOLD);
    assert_int_equal(close_world(state), 0);
    assert_int_equal(open_world(state), 0);
    assert_true(lane.stopped); /* until a person resumes it */
    assert_int_equal(lane.ingested, 1);
}

static void test_far_ahead_is_held(void **state)
{
    assert_int_equal(take((1u << 20) + 1, entry((1u << 20) + 1, 1)), LANES_HOLD);
    assert_int_equal(count("SELECT count(*) FROM records"), 0);
}

static void test_database(void **state)
{
    struct db other;
    struct errtext err = ERRTEXT_INIT;
    struct db_rows q;
    char value[64];
    uint8_t blob[3] = {1, 0, 2}, got[3];
    assert_int_equal(db_open(&other, dir, &err), STATUS_BUSY); /* one worker */
    assert_int_equal(db_begin(&w.db, NULL), STATUS_OK);
    assert_int_equal(db_meta_set(&w.db, "a", "1", NULL), STATUS_OK);
    assert_int_equal(db_end(&w.db, STATUS_IO, NULL), STATUS_IO); /* undone */
    assert_int_equal(db_meta_get(&w.db, "a", value, sizeof(value), NULL), STATUS_OK);
    assert_string_equal(value, "");
    assert_int_equal(db_run(&w.db, NULL, "INSERT INTO cum VALUES (1, 0, ?, ?)", "bn", blob,
                            sizeof(blob), (u128)-1),
                     STATUS_OK);
    assert_int_equal(db_query(&w.db, &q, NULL, "SELECT account, amount FROM cum", ""), STATUS_OK);
    assert_int_equal(db_next(&q, NULL), STATUS_OK);
    db_bytes(&q, 0, got, 3);
    assert_memory_equal(got, blob, 3);
    assert_true(db_amount(&q, 1) == (u128)-1);
    assert_int_equal(db_next(&q, NULL), STATUS_NOT_FOUND);
    assert_int_equal(db_run(&w.db, NULL, "INSERT INTO cum VALUES (1, 0, ?, ?)", "bn", blob,
                            sizeof(blob), (u128)1),
                     STATUS_EXISTS);
    assert_false(w.db.failed);
    err_clear(&err);
    assert_int_equal(db_run(&w.db, &err, "INSERT INTO nowhere VALUES (1)", ""), STATUS_IO);
    assert_true(w.db.failed && strstr(err.text, "nowhere"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_order_does_not_matter, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damage_leaves_a_gap, setup, teardown),
        cmocka_unit_test_setup_teardown(test_foreign_numbers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_record_of_another_place, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_records_of_one_number, setup, teardown),
        cmocka_unit_test_setup_teardown(test_far_ahead_is_held, setup, teardown),
        cmocka_unit_test_setup_teardown(test_database, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
