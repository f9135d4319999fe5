/* Residency as a table of slots, each in one of four states:
 *
 *        FREE --acquire--> LOADING --loader--> READY --unpinned, LRU or unload--> FREE
 *                             \--failure--> FAILED --5 s or eviction--> FREE
 *
 * A slot that is evicted hands blob and entry to a FREE job and is reusable at once: the loader
 * takes jobs in order, so the bytes are back before the next load allocates. Everything here is
 * preallocated; the engine thread never waits. `used_bytes` counts READY and LOADING slots. Unload
 * marks the entry DRAINING until its pins are gone.
 *
 * With a device a READY slot's blob has a place in the page-locked block, which is free again the
 * moment the slot is; to be pinned it must also be in the device's tier, and while it moves there
 * it cannot go. */
#include "server/adapter/store.h"
#include "server/adapter/blob_pool.h"
#include "server/adapter/device_tier.h"
#include "server/adapter/id_index.h"
#include "server/adapter/layout_set.h"
#include "server/adapter/loader.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

#define RETRY_MS    5000u
#define NO_WAITER   UINT32_MAX
#define WAITERS_MAX 64

enum slot_state { SLOT_FREE, SLOT_LOADING, SLOT_READY, SLOT_FAILED };

struct slot {
    enum slot_state state;
    struct adapter_entry *entry; /* a reference */
    void *blob;
    uint64_t blob_bytes, last_used_ms, retry_ms;
    uint32_t pins, layout, rank_sum;
    uint32_t waiter;    /* an unload waits for it */
    enum status status; /* FAILED: why */
    struct errtext err;
};

struct waiter {
    void (*done)(void *arg);
    void *arg;
};

struct store {
    struct store_options opt;
    struct slot *slot;            /* [slots_max] */
    struct lora_slot *table_slot; /* [slots_max] */
    struct layout_set layouts;
    struct lora_table table;
    struct loader *loader;
    struct loader_job *job;       /* [jobs_max] */
    struct loader_job **free_job; /* [jobs_max] */
    uint32_t jobs_max, free_jobs;
    struct waiter waiter[WAITERS_MAX];
    struct id_index index; /* adapter id -> slot */
    uint64_t used_bytes;
    uint32_t loading;
    struct store_stats stats;
    struct lora_entry *job_layout;
    /* with a device */
    struct device_tier *tier;
    struct blob_pool *pinned;
    void *pinned_base;
};

static size_t entries_per_layout(const struct store *s)
{
    return (size_t)s->opt.model->n_layer * LORA_MODULE_COUNT;
}

static struct slot *find(const struct store *s, const uint8_t id[32])
{
    uint32_t idx = id_index_find(&s->index, id);
    return idx == ID_INDEX_NONE ? NULL : &s->slot[idx];
}

/* ---- create ---- */

static void set_state(struct adapter_entry *e, enum adapter_state state)
{
    atomic_store_explicit(&e->state, state, memory_order_relaxed);
}

static void create_tables(struct store *s)
{
    const struct store_options *o = &s->opt;
    s->slot = mem_array(o->slots_max, sizeof(*s->slot));
    s->table_slot = mem_array(o->slots_max, sizeof(*s->table_slot));
    layout_set_init(&s->layouts, o->layouts_max, entries_per_layout(s));
    s->table = (struct lora_table){.slot = s->table_slot,
                                   .layout = s->layouts.layout,
                                   .n_slot = o->slots_max,
                                   .n_layout = o->layouts_max,
                                   .n_layer = o->model->n_layer,
                                   .dtype = o->dtype};
    id_index_init(&s->index, o->slots_max);
}

static void tier_evicted(void *arg, uint32_t idx)
{
    struct store *s = arg;
    s->table_slot[idx].blob = NULL;
    set_state(s->slot[idx].entry,
              s->slot[idx].waiter == NO_WAITER ? ADAPTER_HOST : ADAPTER_DRAINING);
}

