/* Which record belongs to which request id: bounded, replayed after a restart, found by number. */
#include "server/record/lookup.h"
#include "tests/unit/influence_fixture.h"

static struct lookup *open_lookup(void)
{
    struct lookup *l;
    struct errtext err = ERRTEXT_INIT;
    if (lookup_open(&l, test_dir, &err))
        fail_msg("%s", err.text);
    return l;
}

static struct lookup_entry entry(uint64_t i)
{
    struct lookup_entry e = {
        .seq = i, .fair_key = i * 3, .account = {(uint8_t)i}, .adapter_count = 2};
    uint8_t seed[8];
    be_put(seed, i, 8);
    crypto_generichash(e.request_id, 32, seed, 8, NULL, 0);
    memset(e.salt, (int)(i & 255), 32);
    return e;
}

static void test_put_get(void **state)
{
    struct lookup *l = open_lookup();
    struct lookup_entry e, out;
    for (uint64_t i = 1; i <= 100; i++) {
        e = entry(i);
        e.state = LOOKUP_PENDING;
        lookup_put(l, &e);
    }
    for (uint64_t i = 1; i <= 100; i++) {
        e = entry(i);
        assert_true(lookup_get(l, e.request_id, &out));
        assert_int_equal(out.seq, i);
        assert_int_equal(out.state, LOOKUP_PENDING);
    }
    e = entry(101);
    assert_false(lookup_get(l, e.request_id, &out));
    lookup_update(l, &e); /* unknown: nothing */
    assert_false(lookup_get(l, e.request_id, &out));
    e = entry(7);
    e.state = LOOKUP_PREVIEW;
    e.gain[1] = 5;
    lookup_update(l, &e);
    assert_true(lookup_get(l, e.request_id, &out));
    assert_int_equal(out.gain[1], 5);
    lookup_mark_recorded(l, 9, 200);
    lookup_mark_recorded(l, 1000, 201);
    e = entry(9);
    assert_true(lookup_get(l, e.request_id, &out));
    assert_int_equal(out.state, LOOKUP_RECORDED);
    assert_int_equal(out.att_seq, 200);
    lookup_close(l);
    /* a restart */
    l = open_lookup();
    for (uint64_t i = 1; i <= 100; i++) {
        e = entry(i);
        assert_true(lookup_get(l, e.request_id, &out));
        assert_int_equal(out.seq, i);
        assert_int_equal(out.fair_key, i * 3);
        assert_int_equal(out.adapter_count, 2);
        assert_memory_equal(out.salt, e.salt, 32);
        assert_int_equal(out.account[0], i);
        assert_int_equal(out.state, i == 9 ? LOOKUP_RECORDED : LOOKUP_NOT_SCORED);
        assert_int_equal(out.att_seq, i == 9 ? 200 : 0);
    }
    lookup_close(l);
}

/* Past the maximum the oldest go, in memory and after a replay, and numbers are still found. */
static void test_bound(void **state)
{
    struct lookup *l = open_lookup();
    struct lookup_entry e, out;
    uint64_t last = LOOKUP_MAX + 5000;
    for (uint64_t i = 1; i <= last; i++) {
        e = entry(i);
        lookup_put(l, &e);
    }
    for (int round = 0; round < 2; round++) {
        for (uint64_t i = 1; i <= last; i += 97) {
            e = entry(i);
            assert_int_equal(lookup_get(l, e.request_id, &out), i > last - LOOKUP_MAX);
        }
        for (uint64_t i = last - LOOKUP_MAX - 2; i <= last + 2; i += i % 50 ? 50 - i % 50 : 50)
            lookup_mark_recorded(l, i, i + 1);
        e = entry(last - last % 50);
        assert_true(lookup_get(l, e.request_id, &out));
        assert_int_equal(out.att_seq, e.seq + 1);
        e = entry(5000);
        assert_false(lookup_get(l, e.request_id, &out));
        e = entry(5001);
        assert_true(lookup_get(l, e.request_id, &out));
        lookup_close(l);
        l = open_lookup();
    }
    lookup_close(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_put_get, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(test_bound, make_dir, drop_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
