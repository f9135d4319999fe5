/* What a caller of the engine may rely on: the same bits alone and in company, after a prefix hit,
 * a preemption, any chunking, with any number of threads; the ways a sequence ends; nothing
 * leaks. */
#include "tests/unit/engine_world.h"

/* The subject of the bitwise tests: sampled, penalised, under a mix of two adapters. */
static struct request *subject(struct world *w, uint32_t kind)
{
    struct request *r = world_request(w, 900 + kind, 37, 24, 1, kind == 0 ? WORLD_BASE : kind);
    r->params.ignore_eos = true;
    if (kind == 2)
        world_mix(w, r, 5, 0x8000);
    if (kind > 0) {
        r->params.temperature = 0.9f;
        r->params.top_k = 40;
        r->params.top_p = 0.95f;
        r->params.repetition = 1.1f;
        r->params.presence = 0.2f;
    }
    return r;
}

#define SUBJECTS 3

static void run_alone(const struct world_options *opt, struct request **out)
{
    struct world w;
    for (uint32_t k = 0; k < SUBJECTS; k++) {
        world_open(&w, opt);
        out[k] = subject(&w, k);
        world_submit(&w, out[k]);
        world_run(&w);
        assert_int_equal(world_out_count(out[k], 0), 24);
        assert_true(world_done(out[k]));
        /* The world goes before the request: give its adapter references back first. */
        for (uint32_t i = 0; i < out[k]->comp.n; i++) {
            catalog_release(out[k]->entry[i]);
            out[k]->entry[i] = NULL;
        }
        world_close(&w);
    }
}

/* All subjects at once among `company` others. */
static void run_in_company(const struct world_options *opt, uint32_t company,
                           struct request *const *alone)
{
    struct world w;
    struct request *r[SUBJECTS], *other[64];
    world_open(&w, opt);
    for (uint32_t i = 0; i < company; i++) {
        uint32_t adapter = i % 4 == 0 ? WORLD_BASE : i % opt->adapter_count;
        other[i] = world_request(&w, i, 5 + i * 7 % 60, 8 + i % 20, 1 + i % 2, adapter);
        other[i]->params.temperature = i % 3 ? 1.0f : 0.0f;
    }
    for (uint32_t i = 0; i < company / 2; i++)
        world_submit(&w, other[i]);
    world_step(&w);
    for (uint32_t k = 0; k < SUBJECTS; k++) {
        r[k] = subject(&w, k);
        world_submit(&w, r[k]);
    }
    for (uint32_t i = company / 2; i < company; i++) {
        world_submit(&w, other[i]);
        world_step(&w);
    }
    world_run(&w);
    for (uint32_t k = 0; k < SUBJECTS; k++)
        assert_same_seq(alone[k], 0, r[k], 0);
    world_release_all(r, SUBJECTS);
    world_release_all(other, company);
    world_close(&w);
}

static void check_company(const char *backend, enum dtype dtype)
{
    static const uint32_t company[] = {1, 15, 63};
    struct world_options opt = world_default;
    struct request *alone[SUBJECTS];
    opt.backend = backend;
    opt.dtype = dtype;
    opt.seqs_max = 64;
    opt.kv_pages = 600;
    run_alone(&opt, alone);
    for (uint32_t i = 0; i < ARRAY_COUNT(company); i++) {
        opt.thread_count = 1 + i % 2;
        run_in_company(&opt, company[i], alone);
    }
    world_release_all(alone, SUBJECTS);
}

static void test_bits_do_not_depend_on_company_ref_f32(void **state)
{
    check_company("ref", DTYPE_F32);
}

static void test_bits_do_not_depend_on_company_cpu_f32(void **state)
{
    check_company("cpu", DTYPE_F32);
}

static void test_bits_do_not_depend_on_company_cpu_bf16(void **state)
{
    check_company("cpu", DTYPE_BF16);
}

