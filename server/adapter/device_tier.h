/* The tier above the store's host tier where the backend is a device: which slots' blobs are on it,
 * copied from page-locked memory beside the steps, evicted when others need the place. A blob that
 * is evicted here stays in the host tier. The backend's adapter ops are told in backend.h.
 *
 *   ABSENT --want--> MOVING --event--> THERE --LRU or drop--> ABSENT
 *
 * Everything is made at create: the pool on the device, its table, the lanes of copies. Thread: the
 * engine's, which asks and never waits. */
#ifndef RS_ADAPTER_DEVICE_TIER_H
#define RS_ADAPTER_DEVICE_TIER_H

#include "kernels/backend.h"

struct device_tier;

struct device_tier_stats {
    uint64_t bytes, bytes_max; /* of the pool, in whole granules */
    uint32_t there, moving;
    uint64_t uploads, evictions;
};

/* What a blob needs to go up. */
struct device_blob {
    const void *pinned; /* stays as it is until device_tier_is_moving says no */
    uint64_t bytes;
    const char *name; /* for messages */
};

/* slots_max slots; bytes_max of the backend's memory. Errors: TOO_LARGE if the backend has not that
 * much left, or if it is less than a granule. */
MUST_CHECK enum status device_tier_create(struct device_tier **out, struct backend *b,
                                          uint64_t bytes_max, uint32_t slots_max,
                                          struct errtext *err);
/* Nothing may be pinned; copies under way are waited for. */
void device_tier_destroy(struct device_tier *t);

/* Would a blob of so many bytes ever fit? TOO_LARGE names it, with both sizes. */
MUST_CHECK enum status device_tier_check(const struct device_tier *t, const char *name,
                                         uint64_t bytes, struct errtext *err);
/* OK: the slot's blob is there. BUSY: it is on its way, or all lanes are taken: ask again when
 * device_tier_poll has said true. FULL: pinned ones hold the pool. IO: the device failed. */
MUST_CHECK enum status device_tier_want(struct device_tier *t, uint32_t slot,
                                        const struct device_blob *blob, struct errtext *err);
/* Address of a slot's blob on the device, NULL unless it is there. */
const void *device_tier_at(const struct device_tier *t, uint32_t slot);
void device_tier_pin(struct device_tier *t, uint32_t slot); /* it is there */
void device_tier_unpin(struct device_tier *t, uint32_t slot);
bool device_tier_is_moving(const struct device_tier *t, uint32_t slot);
/* Its place is free at once. Neither pinned nor moving; absent is fine. */
void device_tier_drop(struct device_tier *t, uint32_t slot);
/* Take note of copies that have landed; true if any has. landed(arg, slot, st): there, or, with a
 * status, absent again because the device failed. */
bool device_tier_poll(struct device_tier *t,
                      void (*landed)(void *arg, uint32_t slot, enum status st), void *arg);
/* evicted(arg, slot) whenever a blob leaves on its own account. */
void device_tier_on_evict(struct device_tier *t, void (*evicted)(void *arg, uint32_t slot),
                          void *arg);
void device_tier_get_stats(const struct device_tier *t, struct device_tier_stats *out);

#endif
