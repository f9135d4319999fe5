/* Keys, hidden states and shared pages: a key of decoding has the bits of the one that scoring
 * finds, whatever the batch, the chunks, the preemptions, the threads; a scoring row that takes a
 * prefix from the cache has the bits of one that does not; budgets are answers. */
#include "tests/unit/engine_world.h"

#define N_OUT 40
#define D     (w->model.config.d_model)

static void count_done(struct score_job *j, void *arg)
{
    (*(uint32_t *)arg)++;
}

struct scored { /* one job and what it found */
    struct score_job job;
    int32_t ids[256];
    float logprob[256];
    int8_t key[256][SKETCH_DIM];
    uint32_t done;
};

/* What r answered, under its own adapter or the base. */
static void scored_init(struct scored *c, struct world *w, const struct request *r, bool base)
{
    uint32_t n_prompt = r->prompt[0].n_ids, n_out = world_out_count(r, 0);
    struct request *of_base = world_request(w, 1, 1, 1, 1, WORLD_BASE);
    memset(c, 0, sizeof(*c));
    memcpy(c->ids, r->prompt[0].ids, n_prompt * sizeof(int32_t));
    memcpy(c->ids + n_prompt, r->seq[0].out_id, n_out * sizeof(int32_t));
    c->job = (struct score_job){.ids = c->ids,
                                .n_ids = n_prompt + n_out,
                                .n_prompt = n_prompt,
                                .logprob = c->logprob,
                                .on_done = count_done,
                                .on_done_arg = &c->done};
    c->job.comp = base ? of_base->comp : r->comp;
    request_release(of_base);
    request_release(of_base);
    if (base)
        return;
    memcpy(c->job.entry, r->entry, sizeof(c->job.entry));
}

static void scored_run(struct world *w, struct scored *c)
{
    c->done = 0;
    assert_int_equal(engine_submit_score(w->engine, &c->job), STATUS_OK);
    world_run(w);
    assert_int_equal(c->done, 1);
    assert_int_equal(c->job.status, STATUS_OK);
}

/* ---- decoding and scoring agree ---- */

/* n requests of two adapters and the base, each with keys of one of two bases. */
static void check_keys(const struct world_options *opt, uint32_t n)
{
    struct world world, *w = &world;
    struct request *r[64];
    struct engine_basis *basis[2];
    struct engine_stats stats;
    world_open(w, opt);
    basis[0] = world_basis(w, 5);
    basis[1] = world_basis(w, 6);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t adapter = i % 3 == 0 ? i % 6 + 1 : i % 3 == 1 ? 2 : WORLD_BASE;
        r[i] = world_request(w, 100 + i, 10 + i % 40, N_OUT, 1, adapter);
        r[i]->params.ignore_eos = true;
        r[i]->params.temperature = 0.8f;
        if (i % 5 != 4) /* some have none */
            assert_true(request_want_keys(r[i], basis[i % 2]));
        world_submit(w, r[i]);
    }
    world_run(w);
    engine_get_stats(w->engine, &stats);
    assert_true(opt->kv_pages > 100 || stats.preemptions > 0);
    for (uint32_t i = 0; i < n; i += 1 + n / 12) {
        struct scored c;
        scored_init(&c, w, r[i], false);
        assert_int_equal(world_out_count(r[i], 0), N_OUT);
        c.job.basis = basis[i % 2];
        c.job.key = c.key[0];
        scored_run(w, &c);
        assert_memory_equal(c.logprob, r[i]->seq[0].out_logprob, N_OUT * sizeof(float));
        if (i % 5 != 4)
            assert_memory_equal(c.key, r[i]->seq[0].out_key, N_OUT * SKETCH_DIM);
        assert_memory_not_equal(c.key[0], c.key[1], SKETCH_DIM);
    }
    engine_basis_release(basis[0]);
    engine_basis_release(basis[1]);
    world_release_all(r, n);
    world_close(w);
}

static void test_keys_of_decoding_are_those_of_scoring(void **state)
{
    static const uint32_t batch[] = {1, 8, 64};
    for (uint32_t threads = 1; threads <= 2; threads++) {
        struct world_options opt = world_default;
        opt.backend = "cpu";
        opt.dtype = threads == 1 ? DTYPE_BF16 : DTYPE_F32;
        opt.thread_count = threads;
        opt.seqs_max = 64;
        opt.kv_pages = 600;
        opt.keys_bytes_max = 64 * N_OUT * SKETCH_DIM;
        for (uint32_t i = 0; i < ARRAY_COUNT(batch); i++)
            check_keys(&opt, batch[i]);
        opt.seqs_max = 16;
        opt.rows_max = 17; /* chunks */
        opt.score_rows_max = 5;
        check_keys(&opt, 20);
        opt.kv_pages = 16; /* preempted again and again */
        check_keys(&opt, 20);
        opt.late = true;
        check_keys(&opt, 20);
    }
}

/* ---- hidden states ---- */

