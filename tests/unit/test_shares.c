/* Shares against values worked out by hand, and against a slow oracle that follows SPEC 10 to the
 * letter: naive division, one unit after another, sorting by selection. */
#include "server/influence/shares.h"
#include "server/base/check.h"
#include "tests/unit/slow_lr.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#define E9       TAIL_E9
#define OWNERS   SLOW_LR_MAX
#define RANDOM_N 3000

static uint32_t arrays; /* that were asked for: the link sends mem_try_array here */

void *__real_mem_try_array(size_t count, size_t item_bytes);
void *__wrap_mem_try_array(size_t count, size_t item_bytes);
void *__wrap_mem_try_array(size_t count, size_t item_bytes)
{
    arrays++;
    return __real_mem_try_array(count, item_bytes);
}

/* ---- the oracle ---- */

static void slow_shares(uint32_t *ppb, const struct shares_in *in)
{
    uint32_t n = in->owner_count, p1[OWNERS], p2[OWNERS] = {0}, influence[OWNERS], rank[OWNERS];
    u128 w[OWNERS], f[OWNERS], kept[OWNERS] = {0};
    bool any = slow_lr(p1, in->events, n);
    for (uint32_t i = 0; i < n; i++)
        w[i] = in->spans && p1[i] ? in->spans[i] : 0;
    (void)slow_lr(p2, w, n);
    for (uint32_t i = 0; i < n; i++)
        w[i] = (u128)in->w1 * p1[i] + (u128)in->w2 * p2[i];
    (void)slow_lr(influence, w, n);
    for (uint32_t i = 0; i < n; i++) {
        f[i] = any ? (u128)in->lambda_ppb * influence[i] +
                         (u128)(E9 - in->lambda_ppb) * in->prior_ppb[i]
                   : in->prior_ppb[i];
    }
    for (uint32_t i = 0; i < n; i++) {
        rank[i] = 0;
        for (uint32_t k = 0; k < n; k++)
            rank[i] += f[k] > f[i] || (f[k] == f[i] && k < i);
        kept[i] = rank[i] < 64 ? f[i] : 0;
    }
    assert_true(slow_lr(ppb, kept, n));
}

static void check_same(const struct shares *s, const uint32_t *ppb, uint32_t n)
{
    uint32_t at = 0;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (ppb[i] == 0)
            continue;
        assert_true(at < s->count);
        assert_int_equal(s->item[at].owner, i);
        assert_int_equal(s->item[at].ppb, ppb[i]);
        sum += s->item[at++].ppb;
    }
    assert_int_equal(at, s->count);
    assert_int_equal(sum, E9);
}

/* ---- by hand ---- */

static void prior_of(uint32_t *prior, const uint32_t *documents, uint32_t n)
{
    assert_int_equal(shares_prior(prior, documents, n), STATUS_OK);
}

static void test_prior(void **state)
{
    uint32_t ppb[3];
    prior_of(ppb, (uint32_t[]){1, 2, 3}, 3);
    assert_int_equal(ppb[0], 166666667);
    assert_int_equal(ppb[1], 333333333);
    assert_int_equal(ppb[2], 500000000);
    assert_int_equal(shares_prior(ppb, (uint32_t[]){0, 0}, 2), STATUS_INVALID);
    (void)state;
}

/* lambda = 3/4: 3/4 of the influence (9 : 1 : 0) and 1/4 of the prior (1 : 1 : 2). */
static void test_lambda(void **state)
{
    u128 events[3] = {9, 1, 0};
    uint32_t prior[3];
    struct shares s;
    prior_of(prior, (uint32_t[]){1, 1, 2}, 3);
    struct shares_in in = {
        .owner_count = 3, .prior_ppb = prior, .events = events, .w1 = 1, .lambda_ppb = 750000000};
    assert_int_equal(shares_compute(&s, &in), STATUS_OK);
    assert_int_equal(s.count, 3);
    assert_int_equal(s.item[0].ppb, 675000000 + 62500000);
    assert_int_equal(s.item[1].ppb, 75000000 + 62500000);
    assert_int_equal(s.item[2].ppb, 125000000);
    assert_int_equal(s.item[0].events_ppb, 900000000);
    assert_int_equal(s.item[2].prior_ppb, 500000000);
    assert_true(s.has_events && !s.has_spans);
    in.lambda_ppb = E9; /* who wrote nothing of it is not named */
    assert_int_equal(shares_compute(&s, &in), STATUS_OK);
    assert_int_equal(s.count, 2);
    in.lambda_ppb = 0; /* an index that is worth nothing: the prior */
    assert_int_equal(shares_compute(&s, &in), STATUS_OK);
    assert_int_equal(s.item[2].ppb, 500000000);
    (void)state;
}

