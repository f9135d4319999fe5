/* The logged inputs of an attribution, as GET /v1/attribution/{id}/inputs answers them (SPEC 7 and
 * 10), read for gain.h. A server that lies is told from one that does not by the digests; here
 * nothing is believed but that it is JSON. One thread. */
#ifndef RS_CLI_ATTRIBUTION_INPUTS_H
#define RS_CLI_ATTRIBUTION_INPUTS_H

#include "server/influence/gain.h"

#include <jansson.h>

struct attribution_inputs {
    struct gain_in in;
    uint8_t salt[32];
    struct gain_choice *choice; /* owned arrays behind const pointers */
    uint32_t *prior[TAIL_ADAPTERS_MAX];
    uint64_t *spans[TAIL_ADAPTERS_MAX];
    int8_t **key[TAIL_ADAPTERS_MAX];
};

/* The index of a root; it stays the finder's, and outlives the inputs. */
typedef enum status attribution_find_index(void *arg, const uint8_t root[32],
                                           const struct events **out, struct errtext *err);

/* Zeroed before use; to be freed after a fault, too. Errors: CORRUPT names what is not as SPEC has
 * it, UNSUPPORTED another method, those of find and of shares_prior. */
MUST_CHECK enum status attribution_inputs_read(struct attribution_inputs *x, const json_t *logged,
                                               attribution_find_index *find, void *arg,
                                               struct errtext *err);
void attribution_inputs_fini(struct attribution_inputs *x);

#endif
