/* Streaming: nothing but complete characters comes out, and in the end the same text as from the
 * whole-text decoder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/text_fixture.h"

#define MARK "\xEF\xBF\xBD"
#define EURO "\xE2\x82\xAC"

struct stream {
    struct detok d;
    struct buf out;
};

static void start(struct stream *s, const struct tokenizer *t, bool skip_special)
{
    detok_init(&s->d, t, skip_special);
    buf_init(&s->out, 1 << 16);
    buf_puts(&s->out, "");
}

static void expect_push(struct stream *s, int32_t id, const char *all)
{
    detok_push(&s->d, id, &s->out);
    assert_string_equal(s->out.data ? s->out.data : "", all);
}

static struct tokenizer *load(const struct tiny_parts *parts)
{
    struct errtext err = ERRTEXT_INIT;
    struct tokenizer *t = NULL;
    if (tiny_load(parts, &t, &err))
        fail_msg("%s", err.text);
    return t;
}

/* E2 82 AC is the euro sign; its bytes are spelled U+00E2 U+0124 U+00AC. */
static void test_byte_level(void **state)
{
    static const struct tiny_parts parts = {
        .model = "{\"vocab\":{\"\\u00e2\":0,\"\\u0124\":1,\"\\u00ac\":2,\"x\":3,"
                 "\"\\u0124\\u00acy\\u00e2\":4,\"\\u0120z\":5},\"merges\":[]}",
        .added = "[{\"id\":6,\"content\":\"<e>\",\"special\":true}]",
        .decoder = "{\"type\":\"ByteLevel\"}"};
    struct tokenizer *t = load(&parts);
    struct stream s;
    (void)state;
    start(&s, t, true);
    expect_push(&s, 0, "");
    expect_push(&s, 1, "");
    expect_push(&s, 2, "\xE2\x82\xAC");
    expect_push(&s, 0, "\xE2\x82\xAC");
    expect_push(&s, 4, "\xE2\x82\xAC\xE2\x82\xACy");
    expect_push(&s, 6, "\xE2\x82\xAC\xE2\x82\xACy"); /* a special token does not end the tail */
    expect_push(&s, 1, "\xE2\x82\xAC\xE2\x82\xACy");
    expect_push(&s, 3, "\xE2\x82\xAC\xE2\x82\xACy\xEF\xBF\xBDx");
    expect_push(&s, 99, "\xE2\x82\xAC\xE2\x82\xACy\xEF\xBF\xBDx");
    expect_push(&s, -1, "\xE2\x82\xAC\xE2\x82\xACy\xEF\xBF\xBDx");
    buf_clear(&s.out);
    expect_push(&s, 5, " z");
    expect_push(&s, 0, " z");
    detok_finish(&s.d, &s.out);
    assert_string_equal(s.out.data, " z\xEF\xBF\xBD");
    detok_finish(&s.d, &s.out);
    assert_string_equal(s.out.data, " z\xEF\xBF\xBD");
    buf_fini(&s.out);
    start(&s, t, false);
    expect_push(&s, 6, "<e>");
    buf_fini(&s.out);
    tokenizer_free(t);
}

#define LLAMA_DECODER                                                                              \
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"          \
    "\"\\u2581\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":"   \
    "\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}"

static void test_byte_fallback(void **state)
{
    static const struct tiny_parts parts = {
        .model = "{\"vocab\":{\"<0xE2>\":0,\"<0x82>\":1,\"<0xAC>\":2,\"\\u2581a\":3,\"b\":4},"
                 "\"merges\":[]}",
        .decoder = LLAMA_DECODER};
    struct tokenizer *t = load(&parts);
    struct stream s;
    size_t len;
    (void)state;
    start(&s, t, true);
    expect_push(&s, 3, "a"); /* the first blank of the text is stripped */
    expect_push(&s, 3, "a a");
    expect_push(&s, 0, "a a");
    expect_push(&s, 1, "a a");
    expect_push(&s, 2, "a a\xE2\x82\xAC");
    expect_push(&s, 0, "a a\xE2\x82\xAC");
    expect_push(&s, 1, "a a\xE2\x82\xAC");
    expect_push(&s, 4, "a a" MARK MARK MARK MARK MARK "b"); /* all of the run, a mark per byte */
    buf_fini(&s.out);
    assert_memory_equal(tokenizer_token_bytes(t, 0, &len), "\xE2", 1);
    assert_memory_equal(tokenizer_token_bytes(t, 3, &len), " a", 2);
    start(&s, t, true);
    detok_init_continued(&s.d, t, true);
    expect_push(&s, 3, " a"); /* after a prompt the blank stays */
    buf_fini(&s.out);
    tokenizer_free(t);
}

