/* A table of exact sums by key, for Reward(e): (tag, 32 bytes) -> u256. Open addressing with a
 * random SipHash key, since payees choose their addresses; the result does not depend on it because
 * readers take the entries sorted. One owner, no locking. */
#ifndef RS_CHAIN_SUMS_H
#define RS_CHAIN_SUMS_H

#include "chain_client/eth/u256.h"
#include "server/base/status.h"

#include <stddef.h>
#include <stdint.h>

struct sums_key {
    uint32_t tag;
    uint8_t id[32]; /* shorter ids are padded with zeros */
};

struct sums_entry {
    struct sums_key key;
    uint32_t used; /* 0 in an empty slot */
    struct u256 sum;
};

struct sums {
    struct sums_entry *slot; /* [slot_count], a power of two */
    size_t slot_count, used;
    uint8_t hash_key[16];
};

MUST_CHECK enum status sums_init(struct sums *s);
void sums_fini(struct sums *s);
/* The entry of (tag, id), made with sum 0 if new; valid until the next call. NULL without memory.
 */
struct u256 *sums_at(struct sums *s, uint32_t tag, const uint8_t *id, size_t id_len);
/* All entries ascending by tag, then id, in a fresh block (mem_free); NULL without memory. */
struct sums_entry *sums_sorted(const struct sums *s);

#endif