static void test_bits_do_not_depend_on_chunks_threads_or_preemption(void **state)
{
    struct world_options opt = world_default;
    struct request *alone[SUBJECTS];
    opt.backend = "cpu";
    run_alone(&opt, alone);
    for (uint32_t rows = 16; rows <= 19; rows++) {
        opt.rows_max = rows;
        opt.score_rows_max = 4;
        opt.thread_count = 1 + rows % 2;
        opt.kv_pages = 128;
        run_in_company(&opt, 9, alone);
        opt.kv_pages = 16; /* one context: everything is preempted again and again */
        run_in_company(&opt, 9, alone);
    }
    world_release_all(alone, SUBJECTS);
}

static void test_engine_preempts_and_recomputes(void **state)
{
    struct world_options opt = world_default;
    struct request *a[6], *b[6];
    struct world w;
    opt.prefix_cache = false;
    for (int small = 0; small < 2; small++) {
        struct request **r = small ? b : a;
        struct engine_stats stats;
        opt.kv_pages = small ? 14 : 128;
        world_open(&w, &opt);
        for (uint32_t i = 0; i < 6; i++) {
            r[i] = world_request(&w, 40 + i, 20, 60, 1, WORLD_BASE);
            r[i]->params.ignore_eos = true;
            r[i]->params.temperature = 0.8f;
            world_submit(&w, r[i]);
        }
        world_run(&w);
        engine_get_stats(w.engine, &stats);
        assert_true(small ? stats.preemptions > 0 : stats.preemptions == 0);
        assert_int_equal(stats.generation_tokens, 6 * 60);
        world_close(&w);
    }
    for (uint32_t i = 0; i < 6; i++)
        assert_same_seq(a[i], 0, b[i], 0);
    world_release_all(a, 6);
    world_release_all(b, 6);
}

static void test_prefix_hit_changes_nothing_and_respects_salt_and_composition(void **state)
{
    struct world w;
    struct request *first, *again, *salted, *adapted;
    struct engine_stats stats;
    world_open(&w, &world_default);
    first = world_request(&w, 7, 50, 10, 1, WORLD_BASE);
    world_submit(&w, first);
    world_run(&w);
    assert_int_equal(first->prompt[0].cached_tokens, 0);
    again = world_request(&w, 7, 50, 10, 1, WORLD_BASE);
    salted = world_request(&w, 7, 50, 10, 1, WORLD_BASE);
    salted->params.cache_salt[3] = 1;
    adapted = world_request(&w, 7, 50, 10, 1, 2);
    world_submit(&w, again);
    world_submit(&w, salted);
    world_submit(&w, adapted);
    world_run(&w);
    assert_int_equal(again->prompt[0].cached_tokens, 48);
    assert_int_equal(salted->prompt[0].cached_tokens, 0);
    assert_int_equal(adapted->prompt[0].cached_tokens, 0);
    assert_same_seq(first, 0, again, 0);
    assert_same_seq(first, 0, salted, 0);
    engine_get_stats(w.engine, &stats);
    assert_int_equal(stats.prefix_hits, 48);
    assert_int_equal(stats.prefix_queries, 200);
    world_release_all((struct request *[]){first, again, salted, adapted}, 4);
    world_close(&w);
}

static void test_choices_share_the_prompt_and_differ_by_seed(void **state)
{
    for (int cache = 0; cache < 2; cache++) {
        struct world_options opt = world_default;
        struct world w;
        struct request *many, *one[4];
        opt.prefix_cache = cache;
        world_open(&w, &opt);
        many = world_request(&w, 3, 90, 12, 4, 1);
        many->params.temperature = 1.0f;
        many->params.ignore_eos = true;
        world_submit(&w, many);
        for (int i = 0; i < 8; i++)
            world_step(&w);
        assert_int_equal(w.engine->seqs_running, 4);
        /* 5 shared full pages, and at most 2 of its own for each. */
        assert_in_range(w.engine->kv.page_count - kv_free_count(&w.engine->kv), 5 + 4, 5 + 8);
        world_run(&w);
        for (uint32_t i = 0; i < 4; i++) {
            one[i] = world_request(&w, 3, 90, 12, 1, 1);
            one[i]->params.temperature = 1.0f;
            one[i]->params.ignore_eos = true;
            one[i]->seq[0].seed = many->seq[i].seed;
            world_submit(&w, one[i]);
        }
        world_run(&w);
        for (uint32_t i = 0; i < 4; i++)
            assert_same_seq(many, i, one[i], 0);
        assert_memory_not_equal(many->seq[0].out_id, many->seq[1].out_id, 12 * sizeof(int32_t));
        world_release_all(one, 4);
        request_release(many);
        world_close(&w);
    }
}

