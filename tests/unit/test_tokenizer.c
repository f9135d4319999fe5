/* Ids and text against goldens written with the `tokenizers` package (one file per kind of
 * tokenizer, tests/oracle/text_tokenizer.py), refusals by name, limits, and texts made to be slow.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/base/check.h"
#include "server/text/unicode.h"
#include "tests/unit/text_fixture.h"

static void check_text(const char *what, const json_t *row, const char *key, const struct buf *got)
{
    const json_t *want = json_object_get(row, key);
    size_t len = json_string_length(want);
    if (len == got->len && (len == 0 || memcmp(json_string_value(want), got->data, len) == 0))
        return;
    fail_msg("%s of '%s': want '%s', got '%s'", what,
             json_string_value(json_object_get(row, "text")), json_string_value(want), got->data);
}

static void check_decode(const struct tokenizer *t, const json_t *row, const struct token_list *ids)
{
    struct errtext err = ERRTEXT_INIT;
    struct buf text, kept, stream;
    struct detok d;
    buf_init(&text, 1 << 20);
    buf_init(&kept, 1 << 20);
    buf_init(&stream, 1 << 20);
    assert_int_equal(tokenizer_decode(t, ids->ids, ids->n, true, &text, &err), STATUS_OK);
    assert_int_equal(tokenizer_decode(t, ids->ids, ids->n, false, &kept, &err), STATUS_OK);
    detok_init(&d, t, true);
    for (size_t i = 0; i < ids->n; i++)
        detok_push(&d, ids->ids[i], &stream);
    detok_finish(&d, &stream);
    check_text("decode", row, "decoded", &text);
    check_text("decode with special tokens", row, "kept", &kept);
    check_text("stream", row, "decoded", &stream);
    buf_fini(&text);
    buf_fini(&kept);
    buf_fini(&stream);
}

static uint32_t bounded_count; /* rows of tokenizers that bound the bytes of an id */

static void check_row(const struct tokenizer *t, const json_t *row)
{
    struct errtext err = ERRTEXT_INIT;
    struct token_list ids = {0};
    const json_t *text = json_object_get(row, "text"), *want = json_object_get(row, "ids");
    unsigned flags = (json_is_true(json_object_get(row, "special")) ? TOKENIZE_ADD_SPECIAL : 0) |
                     (json_is_true(json_object_get(row, "parse")) ? TOKENIZE_PARSE_SPECIAL : 0);
    enum status st =
        tokenizer_encode(t, json_string_value(text), json_string_length(text), flags, &ids, &err);
    if (st)
        fail_msg("'%s': %s", json_string_value(text), err.text);
    size_t per_id = tokenizer_bytes_per_id_max(t);
    bounded_count += per_id != SIZE_MAX;
    if (per_id != SIZE_MAX && json_string_length(text) > ids.n * per_id)
        fail_msg("'%s': %zu ids for more than %zu bytes each", json_string_value(text), ids.n,
                 per_id);
    if (ids.n != json_array_size(want))
        fail_msg("'%s': %zu ids, want %zu", json_string_value(text), ids.n, json_array_size(want));
    for (size_t i = 0; i < ids.n; i++)
        assert_int_equal(ids.ids[i], json_integer_value(json_array_get(want, i)));
    check_decode(t, row, &ids);
    mem_free(ids.ids);
}

static void test_goldens(void **state)
{
    static const char *const kinds[] = {"gpt2",      "gpt2_prefix", "llama3", "qwen2",   "tekken",
                                        "gpt4o",     "deepseek",    "llama2", "mistral", "gemma",
                                        "metaspace", "plain",       "splits", "added",   "blanks"};
    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
        char name[64];
        struct errtext err = ERRTEXT_INIT;
        struct tokenizer *t = NULL;
        snprintf(name, sizeof(name), "tokenizer/%s.json", kinds[k]);
        json_t *golden = golden_load(name);
        char *spec = json_dumps(json_object_get(golden, "tokenizer"), 0);
        if (tokenizer_load(&t, spec, strlen(spec), &err))
            fail_msg("%s: %s", kinds[k], err.text);
        const json_t *rows = json_object_get(golden, "rows");
        assert_true(json_array_size(rows) >= 100);
        for (size_t i = 0; i < json_array_size(rows); i++)
            check_row(t, json_array_get(rows, i));
        tokenizer_free(t);
        free(spec); /* lint: waive banned - jansson's memory */
        json_decref(golden);
    }
    assert_true(bounded_count > 100);
}

