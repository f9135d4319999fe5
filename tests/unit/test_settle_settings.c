/* Settings and the deployment file: what is taken, and what is refused by name. */
#include "chain_client/settle/deployment.h"
#include "chain_client/settle/settings.h"
#include "server/base/check.h"
#include "server/base/file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static enum status load(struct settings *s, struct errtext *err, const char *const *flags)
{
    static char program[] = "residual-settle";
    char *argv[24] = {program};
    int argc = 1;
    *err = (struct errtext)ERRTEXT_INIT;
    while (*flags)
        argv[argc++] = (char *)(uintptr_t)*flags++;
    return settings_load(s, argc, argv, err);
}

#define LOAD(s, err, ...) load(s, err, (const char *const[]){__VA_ARGS__, NULL})

static void test_flags_win_over_the_file(void **state)
{
    struct settings s;
    struct errtext err;
    char path[] = "/tmp/rs-settings-XXXXXX";
    static const char text[] =
        "{\"poll_ms\": 300, \"batch_count_max\": 7, \"committer_key_file\": \"k\","
        " \"proposer_key_file\": \"l\", \"rpc_url\": [\"a\", \"b\"],"
        " \"deployment\": \"d\", \"lane_key\": [\"1=a\", \"2=b\"]}";
    close(mkstemp(path));
    assert_int_equal(file_write_atomic(path, text, strlen(text), 0600, NULL), STATUS_OK);
    assert_int_equal(LOAD(&s, &err, "--batch-count-max", "9", "--config", path), STATUS_OK);
    assert_int_equal(s.poll_ms, 300);
    assert_int_equal(s.batch_count_max, 9);
    assert_int_equal(s.lane_key.count, 2);
    assert_int_equal(s.lane_key.item[1].lane, 2);
    assert_string_equal(s.lane_key.item[1].text, "b");
    assert_int_equal(s.epoch_seconds, 86400);
    assert_int_equal(s.rpc_url.count, 2);
    assert_string_equal(s.rpc_url.item[1], "b");
    settings_fini(&s);
    unlink(path);
}

static void test_refusals(void **state)
{
    struct settings s;
    struct errtext err;
    const struct {
        const char *flag, *value, *said;
    } bad[] = {
        {"--nothing", "1", "unknown flag 'nothing'"},
        {"--poll-ms", "49", "expected 50 to 60000 ms"},
        {"--poll-ms", "-1", "found '-1', expected a whole number of ms (k, m, g may follow)"},
        {"--poll-ms", "5x", "found '5x'"},
        {"--lane-key", "0=x", "expected LANE=FILE"},
        {"--lane-key", "x", "expected LANE=FILE"},
        {"--lane-key", "1=", "expected LANE=FILE"},
        {"--config", "/nothing/here", "/nothing/here"},
        {"--explorer-url", "javascript:alert(1)", "expected http:// or https://"},
        {"--public-rpc-url", "127.0.0.1:8545", "expected http:// or https://"},
        {"-x", "1", "unexpected argument"},
        {"status", "3", "unexpected argument '3'"}};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        assert_int_not_equal(LOAD(&s, &err, "run", bad[i].flag, bad[i].value), STATUS_OK);
        if (!strstr(err.text, bad[i].said))
            fail_msg("%s %s: %s", bad[i].flag, bad[i].value, err.text);
        settings_fini(&s);
    }
    assert_int_equal(LOAD(&s, &err, "run"), STATUS_INVALID);
    assert_string_equal(err.param, "deployment");
    settings_fini(&s);
    assert_int_equal(LOAD(&s, &err, "--lane-key", "1=a", "--lane-key", "1=b"), STATUS_INVALID);
    settings_fini(&s);
    assert_int_equal(LOAD(&s, &err, "status", "--json"), STATUS_OK);
    assert_true(s.json);
    settings_fini(&s);
}

