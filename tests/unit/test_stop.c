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
#include "tests/unit/text_fixture.h"

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
    assert_int_equal(stop_hold("some text E", 11, stop, 2), 1);
    assert_false(stop_feed(&m, stop, 2, "N", 1, &hit));
    assert_int_equal(stop_hold("some text EN", 12, stop, 2), 2);
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

static void test_stop_hold_is_the_longest_begin_at_the_end(void **state)
{
    struct request_stop stop[2];
    (void)state;
    add_stop(&stop[0], "aab");
    add_stop(&stop[1], "baaa");
    assert_int_equal(stop_hold("", 0, stop, 1), 0);
    assert_int_equal(stop_hold("a", 1, stop, 1), 1);
    assert_int_equal(stop_hold("aaaa", 4, stop, 1), 2);
    assert_int_equal(stop_hold("aaax", 4, stop, 1), 0);
    assert_int_equal(stop_hold("xbaa", 4, stop, 2), 3);
    assert_int_equal(stop_hold("aab", 3, stop, 1), 0); /* the engine passed over it */
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
    assert_int_equal(stop_hold(text, sizeof(text) - 1, stop, 1), sizeof(text) - 1);
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

/* SentencePiece with byte fallback: F0 9F A6 8A is a fox; id 6 is a special token. */
static struct tokenizer *load_fallback(void)
{
    static const struct tiny_parts parts = {
        .model = "{\"vocab\":{\"<0xF0>\":0,\"<0x9F>\":1,\"<0xA6>\":2,\"<0x8A>\":3,\"ab\":4,"
                 "\"<0x61>\":5},\"merges\":[]}",
        .added = "[{\"id\":6,\"content\":\"<e>\",\"special\":true}]",
        .decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},{\"type\":"
                   "\"Fuse\"}]}"};
    struct errtext err = ERRTEXT_INIT;
    struct tokenizer *t = NULL;
    if (tiny_load(&parts, &t, &err))
        fail_msg("%s", err.text);
    return t;
}

struct search_case {
    const char *ids, *stop; /* a digit for each token */
    bool show_special;
    int tokens, begin; /* after how many tokens, -1: never; where in the text */
};

static void test_stop_is_looked_for_in_the_text_that_shows(void **state)
{
    static const struct search_case cases[] = {
        {"464", "<e>", true, 2, 2},
        {"464", "<e>", false, -1, 0},
        {"464", "b<", true, 2, 1},
        {"464", "bab", false, 3, 1}, /* what is hidden does not part the text */
        {"40123", "\xF0\x9F\xA6\x8A", false, 5, 2},
        {"4012364",
         "\xF0\x9F\xA6\x8A"
         "ab",
         false, 7, 2},
        {"401240123", "\xF0\x9F\xA6\x8A", false, 9, 13}, /* after three marks */
        {"012354", "aa", false, 6, 4},
        {"0123504", "aa", false, -1, 0}, /* the bad byte at its end spoils the run */
        {"0123504",
         "\xEF\xBF\xBD"
         "a",
         false, 7, 15},
        {"4014", "b\xEF\xBF\xBD", false, 4, 1}};
    struct tokenizer *t = load_fallback();
    struct buf text;
    (void)state;
    buf_init(&text, 4096);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        const struct search_case *c = &cases[i];
        struct request_stop stop[1];
        struct request_params p = {.stop = stop, .stop_count = 1};
        struct stop_search s;
        struct stop_hit hit = {0};
        int at = -1;
        add_stop(&stop[0], c->stop);
        stop_search_init(&s, t, c->show_special);
        for (int k = 0; c->ids[k] && at < 0; k++)
            at = stop_search_feed(&s, &p, c->ids[k] - '0', true, &text, &hit) ? k + 1 : -1;
        if (at != c->tokens || (int)hit.begin != c->begin)
            fail_msg("case %zu: after %d tokens at %d", i, at, (int)hit.begin);
    }
    buf_fini(&text);
    tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_hit_across_pieces_gives_index_and_begin),
        cmocka_unit_test(test_stop_first_end_wins_then_the_longest),
        cmocka_unit_test(test_stop_hold_is_the_longest_begin_at_the_end),
        cmocka_unit_test(test_stop_of_the_longest_length_after_a_long_text),
        cmocka_unit_test(test_stop_random_texts_and_cuts_agree_with_the_search),
        cmocka_unit_test(test_stop_is_looked_for_in_the_text_that_shows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
