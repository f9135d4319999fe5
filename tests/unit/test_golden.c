/* tests/data/golden.json, made by the JavaScript implementation, against this one: every record,
 * commitment, id, tree, batch, epoch, call, answer and transaction in it. */
#include <jansson.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "chain_client/eth/abi.h"
#include "chain_client/eth/addr.h"
#include "chain_client/batch.h"
#include "chain_client/canon.h"
#include "chain_client/commit.h"
#include "chain_client/eth/eip712.h"
#include "chain_client/ids.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/lr.h"
#include "chain_client/reward.h"
#include "chain_client/tree.h"
#include "chain_client/eth/tx.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "tests/unit/golden_json.h"

static json_t *golden;
static struct secp *ctx;

static int setup(void **state)
{
    json_error_t e;
    golden = json_load_file(RS_TEST_DATA "/golden.json", 0, &e);
    return !golden || secp_create(&ctx, NULL);
}

static int teardown(void **state)
{
    json_decref(golden);
    secp_destroy(ctx);
    return 0;
}

/* ---- records ---- */

static void check_fields(const union record *r, const json_t *fields)
{
    const struct canon_layout *l = canon_layout(r->prefix.type);
    for (size_t i = 0; i < l->field_count; i++) {
        const struct canon_field *f = &l->field[i];
        const json_t *v = get(fields, f->name);
        u128 found = 0;
        if (f->width == 32) {
            expect_hex((const uint8_t *)r + f->member, 32, json_string_value(v));
            continue;
        }
        memcpy(&found, (const char *)r + f->member, f->width);
        assert_true(found == number(v));
    }
}

/* Two vectors use values that no server of ours writes (flags and reason 255). */
static bool is_beyond_our_rules(const union record *r)
{
    return (r->prefix.type == RECORD_VOID && r->voided.reason > 2) ||
           (r->prefix.type == RECORD_INFERENCE && r->inference.params.data[46] > 3);
}

static void check_record(const json_t *v)
{
    uint8_t ledger[20], domain[32], log_domain[32], digest[32], secret[32], out[16384], sig[65];
    size_t len = 0, out_len = 0;
    uint8_t *encoded = blob(text(v, "encoded"), &len);
    struct secp_key key;
    struct tree_node leaf;
    union record r;
    bytes(ledger, 20, get(v, "ledger"));
    bytes(secret, 32, get(v, "key"));
    assert_int_equal(canon_decode_layout(&r, encoded, len, NULL), STATUS_OK);
    check_fields(&r, get(v, "fields"));
    canon_domain(domain, (uint64_t)num(v, "chainId"), ledger);
    assert_int_equal(secp_key_init(ctx, &key, secret, NULL), STATUS_OK);
    assert_int_equal(canon_verify(&r, digest, domain, ctx, key.address, NULL), STATUS_OK);
    expect_hex(digest, 32, text(v, "digest"));
    assert_int_equal(secp_sign(ctx, sig, &key, digest, NULL), STATUS_OK);
    expect_hex(sig, 65, text(v, "signature"));
    tree_log_domain(log_domain, (uint64_t)num(v, "chainId"), ledger);
    struct tree_log_leaf l = {r.prefix.type, r.prefix.lane, r.prefix.seq, digest, 0};
    if (r.prefix.type == RECORD_INFERENCE)
        l.fee = r.inference.fee;
    tree_log_leaf(&leaf, log_domain, &l);
    expect_hex(leaf.hash, 32, text(v, "leaf"));
    assert_true(leaf.sum == num(v, "leafSum"));
    struct errtext err = ERRTEXT_INIT;
    enum status st = canon_encode(out, &out_len, &r, &err);
    if (is_beyond_our_rules(&r)) {
        assert_int_equal(st, STATUS_INVALID);
    } else {
        if (st)
            fail_msg("%s: %s", text(v, "name"), err.text);
        assert_int_equal(out_len, len);
        assert_memory_equal(out, encoded, len);
    }
    mem_free(encoded);
}

static void test_records(void **state)
{
    size_t i;
    json_t *v;
    const json_t *types = get(golden, "types");
    assert_string_equal(text(types, "inference"), canon_layout(1)->type);
    assert_string_equal(text(types, "attribution"), canon_layout(2)->type);
    assert_string_equal(text(types, "void"), canon_layout(3)->type);
    assert_true(json_array_size(get(golden, "records")) >= 10);
    json_array_foreach(get(golden, "records"), i, v) check_record(v);
}

