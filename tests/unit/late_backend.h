/* A CPU backend that behaves like a device as far as the engine can tell: what sample finds comes
 * when it is asked for, ids below 0 stand for tokens sampled before, and the output of a row that
 * has a history is read once. */
#ifndef RS_TESTS_UNIT_LATE_BACKEND_H
#define RS_TESTS_UNIT_LATE_BACKEND_H

#include "kernels/backend.h"

/* Wrap b, which stays its owner's; one at a time. Panics where the engine breaks the contract. */
void late_backend_wrap(struct backend *b);
void late_backend_unwrap(struct backend *b);
uint32_t late_backend_ids(void); /* rows so far whose id was left to the device */

#endif
