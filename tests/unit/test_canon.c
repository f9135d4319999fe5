/* Records: the table against tests/data/fields.json, round trips, every truncation and every
 * flipped bit, each rule by name, commitments, fee and the draw. */
#include "chain_client/canon.h"

#include <jansson.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "chain_client/commit.h"
#include "chain_client/fee.h"
#include "chain_client/ids.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/mem.h"

static struct secp *ctx;
static struct secp_key lane_key;
static uint8_t domain[32];
static const uint8_t ledger[20] = {0x5f, 0xbd, 0xb2};

struct sample {
    uint8_t set[TAIL_SET_BYTES_MAX], tariff[TAIL_TARIFF_BYTES_MAX], params[TAIL_PARAMS_BYTES];
    uint8_t influence[TAIL_INFLUENCE_BYTES_MAX];
    union record inf, att, voided;
    uint8_t digest[3][32];
};
static struct sample sample;

static void fill(uint8_t *out, size_t len, uint8_t v)
{
    memset(out, v, len);
}

static void make_inference(struct sample *s)
{
    struct tail_set set = {.count = 2};
    struct tail_tariff tariff = {.price = {{1000, 3000}, {((u128)1 << 80) - 1, 7}, {11, 13}},
                                 .count = 3};
    struct tail_params params = {.n = 1, .max_tokens = 64, .temperature = 0.7f, .seed = 42};
    struct record_inference *r = &s->inf.inference;
    fill(set.adapter[0].id, 32, 0x11);
    fill(set.adapter[1].id, 32, 0x22);
    set.adapter[0].weight = 65536;
    set.adapter[1].weight = -32768;
    *r = (struct record_inference){.prefix = {1, RECORD_INFERENCE, 7, 41},
                                   .tokens_in = 123,
                                   .tokens_out = 45,
                                   .start_ms = 1800000000000,
                                   .end_ms = 1800000000950,
                                   .status = RECORD_STATUS_COMPLETE};
    fill(r->request_id, 32, 1);
    fill(r->app_commit, 32, 2);
    fill(r->model_id, 32, 3);
    fill(r->engine_id, 32, 4);
    fill(r->prompt_commit, 32, 5);
    fill(r->output_commit, 32, 6);
    assert_int_equal(tail_set_encode(s->set, &r->set.len, &set, NULL), STATUS_OK);
    assert_int_equal(tail_tariff_encode(s->tariff, &r->tariff.len, &tariff, NULL), STATUS_OK);
    assert_int_equal(tail_params_encode(s->params, &params, NULL), STATUS_OK);
    r->params.len = TAIL_PARAMS_BYTES;
    r->set.data = s->set;
    r->tariff.data = s->tariff;
    r->params.data = s->params;
    r->fee = fee_of(&tariff, r->tokens_in, r->tokens_out);
}

static void make_attribution(struct sample *s)
{
    static struct tail_influence influence;
    struct record_attribution *r = &s->att.attribution;
    influence.count = 2;
    influence.adapter[0] = (struct tail_credit){.gain = 700000001, .share_count = 2};
    influence.adapter[0].share[0].ppb = 1;
    influence.adapter[0].share[1].ppb = TAIL_E9 - 1;
    influence.adapter[0].share[1].payee[19] = 1;
    influence.adapter[1] = (struct tail_credit){.gain = 299999999};
    *r = (struct record_attribution){
        .prefix = {1, RECORD_ATTRIBUTION, 7, 42}, .inf_seq = 41, .influence.data = s->influence};
    memcpy(r->inf_digest, s->digest[0], 32);
    assert_int_equal(tail_influence_encode(s->influence, &r->influence.len, &influence, NULL),
                     STATUS_OK);
}

static void finish(union record *r, uint8_t digest[32])
{
    canon_fill_hashes(r);
    assert_int_equal(canon_sign(r, digest, domain, ctx, &lane_key, NULL), STATUS_OK);
}

