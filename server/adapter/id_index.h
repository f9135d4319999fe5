/* Adapter id -> slot: a hash table with linear probing, at most half full, that never allocates
 * after init. Thread: one. */
#ifndef RS_ADAPTER_ID_INDEX_H
#define RS_ADAPTER_ID_INDEX_H

#include <stdint.h>

#define ID_INDEX_NONE UINT32_MAX

struct id_cell {
    uint8_t id[32];
    uint32_t used, slot;
};

struct id_index {
    struct id_cell *cell; /* [mask + 1] */
    uint32_t mask;
};

void id_index_init(struct id_index *x, uint32_t slots_max);
void id_index_fini(struct id_index *x);
/* ID_INDEX_NONE if it is not there. */
uint32_t id_index_find(const struct id_index *x, const uint8_t id[32]);
/* The id is not there yet, and fewer than slots_max are. */
void id_index_insert(struct id_index *x, const uint8_t id[32], uint32_t slot);
void id_index_remove(struct id_index *x, const uint8_t id[32]);

#endif
