/* server/base/json: what a document's numbers become, what refuses a document, and that a reader
 * keeps its first fault and names its path. The oracle of the numbers is the C library. */
#include "server/base/json.h"
#include "server/base/mem.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* Brackets in a string nest nothing. */
#define TEN       "[[[[[[[[[["
#define DEEP_TEXT TEN TEN TEN TEN TEN TEN TEN

static json_t *good(const char *text, unsigned flags)
{
    struct errtext err = ERRTEXT_INIT;
    json_t *root;
    enum status st = json_doc_parse(&root, "doc", text, strlen(text), flags, &err);
    if (st)
        fail_msg("%s: %s", text, err.text);
    return root;
}

static void bad(const char *text, size_t len, unsigned flags, const char *says)
{
    struct errtext err = ERRTEXT_INIT;
    json_t *root = (json_t *)1;
    enum status st = json_doc_parse(&root, "doc", text, len, flags, &err);
    if (st != STATUS_INVALID || root || !strstr(err.text, says))
        fail_msg("%s: %s (%s), expected \"%s\"", text, status_name(st), err.text, says);
}

static void refused(const char *text, const char *says)
{
    bad(text, strlen(text), 0, says);
}

static void check_real(const char *token, double want)
{
    char text[1024];
    snprintf(text, sizeof(text), "{\"a\": [%s, 7], \"b\": \"%s\"}", token, token);
    json_t *root = good(text, 0);
    const json_t *v = json_array_get(json_object_get(root, "a"), 0);
    if (!json_is_real(v) || json_real_value(v) != want)
        fail_msg("%s: %s %.17g, expected %.17g", token, json_is_real(v) ? "real" : "no real",
                 json_real_value(v), want);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(root, "a"), 1)), 7);
    assert_string_equal(json_string_value(json_object_get(root, "b")), token);
    json_decref(root);
}

static void check_int(const char *token, json_int_t want)
{
    char text[256];
    snprintf(text, sizeof(text), "{\"big\": 123456789012345678901, \"a\": %s}", token);
    json_t *root = good(text, 0);
    assert_true(json_is_integer(json_object_get(root, "a")));
    assert_int_equal(json_integer_value(json_object_get(root, "a")), want);
    json_decref(root);
}

/* ---- documents ---- */

static void test_big_integers_read_as_reals(void **state)
{
    check_real("9223372036854775808", 9223372036854775808.0);
    check_real("-9223372036854775809", -9223372036854775808.0);
    check_real("18446744073709551615", 18446744073709551615.0);
    check_real("123456789012345678901234567890", 123456789012345678901234567890.0);
    check_int("9223372036854775807", INT64_MAX);
    check_int("-9223372036854775808", INT64_MIN);
    check_int("9007199254740993", 9007199254740993); /* no double: its neighbour must not hurt it */
    check_int("0", 0);
    check_int("-0", 0);
}

static void test_huge_reals_read_as_the_largest(void **state)
{
    char ones[401] = {0}, zeros[420] = "0.";
    memset(ones, '1', sizeof(ones) - 1);
    memset(zeros + 2, '0', 350);
    strcpy(zeros + 352, "1e700");
    check_real("1e999", DBL_MAX);
    check_real("-1E+999", -DBL_MAX);
    check_real("1e99999999999999999999999", DBL_MAX);
    check_real(ones, DBL_MAX);
    check_real(zeros, DBL_MAX);
    check_real("0.1e310", DBL_MAX);
    check_real("1.7976931348623159e308", DBL_MAX);
    check_real("1.7976931348623158e308", DBL_MAX); /* rounds to it */
    check_real("0e99999", 0.0);
    check_real("1e-99999", 0.0);
    /* beside one that overflows, the others keep their bits */
    json_t *root = good("{\"x\":1e999,\"y\":1.7976931348623155e308,\"z\":5e-324,\"w\":1e308}", 0);
    assert_true(json_real_value(json_object_get(root, "y")) == 1.7976931348623155e308);
    assert_true(json_real_value(json_object_get(root, "z")) == 5e-324);
    assert_true(json_real_value(json_object_get(root, "w")) == 1e308);
    json_decref(root);
}

static uint64_t next(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 33;
}