static enum status create_tiers(struct store *s, struct errtext *err)
{
    const struct store_options *o = &s->opt;
    if (!o->backend || !o->backend->is_device)
        return STATUS_OK;
    uint64_t bytes = o->host_bytes_max / BLOB_POOL_HOST_GRANULE * BLOB_POOL_HOST_GRANULE;
    s->pinned_base = o->backend->ops->adapters->pinned_alloc((size_t)bytes);
    if (!s->pinned_base)
        return err_param(err, STATUS_NO_MEMORY, "adapters_host_bytes_max",
                         "adapters in memory: the system refused %.1f MiB of page-locked memory; "
                         "raise the locked-memory limit (ulimit -l), or lower "
                         "adapters_host_bytes_max",
                         (double)bytes / 1048576.0);
    s->pinned = blob_pool_create(s->pinned_base, bytes, BLOB_POOL_HOST_GRANULE, o->slots_max);
    enum status st =
        device_tier_create(&s->tier, o->backend, o->device_bytes_max, o->slots_max, err);
    if (!st)
        device_tier_on_evict(s->tier, tier_evicted, s);
    return st;
}

enum status store_create(struct store **out, const struct store_options *opt, struct errtext *err)
{
    *out = NULL;
    if (opt->slots_max == 0 || opt->layouts_max == 0)
        return err_param(err, STATUS_INVALID, "adapters_resident_max",
                         "adapters_resident_max %u, layouts %u: expected at least 1 of each",
                         opt->slots_max, opt->layouts_max);
    struct store *s = mem_alloc(sizeof(*s));
    s->opt = *opt;
    create_tables(s);
    s->jobs_max = MIN(opt->slots_max, 64u) + 64u;
    s->job = mem_array(s->jobs_max, sizeof(*s->job));
    s->free_job = mem_array(s->jobs_max, sizeof(*s->free_job));
    s->job_layout = mem_array(s->jobs_max * entries_per_layout(s), sizeof(*s->job_layout));
    for (uint32_t i = 0; i < s->jobs_max; i++) {
        s->job[i].layout = s->job_layout + i * entries_per_layout(s);
        s->free_job[s->free_jobs++] = &s->job[i];
    }
    enum status st = create_tiers(s, err);
    if (st) {
        store_destroy(s);
        return st;
    }
    s->loader = loader_create(opt, s->jobs_max);
    *out = s;
    return STATUS_OK;
}

void store_destroy(struct store *s)
{
    if (!s)
        return;
    if (s->loader)
        loader_destroy(s->loader);
    device_tier_destroy(s->tier);
    for (uint32_t i = 0; i < s->opt.slots_max; i++) {
        CHECK(s->slot[i].pins == 0);
        if (!s->pinned)
            mem_free_aligned(s->slot[i].blob, s->slot[i].blob_bytes);
        if (s->slot[i].state == SLOT_READY || s->slot[i].state == SLOT_FAILED)
            catalog_release(s->slot[i].entry);
    }
    if (s->pinned_base)
        s->opt.backend->ops->adapters->pinned_free(s->pinned_base);
    blob_pool_destroy(s->pinned);
    mem_free(s->job_layout);
    mem_free(s->free_job);
    mem_free(s->job);
    id_index_fini(&s->index);
    layout_set_fini(&s->layouts);
    mem_free(s->table_slot);
    mem_free(s->slot);
    mem_free(s);
}

const struct lora_table *store_table(const struct store *s)
{
    return &s->table;
}

