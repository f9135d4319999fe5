/* A linear search: layouts are few, and one is asked for once per load. */
#include "server/adapter/layout_set.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

void layout_set_init(struct layout_set *s, uint32_t count_max, size_t per)
{
    s->count_max = count_max;
    s->per = per;
    s->layout = mem_array(count_max, sizeof(*s->layout));
    s->entry = mem_array(count_max * per, sizeof(*s->entry));
    s->refs = mem_array(count_max, sizeof(*s->refs));
    for (uint32_t i = 0; i < count_max; i++)
        s->layout[i].entry = s->entry + i * per;
}

void layout_set_fini(struct layout_set *s)
{
    mem_free(s->refs);
    mem_free(s->entry);
    mem_free(s->layout);
}

uint32_t layout_set_take(struct layout_set *s, const struct lora_entry *entry, uint64_t blob_bytes)
{
    size_t bytes = s->per * sizeof(*entry);
    uint32_t free_idx = LAYOUT_NONE;
    for (uint32_t i = 0; i < s->count_max; i++) {
        if (s->refs[i] == 0) {
            free_idx = free_idx == LAYOUT_NONE ? i : free_idx;
            continue;
        }
        if (s->layout[i].blob_bytes == blob_bytes &&
            memcmp(s->layout[i].entry, entry, bytes) == 0) {
            s->refs[i]++;
            return i;
        }
    }
    if (free_idx != LAYOUT_NONE) {
        memcpy(s->entry + free_idx * s->per, entry, bytes);
        s->layout[free_idx].blob_bytes = blob_bytes;
        s->refs[free_idx] = 1;
    }
    return free_idx;
}

void layout_set_drop(struct layout_set *s, uint32_t idx)
{
    CHECK(s->refs[idx] > 0);
    s->refs[idx]--;
}
