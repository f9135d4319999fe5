/* A few threads that share a loop out: signatures are what a settlement's processors do. The caller
 * works too, and crew_run returns when all is done. Thread: one caller at a time. */
#ifndef RS_SETTLE_CREW_H
#define RS_SETTLE_CREW_H

#include "server/base/errtext.h"

#include <stddef.h>
#include <stdint.h>

#define CREW_MAX 64

struct crew;

/* threads: 1 to CREW_MAX, the caller among them. IO when the system has none left. */
MUST_CHECK enum status crew_create(struct crew **out, uint32_t threads, struct errtext *err);
void crew_destroy(struct crew *c); /* NULL is fine */

/* work(arg, first, end) for slices of 0 .. count, each index once. */
typedef void crew_work(void *arg, size_t first, size_t end);
void crew_run(struct crew *c, crew_work *work, void *arg, size_t count);

#endif
