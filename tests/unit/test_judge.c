/* SPEC 4, rule by rule: what is named at t0 to the second, which tariffs are refused, which answers
 * are required, and which evidence counts. */
#include "chain_client/reward.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "server/base/check.h"

#define T0 10000u

static const struct reward_policy policy = {2000, 6000, 1500, 500, {0xfe}};
static uint8_t model[32] = {0x50}, method[32] = {0x60}, digest[32] = {0x70};

/* Two adapters: 0x10 with datanet 0xd0, 0x20 without; histories and tariff are the tests'. */
struct world {
    struct reward_entry entry;
    struct reward_terms tariff_entry[4], terms[2][4];
    struct reward_tariff tariff;
    struct reward_lane lane;
    struct reward_adapter adapter[2];
    struct datanet_owner owner[2][2];
    struct reward_owners owners[2];
    struct reward_method method;
    struct reward_tables t;
    uint8_t set[TAIL_SET_BYTES_MAX], tariff_tail[TAIL_TARIFF_BYTES_MAX];
    struct reward_record record;
};

static void make_world(struct world *w, uint32_t adapters)
{
    struct tail_set set = {.count = adapters};
    *w = (struct world){.entry = {{1}, REWARD_ROLE_AUTHOR, REWARD_BPS},
                        .tariff_entry = {{1, 0, 5, 7}},
                        .terms = {{{1, 1, 11, 13}}, {{1, 0, 17, 19}}},
                        .lane = {.lane = 3, .tariff_count = 1},
                        .owner = {{{{0x81}, 1}, {{0x82}, 2}}, {{{0x83}, 4}, {{0x84}, 1}}},
                        .method = {.registered_at = 9}};
    memcpy(w->tariff.model_id, model, 32);
    memcpy(w->method.hash, method, 32);
    w->tariff.history = (struct reward_history){w->tariff_entry, 1};
    w->lane.tariff = &w->tariff;
    for (uint32_t i = 0; i < 2; i++) {
        w->adapter[i] = (struct reward_adapter){.adapter_id = {(uint8_t)(0x10 * (i + 1))},
                                                .datanet_id = {i ? 0 : 0xd0},
                                                .split = {&w->entry, 1},
                                                .history = {w->terms[i], 1}};
        w->owners[i] = (struct reward_owners){{0xd0}, 1 + i, w->owner[i], 2};
        set.adapter[i].id[0] = (uint8_t)(0x10 * (i + 1));
        set.adapter[i].weight = 65536;
    }
    w->t = (struct reward_tables){.policy = &policy,
                                  .lane = &w->lane,
                                  .lane_count = 1,
                                  .adapter = w->adapter,
                                  .adapter_count = 2,
                                  .owners = w->owners,
                                  .owners_count = 2,
                                  .method = &w->method,
                                  .method_count = 1};
    w->record = (struct reward_record){.lane = 3,
                                       .seq = 5,
                                       .t0 = T0,
                                       .fee = 100,
                                       .model_id = model,
                                       .digest = digest,
                                       .set = {w->set, 0},
                                       .tariff = {w->tariff_tail, 0},
                                       .rate_ppb = TAIL_E9};
    assert_int_equal(tail_set_encode(w->set, &w->record.set.len, &set, NULL), STATUS_OK);
}

/* Prices {in, out} of the base and of each adapter. */
static void charge(struct world *w, const u128 (*price)[2])
{
    struct tail_tariff t = {.count = 1 + (uint32_t)(w->record.set.len / 36)};
    for (uint32_t i = 0; i < t.count; i++)
        t.price[i] = (struct tail_price){price[i][0], price[i][1]};
    assert_int_equal(tail_tariff_encode(w->tariff_tail, &w->record.tariff.len, &t, NULL),
                     STATUS_OK);
}

static void judge(struct world *w, struct reward_evidence *e, size_t count)
{
    assert_int_equal(reward_check_tables(&w->t, NULL), STATUS_OK);
    assert_int_equal(reward_judge(&w->record, 1, e, count, &w->t, NULL), STATUS_OK);
}

static bool refuses(struct world *w, const u128 (*price)[2])
{
    charge(w, price);
    judge(w, NULL, 0);
    return w->record.is_refused;
}

