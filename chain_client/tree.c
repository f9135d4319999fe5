/* Preimages of every node start with a tag and have their own length, so a node can never pass for
 * a leaf, nor a log leaf for a reward leaf:
 *
 *   log     leaf 1   0x10 dom lane u32 seq u64 digest fee u128   93 bytes
 *           leaf 2,3 0x13 dom lane u32 seq u64 digest            77
 *           node     0x11 hL sumL hR sumR                        97
 *           pad      0x12 dom                                    33
 *   reward  leaf     0x00 dom idx u32 account 20 cum u128        73
 *           node     0x01 hL sumL hR sumR                        97
 *           pad      0x02 dom                                    33
 *
 * Each is below 136 bytes: one permutation. The builder is a binary counter of finished subtrees;
 * the root fills up with pad subtrees of rising height without ever making the pad leaves. */
#include "chain_client/tree.h"
#include "chain_client/eth/abi.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

static const struct tree_tags {
    uint8_t node, pad;
} tags[] = {[TREE_LOG] = {0x11, 0x12}, [TREE_REWARD] = {0x01, 0x02}};

static void domain_hash(uint8_t dom[32], const char *label, uint64_t chain_id,
                        const uint8_t *const *address, size_t address_count)
{
    struct buf out;
    struct abi_tuple t;
    buf_init(&out, 512);
    abi_begin(&t, &out, 2 + address_count);
    abi_dynamic(&t);
    abi_uint(&t, chain_id);
    for (size_t i = 0; i < address_count; i++)
        abi_address(&t, address[i]);
    abi_bytes_tail(&out, label, strlen(label));
    abi_end(&t);
    CHECK(!out.failed);
    keccak_256(dom, out.data, out.len);
    buf_fini(&out);
}

void tree_log_domain(uint8_t dom[32], uint64_t chain_id, const uint8_t ledger[20])
{
    domain_hash(dom, "residual.log.1", chain_id, &ledger, 1);
}

void tree_reward_domain(uint8_t dom[32], uint64_t chain_id, const uint8_t vault[20],
                        const uint8_t token[20])
{
    const uint8_t *address[2] = {vault, token};
    domain_hash(dom, "residual.reward.1", chain_id, address, 2);
}

void tree_log_leaf(struct tree_node *out, const uint8_t dom[32], const struct tree_log_leaf *leaf)
{
    uint8_t bytes[93];
    bool has_fee = leaf->type == 1;
    CHECK(leaf->type >= 1 && leaf->type <= 3);
    bytes[0] = has_fee ? 0x10 : 0x13;
    memcpy(bytes + 1, dom, 32);
    be_put(bytes + 33, leaf->lane, 4);
    be_put(bytes + 37, leaf->seq, 8);
    memcpy(bytes + 45, leaf->digest, 32);
    if (has_fee)
        be_put(bytes + 77, leaf->fee, 16);
    keccak_256(out->hash, bytes, has_fee ? 93 : 77);
    out->sum = has_fee ? leaf->fee : 0;
}

void tree_reward_leaf(struct tree_node *out, const uint8_t dom[32], uint32_t idx,
                      const uint8_t account[20], u128 cumulative)
{
    uint8_t bytes[73];
    bytes[0] = 0x00;
    memcpy(bytes + 1, dom, 32);
    be_put(bytes + 33, idx, 4);
    memcpy(bytes + 37, account, 20);
    be_put(bytes + 57, cumulative, 16);
    keccak_256(out->hash, bytes, sizeof(bytes));
    out->sum = cumulative;
}

void tree_pad(struct tree_node *out, enum tree_kind kind, const uint8_t dom[32])
{
    uint8_t bytes[33];
    bytes[0] = tags[kind].pad;
    memcpy(bytes + 1, dom, 32);
    keccak_256(out->hash, bytes, sizeof(bytes));
    out->sum = 0;
}

enum status tree_join(struct tree_node *out, enum tree_kind kind, const struct tree_node *left,
                      const struct tree_node *right, struct errtext *err)
{
    uint8_t bytes[97];
    u128 sum = left->sum + right->sum;
    if (sum < left->sum)
        return err_set(err, STATUS_INVALID, "tree: the sum of two nodes passes 2^128");
    bytes[0] = tags[kind].node;
    memcpy(bytes + 1, left->hash, 32);
    be_put(bytes + 33, left->sum, 16);
    memcpy(bytes + 49, right->hash, 32);
    be_put(bytes + 81, right->sum, 16);
    keccak_256(out->hash, bytes, sizeof(bytes));
    out->sum = sum;
    return STATUS_OK;
}

uint32_t tree_depth(uint32_t count)
{
    uint32_t depth = 0;
    CHECK(count >= 1 && count <= TREE_LEAVES_MAX);
    while ((1u << depth) < count)
        depth++;
    return depth;
}

void tree_builder_init(struct tree_builder *b, enum tree_kind kind, const uint8_t dom[32])
{
    memset(b, 0, sizeof(*b));
    b->kind = kind;
    memcpy(b->dom, dom, 32);
}

