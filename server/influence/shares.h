/* The shares of one adapter's data pool in one answer (SPEC 10), from the integers of its signals:
 *
 *   p1        = LR(E9, events)                     S1, per owner; all zero: no influence
 *   p2        = LR(E9, spans of owners with p1 > 0)                S2; all zero: absent
 *   influence = LR(E9, w1 p1 + w2 p2)
 *   f         = lambda influence + (E9 - lambda) prior             without influence: prior
 *   shares    = LR(E9, the 64 largest f, ties to the lower place), zeros left out
 *
 * Owners are places in the index's table, ascending by payee. The spread, telemetry alone, is the
 * least and the most that a share is when one of four sub-indexes is left out. Pure. Thread: any.
 */
#ifndef RS_INFLUENCE_SHARES_H
#define RS_INFLUENCE_SHARES_H

#include "chain_client/tail.h"

#include <stdbool.h>

#define SHARES_SUBS 4 /* sub-indexes of the spread */

struct shares_in {
    uint32_t owner_count;      /* >= 1 */
    const uint32_t *prior_ppb; /* [owner_count], shares_prior */
    const u128 *events;        /* [owner_count], each below 2^128 / E9 */
    const uint64_t *spans;     /* [owner_count]; NULL: none */
    const u128 *const *sub;    /* [SHARES_SUBS] events without sub-index q; NULL: no spread */
    uint32_t w1, w2;           /* of the index */
    uint32_t lambda_ppb;       /* <= E9 */
};

struct shares_item {
    uint32_t owner, ppb;
    uint32_t events_ppb, spans_ppb, prior_ppb; /* the signals alone */
    uint32_t low_ppb, high_ppb;                /* spread */
};

struct shares {
    uint32_t count; /* 1 to 64, owners ascending, ppb > 0 */
    bool has_events, has_spans;
    struct shares_item item[TAIL_SHARES_MAX];
};

/* LR(E9, documents per owner). INVALID: nobody has a document; NO_MEMORY. */
MUST_CHECK enum status shares_prior(uint32_t *prior_ppb, const uint32_t *documents, uint32_t count);
/* Without a spread low_ppb and high_ppb are ppb. Errors: INVALID (a sum of weights that no verified
 * index can give), NO_MEMORY. */
MUST_CHECK enum status shares_compute(struct shares *out, const struct shares_in *in);

#endif
