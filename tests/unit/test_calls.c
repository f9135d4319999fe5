/* Call data, answers, manifests, epochs, remainders and draws of tests/data/golden.json. */
#include <jansson.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "chain_client/eth/abi.h"
#include "chain_client/commit.h"
#include "chain_client/epoch.h"
#include "chain_client/lr.h"
#include "chain_client/manifest.h"
#include "server/base/check.h"
#include "tests/unit/golden_json.h"

static json_t *golden;

static int setup(void **state)
{
    json_error_t e;
    golden = json_load_file(RS_TEST_DATA "/golden.json", 0, &e);
    return golden ? 0 : 1;
}

static int teardown(void **state)
{
    json_decref(golden);
    return 0;
}

static const json_t *at(const json_t *list, size_t i)
{
    assert_true(i < json_array_size(list));
    return json_array_get(list, i);
}

/* ---- calls ---- */

static void read_header(struct batch_header *h, const json_t *v)
{
    *h = (struct batch_header){.seq = (uint64_t)number(at(v, 0)),
                               .spec = (uint8_t)number(at(v, 1)),
                               .leaf_count = (uint32_t)number(at(v, 5)),
                               .inferences = (uint32_t)number(at(v, 6)),
                               .fee_sum = number(at(v, 7)),
                               .cum_fee = number(at(v, 8)),
                               .closed_at = (uint64_t)number(at(v, 9))};
    bytes(h->prev_hash, 32, at(v, 2));
    bytes(h->log_root, 32, at(v, 3));
    bytes(h->manifest, 32, at(v, 4));
}

static void read_epoch(struct epoch_header *h, const json_t *v)
{
    *h = (struct epoch_header){.epoch = (uint64_t)number(at(v, 0)),
                               .total = number(at(v, 3)),
                               .leaves = (uint32_t)number(at(v, 4)),
                               .batch_paid = (uint64_t)number(at(v, 5)),
                               .batch_evidence = (uint64_t)number(at(v, 6))};
    bytes(h->prev_root, 32, at(v, 1));
    bytes(h->root, 32, at(v, 2));
    bytes(h->manifest, 32, at(v, 7));
}

static void put_commit(struct buf *out, const json_t *args)
{
    struct batch_header h;
    struct batch_lane lane[128];
    size_t n = json_array_size(at(args, 1));
    read_header(&h, at(args, 0));
    for (size_t i = 0; i < n; i++) {
        const json_t *l = at(at(args, 1), i);
        lane[i] = (struct batch_lane){(uint32_t)number(at(l, 0)), (uint64_t)number(at(l, 1)),
                                      (uint64_t)number(at(l, 2))};
    }
    batch_put_commit(out, &h, lane, n);
}

static void put_propose(struct buf *out, const json_t *args)
{
    static uint8_t sig[8][SECP_SIGNATURE_BYTES];
    struct epoch_header h;
    struct batch_header paid;
    uint8_t lanes_hash[32];
    struct epoch_proposal p = {&h, &paid, lanes_hash, sig, json_array_size(at(args, 3))};
    read_epoch(&h, at(args, 0));
    read_header(&paid, at(args, 1));
    bytes(lanes_hash, 32, at(args, 2));
    for (size_t i = 0; i < p.signature_count; i++)
        bytes(sig[i], SECP_SIGNATURE_BYTES, at(at(args, 3), i));
    epoch_put_propose(out, &p);
}

static void read_claim(struct epoch_claim *c, struct tree_proof *proof, const json_t *v)
{
    *c = (struct epoch_claim){.epoch = (uint64_t)number(at(v, 0)),
                              .idx = (uint32_t)number(at(v, 1)),
                              .cumulative = number(at(v, 3)),
                              .proof = proof};
    bytes(c->account, 20, at(v, 2));
    proof->depth = (uint32_t)json_array_size(at(v, 4));
    for (uint32_t d = 0; d < proof->depth; d++) {
        bytes(proof->sibling[d].hash, 32, at(at(v, 4), d));
        proof->sibling[d].sum = number(at(at(v, 5), d));
    }
}

