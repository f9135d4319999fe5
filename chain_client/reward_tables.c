/* The tables' order, checked once, is what every search here rests on. What is named at t0 (SPEC 4)
 * is read off a history from its end: entries after t0 are passed over, and the first one at or
 * before t0 - 600 was in force there, so nothing earlier is named. */
#include "chain_client/reward_tables.h"
#include "chain_client/eth/addr.h"

#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 64 /* the Registry allows 4; far below a cycle's endless growth */

static enum status check_split(const struct reward_split *s, const char *what, struct errtext *err)
{
    uint32_t bps = 0;
    if (!s->count || s->count > REWARD_ENTRIES_MAX)
        return err_set(err, STATUS_INVALID, "%s: %zu split entries, expected 1 to %d", what,
                       s->count, REWARD_ENTRIES_MAX);
    for (size_t i = 0; i < s->count; i++) {
        const struct reward_entry *e = &s->entry[i];
        bps += e->bps;
        if (!e->bps)
            return err_set(err, STATUS_INVALID, "%s: split entry %zu has 0 bps", what, i);
        if (i && (e[-1].role > e->role ||
                  (e[-1].role == e->role && memcmp(e[-1].payee, e->payee, 20) >= 0)))
            return err_set(err, STATUS_INVALID, "%s: split entry %zu is not above the one before",
                           what, i);
    }
    if (bps != REWARD_BPS)
        return err_set(err, STATUS_INVALID, "%s: bps sum to %u, expected %d", what, bps,
                       REWARD_BPS);
    return STATUS_OK;
}

static enum status check_history(const struct reward_history *h, struct errtext *err)
{
    for (size_t i = 1; i < h->count; i++)
        if (h->entry[i - 1].active_at >= h->entry[i].active_at)
            return err_set(err, STATUS_INVALID, "a history is not strictly ascending");
    return STATUS_OK;
}

static enum status check_adapter(const struct reward_adapter *a, struct errtext *err)
{
    uint32_t bps = 0;
    enum status st = check_split(&a->split, "adapter", err);
    if (!st)
        st = check_history(&a->history, err);
    if (!st && a->parent_count > REWARD_PARENTS_MAX)
        st = err_set(err, STATUS_INVALID, "adapter: %zu parents, expected at most %d",
                     a->parent_count, REWARD_PARENTS_MAX);
    for (size_t i = 0; i < a->parent_count && !st; i++) {
        bps += a->parent[i].bps;
        if (i && memcmp(a->parent[i - 1].adapter_id, a->parent[i].adapter_id, 32) >= 0)
            st = err_set(err, STATUS_INVALID, "an adapter's parents are not strictly ascending");
    }
    if (!st && bps > REWARD_BPS)
        st = err_set(err, STATUS_INVALID, "parents: bps sum to %u, above %d", bps, REWARD_BPS);
    return st;
}

static enum status check_lane(const struct reward_lane *l, struct errtext *err)
{
    enum status st = STATUS_OK;
    for (size_t i = 0; i < l->tariff_count && !st; i++) {
        st = check_history(&l->tariff[i].history, err);
        if (i && memcmp(l->tariff[i - 1].model_id, l->tariff[i].model_id, 32) >= 0)
            st = err_set(err, STATUS_INVALID, "a lane's tariffs are not strictly ascending");
    }
    return st;
}

enum status reward_check_tables(const struct reward_tables *t, struct errtext *err)
{
    const struct reward_policy *p = t->policy;
    enum status st = STATUS_OK;
    if (p->base_bps + p->adapters_bps + p->operator_bps + p->protocol_bps != REWARD_BPS)
        st = err_set(err, STATUS_INVALID, "policy: bps do not sum to %d", REWARD_BPS);
    if (addr_is_zero(p->treasury))
        st = err_set(err, STATUS_INVALID, "policy: treasury is the zero address");
    for (size_t i = 0; i < t->lane_count && !st; i++) {
        st = check_lane(&t->lane[i], err);
        if (i && t->lane[i - 1].lane >= t->lane[i].lane)
            st = err_set(err, STATUS_INVALID, "lanes are not strictly ascending");
    }
    for (size_t i = 0; i < t->base_count && !st; i++) {
        st = check_split(&t->base[i].split, "base", err);
        if (i && memcmp(t->base[i - 1].model_id, t->base[i].model_id, 32) >= 0)
            st = err_set(err, STATUS_INVALID, "bases are not strictly ascending");
    }
    for (size_t i = 0; i < t->adapter_count && !st; i++) {
        st = check_adapter(&t->adapter[i], err);
        if (i && memcmp(t->adapter[i - 1].adapter_id, t->adapter[i].adapter_id, 32) >= 0)
            st = err_set(err, STATUS_INVALID, "adapters are not strictly ascending");
    }
    return st;
}