static void test_cancel_at_any_step_leaks_nothing(void **state)
{
    for (uint32_t step = 0; step < 14; step++) {
        struct world w;
        struct request *r[5];
        world_open(&w, &world_default);
        for (uint32_t i = 0; i < 5; i++) {
            r[i] = world_request(&w, i, 30 + i * 40, 20, 1 + i % 3, i);
            world_submit(&w, r[i]);
        }
        for (uint32_t i = 0; i < step; i++)
            world_step(&w);
        atomic_store(&r[1]->cancel, true);
        atomic_store(&r[4]->cancel, true);
        world_step(&w);
        assert_true(world_done(r[1]));
        assert_true(world_done(r[4]));
        for (uint32_t i = 0; i < r[4]->seq_count; i++)
            assert_true(world_finish(r[4], i) == FINISH_CANCELLED || world_out_count(r[4], i) > 0);
        world_run(&w);
        world_release_all(r, 5);
        world_close(&w);
    }
}

/* ---- the ways to end ---- */

static void test_eos_stop_ids_min_tokens_and_ignore_eos(void **state)
{
    struct world w;
    struct request *plain, *r[4];
    world_open(&w, &world_default);
    plain = world_request(&w, 11, 20, 30, 1, WORLD_BASE);
    plain->params.ignore_eos = true;
    world_submit(&w, plain);
    world_run(&w);
    assert_int_equal(world_finish(plain, 0), FINISH_LENGTH);
    int32_t tenth = plain->seq[0].out_id[9];
    uint32_t first_at = 0;
    while (plain->seq[0].out_id[first_at] != tenth)
        first_at++;
    for (uint32_t i = 0; i < 4; i++)
        r[i] = world_request(&w, 11, 20, 30, 1, WORLD_BASE);
    r[0]->params.stop_id[0] = tenth;
    r[0]->params.stop_id_count = 1;
    r[0]->params.ignore_eos = true;
    w.model.config.eos_id[0] = tenth;
    r[1]->params.min_tokens = 0;
    r[2]->params.ignore_eos = true;
    r[3]->params.min_tokens = 30;
    for (uint32_t i = 0; i < 4; i++)
        world_submit(&w, r[i]);
    world_run(&w);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(world_finish(r[i], 0), FINISH_STOP);
        assert_int_equal(world_out_count(r[i], 0), first_at + 1);
        assert_int_equal(r[i]->seq[0].stop_token, tenth);
    }
    assert_same_seq(plain, 0, r[2], 0);
    assert_int_equal(world_finish(r[3], 0), FINISH_LENGTH);
    for (uint32_t i = 0; i < 30; i++)
        assert_int_not_equal(r[3]->seq[0].out_id[i], tenth);
    world_release_all(r, 4);
    request_release(plain);
    world_close(&w);
}

