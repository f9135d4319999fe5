/* What owners sign (SPEC 6): publish manifests and document licences, as the Registry contract
 * hashes them. Pure but for a buffer. Thread: any. */
#ifndef RS_CHAIN_MANIFEST_H
#define RS_CHAIN_MANIFEST_H

#include "chain_client/reward.h"
#include "server/base/errtext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MANIFEST_PARENTS_BPS_MAX 5000

struct manifest_publish {
    uint8_t adapter_id[32], model_id[32], datanet_id[32]; /* datanet 0: none */
    uint64_t datanet_version;                             /* 0 iff there is no datanet */
    uint8_t owner[20];
    u128 price_in, price_out; /* base units per 1 000 tokens, < 2^80 */
    struct reward_split split;
    const struct reward_parent *parent; /* ascending by id */
    size_t parent_count;
    uint64_t version; /* from 1, rising */
};

/* Prices, versions, owner, the split's order, roles and sum, the parents' order, number and sum.
 * INVALID, naming the field. */
MUST_CHECK enum status manifest_publish_check(const struct manifest_publish *m,
                                              struct errtext *err);
/* keccak(abi.encode(SplitEntry[])). At most REWARD_ENTRIES_MAX entries. */
void manifest_split_hash(uint8_t out[32], const struct reward_split *split);
/* keccak(abi.encode(Parent[])). At most REWARD_PARENTS_MAX of them. */
void manifest_parents_hash(uint8_t out[32], const struct reward_parent *parent, size_t count);
/* The digest the owner signs, in domain {"residual", "1", chainId, registry}. */
void manifest_publish_digest(uint8_t out[32], const struct manifest_publish *m, uint64_t chain_id,
                             const uint8_t registry[20]);
/* keccak(adapterId, owner, salt): committed before register reveals it. */
void manifest_commitment(uint8_t out[32], const uint8_t adapter_id[32], const uint8_t owner[20],
                         const uint8_t salt[32]);

/* keccak(abi.encode("residual.datanet.1", chainId, registry, owner, salt)) */
struct manifest_datanet {
    uint64_t chain_id;
    uint8_t registry[20], owner[20], salt[32];
};
void manifest_datanet_id(uint8_t out[32], const struct manifest_datanet *d);

/* What a datanet's owner signs for an adapter that names it: m's datanet, version and adapter. */
void manifest_consent_digest(uint8_t out[32], const struct manifest_publish *m, uint64_t chain_id,
                             const uint8_t registry[20]);

struct manifest_licence {
    uint8_t datanet_id[32];
    uint8_t digest[32];  /* BLAKE2b-256 of the normalised text */
    const char *licence; /* SPDX */
    const char *terms;   /* a URI, "": none */
    bool display;        /* may its text be shown beside an answer? */
};
/* The digest a document's owner signs. */
void manifest_licence_digest(uint8_t out[32], const struct manifest_licence *l, uint64_t chain_id,
                             const uint8_t registry[20]);

#endif
