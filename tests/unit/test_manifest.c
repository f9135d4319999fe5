/* Publish manifests: the golden digest, both signatures, every field refused by name. */
#include "chain_client/manifest.h"
#include "tests/unit/adapter_fixture.h"
#include "tests/unit/golden_json.h"
#include "tests/unit/manifest_fixture.h"

static void test_golden(void **state)
{
    char *data;
    size_t len;
    assert_int_equal(file_read(RS_TEST_DATA "/golden.json", 1u << 24, &data, &len, NULL),
                     STATUS_OK);
    json_t *root = json_loadb(data, len, 0, NULL);
    const json_t *p = get(get(root, "manifests"), "publish"), *j = get(p, "manifest"),
                 *split = get(j, "split"), *parents = get(j, "parents");
    struct manifest m = {.chain_id = (uint64_t)num(root, "chainId"),
                         .datanet_version = (uint64_t)num(j, "datanetVersion"),
                         .version = (uint64_t)num(j, "version")};
    uint8_t digest[32];
    bytes(m.adapter_id, 32, get(j, "adapterId"));
    bytes(m.model_id, 32, get(j, "modelId"));
    bytes(m.datanet_id, 32, get(j, "datanetId"));
    bytes(m.owner, 20, get(j, "owner"));
    bytes(m.registry, 20, get(root, "registry"));
    m.tariff = (struct tariff){num(j, "priceIn"), num(j, "priceOut")};
    m.split_count = (uint32_t)json_array_size(split);
    for (uint32_t i = 0; i < m.split_count; i++) {
        const json_t *s = json_array_get(split, i);
        bytes(m.split[i].payee, 20, get(s, "payee"));
        m.split[i].role = (uint8_t)num(s, "role");
        m.split[i].bps = (uint16_t)num(s, "bps");
    }
    m.parent_count = (uint32_t)json_array_size(parents);
    for (uint32_t i = 0; i < m.parent_count; i++) {
        bytes(m.parent[i].adapter_id, 32, get(json_array_get(parents, i), "adapterId"));
        m.parent[i].bps = (uint16_t)num(json_array_get(parents, i), "bps");
    }
    manifest_digest(digest, &m);
    expect_hex(digest, 32, text(p, "digest"));
    uint8_t sig[65];
    struct secp *secp;
    bytes(sig, 65, get(p, "signature"));
    assert_int_equal(secp_create(&secp, NULL), STATUS_OK);
    assert_int_equal(secp_verify(secp, sig, digest, m.owner, NULL), STATUS_OK);
    secp_destroy(secp);
    json_decref(root);
    mem_free(data);
}

static struct manifest_keys keys;
static struct manifest plain;
static struct manifest_expect expected;

static int setup(void **state)
{
    (void)state;
    if (sodium_init() < 0)
        return -1;
    keys_create(&keys, 7);
    plain = (struct manifest){.version = 3, .chain_id = 31337, .tariff = {1000, 2000}};
    memset(plain.adapter_id, 1, 32);
    memset(plain.model_id, 2, 32);
    memset(plain.registry, 3, 20);
    expected = (struct manifest_expect){.adapter_id = plain.adapter_id,
                                        .model_id = plain.model_id,
                                        .chain_id = 31337,
                                        .registry = plain.registry};
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    keys_destroy(&keys);
    return 0;
}

static enum status parse(const json_t *j, struct manifest *m, struct errtext *err)
{
    return manifest_parse_signed(m, j, &expected, err);
}

static void test_signed(void **state)
{
    struct manifest m;
    struct errtext err = ERRTEXT_INIT;
    json_t *j = manifest_json(&plain, &keys);
    if (parse(j, &m, &err))
        fail_msg("%s", err.text);
    assert_int_equal(m.version, 3);
    assert_int_equal((uint64_t)m.tariff.out, 2000);
    assert_int_equal(m.split_count, 2);
    assert_int_equal(m.split[0].role, 1); /* sorted by role */
    assert_int_equal(m.split[1].bps, 6000);
    assert_memory_equal(m.owner, keys.owner.address, 20);
    json_decref(j);
}

/* Change one field of a good manifest; the text must name it. */
static void refused(const char *field, json_t *value, enum status want, const char *names)
{
    struct manifest m;
    struct errtext err = ERRTEXT_INIT;
    json_t *j = manifest_json(&plain, &keys);
    if (value)
        json_object_set_new(j, field, value);
    else
        json_object_del(j, field);
    enum status st = parse(j, &m, &err);
    if (st != want || !strstr(err.text, names) || strncmp(err.param, "manifest", 8))
        fail_msg("%s: %s '%s' ('%s'), wanted %s '%s'", field, status_name(st), err.text, err.param,
                 status_name(want), names);
    json_decref(j);
}

