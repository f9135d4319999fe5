/* Pins: an adapter's bytes stay where they are while rows of a running sequence use them. One
 * store reference per adapter and composition in use; the table counts them, which also gives the
 * number of distinct adapters of the batch. Nothing here waits: BUSY and FULL mean "ask again". */
#include "server/base/check.h"
#include "server/engine/steps.h"

#include <string.h>

/* An id is a digest: its first bytes are uniform already. */
static uint32_t *bucket_of(struct engine *e, const uint8_t id[32])
{
    uint32_t h;
    memcpy(&h, id, sizeof(h));
    return &e->pin_bucket[h & (e->pin_buckets - 1)];
}

static struct pin *pin_find(struct engine *e, const uint8_t id[32])
{
    uint32_t i = *bucket_of(e, id);
    while (i != PIN_NONE && memcmp(e->pin[i].id, id, 32) != 0)
        i = e->pin[i].next;
    return i == PIN_NONE ? NULL : &e->pin[i];
}

static struct pin *pin_add(struct engine *e, const uint8_t id[32], uint32_t slot)
{
    uint32_t *bucket = bucket_of(e, id);
    struct pin *p = &e->pin[e->pin_count];
    *p = (struct pin){.slot = slot, .next = *bucket};
    memcpy(p->id, id, 32);
    *bucket = e->pin_count++;
    return p;
}

/* The link that leads to this pin. */
static uint32_t *link_to(struct engine *e, const struct pin *p)
{
    uint32_t *at = bucket_of(e, p->id), idx = (uint32_t)(p - e->pin);
    while (*at != idx) {
        CHECK(*at != PIN_NONE);
        at = &e->pin[*at].next;
    }
    return at;
}

/* The table has no holes: the last one takes the place. */
static void pin_remove(struct engine *e, struct pin *p)
{
    struct pin *last = &e->pin[e->pin_count - 1];
    *link_to(e, p) = p->next;
    if (p != last) {
        *link_to(e, last) = (uint32_t)(p - e->pin);
        *p = *last;
    }
    e->pin_count--;
}

static bool batch_has_room(struct engine *e, const struct composition *comp)
{
    uint32_t fresh = 0;
    for (uint32_t i = 0; i < comp->n; i++)
        fresh += pin_find(e, comp->part[i].adapter) == NULL;
    return e->pin_count + fresh <= e->opt.adapters_per_batch_max;
}

static void release_taken(struct engine *e, const uint32_t *slot, uint32_t taken_mask)
{
    for (uint32_t i = 0; i < LORA_PARTS_MAX; i++) {
        if (taken_mask >> i & 1)
            store_release(e->store, slot[i]);
    }
}

/* A failed load beats a full budget beats a load under way. */
static int gravity(enum status st)
{
    switch (st) {
    case STATUS_OK:
        return 0;
    case STATUS_BUSY:
        return 1;
    case STATUS_FULL:
        return 2;
    default:
        return 3;
    }
}

static enum status check_ranks(struct engine *e, const struct composition *comp,
                               const uint32_t *slot, struct errtext *err)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < comp->n; i++)
        sum += store_slot_rank_sum(e->store, slot[i]);
    if (sum <= e->opt.rank_sum_max)
        return STATUS_OK;
    return err_param(err, STATUS_INVALID, "model",
                     "the ranks of the adapters of one layer's inputs sum to %llu, this server "
                     "takes at most %u (rank_sum_max)",
                     (unsigned long long)sum, e->opt.rank_sum_max);
}

enum status pins_take(struct engine *e, const struct composition *comp,
                      struct adapter_entry *const *entry, uint32_t *slot, struct errtext *err)
{
    enum status worst = STATUS_OK;
    uint32_t taken = 0;
    if (!batch_has_room(e, comp))
        return STATUS_FULL;
    /* All parts are asked for even when one is cold, so that they load side by side. */
    for (uint32_t i = 0; i < comp->n; i++) {
        struct errtext why = ERRTEXT_INIT;
        enum status st = store_acquire(e->store, entry[i], e->now_ms, &slot[i], &why);
        if (st == STATUS_OK)
            taken |= 1u << i;
        if (gravity(st) <= gravity(worst))
            continue;
        worst = st;
        if (gravity(st) == 3)
            *err = why;
    }
    if (worst == STATUS_OK)
        worst = check_ranks(e, comp, slot, err);
    if (worst != STATUS_OK) {
        release_taken(e, slot, taken);
        return worst;
    }
    for (uint32_t i = 0; i < comp->n; i++) {
        struct pin *p = pin_find(e, comp->part[i].adapter);
        if (!p)
            p = pin_add(e, comp->part[i].adapter, slot[i]);
        CHECK(p->slot == slot[i]);
        p->users++;
    }
    return STATUS_OK;
}

void pins_drop(struct engine *e, const struct composition *comp, const uint32_t *slot)
{
    for (uint32_t i = 0; i < comp->n; i++) {
        struct pin *p = pin_find(e, comp->part[i].adapter);
        CHECK(p);
        CHECK(p->users > 0);
        store_release(e->store, slot[i]);
        if (--p->users == 0)
            pin_remove(e, p);
    }
}
