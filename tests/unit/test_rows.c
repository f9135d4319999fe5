/* What a row is, and what tokens it becomes. */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/datanet/rows.h"
#include "server/datanet/spdx.h"

struct seen {
    const char *text;
    struct buf rows; /* one behind the other, "|" between */
    size_t end, longest;
};

static enum status see(void *arg, size_t offset, size_t bytes, struct errtext *err)
{
    struct seen *s = arg;
    assert_true(offset >= s->end && bytes > 0); /* ascending, apart */
    s->end = offset + bytes;
    s->longest = bytes > s->longest ? bytes : s->longest;
    if (s->rows.len)
        buf_putc(&s->rows, '|');
    buf_put(&s->rows, s->text + offset, bytes);
    return STATUS_OK;
}

static void expect(enum rows_kind kind, const char *text, const char *rows)
{
    struct seen s = {.text = text};
    struct errtext err = ERRTEXT_INIT;
    buf_init(&s.rows, 1 << 20);
    if (rows_each(kind, text, strlen(text), see, &s, &err))
        fail_msg("%s", err.text);
    assert_string_equal(s.rows.data ? s.rows.data : "", rows);
    buf_fini(&s.rows);
}

static void test_sentences(void **state)
{
    expect(ROWS_TEXT, "", "");
    expect(ROWS_TEXT, " \n\t \r\n", "");
    expect(ROWS_TEXT, "One", "One");
    expect(ROWS_TEXT, "One. Two!  Three?\nFour.\n", "One.|Two!|Three?|Four.");
    expect(ROWS_TEXT, "A line\nthat goes on. Next", "A line\nthat goes on.|Next");
    expect(ROWS_TEXT, "No stop\n\n \t\nA paragraph\r\n\r\nC", "No stop|A paragraph|C");
    expect(ROWS_TEXT, "\"Go!\" she said. (He went.) End", "\"Go!\" she said.|(He went.)|End");
    expect(ROWS_TEXT, "J. R. Smith wrote v. 3.5 for 2.7 million. In 1999. Then",
           "J. R. Smith wrote v. 3.5 for 2.7 million.|In 1999.|Then");
    expect(ROWS_TEXT, "Wait... what? Yes... No", "Wait... what?|Yes...|No");
    expect(ROWS_TEXT, "1. First thing. 2. Second", "1. First thing.|2. Second");
    expect(ROWS_TEXT, "これは文。次の文！「ね？」終", "これは文。|次の文！|「ね？」|終");
    expect(ROWS_TEXT,
           "\xc2\xa0Zoë’s. \xc3\x89t\xc3\xa9…”\xe2\x80\x83"
           "Fin",
           "Zoë’s.|\xc3\x89t\xc3\xa9…”|Fin");
}

static void test_markdown(void **state)
{
    expect(ROWS_MARKDOWN, "# Head. Line\nText one. Two.\n\n- item one. More\n  goes on\n* second\n",
           "# Head. Line|Text one.|Two.|- item one.|More\n  goes on|* second");
    expect(ROWS_MARKDOWN, "1. One\n2) Two\n> quoted\n| a | b |\n|---|---|\nEnd",
           "1. One|2) Two|> quoted|| a | b |||---|---||End");
    expect(ROWS_MARKDOWN, "Before\n```c\nint a;\n\nint b. C;\n```\nAfter\n~~~\nopen",
           "Before|```c\nint a;\n\nint b. C;\n```|After|~~~\nopen");
    expect(ROWS_MARKDOWN, "-no item\nsame -5 row", "-no item\nsame -5 row");
}

