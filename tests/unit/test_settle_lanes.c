/* What the worker takes in, holds, quarantines, or stops for; and the database under it. */
#include "chain_client/eth/keccak.h"
#include "chain_client/settle/serve.h"
#include "chain_client/settle/worker.h"
#include "server/base/check.h"
#include "server/base/clock.h"
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
static const struct settings set = {.batch_seconds_max = 1800};
static struct settle_lane lane;
static struct secp_key key;

static int open_world(void **state)
{
    uint8_t secret[32];
    struct errtext err = ERRTEXT_INIT;
    memset(secret, 3, 32);
    w = (struct worker){.set = &set, .lane = &lane, .lane_count = 1};
    lane = (struct settle_lane){.id = 1};
    memset(lane.transport_key, 9, 32);
    canon_domain(w.domain, 31337, secret);
    if (sodium_init() < 0 || secp_create(&w.secp, &err) || crew_create(&w.crew, 3, &err) ||
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
    crew_destroy(w.crew);
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

static void take_all(struct lanes_entry *e, size_t n)
{
    struct errtext err = ERRTEXT_INIT;
    enum status st = db_begin(&w.db, &err);
    if (!st)
        st = lanes_take(&w, &lane, e, n, &err);
    if (!st)
        st = lanes_advance(&w, &lane, &err);
    st = db_end(&w.db, st, &err);
    if (st)
        fail_msg("%s", err.text);
}

static enum lanes_verdict take(uint64_t seq, struct canon_bytes e)
{
    struct lanes_entry one = {.seq = seq, .bytes = e, .verdict = LANES_HOLD};
    take_all(&one, 1);
    return one.verdict;
}

static uint64_t records(void)
{
    uint64_t n;
    assert_int_equal(db_value(&w.db, &n, 0, NULL, "SELECT sum(last - first + 1) FROM runs", ""),
                     STATUS_OK);
    return n;
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
    assert_true(lane.due_ns > clock_mono_ns() + 1790ull * 1000000000);
    assert_int_equal(take(4, entry(4, 1)), LANES_TAKEN);
    assert_int_equal(lane.ingested, 5);
    assert_int_equal(records(), 5);
    assert_int_equal(count("SELECT count(*) FROM quarantine"), 0);
}

/* A read of many entries: one run where they follow each other, each judged on its own, read back
 * in order whatever the range, without bodies once they are final, and then not at all. */
static void test_many_at_once(void **state)
{
    enum { N = 400 };
    struct lanes_entry *e = mem_array(N, sizeof(*e));
    uint8_t *bytes = mem_array(N, 256);
    for (uint64_t i = 0; i < N; i++) {
        struct canon_bytes one = entry(i + 1, 1);
        memcpy(bytes + 256 * i, one.data, one.len);
        e[i] = (struct lanes_entry){.seq = i + 1, .bytes = {bytes + 256 * i, one.len}};
    }
    bytes[256 * 99] ^= 1; /* record 100 is damaged */
    e[200] = e[10];       /* and 201 is an old one under its own number */
    memmove(&e[300], &e[301], sizeof(*e) * (N - 301)); /* 301 does not come */
    take_all(e, N - 1);
    assert_int_equal(lane.ingested, 99);
    assert_int_equal(records(), N - 3);
    assert_int_equal(count("SELECT count(*) FROM runs"), 4);
    assert_int_equal(take(100, entry(100, 1)), LANES_TAKEN);
    assert_int_equal(take(201, entry(201, 1)), LANES_TAKEN);
    assert_int_equal(lane.ingested, 300);
    assert_int_equal(take(301, entry(301, 1)), LANES_TAKEN);
    assert_int_equal(lane.ingested, N);
    for (uint64_t first = 1; first < N; first += 37) {
        struct records_cursor c;
        struct records_row row;
        uint64_t last = first + 150 < N ? first + 150 : N, seq = first;
        assert_int_equal(records_open(&w.db, &c, 1, first, last, NULL), STATUS_OK);
        while (records_read(&c, &row, NULL) == STATUS_OK) {
            assert_int_equal(row.seq, seq);
            assert_int_equal(be_get(row.body.data + 6, 8), seq++);
        }
        assert_int_equal(seq, last + 1);
    }
    bool left = true;
    assert_int_equal(records_drop_bodies(&w.db, 1, 150, NULL), STATUS_OK);
    assert_int_equal(count("SELECT min(first) FROM bodies"), 101); /* its run ends above 150 */
    assert_int_equal(records_forget(&w.db, 1, 200, 2, &left, NULL), STATUS_OK);
    assert_true(left);
    assert_int_equal(records_forget(&w.db, 1, 200, 9, &left, NULL), STATUS_OK);
    assert_false(left);
    assert_int_equal(count("SELECT min(first) FROM runs"), 201);
    assert_int_equal(take(5, entry(5, 1)), LANES_TAKEN); /* forgotten, and not taken again */
    assert_int_equal(count("SELECT min(first) FROM runs"), 201);
    assert_false(lane.stopped);
    mem_free(bytes);
    mem_free(e);
}

/* A request is one record's: the second is a contradiction, whatever its number. */
static void test_two_records_of_one_request(void **state)
{
    struct records_run run;
    struct records_row row = {.seq = 1, .type = RECORD_INFERENCE, .request = {7}};
    uint8_t digest[32];
    records_run_init(&run, 1);
    assert_int_equal(records_run_add(&w.db, &run, &row, key.address, NULL), STATUS_OK);
    assert_int_equal(records_run_store(&w.db, &run, 5, NULL), STATUS_OK);
    row.seq = 2;
    assert_int_equal(records_run_add(&w.db, &run, &row, key.address, NULL), STATUS_CONFLICT);
    row.request[15] = 1;
    assert_int_equal(records_run_add(&w.db, &run, &row, key.address, NULL), STATUS_OK);
    assert_int_equal(records_run_store(&w.db, &run, 5, NULL), STATUS_OK);
    records_run_fini(&run);
    assert_int_equal(records_digest(&w.db, 1, 2, digest, NULL), STATUS_OK);
    assert_int_equal(records_digest(&w.db, 1, 3, digest, NULL), STATUS_NOT_FOUND);
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
    assert_int_equal(records(), 0);
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
    assert_int_equal(records(), 0);
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

static const char *const batch_text[] = {"closed", "built",    "archived", "intent",
                                         "sent",   "included", "final"};
static const char *const epoch_text[] = {"planned",  "computed", "attested", "funded",
                                         "proposed", "final",    "active",   "vetoed"};
static const char *const intent_text[] = {"open", "bound", "done", "closed", "foreign"};

static void run_sql(const char *sql, uint64_t number, const char *text)
{
    struct errtext err = ERRTEXT_INIT;
    if (db_run(&w.db, &err, sql, "ut", number, text))
        fail_msg("%s", err.text);
}

/* A row in every state, spelled as a database has it that is there already. */
static void put_every_state(void)
{
    for (size_t i = 0; i < ARRAY_COUNT(batch_text); i++)
        run_sql("INSERT INTO batches (seq, state, closed_at) VALUES (?, ?, 0)", i + 1,
                batch_text[i]);
    for (size_t i = 0; i < ARRAY_COUNT(epoch_text); i++)
        run_sql("INSERT INTO epochs (epoch, state, previous, prev_root, paid_from, paid, evidence,"
                " planned_at) VALUES (?, ?, 0, x'', 0, 0, 0, 0)",
                i + 1, epoch_text[i]);
    for (size_t i = 0; i < ARRAY_COUNT(intent_text); i++)
        run_sql("INSERT INTO intents (id, kind, key, role, generation, target, data, value, state) "
                "VALUES"
                " (?1, 'commit', ?1, 'committer', 1, x'', x'', '0', ?2)",
                i + 1, intent_text[i]);
}

static void test_states_are_stored_by_name(void **state)
{
    struct buf out;
    struct db_rows q;
    put_every_state();
    assert_int_equal(close_world(state), 0);
    assert_int_equal(open_world(state), 0);
    assert_int_equal(db_query(&w.db, &q, NULL, "SELECT seq, state FROM batches ORDER BY seq", ""),
                     STATUS_OK);
    for (size_t i = 0; db_next(&q, NULL) == STATUS_OK; i++) {
        enum batch_state found;
        assert_int_equal(batch_state_get(&found, &q, 1, NULL), STATUS_OK);
        assert_int_equal(found, BATCH_CLOSED + i);
        assert_string_equal(batch_state_name(found), batch_text[i]);
    }
    for (size_t i = 0; i < ARRAY_COUNT(intent_text); i++)
        assert_string_equal(intent_state_name(INTENT_OPEN + i), intent_text[i]);
    buf_init(&out, 1u << 16);
    assert_int_equal(serve_status_json(&w.db, &out, NULL), STATUS_OK);
    assert_non_null(strstr(out.data, "{\"batch\":6,\"state\":\"included\",\"closed_at\":0,"));
    assert_non_null(strstr(out.data, "{\"epoch\":8,\"state\":\"vetoed\",\"batch_paid_before\":0,"));
    assert_non_null(strstr(out.data, "\"in_flight\":1,"));
    buf_clear(&out);
    assert_int_equal(serve_status_text(&w.db, &out, NULL), STATUS_OK);
    assert_non_null(strstr(out.data, "; 1 batches and 2 epochs are final;\n"));
    assert_non_null(strstr(out.data, "batch 5: sent, 0 records\n"));
    assert_non_null(strstr(out.data, "epoch 7: active, total \n"));
    buf_fini(&out);
}

/* A trouble is one row, its sentence follows what happens, and health asks what stands still. */
static void test_troubles(void **state)
{
    struct buf out;
    bool healthy;
    buf_init(&out, 1u << 16);
    assert_int_equal(trouble_set(&w.db, TROUBLE_LANE_UNKNOWN, 1, "lane 1 waits", NULL), STATUS_OK);
    assert_int_equal(trouble_put_health(&w.db, &out, &healthy, NULL), STATUS_OK);
    assert_true(healthy);
    assert_string_equal(out.data, "{\"ok\":true,\"reasons\":[\"lane 1 waits\"]}");
    assert_int_equal(trouble_set(&w.db, TROUBLE_GAP, 1, "first", NULL), STATUS_OK);
    assert_int_equal(trouble_set(&w.db, TROUBLE_GAP, 1, "then", NULL), STATUS_OK);
    assert_int_equal(trouble_clear(&w.db, TROUBLE_LANE_UNKNOWN, 1, NULL), STATUS_OK);
    buf_clear(&out);
    assert_int_equal(trouble_put_health(&w.db, &out, &healthy, NULL), STATUS_OK);
    assert_false(healthy);
    assert_string_equal(out.data, "{\"ok\":false,\"reasons\":[\"then\"]}");
    buf_clear(&out);
    assert_int_equal(trouble_put_metrics(&w.db, &out, NULL), STATUS_OK);
    assert_non_null(strstr(out.data, "residual_settle_trouble{kind=\"gap\"} 1\n"));
    assert_non_null(strstr(out.data, "residual_settle_trouble{kind=\"lane_unknown\"} 0\n"));
    assert_int_equal(close_world(state), 0);
    assert_int_equal(open_world(state), 0); /* what still is one is found again */
    assert_int_equal(count("SELECT count(*) FROM troubles"), 0);
    buf_fini(&out);
}

/* A call of a kind and key is raised once in each generation. */
static void test_one_call_at_a_time(void **state)
{
    static const char sql[] =
        "INSERT INTO intents (kind, key, role, generation, target, data, value, state)"
        " VALUES ('commit', 1, 'committer', ?, x'', x'', '0', ?)";
    put_every_state();
    for (uint64_t generation = 1; generation <= 2; generation++)
        assert_int_equal(db_run(&w.db, NULL, sql, "ut", generation, "open"),
                         generation == 1 ? STATUS_EXISTS : STATUS_OK);
}

static void test_unknown_state_is_refused(void **state)
{
    static const struct {
        const char *spoil, *mend, *error;
    } kind[] = {
        {"UPDATE batches SET state = 'finale' WHERE seq = 3",
         "UPDATE batches SET state = 'archived' WHERE seq = 3",
         "state database: batch 3: state \"finale\", expected closed, built, archived, intent, "
         "sent, included, final"},
        {"UPDATE epochs SET state = '' WHERE epoch = 6",
         "UPDATE epochs SET state = 'final' WHERE epoch = 6",
         "state database: epoch 6: state \"\", expected planned, computed, attested, funded, "
         "proposed, final, active, vetoed"},
        {"UPDATE intents SET state = 'Bound' WHERE id = 2",
         "UPDATE intents SET state = 'bound' WHERE id = 2",
         "state database: intent 2: state \"Bound\", expected open, bound, done, closed, "
         "foreign"},
    };
    put_every_state();
    for (size_t i = 0; i < ARRAY_COUNT(kind); i++) {
        struct errtext err = ERRTEXT_INIT, answer = ERRTEXT_INIT;
        struct buf out;
        assert_int_equal(db_run(&w.db, NULL, kind[i].spoil, ""), STATUS_OK);
        assert_int_equal(states_check(&w.db, &err), STATUS_CORRUPT);
        assert_string_equal(err.text, kind[i].error);
        assert_true(w.db.failed); /* the worker stops */
        buf_init(&out, 1u << 16);
        if (i < 2) {
            assert_int_equal(serve_status_text(&w.db, &out, &answer), STATUS_CORRUPT);
            assert_string_equal(answer.text, kind[i].error);
            assert_int_equal(serve_status_json(&w.db, &out, NULL), STATUS_CORRUPT);
        }
        buf_fini(&out);
        db_close(&w.db);
        err_clear(&err);
        assert_int_equal(db_open(&w.db, dir, &err), STATUS_CORRUPT); /* and starts no more */
        assert_string_equal(err.text, kind[i].error);
        assert_int_equal(db_open_reader(&w.db, dir, NULL), STATUS_OK);
        assert_int_equal(db_run(&w.db, NULL, "PRAGMA query_only=0", ""), STATUS_OK);
        assert_int_equal(db_run(&w.db, NULL, kind[i].mend, ""), STATUS_OK);
    }
    assert_int_equal(states_check(&w.db, NULL), STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_order_does_not_matter, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_records_of_one_request, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damage_leaves_a_gap, setup, teardown),
        cmocka_unit_test_setup_teardown(test_foreign_numbers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_record_of_another_place, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_records_of_one_number, setup, teardown),
        cmocka_unit_test_setup_teardown(test_far_ahead_is_held, setup, teardown),
        cmocka_unit_test_setup_teardown(test_database, setup, teardown),
        cmocka_unit_test_setup_teardown(test_states_are_stored_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_troubles, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_call_at_a_time, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unknown_state_is_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