static void test_named_to_the_second(void **state)
{
    static const struct reward_terms entry[] = {
        {100, 0, 1, 1}, {9000, 0, 2, 2}, {9401, 0, 3, 3}, {10000, 0, 4, 4}, {10001, 0, 5, 5}};
    struct reward_history h = {entry, 5};
    assert_false(reward_names_price(&h, T0, 1, 1)); /* ended at 9 000 */
    assert_true(reward_names_price(&h, T0, 2, 2));  /* in force at 9 400 = t0 - 600 */
    assert_true(reward_names_price(&h, T0, 3, 3));
    assert_true(reward_names_price(&h, T0, 4, 4));  /* from t0 on */
    assert_false(reward_names_price(&h, T0, 5, 5)); /* a second later */
    assert_false(reward_names_price(&h, T0, 2, 3)); /* a pair, not two prices */
    assert_false(reward_names_price(&h, T0, 0, 0));
    assert_false(reward_names_price(&h, T0 + 1, 2, 2)); /* 9 401 replaced it */
    h = (struct reward_history){entry + 1, 4};
    assert_false(reward_names_price(&h, 9600, 0, 0)); /* the first was in force at t0 - 600 */
    assert_true(reward_names_price(&h, 9599, 0, 0));  /* and not yet a second before */
    assert_true(reward_names_price(&h, 9599, 2, 2));
    assert_true(reward_names_price(&h, 50, 0, 0)); /* t0 below 600 */
    h.count = 0;
    assert_true(reward_names_price(&h, T0, 0, 0));
    assert_false(reward_names_price(&h, T0, 0, 1));
}

static void test_each_price_must_be_named(void **state)
{
    static const u128 right[][2] = {{5, 7}, {11, 13}, {17, 19}};
    struct world w;
    make_world(&w, 2);
    assert_false(refuses(&w, right));
    assert_true(w.record.is_required);
    for (size_t i = 0; i < 6; i++) {
        u128 wrong[3][2];
        memcpy(wrong, right, sizeof(wrong));
        wrong[i / 2][i % 2]++;
        assert_true(refuses(&w, (const u128(*)[2])wrong));
        assert_false(w.record.is_required); /* refused ones are not */
    }
    w.record.lane = 4; /* a lane without a tariff: price 0 */
    assert_true(refuses(&w, right));
    assert_false(refuses(&w, (const u128[][2]){{0, 0}, {11, 13}, {17, 19}}));
    w.record.lane = 3;
    w.tariff.model_id[1] = 1; /* a base without one */
    assert_true(refuses(&w, right));
    w.t.adapter_count = 1; /* 0x20 is not registered */
    assert_false(refuses(&w, (const u128[][2]){{0, 0}, {11, 13}, {0, 0}}));
    w.record.tariff.len -= 32;
    judge(&w, NULL, 0);
    assert_true(w.record.is_refused);
}

static void test_required_by_what_t0_knew(void **state)
{
    static const u128 price[][2] = {{5, 7}, {11, 13}};
    struct world w;
    make_world(&w, 1);
    assert_false(refuses(&w, price));
    assert_true(w.record.is_required);
    w.terms[0][0].active_at = T0; /* registered within the ten minutes */
    assert_false(refuses(&w, price));
    assert_true(w.record.is_required);
    w.terms[0][0].active_at = T0 + 1; /* after the answer began */
    assert_false(refuses(&w, (const u128[][2]){{5, 7}, {0, 0}}));
    assert_false(w.record.is_required);
    w.terms[0][0].active_at = 1;
    w.adapter[0].datanet_id[0] = 0;
    assert_false(refuses(&w, price));
    assert_false(w.record.is_required);
    w.adapter[0].datanet_id[0] = 0xd0;
    w.record.fee = 0;
    assert_false(refuses(&w, price));
    assert_false(w.record.is_required);
}

static void test_t0(void **state)
{
    struct record_inference inf = {.start_ms = 7999};
    struct reward_record r;
    reward_record_from(&r, &inf, digest, 9);
    assert_int_equal(r.t0, 7);
    reward_record_from(&r, &inf, digest, 6); /* a clock ahead of the chain's */
    assert_int_equal(r.t0, 6);
}

/* One credit for adapter 0x10 to `payee` and the treasury, in half. */
static size_t credit(uint8_t *tail, uint8_t payee, uint32_t adapters)
{
    static struct tail_influence influence;
    size_t len = 0;
    memset(&influence, 0, sizeof(influence));
    influence.count = adapters;
    influence.adapter[0].gain = TAIL_E9;
    influence.adapter[0].share_count = 2;
    influence.adapter[0].share[0].ppb = influence.adapter[0].share[1].ppb = TAIL_E9 / 2;
    influence.adapter[0].share[1].payee[0] = payee;
    assert_int_equal(tail_influence_encode(tail, &len, &influence, NULL), STATUS_OK);
    return len;
}