/* Largest sum of ranks over the groups that share an input, over all layers. */
static uint32_t rank_sum_of(const struct store *s, const struct lora_entry *e)
{
    uint32_t most = 0;
    for (uint32_t l = 0; l < s->opt.model->n_layer; l++, e += LORA_MODULE_COUNT) {
        uint32_t qkv = e[LORA_MODULE_Q].rank + e[LORA_MODULE_K].rank + e[LORA_MODULE_V].rank;
        uint32_t gate_up = e[LORA_MODULE_GATE].rank + e[LORA_MODULE_UP].rank;
        uint32_t single = MAX(e[LORA_MODULE_O].rank, e[LORA_MODULE_DOWN].rank);
        most = MAX(most, MAX(qkv, MAX(gate_up, single)));
    }
    return most;
}

/* ---- slots ---- */

static struct loader_job *take_job(struct store *s)
{
    return s->free_jobs ? s->free_job[--s->free_jobs] : NULL;
}

static bool is_moving(const struct store *s, uint32_t idx)
{
    return s->tier && device_tier_is_moving(s->tier, idx);
}

/* The slot's bytes, if they are the pools', are free now. */
static void give_back(struct store *s, uint32_t idx)
{
    struct slot *slot = &s->slot[idx];
    if (!s->pinned || !slot->blob)
        return;
    device_tier_drop(s->tier, idx);
    blob_pool_give(s->pinned, slot->blob);
    slot->blob = NULL;
}

/* READY (unpinned) or FAILED -> FREE. Blob and entry go to the loader. */
static bool drop_slot(struct store *s, uint32_t idx)
{
    struct slot *slot = &s->slot[idx];
    struct loader_job *job = take_job(s);
    if (!job)
        return false;
    CHECK(slot->pins == 0 && !is_moving(s, idx));
    id_index_remove(&s->index, slot->entry->id);
    give_back(s, idx);
    job->op = LOADER_FREE;
    job->entry = slot->entry;
    job->blob = slot->blob;
    job->blob_bytes = slot->blob_bytes;
    job->waiter = slot->waiter;
    if (slot->state == SLOT_READY) {
        s->used_bytes -= slot->blob_bytes;
        s->stats.resident--;
        layout_set_drop(&s->layouts, slot->layout);
        s->table_slot[idx].blob = NULL;
    }
    set_state(slot->entry, ADAPTER_DISK);
    *slot = (struct slot){.state = SLOT_FREE, .waiter = NO_WAITER};
    loader_submit(s->loader, job);
    return true;
}

/* The unpinned slot used longest ago, failures first; UINT32_MAX if all are pinned or loading. */
static uint32_t pick_victim(const struct store *s)
{
    uint32_t victim = UINT32_MAX;
    for (uint32_t i = 0; i < s->opt.slots_max; i++) {
        const struct slot *slot = &s->slot[i];
        if (slot->state == SLOT_FAILED)
            return i;
        if (slot->state == SLOT_READY && slot->pins == 0 && !is_moving(s, i) &&
            (victim == UINT32_MAX || slot->last_used_ms < s->slot[victim].last_used_ms))
            victim = i;
    }
    return victim;
}

static uint32_t free_slot(const struct store *s)
{
    for (uint32_t i = 0; i < s->opt.slots_max; i++) {
        if (s->slot[i].state == SLOT_FREE)
            return i;
    }
    return UINT32_MAX;
}

static bool slot_stays(const struct store *s, uint32_t idx)
{
    const struct slot *slot = &s->slot[idx];
    return slot->state == SLOT_LOADING ||
           (slot->state == SLOT_READY && (slot->pins > 0 || is_moving(s, idx)));
}

static bool blob_stays(const void *arg, uint32_t idx)
{
    return slot_stays(arg, idx);
}

/* Would evicting everything unpinned make room? Nothing is evicted in vain. */
static bool can_make_room(const struct store *s, uint64_t bytes)
{
    uint64_t held = 0;
    bool slot_free = false;
    for (uint32_t i = 0; i < s->opt.slots_max; i++) {
        const struct slot *slot = &s->slot[i];
        bool stays = slot_stays(s, i);
        held += stays ? slot->blob_bytes : 0;
        slot_free |= !stays;
    }
    if (s->pinned)
        return slot_free && blob_pool_could_hold(s->pinned, bytes, blob_stays, s);
    return slot_free && held + bytes <= s->opt.host_bytes_max;
}

