/* The store's double of engine_world.h: slots whose loads take a number of polls, fail or hang as
 * the test says. */
#include "kernels/cuda/lora_pack.h"
#include "tests/unit/engine_world.h"

#include <stdatomic.h>

void catalog_release(struct adapter_entry *e)
{
    if (atomic_fetch_sub(&e->refs, 1) == 1)
        mem_free(e);
}

struct store_place { /* one slot */
    int32_t adapter; /* -1: free */
    uint32_t pins, polls_left;
    uint64_t used;
    bool loading, draining;
    void (*done)(void *arg);
    void *done_arg;
};

struct store {
    struct world *world;
    struct store_place place[64];
    struct lora_slot slot[64];
    struct lora_layout layout[WORLD_ADAPTERS_MAX];
    struct lora_table table;
    uint64_t tick;
    bool failed[WORLD_ADAPTERS_MAX]; /* its last load failed, not yet told */
    bool stuck;
    uint64_t loads, evictions, failures;
};

struct store *world_store_open(struct world *w)
{
    struct store *s = mem_alloc(sizeof(*s));
    CHECK(w->opt.store_slots <= ARRAY_COUNT(s->place));
    s->world = w;
    for (uint32_t i = 0; i < w->opt.store_slots; i++)
        s->place[i].adapter = -1;
    for (uint32_t i = 0; i < w->opt.adapter_count; i++) {
        const struct world_adapter *a = &w->adapter[i];
        s->layout[i] = a->device_layout ? (struct lora_layout){a->device_layout, a->device_bytes}
                                        : (struct lora_layout){a->layout, a->blob_bytes};
    }
    s->table = (struct lora_table){.slot = s->slot,
                                   .layout = s->layout,
                                   .n_slot = w->opt.store_slots,
                                   .n_layout = w->opt.adapter_count,
                                   .n_layer = world_dims().n_layer,
                                   .dtype = w->model.dtype};
    return s;
}

const struct lora_table *store_table(const struct store *s)
{
    return &s->table;
}

static int32_t adapter_idx(const struct store *s, const uint8_t id[32])
{
    for (uint32_t i = 0; i < s->world->opt.adapter_count; i++) {
        if (memcmp(s->world->adapter[i].entry->id, id, 32) == 0)
            return (int32_t)i;
    }
    return -1;
}

static struct store_place *place_of(struct store *s, int32_t adapter)
{
    for (uint32_t i = 0; i < s->table.n_slot; i++) {
        if (s->place[i].adapter == adapter)
            return &s->place[i];
    }
    return NULL;
}

static struct store_place *place_to_fill(struct store *s)
{
    struct store_place *best = NULL;
    for (uint32_t i = 0; i < s->table.n_slot; i++) {
        struct store_place *p = &s->place[i];
        if (p->adapter == -1)
            return p;
        if (p->pins == 0 && !p->loading && !p->draining && (!best || p->used < best->used))
            best = p;
    }
    return best;
}

/* What the device still has of an adapter that goes is not to be used. */
static void spoil(struct store *s, struct store_place *p)
{
    struct backend *b = s->world->backend;
    struct world_adapter *a = p->adapter >= 0 ? &s->world->adapter[p->adapter] : NULL;
    if (!a || !a->device_blob)
        return;
    b->ops->mem_free(b, a->device_blob, a->device_bytes);
    a->device_blob = NULL;
}

static void fetch(struct store *s, struct world_adapter *a)
{
    struct backend *b = s->world->backend;
    if (!a->device_layout)
        return;
    void *packed = mem_alloc(a->device_bytes);
    struct lora_dims dims = world_dims();
    b->ops->adapters->pack(packed, a->device_layout, a->blob, a->layout, &dims);
    a->device_blob = b->ops->mem_alloc(b, a->device_bytes);
    CHECK(a->device_blob);
    CHECK(b->ops->mem_write(b, a->device_blob, packed, a->device_bytes) == STATUS_OK);
    mem_free(packed);
}

