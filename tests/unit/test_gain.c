/* Signal S0 and its shares against values worked out by hand. */
#include "chain_client/commit.h"
#include "tests/unit/influence_fixture.h"

/* A job of `count` adapters and one sequence of 2 tokens, its set row given. */
static struct job *make_job(uint32_t count, bool datanet, const int32_t set[2])
{
    struct adapter_entry *e[3];
    for (uint32_t i = 0; i < 3; i++)
        e[i] = make_adapter("x", (uint8_t)(i + 1), datanet && i != 1);
    struct request *r = make_request(e, count, 1, 2);
    struct job *j = job_from_request(r);
    assert_non_null(j);
    memcpy(j->seq[0].set_q8, set, 2 * sizeof(int32_t));
    for (uint32_t i = 0; i < 3; i++)
        catalog_release(e[i]);
    drop_request(r);
    return j;
}

static void test_one(void **state)
{
    int32_t set[2] = {-256, -512}, base[2] = {-512, -384};
    struct job *j = make_job(1, true, set);
    struct gain_seq seq = {.row = {base}};
    struct gain_result g;
    assert_int_equal(gain_row_count(j), 1);
    gain_compute(&g, j, &seq);
    assert_int_equal(g.solo_q8[0], 256); /* the second token lost: counts 0 */
    assert_int_equal(g.moved_q8, 256 + 128);
    assert_int_equal(g.influence.count, 1);
    assert_int_equal(g.influence.adapter[0].gain, TAIL_E9);
    /* 1, 2 and 3 documents of 6 */
    assert_int_equal(g.influence.adapter[0].share_count, 3);
    assert_int_equal(g.influence.adapter[0].share[0].ppb, 166666667); /* largest remainder */
    assert_int_equal(g.influence.adapter[0].share[1].ppb, 333333333);
    assert_int_equal(g.influence.adapter[0].share[2].ppb, 500000000);
    assert_int_equal(g.influence.adapter[0].share[2].payee[0], 0x30);
    job_free(j);
}

static void test_no_gain(void **state)
{
    int32_t set[2] = {-600, -512}, base[2] = {-512, -384};
    struct job *j = make_job(1, true, set);
    struct gain_seq seq = {.row = {base}};
    struct gain_result g;
    gain_compute(&g, j, &seq);
    assert_int_equal(g.solo_q8[0], 0);
    assert_int_equal(g.moved_q8, 88 + 128);
    assert_int_equal(g.influence.adapter[0].gain, TAIL_E9);
    assert_int_equal(g.influence.adapter[0].share_count, 1);
    assert_int_equal(g.influence.adapter[0].share[0].ppb, TAIL_E9);
    assert_true(sodium_is_zero(g.influence.adapter[0].share[0].payee, 20)); /* TREASURY */
    job_free(j);
}

static void test_dead(void **state)
{
    int32_t set[2] = {-100, -200};
    struct job *j = make_job(1, false, set);
    struct gain_seq seq = {.row = {set}};
    struct gain_result g;
    gain_compute(&g, j, &seq);
    assert_int_equal(g.moved_q8, 0);
    assert_int_equal(g.influence.adapter[0].gain, TAIL_E9);
    assert_int_equal(g.influence.adapter[0].share_count, 0); /* no datanet */
    job_free(j);
}

/* Mixes use each adapter alone; LR in integers, ties to the lower id. */
static void test_mix(void **state)
{
    int32_t set[2] = {-10, -10}, base[2] = {-500, -500};
    int32_t one[2] = {-400, -500}, two[2] = {-300, -500}, three[2] = {-900, -500};
    struct job *j = make_job(3, true, set);
    struct gain_seq seq = {.row = {base, one, two, three}};
    struct gain_result g;
    assert_int_equal(gain_row_count(j), 4);
    gain_compute(&g, j, &seq);
    assert_int_equal(g.solo_q8[0], 100);
    assert_int_equal(g.solo_q8[1], 200);
    assert_int_equal(g.solo_q8[2], 0);
    assert_int_equal(g.influence.adapter[0].gain, 333333333);
    assert_int_equal(g.influence.adapter[1].gain, 666666667);
    assert_int_equal(g.influence.adapter[2].gain, 0);
    assert_int_equal(g.influence.adapter[0].share_count, 3);
    assert_int_equal(g.influence.adapter[1].share_count, 0); /* adapter 2 has no datanet */
    assert_int_equal(g.influence.adapter[2].share_count, 1); /* earned nothing: TREASURY */
    memcpy(two, one, sizeof(two));
    memcpy(three, one, sizeof(three));
    gain_compute(&g, j, &seq);
    assert_int_equal(g.influence.adapter[0].gain, 333333334); /* tie: the lower id */
    assert_int_equal(g.influence.adapter[1].gain, 333333333);
    assert_int_equal(g.influence.adapter[2].gain, 333333333);
    job_free(j);
}

