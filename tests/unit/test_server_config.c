/* residuald's settings: every key's default, its flag, its place in the file, its range; what is
 * unknown is refused with a hint. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/config.h"

static char file_path[64];

static enum status load(struct config *c, struct errtext *err, int count, const char *const *args)
{
    static char program[] = "residuald";
    char *argv[32] = {program};
    assert_true(count < 31);
    for (int i = 0; i < count; i++)
        argv[1 + i] = (char *)(uintptr_t)args[i];
    return config_load(c, 1 + count, argv, err);
}

#define LOAD(c, err, ...)                                                                          \
    load(c, err, (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)),                    \
         (const char *[]){__VA_ARGS__})

/* Every number: name, offset, standard, least, most (0: not tested past it). */
#define N(field, standard, least, most)                                                            \
    {                                                                                              \
#field, offsetof(struct config, field), standard, least, most                              \
    }
static const struct {
    const char *name;
    size_t offset;
    uint64_t standard, least, most;
} numbers[] = {
    N(device, 0, 0, 63),
    N(device_bytes, 0, 0, 1ull << 44),
    N(adapters_device_bytes_max, 0, 0, 1ull << 44),
    N(threads, 0, 0, 1024),
    N(context_max, 0, 0, 1 << 20),
    N(rows_max, 0, 0, 8192),
    N(step_stretch_max, 300, 0, 100000),
    N(share_wait_ms_max, 1000, 1, 600000),
    N(seqs_max, 256, 1, 4096),
    N(waiting_max, 4096, 1, 65536),
    N(kv_bytes, 0, 0, 1ull << 44),
    N(packed_bytes_max, 0, 0, 1ull << 44),
    N(adapters_registered_max, 16384, 0, 1 << 20),
    N(adapters_per_batch_max, 64, 1, 1024),
    N(adapters_resident_max, 2048, 1, 65536),
    N(adapters_host_bytes_max, 2ull << 30, 1 << 16, 1ull << 44),
    N(adapter_rank_max, 128, 1, 512),
    N(adapter_wait_ms_max, 30000, 1, 600000),
    N(adapter_bytes_max, 1ull << 30, 1 << 12, 1ull << 40),
    N(publisher_bytes_max, 16ull << 30, 1 << 12, 1ull << 44),
    N(score_rate_ppb, 1000000000, 0, 1000000000),
    N(score_rows_max, 128, 0, 8192),
    N(score_queue_max, 1024, 1, 65536),
    N(score_bytes_max, 1ull << 30, 1 << 16, 1ull << 44),
    N(basis_bytes_max, 64ull << 20, 0, 1ull << 40),
    N(keys_bytes_max, 64ull << 20, 0, 1ull << 40),
    N(score_age_s_max, 86400, 1, 1u << 30),
    N(score_stuck_s, 600, 1, 1u << 30),
    N(train_threads, 0, 0, 1024),
    N(train_tokens, 1024, 16, 65536),
    N(train_running_max, 4, 1, 64),
    N(train_jobs_max, 256, 0, 65536),
    N(train_account_max, 64, 0, 65536),
    N(train_account_tokens_max, 0, 0, 1ull << 50),
    N(train_ended_max, 1000, 1, 65536),
    N(train_learners_max, 16, 0, 64),
    N(train_bytes_max, 0, 0, 1ull << 44),
    N(train_checkpoint_s, 30, 0, 1u << 20),
    N(spool_keep_bytes, 1ull << 30, 0, 1ull << 50),
    N(spool_keep_s, 604800, 0, 1u << 30),
    N(spool_bytes_max, 64ull << 30, 1 << 16, 1ull << 50),
    N(group_max, 64, 1, 65536),
    N(chain_id, 0, 0, 0),
    N(lane, 0, 0, UINT32_MAX),
    N(http_threads, 2, 1, 64),
    N(connections_max, 4096, 8, 65536),
    N(idle_timeout_s, 120, 1, 86400),
    N(header_timeout_s, 30, 1, 3600),
    N(body_timeout_s, 60, 1, 86400),
    N(bodies_bytes_max, 256 << 20, 1 << 20, 1ull << 40),
    N(stream_rest_ms, 40, 0, 1000),
    N(body_bytes_max, 8 << 20, 1024, 1ull << 32),
    N(n_max, 16, 1, 128),
    N(drain_s, 45, 0, 86400),
    N(lame_duck_s, 0, 0, 3600),
};

