/* The sums stay below 2^84 (nine prices below 2^80), the products below 2^117. */
#include "chain_client/fee.h"
#include "server/base/check.h"

u128 fee_of(const struct tail_tariff *tariff, uint32_t tokens_in, uint32_t tokens_out)
{
    u128 in = 0, out = 0;
    CHECK(tariff->count <= 1 + TAIL_ADAPTERS_MAX);
    for (uint32_t i = 0; i < tariff->count; i++) {
        in += tariff->price[i].in;
        out += tariff->price[i].out;
    }
    CHECK(in >> (TAIL_PRICE_BITS + 4) == 0 && out >> (TAIL_PRICE_BITS + 4) == 0);
    return (tokens_in * in + tokens_out * out) / 1000;
}
