/* What an answer costs (SPEC 2), the one place of the formula. Pure. Thread: any. */
#ifndef RS_CHAIN_FEE_H
#define RS_CHAIN_FEE_H

#include "chain_client/tail.h"

#include <stdint.h>

/* floor((tokens_in * sum(in) + tokens_out * sum(out)) / 1000) in base units, rounded once. The
 * tariff holds at most 9 prices below 2^80, so nothing overflows. */
u128 fee_of(const struct tail_tariff *tariff, uint32_t tokens_in, uint32_t tokens_out);

#endif
