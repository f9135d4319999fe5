/* Pins: an adapter's bytes stay where they are while rows of a running sequence use them. One
 * store reference per adapter and composition in use; the table counts them, which also gives the
 * number of distinct adapters of the batch. Nothing here waits: BUSY and FULL mean "ask again". */
#include "server/base/check.h"
#include "server/engine/steps.h"

#include <string.h>

static struct pin *pin_find(struct engine *e, const uint8_t id[32])
{
    for (uint32_t i = 0; i < e->pin_count; i++) {
        if (memcmp(e->pin[i].id, id, 32) == 0)
            return &e->pin[i];
    }
    return NULL;
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
        if (!p) {
            p = &e->pin[e->pin_count++];
            *p = (struct pin){.slot = slot[i]};
            memcpy(p->id, comp->part[i].adapter, 32);
        }
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
            *p = e->pin[--e->pin_count];
    }
}
