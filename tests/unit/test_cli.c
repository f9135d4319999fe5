/* Words to options, amounts and reverts to text, and manifests: what the command line signs is what
 * the server's own parser takes, and nothing else of it. */
#include <sodium.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "chain_client/eth/abi.h"
#include "chain_client/cli/node.h"
#include "chain_client/cli/sign.h"
#include "chain_client/cli/upload.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"
#include "server/base/file.h"

static int run_nothing(struct cli *c)
{
    return CLI_FINE;
}

static const struct cli_verb table[] = {
    {"audit epoch", "N", 1, 1, CLI_BIT(OPT_RPC) | CLI_BIT(OPT_REPLACE), CLI_BIT(OPT_RPC),
     run_nothing, "", NULL},
    {"audit", NULL, 0, 0, 0, 0, run_nothing, "", NULL},
    {"claim", NULL, 0, 0, CLI_BIT(OPT_WAIT_S), 0, run_nothing, "", NULL},
};

static const struct cli_verb *find(int argc, const char *const *argv, int *used)
{
    *used = -1;
    return args_verb(table, ARRAY_COUNT(table), argc, argv, used);
}

static void test_verbs_are_found_by_whole_words(void **state)
{
    int used;
    assert_ptr_equal(find(3, (const char *[]){"audit", "epoch", "3"}, &used), &table[0]);
    assert_int_equal(used, 2);
    assert_ptr_equal(find(2, (const char *[]){"audit", "x"}, &used), &table[1]);
    assert_int_equal(used, 1);
    assert_ptr_equal(find(1, (const char *[]){"claim"}, &used), &table[2]);
    assert_null(find(2, (const char *[]){"audi", "epoch"}, &used));
    assert_null(find(1, (const char *[]){"claims"}, &used));
    assert_null(find(1, (const char *[]){""}, &used));
    assert_null(find(0, NULL, &used));
}

static enum status parse(struct cli *c, struct errtext *err, int argc, const char *const *argv)
{
    static const char *words[8];
    memcpy(words, argv, (size_t)argc * sizeof(*words));
    err_clear(err);
    return args_parse(c, &table[0], argc, words, err);
}

static void test_options(void **state)
{
    struct cli c;
    struct errtext err = ERRTEXT_INIT;
    assert_int_equal(parse(&c, &err, 3, (const char *[]){"7", "--rpc", "u"}), STATUS_OK);
    assert_string_equal(c.operand[0], "7");
    assert_string_equal(c.value[OPT_RPC], "u");
    assert_false(cli_has(&c, OPT_REPLACE));
    assert_int_equal(parse(&c, &err, 4, (const char *[]){"--replace", "--rpc=u=v", "--", "--7"}),
                     STATUS_OK);
    assert_string_equal(c.operand[0], "--7");
    assert_string_equal(c.value[OPT_RPC], "u=v");
    assert_true(cli_has(&c, OPT_REPLACE));
    assert_int_equal(parse(&c, &err, 1, (const char *[]){"--help"}), STATUS_OK);
    static const char *const bad[][4] = {
        {"7"},
        {"--rpc", "u"},
        {"7", "8", "--rpc", "u"},
        {"7", "--rpc", ""},
        {"7", "--rpc"},
        {"7", "--rpc=u", "--rpc=u"},
        {"7", "--rpc=u", "--replace=1"},
        {"7", "--rpc=u", "--rp"},
        {"7", "--rpc=u", "--wait-s=1"},
        {"7", "--rpc=u", "--rpcx=1"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        const char *words[4];
        int n = 0;
        while (n < 4 && bad[i][n])
            words[n] = bad[i][n], n++;
        assert_int_equal(parse(&c, &err, n, words), STATUS_INVALID);
        assert_true(err.text[0] != '\0');
    }
}

static void test_numbers(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct cli c = {.verb = &table[2]};
    uint64_t v, range[2] = {1, 100};
    assert_int_equal(args_number(&c, OPT_WAIT_S, range, 42, &v, &err), STATUS_OK);
    assert_int_equal(v, 42);
    c.value[OPT_WAIT_S] = "100";
    assert_int_equal(args_number(&c, OPT_WAIT_S, range, 42, &v, &err), STATUS_OK);
    assert_int_equal(v, 100);
    static const char *const bad[] = {"", "0", "101", "-1", "1x", " 1", "99999999999999999999999"};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        c.value[OPT_WAIT_S] = bad[i];
        assert_int_equal(args_number(&c, OPT_WAIT_S, range, 42, &v, &err), STATUS_INVALID);
    }
}