static void test_fields(void **state)
{
    static const char *const all[] = {"version",
                                      "adapterId",
                                      "modelId",
                                      "datanetId",
                                      "datanetVersion",
                                      "owner",
                                      "prices",
                                      "split",
                                      "parents",
                                      "chainId",
                                      "registry",
                                      "publisherKey",
                                      "publisherSignature",
                                      "ownerSignature"};
    uint8_t other[65] = {9};
    for (size_t i = 0; i < ARRAY_COUNT(all); i++) {
        char names[64];
        snprintf(names, sizeof(names), "manifest.%s", all[i]);
        refused(all[i], NULL, STATUS_INVALID, names);
        refused(all[i], json_true(), STATUS_INVALID, names);
        refused(all[i], json_string("0x12"), STATUS_INVALID, names);
    }
    refused("version", json_integer(-1), STATUS_INVALID, "manifest.version");
    refused("adapterId", hex_json(other, 32), STATUS_INVALID, "manifest.adapterId");
    refused("modelId", hex_json(other, 32), STATUS_INVALID, "manifest.modelId");
    refused("chainId", json_integer(1), STATUS_INVALID, "31337");
    refused("registry", hex_json(other, 20), STATUS_INVALID, "manifest.chainId, registry");
    refused("prices", json_pack("{s:s,s:s}", "in", "1", "out", "1208925819614629174706176"),
            STATUS_INVALID, "2^80");
    refused("prices", json_pack("{s:s,s:s}", "in", "-1", "out", "1"), STATUS_INVALID, "prices");
    refused("split", json_array(), STATUS_INVALID, "split");
    refused("split", json_pack("[o]", split_json(other, "author", 9999)), STATUS_INVALID, "9999");
    refused("split", json_pack("[o]", split_json(other, "friend", 10000)), STATUS_INVALID, "role");
    refused("split",
            json_pack("[o,o]", split_json(other, "data", 5000), split_json(other, "data", 5000)),
            STATUS_INVALID, "once per role");
    refused("split",
            json_pack("[o,o]", split_json(other, "data", 0), split_json(other, "author", 10000)),
            STATUS_INVALID, "bps");
}

/* Nothing that is signed can be changed, and nobody else can sign. */
static void test_signatures(void **state)
{
    uint8_t payee[20] = {1};
    struct manifest_keys other;
    struct manifest m;
    refused("version", json_integer(4), STATUS_DENIED, "publisherSignature");
    refused("prices", json_pack("{s:s,s:s}", "in", "0", "out", "0"), STATUS_DENIED,
            "publisherSignature");
    refused("split", json_pack("[o]", split_json(payee, "author", 10000)), STATUS_DENIED,
            "publisherSignature");
    keys_create(&other, 8);
    refused("publisherKey", hex_json(other.publisher_public, 32), STATUS_DENIED,
            "publisherSignature");
    /* the owner's signature by another account */
    struct errtext err = ERRTEXT_INIT;
    uint8_t digest[32], sig[65];
    json_t *j = manifest_json(&plain, &keys);
    manifest_digest(digest, &plain);
    assert_int_equal(secp_sign(other.secp, sig, &other.owner, digest, NULL), STATUS_OK);
    json_object_set_new(j, "ownerSignature", hex_json(sig, 65));
    assert_int_equal(parse(j, &m, &err), STATUS_DENIED);
    assert_non_null(strstr(err.text, "ownerSignature"));
    json_decref(j);
    keys_destroy(&other);
}