/* ---- commitments and ids ---- */

static size_t read_ids(uint32_t *out, const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        out[i] = (uint32_t)json_integer_value(json_array_get(list, i));
    return json_array_size(list);
}

static void check_stop_and_bias(const json_t *c)
{
    const json_t *strings = get(get(c, "stop"), "strings"),
                 *entries = get(get(c, "bias"), "entries");
    const char *word[8];
    size_t word_len[8];
    uint32_t token[8], ids[8];
    float bias[8];
    uint8_t hash[32];
    for (size_t i = 0; i < json_array_size(strings); i++) {
        word[i] = json_string_value(json_array_get(strings, i));
        word_len[i] = strlen(word[i]);
    }
    struct commit_stop stop = {word, word_len, (uint32_t)json_array_size(strings), token, 0};
    stop.token_count = (uint32_t)read_ids(token, get(get(c, "stop"), "tokenIds"));
    commit_stop_hash(hash, &stop);
    expect_hex(hash, 32, text(get(c, "stop"), "hash"));
    stop.text_count = stop.token_count = 0;
    commit_stop_hash(hash, &stop);
    expect_hex(hash, 32, text(get(c, "stop"), "empty"));
    for (size_t i = 0; i < json_array_size(entries); i++) {
        const json_t *e = json_array_get(entries, i);
        ids[i] = (uint32_t)json_integer_value(json_array_get(e, 0));
        bias[i] = (float)json_number_value(json_array_get(e, 1));
    }
    commit_bias_hash(hash, ids, bias, (uint32_t)json_array_size(entries));
    expect_hex(hash, 32, text(get(c, "bias"), "hash"));
    commit_bias_hash(hash, ids, bias, 0);
    expect_hex(hash, 32, text(get(c, "bias"), "empty"));
}

static void test_commitments(void **state)
{
    const json_t *c = get(golden, "commitments"), *choices = get(c, "choices");
    uint8_t salt[32], payer[20], hash[32];
    uint32_t ids[64];
    struct keccak k;
    size_t len = 0;
    uint8_t *inputs = blob(text(c, "inputs"), &len);
    bytes(salt, 32, get(c, "salt"));
    bytes(payer, 20, get(c, "payer"));
    for (uint32_t i = 0; i < 4; i++) {
        commit_opening(hash, salt, (enum commit_field)(i + 1));
        expect_hex(hash, 32, json_string_value(json_array_get(get(c, "subSalts"), i)));
    }
    commit_app(hash, salt, payer);
    expect_hex(hash, 32, text(c, "appCommit"));
    commit_prompt(hash, salt, ids, read_ids(ids, get(c, "promptIds")));
    expect_hex(hash, 32, text(c, "promptCommit"));
    commit_prompt(hash, salt, ids, 0);
    expect_hex(hash, 32, text(c, "promptCommitEmpty"));
    commit_begin(&k, salt, COMMIT_OUTPUT);
    for (size_t i = 0; i < json_array_size(choices); i++) {
        size_t n = read_ids(ids, json_array_get(choices, i));
        commit_choice(&k, ids, (uint32_t)n);
    }
    commit_end(&k, hash);
    expect_hex(hash, 32, text(c, "outputCommit"));
    commit_begin(&k, salt, COMMIT_INPUTS);
    commit_bytes(&k, inputs, len);
    commit_end(&k, hash);
    expect_hex(hash, 32, text(c, "inputsDigest"));
    check_stop_and_bias(c);
    mem_free(inputs);
}

static void test_composition_ids(void **state)
{
    size_t i;
    json_t *v;
    json_array_foreach(get(get(golden, "identities"), "compositions"), i, v)
    {
        size_t len = 0;
        uint8_t *encoded = blob(text(v, "encoded"), &len), hash[32];
        struct tail_set set;
        assert_int_equal(tail_set_decode(&set, encoded, len, NULL), STATUS_OK);
        ids_composition(hash, &set);
        expect_hex(hash, 32, text(v, "id"));
        keccak_256(hash, encoded, len);
        expect_hex(hash, 32, text(v, "setHash"));
        mem_free(encoded);
    }
    json_array_foreach(get(get(golden, "identities"), "blake"), i, v)
    {
        size_t len = 0;
        uint8_t *input = blob(text(v, "input"), &len), hash[32];
        ids_hash(hash, input, len);
        expect_hex(hash, 32, text(v, "hash"));
        mem_free(input);
    }
}

