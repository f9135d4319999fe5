/* LR, the one division of money (SPEC 5): floors of x * w / sum(w), and the leftover units one each
 * to the largest remainders, ties to the lower key. Keys are the positions: give the weights in
 * ascending order of key. Nothing is created or lost: the parts sum to x. Pure. Thread: any. */
#ifndef RS_CHAIN_LR_H
#define RS_CHAIN_LR_H

#include "chain_client/eth/u256.h"
#include "server/base/status.h"

#include <stddef.h>
#include <stdint.h>

/* lr_split - part[i] = the share of x that weight[i] earns.
 *
 * Shapes  weight [count], part [count]; count >= 1
 * Before  the sum of the weights is below 2^256
 * After   sum(part) = x; a zero weight gets 0
 * Errors  INVALID when every weight is 0 or the sum overflows, NO_MEMORY
 * Cost    O(count log count); memory for count remainders above 16 weights
 */
MUST_CHECK enum status lr_split(u128 *part, u128 x, const struct u256 *weight, size_t count);

/* The same for small weights (basis points, |Q16.16|). count <= 64. INVALID when all are 0. */
MUST_CHECK enum status lr_split_small(u128 *part, u128 x, const uint32_t *weight, size_t count);

#endif
