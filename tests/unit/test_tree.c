/* Sum trees: builder, whole tree and a naive recursive oracle agree for every size around powers of
 * two; every proof verifies and no altered one does. */
#include "chain_client/tree.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "chain_client/eth/keccak.h"
#include "server/base/check.h"
#include "server/base/mem.h"

static uint8_t dom[32];
static const uint8_t ledger[20] = {0xaa, 1, 2, 3};

static int setup(void **state)
{
    tree_log_domain(dom, 31337, ledger);
    return 0;
}

static struct tree_node *make_leaves(size_t count)
{
    struct tree_node *leaf = mem_array(count, sizeof(*leaf));
    for (size_t i = 0; i < count; i++) {
        uint8_t digest[32];
        keccak_256(digest, &i, sizeof(i));
        struct tree_log_leaf l = {.type = (uint8_t)(1 + i % 3),
                                  .lane = 7,
                                  .seq = i + 1,
                                  .digest = digest,
                                  .fee = (u128)(i * 1000003 + 5) << 40};
        tree_log_leaf(&leaf[i], dom, &l);
    }
    return leaf;
}

/* Root of leaves [at, at + width) by recursion, pads made one by one. */
static struct tree_node oracle(const struct tree_node *leaf, size_t count, size_t at, size_t width)
{
    struct tree_node out, left, right;
    uint8_t bytes[97] = {0x11};
    if (width == 1) {
        if (at < count)
            return leaf[at];
        tree_pad(&out, TREE_LOG, dom);
        return out;
    }
    left = oracle(leaf, count, at, width / 2);
    right = oracle(leaf, count, at + width / 2, width / 2);
    memcpy(bytes + 1, left.hash, 32);
    be_put(bytes + 33, left.sum, 16);
    memcpy(bytes + 49, right.hash, 32);
    be_put(bytes + 81, right.sum, 16);
    keccak_256(out.hash, bytes, sizeof(bytes));
    out.sum = left.sum + right.sum;
    return out;
}

static bool same_node(const struct tree_node *a, const struct tree_node *b)
{
    return memcmp(a->hash, b->hash, 32) == 0 && a->sum == b->sum;
}

static void check_proofs(const struct tree *t, uint32_t idx)
{
    struct tree_proof proof;
    struct tree_claim claim = {.kind = TREE_LOG,
                               .count = t->count,
                               .idx = idx,
                               .root = tree_root(t),
                               .leaf = &t->level[0][idx]};
    tree_prove(t, &proof, idx);
    assert_int_equal(tree_verify(&claim, &proof, NULL), STATUS_OK);
    claim.idx = idx + (1u << t->depth); /* the same path, another index */
    assert_int_equal(tree_verify(&claim, &proof, NULL), STATUS_INVALID);
    claim.idx = idx ^ 1;
    if (t->depth)
        assert_int_equal(tree_verify(&claim, &proof, NULL), STATUS_INVALID);
    claim.idx = idx;
    for (uint32_t d = 0; d < proof.depth; d++) {
        proof.sibling[d].sum ^= 1;
        assert_int_equal(tree_verify(&claim, &proof, NULL), STATUS_INVALID);
        proof.sibling[d].sum ^= 1;
        proof.sibling[d].hash[d] ^= 1;
        assert_int_equal(tree_verify(&claim, &proof, NULL), STATUS_INVALID);
        proof.sibling[d].hash[d] ^= 1;
    }
    struct tree_node lie = *claim.leaf;
    lie.sum++;
    claim.leaf = &lie;
    assert_int_equal(tree_verify(&claim, &proof, NULL), STATUS_INVALID);
    if (t->depth) { /* an inner node as a leaf: the depth does not fit */
        claim.leaf = &t->level[1][idx / 2];
        claim.idx = idx / 2;
        memmove(proof.sibling, proof.sibling + 1, sizeof(proof.sibling) - sizeof(proof.sibling[0]));
        proof.depth--;
        assert_int_equal(tree_verify(&claim, &proof, NULL), STATUS_INVALID);
    }
}

