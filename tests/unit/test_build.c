/* Records made from requests: they decode, the lane's signature verifies, the fee is the formula,
 * and salt and ids open every commitment. */
#include "chain_client/commit.h"
#include "tests/unit/influence_fixture.h"

#include <math.h>

static struct lane lane;
static struct model model;
static struct build_context context;

static int setup(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    if (make_dir(state))
        return -1;
    struct lane_options opt = {.data_dir = test_dir, .lane = 3, .chain_id = 31337};
    memset(opt.ledger, 0x77, 20);
    if (lane_open(&lane, &opt, &err))
        fail_msg("%s", err.text);
    memset(model.id, 0x33, 32);
    context = (struct build_context){.lane = &lane, .model = &model};
    memset(context.engine_id, 0x44, 32);
    return 0;
}

static int teardown(void **state)
{
    lane_close(&lane);
    return drop_dir(state);
}

static void decode(union record *rec, const struct built_record *b)
{
    struct errtext err = ERRTEXT_INIT;
    uint8_t digest[32];
    if (canon_decode(rec, b->bytes, b->len, &err) ||
        canon_verify(rec, digest, lane.domain, lane.secp, lane.key.address, &err))
        fail_msg("%s", err.text);
    assert_memory_equal(digest, b->digest, 32);
}

static void test_inference(void **state)
{
    struct adapter_entry *e[2] = {make_adapter("a", 1, true), make_adapter("b", 2, false)};
    struct request *r = make_request(e, 2, 3, 4);
    uint8_t salt[32], want[32];
    struct built_record b;
    union record rec;
    struct errtext err = ERRTEXT_INIT;
    struct keccak k;
    memset(salt, 8, 32);
    if (build_inference(&b, &context, r, 9, salt, &err))
        fail_msg("%s", err.text);
    decode(&rec, &b);
    const struct record_inference *inf = &rec.inference;
    assert_int_equal(inf->prefix.lane, 3);
    assert_int_equal(inf->prefix.seq, 9);
    assert_memory_equal(inf->request_id, r->id, 32);
    assert_memory_equal(inf->model_id, model.id, 32);
    assert_memory_equal(inf->engine_id, context.engine_id, 32);
    assert_int_equal(inf->tokens_in, 5);
    assert_int_equal(inf->tokens_out, 12);
    /* (5 x (10 + 1000 + 1000) + 12 x (20 + 2000 + 2000)) / 1000 = 58.29 */
    assert_int_equal((uint64_t)inf->fee, 58);
    assert_int_equal((uint64_t)b.fee, 58);
    assert_int_equal(inf->status, RECORD_STATUS_COMPLETE);
    assert_int_equal(inf->end_ms - inf->start_ms, 7);
    keccak_256(want, inf->set.data, inf->set.len);
    assert_memory_equal(inf->adapter_set_hash, want, 32);
    struct tail_set set;
    assert_int_equal(tail_set_decode(&set, inf->set.data, inf->set.len, NULL), STATUS_OK);
    assert_int_equal(set.count, 2);
    assert_int_equal(set.adapter[1].weight, 2 * COMPOSITION_WEIGHT_ONE);
    /* the holder opens every commitment */
    commit_app(want, salt, r->payer);
    assert_memory_equal(inf->app_commit, want, 32);
    commit_prompt(want, salt, (const uint32_t *)r->prompt[0].ids, 5);
    assert_memory_equal(inf->prompt_commit, want, 32);
    commit_begin(&k, salt, COMMIT_OUTPUT);
    for (uint32_t s = 0; s < 3; s++)
        commit_choice(&k, (const uint32_t *)r->seq[s].out_id, 4);
    commit_end(&k, want);
    assert_memory_equal(inf->output_commit, want, 32);
    drop_request(r);
    catalog_release(e[0]);
    catalog_release(e[1]);
}

static struct built_record build(struct request *r, union record *rec)
{
    struct built_record b;
    uint8_t salt[32] = {1};
    struct errtext err = ERRTEXT_INIT;
    if (build_inference(&b, &context, r, 1, salt, &err))
        fail_msg("%s", err.text);
    decode(rec, &b);
    return b;
}

