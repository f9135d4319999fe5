/* Every check of the safetensors header, one hostile file each, and what legal oddities must pass.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/model/safetensors.h"

/* Build a file: header text, then data_bytes of zeros (only counted). */
static enum status parse_sized(struct st_file *f, const char *header, uint64_t n,
                               uint64_t data_bytes, struct errtext *err)
{
    size_t len = strlen(header);
    uint8_t *head = mem_alloc(8 + len);
    for (int i = 0; i < 8; i++)
        head[i] = (uint8_t)(n >> (8 * i));
    memcpy(head + 8, header, len);
    enum status st = safetensors_parse(f, head, 8 + len, 8 + len + data_bytes, 1u << 20, err);
    mem_free(head);
    return st;
}

static enum status parse(struct st_file *f, const char *header, uint64_t data_bytes,
                         struct errtext *err)
{
    return parse_sized(f, header, strlen(header), data_bytes, err);
}

static void expect(const char *header, uint64_t data_bytes, enum status want, const char *says)
{
    struct st_file f;
    struct errtext err = ERRTEXT_INIT;
    enum status st = parse(&f, header, data_bytes, &err);
    if (st != want || !strstr(err.text, says))
        fail_msg("%s\n  found %s: '%s'\n  wanted %s with '%s'", header, status_name(st), err.text,
                 status_name(want), says);
    assert_null(f.tensor);
}

#define T(name, dtype, shape, offsets)                                                             \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void test_good(void **state)
{
    struct st_file f;
    struct errtext err = ERRTEXT_INIT;
    const char *header =
        "  {\"__metadata__\":{\"format\":\"pt\"}," T("b", "F32", "[2,3]", "[8,32]") "," T(
            "a", "BF16", "[4]", "[0,8]") "," T("empty", "F32", "[0,7]",
                                               "[8,8]") "," T("scalar", "U8", "[]",
                                                              "[32,33]") "}  \n";
    assert_int_equal(parse(&f, header, 33, &err), STATUS_OK);
    assert_int_equal(f.tensor_count, 4);
    assert_string_equal(f.tensor[0].name, "a");
    assert_int_equal(f.data_begin, 8 + strlen(header));
    const struct st_tensor *b = safetensors_find(&f, "b");
    assert_non_null(b);
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->dim[1], 3);
    assert_int_equal(b->begin, f.data_begin + 8);
    assert_int_equal(b->end, f.data_begin + 32);
    assert_null(safetensors_find(&f, "c"));
    safetensors_fini(&f);
    assert_int_equal(parse(&f, "{}", 0, &err), STATUS_OK);
    safetensors_fini(&f);
}

