/* Signatures: known addresses and a known deterministic signature, recovery, and refusal of every
 * other encoding of a signature. Addresses: the EIP-55 list. */
#include "chain_client/eth/secp.h"

#include <sodium.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "chain_client/eth/addr.h"
#include "server/base/hex.h"

static struct secp *ctx;

static int setup(void **state)
{
    return secp_create(&ctx, NULL) != STATUS_OK;
}

static int teardown(void **state)
{
    secp_destroy(ctx);
    return 0;
}

static void key_one(struct secp_key *key)
{
    uint8_t secret[32] = {0};
    secret[31] = 1;
    assert_int_equal(secp_key_init(ctx, key, secret, NULL), STATUS_OK);
}

static void test_key_one_has_the_known_address(void **state)
{
    struct secp_key key;
    char text[ADDR_TEXT_BYTES];
    key_one(&key);
    addr_format(text, key.address);
    assert_string_equal(text, "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf");
}

static void test_rfc6979_vector(void **state)
{
    struct secp_key key;
    uint8_t digest[32], sig[65], expected[64], address[20];
    key_one(&key);
    crypto_hash_sha256(digest, (const uint8_t *)"Satoshi Nakamoto", 16);
    assert_int_equal(secp_sign(ctx, sig, &key, digest, NULL), STATUS_OK);
    assert_true(hex_decode(expected, 64,
                           "934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d8"
                           "2442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5"));
    assert_memory_equal(sig, expected, 64);
    assert_int_equal(secp_recover(ctx, address, sig, digest, NULL), STATUS_OK);
    assert_memory_equal(address, key.address, 20);
}

static void test_scalars_out_of_range_are_refused(void **state)
{
    struct secp_key key;
    struct errtext err = ERRTEXT_INIT;
    uint8_t secret[32] = {0}, digest[32] = {1}, sig[65];
    assert_int_equal(secp_key_init(ctx, &key, secret, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "1 .. n-1"));
    assert_int_equal(secp_sign(ctx, sig, &key, digest, NULL), STATUS_INVALID);
    assert_true(
        hex_decode(secret, 32, "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"));
    assert_int_equal(secp_key_init(ctx, &key, secret, NULL), STATUS_INVALID);
    secret[31]--;
    assert_int_equal(secp_key_init(ctx, &key, secret, NULL), STATUS_OK);
}

/* s' = n - s with the other v recovers the same key: it must be refused. */
static void test_high_s_is_refused(void **state)
{
    uint8_t n[32], digest[32] = {5}, sig[65], address[20];
    struct secp_key key;
    struct errtext err = ERRTEXT_INIT;
    key_one(&key);
    assert_true(
        hex_decode(n, 32, "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"));
    assert_int_equal(secp_sign(ctx, sig, &key, digest, NULL), STATUS_OK);
    int borrow = 0;
    for (size_t i = 32; i-- > 0;) {
        int v = n[i] - sig[32 + i] - borrow;
        borrow = v < 0;
        sig[32 + i] = (uint8_t)v;
    }
    sig[64] = sig[64] == 27 ? 28 : 27;
    assert_int_equal(secp_recover(ctx, address, sig, digest, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "low s"));
}

static void test_random_keys_round_trip_and_tampering_shows(void **state)
{
    for (int round = 0; round < 50; round++) {
        struct secp_key key;
        struct errtext err = ERRTEXT_INIT;
        uint8_t digest[32], sig[65], other[65];
        randombytes_buf(digest, sizeof(digest));
        assert_int_equal(secp_key_random(ctx, &key, NULL), STATUS_OK);
        assert_int_equal(secp_sign(ctx, sig, &key, digest, NULL), STATUS_OK);
        assert_int_equal(secp_verify(ctx, sig, digest, key.address, NULL), STATUS_OK);
        memcpy(other, sig, sizeof(other));
        other[randombytes_uniform(65)] ^= (uint8_t)(1u << randombytes_uniform(8));
        assert_int_not_equal(secp_verify(ctx, other, digest, key.address, NULL), STATUS_OK);
        digest[0] ^= 1;
        assert_int_equal(secp_verify(ctx, sig, digest, key.address, &err), STATUS_DENIED);
        assert_non_null(strstr(err.text, "expected 0x"));
        secp_key_fini(&key);
    }
}

static void test_eip55(void **state)
{
    static const char *const list[] = {
        "0x52908400098527886E0F7030069857D2E4169EE7", "0xde709f2102306220921060314715629080e2fb77",
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB", "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb"};
    uint8_t address[20];
    char text[ADDR_TEXT_BYTES];
    struct errtext err = ERRTEXT_INIT;
    for (size_t i = 0; i < sizeof(list) / sizeof(*list); i++) {
        assert_int_equal(addr_parse(address, list[i], NULL), STATUS_OK);
        addr_format(text, address);
        assert_string_equal(text, list[i]);
    }
    assert_int_equal(addr_parse(address, "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD", &err),
                     STATUS_INVALID);
    assert_non_null(strstr(err.text, "checksum"));
    assert_int_equal(addr_parse(address, "0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed", NULL),
                     STATUS_OK);
    assert_int_equal(addr_parse(address, "5aaeb6053f3e94c9b9a09f33669435e7ef1beaed", NULL),
                     STATUS_INVALID);
    assert_int_equal(addr_parse(address, "0x5aaeb6053f3e94c9b9a09f33669435e7ef1beae", NULL),
                     STATUS_INVALID);
    assert_int_equal(addr_parse(address, "", NULL), STATUS_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_key_one_has_the_known_address),
        cmocka_unit_test(test_rfc6979_vector),
        cmocka_unit_test(test_scalars_out_of_range_are_refused),
        cmocka_unit_test(test_high_s_is_refused),
        cmocka_unit_test(test_random_keys_round_trip_and_tampering_shows),
        cmocka_unit_test(test_eip55),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
