/* A place per slot. What is asked for and is not there gets a run of the pool, made free by
 * evicting the unpinned place used longest ago, and a lane that copies it beside the steps; the
 * lane's event says when ops may read it. A place that moves belongs to its lane: it is neither
 * evicted nor dropped until the event is in. */
#include "server/adapter/device_tier.h"
#include "server/adapter/blob_pool.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"

#define NO_SLOT UINT32_MAX

enum place_state { ABSENT, MOVING, THERE };

struct tier_place { /* of one slot */
    enum place_state state;
    void *at;
    uint64_t used_tick;
    uint32_t pins;
};

struct device_tier {
    struct backend *backend;
    void *base;
    uint64_t bytes_max, tick;
    struct blob_pool *pool;
    struct tier_place *place; /* [slots_max] */
    uint32_t slots_max;
    uint32_t lane[BACKEND_UPLOAD_LANES]; /* the slot it moves, or NO_SLOT */
    void (*evicted)(void *arg, uint32_t slot);
    void *evicted_arg;
    struct device_tier_stats stats;
};

enum status device_tier_create(struct device_tier **out, struct backend *b, uint64_t bytes_max,
                               uint32_t slots_max, struct errtext *err)
{
    uint64_t total, left;
    *out = NULL;
    b->ops->mem_room(b, &total, &left);
    if (bytes_max < BLOB_POOL_DEVICE_GRANULE)
        return err_param(err, STATUS_TOO_LARGE, "adapters_device_bytes_max",
                         "adapter pool: %llu bytes hold no adapter, it is shared out in pieces of "
                         "%d MiB; raise adapters_device_bytes_max or device_bytes",
                         (unsigned long long)bytes_max, BLOB_POOL_DEVICE_GRANULE >> 20);
    void *base = b->ops->mem_alloc(b, bytes_max);
    if (!base)
        return err_param(err, STATUS_TOO_LARGE, "adapters_device_bytes_max",
                         "adapter pool: %.1f MiB do not fit, %.1f of %.1f MiB of device memory are "
                         "left; lower adapters_device_bytes_max or raise device_bytes",
                         (double)bytes_max / 1048576.0, (double)left / 1048576.0,
                         (double)total / 1048576.0);
    struct device_tier *t = mem_alloc(sizeof(*t));
    t->backend = b;
    t->base = base;
    t->bytes_max = bytes_max;
    t->slots_max = slots_max;
    t->place = mem_array(slots_max, sizeof(*t->place));
    t->pool = blob_pool_create(base, bytes_max, BLOB_POOL_DEVICE_GRANULE, slots_max);
    for (uint32_t i = 0; i < BACKEND_UPLOAD_LANES; i++)
        t->lane[i] = NO_SLOT;
    *out = t;
    return STATUS_OK;
}

void device_tier_destroy(struct device_tier *t)
{
    if (!t)
        return;
    for (uint32_t i = 0; i < BACKEND_UPLOAD_LANES; i++) {
        bool done = t->lane[i] == NO_SLOT;
        while (!done && t->backend->ops->adapters->upload_poll(t->backend, i, &done) == STATUS_OK)
            if (!done)
                clock_sleep_ms(1);
    }
    for (uint32_t i = 0; i < t->slots_max; i++)
        CHECK(t->place[i].pins == 0);
    t->backend->ops->mem_free(t->backend, t->base, t->bytes_max);
    blob_pool_destroy(t->pool);
    mem_free(t->place);
    mem_free(t);
}

void device_tier_on_evict(struct device_tier *t, void (*evicted)(void *arg, uint32_t slot),
                          void *arg)
{
    t->evicted = evicted;
    t->evicted_arg = arg;
}

enum status device_tier_check(const struct device_tier *t, const char *name, uint64_t bytes,
                              struct errtext *err)
{
    if (blob_pool_round(t->pool, bytes) <= blob_pool_bytes(t->pool))
        return STATUS_OK;
    return err_set(err, STATUS_TOO_LARGE,
                   "adapter '%s' needs %llu bytes on the device, the adapter pool has %llu "
                   "(adapters_device_bytes_max)",
                   name, (unsigned long long)bytes, (unsigned long long)blob_pool_bytes(t->pool));
}

static bool stays(const void *arg, uint32_t slot)
{
    const struct device_tier *t = arg;
    return t->place[slot].state == MOVING || t->place[slot].pins > 0;
}

static uint32_t pick_victim(const struct device_tier *t)
{
    uint32_t victim = NO_SLOT;
    for (uint32_t i = 0; i < t->slots_max; i++) {
        const struct tier_place *p = &t->place[i];
        if (p->state == THERE && p->pins == 0 &&
            (victim == NO_SLOT || p->used_tick < t->place[victim].used_tick))
            victim = i;
    }
    return victim;
}

