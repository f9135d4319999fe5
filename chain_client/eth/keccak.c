/* Keccak-f[1600] and the 136-byte sponge.
 *
 * The state is a 5 x 5 grid of 64-bit lanes, lane (x, y) at index x + 5y. A round is
 *   theta  every lane gets the parity of two neighbour columns,
 *   rho    every lane is rotated by its own offset,
 *   pi     lanes move: (x, y) goes to (y, 2x + 3y),
 *   chi    every row is mixed by a AND NOT b,
 *   iota   lane 0 gets the round constant.
 * rho and pi are one walk over 24 lanes (lane 0 stays): step t of the walk rotates by the
 * triangular number (t+1)(t+2)/2 mod 64. The two tables below are that walk written out. Bytes
 * enter little-endian, byte i into lane i / 8. */
#include "chain_client/eth/keccak.h"

#include <endian.h>
#include <string.h>

#define RATE_BYTES 136

static const uint64_t round_constant[24] = {
    0x0000000000000001u, 0x0000000000008082u, 0x800000000000808au, 0x8000000080008000u,
    0x000000000000808bu, 0x0000000080000001u, 0x8000000080008081u, 0x8000000000008009u,
    0x000000000000008au, 0x0000000000000088u, 0x0000000080008009u, 0x000000008000000au,
    0x000000008000808bu, 0x800000000000008bu, 0x8000000000008089u, 0x8000000000008003u,
    0x8000000000008002u, 0x8000000000000080u, 0x000000000000800au, 0x800000008000000au,
    0x8000000080008081u, 0x8000000000008080u, 0x0000000080000001u, 0x8000000080008008u,
};
static const uint8_t walk_lane[24] = {10, 7,  11, 17, 18, 3, 5,  16, 8,  21, 24, 4,
                                      15, 23, 19, 13, 12, 2, 20, 14, 22, 9,  6,  1};
static const uint8_t walk_rotate[24] = {1,  3,  6,  10, 15, 21, 28, 36, 45, 55, 2,  14,
                                        27, 41, 56, 8,  25, 43, 62, 18, 39, 61, 20, 44};

static inline uint64_t rotate_left(uint64_t v, unsigned n)
{
    return v << n | v >> (64 - n);
}

static inline void theta(uint64_t *a)
{
    uint64_t c[5];
#pragma GCC unroll 5
    for (size_t x = 0; x < 5; x++)
        c[x] = a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20];
#pragma GCC unroll 5
    for (size_t x = 0; x < 5; x++) {
        uint64_t d = c[(x + 4) % 5] ^ rotate_left(c[(x + 1) % 5], 1);
#pragma GCC unroll 5
        for (size_t y = 0; y < 25; y += 5)
            a[x + y] ^= d;
    }
}

static inline void chi(uint64_t *a)
{
#pragma GCC unroll 5
    for (size_t y = 0; y < 25; y += 5) {
        uint64_t row[5];
        memcpy(row, a + y, sizeof(row));
#pragma GCC unroll 5
        for (size_t x = 0; x < 5; x++)
            a[y + x] = row[x] ^ (~row[(x + 1) % 5] & row[(x + 2) % 5]);
    }
}

/* Written as loops, unrolled by the compiler: every index and rotation is a constant then, and the
 * lanes of the local copy live in registers. */
void keccak_permute(uint64_t lane[25])
{
    uint64_t a[25];
    memcpy(a, lane, sizeof(a));
    for (size_t round = 0; round < 24; round++) {
        theta(a);
        uint64_t moving = a[1];
#pragma GCC unroll 24
        for (size_t t = 0; t < 24; t++) {
            uint64_t next = a[walk_lane[t]];
            a[walk_lane[t]] = rotate_left(moving, walk_rotate[t]);
            moving = next;
        }
        chi(a);
        a[0] ^= round_constant[round];
    }
    memcpy(lane, a, sizeof(a));
}

void keccak_init(struct keccak *k)
{
    memset(k, 0, sizeof(*k));
}

static void absorb_byte(struct keccak *k, uint8_t byte)
{
    k->lane[k->used / 8] ^= (uint64_t)byte << (8 * (k->used % 8));
    if (++k->used == RATE_BYTES) {
        keccak_permute(k->lane);
        k->used = 0;
    }
}

void keccak_update(struct keccak *k, const void *data, size_t len)
{
    const uint8_t *p = data;
    while (len && k->used % 8) {
        absorb_byte(k, *p++);
        len--;
    }
    for (; len >= 8; len -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        k->lane[k->used / 8] ^= le64toh(word);
        k->used += 8;
        if (k->used == RATE_BYTES) {
            keccak_permute(k->lane);
            k->used = 0;
        }
    }
    while (len--)
        absorb_byte(k, *p++);
}

void keccak_final(struct keccak *k, uint8_t out[32])
{
    k->lane[k->used / 8] ^= (uint64_t)0x01 << (8 * (k->used % 8));
    k->lane[RATE_BYTES / 8 - 1] ^= (uint64_t)0x80 << 56;
    keccak_permute(k->lane);
    for (size_t i = 0; i < 4; i++) {
        uint64_t word = htole64(k->lane[i]);
        memcpy(out + 8 * i, &word, 8);
    }
}

void keccak_256(uint8_t out[32], const void *data, size_t len)
{
    struct keccak k;
    keccak_init(&k);
    keccak_update(&k, data, len);
    keccak_final(&k, out);
}