static struct reward_evidence evidence(uint64_t seq, uint8_t *tail, uint8_t payee)
{
    struct reward_evidence e = {.lane = 3,
                                .seq = seq,
                                .inf_seq = 5,
                                .inf_digest = digest,
                                .method_hash = method,
                                .influence = {tail, 0}};
    e.influence.len = credit(tail, payee, 1);
    return e;
}

static void test_payees_are_owners_of_a_named_version(void **state)
{
    static uint8_t tail[TAIL_INFLUENCE_BYTES_MAX];
    struct world w;
    make_world(&w, 1);
    charge(&w, (const u128[][2]){{5, 7}, {11, 13}});
    for (unsigned payee = 0x81; payee <= 0x85; payee++) {
        struct reward_evidence e = evidence(6, tail, (uint8_t)payee);
        judge(&w, &e, 1); /* version 1 alone */
        assert_int_equal(w.record.is_scored, payee <= 0x82);
        assert_int_equal(e.fault, payee <= 0x82 ? REWARD_FAULT_NONE : REWARD_FAULT_PAYEE);
    }
    w.terms[0][1] = (struct reward_terms){T0 - 599, 2, 11, 13}; /* version 2 within ten minutes */
    w.adapter[0].history.count = 2;
    for (unsigned payee = 0x81; payee <= 0x85; payee++) {
        struct reward_evidence e = evidence(6, tail, (uint8_t)payee);
        judge(&w, &e, 1);
        assert_int_equal(w.record.is_scored, payee <= 0x84);
    }
    w.terms[0][1].active_at = T0 - 600; /* for all of them: version 1 is no longer named */
    struct reward_evidence e = evidence(6, tail, 0x81);
    judge(&w, &e, 1);
    assert_false(w.record.is_scored);
    w.t.adapter_count = 0; /* not registered: it has no owners, and the treasury needs none */
    e = evidence(6, tail, 0x81);
    judge(&w, &e, 1);
    assert_int_equal(e.fault, REWARD_FAULT_PAYEE);
}

static void test_first_valid_evidence_counts(void **state)
{
    static uint8_t tail[TAIL_INFLUENCE_BYTES_MAX], thief_tail[TAIL_INFLUENCE_BYTES_MAX],
        two[TAIL_INFLUENCE_BYTES_MAX];
    static const uint8_t other[32] = {9};
    struct world w;
    make_world(&w, 1);
    charge(&w, (const u128[][2]){{5, 7}, {11, 13}});
    struct reward_evidence good = evidence(6, tail, 0x81), e[8];
    for (size_t i = 0; i < ARRAY_COUNT(e); i++) {
        e[i] = good;
        e[i].seq = 4 + i; /* 4: before its record */
    }
    e[1].inf_digest = other;
    e[2].influence.len--; /* does not parse */
    e[3].influence = (struct canon_bytes){two, credit(two, 0x81, 2)};
    e[4].method_hash = other;
    e[5] = evidence(9, thief_tail, 0x99);
    e[6].outcome = RECORD_OUTCOME_INPUTS_LOST;
    e[6].influence.len = 0;
    e[7].lane = 4; /* another lane */
    judge(&w, e, 6);
    assert_false(w.record.is_scored);
    assert_int_equal(e[4].fault, REWARD_FAULT_METHOD);
    assert_int_equal(e[5].fault, REWARD_FAULT_PAYEE);
    judge(&w, e, 8);
    assert_false(w.record.is_scored); /* the first valid one lost its inputs */
    e[7].lane = 3;
    judge(&w, e, 8);
    assert_false(w.record.is_scored); /* too late */
    e[6] = e[7];
    judge(&w, e, 7);
    assert_true(w.record.is_scored);
    assert_ptr_equal(w.record.influence.data, tail);
    w.method.registered_at = 0; /* not by T */
    judge(&w, e, 7);
    assert_false(w.record.is_scored);
    struct reward_evidence swapped[2] = {e[1], e[0]};
    assert_int_equal(reward_judge(&w.record, 1, swapped, 2, &w.t, NULL), STATUS_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_named_to_the_second),
        cmocka_unit_test(test_each_price_must_be_named),
        cmocka_unit_test(test_required_by_what_t0_knew),
        cmocka_unit_test(test_t0),
        cmocka_unit_test(test_payees_are_owners_of_a_named_version),
        cmocka_unit_test(test_first_valid_evidence_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
