/* Chunks double from 4 KiB to 1 MiB; a bigger request gets a chunk of its own size. */
#include "server/base/arena.h"
#include "server/base/mem.h"

#include <stdalign.h>

#define CHUNK_BYTES_MIN ((size_t)4096)
#define CHUNK_BYTES_MAX ((size_t)1 << 20)

struct arena_chunk {
    struct arena_chunk *next;
    size_t used, bytes;
    alignas(16) char data[];
};

void arena_init(struct arena *a, size_t bytes_max)
{
    *a = (struct arena){.bytes_max = bytes_max};
}

void arena_fini(struct arena *a)
{
    while (a->chunks) {
        struct arena_chunk *next = a->chunks->next;
        mem_free(a->chunks);
        a->chunks = next;
    }
    a->used = 0;
}

static struct arena_chunk *chunk_add(struct arena *a, size_t need)
{
    size_t bytes = a->chunks ? a->chunks->bytes * 2 : CHUNK_BYTES_MIN;
    if (bytes > CHUNK_BYTES_MAX)
        bytes = CHUNK_BYTES_MAX;
    if (bytes < need)
        bytes = need;
    if (bytes > a->bytes_max - a->used)
        bytes = need;
    if (bytes > a->bytes_max - a->used)
        return NULL;
    struct arena_chunk *c = mem_try_alloc(sizeof(*c) + bytes);
    if (!c)
        return NULL;
    c->bytes = bytes;
    c->next = a->chunks;
    a->chunks = c;
    a->used += bytes;
    return c;
}

void *arena_alloc(struct arena *a, size_t bytes)
{
    if (bytes > a->bytes_max)
        return NULL;
    bytes = (bytes + 15) & ~(size_t)15;
    struct arena_chunk *c = a->chunks;
    if (!c || c->bytes - c->used < bytes) {
        c = chunk_add(a, bytes);
        if (!c)
            return NULL;
    }
    void *p = c->data + c->used;
    c->used += bytes;
    return p;
}