/* ---- trees ---- */

static void formula_leaf(struct tree_node *out, enum tree_kind kind, const uint8_t dom[32],
                         uint32_t i)
{
    uint8_t word[4], digest[32], account[20] = {0};
    if (kind == TREE_REWARD) {
        be_put(account, i + 1, 8); /* (i + 1) << 96 */
        tree_reward_leaf(out, dom, i, account, (i + 1) * (u128)1000000000000000000u + i);
        return;
    }
    be_put(word, i, 4);
    keccak_256(digest, word, 4);
    struct tree_log_leaf l = {i % 3 == 2 ? 3 : 1, 1 + (i >> 6), (i & 63) + 1, digest,
                              (u128)i * 1000003};
    tree_log_leaf(out, dom, &l);
}

static void check_proof(const struct tree *t, const json_t *v)
{
    struct tree_proof proof;
    const json_t *hashes = get(v, "hashes"), *sums = get(v, "sums");
    uint32_t idx = (uint32_t)num(v, "index");
    tree_prove(t, &proof, idx);
    assert_int_equal(proof.depth, json_array_size(hashes));
    expect_hex(t->level[0][idx].hash, 32, text(v, "leaf"));
    for (uint32_t d = 0; d < proof.depth; d++) {
        expect_hex(proof.sibling[d].hash, 32, json_string_value(json_array_get(hashes, d)));
        assert_true(proof.sibling[d].sum == number(json_array_get(sums, d)));
    }
    struct tree_claim claim = {t->kind, t->count, idx, tree_root(t), &t->level[0][idx]};
    assert_int_equal(tree_verify(&claim, &proof, NULL), STATUS_OK);
}

static void check_tree(const json_t *v, enum tree_kind kind, const uint8_t dom[32])
{
    uint32_t count = (uint32_t)num(v, "count");
    struct tree_node *leaf = mem_array(count, sizeof(*leaf)), root;
    struct tree_builder b;
    struct tree t;
    size_t i;
    json_t *p;
    tree_builder_init(&b, kind, dom);
    for (uint32_t k = 0; k < count; k++) {
        formula_leaf(&leaf[k], kind, dom, k);
        assert_int_equal(tree_builder_push(&b, &leaf[k], NULL), STATUS_OK);
    }
    assert_int_equal(tree_builder_root(&b, &root, NULL), STATUS_OK);
    assert_int_equal(tree_build(&t, kind, dom, leaf, count, NULL), STATUS_OK);
    expect_hex(root.hash, 32, text(v, "root"));
    expect_hex(tree_root(&t)->hash, 32, text(v, "root"));
    assert_true(root.sum == num(v, "sum"));
    assert_int_equal(t.depth, num(v, "depth"));
    json_array_foreach(get(v, "proofs"), i, p) check_proof(&t, p);
    tree_fini(&t);
    mem_free(leaf);
}

static void test_trees(void **state)
{
    static const uint8_t native[20];
    const json_t *t = get(golden, "trees");
    uint8_t log[32], reward[32], ledger[20], vault[20], token[20], hash[32];
    struct tree_node pad;
    size_t i;
    json_t *v;
    bytes(ledger, 20, get(golden, "ledger"));
    bytes(vault, 20, get(golden, "vault"));
    bytes(token, 20, get(golden, "token"));
    tree_log_domain(log, (uint64_t)num(golden, "chainId"), ledger);
    tree_reward_domain(reward, (uint64_t)num(golden, "chainId"), vault, native);
    tree_reward_domain(hash, (uint64_t)num(golden, "chainId"), vault, token);
    expect_hex(log, 32, text(t, "logDomain"));
    expect_hex(reward, 32, text(t, "rewardDomain"));
    expect_hex(hash, 32, text(t, "rewardDomainToken"));
    tree_pad(&pad, TREE_LOG, log);
    expect_hex(pad.hash, 32, text(t, "logPad"));
    tree_pad(&pad, TREE_REWARD, reward);
    expect_hex(pad.hash, 32, text(t, "rewardPad"));
    json_array_foreach(get(t, "log"), i, v) check_tree(v, TREE_LOG, log);
    json_array_foreach(get(t, "reward"), i, v) check_tree(v, TREE_REWARD, reward);
}

