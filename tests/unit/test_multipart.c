/* Forms as SDKs, browsers and liars send them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "server/base/check.h"
#include "server/http/multipart.h"

#include <string.h>

static struct multipart_part part[MULTIPART_PARTS_MAX];
static uint32_t count;
static struct errtext err;

static enum status parse(const char *body)
{
    err_clear(&err);
    return multipart_parse(body, strlen(body), "b0", part, &count, &err);
}

static void test_boundary(void **state)
{
    (void)state;
    char out[MULTIPART_BOUNDARY_MAX + 1];
    static const char *const good[] = {"multipart/form-data; boundary=b0",
                                       "Multipart/Form-Data ; charset=utf-8; Boundary=\"b0\"",
                                       "multipart/form-data;x=\"a;boundary=no\";boundary=b0"};
    static const char *const bad[] = {
        "application/json",
        "multipart/mixed; boundary=b0",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\"a\x01\"",
        "multipart/form-data; boundary="
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"};
    for (size_t i = 0; i < ARRAY_COUNT(good); i++) {
        assert_int_equal(multipart_boundary(out, good[i], &err), STATUS_OK);
        assert_string_equal(out, "b0");
    }
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        assert_int_equal(multipart_boundary(out, bad[i], &err), STATUS_INVALID);
    assert_int_equal(multipart_boundary(out, NULL, &err), STATUS_INVALID);
}

static void test_parts(void **state)
{
    (void)state;
    assert_int_equal(
        parse(
            "--b0\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n"
            "--b0 \r\ncontent-disposition: form-data; name=\"file\"; filename=\"a \\\"b%22.jsonl\""
            "\r\nContent-Type: application/octet-stream\r\n\r\n{\r\n--b1}\r\n\r\n--b0\r\n"
            "Content-Disposition: form-data; name=none\r\n\r\n\r\n--b0--\r\nepilogue"),
        STATUS_OK);
    assert_int_equal(count, 3);
    assert_string_equal(part[0].name, "purpose");
    assert_true(part[0].len == 9 && memcmp(part[0].data, "fine-tune", 9) == 0);
    assert_string_equal(part[1].filename, "a \"b\".jsonl");
    assert_true(part[1].len == 10 && memcmp(part[1].data, "{\r\n--b1}\r\n", 10) == 0);
    assert_int_equal(part[2].len, 0);
    assert_ptr_equal(multipart_find(part, count, "file"), &part[1]);
    assert_null(multipart_find(part, count, "absent"));
    assert_int_equal(parse("preamble\r\n--b0--"), STATUS_OK);
    assert_int_equal(count, 0);
}

static void test_refused(void **state)
{
    (void)state;
#define HEAD "Content-Disposition: form-data; name=\"a\"\r\n\r\n"
    static const struct {
        const char *body, *says;
    } bad[] = {
        {"", "none of the boundaries"},
        {"{}", "none of the boundaries"},
        {"--b0", "not followed by a line break"},
        {"--b0x\r\n" HEAD "\r\n--b0--", "not followed by a line break"},
        {"--b0\r\n" HEAD "cut", "part 1 of the body: no boundary ends it"},
        {"--b0\r\n" HEAD "1\r\n--b0\r\nContent-Disposition: form-data", "part 2 of the body"},
        {"--b0\r\n\r\n1\r\n--b0--", "no Content-Disposition"},
        {"--b0\r\nContent-Disposition: attachment; name=a\r\n\r\n1\r\n--b0--", "form-data"},
        {"--b0\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b0--", "expected a name"},
        {"--b0\r\nno colon\r\n\r\n1\r\n--b0--", "without a colon"}};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        assert_int_equal(parse(bad[i].body), STATUS_INVALID);
        if (!strstr(err.text, bad[i].says))
            fail_msg("%zu: '%s' does not say '%s'", i, err.text, bad[i].says);
    }
    char many[4096] = "";
    for (int i = 0; i <= (int)MULTIPART_PARTS_MAX; i++)
        strncat(many, "--b0\r\n" HEAD "1\r\n", sizeof(many) - strlen(many) - 1);
    assert_int_equal(parse(many), STATUS_TOO_LARGE);
    assert_int_equal(count, MULTIPART_PARTS_MAX);
}

/* Two of one name are none: nobody can tell which was meant. */
static void test_twice(void **state)
{
    (void)state;
    assert_int_equal(parse("--b0\r\n" HEAD "1\r\n--b0\r\n" HEAD "2\r\n--b0--"), STATUS_OK);
    assert_int_equal(count, 2);
    assert_null(multipart_find(part, count, "a"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_boundary),
                                       cmocka_unit_test(test_parts), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_twice)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
