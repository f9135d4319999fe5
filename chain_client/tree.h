/* Merkle-sum trees (SPEC 3): the log tree of a batch and the reward tree of an epoch. Every node
 * carries the sum below it, hashed with its children, so a root cannot promise another total than
 * its leaves have. Leaves are padded to a power of two; depth = ceil(log2(count)); one leaf is its
 * own root. Pure but for tree_build's memory. Thread: any.
 *
 *   tree_log_domain(dom, chain_id, ledger);
 *   tree_builder_init(&b, TREE_LOG, dom);
 *   for every record: tree_log_leaf(&n, dom, &leaf); tree_builder_push(&b, &n, err)
 *   tree_builder_root(&b, &root, err)
 */
#ifndef RS_CHAIN_TREE_H
#define RS_CHAIN_TREE_H

#include "server/base/errtext.h"
#include "server/base/hex.h"

#include <stddef.h>
#include <stdint.h>

#define TREE_LEAVES_MAX (1u << 17)
#define TREE_DEPTH_MAX  17

enum tree_kind { TREE_LOG, TREE_REWARD };

struct tree_node {
    uint8_t hash[32];
    u128 sum;
};

/* keccak(abi.encode("residual.log.1", chainId, ledger)) */
void tree_log_domain(uint8_t dom[32], uint64_t chain_id, const uint8_t ledger[20]);
/* keccak(abi.encode("residual.reward.1", chainId, vault, token)); token zero = native coin */
void tree_reward_domain(uint8_t dom[32], uint64_t chain_id, const uint8_t vault[20],
                        const uint8_t token[20]);

struct tree_log_leaf {
    uint8_t type; /* enum record_type: 1 carries its fee, 2 and 3 have sum 0 */
    uint32_t lane;
    uint64_t seq;
    const uint8_t *digest; /* [32] */
    u128 fee;              /* not read for types 2 and 3 */
};
void tree_log_leaf(struct tree_node *out, const uint8_t dom[32], const struct tree_log_leaf *leaf);
void tree_reward_leaf(struct tree_node *out, const uint8_t dom[32], uint32_t idx,
                      const uint8_t account[20], u128 cumulative);
void tree_pad(struct tree_node *out, enum tree_kind kind, const uint8_t dom[32]);
/* out may be left or right. INVALID when the sum passes 2^128. */
MUST_CHECK enum status tree_join(struct tree_node *out, enum tree_kind kind,
                                 const struct tree_node *left, const struct tree_node *right,
                                 struct errtext *err);

/* ceil(log2(count)); 0 for one leaf. count is 1 .. TREE_LEAVES_MAX. */
uint32_t tree_depth(uint32_t count);

/* The root of a stream of leaves in O(depth) memory: level[d] waits for its right brother iff bit d
 * of count is set. */
struct tree_builder {
    enum tree_kind kind;
    uint8_t dom[32];
    uint32_t count;
    struct tree_node level[TREE_DEPTH_MAX + 1];
};
void tree_builder_init(struct tree_builder *b, enum tree_kind kind, const uint8_t dom[32]);
/* TOO_LARGE past TREE_LEAVES_MAX, INVALID when a sum passes 2^128. */
MUST_CHECK enum status tree_builder_push(struct tree_builder *b, const struct tree_node *leaf,
                                         struct errtext *err);
/* INVALID without a leaf. b stays as it was: more leaves may follow. */
MUST_CHECK enum status tree_builder_root(const struct tree_builder *b, struct tree_node *root,
                                         struct errtext *err);

/* A whole tree in memory, for proofs: 96 bytes a padded leaf. */
struct tree {
    enum tree_kind kind;
    uint32_t count, depth;
    struct tree_node *level[TREE_DEPTH_MAX + 1]; /* level[0] are the padded leaves; one block */
};
/* leaf [count] is copied. INVALID for no leaf or a sum past 2^128, TOO_LARGE, NO_MEMORY. */
MUST_CHECK enum status tree_build(struct tree *t, enum tree_kind kind, const uint8_t dom[32],
                                  const struct tree_node *leaf, size_t count, struct errtext *err);
void tree_fini(struct tree *t);
const struct tree_node *tree_root(const struct tree *t);

/* sibling[i] is the brother at level i, from the leaf upward. */
struct tree_proof {
    uint32_t depth;
    struct tree_node sibling[TREE_DEPTH_MAX];
};
/* Before idx < count. */
void tree_prove(const struct tree *t, struct tree_proof *proof, uint32_t idx);

/* What a proof claims. */
struct tree_claim {
    enum tree_kind kind;
    uint32_t count, idx;
    const struct tree_node *root, *leaf;
};
/* tree_verify - is claim->leaf number idx of the count leaves below root?
 *
 * Errors  INVALID: idx >= count, a depth other than tree_depth(count), a sum past 2^128, or another
 *         root hash or root sum
 */
MUST_CHECK enum status tree_verify(const struct tree_claim *claim, const struct tree_proof *proof,
                                   struct errtext *err);

#endif