/* The same rules as residuald's: suffixes, words wherever they stand, -h. */
static void test_same_rules(void **state)
{
    struct settings s;
    struct errtext err;
    assert_int_equal(LOAD(&s, &err, "--read-count=1k", "status", "--batch-count-max", "2K"),
                     STATUS_OK);
    assert_string_equal(s.verb, "status");
    assert_int_equal(s.read_count, 1024);
    assert_int_equal(s.batch_count_max, 2048);
    settings_fini(&s);
    assert_int_equal(LOAD(&s, &err, "resume", "--state-dir", "/d", "3"), STATUS_OK);
    assert_string_equal(s.operand, "3");
    settings_fini(&s);
    assert_int_equal(LOAD(&s, &err, "-h"), STATUS_OK);
    assert_true(s.help);
    settings_fini(&s);
    assert_int_equal(LOAD(&s, &err, "--version"), STATUS_OK);
    assert_true(s.version);
    settings_fini(&s);
}

#define H "0x1111111111111111111111111111111111111111111111111111111111111111"
#define A "0x2222222222222222222222222222222222222222"

/* Keys apart, and who is asked. */
static void test_roles_and_endpoints(void **state)
{
    struct settings s;
    struct errtext err;
    static const char *const want[] = {"committer_key_file", "proposer_key_file"};
    const char *flags[][9] = {
        {"--deployment", "d", "--lane-key", "1=a", "--proposer-key-file", "p", NULL},
        {"--deployment", "d", "--lane-key", "1=a", "--committer-key-file", "c", NULL},
    };
    for (size_t i = 0; i < ARRAY_COUNT(want); i++) {
        assert_int_equal(load(&s, &err, flags[i]), STATUS_INVALID);
        assert_string_equal(err.param, want[i]);
        settings_fini(&s);
    }
    assert_int_equal(LOAD(&s, &err, "--deployment", "d", "--lane-key", "1=a",
                          "--committer-key-file", "c", "--proposer-key-file", "p"),
                     STATUS_OK);
    assert_null(s.funder_key_file);
    assert_int_equal(s.rpc_url.count, 1);
    assert_string_equal(s.rpc_url.item[0], "http://127.0.0.1:8545");
    assert_int_equal(s.rpc_head_age_max_s, 60);
    settings_fini(&s);
    assert_int_equal(LOAD(&s, &err, "--deployment", "d", "--lane-key", "1=a",
                          "--committer-key-file", "c", "--proposer-key-file", "p", "--rpc-url", "x",
                          "--rpc-url", "y", "--rpc-authorization-file", "f"),
                     STATUS_INVALID);
    assert_string_equal(err.param, "rpc_authorization_file");
    settings_fini(&s);
}

static void test_deployment(void **state)
{
    static const char good[] =
        "{\"chain_id\": 5, \"genesis_hash\": \"" H "\", \"registry\": \"" A "\", \"ledger\": \"" A
        "\", \"vault\": \"" A "\", \"token\": \"" A "\", \"code_hash\": {\"registry\": \"" H
        "\", \"ledger\": \"" H "\", \"vault\": \"" H "\"}, \"start_block\": 3, \"datanets\": []}";
    static const char *const names[] = {"chain_id", "genesis_hash", "registry",   "ledger",
                                        "vault",    "token",        "start_block"};
    struct deployment d;
    struct errtext err = ERRTEXT_INIT;
    assert_int_equal(deployment_parse(&d, good, strlen(good), &err), STATUS_OK);
    assert_int_equal(d.chain_id, 5);
    assert_int_equal(d.vault[19], 0x22);
    assert_int_equal(d.vault_code[0], 0x11);
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        char text[sizeof(good)];
        memcpy(text, good, sizeof(good));
        char *at = strstr(text, names[i]);
        at[0] ^= 1;
        err_clear(&err);
        assert_int_equal(deployment_parse(&d, text, strlen(text), &err), STATUS_INVALID);
        if (strcmp(err.param, names[i]) != 0)
            fail_msg("%s: %s", names[i], err.text);
    }
    assert_int_equal(deployment_parse(&d, "[]", 2, NULL), STATUS_INVALID);
    assert_int_equal(deployment_parse(&d, good, strlen(good) - 1, NULL), STATUS_INVALID);
    assert_int_equal(deployment_load(&d, "/nothing/here", NULL), STATUS_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flags_win_over_the_file),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_same_rules),
        cmocka_unit_test(test_roles_and_endpoints),
        cmocka_unit_test(test_deployment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