static void test_stop_string_across_tokens_even_after_preemption(void **state)
{
    for (uint32_t pages = 16; pages <= 128; pages += 112) {
        struct world_options opt = world_default;
        struct world w;
        struct request *plain, *stopped, *pressure[3];
        char text[40 * 4 + 1];
        opt.kv_pages = pages;
        world_open(&w, &opt);
        plain = world_request(&w, 21, 30, 40, 1, WORLD_BASE);
        plain->params.ignore_eos = true;
        plain->params.temperature = 1.5f;
        world_submit(&w, plain);
        world_run(&w);
        for (uint32_t i = 0; i < 40; i++)
            world_token_text(plain->seq[0].out_id[i], text + (size_t)i * 4);
        for (uint32_t i = 0; i < 3; i++) {
            pressure[i] = world_request(&w, 50 + i, 40, 60, 1, WORLD_BASE);
            world_submit(&w, pressure[i]);
        }
        stopped = world_request(&w, 21, 30, 40, 1, WORLD_BASE);
        stopped->params.ignore_eos = true;
        stopped->params.temperature = 1.5f;
        stopped->params.stop = mem_array(2, sizeof(struct request_stop));
        stopped->params.stop_count = 2;
        stopped->params.stop[0] = (struct request_stop){.text = "#", .len = 1};
        stopped->params.stop[1].len = 7; /* in three tokens */
        memcpy(stopped->params.stop[1].text, text + 83, 7);
        world_submit(&w, stopped);
        world_run(&w);
        const char *found = memmem(text, 160, text + 83, 7);
        assert_int_equal(world_finish(stopped, 0), FINISH_STOP);
        assert_int_equal(stopped->seq[0].stop_index, 1);
        assert_int_equal(stopped->seq[0].cut_byte, found - text);
        assert_int_equal(world_out_count(stopped, 0), (found - text + 7 + 3) / 4);
        assert_int_equal(stopped->seq[0].end_tokens, world_out_count(stopped, 0));
        world_release_all(pressure, 3);
        request_release(plain);
        request_release(stopped);
        world_close(&w);
    }
}

static void test_bias_forces_and_penalties_act(void **state)
{
    struct world w;
    struct request *forced, *plain, *penalised;
    world_open(&w, &world_default);
    forced = world_request(&w, 5, 9, 6, 1, WORLD_BASE);
    forced->params.bias = mem_array(1, sizeof(struct sample_bias));
    forced->params.bias[0] = (struct sample_bias){.id = 33, .bias = 100.0f};
    forced->params.bias_count = 1;
    forced->params.min_tokens = 6;
    plain = world_request(&w, 5, 9, 40, 1, WORLD_BASE);
    penalised = world_request(&w, 5, 9, 40, 1, WORLD_BASE);
    plain->params.ignore_eos = penalised->params.ignore_eos = true;
    penalised->params.frequency = 2.0f;
    world_submit(&w, forced);
    world_submit(&w, plain);
    world_submit(&w, penalised);
    world_run(&w);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(forced->seq[0].out_id[i], 33);
    assert_memory_not_equal(plain->seq[0].out_id, penalised->seq[0].out_id, 40 * sizeof(int32_t));
    world_release_all((struct request *[]){forced, plain, penalised}, 3);
    world_close(&w);
}

/* ---- log-probabilities and scoring ---- */

static void count_done(struct score_job *j, void *arg)
{
    (*(uint32_t *)arg)++;
}

static void score_output(struct world *w, const struct request *r, uint32_t i, uint32_t adapter,
                         float *logprob)
{
    int32_t ids[256];
    uint32_t done = 0, n_prompt = r->prompt[0].n_ids, n_out = world_out_count(r, i);
    struct score_job j = {.ids = ids,
                          .n_ids = n_prompt + n_out,
                          .n_prompt = n_prompt,
                          .logprob = logprob,
                          .on_done = count_done,
                          .on_done_arg = &done};
    memcpy(ids, r->prompt[0].ids, n_prompt * sizeof(int32_t));
    memcpy(ids + n_prompt, r->seq[i].out_id, n_out * sizeof(int32_t));
    if (adapter != WORLD_BASE) {
        j.comp = r->comp;
        j.entry[0] = w->adapter[adapter].entry;
    }
    assert_int_equal(engine_submit_score(w->engine, &j), STATUS_OK);
    world_run(w);
    assert_int_equal(done, 1);
    assert_int_equal(j.status, STATUS_OK);
}

