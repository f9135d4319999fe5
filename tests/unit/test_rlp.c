/* RLP: the documented examples both ways, refusal of every non-canonical form, random round trips,
 * and truncation in blocks of exact size. */
#include "chain_client/eth/rlp.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "server/base/mem.h"
#include "server/base/philox.h"

static void expect(struct buf *out, const char *hex)
{
    uint8_t want[64];
    size_t len = strlen(hex) / 2;
    assert_true(hex_decode(want, len, hex));
    assert_false(out->failed);
    assert_int_equal(out->len, len);
    assert_memory_equal(out->data, want, len);
    buf_clear(out);
}

static void test_documented_examples(void **state)
{
    struct buf out;
    buf_init(&out, 4096);
    rlp_put_bytes(&out, "dog", 3);
    expect(&out, "83646f67");
    rlp_put_bytes(&out, "", 0);
    expect(&out, "80");
    rlp_put_uint(&out, 0);
    expect(&out, "80");
    rlp_put_uint(&out, 15);
    expect(&out, "0f");
    rlp_put_uint(&out, 1024);
    expect(&out, "820400");
    size_t list = rlp_list_begin(&out);
    rlp_put_bytes(&out, "cat", 3);
    rlp_put_bytes(&out, "dog", 3);
    rlp_list_end(&out, list);
    expect(&out, "c88363617483646f67");
    size_t a = rlp_list_begin(&out); /* [ [], [[]], [ [], [[]] ] ] */
    rlp_list_end(&out, rlp_list_begin(&out));
    size_t b = rlp_list_begin(&out);
    rlp_list_end(&out, rlp_list_begin(&out));
    rlp_list_end(&out, b);
    size_t c = rlp_list_begin(&out);
    rlp_list_end(&out, rlp_list_begin(&out));
    size_t d = rlp_list_begin(&out);
    rlp_list_end(&out, rlp_list_begin(&out));
    rlp_list_end(&out, d);
    rlp_list_end(&out, c);
    rlp_list_end(&out, a);
    expect(&out, "c7c0c1c0c3c0c1c0");
    buf_fini(&out);
}

static void test_long_forms(void **state)
{
    static const size_t lens[] = {55, 56, 255, 256, 65535, 65536};
    uint8_t *data = mem_alloc(65536);
    memset(data, 0xee, 65536);
    for (size_t i = 0; i < sizeof(lens) / sizeof(*lens); i++) {
        struct buf out;
        struct rlp_reader inner;
        struct rlp_item item;
        buf_init(&out, 70000);
        size_t list = rlp_list_begin(&out);
        rlp_put_bytes(&out, data, lens[i]);
        rlp_list_end(&out, list);
        assert_false(out.failed);
        struct rlp_reader r = {(uint8_t *)out.data, out.len};
        assert_int_equal(rlp_next_list(&r, &inner, NULL), STATUS_OK);
        assert_int_equal(rlp_end(&r, NULL), STATUS_OK);
        assert_int_equal(rlp_next(&inner, &item, NULL), STATUS_OK);
        assert_int_equal(item.len, lens[i]);
        assert_memory_equal(item.data, data, item.len);
        buf_fini(&out);
    }
    mem_free(data);
}

static void test_other_encodings_are_refused(void **state)
{
    static const char *const bad[] = {
        "",                   /* nothing */
        "8100",               /* a byte below 0x80 with a head */
        "817f",               /* the same at the border */
        "b80161",             /* long head for one byte */
        "b837",               /* long head for 55 bytes */
        "b90038",             /* length with a leading zero */
        "83646f",             /* string cut off */
        "c883636174",         /* list cut off */
        "f800",               /* long head for an empty list */
        "bfffffffffffffffff", /* length of 2^64 - 1 */
        "ffffffffffffffffff", /* and of a list */
        "b8",                 /* length cut off */
        "f90100",             /* 256 bytes that are not there */
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        size_t len = strlen(bad[i]) / 2;
        uint8_t *data = mem_alloc(len ? len : 1);
        struct rlp_reader r = {data, len};
        struct rlp_item item;
        struct errtext err = ERRTEXT_INIT;
        assert_true(hex_decode(data, len, bad[i]));
        if (rlp_next(&r, &item, &err) != STATUS_INVALID)
            fail_msg("accepted %s", bad[i]);
        assert_true(err.text[0]);
        mem_free(data);
    }
}

static void test_typed_reads_refuse(void **state)
{
    uint8_t out[4];
    u128 v = 0;
    struct errtext err = ERRTEXT_INIT;
    struct rlp_reader r = {(const uint8_t *)"\x82\x00\x01", 3};
    assert_int_equal(rlp_next_uint(&r, &v, 8, "nonce", &err), STATUS_INVALID);
    assert_string_equal(err.param, "nonce");
    r = (struct rlp_reader){(const uint8_t *)"\x82\x01\x00", 3};
    assert_int_equal(rlp_next_uint(&r, &v, 1, "nonce", NULL), STATUS_INVALID);
    r = (struct rlp_reader){(const uint8_t *)"\xc0", 1};
    assert_int_equal(rlp_next_uint(&r, &v, 8, "nonce", NULL), STATUS_INVALID);
    r = (struct rlp_reader){(const uint8_t *)"\xc0", 1};
    assert_int_equal(rlp_next_bytes(&r, out, 4, "to", NULL), STATUS_INVALID);
    r = (struct rlp_reader){(const uint8_t *)"\x83\x01\x02\x03", 4};
    assert_int_equal(rlp_next_bytes(&r, out, 4, "to", NULL), STATUS_INVALID);
    r = (struct rlp_reader){(const uint8_t *)"\x80", 1};
    assert_int_equal(rlp_next_list(&r, &r, NULL), STATUS_INVALID);
}

static void test_random_integers_round_trip(void **state)
{
    for (uint32_t i = 0; i < 2000; i++) {
        uint32_t w[4];
        const uint32_t ctr[4] = {i, 0, 0, 0};
        struct buf out;
        u128 found = 0;
        philox4x32(w, ctr, 3);
        u128 v = ((u128)w[0] << 96 | (u128)w[1] << 64 | (u128)w[2] << 32 | w[3]) >> i % 128;
        buf_init(&out, 64);
        rlp_put_uint(&out, v);
        struct rlp_reader r = {(uint8_t *)out.data, out.len};
        assert_int_equal(rlp_next_uint(&r, &found, 16, "v", NULL), STATUS_OK);
        assert_true(found == v && r.len == 0);
        buf_fini(&out);
    }
}

static void test_a_full_buffer_fails_and_stays_put(void **state)
{
    struct buf out;
    buf_init(&out, 8);
    size_t list = rlp_list_begin(&out);
    rlp_put_bytes(&out, "0123456789", 10);
    rlp_list_end(&out, list);
    assert_true(out.failed);
    buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_documented_examples),
        cmocka_unit_test(test_long_forms),
        cmocka_unit_test(test_other_encodings_are_refused),
        cmocka_unit_test(test_typed_reads_refuse),
        cmocka_unit_test(test_random_integers_round_trip),
        cmocka_unit_test(test_a_full_buffer_fails_and_stays_put),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