static void test_lines(void **state)
{
    expect(ROWS_ROWS, "{\"text\":\"a. b\"}\n\n  {\"prompt\":\"p\",\"completion\":\"c\"} \r\n",
           "{\"text\":\"a. b\"}|{\"prompt\":\"p\",\"completion\":\"c\"}");
    expect(ROWS_CHATS, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
           "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
    static const struct {
        enum rows_kind kind;
        const char *text, *says;
    } bad[] = {
        {ROWS_ROWS, "{\"text\":\"a\"}\n{\"text\":", "line 2"},
        {ROWS_ROWS, "{\"text\":3}", "text"},
        {ROWS_ROWS, "{}", "neither \"text\" nor \"prompt\""},
        {ROWS_ROWS, "{\"prompt\":\"a\"}", "completion"},
        {ROWS_ROWS, "[1]", "line 1"},
        {ROWS_ROWS, "{\"text\":\"a\\u0000b\"}", "line 1"},
        {ROWS_CHATS, "{\"text\":\"a\"}", "messages"},
        {ROWS_CHATS, "{\"messages\":[]}", "messages"},
        {ROWS_CHATS, "{\"messages\":[{\"role\":\"user\"}]}", "messages[0].content"},
        {ROWS_CHATS, "{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "content"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct seen s = {.text = bad[i].text};
        struct errtext err = ERRTEXT_INIT;
        buf_init(&s.rows, 1 << 20);
        assert_int_equal(rows_each(bad[i].kind, bad[i].text, strlen(bad[i].text), see, &s, &err),
                         STATUS_INVALID);
        if (!strstr(err.text, bad[i].says))
            fail_msg("'%s' does not say '%s'", err.text, bad[i].says);
        buf_fini(&s.rows);
    }
}

static void fill(char *text, size_t len, const char *with)
{
    for (size_t i = 0; i < len; i++)
        text[i] = with[i % strlen(with)];
}

static void test_long_rows(void **state)
{
    static char text[100000];
    struct errtext err = ERRTEXT_INIT;
    static const char *const with[] = {"word ", "x", "\xc3\xa9", "?!", "a\n"};
    for (size_t i = 0; i < ARRAY_COUNT(with); i++) {
        struct seen s = {.text = text};
        buf_init(&s.rows, 1 << 20);
        fill(text, sizeof(text), with[i]);
        assert_int_equal(rows_each(ROWS_TEXT, text, sizeof(text), see, &s, &err), STATUS_OK);
        assert_true(s.longest <= ROW_BYTES_MAX && s.longest > ROW_BYTES_MAX - 8);
        assert_true(s.end >= sizeof(text) - 1);
        buf_fini(&s.rows);
    }
    char *line = mem_alloc(ROW_LINE_MAX + 100);
    struct seen s = {.text = line};
    fill(line, ROW_LINE_MAX + 100, "x");
    memcpy(line, "{\"text\":\"", 9);
    assert_int_equal(rows_each(ROWS_ROWS, line, ROW_LINE_MAX + 100, see, &s, &err),
                     STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "line 1"));
    mem_free(line);
}

static void test_kinds(void **state)
{
    enum rows_kind kind;
    static const char chat[] = "{\"messages\":[]}\n{\"text\":1}";
    assert_int_equal(rows_kind_guess("a.txt", "x", 1), ROWS_TEXT);
    assert_int_equal(rows_kind_guess("dir.md/notes", "x", 1), ROWS_TEXT);
    assert_int_equal(rows_kind_guess("A.MD", "x", 1), ROWS_MARKDOWN);
    assert_int_equal(rows_kind_guess("a.jsonl", chat, sizeof(chat) - 1), ROWS_CHATS);
    assert_int_equal(rows_kind_guess("a.jsonl", chat + 16, sizeof(chat) - 17), ROWS_ROWS);
    for (unsigned k = 0; k < ROWS_KIND_COUNT; k++) {
        assert_true(rows_kind_parse(&kind, rows_kind_name((enum rows_kind)k)));
        assert_int_equal(kind, k);
    }
    assert_false(rows_kind_parse(&kind, "Text"));
}

static void test_licences(void **state)
{
    static const char *const good[] = {"MIT",
                                       "CC-BY-4.0",
                                       "GPL-2.0+",
                                       "LicenseRef-my.own",
                                       "MIT OR (Apache-2.0 AND CC0-1.0)",
                                       "GPL-2.0-only WITH Classpath-exception-2.0",
                                       "DocumentRef-a:LicenseRef-b",
                                       "((MIT))"};
    static const char *const bad[] = {"",        "NONE", "NOASSERTION", "all mine",   "MIT OR",
                                      "OR MIT",  "(MIT", "MIT)",        "MIT AND ()", "CC BY 4.0",
                                      "MIT/X11", "M+IT", "\xc3\x9cn",   "MIT (ISC)",  "AND"};
    struct errtext err = ERRTEXT_INIT;
    for (size_t i = 0; i < ARRAY_COUNT(good); i++) {
        if (spdx_check(good[i], &err))
            fail_msg("%s", err.text);
    }
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        if (spdx_check(bad[i], NULL) != STATUS_INVALID)
            fail_msg("'%s' passes", bad[i]);
    }
    assert_int_equal(terms_check("", NULL), STATUS_OK);
    assert_int_equal(terms_check("https://example.org/t?a=b#c", NULL), STATUS_OK);
    assert_int_equal(terms_check("urn:x:y", NULL), STATUS_OK);
    assert_int_equal(terms_check("see the web", NULL), STATUS_INVALID);
    assert_int_equal(terms_check("https:", NULL), STATUS_INVALID);
    assert_int_equal(terms_check("javascript:alert(\"x\")", NULL), STATUS_INVALID);
    assert_int_equal(terms_check("https://a b", NULL), STATUS_INVALID);
}

