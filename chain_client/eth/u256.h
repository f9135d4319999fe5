/* The little 256-bit arithmetic that money needs: sums of fee x share, and x * w / d with its exact
 * remainder. Unsigned; overflow is reported, never wrapped. Pure. Thread: any. */
#ifndef RS_CHAIN_ETH_U256_H
#define RS_CHAIN_ETH_U256_H

#include "server/base/hex.h"

#include <stdbool.h>
#include <stdint.h>

struct u256 {
    uint64_t w[4]; /* w[0] is the lowest */
};

struct u256 u256_from(u128 v);
bool u256_is_zero(const struct u256 *a);
/* Negative, 0 or positive as a is below, equal to or above b. */
int u256_cmp(const struct u256 *a, const struct u256 *b);
/* a += b; false and a unchanged if the sum needs more than 256 bits. */
bool u256_add(struct u256 *a, const struct u256 *b);
/* a += x * y; the product always fits, false and a unchanged if the sum does not. */
bool u256_add_product(struct u256 *a, u128 x, uint64_t y);

/* u256_muldiv - *quotient = floor(x * w / d), *remainder = x * w mod d, exactly.
 *
 * Before  0 < d and w <= d, so that the quotient is at most x. The product may take 384 bits.
 */
void u256_muldiv(u128 *quotient, struct u256 *remainder, u128 x, const struct u256 *w,
                 const struct u256 *d);

#endif