/* Nobody helped: by |weight| (1, -2, 3 of 6). */
static void test_mix_no_gain(void **state)
{
    int32_t set[2] = {-900, -900}, base[2] = {-500, -500};
    struct job *j = make_job(3, true, set);
    struct gain_seq seq = {.row = {base, set, set, set}};
    struct gain_result g;
    j->adapter[1].weight_q16 = -j->adapter[1].weight_q16;
    gain_compute(&g, j, &seq);
    assert_int_equal(g.influence.adapter[0].gain, 166666667);
    assert_int_equal(g.influence.adapter[1].gain, 333333333);
    assert_int_equal(g.influence.adapter[2].gain, 500000000);
    assert_true(sodium_is_zero(g.influence.adapter[0].share[0].payee, 20));
    job_free(j);
}

static void test_empty_output(void **state)
{
    int32_t set[2] = {0};
    struct job *j = make_job(2, true, set);
    struct gain_seq seq = {.row = {NULL, NULL, NULL}};
    struct gain_result g;
    j->seq[0].n_out = 0;
    gain_compute(&g, j, &seq);
    assert_int_equal(g.influence.adapter[0].gain + g.influence.adapter[1].gain, TAIL_E9);
    assert_int_equal(g.influence.adapter[0].gain, 333333333);
    assert_int_equal(g.influence.adapter[0].share_count, 1);
    assert_int_equal(g.influence.adapter[0].share[0].ppb, TAIL_E9);
    job_free(j);
}

/* Contributors whose share rounds to nothing are left out; the rest sums to E9. */
static void test_tiny_share(void **state)
{
    int32_t set[2] = {-1, -1}, base[2] = {-500, -500};
    struct job *j = make_job(1, true, set);
    struct gain_seq seq = {.row = {base}};
    struct gain_result g;
    j->adapter[0].contributor[0].document_count = 0;
    j->adapter[0].contributor[1].document_count = 1;
    j->adapter[0].contributor[2].document_count = 4000000000u;
    gain_compute(&g, j, &seq);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < g.influence.adapter[0].share_count; i++) {
        assert_true(g.influence.adapter[0].share[i].ppb > 0);
        sum += g.influence.adapter[0].share[i].ppb;
    }
    assert_int_equal(sum, TAIL_E9);
    assert_int_equal(g.influence.adapter[0].share_count, 1);
    uint8_t bytes[TAIL_INFLUENCE_BYTES_MAX];
    size_t len;
    assert_int_equal(tail_influence_encode(bytes, &len, &g.influence, NULL), STATUS_OK);
    job_free(j);
}

static void test_digests(void **state)
{
    int32_t set[2] = {-256, 1}, base[2] = {-512, 2};
    struct job *j = make_job(1, true, set);
    struct gain_seq seq = {.row = {base}};
    uint8_t found[32], want[32], s4[32], bytes[16], all[48];
    memset(j->salt, 3, 32);
    gain_inputs_digest(found, j, &seq);
    be_put(bytes, (uint32_t)-256, 4);
    be_put(bytes + 4, 1, 4);
    be_put(bytes + 8, (uint32_t)-512, 4);
    be_put(bytes + 12, 2, 4);
    commit_opening(s4, j->salt, COMMIT_INPUTS);
    memcpy(all, s4, 32);
    memcpy(all + 32, bytes, 16);
    keccak_256(want, all, sizeof(all));
    assert_memory_equal(found, want, 32);
    gain_index_hash(found, j);
    keccak_256(want, j->adapter[0].datanet_root, 32);
    assert_memory_equal(found, want, 32);
    memset(j->adapter[0].datanet_root, 0, 32);
    gain_index_hash(found, j);
    assert_true(sodium_is_zero(found, 32));
    job_free(j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one),         cmocka_unit_test(test_no_gain),
        cmocka_unit_test(test_dead),        cmocka_unit_test(test_mix),
        cmocka_unit_test(test_mix_no_gain), cmocka_unit_test(test_empty_output),
        cmocka_unit_test(test_tiny_share),  cmocka_unit_test(test_digests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
