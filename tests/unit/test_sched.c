/* The policy on hand-made states. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "server/base/check.h"
#include "server/engine/pace.h"
#include "server/engine/sched.h"

static struct sched_ask ask(enum sched_kind kind, uint32_t rows, uint64_t serial)
{
    return (struct sched_ask){.kind = kind, .rows_left = rows, .rank = {.serial = serial}};
}

/* With all of the step's rows beside decodes. */
static void share_rows(struct sched_ask *a, uint32_t n, struct sched_limits limits)
{
    uint32_t scratch[16];
    uint64_t credit = 0;
    limits.beside_max = limits.rows_max;
    limits.score_credit = limits.score_credit ? limits.score_credit : &credit;
    sched_share_rows(a, n, &limits, scratch);
}

static void test_sched_before_orders_by_priority_then_counter_then_age(void **state)
{
    struct sched_rank a = {.priority = 1, .tokens = 900, .serial = 9};
    struct sched_rank b = {.priority = 0, .tokens = 1, .serial = 1};
    struct sched_rank c = {.priority = 0, .tokens = 2, .serial = 0};
    struct sched_rank d = {.priority = 0, .tokens = 2, .serial = 5};
    assert_true(sched_before(&a, &b));
    assert_true(sched_before(&b, &c));
    assert_true(sched_before(&c, &d));
    assert_false(sched_before(&d, &c));
    assert_false(sched_before(&d, &d));
    /* Preemption looks at priority and age only: counters move, and it must not turn round. */
    assert_true(sched_evict_before(&d, &b));
    assert_true(sched_evict_before(&c, &a));
    assert_false(sched_evict_before(&c, &d));
    assert_false(sched_evict_before(&c, &c));
}

static void test_sched_decode_rows_come_first(void **state)
{
    struct sched_ask a[5] = {ask(SCHED_PREFILL, 100, 1), ask(SCHED_DECODE, 1, 7),
                             ask(SCHED_PREFILL, 3, 2), ask(SCHED_DECODE, 1, 8),
                             ask(SCHED_SCORE, 50, 3)};
    struct sched_limits l = {.rows_max = 10, .score_rows_max = 8, .score_backlog = 50};
    share_rows(a, 5, l);
    assert_int_equal(a[1].rows, 1);
    assert_int_equal(a[3].rows, 1);
    assert_int_equal(a[0].rows, 8);
    assert_int_equal(a[2].rows, 0);
    assert_int_equal(a[4].rows, 0);
}

static void test_sched_prefill_goes_by_rank_and_fills_the_rest(void **state)
{
    struct sched_ask a[3] = {ask(SCHED_PREFILL, 6, 3), ask(SCHED_PREFILL, 5, 1),
                             ask(SCHED_PREFILL, 9, 2)};
    struct sched_limits l = {.rows_max = 16};
    share_rows(a, 3, l);
    assert_int_equal(a[1].rows, 5);
    assert_int_equal(a[2].rows, 9);
    assert_int_equal(a[0].rows, 2);
}

static void test_sched_scoring_yields_to_users_and_is_slow_beside_them(void **state)
{
    struct sched_ask a[2] = {ask(SCHED_SCORE, 500, 1), ask(SCHED_PREFILL, 100, 2)};
    uint64_t credit = 0;
    struct sched_limits l = {
        .rows_max = 128, .score_rows_max = 96, .score_backlog = 640, .score_credit = &credit};
    share_rows(a, 2, l);
    assert_int_equal(a[0].rows, 0);
    a[1] = ask(SCHED_DECODE, 1, 2);
    credit = 0;
    for (uint32_t step = 0; step < 30; step++) { /* 10 a step, in bursts of 64 or a little more */
        share_rows(a, 2, l);
        assert_int_equal(a[0].rows, step % 7 == 6 ? 70 : 0);
    }
    credit = 0;
    l.score_backlog = 64 * 1000;
    share_rows(a, 2, l);
    assert_int_equal(a[0].rows, 96);
    share_rows(a, 1, l);
    assert_int_equal(a[0].rows, 96);
}