/* ---- batches ---- */

static size_t read_batch(struct batch_header *h, struct batch_lane *lane, const json_t *v)
{
    const json_t *j = get(v, "header"), *lanes = get(v, "lanes");
    memset(h, 0, sizeof(*h));
    h->seq = (uint64_t)num(j, "seq");
    h->spec = (uint8_t)num(j, "spec");
    bytes(h->prev_hash, 32, get(j, "prevHash"));
    bytes(h->log_root, 32, get(j, "logRoot"));
    bytes(h->manifest, 32, get(j, "manifest"));
    h->leaf_count = (uint32_t)num(j, "leafCount");
    h->inferences = (uint32_t)num(j, "inferences");
    h->fee_sum = num(j, "feeSum");
    h->cum_fee = num(j, "cumFee");
    h->closed_at = (uint64_t)num(j, "closedAt");
    for (size_t i = 0; i < json_array_size(lanes); i++) {
        const json_t *l = json_array_get(lanes, i);
        lane[i].lane = (uint32_t)num(l, "lane");
        lane[i].first = (uint64_t)num(l, "first");
        lane[i].last = (uint64_t)num(l, "last");
    }
    return json_array_size(lanes);
}

/* Checks hashes and chaining of a list of batches; headers out. */
static void check_batches(const json_t *list, const struct batch_place *place)
{
    struct batch_header h, prev;
    struct batch_lane lane[128];
    uint8_t lanes_hash[32], hash[32], prev_hash[32];
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        size_t n = read_batch(&h, lane, v);
        enum status fits = h.leaf_count > TREE_LEAVES_MAX ? STATUS_INVALID : STATUS_OK;
        assert_int_equal(batch_check(&h, lane, n, NULL), fits);
        assert_int_equal(batch_check_next(&h, i ? &prev : NULL, prev_hash, NULL), STATUS_OK);
        assert_int_equal(batch_lanes_hash(lanes_hash, lane, n, NULL), STATUS_OK);
        expect_hex(lanes_hash, 32, text(v, "lanesHash"));
        batch_hash(hash, place, &h, lanes_hash);
        expect_hex(hash, 32, text(v, "batchHash"));
        prev = h;
        memcpy(prev_hash, hash, 32);
        h.fee_sum++;
        assert_int_equal(batch_check_next(&h, i ? &prev : NULL, prev_hash, NULL), STATUS_INVALID);
    }
}

static void test_batches(void **state)
{
    struct batch_place place = {.chain_id = (uint64_t)num(golden, "chainId")};
    bytes(place.ledger, 20, get(golden, "ledger"));
    check_batches(get(golden, "batches"), &place);
    check_batches(get(get(golden, "world"), "batches"), &place);
}

/* ---- the world: records to epochs ---- */

#define WORLD_RECORDS 256

struct world {
    uint8_t *encoded[WORLD_RECORDS];
    union record record[WORLD_RECORDS];
    uint8_t digest[WORLD_RECORDS][32];
    uint8_t seed[16][32];
    size_t batch_of[WORLD_RECORDS], count;
    struct reward_policy policy;
    struct reward_lane lane[8];
    struct reward_base base[8];
    struct reward_adapter adapter[16];
    struct reward_entry entry[256];
    struct reward_terms terms[64];
    struct reward_tariff tariff[8][4]; /* of each lane */
    struct reward_parent parent[16][REWARD_PARENTS_MAX];
    struct reward_owners owners[8];
    struct datanet_owner owner[64];
    struct reward_method method[8];
    size_t lane_count, base_count, adapter_count, entry_count, terms_count, owners_count,
        owner_count, method_count;
};
static struct world world;

