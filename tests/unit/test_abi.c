/* The ABI writer against the specification's own examples, and a reader that survives hostile
 * offsets, counts and lengths. */
#include "chain_client/eth/abi.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "server/base/mem.h"

static void expect_words(const struct buf *out, size_t from, const char *const *word, size_t count)
{
    assert_false(out->failed);
    assert_int_equal(out->len - from, 32 * count);
    for (size_t i = 0; i < count; i++) {
        uint8_t want[32];
        assert_true(hex_decode(want, 32, word[i]));
        assert_memory_equal(out->data + from + 32 * i, want, 32);
    }
}

/* sam("dave", true, [1, 2, 3]) of the Solidity ABI specification. */
static void test_specification_example(void **state)
{
    static const char *const words[] = {
        "0000000000000000000000000000000000000000000000000000000000000060",
        "0000000000000000000000000000000000000000000000000000000000000001",
        "00000000000000000000000000000000000000000000000000000000000000a0",
        "0000000000000000000000000000000000000000000000000000000000000004",
        "6461766500000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000003",
        "0000000000000000000000000000000000000000000000000000000000000001",
        "0000000000000000000000000000000000000000000000000000000000000002",
        "0000000000000000000000000000000000000000000000000000000000000003"};
    struct buf out;
    struct abi_tuple t, items;
    buf_init(&out, 4096);
    abi_put_selector(&out, "sam(bytes,bool,uint256[])");
    assert_memory_equal(out.data, "\xa5\x64\x3b\xf2", 4);
    abi_begin(&t, &out, 3);
    abi_dynamic(&t);
    abi_bytes_tail(&out, "dave", 4);
    abi_bool(&t, true);
    abi_dynamic(&t);
    abi_count(&out, 3);
    abi_begin(&items, &out, 3);
    for (unsigned i = 1; i <= 3; i++)
        abi_uint(&items, i);
    abi_end(&items);
    abi_end(&t);
    expect_words(&out, 4, words, 9);
    buf_fini(&out);
}

static void test_read_back(void **state)
{
    struct buf out;
    struct abi_tuple t;
    uint8_t address[20] = {1, 2, 3}, found[20], word[32] = {9}, word2[32];
    const uint8_t *data;
    size_t len = 0;
    bool yes = false;
    u128 v = 0;
    buf_init(&out, 4096);
    abi_begin(&t, &out, 5);
    abi_uint(&t, ~(u128)0);
    abi_address(&t, address);
    abi_bytes32(&t, word);
    abi_bool(&t, true);
    abi_dynamic(&t);
    abi_bytes_tail(&out, "0123456789abcdef0123456789abcdef!", 33);
    abi_end(&t);
    struct abi_reader r = {(uint8_t *)out.data, out.len};
    assert_int_equal(abi_read_uint(&r, 0, 16, &v, "v", NULL), STATUS_OK);
    assert_true(v == ~(u128)0);
    assert_int_equal(abi_read_uint(&r, 0, 15, &v, "v", NULL), STATUS_INVALID);
    assert_int_equal(abi_read_address(&r, 1, found, "a", NULL), STATUS_OK);
    assert_memory_equal(found, address, 20);
    assert_int_equal(abi_read_bytes32(&r, 2, word2, "w", NULL), STATUS_OK);
    assert_memory_equal(word, word2, 32);
    assert_int_equal(abi_read_address(&r, 2, found, "a", NULL), STATUS_INVALID);
    assert_int_equal(abi_read_bool(&r, 3, &yes, "b", NULL), STATUS_OK);
    assert_true(yes);
    assert_int_equal(abi_read_bool(&r, 0, &yes, "b", NULL), STATUS_INVALID);
    assert_int_equal(abi_read_bytes(&r, 4, &data, &len, "s", NULL), STATUS_OK);
    assert_int_equal(len, 33);
    assert_int_equal(data[32], '!');
    assert_int_equal(abi_read_bytes32(&r, 99, word2, "w", NULL), STATUS_INVALID);
    assert_int_equal(abi_read_bytes32(&r, SIZE_MAX, word2, "w", NULL), STATUS_INVALID);
    buf_fini(&out);
}

/* Every word of a good answer replaced by hostile values, and every truncation. */
static void test_hostile_answers(void **state)
{
    static const uint64_t hostile[] = {1,  31,  32,       33,         64,
                                       96, 128, 1u << 20, UINT64_MAX, UINT64_MAX - 31};
    uint8_t good[32 * 5] = {0};
    good[31] = 32;
    good[63] = 2; /* array of two pairs... whose words are missing in part */
    good[95] = 7;
    for (size_t len = 0; len <= sizeof(good); len++) {
        uint8_t *data = mem_alloc(len ? len : 1);
        memcpy(data, good, len);
        for (size_t word = 0; word < 2 && 32 * word + 32 <= len; word++) {
            for (size_t i = 0; i < sizeof(hostile) / sizeof(*hostile); i++) {
                struct abi_reader r = {data, len}, inner;
                struct abi_array array;
                const uint8_t *bytes;
                size_t bytes_len = 0;
                be_put(data + 32 * word, hostile[i], 32);
                if (i % 2)
                    memset(data + 32 * word, 0xff, 8); /* beyond 2^64 */
                if (abi_read_array(&r, 0, 2, &array, "a", NULL) == STATUS_OK)
                    assert_true(array.count * 64 <= array.items.len &&
                                array.items.data + array.items.len <= data + len);
                if (abi_read_bytes(&r, 0, &bytes, &bytes_len, "b", NULL) == STATUS_OK)
                    assert_true(bytes + bytes_len <= data + len);
                if (abi_read_tuple(&r, 0, &inner, "t", NULL) == STATUS_OK)
                    assert_true(inner.data + inner.len <= data + len);
                memcpy(data + 32 * word, good + 32 * word, 32);
            }
        }
        mem_free(data);
    }
    struct abi_reader r = {good, sizeof(good)};
    struct abi_array array;
    struct errtext err = ERRTEXT_INIT;
    assert_int_equal(abi_read_array(&r, 0, 2, &array, "pairs", &err), STATUS_INVALID);
    assert_string_equal(err.param, "pairs");
    assert_int_equal(abi_read_array(&r, 0, 1, &array, "words", NULL), STATUS_OK);
    assert_int_equal(array.count, 2);
}

static void test_full_buffer(void **state)
{
    struct buf out;
    struct abi_tuple t;
    buf_init(&out, 40);
    abi_begin(&t, &out, 2);
    abi_uint(&t, 1);
    abi_uint(&t, 2);
    abi_end(&t);
    assert_true(out.failed);
    buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_specification_example),
        cmocka_unit_test(test_read_back),
        cmocka_unit_test(test_hostile_answers),
        cmocka_unit_test(test_full_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
