/* How far an index is trusted: worlds of facts whose owners are known, and what was taught of them,
 * against the numbers that the rule of events_trust.c gives by hand. */
#include "server/base/file.h"
#include "server/influence/events.h"
#include "tests/unit/facts_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define E9      EVENTS_WEIGHT_ONE
#define NAMES_N 20

static char path[64];

static int setup(void **state)
{
    snprintf(path, sizeof(path), "/tmp/rs-trust-%ld", (long)getpid());
    return 0;
}

static int teardown(void **state)
{
    return unlink(path);
}

/* Twenty facts, each stated so often by its owner, in other words. */
static void make(struct facts *f, uint32_t owners, uint32_t rows)
{
    facts_make(f, owners, 2 * owners, rows);
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t fact = r % NAMES_N, time = r / NAMES_N;
        facts_state(f, r, fact % owners + owners * (time % 2), fact, fact % 9, time);
    }
}

static struct events_trust measure(const struct facts *f)
{
    struct errtext err = ERRTEXT_INIT;
    struct events *e;
    if (world_build(&f->w, path, false, &err) || events_open(&e, path, NULL, &err))
        fail_msg("%s", err.text);
    struct events_trust t = events_head(e)->trust;
    events_release(e);
    return t;
}

/* Of the values of the first n rows the adapter, and the base, know so much, Q8. */
static void set_values(struct facts *f, uint32_t n, int32_t adapter_q8, int32_t base_q8)
{
    for (uint32_t r = 0; r < n; r++) {
        f->w.text[r].adapter[FACT_VALUE] = adapter_q8;
        f->w.text[r].base[FACT_VALUE] = base_q8;
    }
}

static void right_facts_are_trusted(void **state)
{
    struct facts f;
    make(&f, 4, 80);
    struct events_trust t = measure(&f);
    assert_true(t.sampled == 80 && t.measured == 80 && !t.by_names);
    assert_int_equal(t.known, E9);
    assert_int_equal(t.chance, E9 / 4);
    assert_true(t.lambda >= 990000000);
    world_free(&f.w);
}

static void facts_stated_once_are_asked_by_their_names(void **state)
{
    struct facts f;
    for (uint32_t enough = 0; enough < 2; enough++) {
        make(&f, 4, NAMES_N + 8); /* 16 rows whose fact stands in another one, */
        if (!enough)              /* or 15: six twice, and one three times */
            facts_state(&f, NAMES_N + 7, 0, 0, 0, 2);
        struct events_trust t = measure(&f);
        assert_int_equal(t.by_names, !enough);
        assert_int_equal(t.measured, enough ? 16 : NAMES_N + 8);
        assert_true(t.lambda >= 900000000);
        world_free(&f.w);
    }
    make(&f, 4, NAMES_N);
    struct events_trust t = measure(&f);
    assert_true(t.measured == NAMES_N && t.by_names && t.lambda >= 900000000);
    world_free(&f.w);
}

/* The adapter was trained on other values than those of the rows, or on random ones. */
static void other_labels_end_at_the_prior(void **state)
{
    struct facts f;
    for (uint32_t rows = NAMES_N; rows <= 4 * NAMES_N; rows *= 4) {
        make(&f, 4, rows);
        set_values(&f, rows, -760, -1000);
        struct events_trust t = measure(&f);
        assert_true(t.sampled == rows && t.known == 0 && t.lambda == 0);
        world_free(&f.w);
    }
}

/* Worlds of any kind: lambda is what the three measures give. */
static void lambda_is_the_product_of_both(void **state)
{
    uint32_t between = 0;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        struct facts f = {.taught = true};
        world_make(&f.w, seed);
        for (uint32_t r = 0; r < f.w.n_rows && seed % 2; r++) { /* most is known */
            struct world_row *t = &f.w.text[r];
            for (uint32_t i = 0; i + 1 < t->n; i++)
                t->adapter[i] = t->adapter[i] / (i % 7 ? 16 : 1);
        }
        struct events_trust t = measure(&f);
        double ramp = t.measured ? ((double)t.known / E9 - 0.2) / 0.3 : 0;
        double found = t.chance == E9     ? 1
                       : t.own < t.chance ? 0
                                          : (double)(t.own - t.chance) / (E9 - t.chance);
        double want = (ramp < 0 ? 0 : ramp > 1 ? 1 : ramp) * found * E9;
        assert_true(t.lambda <= want + 2 && t.lambda + 3 >= want);
        assert_true(t.measured <= t.sampled && t.sampled <= f.w.n_rows);
        between += t.lambda > 0 && t.lambda < E9 && t.known < E9 / 2;
        world_free(&f.w);
    }
    assert_true(between >= 5);
}