static struct reward_split read_split(const json_t *list)
{
    struct reward_split s = {&world.entry[world.entry_count], json_array_size(list)};
    for (size_t i = 0; i < s.count; i++) {
        struct reward_entry *e = &world.entry[world.entry_count++];
        const json_t *v = json_array_get(list, i);
        bytes(e->payee, 20, get(v, "payee"));
        e->role = (uint8_t)num(v, "role");
        e->bps = (uint16_t)num(v, "bps");
    }
    return s;
}

static struct reward_history read_history(const json_t *list)
{
    struct reward_history h = {&world.terms[world.terms_count], json_array_size(list)};
    for (size_t i = 0; i < h.count; i++) {
        const json_t *v = json_array_get(list, i);
        world.terms[world.terms_count++] =
            (struct reward_terms){(uint64_t)num(v, "activeAt"), (uint64_t)num(v, "datanetVersion"),
                                  num(v, "priceIn"), num(v, "priceOut")};
    }
    return h;
}

static void read_parents(struct reward_adapter *a, const json_t *list)
{
    struct reward_parent *room = world.parent[a - world.adapter];
    a->parent = room;
    for (a->parent_count = 0; a->parent_count < json_array_size(list); a->parent_count++) {
        const json_t *v = json_array_get(list, a->parent_count);
        bytes(room[a->parent_count].adapter_id, 32, get(v, "id"));
        room[a->parent_count].bps = (uint16_t)num(v, "bps");
    }
}

static void read_tariff(const json_t *v)
{
    size_t i = 0;
    while (world.lane[i].lane != num(v, "lane"))
        i++;
    struct reward_tariff *t = &world.tariff[i][world.lane[i].tariff_count++];
    world.lane[i].tariff = world.tariff[i];
    bytes(t->model_id, 32, get(v, "modelId"));
    t->history = read_history(get(v, "terms"));
}

static int by_version(const void *a, const void *b)
{
    const struct reward_owners *x = a, *y = b;
    int order = memcmp(x->datanet_id, y->datanet_id, 32);
    return order ? order : x->version < y->version ? -1 : x->version > y->version;
}

static void read_owners(const json_t *v)
{
    struct reward_owners *o = &world.owners[world.owners_count++];
    size_t i;
    json_t *address;
    bytes(o->datanet_id, 32, get(v, "datanetId"));
    o->version = (uint64_t)num(v, "version");
    o->owner = &world.owner[world.owner_count];
    json_array_foreach(get(v, "owners"), i, address)
        bytes(world.owner[world.owner_count++].owner, 20, address);
    o->count = json_array_size(get(v, "owners"));
}

static int by_id(const void *a, const void *b)
{
    return memcmp(a, b, 32);
}

static void read_state(const json_t *s)
{
    const json_t *p = get(s, "policy");
    size_t i;
    json_t *v;
    world.policy = (struct reward_policy){(uint16_t)num(p, "base"),
                                          (uint16_t)num(p, "adapters"),
                                          (uint16_t)num(p, "operator"),
                                          (uint16_t)num(p, "protocol"),
                                          {0}};
    bytes(world.policy.treasury, 20, get(p, "treasury"));
    json_array_foreach(get(s, "operators"), i, v)
    {
        world.lane[world.lane_count].lane = (uint32_t)num(v, "lane");
        bytes(world.lane[world.lane_count++].account, 20, get(v, "account"));
    }
    json_array_foreach(get(s, "bases"), i, v)
    {
        bytes(world.base[world.base_count].model_id, 32, get(v, "modelId"));
        world.base[world.base_count++].split = read_split(get(v, "entries"));
    }
    json_array_foreach(get(s, "adapters"), i, v)
    {
        struct reward_adapter *a = &world.adapter[world.adapter_count++];
        bytes(a->adapter_id, 32, get(v, "adapterId"));
        bytes(a->datanet_id, 32, get(v, "datanetId"));
        a->split = read_split(get(v, "entries"));
        a->history = read_history(get(v, "terms"));
        read_parents(a, get(v, "parents"));
    }
    json_array_foreach(get(s, "tariffs"), i, v) read_tariff(v);
    json_array_foreach(get(s, "owners"), i, v) read_owners(v);
    json_array_foreach(get(s, "methods"), i, v)
    {
        struct reward_method *m = &world.method[world.method_count++];
        bytes(m->hash, 32, get(v, "hash"));
        m->registered_at = (uint64_t)num(v, "registeredAt");
    }
    for (i = 0; i < world.lane_count; i++)
        qsort(world.tariff[i], world.lane[i].tariff_count, sizeof(**world.tariff), by_id);
    qsort(world.owners, world.owners_count, sizeof(*world.owners), by_version);
    qsort(world.method, world.method_count, sizeof(*world.method), by_id);
    qsort(world.base, world.base_count, sizeof(*world.base), by_id);
    qsort(world.adapter, world.adapter_count, sizeof(*world.adapter), by_id);
}