/* All of a run is text, or none of it, as in the whole-text decoder: the rest is taken back. */
static void test_a_run_of_bytes_is_text_or_marks(void **state)
{
    static const struct tiny_parts parts = {
        .model = "{\"vocab\":{\"<0xE2>\":0,\"<0x82>\":1,\"<0xAC>\":2,\"\\u2581a\":3,\"b\":4,"
                 "\"<0x20>\":5},\"merges\":[]}",
        .added = "[{\"id\":6,\"content\":\"<e>\",\"special\":true}]",
        .decoder = LLAMA_DECODER};
    static const char *const runs[] = {"012",   "01201", "0120124", "012014",       "2012",
                                       "5012",  "50124", "512",     "40162",        "4012600",
                                       "01212", "555",   "0",       "301260126012", "31012"};
    struct tokenizer *t = load(&parts);
    (void)state;
    struct stream s;
    start(&s, t, true);
    expect_push(&s, 0, "");
    expect_push(&s, 1, "");
    expect_push(&s, 2, EURO);
    assert_int_equal(s.d.loose, 3);
    expect_push(&s, 1, MARK MARK MARK MARK);
    assert_int_equal(s.d.taken, 3);
    assert_int_equal(s.d.lead, 9);
    expect_push(&s, 0, MARK MARK MARK MARK MARK);
    expect_push(&s, 4, MARK MARK MARK MARK MARK "b");
    buf_fini(&s.out);
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
        for (int skip = 0; skip < 2; skip++) {
            int32_t ids[32];
            size_t n = strlen(runs[i]);
            struct buf whole;
            buf_init(&whole, 1 << 10);
            start(&s, t, skip);
            for (size_t k = 0; k < n; k++) {
                ids[k] = runs[i][k] - '0';
                detok_push(&s.d, ids[k], &s.out);
            }
            detok_finish(&s.d, &s.out);
            assert_int_equal(tokenizer_decode(t, ids, n, skip, &whole, NULL), STATUS_OK);
            assert_string_equal(s.out.data, whole.data ? whole.data : "");
            buf_fini(&whole);
            buf_fini(&s.out);
        }
    }
    tokenizer_free(t);
}

static void test_first_token_rules(void **state)
{
    static const struct tiny_parts metaspace = {
        .model = "{\"vocab\":{\"\\u2581a\":0,\"\\u2581\":1},\"merges\":[]}",
        .decoder = "{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":"
                   "\"always\",\"split\":true}"};
    static const struct tiny_parts none = {.model = "{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]}"};
    struct tokenizer *t = load(&metaspace);
    struct stream s;
    (void)state;
    start(&s, t, true);
    expect_push(&s, 0, "a");
    expect_push(&s, 0, "a a");
    expect_push(&s, 1, "a a ");
    buf_fini(&s.out);
    tokenizer_free(t);
    t = load(&none); /* without a decoder, tokens are joined by blanks */
    start(&s, t, true);
    expect_push(&s, 0, "a");
    expect_push(&s, 1, "a b");
    buf_fini(&s.out);
    tokenizer_free(t);
}

static void test_refused_decoder(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct tokenizer *t = NULL;
    struct tiny_parts parts = {
        .decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Strip\","
                   "\"content\":\" \",\"start\":0,\"stop\":1}]}"};
    (void)state;
    assert_int_equal(tiny_load(&parts, &t, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "Strip"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_byte_level), cmocka_unit_test(test_byte_fallback),
        cmocka_unit_test(test_a_run_of_bytes_is_text_or_marks),
        cmocka_unit_test(test_first_token_rules), cmocka_unit_test(test_refused_decoder)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
