/* The tails of records (SPEC 2): the adapter set, its tariff, the sampling parameters and the
 * influence. Encoders write the one canonical form; decoders accept only it and name what is wrong.
 * An encoder needs what its decoder would accept: both run the same check. Pure. Thread: any. */
#ifndef RS_CHAIN_TAIL_H
#define RS_CHAIN_TAIL_H

#include "server/base/errtext.h"
#include "server/base/hex.h"

#include <stddef.h>
#include <stdint.h>

#define TAIL_E9           1000000000u
#define TAIL_ADAPTERS_MAX 8
#define TAIL_SHARES_MAX   64
#define TAIL_PRICE_BITS   80

#define TAIL_SET_BYTES_MAX       (TAIL_ADAPTERS_MAX * 36)
#define TAIL_TARIFF_BYTES_MAX    ((1 + TAIL_ADAPTERS_MAX) * 32)
#define TAIL_PARAMS_BYTES        143
#define TAIL_INFLUENCE_BYTES_MAX (TAIL_ADAPTERS_MAX * (5 + TAIL_SHARES_MAX * 24))

struct tail_adapter {
    uint8_t id[32];
    int32_t weight; /* Q16.16, not 0 */
};

/* K adapters, ids strictly ascending; count 0 is the base alone. */
struct tail_set {
    struct tail_adapter adapter[TAIL_ADAPTERS_MAX];
    uint32_t count;
};

struct tail_price {
    u128 in, out; /* base units per 1 000 tokens, each < 2^80 */
};

/* price[0] is the base's, price[1 + i] that of adapter i of the set. count = 1 + K. */
struct tail_tariff {
    struct tail_price price[1 + TAIL_ADAPTERS_MAX];
    uint32_t count;
};

#define TAIL_PARAMS_IGNORE_EOS 1u
#define TAIL_PARAMS_SEED_GIVEN 2u

/* What a replay needs; floats travel as their IEEE bits. 0 where the server does not know. */
struct tail_params {
    uint16_t n;
    uint32_t max_tokens, min_tokens;
    float temperature, top_p;
    uint32_t top_k; /* 0 = off */
    float min_p, presence_penalty, frequency_penalty, repetition_penalty;
    uint64_t seed;
    uint8_t flags; /* TAIL_PARAMS_* */
    uint8_t stop_hash[32], bias_hash[32], template_digest[32];
};

struct tail_share {
    uint8_t payee[20]; /* zero = TREASURY */
    uint32_t ppb;      /* of E9 */
};

struct tail_credit {
    uint32_t gain;        /* of E9 */
    uint32_t share_count; /* 0 without a datanet, else 1..64, payees strictly ascending */
    struct tail_share share[TAIL_SHARES_MAX];
};

/* Per adapter in set order. Gains sum to E9, and so does each non-empty list of shares. */
struct tail_influence {
    struct tail_credit adapter[TAIL_ADAPTERS_MAX];
    uint32_t count; /* 1..8 */
};

/* Encoders: out has the maximum above; *len is what was written. INVALID as the decoders. */
MUST_CHECK enum status tail_set_encode(uint8_t *out, size_t *len, const struct tail_set *set,
                                       struct errtext *err);
MUST_CHECK enum status tail_set_decode(struct tail_set *set, const uint8_t *data, size_t len,
                                       struct errtext *err);

MUST_CHECK enum status tail_tariff_encode(uint8_t *out, size_t *len,
                                          const struct tail_tariff *tariff, struct errtext *err);
MUST_CHECK enum status tail_tariff_decode(struct tail_tariff *tariff, const uint8_t *data,
                                          size_t len, struct errtext *err);

/* INVALID for a NaN or infinity, a negative zero, or unknown flags. */
MUST_CHECK enum status tail_params_encode(uint8_t out[TAIL_PARAMS_BYTES],
                                          const struct tail_params *params, struct errtext *err);
MUST_CHECK enum status tail_params_decode(struct tail_params *params, const uint8_t *data,
                                          size_t len, struct errtext *err);

MUST_CHECK enum status tail_influence_encode(uint8_t *out, size_t *len,
                                             const struct tail_influence *influence,
                                             struct errtext *err);
MUST_CHECK enum status tail_influence_decode(struct tail_influence *influence, const uint8_t *data,
                                             size_t len, struct errtext *err);

#endif