static uint64_t number_of(const struct config *c, size_t i)
{
    return *(const uint64_t *)((const char *)c + numbers[i].offset);
}

#define T(field, standard)                                                                         \
    {                                                                                              \
#field, offsetof(struct config, field), standard                                           \
    }
static const struct {
    const char *name;
    size_t offset;
    const char *standard;
} texts[] = {
    T(adapter_dir, NULL),   T(listen, "127.0.0.1:8080"), T(backend, "auto"),
    T(dtype, "auto"),       T(redis_url, NULL),          T(redis_password_file, NULL),
    T(ledger, NULL),        T(registry, NULL),           T(base_price_in, "0"),
    T(base_price_out, "0"), T(api_keys_file, NULL),      T(log_level, "info"),
    T(model_name, "base"),  T(model, "/x/base"),
};

static const char *text_of(const struct config *c, size_t i)
{
    return *(char *const *)((const char *)c + texts[i].offset);
}

static void test_defaults(void **state)
{
    struct config c;
    struct errtext err = ERRTEXT_INIT;
    if (LOAD(&c, &err, "--model", "/x/base"))
        fail_msg("%s", err.text);
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++) {
        if (number_of(&c, i) != numbers[i].standard)
            fail_msg("%s: default %" PRIu64, numbers[i].name, number_of(&c, i));
    }
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        const char *found = text_of(&c, i), *want = texts[i].standard;
        if (want ? !found || strcmp(found, want) : found != NULL)
            fail_msg("%s: default '%s'", texts[i].name, found ? found : "(none)");
    }
    assert_true(c.deterministic && c.prefix_cache && c.allow_runtime_loading);
    assert_false(c.help || c.plan || c.version || c.strict);
    assert_non_null(c.data_dir);
    assert_null(c.api_keys);
    assert_int_equal(c.adapter.count, 0);
    config_fini(&c);
}

static void set_one(const char *name, const char *value, bool dashes, struct config *c,
                    enum status want, const char *names)
{
    char flag[128];
    struct errtext err = ERRTEXT_INIT;
    snprintf(flag, sizeof(flag), "--%s=%s", name, value);
    for (char *p = flag + 2; dashes && *p != '='; p++)
        *p = *p == '_' ? '-' : *p;
    enum status st = LOAD(c, &err, "--model", "/x/base", flag);
    if (st != want)
        fail_msg("%s: %s '%s'", flag, status_name(st), err.text);
    if (want && (!strstr(err.text, names) || strcmp(err.param, name)))
        fail_msg("%s: '%s' (%s) does not name %s", flag, err.text, err.param, names);
}