static void put_claims(struct buf *out, const json_t *args)
{
    struct epoch_claim claim[4];
    struct tree_proof proof[4];
    size_t n = json_array_size(at(args, 0));
    for (size_t i = 0; i < n; i++)
        read_claim(&claim[i], &proof[i], at(at(args, 0), i));
    epoch_put_claim_many(out, claim, n);
}

static void test_call_data(void **state)
{
    const json_t *list = get(get(get(golden, "ethereum"), "calls"), "calls");
    size_t seen = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = at(list, i), *args = get(v, "args");
        const char *name = text(v, "function");
        struct buf out;
        size_t len = 0;
        uint8_t *data = blob(text(v, "data"), &len);
        struct epoch_claim claim;
        struct tree_proof proof;
        buf_init(&out, 1 << 16);
        if (strncmp(name, "commit(", 7) == 0)
            put_commit(&out, args);
        else if (strncmp(name, "propose(", 8) == 0)
            put_propose(&out, args);
        else if (strncmp(name, "claimMany(", 10) == 0)
            put_claims(&out, args);
        else if (strncmp(name, "claim(", 6) == 0) {
            read_claim(&claim, &proof, args);
            epoch_put_claim(&out, &claim);
        }
        if (out.len) {
            seen++;
            assert_int_equal(out.len, len);
            assert_memory_equal(out.data, data, len);
        }
        buf_fini(&out);
        mem_free(data);
    }
    assert_true(seen >= 5);
}

static void check_entries(const struct abi_array *found, const json_t *expected)
{
    assert_int_equal(found->count, json_array_size(expected));
    for (size_t i = 0; i < found->count; i++) {
        uint8_t payee[20];
        uint64_t role = 0, bps = 0;
        const json_t *e = at(expected, i);
        assert_int_equal(abi_read_address(&found->items, 3 * i, payee, "payee", NULL), STATUS_OK);
        assert_int_equal(abi_read_u64(&found->items, 3 * i + 1, &role, "role", NULL), STATUS_OK);
        assert_int_equal(abi_read_u64(&found->items, 3 * i + 2, &bps, "bps", NULL), STATUS_OK);
        expect_hex(payee, 20, json_string_value(at(e, 0)));
        assert_true(role == number(at(e, 1)) && bps == number(at(e, 2)));
    }
}

static void test_answers(void **state)
{
    const json_t *list = get(get(get(golden, "ethereum"), "calls"), "answers");
    size_t seen = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = at(list, i), *values = get(v, "values");
        size_t len = 0;
        uint8_t *data = blob(text(v, "data"), &len);
        struct abi_reader r = {data, len};
        struct abi_array entries;
        bool registered = false;
        if (strcmp(text(v, "function"), "baseAt(bytes32,uint64)") == 0) {
            assert_int_equal(abi_read_bool(&r, 0, &registered, "registered", NULL), STATUS_OK);
            assert_int_equal(registered, json_is_true(at(values, 0)));
            assert_int_equal(abi_read_array(&r, 1, 3, &entries, "entries", NULL), STATUS_OK);
            check_entries(&entries, at(values, 1));
            seen++;
        } else if (strcmp(text(v, "function"), "head()") == 0) {
            u128 cum = 0;
            assert_int_equal(abi_read_uint(&r, 2, 16, &cum, "cumFee", NULL), STATUS_OK);
            assert_true(cum == number(at(values, 2)));
            seen++;
        }
        mem_free(data);
    }
    assert_true(seen >= 3);
}

/* ---- manifests and epochs ---- */

