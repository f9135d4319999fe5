/* Stop strings: the same hit however the bytes are cut, checked against a search of whole texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "server/base/check.h"
#include "server/engine/stop.h"

static void add_stop(struct request_stop *s, const char *text)
{
    s->len = (uint32_t)strlen(text);
    memcpy(s->text, text, s->len);
}

static void test_stop_hit_across_pieces_gives_index_and_begin(void **state)
{
    struct request_stop stop[2];
    struct stop_match m;
    struct stop_hit hit;
    add_stop(&stop[0], "nothing");
    add_stop(&stop[1], "END");
    stop_init(&m);
    assert_false(stop_feed(&m, stop, 2, "some text E", 11, &hit));
    assert_int_equal(stop_hold(&m, stop, 2), 1);
    assert_false(stop_feed(&m, stop, 2, "N", 1, &hit));
    assert_int_equal(stop_hold(&m, stop, 2), 2);
    assert_true(stop_feed(&m, stop, 2, "D and more", 10, &hit));
    assert_int_equal(hit.index, 1);
    assert_int_equal(hit.begin, 10);
}

static void test_stop_first_end_wins_then_the_longest(void **state)
{
    struct request_stop stop[3];
    struct stop_match m;
    struct stop_hit hit;
    add_stop(&stop[0], "bc");
    add_stop(&stop[1], "abc");
    add_stop(&stop[2], "abcd");
    stop_init(&m);
    assert_true(stop_feed(&m, stop, 3, "xabcd", 5, &hit));
    assert_int_equal(hit.index, 1);
    assert_int_equal(hit.begin, 1);
}

static void test_stop_hold_is_released_when_the_begin_fails(void **state)
{
    struct request_stop stop[1];
    struct stop_match m;
    struct stop_hit hit;
    add_stop(&stop[0], "aab");
    stop_init(&m);
    assert_false(stop_feed(&m, stop, 1, "aa", 2, &hit));
    assert_int_equal(stop_hold(&m, stop, 1), 2);
    assert_false(stop_feed(&m, stop, 1, "a", 1, &hit));
    assert_int_equal(stop_hold(&m, stop, 1), 2);
    assert_false(stop_feed(&m, stop, 1, "x", 1, &hit));
    assert_int_equal(stop_hold(&m, stop, 1), 0);
}

static void test_stop_of_the_longest_length_after_a_long_text(void **state)
{
    struct request_stop stop[1];
    struct stop_match m;
    struct stop_hit hit = {0};
    char text[REQUEST_STOP_BYTES_MAX];
    memset(text, 'y', sizeof(text));
    text[0] = 'z';
    stop[0].len = sizeof(text);
    memcpy(stop[0].text, text, sizeof(text));
    stop_init(&m);
    for (int i = 0; i < 1000; i++)
        assert_false(stop_feed(&m, stop, 1, "z", 1, &hit));
    assert_false(stop_feed(&m, stop, 1, text + 1, sizeof(text) - 2, &hit));
    assert_int_equal(stop_hold(&m, stop, 1), sizeof(text) - 1);
    assert_true(stop_feed(&m, stop, 1, "y", 1, &hit));
    assert_int_equal(hit.begin, 999);
}

/* The slow truth: try every end in turn. */
static bool search(const char *text, size_t len, const struct request_stop *stop, uint32_t n,
                   struct stop_hit *hit)
{
    for (size_t end = 1; end <= len; end++) {
        uint32_t best = 0;
        for (uint32_t k = 0; k < n; k++) {
            if (stop[k].len > end || stop[k].len <= best ||
                memcmp(text + end - stop[k].len, stop[k].text, stop[k].len) != 0)
                continue;
            best = stop[k].len;
            *hit = (struct stop_hit){.index = k, .begin = end - best};
        }
        if (best)
            return true;
    }
    return false;
}

static void test_stop_random_texts_and_cuts_agree_with_the_search(void **state)
{
    uint64_t rng = 77;
    for (uint32_t round = 0; round < 20000; round++) {
        struct request_stop stop[3];
        struct stop_match m;
        struct stop_hit want = {0}, got = {0};
        char text[40];
        size_t fed = 0;
        bool hit = false;
        for (uint32_t k = 0; k < 3; k++) {
            stop[k].len = 1 + (uint32_t)((rng = rng * 6364136223846793005ull + 1) >> 40) % 5;
            for (uint32_t i = 0; i < stop[k].len; i++)
                stop[k].text[i] =
                    (char)('a' + ((rng = rng * 6364136223846793005ull + 1) >> 40) % 3);
        }
        for (uint32_t i = 0; i < sizeof(text); i++)
            text[i] = (char)('a' + ((rng = rng * 6364136223846793005ull + 1) >> 40) % 4);
        bool expected = search(text, sizeof(text), stop, 3, &want);
        stop_init(&m);
        while (fed < sizeof(text) && !hit) {
            size_t n = 1 + ((rng = rng * 6364136223846793005ull + 1) >> 40) % 7;
            n = MIN(n, sizeof(text) - fed);
            hit = stop_feed(&m, stop, 3, text + fed, n, &got);
            fed += n;
        }
        assert_int_equal(hit, expected);
        assert_int_equal(got.index, want.index);
        assert_int_equal(got.begin, want.begin);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_hit_across_pieces_gives_index_and_begin),
        cmocka_unit_test(test_stop_first_end_wins_then_the_longest),
        cmocka_unit_test(test_stop_hold_is_released_when_the_begin_fails),
        cmocka_unit_test(test_stop_of_the_longest_length_after_a_long_text),
        cmocka_unit_test(test_stop_random_texts_and_cuts_agree_with_the_search),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