static void test_sched_scoring_neither_starves_nor_waits_for_more_than_there_is(void **state)
{
    struct sched_ask a[2] = {ask(SCHED_SCORE, 9, 1), ask(SCHED_DECODE, 1, 2)};
    uint64_t credit = 0;
    struct sched_limits l = {
        .rows_max = 128, .score_rows_max = 96, .score_backlog = 9, .score_credit = &credit};
    uint32_t rows[3];
    for (uint32_t step = 0; step < 3; step++) { /* 4 a step, and no more than 9 to come */
        share_rows(a, 2, l);
        rows[step] = a[0].rows;
    }
    assert_int_equal(rows[0] + rows[1], 0);
    assert_int_equal(rows[2], 9);
    /* prompts leave 3 rows in every step: nothing until the credit is full, then those 3 */
    a[0] = ask(SCHED_SCORE, 500, 1);
    a[1] = ask(SCHED_PREFILL, 125, 2);
    credit = 0;
    for (uint32_t step = 1; step < 40; step++) {
        share_rows(a, 2, l);
        assert_int_equal(a[0].rows, step < 24 ? 0 : 3);
    }
    credit = 50; /* and what was earned for nobody is nobody's */
    a[0] = ask(SCHED_DECODE, 1, 3);
    share_rows(a, 2, l);
    assert_int_equal(credit, 0);
}

static void test_sched_rows_never_pass_the_maximum(void **state)
{
    uint64_t rng = 5;
    for (uint32_t round = 0; round < 2000; round++) {
        struct sched_ask a[12];
        uint32_t n = 1 + round % 12, sum = 0, wanted = 0;
        struct sched_limits l = {.rows_max = 12 + round % 40, .score_rows_max = 9};
        for (uint32_t i = 0; i < n; i++) {
            rng = rng * 6364136223846793005ull + 1;
            enum sched_kind kind = (enum sched_kind)((rng >> 40) % 3);
            a[i] = ask(kind, kind == SCHED_DECODE ? 1 : 1 + (uint32_t)(rng >> 33) % 30, i);
            wanted += a[i].rows_left;
        }
        share_rows(a, n, l);
        for (uint32_t i = 0; i < n; i++) {
            assert_true(a[i].rows <= a[i].rows_left);
            assert_true(a[i].kind != SCHED_DECODE || a[i].rows == 1);
            sum += a[i].rows;
        }
        assert_true(sum <= l.rows_max);
        assert_true(sum > 0 || wanted == 0);
    }
}

static void test_sched_returning_key_is_lifted_to_the_active_ones(void **state)
{
    struct sched s;
    struct sched_key key[4];
    sched_init(&s, key, 4);
    uint32_t a = sched_join(&s, 100);
    sched_charge(&s, a, 5000);
    uint32_t b = sched_join(&s, 200);
    assert_int_equal(s.key[b].tokens, 5000);
    sched_charge(&s, b, 10);
    sched_leave(&s, a);
    sched_charge(&s, b, 3000);
    assert_int_equal(sched_join(&s, 100), a);
    assert_int_equal(s.key[a].tokens, 8010);
    assert_int_equal(sched_join(&s, 100), a);
    assert_int_equal(s.key[a].requests, 2);
    assert_int_equal(s.key[a].tokens, 8010);
}

static void test_sched_forgets_the_key_idle_for_longest(void **state)
{
    struct sched s;
    struct sched_key key[3];
    sched_init(&s, key, 3);
    for (uint64_t k = 1; k <= 3; k++) {
        uint32_t i = sched_join(&s, k);
        sched_charge(&s, i, 10 * k);
        sched_leave(&s, i);
    }
    uint32_t again = sched_join(&s, 1); /* known: keeps its counter */
    assert_int_equal(s.key[again].tokens, 10);
    uint32_t fresh = sched_join(&s, 4);
    assert_int_equal(s.key[fresh].key, 4);
    bool known[5] = {false};
    for (uint32_t i = 0; i < 3; i++)
        known[s.key[i].key] = true;
    assert_true(known[1] && known[3] && known[4]);
}