static void test_status(void **state)
{
    struct adapter_entry *e[1] = {make_adapter("a", 1, true)};
    struct request *r = make_request(e, 1, 2, 4);
    union record rec;
    atomic_store(&r->seq[1].finish, FINISH_CANCELLED);
    atomic_store(&r->seq[1].n_out, 1);
    struct built_record b = build(r, &rec);
    assert_int_equal(rec.inference.status, RECORD_STATUS_CLIENT_LEFT);
    assert_int_equal(rec.inference.tokens_out, 5);
    assert_int_equal((uint64_t)b.fee, (5 * 1010 + 5 * 2020) / 1000);
    atomic_store(&r->seq[0].finish, FINISH_ERROR);
    b = build(r, &rec);
    assert_int_equal(rec.inference.status, RECORD_STATUS_FAILED);
    assert_int_equal((uint64_t)b.fee, 0);
    atomic_store(&r->seq[0].n_out, 0);
    atomic_store(&r->seq[1].n_out, 0);
    assert_int_equal(build_record_status(r), 0); /* nothing came out: no record */
    atomic_store(&r->seq[0].finish, FINISH_STOP);
    atomic_store(&r->seq[1].finish, FINISH_STOP);
    assert_int_equal(build_record_status(r), RECORD_STATUS_COMPLETE); /* an empty answer */
    drop_request(r);
    catalog_release(e[0]);
}

/* Parameters: signed zeros, duplicate biases, stops, an unlimited top_k and a base-only set. */
static void test_params(void **state)
{
    struct request *r = make_request(NULL, 0, 1, 2);
    union record rec;
    struct tail_params p;
    r->params.presence = -0.0f;
    r->params.has_seed = true;
    r->params.seed = 99;
    r->params.stop_count = 1;
    r->params.stop = mem_array(1, sizeof(*r->params.stop));
    r->params.stop[0] = (struct request_stop){.text = "END", .len = 3};
    r->params.stop_id_count = 1;
    r->params.stop_id[0] = 7;
    r->params.bias_count = 3;
    r->params.bias = mem_array(3, sizeof(*r->params.bias));
    r->params.bias[0] = (struct sample_bias){.id = 9, .bias = 1};
    r->params.bias[1] = (struct sample_bias){.id = 4, .bias = -2};
    r->params.bias[2] = (struct sample_bias){.id = 9, .bias = 0.5f};
    build(r, &rec);
    assert_int_equal(rec.inference.set.len, 0);
    assert_int_equal(
        tail_params_decode(&p, rec.inference.params.data, rec.inference.params.len, NULL),
        STATUS_OK);
    assert_int_equal(p.top_k, 0);
    assert_false(signbit(p.presence_penalty));
    assert_int_equal(p.flags, TAIL_PARAMS_SEED_GIVEN);
    assert_int_equal(p.seed, 99);
    uint8_t want[32];
    uint32_t ids[2] = {4, 9}, token[1] = {7};
    float bias[2] = {-2, 1.5f};
    const char *text[1] = {"END"};
    size_t len[1] = {3};
    commit_bias_hash(want, ids, bias, 2);
    assert_memory_equal(p.bias_hash, want, 32);
    struct commit_stop stop = {text, len, 1, token, 1};
    commit_stop_hash(want, &stop);
    assert_memory_equal(p.stop_hash, want, 32);
    drop_request(r);
}

/* What cannot be encoded is refused by name. */
static void test_refused(void **state)
{
    struct request *r = make_request(NULL, 0, 1, 2);
    struct built_record b;
    uint8_t salt[32] = {1};
    struct errtext err = ERRTEXT_INIT;
    r->params.temperature = NAN;
    assert_int_equal(build_inference(&b, &context, r, 1, salt, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "temperature"));
    drop_request(r);
}