static void test_amounts(void **state)
{
    char text[CLI_AMOUNT_BYTES];
    cli_amount(text, 0);
    assert_string_equal(text, "0.0 (0 base units)");
    cli_amount(text, 1500000000000000000u);
    assert_string_equal(text, "1.5 (1500000000000000000 base units)");
    cli_amount(text, 1);
    assert_string_equal(text, "0.000000000000000001 (1 base units)");
    cli_amount(text, ~(u128)0);
    assert_string_equal(text, "340282366920938463463.374607431768211455 "
                              "(340282366920938463463374607431768211455 base units)");
}

static void test_reverts(void **state)
{
    char text[256];
    uint8_t data[36] = {0};
    abi_selector(data, "NothingToClaim(uint128)");
    be_put(data + 4, 77, 32);
    assert_true(reverts_explain(text, sizeof(text), data, sizeof(data)));
    assert_string_equal(text, "nothing to claim: 77 base units were paid already");
    abi_selector(data, "BadProof()");
    assert_true(reverts_explain(text, sizeof(text), data, 4));
    assert_false(reverts_explain(text, sizeof(text), data, 3));
    abi_selector(data, "Other()");
    assert_false(reverts_explain(text, sizeof(text), data, 36));
}

static void test_names(void **state)
{
    static const char *const good[] = {"a", "org/adapter-1.v_2", "..a" + 1};
    static const char *const bad[] = {"", "/a", "a/", "a//b", "..", "a b", "a?b", "a%2f", "../a"};
    for (size_t i = 0; i < ARRAY_COUNT(good); i++)
        assert_int_equal(upload_check_name(good[i], NULL), STATUS_OK);
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        assert_int_equal(upload_check_name(bad[i], NULL), STATUS_INVALID);
}

/* ---- manifests ---- */

static char folder[] = "/tmp/rs-cli-XXXXXX";
static struct secp *secp;
static struct secp_key owner;
static struct sign_publisher publisher;

static void write_file(const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    assert_int_equal(file_write_atomic(path, text, strlen(text), 0644, NULL), STATUS_OK);
}

static int setup(void **state)
{
    char path[128];
    if (!mkdtemp(folder) || secp_create(&secp, NULL) || secp_key_random(secp, &owner, NULL))
        return 1;
    snprintf(path, sizeof(path), "%s/publisher", folder);
    return sign_publisher_new(path, &publisher, NULL) ? 1 : 0;
}

static int teardown(void **state)
{
    static const char *const file[] = {"publisher", "publish.json", "datanet.json"};
    char path[128];
    for (size_t i = 0; i < ARRAY_COUNT(file); i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, file[i]);
        unlink(path);
    }
    secp_destroy(secp);
    return rmdir(folder);
}

