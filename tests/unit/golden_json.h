/* Reading golden vectors: small readers that fail the test when a key is missing or malformed.
 * Include after cmocka.h. */
#ifndef RS_TESTS_GOLDEN_JSON_H
#define RS_TESTS_GOLDEN_JSON_H

#include "server/base/hex.h"
#include "server/base/mem.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline const json_t *get(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    if (!v)
        fail_msg("golden.json lacks %s", key);
    return v;
}

static inline const char *text(const json_t *o, const char *key)
{
    const char *s = json_string_value(get(o, key));
    assert_non_null(s);
    return s;
}

/* A number or a decimal string. */
static inline u128 number(const json_t *v)
{
    u128 out = 0;
    if (json_is_integer(v))
        return (u128)json_integer_value(v);
    assert_true(u128_parse(&out, json_string_value(v)));
    return out;
}

static inline u128 num(const json_t *o, const char *key)
{
    return number(get(o, key));
}

static inline void bytes(uint8_t *out, size_t len, const json_t *v)
{
    assert_non_null(json_string_value(v));
    if (!hex_decode(out, len, json_string_value(v)))
        fail_msg("not %zu bytes: %s", len, json_string_value(v));
}

static inline uint8_t *blob(const char *hex, size_t *len)
{
    *len = strlen(hex) / 2 - 1;
    uint8_t *out = mem_alloc(*len + 1);
    assert_true(hex_decode(out, *len, hex));
    return out;
}

static inline void expect_hex(const uint8_t *found, size_t len, const char *expected)
{
    uint8_t want[256];
    assert_true(len <= sizeof(want) && hex_decode(want, len, expected));
    assert_memory_equal(found, want, len);
}

#endif
