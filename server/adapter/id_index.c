/* Ids are digests, so their first bytes are the hash. Removal re-inserts the rest of its cluster:
 * no graves, so a table that lives for months stays as fast as a new one. */
#include "server/adapter/id_index.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

void id_index_init(struct id_index *x, uint32_t slots_max)
{
    uint32_t count = 4;
    while (count < 2 * slots_max)
        count *= 2;
    x->cell = mem_array(count, sizeof(*x->cell));
    x->mask = count - 1;
}

void id_index_fini(struct id_index *x)
{
    mem_free(x->cell);
    x->cell = NULL;
}

/* The id's cell, or the free one where it would stand. */
static uint32_t cell_of(const struct id_index *x, const uint8_t id[32])
{
    uint32_t i;
    memcpy(&i, id, sizeof(i));
    for (i &= x->mask; x->cell[i].used && memcmp(x->cell[i].id, id, 32) != 0;)
        i = (i + 1) & x->mask;
    return i;
}

uint32_t id_index_find(const struct id_index *x, const uint8_t id[32])
{
    const struct id_cell *c = &x->cell[cell_of(x, id)];
    return c->used ? c->slot : ID_INDEX_NONE;
}

void id_index_insert(struct id_index *x, const uint8_t id[32], uint32_t slot)
{
    struct id_cell *c = &x->cell[cell_of(x, id)];
    CHECK(!c->used);
    memcpy(c->id, id, 32);
    c->slot = slot;
    c->used = 1;
}

void id_index_remove(struct id_index *x, const uint8_t id[32])
{
    uint32_t i = cell_of(x, id);
    CHECK(x->cell[i].used);
    x->cell[i].used = 0;
    for (i = (i + 1) & x->mask; x->cell[i].used; i = (i + 1) & x->mask) {
        struct id_cell moved = x->cell[i];
        x->cell[i].used = 0;
        id_index_insert(x, moved.id, moved.slot);
    }
}