static void write_source(void)
{
    char text[2048], mine[43] = "0x";
    static const char other[] = "0x1111111111111111111111111111111111111111";
    static const char digest[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    hex_encode(mine + 2, owner.address, 20);
    snprintf(text, sizeof(text),
             "{\"version\": 3, \"owner\": \"%s\", \"prices\": {\"in\": \"5\", \"out\": \"7\"}, "
             "\"split\": [{\"payee\": \"%s\", \"role\": \"data\", \"bps\": 4000}, {\"payee\": "
             "\"%s\", \"role\": \"owner\", \"bps\": 6000}], \"datanet\": \"datanet.json\"}",
             mine, other, mine);
    write_file("publish.json", text);
    snprintf(text, sizeof(text),
             "{\"version\": 1, \"name\": \"tides\", \"tokenizerDigest\": \"%s\", \"documents\": "
             "[{\"docId\": 1, \"owner\": \"%s\", \"licence\": \"CC0-1.0\", \"bytes\": 3, "
             "\"digest\": \"%s\", \"file\": \"private/path.txt\"}, {\"docId\": 2, \"owner\": "
             "\"%s\", \"licence\": \"CC0-1.0\", \"bytes\": 3, \"digest\": \"ff%s\"}]}",
             digest, mine, digest, other, digest + 2);
    write_file("datanet.json", text);
}

static void load(struct sign_source *s)
{
    char path[128];
    struct errtext err = ERRTEXT_INIT;
    snprintf(path, sizeof(path), "%s/publish.json", folder);
    write_source();
    if (sign_source_load(s, path, &err))
        fail_msg("%s", err.text);
    memset(s->m.adapter_id, 0xa1, 32);
    memset(s->m.model_id, 0xb2, 32);
    memset(s->m.datanet_id, 0xc3, 32);
    memset(s->m.registry, 0xd4, 20);
    s->m.chain_id = 31337;
}

static json_t *make_signed(struct sign_source *s, uint8_t signature[SECP_SIGNATURE_BYTES])
{
    json_t *root;
    struct errtext err = ERRTEXT_INIT;
    struct sign_keys keys = {secp, &owner, &publisher};
    load(s);
    if (sign_manifest(&root, s, &keys, signature, &err))
        fail_msg("%s", err.text);
    return root;
}

static void test_the_server_takes_what_is_signed(void **state)
{
    struct sign_source s;
    uint8_t signature[SECP_SIGNATURE_BYTES], a[32], b[32];
    struct reward_entry entry[REWARD_ENTRIES_MAX];
    struct manifest_publish p;
    struct errtext err = ERRTEXT_INIT;
    struct manifest *got = calloc(1, sizeof(*got));
    json_t *root = make_signed(&s, signature);
    struct manifest_expect x = {.adapter_id = s.m.adapter_id,
                                .model_id = s.m.model_id,
                                .chain_id = 31337,
                                .registry = s.m.registry};
    if (manifest_parse_signed(got, root, &x, &err))
        fail_msg("%s", err.text);
    assert_int_equal(got->version, 3);
    assert_int_equal(got->documents->owner_count, 2);
    assert_int_equal(got->split[0].role, 1); /* ascending by role */
    /* the registry's digest is the manifest's */
    assert_int_equal(sign_as_publish(&p, entry, got, &err), STATUS_OK);
    manifest_publish_digest(a, &p, 31337, s.m.registry);
    manifest_digest(b, got);
    assert_memory_equal(a, b, 32);
    assert_int_equal(secp_verify(secp, signature, a, owner.address, NULL), STATUS_OK);
    json_decref(root);
    sign_source_fini(&s);
    manifest_fini(got);
    free(got);
}

static void test_any_other_manifest_is_refused(void **state)
{
    static const char *const field[] = {"adapterId",          "modelId",
                                        "datanetId",          "publisherKey",
                                        "publisherSignature", "ownerSignature"};
    struct sign_source s;
    uint8_t signature[SECP_SIGNATURE_BYTES];
    struct manifest *got = calloc(1, sizeof(*got));
    json_t *root = make_signed(&s, signature);
    struct manifest_expect x = {.adapter_id = s.m.adapter_id,
                                .model_id = s.m.model_id,
                                .chain_id = 31337,
                                .registry = s.m.registry};
    for (size_t i = 0; i < ARRAY_COUNT(field); i++) {
        char text[160];
        json_t *copy = json_deep_copy(root);
        snprintf(text, sizeof(text), "%s", json_string_value(json_object_get(root, field[i])));
        text[20] = text[20] == '5' ? '6' : '5';
        json_object_set_new(copy, field[i], json_string(text));
        assert_int_not_equal(manifest_parse_signed(got, copy, &x, NULL), STATUS_OK);
        assert_null(got->documents);
        json_decref(copy);
    }
    json_object_set_new(root, "version", json_integer(4));
    assert_int_equal(manifest_parse_signed(got, root, &x, NULL), STATUS_DENIED);
    json_decref(root);
    sign_source_fini(&s);
    free(got);
}

static void test_documents(void **state)
{
    struct sign_source s;
    uint8_t signature[SECP_SIGNATURE_BYTES], sig[SECP_SIGNATURE_BYTES], digest[32];
    struct manifest_licence l = {.licence = "CC0-1.0", .terms = ""};
    json_t *root = make_signed(&s, signature);
    const json_t *documents = json_object_get(root, "documents");
    const json_t *mine = json_array_get(documents, 0), *other = json_array_get(documents, 1);
    assert_null(json_object_get(mine, "file"));
    assert_null(json_object_get(other, "ownerSignature")); /* only the owner can sign */
    assert_true(
        hex_decode(sig, sizeof(sig), json_string_value(json_object_get(mine, "ownerSignature"))));
    memset(l.datanet_id, 0xc3, 32);
    assert_true(hex_decode(l.digest, 32, json_string_value(json_object_get(mine, "digest"))));
    manifest_licence_digest(digest, &l, 31337, s.m.registry);
    assert_int_equal(secp_verify(secp, sig, digest, owner.address, NULL), STATUS_OK);
    json_decref(root);
    sign_source_fini(&s);
}

static void refused(const char *publish, const char *datanet, const char *says)
{
    struct sign_source s;
    struct errtext err = ERRTEXT_INIT;
    char path[128];
    write_source();
    if (publish)
        write_file("publish.json", publish);
    if (datanet)
        write_file("datanet.json", datanet);
    snprintf(path, sizeof(path), "%s/publish.json", folder);
    assert_int_not_equal(sign_source_load(&s, path, &err), STATUS_OK);
    if (!strstr(err.text, says))
        fail_msg("'%s' does not say '%s'", err.text, says);
}

static void test_bad_sources_are_named(void **state)
{
    refused("[]", NULL, "expected a JSON object");
    refused("{", NULL, "line 1");
    refused("{\"datanet\": \"../x\"}", NULL, "beside");
    refused("{\"datanet\": 3}", NULL, "datanet");
    refused(NULL, "{\"version\": 1, \"name\": \"x\"}", "documents");
    refused(NULL, "{\"version\": 1, \"name\": \"x\", \"tokenizerDigest\": 7}", "tokenizerDigest");
    refused("{\"version\": 1}", NULL, "owner");
}

static void test_publisher_keys(void **state)
{
    struct sign_publisher again;
    char path[128];
    snprintf(path, sizeof(path), "%s/publisher", folder);
    assert_int_equal(sign_publisher_load(path, &again, NULL), STATUS_OK);
    assert_memory_equal(again.public, publisher.public, 32);
    assert_int_equal(sign_publisher_new(path, &again, NULL), STATUS_EXISTS);
    chmod(path, 0644);
    assert_int_equal(sign_publisher_load(path, &again, NULL), STATUS_DENIED);
    chmod(path, 0600);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_verbs_are_found_by_whole_words),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_amounts),
        cmocka_unit_test(test_reverts),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_the_server_takes_what_is_signed),
        cmocka_unit_test(test_any_other_manifest_is_refused),
        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_bad_sources_are_named),
        cmocka_unit_test(test_publisher_keys),
    };
    return sodium_init() < 0 ? 1 : cmocka_run_group_tests(tests, setup, teardown);
}
