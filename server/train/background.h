/* A thread that computes where no other thread wants the processor, for one that waits: who holds
 * locks never runs in the background itself, where it could keep them for long. */
#ifndef RS_TRAIN_BACKGROUND_H
#define RS_TRAIN_BACKGROUND_H

#include "server/base/errtext.h"

#include <stdbool.h>

struct background;

/* yields: thread_background; false: it competes like any other. */
MUST_CHECK enum status background_create(struct background **out, bool yields, struct errtext *err);
void background_destroy(struct background *b); /* NULL is fine */
/* Runs fn(arg) there and returns when it has. Thread: one at a time. */
void background_run(struct background *b, void (*fn)(void *arg), void *arg);

#endif