/* A random token of JSON's grammar: digits, fraction and exponent around both limits. */
static void make_token(char *out, uint64_t *seed)
{
    uint64_t kind = next(seed) % 4;
    out += sprintf(out, "%s", next(seed) % 2 ? "-" : "");
    if (kind == 0)
        out += sprintf(out, "92233720368547758%02d", (int)(next(seed) % 100));
    else if (kind == 1)
        out += sprintf(out, "1.797693134862315%d", (int)(next(seed) % 100));
    else if (kind == 2)
        out += sprintf(out, "0.000%d", (int)next(seed));
    else
        out += sprintf(out, "%d", (int)next(seed));
    if (kind && next(seed) % 4)
        sprintf(out, "e%s%d", next(seed) % 2 ? "+" : "",
                (int)(kind == 2 ? 296 + next(seed) % 20 : 295 + next(seed) % 16));
}

static void test_random_numbers_equal_the_c_library(void **state)
{
    uint64_t seed = 8;
    for (int i = 0; i < 20000; i++) {
        char token[96] = {0};
        make_token(token, &seed);
        double want = strtod(token, NULL);
        want = isinf(want) ? copysign(DBL_MAX, want) : want;
        char text[160];
        snprintf(text, sizeof(text), "{\"a\":%s,\"b\":1e400,\"c\":99999999999999999999}", token);
        json_t *root = good(text, 0);
        double got = json_number_value(json_object_get(root, "a"));
        if (got != want)
            fail_msg("%s: %.17g, expected %.17g", token, got, want);
        json_decref(root);
    }
}

/* A number that is written again must not heal what stands around it. */
static void test_malformed_stays_malformed(void **state)
{
    const char *tails[] = {"5", ".", ".e5", "e", "e+", "-", "x", "\"", " 1", "E5.0", "[", "]"};
    const char *numbers[] = {"18446744073709551616", "1e999", "-99999999999999999999"};
    char text[128];
    for (size_t i = 0; i < 3; i++) {
        for (size_t k = 0; k < sizeof(tails) / sizeof(tails[0]); k++) {
            snprintf(text, sizeof(text), "{\"a\":%s%s}", numbers[i], tails[k]);
            if (k == 0)
                continue; /* one digit more is a number still */
            refused(text, "not valid JSON");
        }
        snprintf(text, sizeof(text), "{\"a\":0%s}", numbers[i]);
        refused(text, "not valid JSON");
        snprintf(text, sizeof(text), "{\"a\":+%s}", numbers[i]);
        refused(text, "not valid JSON");
        snprintf(text, sizeof(text), "{\"a\":%s", numbers[i]);
        refused(text, "not valid JSON");
        snprintf(text, sizeof(text), "{\"a\":%s,\"b\":\"\\", numbers[i]);
        refused(text, "not valid JSON");
    }
}

static void test_what_refuses_a_document(void **state)
{
    char deep[400];
    memset(deep, '[', sizeof(deep));
    refused("", "doc is empty; expected a JSON object");
    refused("\xEF\xBB\xBF", "doc is empty");
    refused("[]", "found a list, expected a JSON object");
    bad("{}", 2, JSON_DOC_LIST, "found an object, expected a JSON list");
    refused("{\"a\":1,\"a\":2}", "duplicate");
    refused("{\n\"a\":}", "line 2");
    refused("{} x", "not valid JSON");
    refused("{\"a\":\"\xff\"}", "not valid JSON");
    refused("{\"a\":\"\\u0000\"}", "not valid JSON");
    bad(deep, sizeof(deep), 0, "nests 400 deep; at most 64 is accepted");
    json_decref(good("{\"a\":\"" DEEP_TEXT "\"}", 0));
}

static void test_what_flags_and_marks_allow(void **state)
{
    json_t *root =
        good("\xEF\xBB\xBF{\"a\":1,\"a\":2,\"b\":\"x\\u0000y\"}", JSON_DOC_REPEATS | JSON_DOC_NUL);
    assert_int_equal(json_integer_value(json_object_get(root, "a")), 2);
    assert_int_equal(json_string_length(json_object_get(root, "b")), 3);
    json_decref(root);
    root = good("[1]", JSON_DOC_LIST);
    json_decref(root);
}