/* A free slot and room for bytes, now: *blob is their place where the store keeps them. */
static bool find_room(struct store *s, uint64_t bytes, uint32_t *idx, void **blob)
{
    *blob = NULL;
    *idx = free_slot(s);
    if (*idx == UINT32_MAX)
        return false;
    if (!s->pinned)
        return s->used_bytes + bytes <= s->opt.host_bytes_max;
    *blob = blob_pool_take(s->pinned, bytes, *idx);
    return *blob != NULL;
}

/* Make room for bytes and one slot by evicting. FULL: pinned adapters hold it all; BUSY: job pool
 * is empty for now. */
static enum status make_room(struct store *s, uint64_t bytes, uint32_t *idx, void **blob,
                             struct errtext *err)
{
    if (!can_make_room(s, bytes))
        return err_set(
            err, STATUS_FULL,
            "adapter memory is held by running requests: %llu of %llu bytes, %u of %u slots",
            (unsigned long long)s->used_bytes, (unsigned long long)s->opt.host_bytes_max,
            s->stats.resident + s->loading, s->opt.slots_max);
    while (!find_room(s, bytes, idx, blob)) {
        uint32_t victim = pick_victim(s);
        CHECK(victim != UINT32_MAX);
        bool ready = s->slot[victim].state == SLOT_READY;
        if (!drop_slot(s, victim))
            return STATUS_BUSY;
        s->stats.evictions += ready;
    }
    return STATUS_OK;
}

static enum status start_load(struct store *s, struct adapter_entry *e, struct errtext *err)
{
    uint32_t idx;
    void *blob;
    if (s->tier && device_tier_check(s->tier, e->name, e->blob_bytes, err))
        return STATUS_TOO_LARGE;
    if (e->blob_bytes > s->opt.host_bytes_max)
        return err_set(
            err, STATUS_TOO_LARGE,
            "adapter '%s' needs %llu bytes, the adapter budget is %llu (adapters_host_bytes_max)",
            e->name, (unsigned long long)e->blob_bytes, (unsigned long long)s->opt.host_bytes_max);
    if (s->free_jobs < 2)
        return STATUS_BUSY;
    enum status st = make_room(s, e->blob_bytes, &idx, &blob, err);
    if (st)
        return st;
    struct loader_job *job = take_job(s);
    if (!job) {
        if (blob)
            blob_pool_give(s->pinned, blob);
        return STATUS_BUSY;
    }
    atomic_fetch_add_explicit(&e->refs, 1, memory_order_relaxed);
    s->slot[idx] = (struct slot){.state = SLOT_LOADING,
                                 .entry = e,
                                 .blob = blob,
                                 .blob_bytes = e->blob_bytes,
                                 .waiter = NO_WAITER};
    id_index_insert(&s->index, e->id, idx);
    s->used_bytes += e->blob_bytes;
    s->loading++;
    set_state(e, ADAPTER_REQUESTED);
    job->op = LOADER_LOAD;
    job->entry = e;
    job->slot = idx;
    job->blob = blob;
    job->blob_bytes = blob ? e->blob_bytes : 0;
    job->err = (struct errtext)ERRTEXT_INIT;
    loader_submit(s->loader, job);
    return STATUS_BUSY;
}

/* A READY slot on its way to where ops can read it. */
static enum status bring_to_device(struct store *s, uint32_t idx, uint64_t now_ms,
                                   struct errtext *err)
{
    struct slot *slot = &s->slot[idx];
    struct device_blob blob = {
        .pinned = slot->blob, .bytes = slot->blob_bytes, .name = slot->entry->name};
    if (!s->tier)
        return STATUS_OK;
    slot->last_used_ms = now_ms;
    enum status st = device_tier_want(s->tier, idx, &blob, err);
    if (!st)
        device_tier_pin(s->tier, idx);
    return st;
}

