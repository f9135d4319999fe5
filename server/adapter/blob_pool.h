/* One block of memory shared out among adapters in whole granules: best fit, neighbours joined when
 * they are given back. The table of runs is made at create and bounded by the number of blobs;
 * nothing is allocated afterwards. Only addresses are handled: the memory may be a device's.
 * Thread: the engine's. */
#ifndef RS_ADAPTER_BLOB_POOL_H
#define RS_ADAPTER_BLOB_POOL_H

#include <stdbool.h>
#include <stdint.h>

#define BLOB_POOL_DEVICE_GRANULE (2 << 20)
#define BLOB_POOL_HOST_GRANULE   (64 << 10)

struct blob_pool;

/* bytes of memory from base on; at most blobs_max are out at a time. */
struct blob_pool *blob_pool_create(void *base, uint64_t bytes, uint64_t granule,
                                   uint32_t blobs_max);
void blob_pool_destroy(struct blob_pool *p);
/* owner: whatever the caller names the blob by. NULL: no run is long enough. */
void *blob_pool_take(struct blob_pool *p, uint64_t bytes, uint32_t owner);
void blob_pool_give(struct blob_pool *p, void *blob);
uint64_t blob_pool_used(const struct blob_pool *p); /* in granules, as bytes */
uint64_t blob_pool_bytes(const struct blob_pool *p);
uint64_t blob_pool_round(const struct blob_pool *p, uint64_t bytes);
/* Would bytes fit if every blob went for which stays(arg, owner) is false? */
bool blob_pool_could_hold(const struct blob_pool *p, uint64_t bytes,
                          bool (*stays)(const void *arg, uint32_t owner), const void *arg);

#endif
