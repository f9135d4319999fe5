/* What a row is, and what tokens it becomes. */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/datanet/row_mask.h"
#include "server/datanet/rows.h"
#include "server/datanet/spdx.h"
#include "tests/unit/golden_json.h"

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

#define ASKED "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},"

static void test_lines(void **state)
{
    static const char openai[] = ASKED
        "{\"role\":\"assistant\",\"content\":\"y\",\"weight\":0,\"name\":\"ann\"},{\"role\":"
        "\"user\",\"content\":[{\"type\":\"text\",\"text\":\"z\"}]},{\"role\":\"assistant\","
        "\"content\":null,\"tool_calls\":[{\"id\":\"c\",\"type\":\"function\",\"function\":{"
        "\"name\":\"f\",\"arguments\":\"{}\"}}]}],\"tools\":[],\"parallel_tool_calls\":false}";
    expect(ROWS_CHATS, openai, openai);
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
        {ROWS_CHATS, ASKED "{\"role\":\"assistant\",\"content\":7}]}",
         "messages[1].content: found 7"},
        {ROWS_CHATS, ASKED "{\"role\":\"assistant\",\"content\":\"a\",\"weight\":2}]}",
         "messages[1].weight: found 2"},
        {ROWS_CHATS, ASKED "{\"role\":\"user\",\"content\":\"a\",\"weight\":1}]}",
         "messages[1].weight"},
        {ROWS_CHATS, ASKED "{\"role\":\"user\",\"content\":\"a\",\"name\":3}]}",
         "messages[1].name"},
        {ROWS_CHATS, ASKED "{\"role\":\"The User\",\"content\":\"a\"}]}", "messages[1].role"},
        {ROWS_CHATS, ASKED "{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
         "image_url"},
        {ROWS_CHATS, ASKED "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":1}]}",
         "messages[1].tool_calls"},
        {ROWS_CHATS, ASKED "7]}", "line 1: messages[1]"},
        {ROWS_CHATS, "{\"functions\":[],\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
         "functions"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct seen s = {.text = bad[i].text};
        struct errtext err = ERRTEXT_INIT;
        buf_init(&s.rows, 1 << 20);
        enum status st = rows_each(bad[i].kind, bad[i].text, strlen(bad[i].text), see, &s, &err);
        assert_true(st == STATUS_INVALID || st == STATUS_UNSUPPORTED);
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

/* ---- masks ---- */

static const char *golden_path = RS_TEST_DATA "/masks_golden.json";

static json_t *dump(const json_t *messages, struct buf *out)
{
    json_t *row = json_pack("{s:O}", "messages", messages);
    char *text = json_dumps(row, JSON_COMPACT);
    buf_clear(out);
    buf_puts(out, text);
    mem_free(text);
    return row;
}

static struct row_masking masking(const struct row_form *form, enum rows_kind kind,
                                  enum row_mask mask, const char *row, size_t len)
{
    return (struct row_masking){.form = form, .mask = mask, .kind = kind, .row = row, .len = len};
}

/* The row's ids into *ids and a 0 or 1 of each into mask. */
static enum status mask_row(struct row_masking r, struct token_list *ids, uint8_t *mask,
                            struct errtext *err)
{
    bool was_cut;
    ids->n = 0;
    enum status st = row_tokens(r.form, r.kind, r.row, r.len, ids, &was_cut, err);
    uint8_t *bits = mem_array(ids->n / 8 + 2, 1);
    r.ids = ids->ids;
    r.n = ids->n;
    r.learn = bits;
    r.at = 5; /* anywhere */
    if (!st)
        st = row_mask_set(&r, err);
    for (size_t i = 0; i < ids->n && !st; i++)
        mask[i] = bits[(i + 5) / 8] >> (i + 5) % 8 & 1;
    mem_free(bits);
    return st;
}

static void judge(const json_t *c, const struct row_form *form)
{
    struct token_list ids = {0};
    struct errtext err = ERRTEXT_INIT;
    struct buf row;
    uint8_t mask[ROW_TOKENS_MAX];
    buf_init(&row, 1 << 20);
    json_decref(dump(get(c, "messages"), &row));
    enum status st = mask_row(masking(form, ROWS_CHATS, ROW_MASK_ASSISTANT, row.data, row.len),
                              &ids, mask, &err);
    if (json_is_true(json_object_get(c, "refused"))) {
        if (st != STATUS_UNSUPPORTED && st != STATUS_INVALID)
            fail_msg("%s: %s: not refused", text(c, "name"), row.data);
        assert_non_null(strstr(err.text, "messages["));
    } else {
        const json_t *want = get(c, "ids");
        if (st || ids.n != json_array_size(want))
            fail_msg("%s: %s: %s, %zu ids", text(c, "name"), row.data, err.text, ids.n);
        for (size_t i = 0; i < ids.n; i++) {
            assert_int_equal(ids.ids[i], json_integer_value(json_array_get(want, i)));
            if (mask[i] != json_integer_value(json_array_get(get(c, "mask"), i)))
                fail_msg("%s: %s: token %zu is %s", text(c, "name"), row.data, i,
                         mask[i] ? "learned" : "not learned");
        }
    }
    mem_free(ids.ids);
    buf_fini(&row);
}

static void test_turns_as_transformers_has_them(void **state)
{
    json_error_t why;
    json_t *golden = json_load_file(golden_path, 0, &why);
    size_t judged = 0, i;
    const json_t *c;
    if (!golden)
        fail_msg("%s: %s", golden_path, why.text);
    json_array_foreach(get(golden, "cases"), i, c)
    {
        struct chat_template *t;
        struct errtext err = ERRTEXT_INIT;
        const char *source = text(get(golden, "templates"), text(c, "name"));
        if (chat_template_parse(&t, source, strlen(source), &err))
            fail_msg("%s: %s", text(c, "name"), err.text);
        struct row_form form = {.model = model, .chat = t};
        judge(c, &form);
        chat_template_free(t);
        judged++;
    }
    assert_true(judged > 30);
    json_decref(golden);
}

/* Of the row's n tokens, those that are learned. */
static size_t learned(const struct row_form *form, enum rows_kind kind, enum row_mask mask,
                      const char *row, size_t *n)
{
    struct token_list ids = {0};
    struct errtext err = ERRTEXT_INIT;
    uint8_t bit[ROW_TOKENS_MAX];
    size_t count = 0;
    if (mask_row(masking(form, kind, mask, row, strlen(row)), &ids, bit, &err))
        fail_msg("%s", err.text);
    for (size_t i = 0; i < ids.n; i++)
        count += bit[i];
    *n = ids.n;
    mem_free(ids.ids);
    return count;
}

static bool all_learned(const struct row_form *form, enum rows_kind kind, enum row_mask mask,
                        const char *row)
{
    size_t n, count = learned(form, kind, mask, row, &n);
    return count == n;
}

static void test_masks(void **state)
{
#define SAYS(role, content) "{\"role\":\"" role "\",\"content\":\"" content "\"}"
    struct row_form form = {.model = model, .chat = model->chat, .eos = true};
    const char *two = "{\"messages\":[" SAYS("user", "a") "," SAYS("assistant", "Ruh") "," SAYS(
        "user", "b") "," SAYS("assistant", "Ruh") "]}";
    const char *weighed =
        "{\"messages\":[" SAYS("user", "a") ",{\"role\":\"assistant\","
                                            "\"content\":\"Ruh\",\"weight\":0}," SAYS(
                                                "user", "b") "," SAYS("assistant", "Ruh") "]}";
    const char *asked = "{\"prompt\":\"A:\",\"completion\":\" Ruh\"}";
    size_t n, other;
    (void)state;
    assert_true(all_learned(&form, ROWS_CHATS, ROW_MASK_ALL, two));
    size_t turns = learned(&form, ROWS_CHATS, ROW_MASK_ASSISTANT, two, &n);
    assert_true(turns > 2 && turns < n);
    assert_int_equal(learned(&form, ROWS_CHATS, ROW_MASK_COMPLETION, two, &other), turns / 2);
    assert_int_equal(learned(&form, ROWS_CHATS, ROW_MASK_ASSISTANT, weighed, &other), turns / 2);
    assert_int_equal(other, n);
    assert_true(all_learned(&form, ROWS_CHATS, ROW_MASK_ALL, weighed));
    for (enum row_mask m = ROW_MASK_COMPLETION; m < ROW_MASK_COUNT; m++) {
        assert_true(all_learned(&form, ROWS_TEXT, m, "The river."));
        assert_true(all_learned(&form, ROWS_ROWS, m, "{\"text\":\"x y\"}"));
        size_t said = learned(&form, ROWS_ROWS, m, asked, &n);
        assert_true(said > 1 && said < n);
    }
}

/* The message that the template does not take is named. */
static void test_what_a_template_refuses(void **state)
{
    static const char picky[] = "{% for m in messages %}{% if m.role == 'critic' %}"
                                "{{ raise_exception('no critics here') }}{% endif %}"
                                "{{ m.content }}{% endfor %}";
    const char *row = "{\"messages\":[" SAYS("user", "a") "," SAYS("assistant", "b") "," SAYS(
        "user", "c") "," SAYS("critic", "d") "," SAYS("user", "e") "]}";
    struct row_form form = {.model = model};
    struct chat_template *t;
    struct token_list ids = {0};
    struct errtext err = ERRTEXT_INIT;
    bool was_cut;
    (void)state;
    assert_int_equal(chat_template_parse(&t, picky, strlen(picky), &err), STATUS_OK);
    form.chat = t;
    assert_int_equal(row_tokens(&form, ROWS_CHATS, row, strlen(row), &ids, &was_cut, &err),
                     STATUS_INVALID);
    if (!strstr(err.text, "messages[3]") || !strstr(err.text, "critic") ||
        !strstr(err.text, "no critics here"))
        fail_msg("%s", err.text);
    chat_template_free(t);
    mem_free(ids.ids);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        golden_path = argv[1];
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
        cmocka_unit_test(test_turns_as_transformers_has_them),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_what_a_template_refuses),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