/* Every number: both ends of its range, one past them, and nonsense. */
static void test_numbers(void **state)
{
    static const char *const bad[] = {"",   "x",   "-1",   " 5",  "+5",
                                      "5x", "5kk", "0x10", "1.5", "99999999999999999999999"};
    struct config c;
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++) {
        char value[32];
        uint64_t ends[2] = {numbers[i].least, numbers[i].most ? numbers[i].most : UINT64_MAX};
        for (int k = 0; k < 2; k++) {
            snprintf(value, sizeof(value), "%" PRIu64, ends[k]);
            set_one(numbers[i].name, value, k, &c, STATUS_OK, "");
            assert_int_equal(number_of(&c, i), ends[k]);
            config_fini(&c);
        }
        if (numbers[i].least > 0) {
            snprintf(value, sizeof(value), "%" PRIu64, numbers[i].least - 1);
            set_one(numbers[i].name, value, true, &c, STATUS_INVALID, "expected");
            config_fini(&c);
        }
        if (numbers[i].most) {
            snprintf(value, sizeof(value), "%" PRIu64, numbers[i].most + 1);
            set_one(numbers[i].name, value, true, &c, STATUS_INVALID, value);
            config_fini(&c);
        }
        for (size_t k = 0; k < ARRAY_COUNT(bad); k++) {
            set_one(numbers[i].name, bad[k], true, &c, STATUS_INVALID, "whole number");
            config_fini(&c);
        }
    }
    set_one("kv_bytes", "3g", true, &c, STATUS_OK, "");
    assert_int_equal(c.kv_bytes, 3ull << 30);
    config_fini(&c);
    set_one("kv_bytes", "2K", true, &c, STATUS_OK, "");
    assert_int_equal(c.kv_bytes, 2048);
    config_fini(&c);
    set_one("chain_id", "99999999999t", true, &c, STATUS_INVALID, "whole number");
    config_fini(&c);
}

/* One address never has all the connections unless the operator says so. */
static void test_connections_of_one_address(void **state)
{
    struct config c;
    assert_int_equal(LOAD(&c, NULL, "--model", "/x"), STATUS_OK);
    assert_int_equal(c.connections_per_ip_max, 3072);
    config_fini(&c);
    assert_int_equal(LOAD(&c, NULL, "--model", "/x", "--connections-max", "10"), STATUS_OK);
    assert_int_equal(c.connections_per_ip_max, 8);
    config_fini(&c);
    assert_int_equal(LOAD(&c, NULL, "--model", "/x", "--connections-per-ip-max", "4096"),
                     STATUS_OK);
    assert_int_equal(c.connections_per_ip_max, 4096);
    config_fini(&c);
    set_one("connections_per_ip_max", "65537", true, &c, STATUS_INVALID, "expected 0 to 65536");
    config_fini(&c);
}

static void test_texts_lists_switches(void **state)
{
    struct config c;
    struct errtext err = ERRTEXT_INIT;
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        if (!strcmp(texts[i].name, "model"))
            continue;
        set_one(texts[i].name, "some text", i % 2, &c, STATUS_OK, "");
        assert_string_equal(text_of(&c, i), "some text");
        config_fini(&c);
    }
    if (LOAD(&c, &err, "--model", "/x/base/", "--adapter", "a=/1", "--adapter=b=/2",
             "--adapter-roots", "/r", "--prefix-cache", "false", "--deterministic",
             "--allow-runtime-loading=off", "--plan", "--data-dir", "/d"))
        fail_msg("%s", err.text);
    assert_string_equal(c.model_name, "base"); /* past trailing slashes */
    assert_int_equal(c.adapter.count, 2);
    assert_string_equal(c.adapter.item[1], "b=/2");
    assert_int_equal(c.adapter_roots.count, 1);
    assert_string_equal(c.data_dir, "/d");
    assert_true(c.deterministic && c.plan);
    assert_false(c.prefix_cache || c.allow_runtime_loading);
    config_fini(&c);
    assert_int_equal(LOAD(&c, NULL, "--model", "/x", "--prefix-cache", "maybe"), STATUS_INVALID);
    config_fini(&c);
    assert_int_equal(LOAD(&c, NULL, "--help"), STATUS_OK); /* needs no model */
    assert_true(c.help);
    config_fini(&c);
    assert_int_equal(LOAD(&c, NULL, "--version"), STATUS_OK);
    config_fini(&c);
}

static void refused(struct errtext *err, enum status st, const char *text)
{
    if (!st || !strstr(err->text, text))
        fail_msg("%s '%s', wanted '%s'", status_name(st), err->text, text);
}