/* The caller has seen that enough can go. */
static void *take_place(struct device_tier *t, uint32_t slot, uint64_t bytes)
{
    void *at;
    while (!(at = blob_pool_take(t->pool, bytes, slot))) {
        uint32_t victim = pick_victim(t);
        CHECK(victim != NO_SLOT);
        device_tier_drop(t, victim);
        t->stats.evictions++;
        if (t->evicted)
            t->evicted(t->evicted_arg, victim);
    }
    return at;
}

static uint32_t free_lane(const struct device_tier *t)
{
    for (uint32_t i = 0; i < BACKEND_UPLOAD_LANES; i++) {
        if (t->lane[i] == NO_SLOT)
            return i;
    }
    return NO_SLOT;
}

enum status device_tier_want(struct device_tier *t, uint32_t slot, const struct device_blob *blob,
                             struct errtext *err)
{
    struct tier_place *p = &t->place[slot];
    if (p->state != ABSENT)
        return p->state == THERE ? STATUS_OK : STATUS_BUSY;
    enum status st = device_tier_check(t, blob->name, blob->bytes, err);
    if (st)
        return st;
    uint32_t lane = free_lane(t);
    if (lane == NO_SLOT)
        return STATUS_BUSY;
    if (!blob_pool_could_hold(t->pool, blob->bytes, stays, t))
        return err_set(err, STATUS_FULL,
                       "the adapter pool is held by running requests: %llu of %llu bytes",
                       (unsigned long long)blob_pool_used(t->pool),
                       (unsigned long long)blob_pool_bytes(t->pool));
    p->at = take_place(t, slot, blob->bytes);
    st = t->backend->ops->adapters->upload_begin(t->backend, lane, p->at, blob->pinned,
                                                 (size_t)blob->bytes);
    if (st) {
        blob_pool_give(t->pool, p->at);
        p->at = NULL;
        return err_set(err, st, "adapter '%s': the device refused the copy", blob->name);
    }
    p->state = MOVING;
    p->used_tick = ++t->tick;
    t->lane[lane] = slot;
    t->stats.moving++;
    return STATUS_BUSY;
}

const void *device_tier_at(const struct device_tier *t, uint32_t slot)
{
    return t->place[slot].state == THERE ? t->place[slot].at : NULL;
}

void device_tier_pin(struct device_tier *t, uint32_t slot)
{
    CHECK(t->place[slot].state == THERE);
    t->place[slot].pins++;
    t->place[slot].used_tick = ++t->tick;
}

void device_tier_unpin(struct device_tier *t, uint32_t slot)
{
    CHECK(t->place[slot].pins > 0);
    t->place[slot].pins--;
}

bool device_tier_is_moving(const struct device_tier *t, uint32_t slot)
{
    return t->place[slot].state == MOVING;
}

/* The next copy into this place waits for the ops given before it, so one that may still be reading
 * is not disturbed. */
void device_tier_drop(struct device_tier *t, uint32_t slot)
{
    struct tier_place *p = &t->place[slot];
    CHECK(p->pins == 0 && p->state != MOVING);
    if (p->state == ABSENT)
        return;
    blob_pool_give(t->pool, p->at);
    *p = (struct tier_place){.state = ABSENT};
    t->stats.there--;
}

static void land(struct device_tier *t, uint32_t lane, enum status st)
{
    struct tier_place *p = &t->place[t->lane[lane]];
    t->lane[lane] = NO_SLOT;
    t->stats.moving--;
    if (st) {
        blob_pool_give(t->pool, p->at);
        *p = (struct tier_place){.state = ABSENT};
        return;
    }
    p->state = THERE;
    t->stats.there++;
    t->stats.uploads++;
}

bool device_tier_poll(struct device_tier *t,
                      void (*landed)(void *arg, uint32_t slot, enum status st), void *arg)
{
    bool any = false;
    for (uint32_t i = 0; i < BACKEND_UPLOAD_LANES; i++) {
        uint32_t slot = t->lane[i];
        bool done = false;
        if (slot == NO_SLOT)
            continue;
        enum status st = t->backend->ops->adapters->upload_poll(t->backend, i, &done);
        if (!st && !done)
            continue;
        land(t, i, st);
        landed(arg, slot, st);
        any = true;
    }
    return any;
}

void device_tier_get_stats(const struct device_tier *t, struct device_tier_stats *out)
{
    *out = t->stats;
    out->bytes = blob_pool_used(t->pool);
    out->bytes_max = blob_pool_bytes(t->pool);
}
