/* The loader thread: reads an adapter's files into a blob, proves that the content is what the name
 * promised, posts it back; and frees blobs. The proof is the content id, hashed from the bytes that
 * were packed, or the seal of a file that this process has hashed before and that nothing has
 * touched since (seal.h says what that does and does not notice). Jobs are messages from a fixed
 * pool, taken in order: a free that was queued before a load is done before it, so a budget may
 * count on the bytes at once. Runs at low priority. */
#ifndef RS_ADAPTER_LOADER_H
#define RS_ADAPTER_LOADER_H

#include "server/adapter/store.h"
#include "server/base/mailbox.h"

enum loader_op { LOADER_LOAD, LOADER_FREE };

struct loader_job {
    enum loader_op op;
    struct adapter_entry *entry; /* a reference; FREE releases it */
    uint32_t slot;
    void *blob; /* on a device a LOAD is given its place, and FREE has none: the store's pool */
    uint64_t blob_bytes;
    struct lora_entry
        *layout; /* LOAD's result, [n_layer][LORA_MODULE_COUNT]; the store owns the memory */
    enum status status;
    struct errtext err;
    uint64_t load_ns, load_cpu_ns; /* of the clock, of the loader thread */
    bool hashed;                   /* LOAD: the whole content was hashed */
    uint32_t waiter;               /* FREE: index of the unload waiter, or UINT32_MAX */
};

struct loader;
/* jobs_max bounds both directions. */
struct loader *loader_create(const struct store_options *opt, uint32_t jobs_max);
void loader_destroy(struct loader *l); /* jobs inside are dropped, their blobs freed */
/* Never full while at most jobs_max jobs exist. Thread: engine. */
void loader_submit(struct loader *l, struct loader_job *job);
struct loader_job *loader_take(struct loader *l); /* finished job or NULL. Thread: engine */

#endif