static void test_documents(void **state)
{
    struct manifest m;
    struct errtext err = ERRTEXT_INIT;
    struct manifest with = plain;
    memset(with.datanet_id, 5, 32);
    with.datanet_version = 1;
    json_t *j = manifest_json(&with, &keys);
    assert_int_equal(parse(j, &m, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "manifest.documents"));
    json_t *docs = json_pack("[o,o,o,o]", document_json(1, 0x30), document_json(2, 0x10),
                             document_json(3, 0x30), document_json(4, 0x20));
    json_object_set_new(j, "documents", docs);
    err_clear(&err);
    if (parse(j, &m, &err))
        fail_msg("%s", err.text);
    assert_int_equal(m.documents->owner_count, 3);
    assert_int_equal(m.documents->owner[0].owner[0], 0x10); /* ascending */
    assert_int_equal(m.documents->owner[2].owner[0], 0x30);
    assert_int_equal(m.documents->owner[2].documents, 2);
    /* the roots do not depend on the order, and do on the content */
    uint8_t a[32], b[32];
    memcpy(a, m.documents->document_root, 32);
    memcpy(b, m.documents->owner_root, 32);
    manifest_fini(&m);
    json_t *turned = json_pack("[o,o,o,o]", document_json(4, 0x20), document_json(3, 0x30),
                               document_json(2, 0x10), document_json(1, 0x30));
    json_object_set(j, "documents", turned);
    assert_int_equal(parse(j, &m, NULL), STATUS_OK);
    assert_memory_equal(a, m.documents->document_root, 32);
    assert_memory_equal(b, m.documents->owner_root, 32);
    manifest_fini(&m);
    json_array_set_new(turned, 0, document_json(4, 0x10));
    assert_int_equal(parse(j, &m, NULL), STATUS_OK);
    assert_memory_not_equal(a, m.documents->document_root, 32);
    assert_memory_not_equal(b, m.documents->owner_root, 32);
    manifest_fini(&m);
    /* one text twice would be counted twice */
    json_array_set_new(turned, 0, document_json(3, 0x20));
    err_clear(&err);
    assert_int_equal(parse(j, &m, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "documents"));
    json_array_set_new(turned, 0, json_pack("{s:s}", "digest", "0x00"));
    assert_int_equal(parse(j, &m, NULL), STATUS_INVALID);
    json_decref(turned);
    /* the entries of a split are bounded: as many as the Registry takes */
    json_t *many = json_array();
    for (int i = 0; i < REWARD_ENTRIES_MAX + 1; i++)
        json_array_append_new(many, json_object());
    json_object_set_new(j, "split", many);
    err_clear(&err);
    assert_int_equal(parse(j, &m, &err), STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "split"));
    assert_non_null(strstr(err.text, "32"));
    json_decref(j);
}

/* publish.json and datanet.json of the demo's adapters. */
static void test_local(void **state)
{
    struct manifest m;
    struct errtext err = ERRTEXT_INIT;
    json_t *publish = json_load_file(RS_TEST_ROOT "/configs/demo/adapters/amber-coast/publish.json",
                                     0, NULL),
           *datanet = json_load_file(RS_TEST_ROOT "/configs/demo/adapters/amber-coast/datanet.json",
                                     0, NULL);
    assert_non_null(publish);
    assert_non_null(datanet);
    if (manifest_parse_local(&m, publish, &err) || manifest_parse_datanet(&m, datanet, &err))
        fail_msg("%s", err.text);
    assert_true(m.documents->owner_count >= 4);
    uint32_t documents = 0;
    for (uint32_t i = 0; i < m.documents->owner_count; i++)
        documents += m.documents->owner[i].documents;
    assert_int_equal(documents, json_array_size(json_object_get(datanet, "documents")));
    manifest_fini(&m);
    assert_int_equal(manifest_parse_local(&m, publish, NULL), STATUS_OK);
    assert_null(m.documents);
    json_object_del(publish, "owner");
    assert_int_equal(manifest_parse_local(&m, publish, &err), STATUS_INVALID);
    assert_int_equal(manifest_parse_local(&m, NULL, NULL), STATUS_INVALID);
    json_decref(publish);
    json_decref(datanet);
}

/* A document's owner signs for one datanet of one Registry, by key or as a contract. */
static enum status ask_contract(void *arg, const uint8_t account[20], const uint8_t digest[32],
                                const void *signature, size_t len, bool *yes, struct errtext *err)
{
    (void)digest;
    (void)err;
    *(int *)arg += 1;
    *yes = account[0] == 0x66 && len == 3 && memcmp(signature, "\1\2\3", 3) == 0;
    return STATUS_OK;
}

/* The list as it stands now, read and checked. */
static enum status licences_of(const json_t *net, const struct documents_licensed *l,
                               struct errtext *err)
{
    struct manifest m = {0};
    enum status st = manifest_parse_datanet(&m, net, err);
    if (!st)
        st = documents_check_licences(m.documents, l, err);
    manifest_fini(&m);
    return st;
}