static void test_sizes_around_powers_of_two(void **state)
{
    static const uint32_t sizes[] = {1,  2,  3,  4,  5,   7,   8,   9,   15,  16,  17,   31,  32,
                                     33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 1023};
    for (size_t s = 0; s < ARRAY_COUNT(sizes); s++) {
        uint32_t count = sizes[s];
        struct tree_node *leaf = make_leaves(count), root;
        struct tree_builder b;
        struct tree t;
        u128 sum = 0;
        tree_builder_init(&b, TREE_LOG, dom);
        for (uint32_t i = 0; i < count; i++) {
            sum += leaf[i].sum;
            assert_int_equal(tree_builder_push(&b, &leaf[i], NULL), STATUS_OK);
        }
        assert_int_equal(tree_builder_root(&b, &root, NULL), STATUS_OK);
        assert_int_equal(tree_build(&t, TREE_LOG, dom, leaf, count, NULL), STATUS_OK);
        struct tree_node expected = oracle(leaf, count, 0, (size_t)1 << tree_depth(count));
        assert_true(same_node(&root, &expected));
        assert_true(same_node(tree_root(&t), &expected));
        assert_true(root.sum == sum);
        for (uint32_t i = 0; i < count; i += 1 + count / 40)
            check_proofs(&t, i);
        check_proofs(&t, count - 1);
        tree_fini(&t);
        mem_free(leaf);
    }
}

static void test_pads_are_no_leaves(void **state)
{
    struct tree_node *leaf = make_leaves(3);
    struct tree t;
    struct tree_proof proof;
    assert_int_equal(tree_build(&t, TREE_LOG, dom, leaf, 3, NULL), STATUS_OK);
    for (uint32_t d = 0; d < t.depth; d++)
        proof.sibling[d] = t.level[d][(3u >> d) ^ 1];
    proof.depth = t.depth;
    struct tree_claim claim = {TREE_LOG, 3, 3, tree_root(&t), &t.level[0][3]};
    assert_int_equal(tree_verify(&claim, &proof, NULL), STATUS_INVALID);
    tree_fini(&t);
    mem_free(leaf);
}

static void test_limits(void **state)
{
    struct tree_builder b;
    struct tree t;
    struct tree_node root, big = {.hash = {1}, .sum = ~(u128)0}, one = {.hash = {2}, .sum = 1};
    struct tree_node pair[2] = {big, one};
    tree_builder_init(&b, TREE_LOG, dom);
    assert_int_equal(tree_builder_root(&b, &root, NULL), STATUS_INVALID);
    assert_int_equal(tree_build(&t, TREE_LOG, dom, pair, 0, NULL), STATUS_INVALID);
    assert_int_equal(tree_build(&t, TREE_LOG, dom, pair, 2, NULL), STATUS_INVALID);
    assert_int_equal(tree_builder_push(&b, &big, NULL), STATUS_OK);
    assert_int_equal(tree_builder_root(&b, &root, NULL), STATUS_OK);
    assert_true(root.sum == ~(u128)0);
    assert_int_equal(tree_builder_push(&b, &one, NULL), STATUS_INVALID);
    one.sum = 0;
    tree_builder_init(&b, TREE_REWARD, dom);
    for (uint32_t i = 0; i < TREE_LEAVES_MAX; i++)
        assert_int_equal(tree_builder_push(&b, &one, NULL), STATUS_OK);
    assert_int_equal(tree_builder_root(&b, &root, NULL), STATUS_OK);
    assert_int_equal(tree_builder_push(&b, &one, NULL), STATUS_TOO_LARGE);
}

static void test_kinds_and_domains_differ(void **state)
{
    static const uint8_t token[20];
    uint8_t reward[32], other[32];
    struct tree_node a, b;
    tree_reward_domain(reward, 31337, ledger, token);
    tree_log_domain(other, 31338, ledger);
    assert_memory_not_equal(reward, dom, 32);
    assert_memory_not_equal(other, dom, 32);
    tree_reward_leaf(&a, reward, 0, ledger, 9);
    tree_reward_leaf(&b, reward, 1, ledger, 9);
    assert_memory_not_equal(a.hash, b.hash, 32);
    assert_true(a.sum == 9 && b.sum == 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes_around_powers_of_two),
        cmocka_unit_test(test_pads_are_no_leaves),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_kinds_and_domains_differ),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
