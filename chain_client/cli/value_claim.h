/* A value.json that somebody else made, to be measured again: its recipe takes the place of the
 * command line's options, and what comes out is held against it. One thread. */
#ifndef RS_CLI_VALUE_CLAIM_H
#define RS_CLI_VALUE_CLAIM_H

#include "chain_client/cli/cli.h"

#include <jansson.h>

struct value_claim {
    json_t *json;
    char text[OPT_COUNT][32]; /* of options that are numbers; c->value points here */
};
/* c's options from the recipe in the file at path; config: the adapter's, at its end. Zeroed
 * before. INVALID names the field, or the option that was given beside it. */
MUST_CHECK enum status value_claim_take(struct value_claim *k, struct cli *c, const char *path,
                                        struct buf *config, struct errtext *err);
void value_claim_fini(struct value_claim *k);
/* The fields in which the measured file is another, but for the program's version, with commas
 * between, at the end of fields. */
void value_claim_compare(const struct value_claim *k, const struct buf *measured,
                         struct buf *fields);

#endif