/* pub is right but for one thing at a time */
static void refused_parents(struct manifest_publish *pub, struct reward_parent *parent)
{
    struct reward_parent kept[2] = {parent[0], parent[1]};
    parent[0].bps = 1501; /* 5 001 in all */
    assert_int_equal(manifest_publish_check(pub, NULL), STATUS_INVALID);
    parent[0].bps = 0;
    assert_int_equal(manifest_publish_check(pub, NULL), STATUS_INVALID);
    parent[0] = parent[1] = kept[1];
    parent[1].bps = 1;
    assert_int_equal(manifest_publish_check(pub, NULL), STATUS_INVALID);
    parent[0] = kept[0];
    parent[1] = kept[1];
    pub->parent_count = 1;
    assert_int_equal(manifest_publish_check(pub, NULL), STATUS_OK);
    memcpy(parent[0].adapter_id, pub->adapter_id, 32); /* its own child */
    assert_int_equal(manifest_publish_check(pub, NULL), STATUS_INVALID);
    parent[0] = kept[0];
    pub->parent_count = 2;
    pub->datanet_version = 0;
    assert_int_equal(manifest_publish_check(pub, NULL), STATUS_INVALID);
    pub->datanet_version = 3;
    assert_int_equal(manifest_publish_check(pub, NULL), STATUS_OK);
}

static void test_manifests(void **state)
{
    const json_t *m = get(golden, "manifests"), *p = get(m, "publish"), *j = get(p, "manifest");
    const json_t *l = get(m, "licence"), *split = get(j, "split");
    uint64_t chain_id = (uint64_t)num(golden, "chainId");
    struct reward_entry entry[REWARD_ENTRIES_MAX];
    struct manifest_publish pub = {.price_in = num(j, "priceIn"),
                                   .price_out = num(j, "priceOut"),
                                   .split = {entry, json_array_size(split)},
                                   .datanet_version = (uint64_t)num(j, "datanetVersion"),
                                   .version = (uint64_t)num(j, "version")};
    struct reward_parent parent[REWARD_PARENTS_MAX] = {0};
    struct manifest_licence licence = {.licence = text(l, "licence"),
                                       .terms = text(l, "terms"),
                                       .display = json_is_true(get(l, "display"))};
    struct manifest_datanet net = {.chain_id = chain_id};
    uint8_t registry[20], hash[32], salt[32];
    bytes(registry, 20, get(m, "registry"));
    bytes(pub.adapter_id, 32, get(j, "adapterId"));
    bytes(pub.model_id, 32, get(j, "modelId"));
    bytes(pub.datanet_id, 32, get(j, "datanetId"));
    bytes(pub.owner, 20, get(j, "owner"));
    for (size_t i = 0; i < pub.split.count; i++) {
        bytes(entry[i].payee, 20, get(at(split, i), "payee"));
        entry[i].role = (uint8_t)num(at(split, i), "role");
        entry[i].bps = (uint16_t)num(at(split, i), "bps");
    }
    pub.parent = parent;
    pub.parent_count = json_array_size(get(j, "parents"));
    for (size_t i = 0; i < pub.parent_count; i++) {
        bytes(parent[i].adapter_id, 32, get(at(get(j, "parents"), i), "adapterId"));
        parent[i].bps = (uint16_t)num(at(get(j, "parents"), i), "bps");
    }
    assert_int_equal(manifest_publish_check(&pub, NULL), STATUS_OK);
    manifest_parents_hash(hash, pub.parent, pub.parent_count);
    expect_hex(hash, 32, text(p, "parentsHash"));
    manifest_consent_digest(hash, &pub, chain_id, registry);
    expect_hex(hash, 32, text(get(m, "consent"), "signDigest"));
    manifest_split_hash(hash, &pub.split);
    expect_hex(hash, 32, text(p, "splitHash"));
    manifest_publish_digest(hash, &pub, chain_id, registry);
    expect_hex(hash, 32, text(p, "digest"));
    bytes(salt, 32, get(m, "salt"));
    manifest_commitment(hash, pub.adapter_id, pub.owner, salt);
    expect_hex(hash, 32, text(m, "commitment"));
    memcpy(net.registry, registry, 20);
    memcpy(net.owner, pub.owner, 20);
    bytes(net.salt, 32, get(m, "datanetSalt"));
    manifest_datanet_id(hash, &net);
    expect_hex(hash, 32, text(j, "datanetId"));
    bytes(licence.datanet_id, 32, get(l, "datanetId"));
    bytes(licence.digest, 32, get(l, "digest"));
    manifest_licence_digest(hash, &licence, chain_id, registry);
    expect_hex(hash, 32, text(l, "signDigest"));
    struct reward_entry saved = entry[1];
    entry[0].bps++;
    assert_int_equal(manifest_publish_check(&pub, NULL), STATUS_INVALID);
    entry[0].bps--;
    entry[1].payee[0] = entry[2].payee[0] + 1;
    assert_int_equal(manifest_publish_check(&pub, NULL), STATUS_INVALID);
    entry[1] = saved;
    assert_int_equal(manifest_publish_check(&pub, NULL), STATUS_OK);
    refused_parents(&pub, parent);
}

