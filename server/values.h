/* What is known to be wrong with the settings before a model is loaded. Main thread. */
#ifndef RS_SERVER_VALUES_H
#define RS_SERVER_VALUES_H

#include "server/config.h"
#include "server/terms/terms.h"

/* Errors name the key: INVALID, TOO_LARGE, NOT_FOUND for a folder that is not there. */
MUST_CHECK enum status values_check(const struct config *c, struct errtext *err);

struct values {                       /* settings that are numbers of the chain's */
    uint8_t ledger[20], registry[20]; /* zeros where none is named */
    struct tariff base_tariff;
};
/* INVALID, naming the key, the found and the expected value. */
MUST_CHECK enum status values_read(struct values *out, const struct config *c, struct errtext *err);

#endif