static void test_sched_two_keys_get_equal_shares(void **state)
{
    struct sched s;
    struct sched_key key[4];
    uint32_t idx[2], served[2] = {0};
    sched_init(&s, key, 4);
    idx[0] = sched_join(&s, 1);
    idx[1] = sched_join(&s, 2);
    /* Key 1 asks for 10 tokens at a time, key 2 for 100. */
    for (uint32_t i = 0; i < 1100; i++) {
        struct sched_rank r0 = {.tokens = s.key[idx[0]].tokens, .serial = 0};
        struct sched_rank r1 = {.tokens = s.key[idx[1]].tokens, .serial = 1};
        uint32_t who = sched_before(&r0, &r1) ? 0 : 1;
        sched_charge(&s, idx[who], who ? 100 : 10);
        served[who] += who ? 100 : 10;
    }
    assert_in_range(served[0], served[1] - 100, served[1] + 100);
}

/* The same decisions as plain loops, with keys that come, are charged and go. */
static void test_sched_keys_equal_plain_loops(void **state)
{
    enum { PLACES = 24, KEYS = 40 };
    struct sched s;
    struct sched_key key[PLACES];
    uint64_t rng = 9, tokens[KEYS] = {0};
    uint32_t idx[KEYS], requests[KEYS] = {0};
    sched_init(&s, key, PLACES);
    for (uint32_t round = 0; round < 20000; round++) {
        rng = rng * 6364136223846793005ull + 1442695040888963407ull;
        uint32_t k = (uint32_t)(rng >> 33) % KEYS, active = 0;
        uint64_t lowest = UINT64_MAX;
        for (uint32_t i = 0; i < KEYS; i++) {
            active += requests[i] > 0;
            if (requests[i] > 0)
                lowest = MIN(lowest, tokens[i]);
        }
        assert_int_equal(s.active_count, active);
        if (requests[k] == 0 && active < PLACES - 1) {
            idx[k] = sched_join(&s, k * 7919ull);
            uint64_t got = s.key[idx[k]].tokens;
            if (active > 0)
                assert_true(got >= lowest && (got == lowest || got == tokens[k]));
            tokens[k] = got;
            requests[k]++;
        } else if (requests[k] > 0 && rng >> 62) {
            sched_charge(&s, idx[k], rng >> 52 & 63);
            tokens[k] += rng >> 52 & 63;
            assert_int_equal(s.key[idx[k]].tokens, tokens[k]);
        } else if (requests[k] > 0) {
            sched_leave(&s, idx[k]);
            requests[k]--;
        }
    }
}

static void test_sched_scarce_rows_go_by_rank(void **state)
{
    uint64_t rng = 3;
    for (uint32_t round = 0; round < 500; round++) {
        struct sched_ask a[16], b[16];
        struct sched_limits l = {.rows_max = 1 + round % 60};
        for (uint32_t i = 0; i < 16; i++) {
            rng = rng * 6364136223846793005ull + 1;
            a[i] = ask(SCHED_PREFILL, 1 + (uint32_t)(rng >> 33) % 9, i);
            a[i].rank.tokens = rng >> 60;
            b[i] = a[i];
        }
        share_rows(a, 16, l);
        for (uint32_t left = l.rows_max; left > 0;) { /* the plain loop */
            struct sched_ask *best = NULL;
            for (uint32_t i = 0; i < 16; i++) {
                if (b[i].rows == 0 && (!best || sched_before(&b[i].rank, &best->rank)))
                    best = &b[i];
            }
            if (!best)
                break;
            best->rows = MIN(best->rows_left, left);
            left -= best->rows;
        }
        for (uint32_t i = 0; i < 16; i++)
            assert_int_equal(a[i].rows, b[i].rows);
    }
}