/* Each pass raises depths above those of parents, until one changes nothing. */
enum status reward_depths(const struct reward_tables *t, uint8_t *depth, struct errtext *err)
{
    bool moved = true;
    memset(depth, 0, t->adapter_count);
    while (moved) {
        moved = false;
        for (size_t i = 0; i < t->adapter_count; i++) {
            for (size_t k = 0; k < t->adapter[i].parent_count; k++) {
                const struct reward_adapter *p =
                    reward_find_adapter(t, t->adapter[i].parent[k].adapter_id);
                uint8_t least = p ? (uint8_t)(depth[p - t->adapter] + 1) : 1;
                if (least > DEPTH_MAX)
                    return err_set(err, STATUS_INVALID, "an adapter is its own ancestor");
                moved |= depth[i] < least;
                depth[i] = depth[i] < least ? least : depth[i];
            }
        }
    }
    return STATUS_OK;
}

/* ---- searches ---- */

static int lane_order(const void *key, const void *item)
{
    uint32_t lane = *(const uint32_t *)key, found = ((const struct reward_lane *)item)->lane;
    return lane < found ? -1 : lane > found;
}

/* The key of bases, adapters, tariffs and methods stands first in each. */
static int id_order(const void *key, const void *item)
{
    return memcmp(key, item, 32);
}

/* bsearch does not like a NULL table even when it is empty. */
static const void *lookup(const void *key, const void *table, size_t count, size_t item_bytes,
                          int (*order)(const void *, const void *))
{
    return count ? bsearch(key, table, count, item_bytes, order) : NULL;
}

const struct reward_lane *reward_find_lane(const struct reward_tables *t, uint32_t lane)
{
    return lookup(&lane, t->lane, t->lane_count, sizeof(*t->lane), lane_order);
}

const struct reward_base *reward_find_base(const struct reward_tables *t, const uint8_t *model_id)
{
    return lookup(model_id, t->base, t->base_count, sizeof(*t->base), id_order);
}

const struct reward_adapter *reward_find_adapter(const struct reward_tables *t,
                                                 const uint8_t *adapter_id)
{
    return lookup(adapter_id, t->adapter, t->adapter_count, sizeof(*t->adapter), id_order);
}

const struct reward_tariff *reward_find_tariff(const struct reward_lane *l, const uint8_t *model_id)
{
    return lookup(model_id, l->tariff, l->tariff_count, sizeof(*l->tariff), id_order);
}

const struct reward_method *reward_find_method(const struct reward_tables *t, const uint8_t *hash)
{
    return lookup(hash, t->method, t->method_count, sizeof(*t->method), id_order);
}

/* ---- what is named ---- */

bool reward_has_datanet(const struct reward_adapter *a)
{
    static const uint8_t none[32];
    return memcmp(a->datanet_id, none, sizeof(none)) != 0;
}

bool reward_is_active(const struct reward_history *h, uint64_t t0)
{
    return h->count && h->entry[0].active_at <= t0;
}

static uint64_t named_from(uint64_t t0)
{
    return t0 > REWARD_NAMED_S ? t0 - REWARD_NAMED_S : 0;
}

/* The next entry below place *at that is named at t0; NULL when there is no other. */
static const struct reward_terms *named_below(const struct reward_history *h, uint64_t t0,
                                              size_t *at)
{
    while (*at > 0) {
        const struct reward_terms *e = &h->entry[--*at];
        if (e->active_at > t0)
            continue;
        if (e->active_at <= named_from(t0))
            *at = 0;
        return e;
    }
    return NULL;
}

bool reward_names_price(const struct reward_history *h, uint64_t t0, u128 in, u128 out)
{
    const struct reward_terms *e;
    size_t at = h->count;
    while ((e = named_below(h, t0, &at)))
        if (e->price_in == in && e->price_out == out)
            return true;
    return !in && !out && !reward_is_active(h, named_from(t0));
}

static const struct reward_owners *find_owners(const struct reward_tables *t, const uint8_t *id,
                                               uint64_t version)
{
    size_t low = 0, high = t->owners_count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct reward_owners *o = &t->owners[mid];
        int order = memcmp(o->datanet_id, id, 32);
        if (!order && o->version == version)
            return o;
        if (order < 0 || (!order && o->version < version))
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

static int owner_order(const void *key, const void *item)
{
    return memcmp(key, ((const struct datanet_owner *)item)->owner, 20);
}

bool reward_names_owner(const struct reward_tables *t, const struct reward_adapter *a, uint64_t t0,
                        const uint8_t owner[20])
{
    const struct reward_terms *e;
    size_t at = a->history.count;
    while ((e = named_below(&a->history, t0, &at))) {
        const struct reward_owners *list =
            e->datanet_version ? find_owners(t, a->datanet_id, e->datanet_version) : NULL;
        if (list && lookup(owner, list->owner, list->count, sizeof(*list->owner), owner_order))
            return true;
    }
    return false;
}
