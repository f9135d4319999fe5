/* What the chain says about an epoch, as Reward(e) takes it (SPEC 4 and 5): policy, lanes, bases,
 * adapters, datanet owners and scoring methods. Plain tables, each strictly ascending by its key;
 * whatever is not in one earns for TREASURY, charges nothing and names nobody. All pointers are the
 * caller's. Pure. Thread: any. */
#ifndef RS_CHAIN_REWARD_TABLES_H
#define RS_CHAIN_REWARD_TABLES_H

#include "chain_client/datanet.h"
#include "server/base/errtext.h"
#include "server/base/hex.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REWARD_BPS         10000
#define REWARD_ENTRIES_MAX 32
#define REWARD_PARENTS_MAX 4
#define REWARD_NAMED_S     600 /* entries active up to this long before t0 are named at t0 */

enum reward_role { REWARD_ROLE_AUTHOR = 1, REWARD_ROLE_DATA = 2, REWARD_ROLE_OTHER = 3 };

struct reward_entry {
    uint8_t payee[20];
    uint8_t role; /* enum reward_role */
    uint16_t bps;
};

/* As the Registry keeps it: strictly ascending by (role, payee), bps sum to 10 000. */
struct reward_split {
    const struct reward_entry *entry;
    size_t count;
};

/* An adapter that another one is made from; strictly ascending by id, bps sum to at most 5 000. */
struct reward_parent {
    uint8_t adapter_id[32];
    uint16_t bps;
};

struct reward_policy {
    uint16_t base_bps, adapters_bps, operator_bps, protocol_bps; /* sum 10 000 */
    uint8_t treasury[20];
};

/* An entry of an adapter's terms, or of a lane's tariff of a base, from active_at to the next. */
struct reward_terms {
    uint64_t active_at;
    uint64_t datanet_version; /* 0: none; always 0 in a tariff */
    u128 price_in, price_out;
};
/* Strictly ascending by active_at: every entry that is named at the t0 of some record which asks
 * for it, and no matter which others. */
struct reward_history {
    const struct reward_terms *entry;
    size_t count;
};

struct reward_tariff {
    uint8_t model_id[32];
    struct reward_history history;
};
struct reward_lane {
    uint32_t lane;
    uint8_t account[20]; /* zero: TREASURY earns */
    const struct reward_tariff *tariff;
    size_t tariff_count;
};
struct reward_base {
    uint8_t model_id[32];
    struct reward_split split;
};
struct reward_adapter {
    uint8_t adapter_id[32], datanet_id[32]; /* datanet 0: none */
    struct reward_split split;
    const struct reward_parent *parent;
    size_t parent_count;
    struct reward_history history;
};

/* The owners of one datanet version, strictly ascending. */
struct reward_owners { /* by (datanet_id, version) */
    uint8_t datanet_id[32];
    uint64_t version;
    const struct datanet_owner *owner;
    size_t count;
};
struct reward_method {
    uint8_t hash[32];
    uint64_t registered_at; /* 0: not by T */
};

struct reward_tables {
    const struct reward_policy *policy;
    const struct reward_lane *lane;
    size_t lane_count;
    const struct reward_base *base;
    size_t base_count;
    const struct reward_adapter *adapter; /* with every ancestor of what the records name */
    size_t adapter_count;
    const struct reward_owners *owners; /* of every version that a history above has */
    size_t owners_count;
    const struct reward_method *method; /* of the evidence */
    size_t method_count;
};

/* INVALID, naming the table: not ascending, bps that do not sum, no treasury. */
MUST_CHECK enum status reward_check_tables(const struct reward_tables *t, struct errtext *err);
/* depth[adapter_count]: 0 without parents, else 1 + the greatest of its parents' (SPEC 5, 2). */
MUST_CHECK enum status reward_depths(const struct reward_tables *t, uint8_t *depth,
                                     struct errtext *err);

/* NULL when it is not in the table. */
const struct reward_lane *reward_find_lane(const struct reward_tables *t, uint32_t lane);
const struct reward_base *reward_find_base(const struct reward_tables *t, const uint8_t *model_id);
const struct reward_adapter *reward_find_adapter(const struct reward_tables *t,
                                                 const uint8_t *adapter_id);

const struct reward_tariff *reward_find_tariff(const struct reward_lane *l,
                                               const uint8_t *model_id);
const struct reward_method *reward_find_method(const struct reward_tables *t, const uint8_t *hash);

bool reward_has_datanet(const struct reward_adapter *a);
/* Is an entry in force at t0? */
bool reward_is_active(const struct reward_history *h, uint64_t t0);
/* Is {in, out} the price of an entry named at t0, or 0 and 0 where none is named too? */
bool reward_names_price(const struct reward_history *h, uint64_t t0, u128 in, u128 out);
/* Does a datanet version that a's terms name at t0 have this owner? */
bool reward_names_owner(const struct reward_tables *t, const struct reward_adapter *a, uint64_t t0,
                        const uint8_t owner[20]);

#endif
