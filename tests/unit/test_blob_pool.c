/* The pool against a map of its granules: what is out never overlaps, what is free is found, the
 * shortest run that is long enough is taken. The memory is never touched, so there is none. */
#include "server/adapter/blob_pool.h"
#include "server/base/philox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { COUNT = 48, BLOBS = 12, STEPS = 20000 };
#define GRANULE 4096ull
#define BASE    ((char *)(uintptr_t)0x10000000)

struct model {
    struct blob_pool *pool;
    uint8_t owner[COUNT]; /* 0: free; of each granule */
    void *blob[BLOBS + 1];
    uint32_t kept; /* bit: its owner stays */
};

static uint32_t draw(uint32_t step, uint32_t what, uint32_t below)
{
    uint32_t out[4];
    philox4x32(out, (const uint32_t[4]){step, what, 0, 0}, 11);
    return out[0] % below;
}

/* Where a run of count should begin: the shortest that holds it, the first of those. COUNT: none.
 */
static uint32_t expected(const struct model *m, uint32_t count)
{
    uint32_t best = COUNT, best_length = COUNT + 1;
    for (uint32_t i = 0, end; i < COUNT; i = end + 1) {
        for (end = i; end < COUNT && m->owner[end] == 0; end++)
            continue;
        if (end - i >= count && end - i < best_length) {
            best = i;
            best_length = end - i;
        }
    }
    return best;
}

static bool stays(const void *arg, uint32_t owner)
{
    return ((const struct model *)arg)->kept >> owner & 1;
}

static bool could_hold(const struct model *m, uint32_t count)
{
    uint32_t span = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        span = m->owner[i] && stays(m, m->owner[i]) ? 0 : span + 1;
        if (span >= count)
            return true;
    }
    return false;
}

static void take(struct model *m, uint32_t id, uint64_t bytes)
{
    uint32_t count = bytes ? (uint32_t)((bytes + GRANULE - 1) / GRANULE) : 1;
    uint32_t at = expected(m, count);
    assert_int_equal(blob_pool_round(m->pool, bytes), count * GRANULE);
    char *got = blob_pool_take(m->pool, bytes, id);
    if (at == COUNT) {
        assert_null(got);
        return;
    }
    assert_ptr_equal(got, BASE + at * GRANULE);
    m->blob[id] = got;
    for (uint32_t i = at; i < at + count; i++)
        m->owner[i] = (uint8_t)id;
}

static void give(struct model *m, uint32_t id)
{
    blob_pool_give(m->pool, m->blob[id]);
    m->blob[id] = NULL;
    for (uint32_t i = 0; i < COUNT; i++)
        m->owner[i] = m->owner[i] == id ? 0 : m->owner[i];
}

static void check_used(const struct model *m)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < COUNT; i++)
        used += m->owner[i] ? GRANULE : 0;
    assert_int_equal(blob_pool_used(m->pool), used);
}

static void test_takes_and_gives_as_the_map_says(void **state)
{
    struct model m = {.pool = blob_pool_create(BASE, COUNT * GRANULE + 100, GRANULE, BLOBS)};
    uint32_t refused = 0;
    (void)state;
    assert_int_equal(blob_pool_bytes(m.pool), COUNT * GRANULE);
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t id = 1 + draw(step, 0, BLOBS);
        if (m.blob[id])
            give(&m, id);
        else
            take(&m, id, draw(step, 1, 9 * GRANULE));
        refused += m.blob[id] == NULL;
        check_used(&m);
        m.kept = draw(step, 2, 1u << 16) << 1;
        uint32_t want = 1 + draw(step, 3, COUNT + 2);
        assert_int_equal(blob_pool_could_hold(m.pool, want * GRANULE, stays, &m),
                         could_hold(&m, want));
    }
    assert_true(refused > STEPS / 2); /* gives, and takes that found no room */
    for (uint32_t id = 1; id <= BLOBS; id++)
        if (m.blob[id])
            give(&m, id);
    take(&m, 1, COUNT * GRANULE); /* all runs were joined again */
    assert_non_null(m.blob[1]);
    blob_pool_destroy(m.pool);
}

/* All blobs that may be out, and free runs between them: every other one went and came back
 * smaller. */
static void test_free_runs_between_all_blobs(void **state)
{
    struct model m = {.pool = blob_pool_create(BASE, COUNT * GRANULE, GRANULE, COUNT / 2)};
    void *blob[COUNT];
    (void)state;
    for (uint32_t i = 0; i < COUNT / 2; i++)
        blob[i] = blob_pool_take(m.pool, 2 * GRANULE, i);
    assert_null(blob_pool_take(m.pool, 0, COUNT)); /* full */
    for (uint32_t i = 0; i < COUNT / 2; i += 2)
        blob_pool_give(m.pool, blob[i]);
    for (uint32_t i = 0; i < COUNT / 2; i += 2) { /* halves of what is free */
        blob[i] = blob_pool_take(m.pool, 1, i);
        assert_non_null(blob[i]);
    }
    assert_int_equal(blob_pool_used(m.pool), COUNT / 4 * 3 * GRANULE);
    for (uint32_t i = COUNT / 2; i-- > 0;)
        blob_pool_give(m.pool, blob[i]);
    assert_int_equal(blob_pool_used(m.pool), 0);
    assert_ptr_equal(blob_pool_take(m.pool, COUNT * GRANULE, 0), BASE);
    blob_pool_destroy(m.pool);
}

static void test_less_than_a_granule_holds_nothing(void **state)
{
    struct blob_pool *p = blob_pool_create(BASE, GRANULE - 1, GRANULE, 1);
    (void)state;
    assert_int_equal(blob_pool_bytes(p), 0);
    assert_null(blob_pool_take(p, 1, 0));
    assert_false(blob_pool_could_hold(p, 1, stays, NULL));
    blob_pool_destroy(p);
    blob_pool_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_takes_and_gives_as_the_map_says),
        cmocka_unit_test(test_free_runs_between_all_blobs),
        cmocka_unit_test(test_less_than_a_granule_holds_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