static void check_scores(const char *backend, enum dtype dtype, uint32_t n_vocab)
{
    struct world_options opt = world_default;
    struct world w;
    opt.backend = backend;
    opt.dtype = dtype;
    opt.n_vocab = n_vocab;
    world_open(&w, &opt);
    for (uint32_t k = 0; k < 2; k++) {
        uint32_t adapter = k ? 3 : WORLD_BASE;
        float logprob[40], base[40];
        struct request *r = world_request(&w, 60 + k, 45, 40, 1, adapter);
        r->params.temperature = 1.2f;
        r->params.repetition = 1.3f;
        r->params.ignore_eos = true;
        world_submit(&w, r);
        world_run(&w);
        score_output(&w, r, 0, adapter, logprob);
        assert_memory_equal(logprob, r->seq[0].out_logprob, sizeof(logprob));
        score_output(&w, r, 0, WORLD_BASE, base);
        assert_int_equal(memcmp(base, logprob, sizeof(base)) == 0, k == 0);
        request_release(r);
    }
    world_close(&w);
}

static void test_scores_equal_decoded_logprobs_bit_for_bit(void **state)
{
    check_scores("ref", DTYPE_F32, 96);
    check_scores("cpu", DTYPE_F32, 2100);
    check_scores("cpu", DTYPE_BF16, 2100);
}

static struct request *prompt_scored(struct world *w, const struct request *of, uint32_t adapter)
{
    uint32_t n_ids = of->prompt[0].n_ids + world_out_count(of, 0);
    struct request *r = world_request(w, 1, n_ids, 0, 1, adapter);
    memcpy(r->prompt[0].ids, of->prompt[0].ids, of->prompt[0].n_ids * sizeof(int32_t));
    memcpy(r->prompt[0].ids + of->prompt[0].n_ids, of->seq[0].out_id,
           world_out_count(of, 0) * sizeof(int32_t));
    r->params.prompt_top_count = 3;
    r->prompt[0].logprob = mem_array(n_ids, sizeof(float));
    r->prompt[0].top = mem_array(n_ids, sizeof(struct sample_out));
    return r;
}

static void test_prompt_logprobs_equal_decoded_ones(void **state)
{
    for (uint32_t rows = 16; rows <= 64; rows += 16) {
        struct world_options opt = world_default;
        struct world w;
        opt.rows_max = rows;
        world_open(&w, &opt);
        struct request *r = world_request(&w, 71, 33, 30, 1, 4);
        r->params.ignore_eos = true;
        world_submit(&w, r);
        world_run(&w);
        struct request *echo = prompt_scored(&w, r, 4);
        world_submit(&w, echo);
        world_run(&w);
        assert_int_equal(world_finish(echo, 0), FINISH_LENGTH);
        assert_int_equal(world_out_count(echo, 0), 0);
        assert_int_equal(echo->prompt[0].cached_tokens, 0);
        for (uint32_t i = 0; i < 30; i++) {
            const struct sample_out *o = &echo->prompt[0].top[33 + i];
            assert_int_equal(o->id, r->seq[0].out_id[i]);
            assert_memory_equal(&echo->prompt[0].logprob[33 + i], &r->seq[0].out_logprob[i],
                                sizeof(float));
            assert_memory_equal(o->top_id, r->seq[0].out_top[i].top_id, 3 * sizeof(int32_t));
        }
        request_release(r);
        request_release(echo);
        world_close(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_do_not_depend_on_company_ref_f32),
        cmocka_unit_test(test_bits_do_not_depend_on_company_cpu_f32),
        cmocka_unit_test(test_bits_do_not_depend_on_company_cpu_bf16),
        cmocka_unit_test(test_bits_do_not_depend_on_chunks_threads_or_preemption),
        cmocka_unit_test(test_engine_preempts_and_recomputes),
        cmocka_unit_test(test_prefix_hit_changes_nothing_and_respects_salt_and_composition),
        cmocka_unit_test(test_choices_share_the_prompt_and_differ_by_seed),
        cmocka_unit_test(test_cancel_at_any_step_leaks_nothing),
        cmocka_unit_test(test_eos_stop_ids_min_tokens_and_ignore_eos),
        cmocka_unit_test(test_stop_string_across_tokens_even_after_preemption),
        cmocka_unit_test(test_bias_forces_and_penalties_act),
        cmocka_unit_test(test_scores_equal_decoded_logprobs_bit_for_bit),
        cmocka_unit_test(test_prompt_logprobs_equal_decoded_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
