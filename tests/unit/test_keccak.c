/* Keccak-256: known answers, every split of incremental input, and the permutation against nettle's
 * on random states. */
#include "chain_client/eth/keccak.h"

#include <nettle/sha3.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "server/base/hex.h"
#include "server/base/philox.h"

static void check_text(const char *text, const char *hex)
{
    uint8_t out[32], expected[32];
    assert_true(hex_decode(expected, 32, hex));
    keccak_256(out, text, strlen(text));
    assert_memory_equal(out, expected, 32);
}

static void test_known_answers(void **state)
{
    check_text("", "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470");
    check_text("abc", "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45");
    check_text("transfer(address,uint256)",
               "a9059cbb2ab09eb219583f4a59a5d0623ade346d962bcd4e46b11da047c9049b");
    check_text("Transfer(address,address,uint256)",
               "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
}

static void test_permutation_equals_nettle(void **state)
{
    for (uint32_t round = 0; round < 200; round++) {
        struct sha3_state other;
        uint64_t lane[25];
        for (uint32_t i = 0; i < 25; i++) {
            uint32_t out[4], ctr[4] = {round, i, 0, 0};
            philox4x32(out, ctr, 7);
            lane[i] = other.a[i] = (uint64_t)out[0] << 32 | out[1];
        }
        keccak_permute(lane);
        sha3_permute(&other);
        assert_memory_equal(lane, other.a, sizeof(lane));
    }
}

/* The sponge once more, byte by byte over nettle's permutation. */
static void oracle_hash(uint8_t out[32], const uint8_t *data, size_t len)
{
    struct sha3_state s;
    uint8_t *bytes = (uint8_t *)s.a;
    memset(&s, 0, sizeof(s));
    for (; len >= 136; len -= 136, data += 136) {
        for (size_t i = 0; i < 136; i++)
            bytes[i] ^= data[i];
        sha3_permute(&s);
    }
    for (size_t i = 0; i < len; i++)
        bytes[i] ^= data[i];
    bytes[len] ^= 0x01;
    bytes[135] ^= 0x80;
    sha3_permute(&s);
    memcpy(out, bytes, 32);
}

static void test_every_length_and_split(void **state)
{
    uint8_t data[300], whole[32], parts[32], expected[32];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 37 + 11);
    for (size_t len = 0; len <= sizeof(data); len++) {
        oracle_hash(expected, data, len);
        keccak_256(whole, data, len);
        assert_memory_equal(whole, expected, 32);
        for (size_t cut = 0; cut <= len; cut += 1 + len / 16) {
            struct keccak k;
            keccak_init(&k);
            keccak_update(&k, data, cut);
            keccak_update(&k, data + cut, len - cut);
            keccak_final(&k, parts);
            assert_memory_equal(parts, expected, 32);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_permutation_equals_nettle),
        cmocka_unit_test(test_every_length_and_split),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