static void test_refused_flags(void **state)
{
    static const struct {
        const char *theirs, *ours;
    } renamed[] = {{"--max-model-len", "context_max"},
                   {"--max_num_seqs", "seqs_max"},
                   {"--max-num-batched-tokens", "rows_max"},
                   {"--max-loras", "adapters_per_batch_max"},
                   {"--max-cpu-loras", "adapters_resident_max"},
                   {"--max-lora-rank", "adapter_rank_max"},
                   {"--lora-modules", "adapter NAME=DIR"},
                   {"--served-model-name", "model_name"},
                   {"--host", "listen"},
                   {"--port", "listen"},
                   {"--api-key", "api_keys_file"},
                   {"--enable-prefix-caching", "prefix_cache"},
                   {"--enable-lora", "always enabled"},
                   {"--no-such-flag", "--help"}};
    struct config c;
    struct errtext err;
    for (size_t i = 0; i < ARRAY_COUNT(renamed); i++) {
        err = (struct errtext)ERRTEXT_INIT;
        refused(&err, LOAD(&c, &err, "--model", "/x", renamed[i].theirs, "1"), renamed[i].ours);
        config_fini(&c);
    }
    err = (struct errtext)ERRTEXT_INIT;
    refused(&err, LOAD(&c, &err, "--plan"), "model: missing");
    config_fini(&c);
    err = (struct errtext)ERRTEXT_INIT;
    refused(&err, LOAD(&c, &err, "--model", "/x", "stray"), "unexpected argument 'stray'");
    config_fini(&c);
    err = (struct errtext)ERRTEXT_INIT;
    refused(&err, LOAD(&c, &err, "--model"), "a value is missing");
    config_fini(&c);
    err = (struct errtext)ERRTEXT_INIT;
    refused(&err, LOAD(&c, &err, "--model", "/x", "--api-keys", "{}"), "array");
    config_fini(&c);
    err = (struct errtext)ERRTEXT_INIT;
    refused(&err, LOAD(&c, &err, "--model", "/x", "--config", "/no/such/file"), "/no/such/file");
    config_fini(&c);
}

static enum status load_text(struct config *c, const char *json, struct errtext *err)
{
    assert_int_equal(file_write_atomic(file_path, json, strlen(json), 0600, NULL), STATUS_OK);
    return LOAD(c, err, "--config", file_path, "--rows-max", "32");
}

/* The file holds the same keys; flags win over it wherever --config stands. */
static void test_file(void **state)
{
    struct config c;
    struct errtext err = ERRTEXT_INIT;
    if (load_text(&c,
                  "{\"model\":\"/m\",\"rows_max\":64,\"seqs_max\":8,\"kv_bytes\":\"2m\","
                  "\"prefix_cache\":false,\"adapter\":[\"a=/1\",\"b=/2\"],\"adapter_roots\":\"/r\","
                  "\"api_keys\":[{\"name\":\"k\"}]}",
                  &err))
        fail_msg("%s", err.text);
    assert_string_equal(c.model, "/m");
    assert_int_equal(c.rows_max, 32);
    assert_int_equal(c.seqs_max, 8);
    assert_int_equal(c.kv_bytes, 2 << 20);
    assert_false(c.prefix_cache);
    assert_int_equal(c.adapter.count, 2);
    assert_int_equal(c.adapter_roots.count, 1);
    assert_int_equal(json_array_size(c.api_keys), 1);
    config_fini(&c);
}

/* Budgets take a part of a whole that the server learns later. */
static void test_percentages(void **state)
{
    static const char *const bad[] = {"0%", "101%", "-5%", "5%%", "% 5", "5 %", "5.5%", "k%"};
    struct config c;
    struct errtext err = ERRTEXT_INIT;
    if (load_text(&c, "{\"model\":\"/m\",\"device_bytes\":\"80%\",\"kv_bytes\":\"2m\"}", &err))
        fail_msg("%s", err.text);
    assert_true(budget_is_percent(c.device_bytes));
    assert_false(budget_is_percent(c.kv_bytes));
    assert_int_equal(budget_bytes(c.device_bytes, 1000), 800);
    assert_int_equal(budget_bytes(c.kv_bytes, 1000), 2 << 20);
    config_fini(&c);
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        err = (struct errtext)ERRTEXT_INIT;
        refused(&err, LOAD(&c, &err, "--model", "/x", "--kv-bytes", bad[i]), "1% to 100%");
        config_fini(&c);
    }
    err = (struct errtext)ERRTEXT_INIT; /* only budgets */
    refused(&err, LOAD(&c, &err, "--model", "/x", "--rows-max", "50%"), "whole number of tokens");
    config_fini(&c);
}

