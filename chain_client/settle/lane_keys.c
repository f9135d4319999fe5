/* A stretch's end is found by asking at the far end first, which mostly settles it, then by
 * bisection. */
#include "chain_client/settle/lane_keys.h"
#include "server/base/mem.h"

#include <string.h>

static enum status find_end(struct lane_key *k, struct view *v, const char *tag, uint64_t last,
                            struct errtext *err)
{
    uint64_t low = k->first, high = last, ask = last;
    while (low < high) {
        uint8_t key[20];
        enum status st = view_lane_key(v, tag, k->lane, ask, key, err);
        if (st)
            return st;
        if (memcmp(key, k->address, 20) == 0)
            low = ask;
        else
            high = ask - 1;
        ask = low + (high - low + 1) / 2;
    }
    k->last = low;
    return STATUS_OK;
}

enum status lane_keys_read(struct lane_keys *k, struct view *v, const char *tag, uint32_t lane,
                           uint64_t first, uint64_t last, struct errtext *err)
{
    while (first <= last) {
        struct lane_key fresh = {.lane = lane, .first = first};
        enum status st = view_lane_key(v, tag, lane, first, fresh.address, err);
        if (!st)
            st = find_end(&fresh, v, tag, last, err);
        if (st)
            return st;
        if (k->count == k->cap) {
            size_t cap = k->cap ? 2 * k->cap : 16;
            void *more = mem_try_realloc(k->item, cap * sizeof(*k->item));
            if (!more)
                return err_set(err, STATUS_NO_MEMORY, "no memory for lane keys");
            k->item = more;
            k->cap = cap;
        }
        k->item[k->count++] = fresh;
        first = fresh.last + 1;
    }
    return STATUS_OK;
}

const struct lane_key *lane_keys_find(const struct lane_keys *k, size_t *hint, uint32_t lane,
                                      uint64_t seq)
{
    for (size_t tried = 0; tried < k->count; tried++) {
        size_t i = (*hint + tried) % k->count;
        if (k->item[i].lane == lane && k->item[i].first <= seq && seq <= k->item[i].last) {
            *hint = i;
            return &k->item[i];
        }
    }
    return NULL;
}

void lane_keys_fini(struct lane_keys *k)
{
    mem_free(k->item);
    *k = (struct lane_keys){0};
}
