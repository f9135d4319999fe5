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

/* What each idiom of published templates wants. */
static void test_shapes(void **state)
{
#define CALLS(print) "{% for m in messages %}{{ m.role }}:" print "{% endfor %}"
#define EACH(print)                                                                                \
    "{% for c in m.tool_calls or [] %}{% set f = c.function %}{{ f.name }}" print "{% endfor %}"
#define PLAIN "{{ m.content or '' }}"
    static const struct {
        const char *text;
        struct chat_shape want;
    } cases[] = {
        /* arguments dumped, iterated, concatenated, printed, both forms known */
        {CALLS(PLAIN EACH("{{ f.arguments|tojson }}")), {.arguments_text = false}},
        {CALLS(PLAIN EACH("{% for k, v in f.arguments|items %}{{ k }}={{ v }}{% endfor %}")),
         {.arguments_text = false}},
        {CALLS(PLAIN EACH("{{ '(' + f.arguments + ')' }}")), {.arguments_text = true}},
        {CALLS(PLAIN EACH("{{ f.arguments }}")), {.arguments_text = true}},
        {CALLS(PLAIN EACH("{% if f.arguments is string %}{{ f.arguments }}{% else %}"
                          "{{ f.arguments|tojson }}{% endif %}")),
         {.arguments_text = false}},
        {CALLS("{% if m.tool_calls %}{{ m.tool_calls|tojson }}{% endif %}" PLAIN),
         {.arguments_text = false}},
        /* only beside tools; only where a user has the last word */
        {"{% if tools %}" CALLS(PLAIN EACH("{{ '' + f.arguments }}")) "{% else %}" CALLS(
             PLAIN) "{% endif %}",
         {.arguments_text = true}},
        {"{% if messages[-1].role != 'user' %}{{ raise_exception('user last') }}{% endif %}" CALLS(
             PLAIN EACH("{{ '' + f.arguments }}")),
         {.arguments_text = true}},
        /* content: parts; null tested, printed, concatenated, asked for by presence */
        {CALLS("{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
               "{% endfor %}"),
         {.content_parts = true, .null_call = CHAT_NULL_EMPTY, .null_plain = CHAT_NULL_EMPTY}},
        {CALLS("{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content or [] %}"
               "{{ p.text }}{% endfor %}{% endif %}"),
         {.content_parts = false}},
        {CALLS("{{ m.content }}"), {.null_call = CHAT_NULL_EMPTY, .null_plain = CHAT_NULL_EMPTY}},
        {CALLS("{{ m.content + '.' }}"),
         {.null_call = CHAT_NULL_EMPTY, .null_plain = CHAT_NULL_EMPTY}},
        {CALLS("{% if m.role == 'assistant' and m.content is none %}" EACH(
             "{{ '' + f.arguments }}") "{% else %}{{ m.content }}{% endif %}"),
         {.arguments_text = true}},
        {CALLS("{% if 'content' in m %}{{ m.content.upper() + m.content[0] }}{% endif %}"),
         {.null_call = CHAT_NULL_ABSENT, .null_plain = CHAT_NULL_ABSENT}},
        {"{% for m in messages %}{% endfor %}None", {.arguments_text = false}},
        {"{{ raise_exception('never') }}", {.arguments_text = false}},
        {"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
         {.arguments_text = false}},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct errtext err = ERRTEXT_INIT;
        struct chat_template *t = NULL;
        if (chat_template_parse(&t, cases[i].text, strlen(cases[i].text), &err))
            fail_msg("case %zu: %s", i, err.text);
        const struct chat_shape *got = chat_template_shape(t), *want = &cases[i].want;
        if (got->arguments_text != want->arguments_text ||
            got->content_parts != want->content_parts || got->null_call != want->null_call ||
            got->null_plain != want->null_plain)
            fail_msg("case %zu: text %d, parts %d, null %d and %d", i, got->arguments_text,
                     got->content_parts, (int)got->null_call, (int)got->null_plain);
        chat_template_free(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens), cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_deep_source), cmocka_unit_test(test_messages),
        cmocka_unit_test(test_shapes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