static void test_bad_files(void **state)
{
    static const struct {
        const char *json, *names;
    } cases[] = {
        {"{", "line 1"},
        {"[]", "expected a JSON object"},
        {"{\"model\":\"/m\",\"nope\":1}", "unknown config key 'nope'"},
        {"{\"model\":\"/m\",\"max_loras\":1}", "adapters_per_batch_max"},
        {"{\"model\":\"/m\",\"help\":true}", "help"},
        {"{\"model\":1}", "model"},
        {"{\"model\":\"/m\",\"rows_max\":1.5}", "rows_max"},
        {"{\"model\":\"/m\",\"rows_max\":true}", "rows_max"},
        {"{\"model\":\"/m\",\"rows_max\":null}", "rows_max"},
        {"{\"model\":\"/m\",\"rows_max\":-3}", "rows_max"},
        {"{\"model\":\"/m\",\"seqs_max\":99999}", "seqs_max: found 99999, expected 1 to 4096"},
        {"{\"model\":\"/m\",\"prefix_cache\":\"yes\"}", "prefix_cache"},
        {"{\"model\":\"/m\",\"adapter\":[1]}", "adapter[0]"},
        {"{\"model\":\"/m\",\"adapter\":{}}", "adapter"},
        {"{\"model\":\"/m\",\"api_keys\":{}}", "api_keys"},
        {"{\"model\":\"/m\",\"model\":\"/n\"}", "line"},
        {"{\"model\":\"/m\",\"seqs_max\":4} x", "line"},
    };
    struct config c;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct errtext err = ERRTEXT_INIT;
        enum status st = load_text(&c, cases[i].json, &err);
        if (!st || !strstr(err.text, cases[i].names) || !strstr(err.text, file_path))
            fail_msg("%s: %s '%s'", cases[i].json, status_name(st), err.text);
        config_fini(&c);
    }
}

/* --help is the table: it names every key with its unit and default. */
static void test_help(void **state)
{
    char path[80], *text, flag[80];
    size_t len;
    snprintf(path, sizeof(path), "%s.help", file_path);
    fflush(stdout);
    int keep = dup(1);
    assert_non_null(freopen(path, "w", stdout));
    config_print_help();
    fflush(stdout);
    dup2(keep, 1);
    close(keep);
    assert_int_equal(file_read(path, 1 << 20, &text, &len, NULL), STATUS_OK);
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++) {
        snprintf(flag, sizeof(flag), "  --%s ", numbers[i].name);
        for (char *p = flag; *p; p++)
            *p = *p == '_' ? '-' : *p;
        const char *at = strstr(text, flag);
        if (!at)
            fail_msg("--help lacks%s", flag);
        snprintf(flag, sizeof(flag), "(default %" PRIu64 ")", numbers[i].standard);
        const char *next = strstr(at + 3, "\n  --"), *found = strstr(at, flag);
        assert_true(found && (!next || found < next));
    }
    mem_free(text);
    unlink(path);
}

static int setup(void **state)
{
    (void)state;
    snprintf(file_path, sizeof(file_path), "/tmp/rs-config-XXXXXX");
    int fd = mkstemp(file_path);
    return fd < 0 ? -1 : close(fd);
}

static int teardown(void **state)
{
    (void)state;
    return unlink(file_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_connections_of_one_address),
        cmocka_unit_test(test_percentages),
        cmocka_unit_test(test_texts_lists_switches),
        cmocka_unit_test(test_refused_flags),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_help),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