static int setup(void **state)
{
    uint8_t secret[32] = {9};
    canon_domain(domain, 31337, ledger);
    if (secp_create(&ctx, NULL) || secp_key_init(ctx, &lane_key, secret, NULL))
        return 1;
    make_inference(&sample);
    finish(&sample.inf, sample.digest[0]);
    make_attribution(&sample);
    finish(&sample.att, sample.digest[1]);
    sample.voided.voided =
        (struct record_void){.prefix = {1, RECORD_VOID, 7, 43}, .reason = RECORD_VOID_LOST};
    finish(&sample.voided, sample.digest[2]);
    return 0;
}

static int teardown(void **state)
{
    secp_destroy(ctx);
    return 0;
}

static void check_layout(const json_t *table, const char *name, uint8_t type)
{
    const struct canon_layout *l = canon_layout(type);
    const json_t *t = json_object_get(table, name), *fields = json_object_get(t, "fields");
    const json_t *tails = json_object_get(t, "tails");
    size_t at = 0;
    assert_int_equal(json_integer_value(json_object_get(t, "fixed_bytes")), l->fixed_bytes);
    assert_string_equal(json_string_value(json_object_get(t, "eip712")), l->type);
    assert_int_equal(json_array_size(fields), l->field_count);
    for (size_t i = 0; i < l->field_count; i++) {
        const json_t *f = json_array_get(fields, i);
        assert_string_equal(json_string_value(json_object_get(f, "name")), l->field[i].name);
        assert_int_equal(json_integer_value(json_object_get(f, "offset")), l->field[i].offset);
        assert_int_equal(json_integer_value(json_object_get(f, "width")), l->field[i].width);
        assert_int_equal(l->field[i].offset, at);
        at += l->field[i].width;
    }
    assert_int_equal(at, l->fixed_bytes);
    assert_int_equal(json_array_size(tails), l->tail_count);
    for (size_t i = 0; i < l->tail_count; i++)
        assert_string_equal(json_string_value(json_object_get(json_array_get(tails, i), "name")),
                            l->tail[i].name);
}

static void test_table_equals_fields_json(void **state)
{
    json_error_t e;
    json_t *table = json_load_file(RS_TEST_DATA "/fields.json", 0, &e);
    assert_non_null(table);
    check_layout(table, "inference", RECORD_INFERENCE);
    check_layout(table, "attribution", RECORD_ATTRIBUTION);
    check_layout(table, "void", RECORD_VOID);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(table, "params"), "fixed_bytes")),
        TAIL_PARAMS_BYTES);
    json_decref(table);
    assert_null(canon_layout(0));
    assert_null(canon_layout(4));
}

static void check_round_trip(const union record *r, const uint8_t digest[32])
{
    uint8_t bytes[CANON_RECORD_BYTES_MAX], again[CANON_RECORD_BYTES_MAX], found[32];
    size_t len = 0, len2 = 0;
    union record back;
    assert_int_equal(canon_encode(bytes, &len, r, NULL), STATUS_OK);
    assert_int_equal(canon_decode(&back, bytes, len, NULL), STATUS_OK);
    assert_int_equal(canon_encode(again, &len2, &back, NULL), STATUS_OK);
    assert_int_equal(len, len2);
    assert_memory_equal(bytes, again, len);
    assert_int_equal(canon_verify(&back, found, domain, ctx, lane_key.address, NULL), STATUS_OK);
    assert_memory_equal(found, digest, 32);
    for (size_t cut = 0; cut < len; cut++) { /* in a block of its own: over-reads are seen */
        struct errtext err = ERRTEXT_INIT;
        uint8_t *part = mem_alloc(cut ? cut : 1);
        memcpy(part, bytes, cut);
        assert_int_equal(canon_decode(&back, part, cut, &err), STATUS_INVALID);
        assert_true(err.text[0] && err.param[0]);
        mem_free(part);
    }
    uint8_t *longer = mem_alloc(len + 1);
    memcpy(longer, bytes, len);
    assert_int_equal(canon_decode(&back, longer, len + 1, NULL), STATUS_INVALID);
    mem_free(longer);
}

static void test_round_trip_and_truncation(void **state)
{
    check_round_trip(&sample.inf, sample.digest[0]);
    check_round_trip(&sample.att, sample.digest[1]);
    check_round_trip(&sample.voided, sample.digest[2]);
}