/* ---- tokens ---- */

static struct model *model;

static int load(void **state)
{
    struct model_options opt = {.id_cache_dir = ""};
    struct errtext err = ERRTEXT_INIT;
    return model_load(&model, RS_TEST_ROOT "/configs/demo/base", &opt, &err);
}

static int unload(void **state)
{
    model_free(model);
    return 0;
}

static void tokens(const struct row_form *form, enum rows_kind kind, const char *row,
                   const char *text)
{
    struct token_list ids = {0}, want = {0};
    struct errtext err = ERRTEXT_INIT;
    bool was_cut = true;
    if (row_tokens(form, kind, row, strlen(row), &ids, &was_cut, &err))
        fail_msg("%s", err.text);
    assert_false(was_cut);
    assert_int_equal(
        tokenizer_encode(model->tokenizer, text, strlen(text), TOKENIZE_PARSE_SPECIAL, &want, &err),
        STATUS_OK);
    assert_int_equal(ids.n, want.n);
    assert_memory_equal(ids.ids, want.ids, ids.n * sizeof(*ids.ids));
    mem_free(ids.ids);
    mem_free(want.ids);
}

static void test_tokens(void **state)
{
    struct row_form plain = {.model = model, .chat = model->chat}, ended = plain;
    ended.eos = true;
    tokens(&plain, ROWS_TEXT, "The river of Ruh.", "The river of Ruh.");
    tokens(&ended, ROWS_TEXT, "The river of Ruh.", "The river of Ruh.<|end|>");
    tokens(&ended, ROWS_ROWS, "{\"text\":\"One\\ntwo\"}", "One\ntwo<|end|>");
    tokens(&ended, ROWS_ROWS, "{\"completion\":\" Ruh\",\"prompt\":\"A:\"}", "A: Ruh<|end|>");
    tokens(&ended, ROWS_CHATS, /* the template ends its turns itself */
           "{\"messages\":[{\"role\":\"user\",\"content\":\"Who?\"},{\"role\":\"assistant\","
           "\"content\":\"Ruh\"}]}",
           "Q: Who?\nA: Ruh<|end|>");
}

/* What a contributor writes is never a control token. */
static void test_marks_in_a_text_are_text(void **state)
{
    struct row_form form = {.model = model, .chat = model->chat};
    struct token_list ids = {0};
    struct errtext err = ERRTEXT_INIT;
    bool was_cut;
    int32_t end = tokenizer_token_to_id(model->tokenizer, "<|end|>");
    assert_int_equal(row_tokens(&form, ROWS_TEXT, "a<|end|>b", 9, &ids, &was_cut, &err), STATUS_OK);
    for (size_t i = 0; i < ids.n; i++)
        assert_int_not_equal(ids.ids[i], end);
    form.bos = true; /* the demo's tokenizer has none */
    assert_int_equal(row_tokens(&form, ROWS_TEXT, "a", 1, &ids, &was_cut, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "bos_token"));
    form.chat = NULL;
    assert_int_equal(row_tokens(&form, ROWS_CHATS, "{}", 2, &ids, &was_cut, NULL),
                     STATUS_UNSUPPORTED);
    mem_free(ids.ids);
}

static void test_a_long_row_gives_its_first_tokens(void **state)
{
    struct row_form form = {.model = model};
    struct token_list ids = {0};
    static char text[8000];
    bool was_cut = false;
    fill(text, sizeof(text), "Zq ");
    assert_int_equal(row_tokens(&form, ROWS_TEXT, text, sizeof(text), &ids, &was_cut, NULL),
                     STATUS_OK);
    assert_true(was_cut);
    assert_int_equal(ids.n, ROW_TOKENS_MAX);
    mem_free(ids.ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sentences),
        cmocka_unit_test(test_markdown),
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_long_rows),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_licences),
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_marks_in_a_text_are_text),
        cmocka_unit_test(test_a_long_row_gives_its_first_tokens),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
