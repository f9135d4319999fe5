/* Residency: which adapters' blobs are in memory, in which slot of the LoRA table, pinned by whom,
 * evicted when. Owned by the engine thread alone, which never waits here: a cold adapter is asked
 * of the loader thread (a message) and comes back as a message. Bytes are budgeted; LRU among
 * unpinned; a blob is freed by the loader thread.
 *
 * On a device there is a second tier (device_tier.h): blobs in the backend's form lie in one block
 * of page-locked memory and those in use are also on the device; what the table names and pins hold
 * is there. The host tier has a copy of everything, so its budget should not be the smaller one.
 *
 * Use   slot = store_acquire(...) for every part of a composition before its rows run,
 * store_release after the last row. */
#ifndef RS_ADAPTER_STORE_H
#define RS_ADAPTER_STORE_H

#include "kernels/backend.h"
#include "server/adapter/catalog.h"
#include "server/base/file.h"
#include "server/model/config.h"

struct store;

struct store_options {
    uint32_t slots_max;      /* adapters resident at a time */
    uint32_t layouts_max;    /* distinct layouts; past it an adapter is refused */
    uint64_t host_bytes_max; /* budget of the host tier */
    enum dtype dtype;
    const struct model_config *model; /* outlives the store */
    struct backend *backend;          /* outlives the store; NULL or no device: one tier */
    uint64_t device_bytes_max;        /* of the pool on the device */
    const struct file_roots *roots; /* where links may lead (folder.h); outlives the store; NULL */
    void (*wake)(void *arg); /* loader thread: "a message waits", e.g. mailbox_kick of the engine */
    void *wake_arg;
};

/* Starts the loader thread (idle priority). */
MUST_CHECK enum status store_create(struct store **out, const struct store_options *opt,
                                    struct errtext *err);
/* Nothing may be pinned. Joins the loader. */
void store_destroy(struct store *s);

const struct lora_table *store_table(const struct store *s);

/* Pin an adapter and get its slot.
 * OK: *slot valid until store_release. BUSY: a load is under way or queued (ask again after
 * store_poll said true). FULL: the budget is held by pinned adapters: later. TOO_LARGE: never fits
 * the budget. Others: the load failed; err says why; a failed adapter is retried after 5 s. Never
 * blocks, never allocates. */
MUST_CHECK enum status store_acquire(struct store *s, struct adapter_entry *e, uint64_t now_ms,
                                     uint32_t *slot, struct errtext *err);
void store_release(struct store *s, uint32_t slot);
bool store_is_resident(const struct store *s, const uint8_t id[32]);

/* Take finished loads and frees. true if anything changed. */
bool store_poll(struct store *s, uint64_t now_ms);

/* Drop an adapter's bytes: DRAINING until unpinned, then freed. done(arg) is called from store_poll
 * when the bytes are free (at once if it was not resident). One waiter per id; a second gets BUSY.
 */
MUST_CHECK enum status store_unload(struct store *s, const uint8_t id[32], void (*done)(void *arg),
                                    void *arg);

struct store_stats { /* plain reads on the engine thread; published by the engine */
    uint64_t host_bytes, host_bytes_max;
    uint32_t resident, pinned, slots_max, loading;
    uint64_t loads, evictions, load_failures, load_ns_sum, load_cpu_ns_sum;
    uint64_t device_bytes, device_bytes_max; /* of the pool, in whole pieces; 0: no device */
    uint32_t on_device, uploading;
    uint64_t uploads, device_evictions;
    uint64_t loads_verified; /* those of loads whose content was hashed; seal.h has the others */
};
void store_get_stats(const struct store *s, struct store_stats *out);

/* Largest sum over a group (qkv | o | gate,up | down) of ranks of one resident slot, over layers:
 * for s_stride checks. */
uint32_t store_slot_rank_sum(const struct store *s, uint32_t slot);

#endif
