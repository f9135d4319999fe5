/* The Registry's views as C values (SPEC 9): who is paid for what, as of any past second.
 *
 *   registry_open(&r, rpc, deployment.registry);
 *   registry_adapter_at(&r, "finalized", adapter_id, t, &terms, err)
 *   registry_close(&r);
 *
 * A decoder takes the bytes that the view returned, so that a cache can keep them. Statuses of a
 * call are rpc.h's; an answer that is not the view's is INVALID or CORRUPT. One object per thread:
 * it holds the buffers of one call at a time. Answers for a past second of a final block never
 * change. */
#ifndef RS_CHAIN_REGISTRY_VIEWS_H
#define RS_CHAIN_REGISTRY_VIEWS_H

#include "chain_client/eth/rpc.h"
#include "chain_client/reward.h"
#include "server/base/buf.h"

struct registry_reader {
    struct rpc *rpc;
    uint8_t address[20];
    struct buf data, out;
};

/* rpc is the caller's and must outlive r. */
void registry_open(struct registry_reader *r, struct rpc *rpc, const uint8_t address[20]);
void registry_close(struct registry_reader *r);

/* An adapter's entry at a second; all zero where none was active yet. */
struct registry_terms {
    bool registered;
    uint64_t active_at;
    uint8_t model_id[32], datanet_id[32]; /* datanet 0: none */
    uint64_t datanet_version;             /* 0 iff there is no datanet */
    u128 price_in, price_out;             /* per 1 000 tokens, < 2^80 */
    struct reward_entry entry[REWARD_ENTRIES_MAX];
    size_t entry_count;
    struct reward_parent parent[REWARD_PARENTS_MAX];
    size_t parent_count;
};
MUST_CHECK enum status registry_decode_terms(struct registry_terms *out, const void *data,
                                             size_t len, struct errtext *err);
MUST_CHECK enum status registry_adapter_at(struct registry_reader *r, const char *tag,
                                           const uint8_t adapter_id[32], uint64_t t,
                                           struct registry_terms *out, struct errtext *err);

/* A lane's tariff of a base; active_at 0: none, price 0. */
struct registry_tariff {
    uint64_t active_at;
    u128 price_in, price_out;
};
MUST_CHECK enum status registry_decode_tariff(struct registry_tariff *out, const void *data,
                                              size_t len, struct errtext *err);
MUST_CHECK enum status registry_tariff_at(struct registry_reader *r, const char *tag, uint32_t lane,
                                          const uint8_t model_id[32], uint64_t t,
                                          struct registry_tariff *out, struct errtext *err);

struct registry_base {
    bool registered;
    struct reward_entry entry[REWARD_ENTRIES_MAX];
    size_t entry_count;
};
MUST_CHECK enum status registry_decode_base(struct registry_base *out, const void *data, size_t len,
                                            struct errtext *err);
MUST_CHECK enum status registry_base_at(struct registry_reader *r, const char *tag,
                                        const uint8_t model_id[32], uint64_t t,
                                        struct registry_base *out, struct errtext *err);

/* A datanet version: roots and counts, never changed once it is there. */
struct registry_datanet {
    bool registered;
    uint64_t active_at, version;
    uint8_t document_root[32], owner_root[32], tokenizer_digest[32];
    uint32_t documents, owners;
};
MUST_CHECK enum status registry_decode_datanet(struct registry_datanet *out, const void *data,
                                               size_t len, struct errtext *err);
MUST_CHECK enum status registry_datanet_at(struct registry_reader *r, const char *tag,
                                           const uint8_t datanet_id[32], uint64_t t,
                                           struct registry_datanet *out, struct errtext *err);
MUST_CHECK enum status registry_datanet_version(struct registry_reader *r, const char *tag,
                                                const uint8_t datanet_id[32], uint64_t version,
                                                struct registry_datanet *out, struct errtext *err);

MUST_CHECK enum status registry_decode_policy(struct reward_policy *out, const void *data,
                                              size_t len, struct errtext *err);
MUST_CHECK enum status registry_policy_at(struct registry_reader *r, const char *tag, uint64_t t,
                                          struct reward_policy *out, struct errtext *err);

/* The second at which a scoring method was registered; 0: never. */
MUST_CHECK enum status registry_method_registered_at(struct registry_reader *r, const char *tag,
                                                     const uint8_t method[32], uint64_t *at,
                                                     struct errtext *err);
/* Who may change an adapter's entry; zero where nobody registered it. */
MUST_CHECK enum status registry_adapter_owner(struct registry_reader *r, const char *tag,
                                              const uint8_t adapter_id[32], uint8_t owner[20],
                                              struct errtext *err);
/* Seconds between the block of a change and its effect; never changes. */
MUST_CHECK enum status registry_notice(struct registry_reader *r, const char *tag,
                                       uint64_t *seconds, struct errtext *err);

#endif