/* One flipped bit anywhere: refused, or another key seems to have signed. */
static void check_flips(const union record *r)
{
    uint8_t bytes[CANON_RECORD_BYTES_MAX], digest[32];
    size_t len = 0;
    union record back;
    assert_int_equal(canon_encode(bytes, &len, r, NULL), STATUS_OK);
    for (size_t i = 0; i < len; i++) {
        bytes[i] ^= (uint8_t)(1u << i % 8);
        enum status st = canon_decode(&back, bytes, len, NULL);
        if (!st)
            st = canon_verify(&back, digest, domain, ctx, lane_key.address, NULL);
        assert_int_not_equal(st, STATUS_OK);
        bytes[i] ^= (uint8_t)(1u << i % 8);
    }
}

static void test_every_byte_is_bound(void **state)
{
    check_flips(&sample.inf);
    check_flips(&sample.att);
    check_flips(&sample.voided);
}

static void expect_refusal(union record r, const char *param)
{
    struct errtext err = ERRTEXT_INIT;
    assert_int_equal(canon_check(&r, &err), STATUS_INVALID);
    assert_string_equal(err.param, param);
}

#define REFUSE(which, statement, param)                                                            \
    do {                                                                                           \
        union record r = sample.which;                                                             \
        statement;                                                                                 \
        expect_refusal(r, param);                                                                  \
    } while (0)

static void test_each_rule_names_its_field(void **state)
{
    REFUSE(inf, r.prefix.spec = 2, "spec");
    REFUSE(inf, r.prefix.type = 0, "type");
    REFUSE(inf, r.prefix.seq = 0, "seq");
    REFUSE(inf, r.inference.fee++, "fee");
    REFUSE(inf, r.inference.tokens_out++, "fee");
    REFUSE(inf, r.inference.status = 0, "status");
    REFUSE(inf, r.inference.status = 4, "status");
    REFUSE(inf, r.inference.status = RECORD_STATUS_FAILED, "fee");
    REFUSE(inf, r.inference.end_ms = 0, "endMs");
    REFUSE(inf, r.inference.adapter_set_hash[0] ^= 1, "set");
    REFUSE(inf, r.inference.tariff.len -= 32; canon_fill_hashes(&r), "tariff");
    REFUSE(inf, r.inference.set.len -= 36; canon_fill_hashes(&r), "tariff");
    REFUSE(inf, r.inference.params.len--; canon_fill_hashes(&r), "params");
    REFUSE(att, r.attribution.inf_seq = 42, "infSeq");
    REFUSE(att, r.attribution.inf_seq = 0, "infSeq");
    REFUSE(att, r.attribution.outcome = 5, "outcome");
    REFUSE(att, r.attribution.outcome = 1, "influence");
    REFUSE(att, r.attribution.influence.len = 0; canon_fill_hashes(&r), "influence");
    REFUSE(voided, r.voided.reason = 0, "reason");
    REFUSE(voided, r.voided.reason = 3, "reason");
    union record free_of_charge = sample.inf;
    free_of_charge.inference.status = RECORD_STATUS_FAILED;
    free_of_charge.inference.fee = 0;
    assert_int_equal(canon_check(&free_of_charge, NULL), STATUS_OK);
}

static void test_layout_alone_reads_what_breaks_a_rule(void **state)
{
    uint8_t bytes[CANON_RECORD_BYTES_MAX];
    size_t len = 0;
    union record back;
    assert_int_equal(canon_encode(bytes, &len, &sample.inf, NULL), STATUS_OK);
    bytes[165] ^= 1; /* fee */
    assert_int_equal(canon_decode_layout(&back, bytes, len, NULL), STATUS_OK);
    assert_int_equal(canon_decode(&back, bytes, len, NULL), STATUS_INVALID);
}

static void test_pairing(void **state)
{
    const struct record_inference *inf = &sample.inf.inference;
    struct record_attribution att = sample.att.attribution;
    struct errtext err = ERRTEXT_INIT;
    assert_int_equal(canon_check_pair(&att, inf, sample.digest[0], NULL), STATUS_OK);
    assert_int_equal(canon_check_pair(&att, inf, sample.digest[1], &err), STATUS_INVALID);
    assert_string_equal(err.param, "infDigest");
    att.prefix.lane++;
    assert_int_equal(canon_check_pair(&att, inf, sample.digest[0], NULL), STATUS_INVALID);
    att = sample.att.attribution;
    struct record_inference alone = *inf;
    alone.set.len = 36;
    assert_int_equal(canon_check_pair(&att, &alone, sample.digest[0], NULL), STATUS_INVALID);
    att.outcome = RECORD_OUTCOME_INPUTS_LOST;
    assert_int_equal(canon_check_pair(&att, &alone, sample.digest[0], NULL), STATUS_OK);
}

