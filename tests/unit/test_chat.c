/* Chat templates against goldens rendered by jinja2 (tests/oracle/text_chat.py): whole templates in
 * the styles in use, and snippets feature by feature. Then the budgets: a template that never ends,
 * that grows, or that nests is stopped with a sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/base/check.h"
#include "server/text/chat.h"
#include "tests/unit/text_fixture.h"

#define OUTPUT_BYTES_MAX ((size_t)4 << 20)

static enum status render(const char *text, size_t len, const json_t *context, struct buf *out,
                          struct errtext *err)
{
    struct chat_template *t = NULL;
    enum status st = chat_template_parse(&t, text, len, err);
    if (!st)
        st = chat_template_render(t, context, out, err);
    chat_template_free(t);
    return st;
}

static void check_row(const json_t *row, const char *text, size_t len, const json_t *context)
{
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    const json_t *want = json_object_get(row, "want");
    const json_t *rendered = json_object_get(want, "text");
    const json_t *raised = json_object_get(want, "raised");
    buf_init(&out, OUTPUT_BYTES_MAX);
    enum status st = render(text, len, context, &out, &err);
    if (!rendered && !st)
        fail_msg("'%.300s' gives '%s', want an error", text, out.data);
    if (raised)
        assert_string_equal(err.text, json_string_value(raised));
    if (rendered && st)
        fail_msg("'%.300s': %s", text, err.text);
    if (rendered && (out.len != json_string_length(rendered) ||
                     (out.len && memcmp(out.data, json_string_value(rendered), out.len) != 0)))
        fail_msg("'%.300s': got '%s', want '%s'", text, out.data, json_string_value(rendered));
    buf_fini(&out);
}

static void test_goldens(void **state)
{
    json_t *golden = golden_load("chat.json");
    const json_t *rows = json_object_get(golden, "rows");
    const json_t *contexts = json_object_get(golden, "contexts");
    (void)state;
    assert_true(json_array_size(rows) > 700);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        const json_t *snippet = json_object_get(row, "template");
        if (snippet) {
            check_row(row, json_string_value(snippet), json_string_length(snippet),
                      json_object_get(golden, "snippet_context"));
            continue;
        }
        char path[512];
        char *text = NULL;
        size_t len = 0, idx = (size_t)json_integer_value(json_object_get(row, "context"));
        struct errtext err = ERRTEXT_INIT;
        snprintf(path, sizeof(path), "%s/text/chat/%s.jinja", RS_TEST_DATA,
                 json_string_value(json_object_get(row, "name")));
        if (file_read(path, CHAT_TEMPLATE_BYTES_MAX, &text, &len, &err))
            fail_msg("%s", err.text);
        check_row(row, text, len, json_array_get(contexts, idx));
        mem_free(text);
    }
    json_decref(golden);
}

static void expect_error(const char *text, enum status st, const char *says)
{
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    json_t *context = json_object();
    buf_init(&out, OUTPUT_BYTES_MAX);
    enum status got = render(text, strlen(text), context, &out, &err);
    if (got != st || !strstr(err.text, says))
        fail_msg("'%.100s': %s: '%s', want %s: '%s'", text, status_name(got), err.text,
                 status_name(st), says);
    buf_fini(&out);
    json_decref(context);
}

static void test_budgets(void **state)
{
    (void)state;
    expect_error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", STATUS_TOO_LARGE, "nested");
    expect_error("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                 STATUS_TOO_LARGE, "budget");
    expect_error("{% set ns = namespace(s='abcdefgh') %}{% for i in range(60) %}"
                 "{% set ns.s = ns.s + ns.s %}{% endfor %}",
                 STATUS_TOO_LARGE, "budget of memory");
    expect_error("{% set ns = namespace(s='abcdefgh') %}{% for i in range(60) %}"
                 "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
                 STATUS_TOO_LARGE, "grew over");
    expect_error("{{ 'x' * 99999999999 }}", STATUS_TOO_LARGE, "budget");
    expect_error("{{ [0] * 99999999999 }}", STATUS_TOO_LARGE, "budget");
    expect_error("{% for i in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                 "xxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}",
                 STATUS_TOO_LARGE, "rendered text");
    expect_error("{% set ns = namespace(l=[]) %}{% for i in range(5000) %}"
                 "{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
                 STATUS_TOO_LARGE, "nested");
    expect_error("{% set ns = namespace(l=[]) %}{% for i in range(5000) %}"
                 "{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l|tojson }}",
                 STATUS_TOO_LARGE, "nested");
    expect_error("{% set ns = namespace(l=[], m=[]) %}{% for i in range(5000) %}"
                 "{% set ns.l = [ns.l] %}{% set ns.m = [ns.m] %}{% endfor %}{{ ns.l == ns.m }}",
                 STATUS_TOO_LARGE, "nested");
    expect_error("{{ 9223372036854775807 + 1 }}", STATUS_INVALID, "64 bits");
    expect_error("{{ 99999999999999999999 }}", STATUS_INVALID, "too large");
}

/* Text repeated n times, between a start and an end. */
static void expect_deep(const char *unit, size_t n, const char *says)
{
    struct buf text;
    buf_init(&text, 1 << 20);
    buf_puts(&text, "{{ ");
    for (size_t i = 0; i < n; i++)
        buf_puts(&text, unit);
    buf_puts(&text, "1 }}");
    expect_error(text.data, STATUS_TOO_LARGE, says);
    buf_fini(&text);
}

static void test_deep_source(void **state)
{
    (void)state;
    expect_deep("not ", 5000, "nested");
    expect_deep("-", 5000, "nested");
    expect_deep("1 + ", 5000, "nested");
    expect_deep("1 if 1 else ", 5000, "nested");
    expect_error("{% if 1 %}{% if 1 %}", STATUS_INVALID, "endif");
    struct buf text;
    buf_init(&text, 1 << 20);
    for (size_t i = 0; i < 5000; i++)
        buf_puts(&text, "{% if 1 %}");
    expect_error(text.data, STATUS_TOO_LARGE, "nested");
    buf_fini(&text);
}

static void test_messages(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct chat_template *t = NULL;
    (void)state;
    expect_error("a\nb\n{{ x.y }}", STATUS_INVALID, "line 3: 'x' is undefined");
    expect_error("{{ raise_exception('only that') }}", STATUS_INVALID, "only that");
    expect_error("{{ 1 + 'a' }}", STATUS_INVALID, "'int' and 'str'");
    expect_error("{% include 'f' %}", STATUS_UNSUPPORTED, "include");
    expect_error("{{ 1|xmlattr }}", STATUS_UNSUPPORTED, "xmlattr");
    expect_error("{{ [].append(1) }}", STATUS_INVALID, "unsafe");
    assert_int_equal(chat_template_parse(&t, "\xFF", 1, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "UTF-8"));
    assert_null(t);
    chat_template_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens), cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_deep_source), cmocka_unit_test(test_messages)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