static void clear_place(struct store *s, struct store_place *p)
{
    spoil(s, p);
    s->slot[p - s->place].blob = NULL;
    *p = (struct store_place){.adapter = -1};
}

enum status store_acquire(struct store *s, struct adapter_entry *e, uint64_t now_ms, uint32_t *slot,
                          struct errtext *err)
{
    int32_t a = 0;
    while (s->world->adapter[a].entry != e)
        CHECK((uint32_t)++a < s->world->opt.adapter_count);
    struct store_place *p = place_of(s, a);
    if (p && p->draining)
        return STATUS_BUSY;
    if (p && !p->loading) {
        p->pins++;
        p->used = ++s->tick;
        *slot = (uint32_t)(p - s->place);
        return STATUS_OK;
    }
    if (p)
        return STATUS_BUSY;
    if (s->failed[a]) {
        s->failed[a] = false;
        return err_set(err, STATUS_CORRUPT, "adapter %s: the load failed by script", e->name);
    }
    p = place_to_fill(s);
    if (!p)
        return STATUS_FULL;
    s->evictions += p->adapter >= 0;
    clear_place(s, p);
    *p = (struct store_place){
        .adapter = a, .loading = true, .polls_left = s->world->opt.load_polls, .used = ++s->tick};
    return STATUS_BUSY;
}

void store_release(struct store *s, uint32_t slot)
{
    CHECK(slot < s->table.n_slot);
    CHECK(s->place[slot].pins > 0);
    s->place[slot].pins--;
}

static bool poll_place(struct store *s, struct store_place *p)
{
    if (p->draining && p->pins == 0) {
        void (*done)(void *) = p->done;
        void *arg = p->done_arg;
        clear_place(s, p);
        done(arg);
        return true;
    }
    if (!p->loading || s->stuck || p->polls_left-- > 0)
        return false;
    if (s->world->adapter[p->adapter].fails) {
        s->failed[p->adapter] = true;
        s->failures++;
        clear_place(s, p);
        return true;
    }
    struct world_adapter *a = &s->world->adapter[p->adapter];
    fetch(s, a);
    p->loading = false;
    s->loads++;
    s->slot[p - s->place] = (struct lora_slot){.blob = a->device_blob ? a->device_blob : a->blob,
                                               .layout = (uint32_t)p->adapter};
    return true;
}

bool store_poll(struct store *s, uint64_t now_ms)
{
    bool any = false;
    for (uint32_t i = 0; i < s->table.n_slot; i++)
        any |= poll_place(s, &s->place[i]);
    return any;
}

enum status store_unload(struct store *s, const uint8_t id[32], void (*done)(void *arg), void *arg)
{
    int32_t a = adapter_idx(s, id);
    struct store_place *p = a >= 0 ? place_of(s, a) : NULL;
    if (p && p->draining)
        return STATUS_BUSY;
    if (!p) {
        done(arg);
        return STATUS_OK;
    }
    p->draining = true;
    p->loading = false;
    p->done = done;
    p->done_arg = arg;
    return STATUS_OK;
}

void store_get_stats(const struct store *s, struct store_stats *out)
{
    *out = (struct store_stats){.slots_max = s->table.n_slot,
                                .loads = s->loads,
                                .evictions = s->evictions,
                                .load_failures = s->failures};
}

uint32_t store_slot_rank_sum(const struct store *s, uint32_t slot)
{
    return s->world->adapter[s->place[slot].adapter].rank_sum;
}

void world_store_stick(struct world *w, bool stuck)
{
    w->store->stuck = stuck;
}

uint32_t world_store_pins(const struct world *w)
{
    uint32_t pins = 0;
    for (uint32_t i = 0; i < w->store->table.n_slot; i++)
        pins += w->store->place[i].pins;
    return pins;
}

void world_store_evict_all(struct world *w)
{
    for (uint32_t i = 0; i < w->store->table.n_slot; i++) {
        if (w->store->place[i].pins == 0 && !w->store->place[i].draining)
            clear_place(w->store, &w->store->place[i]);
    }
}