static void test_attribution(void **state)
{
    struct adapter_entry *e[1] = {make_adapter("a", 1, true)};
    struct request *r = make_request(e, 1, 1, 2);
    struct built_record inf, att;
    union record ri, ra;
    struct errtext err = ERRTEXT_INIT;
    uint8_t salt[32] = {1}, inputs[32] = {5}, index[32] = {6}, want[32];
    assert_int_equal(build_inference(&inf, &context, r, 4, salt, &err), STATUS_OK);
    struct job *j = job_from_request(r, true);
    j->inf_seq = 4;
    memcpy(j->inf_digest, inf.digest, 32);
    int32_t base[2] = {-900, -900};
    struct gain_choice choice = {.n = 2,
                                 .target = j->seq[0].ids,
                                 .set = j->seq[0].set_q8,
                                 .in_prompt = (const uint8_t[2]){0, 0},
                                 .row = {base}};
    struct gain_in in = {.adapter_count = 1, .choice_count = 1, .choice = &choice};
    struct gain_result g;
    in.adapter[0].weight_q16 = j->adapter[0].weight_q16;
    assert_int_equal(gain_compute(&g, &in, &err), STATUS_OK);
    struct build_attribution_args a = {
        .job = j, .seq = 6, .scored = &g, .inputs_digest = inputs, .index_hash = index};
    if (build_attribution(&att, &context, &a, &err))
        fail_msg("%s", err.text);
    decode(&ri, &inf);
    decode(&ra, &att);
    if (canon_check_pair(&ra.attribution, &ri.inference, inf.digest, &err))
        fail_msg("%s", err.text);
    keccak_256(want, GAIN_METHOD, strlen(GAIN_METHOD));
    assert_memory_equal(ra.attribution.method_hash, want, 32);
    assert_memory_equal(ra.attribution.inputs_digest, inputs, 32);
    assert_memory_equal(ra.attribution.index_hash, index, 32);
    /* lost: no tail, same pairing */
    struct build_attribution_args lost = {
        .job = j, .seq = 7, .outcome = RECORD_OUTCOME_INPUTS_LOST};
    assert_int_equal(build_attribution(&att, &context, &lost, &err), STATUS_OK);
    decode(&ra, &att);
    assert_int_equal(ra.attribution.outcome, RECORD_OUTCOME_INPUTS_LOST);
    assert_int_equal(ra.attribution.influence.len, 0);
    assert_int_equal(canon_check_pair(&ra.attribution, &ri.inference, inf.digest, &err), STATUS_OK);
    job_free(j);
    drop_request(r);
    catalog_release(e[0]);
}

/* The same folder gives the same lane; a chain gives another; keys are private. */
static void test_lane(void **state)
{
    struct lane again, unbound;
    struct lane_options opt = {.data_dir = test_dir, .lane = 3, .chain_id = 31337};
    char path[PATH_MAX];
    memset(opt.ledger, 0x77, 20);
    assert_int_equal(lane_open(&again, &opt, NULL), STATUS_OK);
    assert_memory_equal(again.key.address, lane.key.address, 20);
    assert_memory_equal(again.jobs_key, lane.jobs_key, 32);
    assert_memory_equal(again.transport_key, lane.transport_key, 32);
    assert_memory_not_equal(again.jobs_key, lane.transport_key, 32);
    snprintf(path, sizeof(path), "%s/lane.key", lane.dir);
    lane_close(&again);
    struct lane_options bare = {.data_dir = test_dir};
    assert_int_equal(lane_open(&unbound, &bare, NULL), STATUS_OK);
    assert_int_equal(unbound.id, 1);
    assert_false(unbound.bound);
    assert_memory_not_equal(unbound.key.address, lane.key.address, 20);
    assert_memory_not_equal(unbound.domain, lane.domain, 32);
    lane_close(&unbound);
    struct errtext err = ERRTEXT_INIT;
    char cmd[PATH_MAX + 16];
    snprintf(cmd, sizeof(cmd), "chmod 644 %s", path);
    assert_int_equal(system(cmd), 0);
    assert_int_equal(lane_open(&again, &opt, &err), STATUS_DENIED);
    assert_non_null(strstr(err.text, "lane.key"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_inference, setup, teardown),
        cmocka_unit_test_setup_teardown(test_status, setup, teardown),
        cmocka_unit_test_setup_teardown(test_params, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_attribution, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lane, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