static void test_load_names_the_file(void **state)
{
    char path[] = "/tmp/test_json_XXXXXX";
    struct errtext err = ERRTEXT_INIT;
    json_t *root;
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, "{\"a\":1}", 7) == 7);
    assert_int_equal(json_doc_load(&root, path, 100, 0, &err), STATUS_OK);
    assert_int_equal(json_integer_value(json_object_get(root, "a")), 1);
    json_decref(root);
    assert_int_equal(json_doc_load(&root, path, 6, 0, &err), STATUS_TOO_LARGE);
    err_clear(&err);
    assert_true(write(fd, "}", 1) == 1);
    assert_int_equal(json_doc_load(&root, path, 100, 0, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, path));
    close(fd);
    unlink(path);
    err_clear(&err);
    assert_int_equal(json_doc_load(&root, path, 100, 0, &err), STATUS_NOT_FOUND);
    assert_null(root);
}

/* ---- the reader ---- */

static const char sample[] =
    "{\"i\":5,\"whole\":16.0,\"half\":1.5,\"big\":9223372036854775808,\"near\":9007199254740992.0,"
    "\"t\":true,\"s\":\"text\",\"nul\":\"a\\u0000b\",\"null\":null,\"list\":[1,2.0,\"x\"],"
    "\"o\":{\"p\":{\"q\":7}},\"items\":[{\"n\":1},{\"n\":\"two\"},3]}";

struct fixture {
    json_t *root;
    struct errtext err;
    struct json_reader r;
};

static struct fixture *start(struct fixture *f)
{
    json_decref(f->root);
    *f = (struct fixture){.root = good(sample, JSON_DOC_NUL)};
    f->r = (struct json_reader){.obj = f->root, .where = "doc", .err = &f->err};
    return f;
}

static void expect_fault(struct fixture *f, const char *param, const char *says)
{
    if (f->r.st != STATUS_INVALID || strcmp(f->err.param, param) || !strstr(f->err.text, says))
        fail_msg("%s: param '%s' text '%s', expected '%s' and \"%s\"", status_name(f->r.st),
                 f->err.param, f->err.text, param, says);
    start(f);
}

static void test_integers_are_exact_or_refused(void **state)
{
    struct fixture f = {0};
    struct json_range all = {INT64_MIN, INT64_MAX};
    start(&f);
    assert_int_equal(json_need_int(&f.r, "i", all), 5);
    assert_int_equal(json_need_int(&f.r, "whole", all), 16);
    assert_int_equal(json_read_int(&f.r, "none", all, -3), -3);
    assert_int_equal(json_read_int(&f.r, "null", (struct json_range){0, 1}, 9), 9);
    assert_int_equal(f.r.st, STATUS_OK);
    (void)json_read_int(&f.r, "big", all, 0);
    expect_fault(&f, "big",
                 "doc: big: found 9223372036854775808, expected an integer from "
                 "-9223372036854775808 to 9223372036854775807");
    (void)json_read_int(&f.r, "near", all, 0);
    expect_fault(&f, "near", "found 9007199254740992, expected an integer");
    (void)json_read_int(&f.r, "half", all, 0);
    expect_fault(&f, "half", "found 1.5");
    assert_int_equal(json_read_int(&f.r, "i", (struct json_range){6, 8}, 7), 7);
    expect_fault(&f, "i", "found 5, expected an integer from 6 to 8");
    (void)json_need_int(&f.r, "null", all);
    expect_fault(&f, "null", "missing, expected an integer");
    json_decref(f.root);
}

