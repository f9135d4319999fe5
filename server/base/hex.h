/* Lower-case hex and big-endian integers. Pure. Thread: any. */
#ifndef RS_BASE_HEX_H
#define RS_BASE_HEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* out needs 2*n + 1 bytes. */
void hex_encode(char *out, const uint8_t *data, size_t n);
/* 0 to 15, or -1. Either case. */
int hex_digit(char c);
/* Exactly 2*n hex digits (either case, optional 0x), nothing after them. */
bool hex_decode(uint8_t *out, size_t n, const char *hex);

typedef unsigned __int128 u128;

static inline void be_put(uint8_t *out, u128 v, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        out[bytes - 1 - i] = i < 16 ? (uint8_t)(v >> (8 * i)) : 0;
}

static inline u128 be_get(const uint8_t *in, size_t bytes)
{
    u128 v = 0;
    for (size_t i = 0; i < bytes; i++)
        v = v << 8 | in[i];
    return v;
}

/* Decimal text of a u128; out needs 40 bytes. u128_parse refuses empty, signs, blanks and overflow.
 */
void u128_format(char *out, u128 v);
bool u128_parse(u128 *out, const char *text);

#endif