enum status tree_builder_push(struct tree_builder *b, const struct tree_node *leaf,
                              struct errtext *err)
{
    struct tree_node node = *leaf;
    uint32_t d = 0;
    if (b->count >= TREE_LEAVES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "tree: more than %u leaves", TREE_LEAVES_MAX);
    for (; b->count >> d & 1; d++) {
        enum status st = tree_join(&node, b->kind, &b->level[d], &node, err);
        if (st)
            return st;
    }
    b->level[d] = node;
    b->count++;
    return STATUS_OK;
}

enum status tree_builder_root(const struct tree_builder *b, struct tree_node *root,
                              struct errtext *err)
{
    struct tree_node pad, node;
    enum status st = STATUS_OK;
    bool has_node = false; /* the subtree right of every finished one, filled up to height d */
    if (!b->count)
        return err_set(err, STATUS_INVALID, "tree: no leaf");
    uint32_t depth = tree_depth(b->count);
    tree_pad(&pad, b->kind, b->dom);
    for (uint32_t d = 0; d < depth && !st; d++) {
        if (b->count >> d & 1) {
            st = tree_join(&node, b->kind, &b->level[d], has_node ? &node : &pad, err);
            has_node = true;
        } else if (has_node) {
            st = tree_join(&node, b->kind, &node, &pad, err);
        }
        if (!st)
            st = tree_join(&pad, b->kind, &pad, &pad, err);
    }
    if (!st)
        *root = has_node ? node : b->level[depth];
    return st;
}

static enum status fill_levels(struct tree *t, struct errtext *err)
{
    for (uint32_t d = 0; d < t->depth; d++) {
        const struct tree_node *below = t->level[d];
        for (size_t i = 0; i < (size_t)1 << (t->depth - d - 1); i++) {
            enum status st =
                tree_join(&t->level[d + 1][i], t->kind, &below[2 * i], &below[2 * i + 1], err);
            if (st)
                return st;
        }
    }
    return STATUS_OK;
}

enum status tree_build(struct tree *t, enum tree_kind kind, const uint8_t dom[32],
                       const struct tree_node *leaf, size_t count, struct errtext *err)
{
    memset(t, 0, sizeof(*t));
    if (!count)
        return err_set(err, STATUS_INVALID, "tree: no leaf");
    if (count > TREE_LEAVES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "tree: %zu leaves, at most %u", count,
                       TREE_LEAVES_MAX);
    t->kind = kind;
    t->count = (uint32_t)count;
    t->depth = tree_depth(t->count);
    size_t width = (size_t)1 << t->depth;
    t->level[0] = mem_try_array(2 * width, sizeof(*t->level[0]));
    if (!t->level[0])
        return err_set(err, STATUS_NO_MEMORY, "no memory for a tree of %zu leaves", count);
    for (uint32_t d = 0; d < t->depth; d++)
        t->level[d + 1] = t->level[d] + (width >> d);
    memcpy(t->level[0], leaf, count * sizeof(*leaf));
    if (count < width)
        tree_pad(&t->level[0][count], kind, dom);
    for (size_t i = count + 1; i < width; i++)
        t->level[0][i] = t->level[0][count];
    enum status st = fill_levels(t, err);
    if (st)
        tree_fini(t);
    return st;
}

void tree_fini(struct tree *t)
{
    mem_free(t->level[0]);
    memset(t, 0, sizeof(*t));
}

const struct tree_node *tree_root(const struct tree *t)
{
    return t->level[t->depth];
}

void tree_prove(const struct tree *t, struct tree_proof *proof, uint32_t idx)
{
    CHECK(idx < t->count);
    proof->depth = t->depth;
    for (uint32_t d = 0; d < t->depth; d++)
        proof->sibling[d] = t->level[d][(idx >> d) ^ 1];
}

enum status tree_verify(const struct tree_claim *claim, const struct tree_proof *proof,
                        struct errtext *err)
{
    struct tree_node node = *claim->leaf;
    if (!claim->count || claim->count > TREE_LEAVES_MAX || claim->idx >= claim->count)
        return err_set(err, STATUS_INVALID, "proof: leaf %u of %u leaves", claim->idx,
                       claim->count);
    if (proof->depth != tree_depth(claim->count))
        return err_set(err, STATUS_INVALID, "proof: %u levels, expected %u", proof->depth,
                       tree_depth(claim->count));
    for (uint32_t d = 0; d < proof->depth; d++) {
        bool is_right = claim->idx >> d & 1;
        const struct tree_node *other = &proof->sibling[d];
        enum status st =
            tree_join(&node, claim->kind, is_right ? other : &node, is_right ? &node : other, err);
        if (st)
            return st;
    }
    if (memcmp(node.hash, claim->root->hash, 32) != 0 || node.sum != claim->root->sum)
        return err_set(err, STATUS_INVALID, "proof: leaf %u does not lead to the root", claim->idx);
    return STATUS_OK;
}
