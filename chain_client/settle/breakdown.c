/* The table of sums is Reward's own kind (sums.h): the tag joins the adapter's place, from 1, and
 * the source; the id is the payee. Reward speaks of one adapter after the other, so that only the
 * last one seen is compared. */
#include "chain_client/settle/breakdown.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define SOURCES 8 /* more than enum reward_source has */

static const char *const source_name[] = {
    [REWARD_FROM_PROTOCOL] = "protocol", [REWARD_FROM_OPERATOR] = "operator",
    [REWARD_FROM_BASE] = "base",         [REWARD_FROM_AUTHOR] = "author",
    [REWARD_FROM_DATA] = "data",         [REWARD_FROM_OTHER] = "other",
    [REWARD_UNPAID] = "unpaid",
};
static_assert(ARRAY_COUNT(source_name) <= SOURCES, "a source needs its own tag");

enum status breakdown_init(struct breakdown *b, struct errtext *err)
{
    *b = (struct breakdown){.adapter_cap = 0};
    enum status st = sums_init(&b->sums);
    return st ? err_set(err, st, "no memory for the breakdown of an epoch") : STATUS_OK;
}

void breakdown_fini(struct breakdown *b)
{
    sums_fini(&b->sums);
    mem_free(b->adapter);
    *b = (struct breakdown){.adapter_cap = 0};
}

/* *place 0: of no adapter. */
static enum status find_adapter(struct breakdown *b, const uint8_t *id, uint32_t *place)
{
    *place = 0;
    if (!id)
        return STATUS_OK;
    if (!b->adapter_count || memcmp(b->adapter[b->adapter_count - 1], id, 32) != 0) {
        if (b->adapter_count == b->adapter_cap) {
            uint32_t more = b->adapter_cap ? 2 * b->adapter_cap : 64;
            void *bigger = mem_try_realloc(b->adapter, (size_t)more * 32);
            if (!bigger)
                return STATUS_NO_MEMORY;
            b->adapter = bigger;
            b->adapter_cap = more;
        }
        memcpy(b->adapter[b->adapter_count++], id, 32);
    }
    *place = b->adapter_count;
    return STATUS_OK;
}

enum status breakdown_add(void *arg, const struct reward_share *share)
{
    struct breakdown *b = arg;
    struct u256 wide = u256_from(share->amount);
    uint32_t place;
    enum status st = find_adapter(b, share->adapter_id, &place);
    if (st)
        return st;
    struct u256 *sum =
        sums_at(&b->sums, place * SOURCES + (uint32_t)share->source, share->payee, 20);
    if (!sum)
        return STATUS_NO_MEMORY;
    CHECK(u256_add(sum, &wide));
    return STATUS_OK;
}

static int order_entry(const void *key, const void *item)
{
    return memcmp(key, ((const struct snapshot_adapter *)item)->id, 32);
}

/* NULL: none. */
static const uint8_t *datanet_of(const struct snapshot *snap, const uint8_t *adapter)
{
    static const uint8_t none[32];
    const struct snapshot_adapter *e =
        bsearch(adapter, snap->adapter, snap->adapter_count, sizeof(*e), order_entry);
    return e && memcmp(e->at_t.datanet_id, none, 32) != 0 ? e->at_t.datanet_id : NULL;
}

enum status breakdown_drop(struct db *db, uint64_t epoch, struct errtext *err)
{
    return db_run(db, err, "DELETE FROM earned WHERE epoch = ?", "u", epoch);
}

enum status breakdown_store(const struct breakdown *b, const struct snapshot *snap, struct db *db,
                            uint64_t epoch, struct errtext *err)
{
    struct sums_entry *all = sums_sorted(&b->sums);
    enum status st = all ? breakdown_drop(db, epoch, err)
                         : err_set(err, STATUS_NO_MEMORY, "no memory for an epoch's breakdown");
    for (size_t i = 0; i < b->sums.used && !st; i++) {
        const struct sums_entry *e = &all[i];
        uint32_t place = e->key.tag / SOURCES;
        const uint8_t *adapter = place ? b->adapter[place - 1] : NULL;
        const uint8_t *datanet = adapter ? datanet_of(snap, adapter) : NULL;
        u128 amount = (u128)e->sum.w[1] << 64 | e->sum.w[0];
        st = db_run(db, err, "INSERT INTO earned VALUES (?, ?, ?, ?, ?, ?)", "bbtubn", e->key.id,
                    (size_t)20, adapter ? adapter : (const uint8_t *)"", (size_t)(adapter ? 32 : 0),
                    source_name[e->key.tag % SOURCES], epoch, datanet, (size_t)32, amount);
    }
    mem_free(all);
    return st;
}