static void test_licences(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    uint8_t digest[32], signature[SECP_SIGNATURE_BYTES];
    int asked = 0;
    struct documents_licensed l = {.chain_id = 31337, .ask = ask_contract, .ask_arg = &asked};
    struct manifest_licence licence = {.licence = "CC-BY-4.0", .terms = "", .display = false};
    memset(l.datanet_id, 5, 32);
    memset(l.registry, 6, 20);
    json_t *mine = document_json(1, 0), *theirs = document_json(2, 0x66),
           *net = json_pack("{s:[o,o]}", "documents", mine, theirs);
    json_object_set_new(mine, "owner", address_json(keys.owner.address));
    memcpy(licence.datanet_id, l.datanet_id, 32);
    memset(licence.digest, 1, 32);
    manifest_licence_digest(digest, &licence, l.chain_id, l.registry);
    assert_int_equal(secp_sign(keys.secp, signature, &keys.owner, digest, NULL), STATUS_OK);
    json_object_set_new(mine, "ownerSignature", hex_json(signature, sizeof(signature)));
    assert_int_equal(licences_of(net, &l, &err), STATUS_DENIED);
    assert_non_null(strstr(err.text, "document 2"));
    json_object_set_new(theirs, "ownerSignature", json_string("0x010203"));
    if (licences_of(net, &l, &err))
        fail_msg("%s", err.text);
    assert_int_equal(asked, 1); /* only who did not sign with a key */
    json_object_set_new(theirs, "ownerSignature", json_string("0x010204"));
    assert_int_equal(licences_of(net, &l, NULL), STATUS_DENIED);
    json_object_set_new(theirs, "ownerSignature", json_string("0x010203"));
    l.registry[0] ^= 1; /* signed for another Registry */
    assert_int_equal(licences_of(net, &l, NULL), STATUS_DENIED);
    l.registry[0] ^= 1;
    l.datanet_id[0] ^= 1;
    assert_int_equal(licences_of(net, &l, NULL), STATUS_DENIED);
    l.datanet_id[0] ^= 1;
    json_object_set_new(mine, "licence", json_string("MIT")); /* and under another licence */
    assert_int_equal(licences_of(net, &l, NULL), STATUS_DENIED);
    json_object_set_new(mine, "licence", json_string("CC-BY-4.0"));
    assert_int_equal(licences_of(net, &l, NULL), STATUS_OK);
    json_object_set_new(mine, "terms", json_string("https://example.org/terms"));
    assert_int_equal(licences_of(net, &l, NULL), STATUS_DENIED);
    json_object_set_new(mine, "terms", json_string(""));
    json_object_set_new(mine, "display", json_true()); /* nobody consents for him */
    assert_int_equal(licences_of(net, &l, NULL), STATUS_DENIED);
    json_decref(net);
}

/* An owner that is a contract signs as it likes; it is asked, and a key's word is not enough. */
static void test_a_contract_owns_an_adapter(void **state)
{
    struct manifest m, with = plain;
    struct errtext err = ERRTEXT_INIT;
    int asked = 0;
    json_t *j = manifest_json(&with, &keys);
    struct manifest_expect x = expected;
    x.ask = ask_contract;
    x.ask_arg = &asked;
    assert_int_equal(manifest_parse_signed(&m, j, &x, &err), STATUS_OK);
    assert_int_equal(asked, 0);
    json_object_set_new(j, "ownerSignature", json_string("0x010203"));
    assert_int_equal(manifest_parse_signed(&m, j, &x, &err), STATUS_DENIED); /* no contract there */
    assert_int_equal(asked, 1);
    x.ask = NULL;
    assert_int_equal(manifest_parse_signed(&m, j, &x, NULL), STATUS_INVALID);
    json_decref(j);
}

static enum status files_of(const json_t *net, const char *folder, struct errtext *err)
{
    struct manifest m = {0};
    enum status st = manifest_parse_datanet(&m, net, err);
    if (!st)
        st = documents_check_files(m.documents, folder, NULL, err);
    manifest_fini(&m);
    return st;
}

/* The list names texts beside it: their bytes and digests. */
static void test_files(void **state)
{
    static const char folder[] = RS_TEST_ROOT "/configs/demo/adapters/amber-coast";
    struct errtext err = ERRTEXT_INIT;
    json_t *net = json_load_file(RS_TEST_ROOT "/configs/demo/adapters/amber-coast/datanet.json", 0,
                                 NULL),
           *second = json_array_get(json_object_get(net, "documents"), 1);
    if (files_of(net, folder, &err))
        fail_msg("%s", err.text);
    json_object_set_new(second, "bytes", json_integer(648));
    assert_int_equal(files_of(net, folder, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "documents/0002.txt: 647 bytes"));
    json_object_set_new(second, "bytes", json_integer(647));
    json_object_set_new(
        second, "digest",
        json_string("00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"));
    assert_int_equal(files_of(net, folder, NULL), STATUS_INVALID);
    json_object_set_new(second, "file", json_string("documents/none.txt"));
    assert_int_equal(files_of(net, folder, NULL), STATUS_NOT_FOUND);
    json_object_set_new(second, "file", json_string("../birch-vale/documents/0002.txt"));
    assert_int_equal(files_of(net, folder, NULL), STATUS_DENIED);
    json_decref(net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_signed),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_signatures),
        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_licences),
        cmocka_unit_test(test_a_contract_owns_an_adapter),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_local),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