/* Nothing found: the prior, whatever lambda is. */
static void test_no_influence(void **state)
{
    u128 events[2] = {0, 0};
    uint64_t spans[2] = {5, 0};
    uint32_t prior[2];
    struct shares s;
    prior_of(prior, (uint32_t[]){1, 3}, 2);
    struct shares_in in = {.owner_count = 2,
                           .prior_ppb = prior,
                           .events = events,
                           .spans = spans,
                           .w1 = 1,
                           .w2 = 1,
                           .lambda_ppb = E9};
    assert_int_equal(shares_compute(&s, &in), STATUS_OK);
    assert_false(s.has_events);
    assert_int_equal(s.item[0].ppb, 250000000);
    assert_int_equal(s.item[1].ppb, 750000000);
    (void)state;
}

/* Spans are an addend, of owners that S1 names alone: never paid by themselves. */
static void test_spans(void **state)
{
    u128 events[3] = {1, 1, 0};
    uint64_t spans[3] = {1, 0, 1000};
    uint32_t prior[3];
    struct shares s;
    prior_of(prior, (uint32_t[]){1, 1, 1}, 3);
    struct shares_in in = {.owner_count = 3,
                           .prior_ppb = prior,
                           .events = events,
                           .spans = spans,
                           .w1 = 3,
                           .w2 = 1,
                           .lambda_ppb = E9};
    assert_int_equal(shares_compute(&s, &in), STATUS_OK);
    assert_int_equal(s.count, 2);
    assert_int_equal(s.item[0].ppb, 625000000);
    assert_int_equal(s.item[1].ppb, 375000000);
    assert_int_equal(s.item[0].spans_ppb, E9);
    in.w2 = 0;
    assert_int_equal(shares_compute(&s, &in), STATUS_OK);
    assert_int_equal(s.item[0].ppb, 500000000);
    (void)state;
}

/* Of more owners than a record can name the 64 with the most; of equal ones the lower. */
static void test_largest(void **state)
{
    u128 events[OWNERS];
    uint32_t prior[OWNERS], documents[OWNERS];
    struct shares s;
    for (uint32_t i = 0; i < OWNERS; i++) {
        events[i] = i >= 150 ? 2 : 1;
        documents[i] = 1;
    }
    prior_of(prior, documents, OWNERS);
    struct shares_in in = {
        .owner_count = OWNERS, .prior_ppb = prior, .events = events, .w1 = 1, .lambda_ppb = E9};
    assert_int_equal(shares_compute(&s, &in), STATUS_OK);
    assert_int_equal(s.count, 64);
    assert_int_equal(s.item[0].owner, 0);
    assert_int_equal(s.item[53].owner, 53);
    assert_int_equal(s.item[54].owner, 150);
    assert_int_equal(s.item[63].owner, 159);
    (void)state;
}

/* Without the first sub-index owner 0 is alone, without the second owner 1: 0 to E9. */
static void test_spread(void **state)
{
    u128 events[2] = {3, 1}, first[2] = {3, 0}, second[2] = {0, 1};
    const u128 *const sub[SHARES_SUBS] = {first, second, events, events};
    uint32_t prior[2];
    struct shares s;
    prior_of(prior, (uint32_t[]){1, 1}, 2);
    struct shares_in in = {
        .owner_count = 2, .prior_ppb = prior, .events = events, .w1 = 1, .lambda_ppb = E9};
    assert_int_equal(shares_compute(&s, &in), STATUS_OK);
    assert_int_equal(s.item[0].low_ppb, 750000000);
    in.sub = sub;
    assert_int_equal(shares_compute(&s, &in), STATUS_OK);
    assert_int_equal(s.item[0].low_ppb, 0);
    assert_int_equal(s.item[0].high_ppb, E9);
    assert_int_equal(s.item[1].low_ppb, 0);
    assert_int_equal(s.item[1].high_ppb, E9);
    assert_int_equal(s.item[0].ppb, 750000000);
    (void)state;
}