enum status store_acquire(struct store *s, struct adapter_entry *e, uint64_t now_ms,
                          uint32_t *slot_out, struct errtext *err)
{
    struct slot *slot = find(s, e->id);
    if (!slot)
        return start_load(s, e, err);
    if (slot->state == SLOT_LOADING || slot->waiter != NO_WAITER)
        return STATUS_BUSY;
    if (slot->state == SLOT_FAILED) {
        if (now_ms >= slot->retry_ms && drop_slot(s, (uint32_t)(slot - s->slot)))
            return start_load(s, e, err);
        return err_set(err, slot->status, "%s", slot->err.text);
    }
    enum status st = bring_to_device(s, (uint32_t)(slot - s->slot), now_ms, err);
    if (st)
        return st;
    slot->pins++;
    s->stats.pinned += slot->pins == 1;
    slot->last_used_ms = now_ms;
    atomic_store_explicit(&e->last_used_ms, now_ms, memory_order_relaxed);
    *slot_out = (uint32_t)(slot - s->slot);
    return STATUS_OK;
}

void store_release(struct store *s, uint32_t idx)
{
    struct slot *slot = &s->slot[idx];
    CHECK(slot->state == SLOT_READY && slot->pins > 0);
    slot->pins--;
    if (s->tier)
        device_tier_unpin(s->tier, idx);
    s->stats.pinned -= slot->pins == 0;
    if (slot->pins == 0 && slot->waiter != NO_WAITER)
        (void)drop_slot(s, idx); /* job pool empty: store_poll tries again */
}

bool store_is_resident(const struct store *s, const uint8_t id[32])
{
    const struct slot *slot = find(s, id);
    return slot && slot->state == SLOT_READY && slot->waiter == NO_WAITER;
}

uint32_t store_slot_rank_sum(const struct store *s, uint32_t slot)
{
    return s->slot[slot].rank_sum;
}

/* ---- loader's answers ---- */

static void load_failed(struct store *s, struct slot *slot, const struct loader_job *job,
                        uint64_t now_ms)
{
    s->used_bytes -= slot->blob_bytes;
    give_back(s, job->slot);
    slot->state = SLOT_FAILED;
    slot->blob_bytes = 0;
    slot->status = job->status;
    slot->err = job->err;
    slot->retry_ms = now_ms + RETRY_MS;
    s->stats.load_failures++;
    atomic_fetch_add_explicit(&slot->entry->fail_count, 1, memory_order_relaxed);
    set_state(slot->entry, ADAPTER_FAILED);
}

/* false: the job went back to the loader, with bytes that nobody may use. */
static bool load_done(struct store *s, struct loader_job *job, uint64_t now_ms)
{
    struct slot *slot = &s->slot[job->slot];
    s->loading--;
    uint32_t layout = LAYOUT_NONE;
    if (!job->status) {
        layout = layout_set_take(&s->layouts, job->layout, job->blob_bytes);
        if (layout == LAYOUT_NONE)
            job->status =
                err_set(&job->err, STATUS_FULL,
                        "adapter '%s': %u distinct rank layouts are resident, the maximum",
                        slot->entry->name, s->opt.layouts_max);
    }
    slot->last_used_ms = now_ms;
    if (job->status) {
        load_failed(s, slot, job, now_ms);
        if (!job->blob || s->pinned)
            return true;
        job->op = LOADER_FREE;
        job->waiter = NO_WAITER;
        atomic_fetch_add_explicit(&job->entry->refs, 1, memory_order_relaxed); /* FREE drops one */
        loader_submit(s->loader, job);
        return false;
    }
    slot->blob = job->blob;
    slot->state = SLOT_READY;
    slot->layout = layout;
    slot->rank_sum = rank_sum_of(s, job->layout);
    s->table_slot[job->slot] =
        (struct lora_slot){.blob = s->tier ? NULL : slot->blob, .layout = layout};
    s->stats.resident++;
    s->stats.loads++;
    s->stats.loads_verified += job->hashed;
    s->stats.load_ns_sum += job->load_ns;
    s->stats.load_cpu_ns_sum += job->load_cpu_ns;
    atomic_fetch_add_explicit(&slot->entry->load_count, 1, memory_order_relaxed);
    set_state(slot->entry, slot->waiter == NO_WAITER ? ADAPTER_HOST : ADAPTER_DRAINING);
    return true;
}