static void test_refusals(void **state)
{
#define BPE(more)       "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1}," more "}"
#define ADDED(id, more) "[{\"id\":" id ",\"content\":" more "}]"
    static const struct {
        struct tiny_parts parts;
        enum status st;
        const char *says;
    } cases[] = {
        {{.normalizer = "{\"type\":\"BertNormalizer\"}"}, STATUS_UNSUPPORTED, "BertNormalizer"},
        {{.normalizer = "{\"type\":\"Precompiled\"}"}, STATUS_UNSUPPORTED, "Precompiled"},
        {{.normalizer = "7"}, STATUS_INVALID, "normalizer"},
        {{.pre = "{\"type\":\"UnicodeScripts\"}"}, STATUS_UNSUPPORTED, "UnicodeScripts"},
        {{.pre = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}"},
         STATUS_INVALID,
         "regular expression '('"},
        {{.pre =
              "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\b\"},\"behavior\":\"Isolated\"}"},
         STATUS_UNSUPPORTED,
         "this escape"},
        {{.pre = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Sideways\"}"},
         STATUS_UNSUPPORTED,
         "Sideways"},
        {{.pre = "{\"type\":\"Metaspace\",\"replacement\":\"__\"}"}, STATUS_INVALID, "replacement"},
        {{.decoder = "{\"type\":\"WordPiece\"}"}, STATUS_UNSUPPORTED, "WordPiece"},
        {{.post = "{\"type\":\"BertProcessing\"}"}, STATUS_UNSUPPORTED, "BertProcessing"},
        {{.model = "{\"type\":\"Unigram\",\"vocab\":[]}"}, STATUS_UNSUPPORTED, "Unigram"},
        {{.model = BPE("\"merges\":[],\"dropout\":0.1")}, STATUS_UNSUPPORTED, "dropout"},
        {{.model = BPE("\"merges\":[],\"end_of_word_suffix\":\"</w>\"")},
         STATUS_UNSUPPORTED,
         "end_of_word_suffix"},
        {{.model = BPE("\"merges\":[\"a b\"]")}, STATUS_INVALID, "out of the vocabulary"},
        {{.model = BPE("\"merges\":[\"ab\"]")}, STATUS_INVALID, "merge 0"},
        {{.model = BPE("\"merges\":{}")}, STATUS_INVALID, "merges"},
        {{.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}"},
         STATUS_INVALID,
         "\"a\""},
        {{.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}"},
         STATUS_INVALID,
         "id 1"},
        {{.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"a\":2},\"merges\":[]}"},
         STATUS_INVALID,
         "duplicate"},
        {{.added = ADDED("2", "\"x\""),
          .model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":2},\"merges\":[]}"},
         STATUS_INVALID,
         "id 2 is used by"},
        {{.added = ADDED("9", "\"ab\"")}, STATUS_INVALID, "in the vocabulary"},
        {{.added = ADDED("9", "\"\"")}, STATUS_INVALID, "content"},
        {{.added = ADDED("99999999999", "\"x\"")},
         STATUS_INVALID,
         "id: found 99999999999, expected an integer from 0"},
        {{.added = ADDED("9", "\"x\",\"lstrip\":3")}, STATUS_INVALID, "lstrip"},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct errtext err = ERRTEXT_INIT;
        struct tokenizer *t = NULL;
        enum status st = tiny_load(&cases[i].parts, &t, &err);
        if (st != cases[i].st || !strstr(err.text, cases[i].says))
            fail_msg("case %zu: %s: '%s', want '%s'", i, status_name(st), err.text, cases[i].says);
        assert_null(t);
    }
}

static void test_accessors(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct tokenizer *t = NULL;
    struct tiny_parts parts = {
        .model = "{\"vocab\":{\"a\":0,\"\\u0120b\":1,\"<0x41>\":2,\"\\u2581x\":3},\"merges\":[]}",
        .added = "[{\"id\":4,\"content\":\"<end>\",\"special\":true}]",
        .decoder = "{\"type\":\"ByteLevel\"}"};
    size_t len;
    (void)state;
    assert_int_equal(tiny_load(&parts, &t, &err), STATUS_OK);
    assert_int_equal(tokenizer_vocab_size(t), 5);
    assert_int_equal(tokenizer_token_to_id(t, "<end>"), 4);
    assert_int_equal(tokenizer_token_to_id(t, "a"), 0);
    assert_int_equal(tokenizer_token_to_id(t, "nope"), -1);
    assert_true(tokenizer_is_special(t, 4));
    assert_false(tokenizer_is_special(t, 0));
    assert_false(tokenizer_is_special(t, -5));
    assert_string_equal(tokenizer_token_bytes(t, 4, &len), "<end>");
    assert_int_equal(len, 5);
    assert_memory_equal(tokenizer_token_bytes(t, 1, &len), " b", 2);
    assert_int_equal(len, 2);
    assert_int_equal(tokenizer_bytes_per_id_max(t),
                     SIZE_MAX); /* what it does not know is dropped */
    assert_null(tokenizer_token_bytes(t, 5, &len));
    assert_null(tokenizer_token_bytes(t, 10, &len));
    assert_null(tokenizer_token_bytes(t, -1, &len));
    tokenizer_free(t);
    tokenizer_free(NULL);
}

