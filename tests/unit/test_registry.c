/* The Registry's answers as the ABI encodes them: every field is read from its own word, and an
 * answer that is cut, too long or out of range is refused before anything is used. */
#include "chain_client/registry/views.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "chain_client/eth/abi.h"

#define PRICE_MAX (((u128)1 << 80) - 1)

static const uint8_t model[32] = {0xaa, 1}, datanet[32] = {0xbb, 2}, root_a[32] = {0xcc},
                     root_b[32] = {0xdd}, tokenizer[32] = {0xee};

struct shape {
    size_t entries, parents;
    u128 price_out;
};

static void put_terms(struct buf *out, const struct shape *s)
{
    struct abi_tuple all, t, list;
    abi_begin(&all, out, 1);
    abi_dynamic(&all);
    abi_begin(&t, out, 9);
    abi_bool(&t, true);
    abi_uint(&t, 1700000000);
    abi_bytes32(&t, model);
    abi_bytes32(&t, datanet);
    abi_uint(&t, 7);
    abi_uint(&t, 5);
    abi_uint(&t, s->price_out);
    abi_dynamic(&t);
    abi_count(out, s->entries);
    abi_begin(&list, out, 3 * s->entries);
    for (size_t i = 0; i < s->entries; i++) {
        uint8_t payee[20] = {(uint8_t)i, 0xff};
        abi_address(&list, payee);
        abi_uint(&list, 1 + i % 3);
        abi_uint(&list, 100 + i);
    }
    abi_end(&list);
    abi_dynamic(&t);
    abi_count(out, s->parents);
    abi_begin(&list, out, 2 * s->parents);
    for (size_t i = 0; i < s->parents; i++) {
        uint8_t id[32] = {0x40, (uint8_t)i};
        abi_bytes32(&list, id);
        abi_uint(&list, 200 + i);
    }
    abi_end(&list);
    abi_end(&t);
    abi_end(&all);
    assert_false(out->failed);
}

static void test_terms(void **state)
{
    struct buf out;
    struct registry_terms t;
    struct shape s = {3, 2, PRICE_MAX};
    buf_init(&out, 1u << 16);
    put_terms(&out, &s);
    assert_int_equal(registry_decode_terms(&t, out.data, out.len, NULL), STATUS_OK);
    assert_true(t.registered);
    assert_int_equal(t.active_at, 1700000000);
    assert_memory_equal(t.model_id, model, 32);
    assert_memory_equal(t.datanet_id, datanet, 32);
    assert_int_equal(t.datanet_version, 7);
    assert_true(t.price_in == 5 && t.price_out == PRICE_MAX);
    assert_int_equal(t.entry_count, 3);
    assert_int_equal(t.entry[2].payee[0], 2);
    assert_int_equal(t.entry[2].role, 3);
    assert_int_equal(t.entry[1].bps, 101);
    assert_int_equal(t.parent_count, 2);
    assert_int_equal(t.parent[1].adapter_id[1], 1);
    assert_int_equal(t.parent[1].bps, 201);
    for (size_t len = 0; len < out.len; len++) /* every cut is refused */
        assert_int_not_equal(registry_decode_terms(&t, out.data, len, NULL), STATUS_OK);
    buf_fini(&out);
}

static void test_terms_bounds(void **state)
{
    static const struct shape wrong[] = {
        {REWARD_ENTRIES_MAX + 1, 0, 1}, {1, REWARD_PARENTS_MAX + 1, 1}, {1, 1, PRICE_MAX + 1}};
    static const struct shape right = {REWARD_ENTRIES_MAX, REWARD_PARENTS_MAX, 0};
    struct registry_terms t;
    for (size_t i = 0; i < 4; i++) {
        struct buf out;
        buf_init(&out, 1u << 16);
        put_terms(&out, i < 3 ? &wrong[i] : &right);
        enum status st = registry_decode_terms(&t, out.data, out.len, NULL);
        assert_true(i < 3 ? st != STATUS_OK : st == STATUS_OK);
        buf_fini(&out);
    }
}