static void test_epoch_digests(void **state)
{
    const json_t *w = get(golden, "world"), *list = get(w, "epochs");
    uint8_t vault[20], hash[32];
    bytes(vault, 20, get(w, "vault"));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *h = get(at(list, i), "header");
        struct epoch_header e = {.epoch = (uint64_t)num(h, "epoch"),
                                 .total = num(h, "total"),
                                 .leaves = (uint32_t)num(h, "leaves"),
                                 .batch_paid = (uint64_t)num(h, "batchPaid"),
                                 .batch_evidence = (uint64_t)num(h, "batchEvidence")};
        bytes(e.prev_root, 32, get(h, "prevRoot"));
        bytes(e.root, 32, get(h, "root"));
        bytes(e.manifest, 32, get(h, "manifest"));
        epoch_digest(hash, &e, (uint64_t)num(w, "chainId"), vault);
        expect_hex(hash, 32, text(at(list, i), "digest"));
    }
}

/* ---- remainders and draws ---- */

static struct u256 wide_number(const char *decimal)
{
    struct u256 v = {{0}};
    for (; *decimal; decimal++) {
        struct u256 ten = {{0}}, digit = u256_from((u128)(*decimal - '0'));
        for (int i = 0; i < 10; i++)
            assert_true(u256_add(&ten, &v));
        assert_true(u256_add(&ten, &digit));
        v = ten;
    }
    return v;
}

static void test_remainders(void **state)
{
    const json_t *list = get(golden, "remainders");
    assert_true(json_array_size(list) > 20);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = at(list, i), *weights = get(v, "weights");
        size_t n = json_array_size(weights);
        struct u256 weight[256];
        u128 part[256];
        assert_true(n <= 256);
        for (size_t k = 0; k < n; k++)
            weight[k] = wide_number(json_string_value(at(weights, k)));
        assert_int_equal(lr_split(part, num(v, "x"), weight, n), STATUS_OK);
        for (size_t k = 0; k < n; k++)
            assert_true(part[k] == number(at(get(v, "parts"), k)));
    }
}

static void test_draws(void **state)
{
    const json_t *s = get(golden, "sampling"), *draws = get(s, "draws");
    uint8_t batch[32], mix[32], seed[32];
    bytes(batch, 32, get(s, "batchHash"));
    bytes(mix, 32, get(s, "mixHash"));
    commit_sample_seed(seed, batch, mix);
    expect_hex(seed, 32, text(s, "seed"));
    for (size_t i = 0; i < json_array_size(draws); i++) {
        const json_t *v = at(draws, i);
        struct commit_sample c = {.fee = 1,
                                  .adapter_count = 2,
                                  .lane = (uint32_t)num(v, "lane"),
                                  .seq = (uint64_t)num(v, "seq")};
        assert_int_equal(commit_is_required(&c, seed, (uint32_t)num(v, "ratePpb")),
                         json_is_true(get(v, "drawn")));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_call_data),  cmocka_unit_test(test_answers),
        cmocka_unit_test(test_manifests),  cmocka_unit_test(test_epoch_digests),
        cmocka_unit_test(test_remainders), cmocka_unit_test(test_draws),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