static void test_length_prefix(void **state)
{
    struct st_file f;
    struct errtext err = ERRTEXT_INIT;
    assert_int_equal(safetensors_parse(&f, "abc", 3, 3, 100, &err), STATUS_CORRUPT);
    err_clear(&err);
    assert_int_equal(parse_sized(&f, "{}", 3, 0, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.text, "header length"));
    err_clear(&err);
    assert_int_equal(parse_sized(&f, "{}", UINT64_MAX, 0, &err), STATUS_CORRUPT);
    /* the header may be truncated in memory although the file is long enough */
    uint8_t head[10] = {100, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    err_clear(&err);
    assert_int_equal(safetensors_parse(&f, head, sizeof(head), 1000, 1000, &err), STATUS_CORRUPT);
    /* too large only where the file has as much */
    err_clear(&err);
    assert_int_equal(safetensors_parse(&f, head, sizeof(head), 1000, 99, &err), STATUS_TOO_LARGE);
    err_clear(&err);
    assert_int_equal(safetensors_parse(&f, head, sizeof(head), 107, 99, &err), STATUS_CORRUPT);
}

/* What people have instead of weights is named, with what to do. */
static void test_foreign_files(void **state)
{
    static const struct {
        const char *bytes, *says;
    } files[] = {
        {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"},
        {"GGUF\3\0\0\0\1", "llama.cpp"},
        {"PK\3\4........", "torch.save"},
        {"<!DOCTYPE html><html>404", "web page"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        struct st_file f;
        struct errtext err = ERRTEXT_INIT;
        size_t len = strlen(files[i].bytes) < 8 ? 9 : strlen(files[i].bytes);
        assert_int_equal(safetensors_parse(&f, files[i].bytes, len, len, 1 << 20, &err),
                         STATUS_CORRUPT);
        if (!strstr(err.text, files[i].says))
            fail_msg("%s", err.text);
        /* eight bytes are all that some readers have */
        err_clear(&err);
        assert_int_equal(safetensors_parse(&f, files[i].bytes, 8, len, 1 << 20, &err),
                         STATUS_CORRUPT);
        assert_non_null(strstr(err.text, files[i].says));
    }
}

static void test_json(void **state)
{
    expect("{", 0, STATUS_CORRUPT, "not valid JSON");
    expect("[]", 0, STATUS_CORRUPT, "expected a JSON object");
    expect("{} x", 0, STATUS_CORRUPT, "not valid JSON");
    expect("{\"a\":{},\"a\":{}}", 0, STATUS_CORRUPT, "not valid JSON");
    expect("{\"\xff\":{}}", 0, STATUS_CORRUPT, "not valid JSON");
    expect("{\"a\":3}", 0, STATUS_CORRUPT, "expected an object");
    expect("{\"__metadata__\":{\"a\":1}}", 0, STATUS_CORRUPT, "__metadata__.a");
    expect("{\"__metadata__\":7}", 0, STATUS_CORRUPT, "__metadata__");
}

static void test_deep_json(void **state)
{
    char deep[40000];
    size_t n = 0;
    n += (size_t)snprintf(deep, sizeof(deep), "{\"a\":");
    for (int i = 0; i < 15000; i++)
        deep[n++] = '[';
    deep[n] = '\0';
    expect(deep, 0, STATUS_CORRUPT, "at most 64 is accepted");
}

static void test_fields(void **state)
{
    expect("{\"a\":{\"shape\":[],\"data_offsets\":[0,0]}}", 0, STATUS_CORRUPT, "dtype");
    expect("{" T("a", "F4", "[2]", "[0,1]") "}", 1, STATUS_UNSUPPORTED, "'F4'");
    expect("{" T("a", "F32", "7", "[0,4]") "}", 4, STATUS_CORRUPT, "shape");
    expect("{" T("a", "F32", "[-1]", "[0,4]") "}", 4, STATUS_CORRUPT, "shape[0]");
    expect("{" T("a", "F32", "[1.0]", "[0,4]") "}", 4, STATUS_CORRUPT, "shape[0]");
    expect("{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, STATUS_UNSUPPORTED, "9 dim");
    expect("{" T("a", "F32", "[1]", "[0]") "}", 4, STATUS_CORRUPT, "data_offsets");
    expect("{" T("a", "F32", "[1]", "[-4,0]") "}", 4, STATUS_CORRUPT, "data_offsets");
    expect("{" T("a", "F32", "[1]", "[4,0]") "}", 4, STATUS_CORRUPT, "outside");
    expect("{" T("a", "F32", "[2]", "[0,8]") "}", 4, STATUS_CORRUPT, "outside");
    expect("{" T("a", "F32", "[1]", "[0,9223372036854775808]") "}", 4, STATUS_CORRUPT,
           "data_offsets");
}

static void test_sizes(void **state)
{
    expect("{" T("a", "F32", "[3]", "[0,8]") "}", 8, STATUS_CORRUPT, "need 12");
    expect("{" T("a", "F32", "[4611686018427387904,4]", "[0,0]") "}", 0, STATUS_CORRUPT,
           "overflows");
    expect("{" T("a", "U8", "[4294967296,4294967296]", "[0,0]") "}", 0, STATUS_CORRUPT,
           "overflows");
    expect("{" T("a", "F32", "[0,4611686018427387904,4]", "[0,4]") "}", 4, STATUS_CORRUPT,
           "need 0");
}

static void test_cover(void **state)
{
    expect("{" T("a", "U8", "[4]", "[0,4]") "," T("b", "U8", "[4]", "[2,6]") "}", 6, STATUS_CORRUPT,
           "overlap");
    expect("{" T("a", "U8", "[4]", "[0,4]") "," T("b", "U8", "[4]", "[0,4]") "}", 4, STATUS_CORRUPT,
           "overlap");
    expect("{" T("a", "U8", "[4]", "[0,4]") "," T("b", "U8", "[4]", "[5,9]") "}", 9, STATUS_CORRUPT,
           "hole");
    expect("{" T("a", "U8", "[4]", "[1,5]") "}", 5, STATUS_CORRUPT, "hole");
    expect("{" T("a", "U8", "[4]", "[0,4]") "}", 5, STATUS_CORRUPT, "5 bytes of data");
    expect("{}", 1, STATUS_CORRUPT, "1 bytes of data");
}

/* Every prefix of a good file is refused, never read past. */
static void test_truncated(void **state)
{
    const char *header = "{" T("a", "F32", "[2]", "[0,8]") "}";
    size_t len = strlen(header), total = 8 + len + 8;
    uint8_t *file = mem_alloc(total);
    file[0] = (uint8_t)len;
    memcpy(file + 8, header, len);
    for (size_t n = 0; n < total; n++) {
        struct st_file f;
        uint8_t *cut = mem_alloc(n + 1);
        memcpy(cut, file, n);
        assert_int_not_equal(safetensors_parse(&f, cut, n, n, 1000, NULL), STATUS_OK);
        mem_free(cut);
    }
    mem_free(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),          cmocka_unit_test(test_length_prefix),
        cmocka_unit_test(test_foreign_files), cmocka_unit_test(test_json),
        cmocka_unit_test(test_deep_json),     cmocka_unit_test(test_fields),
        cmocka_unit_test(test_sizes),         cmocka_unit_test(test_cover),
        cmocka_unit_test(test_truncated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