static void test_tails_refuse_what_is_not_canonical(void **state)
{
    static struct tail_influence influence;
    struct tail_set set;
    struct tail_params params;
    uint8_t bytes[TAIL_INFLUENCE_BYTES_MAX];
    size_t len = sample.inf.inference.set.len;
    memcpy(bytes, sample.set + 36, 36);
    memcpy(bytes + 36, sample.set, 36);
    assert_int_equal(tail_set_decode(&set, bytes, len, NULL), STATUS_INVALID); /* order */
    memcpy(bytes, sample.set, 36);
    assert_int_equal(tail_set_decode(&set, bytes, len, NULL), STATUS_INVALID); /* repeat */
    memcpy(bytes, sample.set, len);
    memset(bytes + 32, 0, 4);
    assert_int_equal(tail_set_decode(&set, bytes, len, NULL), STATUS_INVALID); /* weight 0 */
    assert_int_equal(tail_set_decode(&set, bytes, 0, NULL), STATUS_OK);
    assert_int_equal(set.count, 0);
    memcpy(bytes, sample.params, TAIL_PARAMS_BYTES);
    bytes[10] = 0x7f; /* temperature: NaN */
    bytes[11] = 0xc0;
    assert_int_equal(tail_params_decode(&params, bytes, TAIL_PARAMS_BYTES, NULL), STATUS_INVALID);
    memcpy(bytes, sample.params, TAIL_PARAMS_BYTES);
    bytes[22] = 0x80; /* minP: -0 */
    assert_int_equal(tail_params_decode(&params, bytes, TAIL_PARAMS_BYTES, NULL), STATUS_INVALID);
    bytes[22] = 0;
    bytes[46] = 4; /* flags */
    assert_int_equal(tail_params_decode(&params, bytes, TAIL_PARAMS_BYTES, NULL), STATUS_INVALID);
    len = sample.att.attribution.influence.len;
    for (size_t i = 0; i < len; i++) { /* every changed byte breaks a sum, an order or a count */
        memcpy(bytes, sample.influence, len);
        bytes[i] ^= 0x40;
        bool in_payee = (i >= 5 && i < 25) || (i >= 29 && i < 49);
        if (!in_payee)
            assert_int_equal(tail_influence_decode(&influence, bytes, len, NULL), STATUS_INVALID);
    }
}

static void test_empty_set_and_digest_of_unbound_lane(void **state)
{
    static const uint8_t none[20];
    struct sample base = sample;
    uint8_t unbound[32], digest[32];
    base.inf.inference.set.len = 0;
    base.inf.inference.tariff.len = 32;
    base.inf.inference.fee = (123 * 1000 + 45 * 3000) / 1000;
    finish(&base.inf, digest);
    check_round_trip(&base.inf, digest);
    canon_domain(unbound, 0, none);
    canon_digest(digest, &sample.inf, unbound);
    assert_memory_not_equal(digest, sample.digest[0], 32);
}

static void test_commitments(void **state)
{
    const uint32_t ids[3] = {1, 0x01020304, 70000};
    uint8_t salt[32], s2[32], bytes[64], expected[32], found[32];
    struct keccak k;
    fill(salt, 32, 0xab);
    memcpy(bytes, salt, 32);
    bytes[32] = 2;
    keccak_256(s2, bytes, 33);
    commit_opening(found, salt, COMMIT_PROMPT);
    assert_memory_equal(found, s2, 32);
    memcpy(bytes, s2, 32);
    for (size_t i = 0; i < 3; i++)
        be_put(bytes + 32 + 4 * i, ids[i], 4);
    keccak_256(expected, bytes, 44);
    commit_prompt(found, salt, ids, 3);
    assert_memory_equal(found, expected, 32);
    commit_begin_opened(&k, s2);
    commit_ids(&k, ids, 1);
    commit_ids(&k, ids + 1, 2);
    commit_end(&k, found);
    assert_memory_equal(found, expected, 32);
}