static void test_other_getters_name_found_and_expected(void **state)
{
    struct fixture f = {0};
    size_t len;
    start(&f);
    assert_true(json_read_num(&f.r, "i", 0, 10, 0) == 5 && json_read_bool(&f.r, "t", false));
    assert_string_equal(json_read_string(&f.r, "s"), "text");
    assert_null(json_read_string(&f.r, "null"));
    assert_true(json_has(&f.r, "s") && !json_has(&f.r, "null") && !json_has(&f.r, "none"));
    assert_int_equal(json_array_size(json_read_list(&f.r, "list", 3)), 3);
    char *copy = json_need_copy(&f.r, "nul", &len);
    assert_true(len == 3 && memcmp(copy, "a\0b", 3) == 0);
    mem_free(copy);
    (void)json_read_num(&f.r, "s", 0, 1, 0);
    expect_fault(&f, "s", "found \"text\", expected a number from 0 to 1");
    (void)json_need_num(&f.r, "none", 0, 1);
    expect_fault(&f, "none", "missing, expected a number");
    (void)json_read_bool(&f.r, "i", false);
    expect_fault(&f, "i", "found 5, expected true or false");
    (void)json_read_string(&f.r, "list");
    expect_fault(&f, "list", "found a list of 3, expected a string");
    (void)json_read_string(&f.r, "nul");
    expect_fault(&f, "nul", "NUL");
    assert_string_equal(json_need_string(&f.r, "none"), "");
    expect_fault(&f, "none", "missing, expected a string");
    assert_null(json_need_list(&f.r, "o", 3));
    expect_fault(&f, "o", "found an object, expected a list");
    assert_null(json_need_copy(&f.r, "o", &len));
    expect_fault(&f, "o", "expected a string");
    assert_null(json_read_list(&f.r, "list", 2));
    assert_int_equal(f.r.st, STATUS_TOO_LARGE);
    json_decref(f.root);
}

static void test_paths_and_the_first_fault(void **state)
{
    struct fixture f = {0};
    struct json_range ten = {0, 10};
    start(&f);
    struct json_reader o = json_enter(&f.r, "o"), p = json_enter(&o, "p");
    assert_int_equal(json_need_int(&p, "q", ten), 7);
    (void)json_read_bool(&p, "q", false);
    assert_int_equal(o.st, STATUS_INVALID);
    (void)json_need_string(&f.r, "none"); /* later: not heard */
    assert_int_equal(json_read_int(&f.r, "i", ten, 1), 1);
    expect_fault(&f, "o.p.q", "doc: o.p.q: found 7, expected true or false");
    (void)json_enter(&f.r, "list");
    expect_fault(&f, "list", "expected an object");
    struct json_reader none = json_enter(&f.r, "none");
    assert_false(json_has(&none, "x"));
    assert_int_equal(f.r.st, STATUS_OK);
    (void)json_need_int(&none, "x", ten);
    expect_fault(&f, "none.x", "missing");
    const json_t *items = json_read_list(&f.r, "items", 3);
    struct json_reader item = json_enter_item(&f.r, "items", 1, json_array_get(items, 1));
    (void)json_need_int(&item, "n", ten);
    expect_fault(&f, "items[1].n", "found \"two\"");
    items = json_read_list(&f.r, "items", 3);
    (void)json_enter_item(&f.r, "items", 2, json_array_get(items, 2));
    expect_fault(&f, "items[2]", "found 3, expected an object");
    items = json_read_list(&f.r, "list", 3);
    assert_int_equal(json_item_int(&f.r, "list", 1, json_array_get(items, 1), ten), 2);
    (void)json_item_int(&f.r, "list", 2, json_array_get(items, 2), ten);
    expect_fault(&f, "list[2]", "found \"x\", expected an integer");
    f.r.wrong = STATUS_CORRUPT;
    (void)json_need_int(&f.r, "s", ten);
    assert_int_equal(f.r.st, STATUS_CORRUPT);
    json_decref(f.root);
}

static void test_shown_cuts_at_characters(void **state)
{
    char text[200];
    memset(text, 'a', sizeof(text));
    memcpy(text + 79, "\xe2\x82\xac\xe2\x82\xac", 6); /* the cut at 80 falls into a character */
    json_t *v = json_stringn(text, 120);
    const char *shown = json_shown(v);
    assert_int_equal(strlen(shown), 1 + 79 + 3 + 1);
    assert_string_equal(shown + 78, "aa...\"");
    json_decref(v);
    assert_string_equal(json_shown(NULL), "nothing");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_big_integers_read_as_reals),
        cmocka_unit_test(test_huge_reals_read_as_the_largest),
        cmocka_unit_test(test_random_numbers_equal_the_c_library),
        cmocka_unit_test(test_malformed_stays_malformed),
        cmocka_unit_test(test_what_refuses_a_document),
        cmocka_unit_test(test_what_flags_and_marks_allow),
        cmocka_unit_test(test_load_names_the_file),
        cmocka_unit_test(test_integers_are_exact_or_refused),
        cmocka_unit_test(test_other_getters_name_found_and_expected),
        cmocka_unit_test(test_paths_and_the_first_fault),
        cmocka_unit_test(test_shown_cuts_at_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