static void free_done(struct store *s, const struct loader_job *job)
{
    if (job->waiter == NO_WAITER)
        return;
    struct waiter w = s->waiter[job->waiter];
    s->waiter[job->waiter] = (struct waiter){0};
    w.done(w.arg);
}

/* Slots that an unload waits for and that nothing pins any more. */
static void drop_drained(struct store *s)
{
    for (uint32_t i = 0; i < s->opt.slots_max; i++) {
        const struct slot *slot = &s->slot[i];
        if (slot->state != SLOT_FREE && slot->waiter != NO_WAITER && slot->pins == 0 &&
            slot->state != SLOT_LOADING && !is_moving(s, i))
            (void)drop_slot(s, i);
    }
}

static bool has_waiter(const struct store *s)
{
    for (uint32_t i = 0; i < WAITERS_MAX; i++) {
        if (s->waiter[i].done)
            return true;
    }
    return false;
}

static void landed(void *arg, uint32_t idx, enum status st)
{
    struct store *s = arg;
    struct slot *slot = &s->slot[idx];
    s->table_slot[idx].blob = device_tier_at(s->tier, idx);
    if (slot->waiter == NO_WAITER)
        set_state(slot->entry, st ? ADAPTER_HOST : ADAPTER_DEVICE);
}

bool store_poll(struct store *s, uint64_t now_ms)
{
    bool changed = s->tier && device_tier_poll(s->tier, landed, s);
    struct loader_job *job;
    while ((job = loader_take(s->loader))) {
        changed = true;
        if (job->op == LOADER_LOAD && !load_done(s, job, now_ms))
            continue;
        if (job->op == LOADER_FREE)
            free_done(s, job);
        s->free_job[s->free_jobs++] = job;
    }
    if (changed && has_waiter(s))
        drop_drained(s);
    return changed;
}

enum status store_unload(struct store *s, const uint8_t id[32], void (*done)(void *arg), void *arg)
{
    struct slot *slot = find(s, id);
    if (!slot) {
        done(arg);
        return STATUS_OK;
    }
    if (slot->waiter != NO_WAITER)
        return STATUS_BUSY;
    for (uint32_t i = 0; i < WAITERS_MAX; i++) {
        if (s->waiter[i].done)
            continue;
        s->waiter[i] = (struct waiter){.done = done, .arg = arg};
        slot->waiter = i;
        set_state(slot->entry, ADAPTER_DRAINING);
        uint32_t idx = (uint32_t)(slot - s->slot);
        if (slot->pins == 0 && slot->state != SLOT_LOADING && !is_moving(s, idx))
            (void)drop_slot(s, idx);
        return STATUS_OK;
    }
    return STATUS_FULL;
}

void store_get_stats(const struct store *s, struct store_stats *out)
{
    *out = s->stats;
    out->host_bytes = s->used_bytes;
    out->host_bytes_max = s->opt.host_bytes_max;
    out->slots_max = s->opt.slots_max;
    out->loading = s->loading;
    if (!s->tier)
        return;
    struct device_tier_stats t;
    device_tier_get_stats(s->tier, &t);
    out->device_bytes = t.bytes;
    out->device_bytes_max = t.bytes_max;
    out->on_device = t.there;
    out->uploading = t.moving;
    out->uploads = t.uploads;
    out->device_evictions = t.evictions;
}
