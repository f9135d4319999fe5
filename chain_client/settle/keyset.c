/* What has piled up is sorted and thinned when the room is full, and the room doubles only when
 * that does not free half of it. */
#include "chain_client/settle/keyset.h"
#include "server/base/mem.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_KEYS 64

static int order(const void *a, const void *b, void *width)
{
    return memcmp(a, b, *(const size_t *)width);
}

void keyset_sort(struct keyset *s)
{
    size_t kept = 0, n = s->width;
    if (!s->count)
        return;
    qsort_r(s->key, s->count, n, order, &s->width);
    for (size_t i = 1; i < s->count; i++)
        if (memcmp(s->key + kept * n, s->key + i * n, n) != 0 && ++kept != i)
            memcpy(s->key + kept * n, s->key + i * n, n);
    s->count = kept + 1;
}

static bool make_room(struct keyset *s)
{
    keyset_sort(s);
    if (s->count <= s->cap / 2 && s->cap)
        return true;
    size_t cap = s->cap ? 2 * s->cap : FIRST_KEYS;
    void *more = mem_try_realloc(s->key, cap * s->width);
    if (!more)
        return false;
    s->key = more;
    s->cap = cap;
    return true;
}

bool keyset_add(struct keyset *s, const void *key)
{
    if (s->count && memcmp(s->key + (s->count - 1) * s->width, key, s->width) == 0)
        return true; /* runs are long */
    if (s->count == s->cap && !make_room(s))
        return false;
    memcpy(s->key + s->count++ * s->width, key, s->width);
    return true;
}

const uint8_t *keyset_at(const struct keyset *s, size_t i)
{
    return s->key + i * s->width;
}

void keyset_fini(struct keyset *s)
{
    mem_free(s->key);
    *s = (struct keyset){.width = s->width};
}