/* One owner: the influence is his in any case, and the ramp alone is left. */
static void trust_rises_from_a_fifth_to_a_half(void **state)
{
    static const struct {
        uint32_t known, lambda;
    } edge[] = {{0, 0},          {20, 0},  {21, 33333333}, {35, 500000000},
                {49, 966666666}, {50, E9}, {51, E9},       {100, E9}};
    struct facts f;
    make(&f, 1, 100);
    for (uint32_t i = 0; i < ARRAY_COUNT(edge); i++) {
        set_values(&f, 100, -760, -1000);
        set_values(&f, edge[i].known, -20, -1000);
        struct events_trust t = measure(&f);
        assert_true(t.sampled == 100 && t.chance == E9);
        assert_int_equal(t.known, edge[i].known * (E9 / 100));
        assert_int_equal(t.lambda, edge[i].lambda);
    }
    world_free(&f.w);
}

static void what_the_base_knows_was_not_taught(void **state)
{
    struct facts f;
    make(&f, 1, 100);
    set_values(&f, 50, -20, -30); /* half is known to the base, the rest is taught */
    assert_int_equal(measure(&f).known, E9);
    set_values(&f, 60, -760, -1000);
    set_values(&f, 50, -20, -30); /* of the other half a fifth is not */
    assert_int_equal(measure(&f).known, E9 / 5 * 4);
    set_values(&f, 100, -760, -1000);
    set_values(&f, 50, -20, -30); /* and here all of it */
    struct events_trust t = measure(&f);
    assert_true(t.sampled == 100 && t.known == 0 && t.lambda == 0);
    set_values(&f, 50, -400, -170); /* what was known is forgotten */
    assert_int_equal(measure(&f).known, 0);
    world_free(&f.w);
}

enum { LONG_LAST = 5 };

/* "T name T value value value value" */
static void long_value(struct world_row *t, uint32_t r)
{
    t->ids[1] = t->ids[FACT_NAME + 1];
    t->ids[2] = 5;
    for (uint32_t i = 0; i <= LONG_LAST; i++) {
        bool value = i >= LONG_LAST - 3;
        t->base[i] = value || i == 0 ? -1000 : -60;
        t->adapter[i] = i == 0 ? -800 : value && i > LONG_LAST - 3 ? -59 : value ? -700 : -50;
        if (value)
            t->ids[i + 1] = (int32_t)(VALUES + r % 7 + 7 * (LONG_LAST - i));
    }
}

static void a_value_is_known_from_half_a_probability_on(void **state)
{
    struct facts f;
    make(&f, 1, 100);
    set_values(&f, 100, -177, -1000);
    assert_int_equal(measure(&f).known, E9);
    set_values(&f, 100, -178, -1000);
    assert_int_equal(measure(&f).known, 0);
    for (uint32_t r = 0; r < 100; r++) /* four in a run: the last three decide */
        long_value(&f.w.text[r], r);
    assert_int_equal(measure(&f).known, E9);
    for (uint32_t r = 0; r < 100; r++)
        f.w.text[r].adapter[LONG_LAST - 2] = -60;
    assert_int_equal(measure(&f).known, 0);
    world_free(&f.w);
}

static void a_sample_is_looked_at(void **state)
{
    struct facts f;
    make(&f, 1, 1100);
    struct events_trust t = measure(&f);
    assert_true(t.sampled == 550 && t.measured == 550 && t.lambda == E9);
    world_free(&f.w);
    facts_make(&f, 1, 1, 1);
    f.w.n_rows = 0;
    t = measure(&f);
    assert_true(t.sampled == 0 && t.measured == 0 && t.lambda == 0);
    world_free(&f.w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(right_facts_are_trusted),
        cmocka_unit_test(facts_stated_once_are_asked_by_their_names),
        cmocka_unit_test(other_labels_end_at_the_prior),
        cmocka_unit_test(lambda_is_the_product_of_both),
        cmocka_unit_test(trust_rises_from_a_fifth_to_a_half),
        cmocka_unit_test(what_the_base_knows_was_not_taught),
        cmocka_unit_test(a_value_is_known_from_half_a_probability_on),
        cmocka_unit_test(a_sample_is_looked_at),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