/* ---- against the oracle ---- */

static uint64_t rng_state = 1;

static uint64_t draw(uint64_t below)
{
    rng_state = rng_state * 6364136223846793005ull + 1442695040888963407ull;
    return (rng_state >> 20) % below;
}

/* The spread is what the shares are without each of the parts, at one computation's memory. */
static void check_spread(struct shares_in *in)
{
    static u128 sub[SHARES_SUBS][OWNERS];
    const u128 *const subs[SHARES_SUBS] = {sub[0], sub[1], sub[2], sub[3]};
    uint32_t low[OWNERS], high[OWNERS], n = in->owner_count, plain;
    struct shares s;
    slow_shares(low, in);
    memcpy(high, low, sizeof(high));
    for (uint32_t q = 0; q < SHARES_SUBS; q++) {
        struct shares_in part = *in;
        uint32_t ppb[OWNERS];
        for (uint32_t i = 0; i < n; i++)
            sub[q][i] = draw(3) ? in->events[i] : draw(2) ? in->events[i] / 3 : 0;
        if (draw(4) == 0)
            memcpy(sub[q], in->events, n * sizeof(sub[q][0]));
        part.events = sub[q];
        slow_shares(ppb, &part);
        for (uint32_t i = 0; i < n; i++) {
            low[i] = MIN(low[i], ppb[i]);
            high[i] = MAX(high[i], ppb[i]);
        }
    }
    arrays = 0;
    assert_int_equal(shares_compute(&s, in), STATUS_OK);
    plain = arrays;
    arrays = 0;
    in->sub = subs;
    assert_int_equal(shares_compute(&s, in), STATUS_OK);
    assert_true(n > 16 || arrays == plain); /* past 16 lr_split takes some of its own */
    for (uint32_t i = 0; i < s.count; i++) {
        assert_int_equal(s.item[i].low_ppb, low[s.item[i].owner]);
        assert_int_equal(s.item[i].high_ppb, high[s.item[i].owner]);
    }
}

static void test_random(void **state)
{
    for (uint32_t round = 0; round < RANDOM_N; round++) {
        u128 events[OWNERS];
        uint64_t spans[OWNERS];
        uint32_t prior[OWNERS], documents[OWNERS], ppb[OWNERS];
        struct shares s;
        uint32_t n = (uint32_t)draw(round % 8 ? 9 : OWNERS) + 1, bits = (uint32_t)draw(88);
        for (uint32_t i = 0; i < n; i++) {
            events[i] =
                draw(3) ? (((u128)draw(1u << 20) << 20) + draw(1u << 20)) >> (88 - bits) / 3 : 0;
            events[i] <<= bits > 60 ? bits - 60 : 0;
            spans[i] = draw(2) ? draw(1u << draw(30)) : 0;
            documents[i] = (uint32_t)draw(5) + (i == 0);
        }
        prior_of(prior, documents, n);
        struct shares_in in = {.owner_count = n,
                               .prior_ppb = prior,
                               .events = events,
                               .spans = draw(4) ? spans : NULL,
                               .w1 = (uint32_t)draw(5) + 1,
                               .w2 = (uint32_t)draw(3),
                               .lambda_ppb = draw(3) ? (uint32_t)draw(E9 + 1) : E9};
        assert_int_equal(shares_compute(&s, &in), STATUS_OK);
        slow_shares(ppb, &in);
        check_same(&s, ppb, n);
        check_spread(&in);
    }
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prior),        cmocka_unit_test(test_lambda),
        cmocka_unit_test(test_no_influence), cmocka_unit_test(test_spans),
        cmocka_unit_test(test_largest),      cmocka_unit_test(test_spread),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