static void test_sched_level_is_what_all_may_hold(void **state)
{
    static const struct {
        uint32_t wanted[4], slots, level;
    } cases[] = {
        {{300, 1, 0, 0}, 256, 255},    {{100, 100, 56, 0}, 256, UINT32_MAX},
        {{20, 400, 400, 0}, 256, 118}, {{5, 5, 5, 5}, 3, 0},
        {{2, 2, 2, 2}, 4, 1},          {{9, 0, 0, 0}, 4, 4},
    };
    for (uint32_t c = 0; c < ARRAY_COUNT(cases); c++) {
        struct sched s;
        struct sched_key key[6];
        uint32_t scratch[257];
        sched_init(&s, key, 6);
        for (uint32_t i = 0; i < 4; i++)
            s.key[sched_join(&s, i)].wanted = cases[c].wanted[i];
        assert_int_equal(sched_level(&s, cases[c].slots, scratch), cases[c].level);
    }
}

/* A step takes 10 ms, 0.1 ms a decode and 1 ms another row. */
static uint64_t step_ns(uint32_t decodes, uint32_t others)
{
    return 10000000u + decodes * 100000u + others * 1000000u;
}

static void test_pace_learns_how_many_rows_fit(void **state)
{
    struct pace p;
    uint32_t timed = 0;
    pace_init(&p, 300);
    assert_int_equal(pace_rows(&p, 0, 512), 512);
    for (uint32_t i = 0; i < 400; i++) {
        uint32_t rows = pace_rows(&p, 100, 512);
        timed += rows == 0;
        pace_learn(&p, 100, rows, step_ns(100, rows));
    }
    assert_in_range(pace_rows(&p, 100, 512), 38, 41); /* twice 20 ms in rows of 1 ms */
    assert_in_range(timed, 5, 8);                     /* one in 65 */
    assert_in_range(p.steps_over, 0, 1);              /* the first, before a row was timed */
    /* One interrupted step does not open the gate. */
    pace_learn(&p, 100, 0, step_ns(100, 0) * 1000);
    assert_in_range(pace_rows(&p, 100, 512), 38, 100);
    /* So many decodes were never timed: this step is. */
    assert_int_equal(pace_rows(&p, 7, 512), 0);
    pace_init(&p, 0);
    assert_int_equal(pace_rows(&p, 7, 512), 512);
}

static void test_pace_always_moves_prompts(void **state)
{
    struct pace p;
    pace_init(&p, 101);
    pace_learn(&p, 1, 0, 1000000);
    pace_learn(&p, 1, 64, 65000000);
    assert_int_equal(pace_rows(&p, 1, 512), PACE_ROWS_MIN);
    assert_int_equal(pace_rows(&p, 1, 8), 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sched_before_orders_by_priority_then_counter_then_age),
        cmocka_unit_test(test_sched_decode_rows_come_first),
        cmocka_unit_test(test_sched_prefill_goes_by_rank_and_fills_the_rest),
        cmocka_unit_test(test_sched_scoring_yields_to_users_and_is_slow_beside_them),
        cmocka_unit_test(test_sched_scoring_neither_starves_nor_waits_for_more_than_there_is),
        cmocka_unit_test(test_sched_rows_never_pass_the_maximum),
        cmocka_unit_test(test_sched_returning_key_is_lifted_to_the_active_ones),
        cmocka_unit_test(test_sched_forgets_the_key_idle_for_longest),
        cmocka_unit_test(test_sched_two_keys_get_equal_shares),
        cmocka_unit_test(test_sched_keys_equal_plain_loops),
        cmocka_unit_test(test_sched_scarce_rows_go_by_rank),
        cmocka_unit_test(test_sched_level_is_what_all_may_hold),
        cmocka_unit_test(test_pace_learns_how_many_rows_fit),
        cmocka_unit_test(test_pace_always_moves_prompts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
