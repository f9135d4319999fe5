/* Every byte the engine takes at start: one line per block, with its formula. The plan is built
 * first, then taken as a whole; what does not fit is refused with its line. Engine's creator. */
#ifndef RS_ENGINE_MEMPLAN_H
#define RS_ENGINE_MEMPLAN_H

#include <stdint.h>

#include "server/base/buf.h"
#include "server/base/errtext.h"

#define MEMPLAN_LINES_MAX 48

struct memplan_line {
    const char *what;
    char formula[80];
    uint64_t bytes;
    void **at; /* where the block's address goes; NULL: taken elsewhere, only counted */
};

struct memplan {
    struct memplan_line line[MEMPLAN_LINES_MAX];
    uint32_t line_count;
};

/* Add a line. *at is filled by memplan_take (64-byte aligned, zeroed). */
void memplan_add(struct memplan *p, void **at, uint64_t bytes, const char *what,
                 const char *formula, ...) __attribute__((format(printf, 5, 6)));
/* Allocate all lines. TOO_LARGE names the line where the sum passes bytes_max (0: no bound) or
 * memory is refused; then nothing stays allocated. */
MUST_CHECK enum status memplan_take(struct memplan *p, uint64_t bytes_max, struct errtext *err);
void memplan_drop(struct memplan *p);
void memplan_print(const struct memplan *p, struct buf *out);

#endif