static void expect_ids(const struct tokenizer *t, const char *text, const char *want)
{
    struct errtext err = ERRTEXT_INIT;
    struct token_list ids = {0};
    struct buf got;
    buf_init(&got, 1024);
    assert_int_equal(tokenizer_encode(t, text, strlen(text), TOKENIZE_PARSE_SPECIAL, &ids, &err),
                     STATUS_OK);
    for (size_t i = 0; i < ids.n; i++)
        buf_printf(&got, i ? " %d" : "%d", ids.ids[i]);
    assert_string_equal(got.data, want);
    buf_fini(&got);
    mem_free(ids.ids);
}

/* What `tokenizers` gives for from_str followed by add_tokens: ids are the next free ones whatever
 * the file says, a text that is there keeps its id and takes the flags (as told). */
static void test_extra_tokens(void **state)
{
    static const char *const more[] = {"{\"content\":\"<n>\",\"special\":true,\"rstrip\":true}",
                                       "{\"content\":\"<o>\",\"normalized\":false,\"lstrip\":true}",
                                       "{\"content\":\"<p>\",\"special\":true,\"lstrip\":true}",
                                       "{\"content\":\"<q>\",\"special\":true,\"lstrip\":true}",
                                       "{\"content\":\"ab\",\"special\":true}"};
    static const enum tokenizer_add how[] = {TOKENIZER_ADD_MISSING, TOKENIZER_ADD_SET,
                                             TOKENIZER_ADD_SPECIAL, TOKENIZER_ADD_MISSING,
                                             TOKENIZER_ADD_MISSING};
    static const char json[] =
        "{\"added_tokens\":[{\"id\":30,\"content\":\"<o>\"},{\"id\":31,\"content\":\"<p>\"},{"
        "\"id\":7,\"content\":\"<q>\"}],\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,"
        "\"ab\":2,\" \":3,\"<\":4,\"p\":5,\">\":6},\"merges\":[\"a b\"]}}";
    struct tokenizer_extra_token token[ARRAY_COUNT(more)];
    struct tokenizer_extra extra = {.token = token, .count = ARRAY_COUNT(more)};
    struct errtext err = ERRTEXT_INIT;
    struct tokenizer *t = NULL;
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(more); i++)
        token[i] = (struct tokenizer_extra_token){json_loads(more[i], 0, NULL), how[i]};
    assert_int_equal(tokenizer_load_with(&t, json, strlen(json), &extra, &err), STATUS_OK);
    expect_ids(t, "a <o> a", "0 7 3 0");   /* SET: lstrip now; the id is not the file's 30 */
    expect_ids(t, "a <p> a", "0 3 8 3 0"); /* SPECIAL: flags stay */
    expect_ids(t, "a <q> a", "0 3 9 3 0"); /* MISSING: nothing */
    expect_ids(t, "a <n> a", "0 3 10 0");
    expect_ids(t, "ab", "2"); /* has the vocabulary's id */
    assert_true(tokenizer_is_special(t, 8) && tokenizer_is_special(t, 2));
    assert_false(tokenizer_is_special(t, 7) || tokenizer_is_special(t, 9));
    assert_int_equal(tokenizer_vocab_size(t), 11);
    tokenizer_free(t);
    extra.split_special = true;
    assert_int_equal(tokenizer_load_with(&t, json, strlen(json), &extra, &err), STATUS_OK);
    expect_ids(t, "<p>", "4 5 6");
    expect_ids(t, "<o>", "7");
    tokenizer_free(t);
    for (size_t i = 0; i < ARRAY_COUNT(more); i++)
        json_decref((json_t *)(uintptr_t)token[i].token);
}

static void test_unicode_version(void **state)
{
    unsigned a, b, c, d, e, f;
    (void)state;
    assert_int_equal(
        sscanf(unicode_version(), "pcre2 %u.%u.%u utf8proc %u.%u.%u", &a, &b, &c, &d, &e, &f), 6);
    assert_true(a >= 10 && d >= 10);
}