static void test_tariff(void **state)
{
    struct buf out;
    struct abi_tuple t;
    struct registry_tariff tariff;
    buf_init(&out, 4096);
    abi_begin(&t, &out, 3);
    abi_uint(&t, 9);
    abi_uint(&t, PRICE_MAX);
    abi_uint(&t, 3);
    abi_end(&t);
    assert_int_equal(registry_decode_tariff(&tariff, out.data, out.len, NULL), STATUS_OK);
    assert_true(tariff.active_at == 9 && tariff.price_in == PRICE_MAX && tariff.price_out == 3);
    assert_int_not_equal(registry_decode_tariff(&tariff, out.data, 64, NULL), STATUS_OK);
    out.data[32 + 21] = 1; /* bit 80 and up of priceIn */
    assert_int_not_equal(registry_decode_tariff(&tariff, out.data, out.len, NULL), STATUS_OK);
    buf_fini(&out);
}

static void test_base(void **state)
{
    struct buf out;
    struct abi_tuple t, list;
    struct registry_base b;
    static const uint8_t payee[20] = {1, 2, 3};
    buf_init(&out, 4096);
    abi_begin(&t, &out, 2);
    abi_bool(&t, true);
    abi_dynamic(&t);
    abi_count(&out, 1);
    abi_begin(&list, &out, 3);
    abi_address(&list, payee);
    abi_uint(&list, 1);
    abi_uint(&list, 10000);
    abi_end(&list);
    abi_end(&t);
    assert_int_equal(registry_decode_base(&b, out.data, out.len, NULL), STATUS_OK);
    assert_true(b.registered && b.entry_count == 1 && b.entry[0].bps == 10000);
    assert_memory_equal(b.entry[0].payee, payee, 20);
    out.data[2 * 32 + 24] = 1; /* 2^56 entries in an answer of five words */
    assert_int_not_equal(registry_decode_base(&b, out.data, out.len, NULL), STATUS_OK);
    buf_fini(&out);
}

static void test_datanet(void **state)
{
    struct buf out;
    struct abi_tuple t;
    struct registry_datanet d;
    buf_init(&out, 4096);
    abi_begin(&t, &out, 8);
    abi_bool(&t, true);
    abi_uint(&t, 11);
    abi_uint(&t, 12);
    abi_bytes32(&t, root_a);
    abi_bytes32(&t, root_b);
    abi_uint(&t, UINT32_MAX);
    abi_uint(&t, 13);
    abi_bytes32(&t, tokenizer);
    abi_end(&t);
    assert_int_equal(registry_decode_datanet(&d, out.data, out.len, NULL), STATUS_OK);
    assert_true(d.registered && d.active_at == 11 && d.version == 12);
    assert_true(d.documents == UINT32_MAX && d.owners == 13);
    assert_memory_equal(d.document_root, root_a, 32);
    assert_memory_equal(d.owner_root, root_b, 32);
    assert_memory_equal(d.tokenizer_digest, tokenizer, 32);
    assert_int_not_equal(registry_decode_datanet(&d, out.data, 7 * 32, NULL), STATUS_OK);
    out.data[5 * 32 + 27] = 1; /* documents of 2^32 */
    assert_int_not_equal(registry_decode_datanet(&d, out.data, out.len, NULL), STATUS_OK);
    buf_fini(&out);
}

static void test_policy(void **state)
{
    struct buf out;
    struct abi_tuple t;
    struct reward_policy p;
    static const uint8_t treasury[20] = {9};
    buf_init(&out, 4096);
    abi_begin(&t, &out, 6);
    for (uint32_t i = 1; i <= 4; i++)
        abi_uint(&t, 1000 * i);
    abi_address(&t, treasury);
    abi_uint(&t, 5);
    abi_end(&t);
    assert_int_equal(registry_decode_policy(&p, out.data, out.len, NULL), STATUS_OK);
    assert_true(p.base_bps == 1000 && p.adapters_bps == 2000 && p.operator_bps == 3000 &&
                p.protocol_bps == 4000);
    assert_memory_equal(p.treasury, treasury, 20);
    assert_int_not_equal(registry_decode_policy(&p, out.data, 4 * 32, NULL), STATUS_OK);
    buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_terms),   cmocka_unit_test(test_terms_bounds),
        cmocka_unit_test(test_tariff),  cmocka_unit_test(test_base),
        cmocka_unit_test(test_datanet), cmocka_unit_test(test_policy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
