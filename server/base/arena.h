/* A bump arena with a maximum: everything a template needs, at parse time and at render time, is
 * taken from one and freed in one call. Memory is zeroed. One owner, no locking. */
#ifndef RS_BASE_ARENA_H
#define RS_BASE_ARENA_H

#include <stddef.h>

struct arena_chunk;

struct arena {
    struct arena_chunk *chunks;
    size_t used, bytes_max; /* used counts whole chunks */
};

void arena_init(struct arena *a, size_t bytes_max);
void arena_fini(struct arena *a);
/* 16-byte aligned; NULL past the maximum or without memory. */
void *arena_alloc(struct arena *a, size_t bytes);

#endif