/* Decode every record, rebuild the log root, and keep the batch's seed. */
static void read_world_batch(const json_t *b, size_t idx, const uint8_t domain[32],
                             const uint8_t log_domain[32])
{
    uint8_t batch[32], mix[32];
    struct tree_builder builder;
    struct tree_node leaf, root;
    size_t i;
    json_t *v;
    tree_builder_init(&builder, TREE_LOG, log_domain);
    json_array_foreach(get(b, "records"), i, v)
    {
        size_t n = world.count++, len = 0;
        assert_true(n < WORLD_RECORDS);
        world.encoded[n] = blob(text(v, "encoded"), &len);
        union record *r = &world.record[n];
        assert_int_equal(canon_decode_layout(r, world.encoded[n], len, NULL), STATUS_OK);
        canon_digest(world.digest[n], r, domain);
        expect_hex(world.digest[n], 32, text(v, "digest"));
        world.batch_of[n] = idx;
        struct tree_log_leaf l = {r->prefix.type, r->prefix.lane, r->prefix.seq, world.digest[n],
                                  r->prefix.type == RECORD_INFERENCE ? r->inference.fee : 0};
        tree_log_leaf(&leaf, log_domain, &l);
        assert_int_equal(tree_builder_push(&builder, &leaf, NULL), STATUS_OK);
    }
    assert_int_equal(tree_builder_root(&builder, &root, NULL), STATUS_OK);
    expect_hex(root.hash, 32, text(get(b, "header"), "logRoot"));
    assert_true(root.sum == num(get(b, "header"), "feeSum"));
    bytes(batch, 32, get(b, "batchHash"));
    bytes(mix, 32, get(b, "mixHash"));
    commit_sample_seed(world.seed[idx], batch, mix);
    expect_hex(world.seed[idx], 32, text(b, "seed"));
}

