/* The oracle of divisions: LR of E9 by SPEC 5 to the letter, one unit after another. */
#ifndef RS_TEST_SLOW_LR_H
#define RS_TEST_SLOW_LR_H

#include "chain_client/eth/u256.h"
#include "chain_client/tail.h"

#include <string.h>

#define SLOW_LR_MAX 160 /* weights */

/* false: no weight, and ppb is all zero. */
static inline bool slow_lr(uint32_t *ppb, const u128 *weight, uint32_t n)
{
    u128 sum = 0, rest[SLOW_LR_MAX];
    uint32_t left = TAIL_E9;
    memset(ppb, 0, n * sizeof(*ppb));
    for (uint32_t i = 0; i < n; i++)
        sum += weight[i];
    if (sum == 0)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        ppb[i] = (uint32_t)((u128)TAIL_E9 * weight[i] / sum);
        rest[i] = (u128)TAIL_E9 * weight[i] % sum;
        left -= ppb[i];
    }
    while (left--) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < n; i++)
            best = rest[i] > rest[best] ? i : best;
        ppb[best]++;
        rest[best] = 0;
    }
    return true;
}

#endif
