/* Roots of datanet versions: the golden vectors, and lists that must be refused. */
#include <jansson.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "chain_client/datanet.h"
#include "chain_client/eth/keccak.h"
#include "tests/unit/golden_json.h"

#define LIST_MAX 64

static json_t *golden;

static void read_owners(struct datanet_owner *out, const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        bytes(out[i].owner, 20, get(json_array_get(list, i), "owner"));
        out[i].documents = (uint32_t)num(json_array_get(list, i), "documents");
    }
}

static void read_documents(struct datanet_document *out, const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *d = json_array_get(list, i);
        bytes(out[i].digest, 32, get(d, "digest"));
        bytes(out[i].owner, 20, get(d, "owner"));
        out[i].bytes = (uint64_t)num(d, "bytes");
        keccak_256(out[i].licence_hash, text(d, "licence"), strlen(text(d, "licence")));
    }
}

static void test_golden_roots(void **state)
{
    const json_t *all = get(golden, "datanets");
    struct datanet_owner owner[LIST_MAX];
    struct datanet_document document[LIST_MAX];
    uint8_t root[32], other[32];
    assert_true(json_array_size(all) >= 8);
    for (size_t i = 0; i < json_array_size(all); i++) {
        const json_t *v = json_array_get(all, i);
        size_t n = json_array_size(get(v, "owners"));
        assert_in_range(n, 1, LIST_MAX);
        read_owners(owner, get(v, "owners"));
        read_documents(document, get(v, "documents"));
        assert_int_equal(datanet_owner_root(root, owner, n, NULL), STATUS_OK);
        expect_hex(root, 32, text(v, "ownerRoot"));
        owner[n - 1].documents ^= 1; /* a count is in the root */
        assert_int_equal(datanet_owner_root(other, owner, n, NULL), STATUS_OK);
        assert_memory_not_equal(root, other, 32);
        assert_int_equal(datanet_document_root(root, document, n, NULL), STATUS_OK);
        expect_hex(root, 32, text(v, "documentRoot"));
        document[0].licence_hash[31] ^= 1; /* so is a licence */
        assert_int_equal(datanet_document_root(other, document, n, NULL), STATUS_OK);
        assert_memory_not_equal(root, other, 32);
    }
}

static void test_lists_that_are_refused(void **state)
{
    struct datanet_owner owner[2] = {{.owner = {1}, .documents = 1},
                                     {.owner = {2}, .documents = 1}};
    struct datanet_document document[2] = {{.digest = {1}}, {.digest = {2}}};
    uint8_t root[32];
    assert_int_equal(datanet_owner_root(root, owner, 0, NULL), STATUS_INVALID);
    assert_int_equal(datanet_document_root(root, document, 0, NULL), STATUS_INVALID);
    assert_int_equal(datanet_owner_root(root, owner, DATANET_DOCUMENTS_MAX + 1u, NULL),
                     STATUS_TOO_LARGE);
    owner[1].owner[0] = 1; /* twice */
    assert_int_equal(datanet_owner_root(root, owner, 2, NULL), STATUS_INVALID);
    owner[1].owner[0] = 0; /* falling */
    assert_int_equal(datanet_owner_root(root, owner, 2, NULL), STATUS_INVALID);
    owner[1] = (struct datanet_owner){.owner = {2}};
    assert_int_equal(datanet_owner_root(root, owner, 2, NULL), STATUS_INVALID);
    document[1].digest[0] = 1;
    assert_int_equal(datanet_document_root(root, document, 2, NULL), STATUS_INVALID);
}

static int setup(void **state)
{
    golden = json_load_file(RS_TEST_DATA "/golden.json", 0, NULL);
    return golden ? 0 : -1;
}

static int teardown(void **state)
{
    json_decref(golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden_roots),
                                       cmocka_unit_test(test_lists_that_are_refused)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