static int record_order(const void *a, const void *b)
{
    const struct reward_record *x = a, *y = b;
    if (x->lane != y->lane)
        return x->lane < y->lane ? -1 : 1;
    return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static int evidence_order(const void *a, const void *b)
{
    const struct reward_evidence *x = a, *y = b;
    if (x->lane != y->lane)
        return x->lane < y->lane ? -1 : 1;
    return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static void compute_epoch(struct reward_result *out, const json_t *e,
                          const struct reward_result *before)
{
    static struct reward_record record[WORLD_RECORDS];
    static struct reward_evidence evidence[WORLD_RECORDS];
    size_t n = 0, m = 0;
    size_t after = (size_t)num(e, "paidAfter"), paid = (size_t)num(get(e, "header"), "batchPaid");
    size_t seen = (size_t)num(get(e, "header"), "batchEvidence");
    const json_t *batches = get(get(golden, "world"), "batches");
    for (size_t i = 0; i < world.count; i++) {
        size_t b = world.batch_of[i];
        union record *r = &world.record[i];
        if (r->prefix.type == RECORD_INFERENCE && b >= after && b < paid) {
            const json_t *h = get(json_array_get(batches, b), "header");
            reward_record_from(&record[n], &r->inference, world.digest[i],
                               (uint64_t)num(h, "closedAt"));
            record[n].seed = world.seed[b];
            record[n++].rate_ppb = (uint32_t)num(json_array_get(batches, b), "ratePpb");
        }
        if (r->prefix.type == RECORD_ATTRIBUTION && b < seen)
            reward_evidence_from(&evidence[m++], &r->attribution);
    }
    qsort(record, n, sizeof(*record), record_order);
    qsort(evidence, m, sizeof(*evidence), evidence_order);
    struct reward_method known[8]; /* 0 for what was registered after T */
    uint64_t at = (uint64_t)num(get(json_array_get(batches, paid - 1), "header"), "closedAt");
    memcpy(known, world.method, sizeof(known));
    for (size_t i = 0; i < world.method_count; i++)
        known[i].registered_at = known[i].registered_at > at ? 0 : known[i].registered_at;
    struct reward_input in = {.tables = {.policy = &world.policy,
                                         .lane = world.lane,
                                         .lane_count = world.lane_count,
                                         .base = world.base,
                                         .base_count = world.base_count,
                                         .adapter = world.adapter,
                                         .adapter_count = world.adapter_count,
                                         .owners = world.owners,
                                         .owners_count = world.owners_count,
                                         .method = known,
                                         .method_count = world.method_count},
                              .record = record,
                              .record_count = n,
                              .prev = before->account,
                              .prev_count = before->account_count};
    assert_int_equal(reward_judge(record, n, evidence, m, &in.tables, NULL), STATUS_OK);
    struct errtext err = ERRTEXT_INIT;
    if (reward_compute(out, &in, &err))
        fail_msg("%s", err.text);
}

static void check_epoch(const struct reward_result *r, const json_t *e, const uint8_t dom[32])
{
    const json_t *stats = get(e, "stats"), *cumulative = get(e, "cumulative");
    struct tree_node *leaf = mem_array(r->account_count, sizeof(*leaf));
    struct tree t;
    size_t i;
    json_t *v;
    assert_true(r->stats.required == num(stats, "required"));
    assert_true(r->stats.scored == num(stats, "scored"));
    assert_true(r->stats.missing == num(stats, "missing"));
    assert_true(r->stats.fee_required == num(stats, "feeRequired"));
    assert_true(r->stats.fee_missing == num(stats, "feeMissing"));
    assert_true(r->stats.refused == num(stats, "refused"));
    assert_true(r->stats.fee_refused == num(stats, "feeRefused"));
    assert_int_equal(r->account_count, json_array_size(cumulative));
    json_array_foreach(cumulative, i, v)
    {
        expect_hex(r->account[i].payee, 20, text(v, "account"));
        assert_true(r->account[i].cumulative == num(v, "amount"));
        tree_reward_leaf(&leaf[i], dom, (uint32_t)i, r->account[i].payee, r->account[i].cumulative);
    }
    assert_true(r->total == num(get(e, "header"), "total"));
    assert_int_equal(tree_build(&t, TREE_REWARD, dom, leaf, r->account_count, NULL), STATUS_OK);
    expect_hex(tree_root(&t)->hash, 32, text(get(e, "header"), "root"));
    assert_true(tree_root(&t)->sum == r->total);
    json_array_foreach(get(e, "proofs"), i, v) check_proof(&t, v);
    tree_fini(&t);
    mem_free(leaf);
}

static void test_world(void **state)
{
    const json_t *w = get(golden, "world"), *epochs = get(w, "epochs");
    uint8_t ledger[20], vault[20], token[20], domain[32], log_domain[32], dom[32];
    uint64_t chain_id = (uint64_t)num(w, "chainId");
    struct reward_result result[2] = {{0}}, none = {0};
    bytes(ledger, 20, get(w, "ledger"));
    bytes(vault, 20, get(w, "vault"));
    bytes(token, 20, get(w, "token"));
    canon_domain(domain, chain_id, ledger);
    tree_log_domain(log_domain, chain_id, ledger);
    tree_reward_domain(dom, chain_id, vault, token);
    read_state(get(w, "state"));
    for (size_t i = 0; i < json_array_size(get(w, "batches")); i++)
        read_world_batch(json_array_get(get(w, "batches"), i), i, domain, log_domain);
    assert_int_equal(json_array_size(epochs), 2);
    for (size_t i = 0; i < 2; i++) {
        compute_epoch(&result[i], json_array_get(epochs, i), i ? &result[0] : &none);
        check_epoch(&result[i], json_array_get(epochs, i), dom);
    }
    reward_result_fini(&result[0]);
    reward_result_fini(&result[1]);
    for (size_t i = 0; i < world.count; i++)
        mem_free(world.encoded[i]);
}

/* ---- Ethereum ---- */

static void check_transaction(const json_t *v)
{
    uint8_t secret[32], hash[32], sender[20];
    size_t data_len = 0, raw_len = 0;
    uint8_t *data = blob(text(v, "data"), &data_len), *raw = blob(text(v, "raw"), &raw_len);
    const json_t *to = get(v, "to");
    struct secp_key key;
    struct buf out;
    struct tx tx = {.chain_id = (uint64_t)num(v, "chainId"),
                    .nonce = (uint64_t)num(v, "nonce"),
                    .tip_max = num(v, "maxPriorityFeePerGas"),
                    .fee_max = num(v, "maxFeePerGas"),
                    .gas_limit = (uint64_t)num(v, "gasLimit"),
                    .is_create = json_is_null(to),
                    .value = num(v, "value"),
                    .data = data,
                    .data_len = data_len};
    struct tx back;
    if (!tx.is_create)
        bytes(tx.to, 20, to);
    bytes(secret, 32, get(v, "key"));
    assert_int_equal(secp_key_init(ctx, &key, secret, NULL), STATUS_OK);
    buf_init(&out, TX_RAW_BYTES_MAX);
    struct errtext err = ERRTEXT_INIT;
    if (tx_sign(ctx, &out, hash, &tx, &key, &err))
        fail_msg("%s", err.text);
    assert_int_equal(out.len, raw_len);
    assert_memory_equal(out.data, raw, raw_len);
    expect_hex(hash, 32, text(v, "hash"));
    assert_int_equal(tx_decode(ctx, &back, sender, raw, raw_len, NULL), STATUS_OK);
    assert_true(tx_equal(&tx, &back));
    assert_memory_equal(sender, key.address, 20);
    buf_fini(&out);
    mem_free(data);
    mem_free(raw);
}

static void test_ethereum(void **state)
{
    const json_t *e = get(golden, "ethereum");
    size_t i;
    json_t *v;
    json_array_foreach(get(e, "keccak"), i, v)
    {
        size_t len = 0;
        uint8_t *input = blob(text(v, "input"), &len), hash[32];
        keccak_256(hash, input, len);
        expect_hex(hash, 32, text(v, "hash"));
        mem_free(input);
    }
    json_array_foreach(get(e, "eip55"), i, v)
    {
        uint8_t address[20];
        char out[ADDR_TEXT_BYTES];
        assert_int_equal(addr_parse(address, text(v, "address"), NULL), STATUS_OK);
        addr_format(out, address);
        assert_string_equal(out, text(v, "checksummed"));
    }
    json_array_foreach(get(e, "signatures"), i, v)
    {
        uint8_t secret[32], digest[32], sig[65];
        struct secp_key key;
        bytes(secret, 32, get(v, "key"));
        bytes(digest, 32, get(v, "digest"));
        assert_int_equal(secp_key_init(ctx, &key, secret, NULL), STATUS_OK);
        assert_int_equal(secp_sign(ctx, sig, &key, digest, NULL), STATUS_OK);
        expect_hex(sig, 65, text(v, "signature"));
    }
    json_array_foreach(get(e, "transactions"), i, v) check_transaction(v);
}

/* The first four bytes of every call, topic and error; and the whole of commit. */
static void test_selectors(void **state)
{
    const json_t *c = get(get(golden, "ethereum"), "calls");
    uint8_t word[32];
    size_t i, commits = 0;
    json_t *v;
    json_array_foreach(get(c, "calls"), i, v)
    {
        size_t len = 0;
        uint8_t *data = blob(text(v, "data"), &len);
        abi_selector(word, text(v, "function"));
        assert_memory_equal(word, data, 4);
        commits += strncmp(text(v, "function"), "commit(", 7) == 0;
        mem_free(data);
    }
    assert_true(commits >= 1);
    json_array_foreach(get(c, "topics"), i, v)
    {
        abi_topic(word, text(v, "event"));
        expect_hex(word, 32, text(v, "topic"));
    }
    json_array_foreach(get(c, "errors"), i, v)
    {
        abi_selector(word, text(v, "error"));
        expect_hex(word, 4, text(v, "selector"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_records),         cmocka_unit_test(test_commitments),
        cmocka_unit_test(test_composition_ids), cmocka_unit_test(test_trees),
        cmocka_unit_test(test_batches),         cmocka_unit_test(test_world),
        cmocka_unit_test(test_ethereum),        cmocka_unit_test(test_selectors),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
