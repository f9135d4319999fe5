/* The worker pool: every share runs exactly once, in back-to-back runs and after the workers have
 * parked; creation and destruction do not hang. Meant for the tsan preset as well. */
#include "kernels/cpu/pool.h"
#include "server/base/clock.h"
#include "tests/unit/kernels_fixture.h"

struct tally {
    uint64_t done[8];
    uint32_t n_worker;
    uint64_t sum;
    uint32_t item[1000];
};

static void count_share(void *arg, uint32_t worker, uint32_t n_worker)
{
    struct tally *t = arg;
    uint64_t lo, hi;
    t->done[worker]++;
    if (worker == 0)
        t->n_worker = n_worker;
    pool_share(ARRAY_COUNT(t->item), worker, n_worker, &lo, &hi);
    for (uint64_t i = lo; i < hi; i++)
        t->item[i]++;
}

static void test_runs(void **state)
{
    (void)state;
    for (uint32_t size = 1; size <= 5; size++) {
        struct pool *p;
        struct tally t = {0};
        assert_int_equal(pool_create(&p, size, false, NULL), STATUS_OK);
        assert_int_equal(pool_size(p), size);
        for (uint32_t i = 0; i < 3000; i++) {
            pool_run(p, count_share, &t);
            if (i % 500 == 499)
                clock_sleep_ms(1); /* long enough to park */
        }
        assert_int_equal(t.n_worker, size);
        for (uint32_t w = 0; w < size; w++)
            assert_int_equal(t.done[w], 3000);
        for (uint32_t i = 0; i < ARRAY_COUNT(t.item); i++)
            assert_int_equal(t.item[i], 3000);
        pool_destroy(p);
    }
}

static void test_create_destroy(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 50; i++) {
        struct pool *p;
        struct tally t = {0};
        assert_int_equal(pool_create(&p, 1 + i % 6, i % 2, NULL), STATUS_OK);
        if (i & 1)
            pool_run(p, count_share, &t);
        if (i % 10 == 0)
            clock_sleep_ms(1);
        pool_destroy(p);
    }
    pool_destroy(NULL);
}

static void test_shares(void **state)
{
    (void)state;
    for (uint32_t n = 0; n < 40; n++)
        for (uint32_t w = 1; w < 9; w++) {
            uint64_t at = 0, lo, hi;
            for (uint32_t i = 0; i < w; i++, at = hi) {
                pool_share(n, i, w, &lo, &hi);
                assert_true(lo == at && hi >= lo && hi - lo <= n / w + 1);
            }
            assert_true(at == n);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_create_destroy),
        cmocka_unit_test(test_shares),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
