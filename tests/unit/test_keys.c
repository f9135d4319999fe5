/* API keys from the config: every field checked and named, digests only, files of mode 600. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/keys.h"

#define D1 "\"1111111111111111111111111111111111111111111111111111111111111111\""
#define D2 "\"0x2222222222222222222222222222222222222222222222222222222222222222\""

static enum status load(const char *json, struct http_key **keys, uint32_t *count,
                        struct errtext *err)
{
    struct config c = {.api_keys = json_loads(json, 0, NULL)};
    assert_non_null(c.api_keys);
    enum status st = keys_load(keys, count, &c, err);
    json_decref(c.api_keys);
    return st;
}

static void test_good(void **state)
{
    struct http_key *keys;
    uint32_t count;
    struct errtext err = ERRTEXT_INIT;
    if (load("[{\"name\":\"alice\",\"digest\":" D1 ",\"roles\":[\"infer\",\"publish\"],"
             "\"adapters\":[\"a\",\"team/*\"],"
             "\"account\":\"0x1234567890123456789012345678901234567890\","
             "\"publish_bytes_max\":5000},"
             "{\"name\":\"root\",\"digest\":" D2 ",\"roles\":[\"admin\",\"worker\"]}]",
             &keys, &count, &err))
        fail_msg("%s", err.text);
    assert_int_equal(count, 2);
    assert_string_equal(keys[0].name, "alice");
    assert_int_equal(keys[0].roles, HTTP_ROLE_INFER | HTTP_ROLE_PUBLISH);
    assert_int_equal(keys[0].adapter_count, 2);
    assert_string_equal(keys[0].adapter[1], "team/*");
    assert_int_equal(keys[0].account[0], 0x12);
    assert_int_equal(keys[0].publish_bytes_max, 5000);
    assert_int_equal(keys[1].digest[31], 0x22);
    assert_int_equal(keys[1].roles, HTTP_ROLE_ADMIN | HTTP_ROLE_WORKER);
    assert_int_equal(keys[1].adapter_count, 0);
    mem_free(keys);
    assert_int_equal(load("[]", &keys, &count, NULL), STATUS_OK);
    assert_int_equal(count, 0);
    mem_free(keys);
}

static void test_refused(void **state)
{
    static const struct {
        const char *json, *names;
    } cases[] = {
        {"[1]", "api_keys[0].name"},
        {"[{}]", "api_keys[0].name"},
        {"[{\"name\":\"\"}]", "api_keys[0].name"},
        {"[{\"name\":\"a\"}]", "api_keys[0].digest"},
        {"[{\"name\":\"a\",\"digest\":\"12\"}]", "api_keys[0].digest"},
        {"[{\"name\":\"a\",\"digest\":" D1 "}]", "api_keys[0].roles"},
        {"[{\"name\":\"a\",\"digest\":" D1 ",\"roles\":[]}]", "api_keys[0].roles"},
        {"[{\"name\":\"a\",\"digest\":" D1 ",\"roles\":\"infer\"}]", "api_keys[0].roles"},
        {"[{\"name\":\"a\",\"digest\":" D1 ",\"roles\":[\"root\"]}]", "api_keys[0].roles"},
        {"[{\"name\":\"a\",\"digest\":" D1 ",\"roles\":[7]}]", "api_keys[0].roles"},
        {"[{\"name\":\"a\",\"digest\":" D1 ",\"roles\":[\"infer\"],\"adapters\":\"x\"}]",
         "api_keys[0].adapters"},
        {"[{\"name\":\"a\",\"digest\":" D1 ",\"roles\":[\"infer\"],\"adapters\":[\"\"]}]",
         "api_keys[0].adapters"},
        {"[{\"name\":\"a\",\"digest\":" D1 ",\"roles\":[\"infer\"],\"account\":\"0x1\"}]",
         "api_keys[0].account"},
        {"[{\"name\":\"a\",\"digest\":" D1 ",\"roles\":[\"infer\"],\"publish_bytes_max\":-1}]",
         "api_keys[0].publish_bytes_max"},
        {"[{\"name\":\"a\",\"digest\":" D1 ",\"roles\":[\"infer\"],\"key\":\"secret\"}]",
         "api_keys[0].key"},
        {"[{\"name\":\"a\",\"digest\":" D1 ",\"roles\":[\"infer\"]},"
         "{\"name\":\"a\",\"digest\":" D2 ",\"roles\":[\"infer\"]}]",
         "api_keys[1].name"},
        {"[{\"name\":\"a\",\"digest\":" D1 ",\"roles\":[\"infer\"]},"
         "{\"name\":\"b\",\"digest\":" D1 ",\"roles\":[\"infer\"]}]",
         "api_keys[1].digest"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct http_key *keys;
        uint32_t count;
        struct errtext err = ERRTEXT_INIT;
        enum status st = load(cases[i].json, &keys, &count, &err);
        if (st != STATUS_INVALID || !strstr(err.text, cases[i].names) ||
            strcmp(err.param, "api_keys"))
            fail_msg("%s: %s '%s'", cases[i].json, status_name(st), err.text);
        assert_null(keys);
        if (strstr(err.text, "secret") || strstr(err.text, "1111"))
            fail_msg("shows a secret: %s", err.text);
    }
}

static void test_file(void **state)
{
    static const char json[] = "[{\"name\":\"a\",\"digest\":" D1 ",\"roles\":[\"infer\"]}]\n";
    char path[] = "/tmp/rs-keys-XXXXXX";
    struct http_key *keys;
    uint32_t count;
    struct errtext err = ERRTEXT_INIT;
    struct config c = {.api_keys_file = path};
    close(mkstemp(path));
    assert_int_equal(file_write_atomic(path, json, sizeof(json) - 1, 0600, NULL), STATUS_OK);
    if (keys_load(&keys, &count, &c, &err))
        fail_msg("%s", err.text);
    assert_int_equal(count, 1);
    mem_free(keys);
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(keys_load(&keys, &count, &c, &err), STATUS_DENIED);
    assert_non_null(strstr(err.text, path));
    assert_int_equal(chmod(path, 0600), 0);
    c.api_keys = json_array();
    assert_int_equal(keys_load(&keys, &count, &c, NULL), STATUS_INVALID); /* one of them */
    json_decref(c.api_keys);
    c.api_keys = NULL;
    assert_int_equal(file_write_atomic(path, "not json", 8, 0600, NULL), STATUS_OK);
    assert_int_equal(keys_load(&keys, &count, &c, NULL), STATUS_INVALID);
    unlink(path);
    assert_int_equal(keys_load(&keys, &count, &c, NULL), STATUS_NOT_FOUND);
    c.api_keys_file = NULL;
    assert_int_equal(keys_load(&keys, &count, &c, NULL), STATUS_OK);
    assert_int_equal(count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