static void test_fee_is_rounded_once_and_never_overflows(void **state)
{
    struct tail_tariff t = {.price = {{999, 0}, {0, 1}}, .count = 2};
    assert_true(fee_of(&t, 1, 0) == 0);
    assert_true(fee_of(&t, 1, 1) == 1);
    t.count = 9;
    for (size_t i = 0; i < 9; i++)
        t.price[i].in = t.price[i].out = ((u128)1 << 80) - 1;
    u128 sum = 9 * (((u128)1 << 80) - 1);
    assert_true(fee_of(&t, UINT32_MAX, UINT32_MAX) == 2 * (sum * UINT32_MAX) / 1000);
}

static void test_draw(void **state)
{
    uint8_t seed[32], batch[32] = {1}, mix[32] = {2};
    struct commit_sample s = {.fee = 1, .adapter_count = 1, .has_datanet = true, .lane = 3};
    uint32_t drawn = 0;
    commit_sample_seed(seed, batch, mix);
    assert_true(commit_is_required(&s, NULL, TAIL_E9));
    for (s.seq = 1; s.seq <= 10000; s.seq++) {
        drawn += commit_is_required(&s, seed, TAIL_E9 / 4);
        assert_false(commit_is_required(&s, seed, 0));
    }
    assert_in_range(drawn, 2300, 2700); /* mean 2500, five standard deviations are 217 */
    s.has_datanet = false;
    assert_false(commit_is_required(&s, NULL, TAIL_E9));
    s.adapter_count = 2;
    assert_true(commit_is_required(&s, NULL, TAIL_E9));
    s.fee = 0;
    assert_false(commit_is_required(&s, NULL, TAIL_E9));
    s.fee = 1;
    s.adapter_count = 0;
    s.has_datanet = true;
    assert_false(commit_is_required(&s, NULL, TAIL_E9));
}

static void test_composition_id_depends_on_weight(void **state)
{
    struct tail_set set;
    uint8_t a[32], b[32], empty[32];
    assert_int_equal(tail_set_decode(&set, sample.set, 72, NULL), STATUS_OK);
    ids_composition(a, &set);
    set.adapter[1].weight++;
    ids_composition(b, &set);
    assert_memory_not_equal(a, b, 32);
    set.count = 0;
    ids_composition(empty, &set);
    ids_hash(b, "residual.set.1", 14);
    assert_memory_equal(empty, b, 32);
}

/* Against Python's hashlib: H("residual.engine.1", texts with u32 lengths, a byte). */
static void test_engine_id(void **state)
{
    struct ids_engine_parts parts = {.backend = "cpu",
                                     .dtype = "bf16",
                                     .deterministic = true,
                                     .kernel_version = "cpu 1 avx2",
                                     .unicode = "pcre2 14.0.0 utf8proc 15.0.0"};
    uint8_t id[32], older[32], want[32];
    (void)state;
    ids_engine(id, &parts);
    assert_true(
        hex_decode(want, 32, "b6ce223e708206e4790ce103ff84f78282f052978e362edcb5db9ad60cecf8e6"));
    assert_memory_equal(id, want, 32);
    parts.unicode = "pcre2 13.0.0 utf8proc 15.0.0";
    ids_engine(older, &parts);
    assert_memory_not_equal(id, older, 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_equals_fields_json),
        cmocka_unit_test(test_round_trip_and_truncation),
        cmocka_unit_test(test_every_byte_is_bound),
        cmocka_unit_test(test_each_rule_names_its_field),
        cmocka_unit_test(test_layout_alone_reads_what_breaks_a_rule),
        cmocka_unit_test(test_pairing),
        cmocka_unit_test(test_tails_refuse_what_is_not_canonical),
        cmocka_unit_test(test_empty_set_and_digest_of_unbound_lane),
        cmocka_unit_test(test_commitments),
        cmocka_unit_test(test_fee_is_rounded_once_and_never_overflows),
        cmocka_unit_test(test_draw),
        cmocka_unit_test(test_composition_id_depends_on_weight),
        cmocka_unit_test(test_engine_id),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
