/* What is known to be wrong with the settings before a model is loaded. Main thread. */
#ifndef RS_SERVER_VALUES_H
#define RS_SERVER_VALUES_H

#include "server/config.h"

/* Errors name the key: INVALID, TOO_LARGE, NOT_FOUND for a folder that is not there. */
MUST_CHECK enum status values_check(const struct config *c, struct errtext *err);

#endif
