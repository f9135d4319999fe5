/* Transactions: random ones round trip; one flipped bit never reads back as the same transaction
 * from the same sender; truncations are refused; EIP-712's own Mail example. */
#include "chain_client/eth/tx.h"

#include <sodium.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "chain_client/eth/eip712.h"
#include "server/base/mem.h"

static struct secp *ctx;
static struct secp_key key;

static int setup(void **state)
{
    return secp_create(&ctx, NULL) || secp_key_random(ctx, &key, NULL);
}

static int teardown(void **state)
{
    secp_destroy(ctx);
    return 0;
}

static struct tx random_tx(uint8_t *data, size_t data_max)
{
    struct tx tx = {0};
    randombytes_buf(&tx.chain_id, 4);
    tx.chain_id |= 1;
    randombytes_buf(&tx.nonce, randombytes_uniform(9));
    randombytes_buf(&tx.tip_max, randombytes_uniform(15));
    tx.fee_max = tx.tip_max + randombytes_uniform(1000);
    randombytes_buf(&tx.gas_limit, randombytes_uniform(9));
    randombytes_buf(&tx.value, randombytes_uniform(17));
    randombytes_buf(tx.to, 20);
    tx.is_create = randombytes_uniform(8) == 0;
    tx.data_len = randombytes_uniform((uint32_t)data_max + 1);
    randombytes_buf(data, tx.data_len);
    tx.data = data;
    return tx;
}

static void test_random_round_trip_and_tampering(void **state)
{
    uint8_t data[300], hash[32], sender[20];
    struct buf raw;
    buf_init(&raw, TX_RAW_BYTES_MAX);
    for (int round = 0; round < 60; round++) {
        struct tx tx = random_tx(data, sizeof(data)), back;
        assert_int_equal(tx_sign(ctx, &raw, hash, &tx, &key, NULL), STATUS_OK);
        assert_int_equal(tx_decode(ctx, &back, sender, (uint8_t *)raw.data, raw.len, NULL),
                         STATUS_OK);
        assert_true(tx_equal(&tx, &back));
        for (int flip = 0; flip < 20; flip++) {
            size_t at = randombytes_uniform((uint32_t)raw.len);
            char bit = (char)(1u << randombytes_uniform(8));
            raw.data[at] ^= bit;
            enum status st = tx_decode(ctx, &back, sender, (uint8_t *)raw.data, raw.len, NULL);
            assert_true(st || !tx_equal(&tx, &back) || memcmp(sender, key.address, 20) != 0);
            raw.data[at] ^= bit;
        }
        size_t cut = randombytes_uniform((uint32_t)raw.len);
        uint8_t *part = mem_alloc(cut ? cut : 1);
        memcpy(part, raw.data, cut);
        assert_int_not_equal(tx_decode(ctx, &back, sender, part, cut, NULL), STATUS_OK);
        mem_free(part);
    }
    buf_fini(&raw);
}

static void test_refusals(void **state)
{
    uint8_t hash[32], sender[20], zero[1] = {0};
    struct errtext err = ERRTEXT_INIT;
    struct tx tx = {.chain_id = 0, .fee_max = 1}, back;
    struct buf raw;
    buf_init(&raw, TX_RAW_BYTES_MAX);
    assert_int_equal(tx_sign(ctx, &raw, hash, &tx, &key, &err), STATUS_INVALID);
    assert_string_equal(err.param, "chainId");
    tx.chain_id = 1;
    tx.tip_max = 2;
    assert_int_equal(tx_sign(ctx, &raw, hash, &tx, &key, NULL), STATUS_INVALID);
    tx.tip_max = 0;
    tx.data = zero;
    tx.data_len = TX_DATA_BYTES_MAX + 1;
    assert_int_equal(tx_sign(ctx, &raw, hash, &tx, &key, NULL), STATUS_INVALID);
    assert_int_equal(tx_decode(ctx, &back, sender, (const uint8_t *)"\x01\xc0", 2, NULL),
                     STATUS_UNSUPPORTED);
    assert_int_equal(tx_decode(ctx, &back, sender, (const uint8_t *)"", 0, NULL),
                     STATUS_UNSUPPORTED);
    buf_fini(&raw);
}

static void test_largest_data(void **state)
{
    uint8_t *data = mem_alloc(TX_DATA_BYTES_MAX), hash[32];
    struct tx tx = {.chain_id = 1, .fee_max = 1, .data = data, .data_len = TX_DATA_BYTES_MAX};
    struct buf raw;
    buf_init(&raw, TX_RAW_BYTES_MAX);
    assert_int_equal(tx_sign(ctx, &raw, hash, &tx, &key, NULL), STATUS_OK);
    buf_fini(&raw);
    mem_free(data);
}

static void person(uint8_t out[32], const char *name, const char *wallet)
{
    struct eip712_hasher h;
    uint8_t address[20];
    assert_true(hex_decode(address, 20, wallet));
    eip712_begin(&h, "Person(string name,address wallet)");
    eip712_bytes(&h, name, strlen(name));
    eip712_address(&h, address);
    eip712_end(&h, out);
}

/* The example of the EIP: Mail from Cow to Bob. */
static void test_eip712_mail(void **state)
{
    struct eip712_hasher h;
    uint8_t domain[32], cow[32], bob[32], mail[32], digest[32], contract[20], expected[32];
    assert_true(hex_decode(contract, 20, "cccccccccccccccccccccccccccccccccccccccc"));
    person(cow, "Cow", "cd2a3d9f938e13cd947ec05abc7fe734df8dd826");
    person(bob, "Bob", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb");
    eip712_begin(&h, "Mail(Person from,Person to,string contents)"
                     "Person(string name,address wallet)");
    eip712_bytes32(&h, cow);
    eip712_bytes32(&h, bob);
    eip712_bytes(&h, "Hello, Bob!", 11);
    eip712_end(&h, mail);
    eip712_domain(domain, "Ether Mail", "1", 1, contract);
    eip712_digest(digest, domain, mail);
    assert_true(hex_decode(expected, 32,
                           "be609aee343fb3c4b28e1df9e632fca64fcfaede20f02e86244efddf30957bd2"));
    assert_memory_equal(digest, expected, 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_round_trip_and_tampering),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_largest_data),
        cmocka_unit_test(test_eip712_mail),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
