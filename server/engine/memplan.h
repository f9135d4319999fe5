/* Every byte the engine takes at start: one line per block, with its formula, where it lies and
 * what setting makes it smaller. The plan is built first, then checked and taken as a whole; what
 * does not fit is refused with its line. Host and device have a budget and a total each; on a
 * backend in host memory all lines are the host's. Engine's creator. */
#ifndef RS_ENGINE_MEMPLAN_H
#define RS_ENGINE_MEMPLAN_H

#include "kernels/backend.h"
#include "server/base/buf.h"

#include <stdint.h>

#define MEMPLAN_LINES_MAX 64

enum memplan_place { MEMPLAN_HOST, MEMPLAN_DEVICE };

struct memplan_block {
    void **at; /* where the block's address goes; NULL: taken elsewhere, only counted */
    uint64_t bytes;
    enum memplan_place place; /* DEVICE: the backend's memory, wherever that is */
    const char *what;
    const char *key; /* the settings to lower; NULL: none of its own */
};

struct memplan_line {
    struct memplan_block block;
    char formula[80];
};

struct memplan {
    struct memplan_line line[MEMPLAN_LINES_MAX];
    uint32_t line_count;
    struct backend *backend;       /* whose memory DEVICE lines are */
    uint64_t host_max, device_max; /* budgets; 0: no bound */
};

/* host_max 0: no bound. The device's budget is what the backend has in all. */
void memplan_init(struct memplan *p, struct backend *backend, uint64_t host_max);
/* Add a line. *at is filled by memplan_take (64-byte aligned, zeroed). */
void memplan_add(struct memplan *p, const struct memplan_block *block, const char *formula, ...)
    __attribute__((format(printf, 3, 4)));
uint64_t memplan_total(const struct memplan *p, enum memplan_place place);
/* TOO_LARGE names the line where a sum passes its budget. */
MUST_CHECK enum status memplan_check(const struct memplan *p, struct errtext *err);
/* Allocate all lines. TOO_LARGE as memplan_check, or if memory is refused; then nothing stays
 * allocated. */
MUST_CHECK enum status memplan_take(struct memplan *p, struct errtext *err);
void memplan_drop(struct memplan *p);
void memplan_print(const struct memplan *p, struct buf *out);

#endif