static void test_limits(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct tokenizer *t = NULL;
    struct token_list ids = {.n_max = 3};
    struct tiny_parts parts = {0};
    (void)state;
    assert_int_equal(tiny_load(&parts, &t, &err), STATUS_OK);
    assert_int_equal(tokenizer_encode(t, "ab a", 4, 0, &ids, &err), STATUS_OK);
    assert_int_equal(ids.n, 3);
    ids.n = 0;
    assert_int_equal(tokenizer_encode(t, "ab aa", 5, 0, &ids, &err), STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "more than 3 tokens"));
    err_clear(&err);
    assert_int_equal(tokenizer_encode(t, "a\xFF", 2, 0, &ids, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "byte 1"));
    ids.n = 0;
    assert_int_equal(tokenizer_encode(t, "", 0, 0, &ids, &err), STATUS_OK);
    assert_int_equal(ids.n, 0);
    mem_free(ids.ids);
    tokenizer_free(t);
}

/* Encode `count` repeats of unit; the time must not be quadratic (that would be hours). */
static void encode_repeated(const struct tokenizer *t, const char *unit, size_t bytes)
{
    struct errtext err = ERRTEXT_INIT;
    struct token_list ids = {0};
    struct buf text;
    buf_init(&text, 2 * bytes);
    while (text.len < bytes)
        buf_puts(&text, unit);
    double start = cpu_seconds();
    enum status st = tokenizer_encode(t, text.data, text.len, 0, &ids, &err);
    double spent = cpu_seconds() - start;
    if (st)
        fail_msg("'%s' x %zu: %s", unit, bytes, err.text);
    if (spent > 20)
        fail_msg("'%s' x %zu took %.1f s", unit, bytes, spent);
    mem_free(ids.ids);
    buf_fini(&text);
}

static void test_hostile_texts(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct tokenizer *t = NULL;
    (void)state;
    struct tiny_parts parts = {
        .model = "{\"vocab\":{\"a\":0,\"aa\":1,\"aaaa\":2,\"b\":3,\"ab\":4},"
                 "\"merges\":[\"a a\",\"aa aa\",\"a b\"]}",
        .added = "[{\"id\":9,\"content\":\"<aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa>\"},"
                 "{\"id\":10,\"content\":\"<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<x\"}]",
        .normalizer = "{\"type\":\"NFKC\"}",
        .pre = "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":"
               "\"(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "
               "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
               "\"}}"};
    assert_int_equal(tiny_load(&parts, &t, &err), STATUS_OK);
    encode_repeated(t, "a", 1 << 20);
    encode_repeated(t, "aab", 1 << 20);
    encode_repeated(t, "<", 1 << 20);
    encode_repeated(t, " ", 1 << 20);
    encode_repeated(t, " \n", 1 << 20);
    encode_repeated(t, "\xCC\x96\xCC\x81", 1 << 20); /* marks in the wrong order */
    encode_repeated(t, "\xEF\xB7\xBA", 1 << 20);     /* one character that becomes eighteen */
    tokenizer_free(t);
}

/* A pattern that backtracks without end is stopped by the match limit, with a sentence. */
static void test_hostile_regex(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct tokenizer *t = NULL;
    struct token_list ids = {0};
    struct tiny_parts parts = {.pre = "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":"
                                      "{\"Regex\":\"(?:a+a+)+[^ab]\"}}"};
    (void)state;
    assert_int_equal(tiny_load(&parts, &t, &err), STATUS_OK);
    char text[200];
    memset(text, 'a', sizeof(text));
    assert_int_equal(tokenizer_encode(t, text, sizeof(text), 0, &ids, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "limit"));
    mem_free(ids.ids);
    tokenizer_free(t);
}

static void test_truncated_file(void **state)
{
    json_t *golden = golden_load("tokenizer/llama3.json");
    char *spec = json_dumps(json_object_get(golden, "tokenizer"), 0);
    size_t len = strlen(spec);
    (void)state;
    for (size_t cut = 0; cut < len; cut += 1 + len / 50) {
        struct errtext err = ERRTEXT_INIT;
        struct tokenizer *t = NULL;
        assert_int_not_equal(tokenizer_load(&t, spec, cut, &err), STATUS_OK);
        assert_int_not_equal(err.text[0], '\0');
    }
    free(spec); /* lint: waive banned - jansson's memory */
    json_decref(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),         cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_accessors),       cmocka_unit_test(test_extra_tokens),
        cmocka_unit_test(test_unicode_version), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_hostile_texts),   cmocka_unit_test(test_hostile_regex),
        cmocka_unit_test(test_truncated_file)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
