/* The page pool against a naive model of it: random allocs, shares, releases and lookups. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "server/base/mem.h"
#include "server/engine/kv.h"

#define PAGES 37

struct pool {
    struct kv_pool kv;
    struct kv_page page[PAGES];
    uint32_t bucket[64];
};

static void pool_init(struct pool *p)
{
    assert_true(kv_bucket_count(PAGES) <= 64);
    kv_init(&p->kv, p->page, p->bucket, PAGES);
}

static void key_of(uint8_t key[KV_KEY_BYTES], uint32_t n)
{
    int32_t tokens[KV_PAGE_TOK] = {(int32_t)n};
    memset(key, 0, KV_KEY_BYTES);
    kv_key_next(key, tokens);
}

static uint32_t draw(uint64_t *state, uint32_t below)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*state >> 33) % below;
}

static void test_kv_alloc_hands_out_every_page_once_then_none(void **state)
{
    struct pool p;
    bool seen[PAGES] = {false};
    pool_init(&p);
    for (uint32_t i = 0; i < PAGES; i++) {
        uint32_t page = kv_alloc(&p.kv);
        assert_in_range(page, 0, PAGES - 1);
        assert_false(seen[page]);
        seen[page] = true;
    }
    assert_int_equal(kv_alloc(&p.kv), KV_PAGE_NONE);
    assert_int_equal(kv_free_count(&p.kv), 0);
    kv_unref(&p.kv, 5);
    assert_int_equal(kv_alloc(&p.kv), 5);
    kv_verify(&p.kv, NULL);
}

static void test_kv_released_keyed_page_is_found_until_it_is_reused(void **state)
{
    struct pool p;
    uint8_t key[KV_KEY_BYTES];
    pool_init(&p);
    uint32_t page = kv_alloc(&p.kv);
    key_of(key, 1);
    kv_set_key(&p.kv, page, key);
    kv_unref(&p.kv, page);
    assert_int_equal(kv_find(&p.kv, key), page);
    kv_unref(&p.kv, page);
    /* The unkeyed pages go first: it survives all allocations but the last. */
    for (uint32_t i = 0; i + 1 < PAGES; i++)
        assert_int_not_equal(kv_alloc(&p.kv), page);
    assert_int_equal(kv_find(&p.kv, key), page);
    kv_unref(&p.kv, page);
    assert_int_equal(kv_alloc(&p.kv), page);
    assert_int_equal(kv_find(&p.kv, key), KV_PAGE_NONE);
    kv_verify(&p.kv, NULL);
}

static void test_kv_oldest_released_is_reused_first(void **state)
{
    struct pool p;
    uint32_t page[PAGES];
    uint8_t key[KV_KEY_BYTES];
    pool_init(&p);
    for (uint32_t i = 0; i < PAGES; i++) {
        page[i] = kv_alloc(&p.kv);
        key_of(key, i);
        kv_set_key(&p.kv, page[i], key);
    }
    for (uint32_t i = 0; i < PAGES; i++)
        kv_unref(&p.kv, page[i]);
    key_of(key, 0); /* used again: now the youngest */
    kv_unref(&p.kv, kv_find(&p.kv, key));
    for (uint32_t i = 1; i < PAGES; i++)
        assert_int_equal(kv_alloc(&p.kv), page[i]);
    assert_int_equal(kv_alloc(&p.kv), page[0]);
}

static void test_kv_second_page_of_a_key_stays_private(void **state)
{
    struct pool p;
    uint8_t key[KV_KEY_BYTES];
    pool_init(&p);
    uint32_t a = kv_alloc(&p.kv), b = kv_alloc(&p.kv);
    key_of(key, 9);
    kv_set_key(&p.kv, a, key);
    kv_set_key(&p.kv, b, key);
    assert_int_equal(kv_find(&p.kv, key), a);
    assert_false(p.page[b].keyed);
    kv_verify(&p.kv, NULL);
}

static void test_kv_keys_separate_composition_salt_and_every_token(void **state)
{
    uint8_t comp[32] = {1}, salt[16] = {2}, a[KV_KEY_BYTES], b[KV_KEY_BYTES];
    int32_t tokens[KV_PAGE_TOK] = {1, 2, 3};
    kv_key_root(a, comp, salt);
    kv_key_next(a, tokens);
    kv_key_root(b, comp, salt);
    kv_key_next(b, tokens);
    assert_memory_equal(a, b, KV_KEY_BYTES);
    salt[15] ^= 1;
    kv_key_root(b, comp, salt);
    kv_key_next(b, tokens);
    assert_memory_not_equal(a, b, KV_KEY_BYTES);
    salt[15] ^= 1;
    comp[31] ^= 1;
    kv_key_root(b, comp, salt);
    kv_key_next(b, tokens);
    assert_memory_not_equal(a, b, KV_KEY_BYTES);
    comp[31] ^= 1;
    for (uint32_t i = 0; i < KV_PAGE_TOK; i++) {
        tokens[i] ^= 1;
        kv_key_root(b, comp, salt);
        kv_key_next(b, tokens);
        assert_memory_not_equal(a, b, KV_KEY_BYTES);
        tokens[i] ^= 1;
    }
}

/* The model: holders by page, key number by page (or -1). */
static void random_walk(uint64_t seed)
{
    struct pool p;
    uint32_t holders[PAGES] = {0};
    int32_t key_no[PAGES];
    uint8_t key[KV_KEY_BYTES];
    uint64_t rng = seed;
    pool_init(&p);
    memset(key_no, -1, sizeof(key_no));
    for (uint32_t step = 0; step < 4000; step++) {
        uint32_t what = draw(&rng, 5), page = draw(&rng, PAGES), n = draw(&rng, 30);
        if (what == 0) {
            page = kv_alloc(&p.kv);
            if (page == KV_PAGE_NONE)
                continue;
            assert_int_equal(holders[page], 0);
            holders[page] = 1;
            key_no[page] = -1;
        } else if (what == 1 && holders[page] > 0) {
            kv_ref(&p.kv, page);
            holders[page]++;
        } else if (what == 2 && holders[page] > 0) {
            kv_unref(&p.kv, page);
            holders[page]--;
        } else if (what == 3 && holders[page] > 0 && key_no[page] < 0) {
            bool taken = false;
            for (uint32_t i = 0; i < PAGES; i++)
                taken |= key_no[i] == (int32_t)n;
            key_of(key, n);
            kv_set_key(&p.kv, page, key);
            if (!taken)
                key_no[page] = (int32_t)n;
        } else if (what == 4) {
            uint32_t want = KV_PAGE_NONE;
            for (uint32_t i = 0; i < PAGES; i++)
                want = key_no[i] == (int32_t)n ? i : want;
            key_of(key, n);
            assert_int_equal(kv_find(&p.kv, key), want);
            if (want != KV_PAGE_NONE)
                holders[want]++;
        }
        kv_verify(&p.kv, holders);
    }
}

static void test_kv_random_walk_agrees_with_the_model(void **state)
{
    for (uint64_t seed = 1; seed <= 8; seed++)
        random_walk(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kv_alloc_hands_out_every_page_once_then_none),
        cmocka_unit_test(test_kv_released_keyed_page_is_found_until_it_is_reused),
        cmocka_unit_test(test_kv_oldest_released_is_reused_first),
        cmocka_unit_test(test_kv_second_page_of_a_key_stays_private),
        cmocka_unit_test(test_kv_keys_separate_composition_salt_and_every_token),
        cmocka_unit_test(test_kv_random_walk_agrees_with_the_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