static void test_hidden_states_have_these_keys(void **state)
{
    static const char *const backend[] = {"ref", "cpu"};
    for (uint32_t b = 0; b < ARRAY_COUNT(backend); b++) {
        struct world_options opt = world_default;
        struct world world, *w = &world;
        struct scored c;
        opt.backend = backend[b];
        opt.rows_max = 16;
        opt.score_rows_max = 7;
        world_open(w, &opt);
        struct engine_basis *basis = world_basis(w, 5);
        struct request *r = world_request(w, 9, 30, N_OUT, 1, 3);
        r->params.ignore_eos = true;
        world_submit(w, r);
        world_run(w);
        scored_init(&c, w, r, false);
        uint32_t n = c.job.n_ids - 1;
        float *hidden = mem_array((size_t)n * D, sizeof(*hidden));
        int8_t *want = mem_array(n, SKETCH_DIM);
        c.job.n_prompt = 1; /* every token */
        c.job.basis = basis;
        c.job.key = c.key[0];
        c.job.hidden = hidden;
        scored_run(w, &c);
        assert_memory_equal(c.logprob + 29, r->seq[0].out_logprob, N_OUT * sizeof(float));
        struct sketch_seg seg = {0, n, basis_view(basis)};
        struct sketch_args a = {want, hidden, &seg, 1, D};
        assert_int_equal(w->backend->ops->sketch(w->backend, &a), STATUS_OK);
        assert_memory_equal(want, c.key, (size_t)n * SKETCH_DIM);
        mem_free(want);
        mem_free(hidden);
        engine_basis_release(basis);
        request_release(r);
        world_close(w);
    }
}

/* ---- budgets ---- */

static void test_bases_and_keys_are_bounded(void **state)
{
    struct world_options opt = world_default;
    struct world w;
    struct engine_basis *basis[5];
    struct errtext err = ERRTEXT_INIT;
    uint16_t m[SKETCH_DIM * 512] = {0};
    float bias[SKETCH_DIM] = {0};
    opt.keys_bytes_max = 3 * 10 * SKETCH_DIM;
    world_open(&w, &opt);
    assert_true(w.model.config.d_model <= 512);
    for (uint32_t i = 0; i < 4; i++)
        basis[i] = world_basis(&w, i);
    assert_int_equal(engine_basis_create(w.engine, &basis[4], m, bias, &err), STATUS_FULL);
    assert_non_null(strstr(err.text, "basis_bytes_max"));
    engine_basis_ref(basis[2]);
    engine_basis_release(basis[2]);
    assert_int_equal(engine_basis_create(w.engine, &basis[4], m, bias, &err), STATUS_FULL);
    engine_basis_release(basis[2]);
    basis[2] = world_basis(&w, 9);
    struct request *one = world_request(&w, 1, 5, 10, 1, WORLD_BASE);
    struct request *two = world_request(&w, 2, 5, 10, 2, WORLD_BASE);
    struct request *three = world_request(&w, 3, 5, 10, 1, WORLD_BASE);
    assert_true(request_want_keys(two, basis[0]));
    assert_true(request_want_keys(one, basis[2]));
    assert_false(request_want_keys(three, basis[0]));
    assert_null(three->basis);
    assert_null(three->seq[0].out_key);
    request_release(one);
    request_release(one);
    assert_true(request_want_keys(three, basis[1]));
    for (uint32_t i = 0; i < 4; i++)
        engine_basis_release(basis[i]);
    basis[4] = world_basis(&w, 7); /* 2 is free, 0 and 1 are in use by requests */
    basis[3] = world_basis(&w, 8);
    assert_int_equal(engine_basis_create(w.engine, &basis[0], m, bias, &err), STATUS_FULL);
    engine_basis_release(basis[3]);
    engine_basis_release(basis[4]);
    world_submit(&w, two);
    world_submit(&w, three);
    world_run(&w);
    world_release_all((struct request *[]){two, three}, 2);
    world_close(&w);
}

/* ---- shared pages ---- */

static uint64_t shared_tokens(struct world *w)
{
    struct engine_stats stats;
    engine_get_stats(w->engine, &stats);
    return stats.score_shared_tokens;
}

static void test_scoring_shares_pages_and_changes_no_bit(void **state)
{
    struct world_options opt = world_default;
    struct world world, *w = &world;
    struct scored plain, first, again, salted;
    opt.backend = "cpu";
    opt.dtype = DTYPE_BF16;
    world_open(w, &opt);
    struct engine_basis *basis = world_basis(w, 5);
    struct request *r = world_request(w, 9, 70, N_OUT, 1, 3);
    r->params.ignore_eos = true;
    world_submit(w, r);
    world_run(w);
    struct scored *all[] = {&plain, &first, &again, &salted};
    for (uint32_t i = 0; i < 4; i++) {
        scored_init(all[i], w, r, true);
        all[i]->job.basis = basis;
        all[i]->job.key = all[i]->key[0];
        all[i]->job.share_pages = i > 0;
        all[i]->job.cache_salt[0] = i == 3;
        scored_run(w, all[i]);
        assert_memory_equal(all[i]->logprob, plain.logprob, N_OUT * sizeof(float));
        assert_memory_equal(all[i]->key, plain.key, N_OUT * SKETCH_DIM);
        /* of 70 tokens 69 come before the first row that counts */
        assert_int_equal(shared_tokens(w), i < 2 ? 0 : 64);
    }
    /* a request to the base finds what scoring has left, outputs included */
    struct request *base = world_request(w, 9, 70 + N_OUT, 5, 1, WORLD_BASE);
    memcpy(base->prompt[0].ids, plain.ids, (70 + N_OUT) * sizeof(int32_t));
    world_submit(w, base);
    world_run(w);
    assert_int_equal(base->prompt[0].cached_tokens, 96);
    /* and the other way round: a longer row begins where the request ended */
    struct scored longer;
    scored_init(&longer, w, base, true);
    longer.job.share_pages = true;
    scored_run(w, &longer);
    assert_int_equal(shared_tokens(w), 64 + 96);
    assert_memory_equal(longer.logprob, base->seq[0].out_logprob,
                        world_out_count(base, 0) * sizeof(float));
    engine_basis_release(basis);
    world_release_all((struct request *[]){r, base}, 2);
    world_close(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_of_decoding_are_those_of_scoring),
        cmocka_unit_test(test_hidden_states_have_these_keys),
        cmocka_unit_test(test_bases_and_keys_are_bounded),
        cmocka_unit_test(test_scoring_shares_pages_and_changes_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
