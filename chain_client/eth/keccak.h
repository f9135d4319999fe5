/* Keccak-256 as Ethereum uses it: rate 136, padding 0x01 .. 0x80 (SHA3-256 pads with 0x06 and
 * differs). No library in Debian exports it. Pure; the state is the caller's and holds no pointer.
 * Thread: any.
 *
 *   struct keccak k;
 *   keccak_init(&k);
 *   keccak_update(&k, data, len);
 *   keccak_final(&k, out);
 */
#ifndef RS_CHAIN_ETH_KECCAK_H
#define RS_CHAIN_ETH_KECCAK_H

#include <stddef.h>
#include <stdint.h>

struct keccak {
    uint64_t lane[25]; /* lane[x + 5*y] */
    size_t used;       /* bytes absorbed into the current block, < 136 */
};

void keccak_init(struct keccak *k);
/* data may be NULL when len is 0. */
void keccak_update(struct keccak *k, const void *data, size_t len);
/* Afterwards k holds nothing useful: call keccak_init before the next use. */
void keccak_final(struct keccak *k, uint8_t out[32]);

/* out = Keccak-256(data[0..len)); out may be data. */
void keccak_256(uint8_t out[32], const void *data, size_t len);

/* The permutation alone, for the test that compares it with another implementation. */
void keccak_permute(uint64_t lane[25]);

#endif
