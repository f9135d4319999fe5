/* What a caller of the engine may rely on: the same bits alone and in company, after a prefix hit,
 * a preemption, any chunking, with any number of threads; the ways a sequence ends; fairness;
 * adapters that come, fail or do not come; nothing leaks. */
#include "tests/unit/engine_world.h"

#include <math.h>
#include <time.h>

static uint32_t out_count(const struct request *r, uint32_t i)
{
    return atomic_load_explicit(&r->seq[i].n_out, memory_order_acquire);
}

static enum finish_reason finish_of(const struct request *r, uint32_t i)
{
    return (enum finish_reason)atomic_load_explicit(&r->seq[i].finish, memory_order_acquire);
}

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
        assert_int_equal(out_count(out[k], 0), 24);
        assert_true(world_done(out[k]));
        /* The world goes before the request: give its adapter references back first. */
        for (uint32_t i = 0; i < out[k]->comp.n; i++) {
            catalog_release(out[k]->entry[i]);
            out[k]->entry[i] = NULL;
        }
        world_close(&w);
    }
}

static void release_all(struct request **r, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        request_release(r[i]);
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
    release_all(r, SUBJECTS);
    release_all(other, company);
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
    release_all(alone, SUBJECTS);
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
    release_all(alone, SUBJECTS);
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
    release_all(a, 6);
    release_all(b, 6);
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
    release_all((struct request *[]){first, again, salted, adapted}, 4);
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
        release_all(one, 4);
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
            assert_true(finish_of(r[4], i) == FINISH_CANCELLED || out_count(r[4], i) > 0);
        world_run(&w);
        release_all(r, 5);
        world_close(&w);
    }
}

/* ---- the ways to end ---- */

static const char *letters(const struct tokenizer *t, int32_t id, size_t *len)
{
    static const char text[] = "abcdefghijklmnopqrstuvwxyz";
    *len = 1;
    return &text[id % 26];
}

static void test_eos_stop_ids_min_tokens_and_ignore_eos(void **state)
{
    struct world w;
    struct request *plain, *r[4];
    world_open(&w, &world_default);
    plain = world_request(&w, 11, 20, 30, 1, WORLD_BASE);
    plain->params.ignore_eos = true;
    world_submit(&w, plain);
    world_run(&w);
    assert_int_equal(finish_of(plain, 0), FINISH_LENGTH);
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
        assert_int_equal(finish_of(r[i], 0), FINISH_STOP);
        assert_int_equal(out_count(r[i], 0), first_at + 1);
        assert_int_equal(r[i]->seq[0].stop_token, tenth);
    }
    assert_same_seq(plain, 0, r[2], 0);
    assert_int_equal(finish_of(r[3], 0), FINISH_LENGTH);
    for (uint32_t i = 0; i < 30; i++)
        assert_int_not_equal(r[3]->seq[0].out_id[i], tenth);
    release_all(r, 4);
    request_release(plain);
    world_close(&w);
}

static void test_stop_string_across_tokens_even_after_preemption(void **state)
{
    for (uint32_t pages = 16; pages <= 128; pages += 112) {
        struct world_options opt = world_default;
        struct world w;
        struct request *plain, *stopped, *pressure[3];
        char text[64];
        opt.kv_pages = pages;
        world_open(&w, &opt);
        w.engine->token_text = letters;
        plain = world_request(&w, 21, 30, 40, 1, WORLD_BASE);
        plain->params.ignore_eos = true;
        plain->params.temperature = 1.5f;
        world_submit(&w, plain);
        world_run(&w);
        for (uint32_t i = 0; i < 40; i++)
            text[i] = letters(NULL, plain->seq[0].out_id[i], &(size_t){0})[0];
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
        stopped->params.stop[1].len = 4;
        memcpy(stopped->params.stop[1].text, text + 20, 4);
        world_submit(&w, stopped);
        world_run(&w);
        const char *found = memmem(text, 40, text + 20, 4);
        assert_int_equal(finish_of(stopped, 0), FINISH_STOP);
        assert_int_equal(stopped->seq[0].stop_index, 1);
        assert_int_equal(stopped->seq[0].stop_text_bytes, found - text);
        assert_int_equal(out_count(stopped, 0), found - text + 4);
        release_all(pressure, 3);
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
    release_all((struct request *[]){forced, plain, penalised}, 3);
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
    uint32_t done = 0, n_prompt = r->prompt[0].n_ids, n_out = out_count(r, i);
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
    uint32_t n_ids = of->prompt[0].n_ids + out_count(of, 0);
    struct request *r = world_request(w, 1, n_ids, 0, 1, adapter);
    memcpy(r->prompt[0].ids, of->prompt[0].ids, of->prompt[0].n_ids * sizeof(int32_t));
    memcpy(r->prompt[0].ids + of->prompt[0].n_ids, of->seq[0].out_id,
           out_count(of, 0) * sizeof(int32_t));
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
        assert_int_equal(finish_of(echo, 0), FINISH_LENGTH);
        assert_int_equal(out_count(echo, 0), 0);
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

/* ---- fairness ---- */

static void test_a_light_key_is_not_behind_a_heavy_one(void **state)
{
    struct world_options opt = world_default;
    struct world w;
    struct request *heavy[40], *light;
    uint32_t heavy_done = 0;
    opt.seqs_max = 4;
    world_open(&w, &opt);
    for (uint32_t i = 0; i < 40; i++) {
        heavy[i] = world_request(&w, i, 20, 16, 1, WORLD_BASE);
        heavy[i]->params.fair_key = 1;
        heavy[i]->params.ignore_eos = true;
        world_submit(&w, heavy[i]);
    }
    for (int i = 0; i < 10; i++)
        world_step(&w);
    light = world_request(&w, 99, 20, 16, 1, WORLD_BASE);
    light->params.fair_key = 2;
    light->params.ignore_eos = true;
    world_submit(&w, light);
    while (!world_done(light))
        world_step(&w);
    for (uint32_t i = 0; i < 40; i++)
        heavy_done += world_done(heavy[i]);
    assert_in_range(heavy_done, 1, 8);
    world_run(&w);
    request_release(light);
    release_all(heavy, 40);
    world_close(&w);
}

static void test_priority_goes_first(void **state)
{
    struct world_options opt = world_default;
    struct world w;
    struct request *r[3];
    opt.seqs_max = 1;
    world_open(&w, &opt);
    for (uint32_t i = 0; i < 3; i++) {
        r[i] = world_request(&w, i, 20, 8, 1, WORLD_BASE);
        r[i]->params.priority = (int32_t)i;
        world_submit(&w, r[i]);
    }
    while (!world_done(r[2]))
        world_step(&w);
    assert_int_equal(out_count(r[0], 0), 0);
    assert_int_equal(out_count(r[1], 0), 0);
    world_run(&w);
    assert_true(r[1]->finish_ns < r[0]->finish_ns);
    release_all(r, 3);
    world_close(&w);
}

/* ---- adapters ---- */

static void test_a_cold_adapter_stops_nobody_and_is_bounded(void **state)
{
    struct world_options opt = world_default;
    struct world w;
    struct engine_stats before, after;
    opt.adapter_wait_ms_max = 2000;
    world_open(&w, &opt);
    world_store_stick(&w, true); /* the loader never answers */
    struct request *cold = world_request(&w, 1, 20, 10, 1, 3);
    struct request *base = world_request(&w, 2, 20, 100, 1, WORLD_BASE);
    base->params.ignore_eos = true;
    world_submit(&w, cold);
    world_submit(&w, base);
    world_step(&w);
    engine_get_stats(w.engine, &before);
    for (int i = 0; i < 50; i++)
        world_step(&w);
    engine_get_stats(w.engine, &after);
    /* Every step made a token for the bystander while the load hung. */
    assert_int_equal(after.steps - before.steps, 50);
    assert_int_equal(after.generation_tokens - before.generation_tokens, 50);
    assert_int_equal(out_count(cold, 0), 0);
    assert_int_equal(after.adapter_waiting_count, 1);
    assert_false(world_done(cold));
    world_advance_ms(2100);
    world_step(&w);
    assert_true(world_done(cold));
    assert_int_equal(finish_of(cold, 0), FINISH_ERROR);
    assert_int_equal(cold->status, STATUS_BUSY);
    assert_non_null(strstr(cold->error.text, "adapter-3"));
    assert_non_null(strstr(cold->error.text, "2000 ms"));
    world_store_stick(&w, false);
    world_run(&w);
    assert_int_equal(out_count(base, 0), 100);
    request_release(cold);
    request_release(base);
    world_close(&w);
}

static void test_a_failed_load_fails_its_request_only(void **state)
{
    struct world w;
    struct request *bad, *good, *mixed;
    world_open(&w, &world_default);
    w.adapter[2].fails = true;
    bad = world_request(&w, 1, 20, 10, 2, 2);
    good = world_request(&w, 1, 20, 10, 2, 1);
    mixed = world_request(&w, 1, 20, 10, 1, 1);
    world_mix(&w, mixed, 2, 0x10000);
    world_submit(&w, bad);
    world_submit(&w, good);
    world_submit(&w, mixed);
    world_run(&w);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(finish_of(bad, i), FINISH_ERROR);
        assert_true(finish_of(good, i) == FINISH_LENGTH || finish_of(good, i) == FINISH_STOP);
    }
    assert_int_equal(bad->status, STATUS_CORRUPT);
    assert_int_equal(mixed->status, STATUS_CORRUPT);
    assert_non_null(strstr(bad->error.text, "by script"));
    release_all((struct request *[]){bad, good, mixed}, 3);
    world_close(&w);
}

static void test_more_adapters_than_slots_all_finish(void **state)
{
    for (uint32_t batch_max = 2; batch_max <= 4; batch_max++) {
        struct world_options opt = world_default;
        struct world w;
        struct request *r[36];
        opt.adapter_count = 12;
        opt.store_slots = 3;
        opt.adapters_per_batch_max = batch_max;
        world_open(&w, &opt);
        for (uint32_t i = 0; i < 36; i++) {
            r[i] = world_request(&w, i, 12, 9, 1, i % 12);
            r[i]->params.ignore_eos = true;
            if (i % 5 == 0)
                world_mix(&w, r[i], (i + 1) % 12, 0x4000);
            world_submit(&w, r[i]);
        }
        world_run(&w);
        for (uint32_t i = 0; i < 36; i++)
            assert_int_equal(finish_of(r[i], 0), FINISH_LENGTH);
        release_all(r, 36);
        world_close(&w);
    }
}

static void test_a_composition_that_never_fits_is_told(void **state)
{
    struct world_options opt = world_default;
    struct world w;
    opt.store_slots = 2;
    opt.adapter_wait_ms_max = 500;
    world_open(&w, &opt);
    struct request *r = world_request(&w, 1, 12, 9, 1, 0);
    world_mix(&w, r, 1, 0x4000);
    world_mix(&w, r, 2, 0x4000);
    world_submit(&w, r);
    world_run(&w);
    assert_int_equal(finish_of(r, 0), FINISH_ERROR);
    assert_true(r->status == STATUS_FULL || r->status == STATUS_BUSY);
    request_release(r);
    world_close(&w);
}

/* ---- refusals ---- */

static void refuse(struct world *w, struct request *r, enum status want, const char *part)
{
    struct errtext err = ERRTEXT_INIT;
    enum status st = engine_submit(w->engine, r, &err);
    if (st != want || !strstr(err.text, part))
        fail_msg("got %s (%s), expected %s with \"%s\"", status_name(st), err.text,
                 status_name(want), part);
    request_release(r);
    request_release(r);
}

static void test_what_can_never_run_is_refused_with_numbers(void **state)
{
    struct world_options opt = world_default;
    struct world w;
    opt.kv_pages = 8;
    world_open(&w, &opt);
    refuse(&w, world_request(&w, 1, 200, 100, 1, WORLD_BASE), STATUS_INVALID,
           "prompt has 200 tokens and max_tokens is 100, the context is 256");
    refuse(&w, world_request(&w, 1, 300, 100, 1, WORLD_BASE), STATUS_INVALID,
           "prompt has 300 tokens, the context is 256");
    refuse(&w, world_request(&w, 1, 100, 60, 1, WORLD_BASE), STATUS_INVALID,
           "prompt has 100 tokens and max_tokens is 60, the KV pool holds 128 tokens");
    struct request *r = world_request(&w, 1, 10, 5, 1, WORLD_BASE);
    r->prompt[0].ids[4] = 96;
    refuse(&w, r, STATUS_INVALID, "prompt token 4 has id 96, the vocabulary has ids 0 to 95");
    r = world_request(&w, 1, 10, 5, 1, WORLD_BASE);
    r->prompt[0].n_ids = 0;
    refuse(&w, r, STATUS_INVALID, "the prompt has no tokens");
    world_close(&w);
}

static void test_a_full_queue_says_so(void **state)
{
    struct world_options opt = world_default;
    struct world w;
    struct request *r[4];
    opt.waiting_max = 3;
    opt.seqs_max = 1;
    world_open(&w, &opt);
    for (uint32_t i = 0; i < 3; i++) {
        r[i] = world_request(&w, i, 10, 30, 1, WORLD_BASE);
        world_submit(&w, r[i]);
    }
    refuse(&w, world_request(&w, 9, 10, 30, 1, WORLD_BASE), STATUS_FULL, "3 requests are waiting");
    world_step(&w);
    r[3] = world_request(&w, 3, 10, 30, 1, WORLD_BASE);
    world_submit(&w, r[3]); /* one runs now: there is room again */
    refuse(&w, world_request(&w, 9, 10, 30, 1, WORLD_BASE), STATUS_FULL, "3 requests are waiting");
    world_run(&w);
    release_all(r, 4);
    world_close(&w);
}

static void test_options_are_refused_by_name(void **state)
{
    struct world w;
    struct engine *e;
    struct errtext err = ERRTEXT_INIT;
    struct engine_deps deps;
    world_open(&w, &world_default);
    deps = (struct engine_deps){.model = &w.model, .backend = w.backend, .store = w.store};
    struct engine_options o = w.engine->opt;
    o.seqs_max = 100;
    assert_int_equal(engine_create(&e, &o, &deps, &err), STATUS_INVALID);
    assert_string_equal(err.param, "seqs_max");
    err_clear(&err);
    o = w.engine->opt;
    o.kv_bytes = 1ull << 43;
    assert_int_equal(engine_create(&e, &o, &deps, &err), STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "KV cache"));
    struct buf plan;
    buf_init(&plan, 1u << 16);
    engine_print_plan(w.engine, &plan);
    assert_non_null(strstr(plan.data, "KV cache"));
    assert_non_null(strstr(plan.data, "total"));
    buf_fini(&plan);
    world_close(&w);
}

/* ---- with its thread ---- */

static _Atomic uint32_t wakes;

static void count_wake(void *arg)
{
    atomic_fetch_add(&wakes, 1);
}

static void wait_done(const struct request *r)
{
    for (int i = 0; i < 20000 && !world_done(r); i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_true(world_done(r));
}

static void *client(void *arg)
{
    struct world *w = arg;
    for (uint32_t i = 0; i < 20; i++) {
        struct request *r = world_request(w, i, 10 + i, 8, 1 + i % 2, i % 5);
        r->wake = count_wake;
        world_submit(w, r);
        if (i % 4 == 3)
            atomic_store(&r->cancel, true);
        wait_done(r);
        request_release(r);
    }
    return NULL;
}

static void test_threads_submit_unload_and_stop(void **state)
{
    struct world_options opt = world_default;
    struct world w;
    struct errtext err = ERRTEXT_INIT;
    pthread_t t[3];
    opt.real_clock = true;
    opt.backend = "cpu";
    opt.thread_count = 2;
    world_open(&w, &opt);
    engine_start(w.engine);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&t[i], NULL, client, &w), 0);
    for (uint32_t i = 0; i < 10; i++) {
        enum status st = engine_unload_adapter(w.engine, w.adapter[i % 5].entry->id, 5000, &err);
        assert_int_equal(st, STATUS_OK);
    }
    for (uint32_t i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
    assert_true(atomic_load(&wakes) >= 60);
    struct request *slow = world_request(&w, 1, 10, 200, 1, WORLD_BASE);
    slow->params.ignore_eos = true;
    world_submit(&w, slow);
    engine_stop(w.engine, 60000);
    assert_true(world_done(slow));
    assert_int_equal(out_count(slow, 0), 200);
    assert_int_equal(engine_submit(w.engine, slow, &err), STATUS_CANCELLED);
    request_release(slow);
    world_close(&w);
}

static void test_stop_at_the_deadline_ends_the_rest(void **state)
{
    struct world_options opt = world_default;
    struct world w;
    opt.real_clock = true;
    opt.adapter_wait_ms_max = 1000000;
    world_open(&w, &opt);
    world_store_stick(&w, true);
    struct request *r = world_request(&w, 1, 10, 200, 1, 2); /* its adapter never comes */
    world_submit(&w, r);
    engine_start(w.engine);
    engine_stop(w.engine, 50);
    assert_true(world_done(r));
    assert_int_equal(finish_of(r, 0), FINISH_ERROR);
    assert_int_equal(r->status, STATUS_CANCELLED);
    assert_non_null(strstr(r->error.text, "draining"));
    request_release(r);
    world_close(&w);
}

static void *patient_stop(void *arg)
{
    engine_stop(arg, 100000);
    return NULL;
}

static void test_a_second_stop_brings_the_deadline_forward(void **state)
{
    struct world_options opt = world_default;
    struct world w;
    pthread_t t;
    opt.real_clock = true;
    opt.adapter_wait_ms_max = 1000000;
    world_open(&w, &opt);
    world_store_stick(&w, true);
    struct request *r = world_request(&w, 1, 10, 200, 1, 2);
    world_submit(&w, r);
    engine_start(w.engine);
    assert_int_equal(pthread_create(&t, NULL, patient_stop, w.engine), 0);
    while (!atomic_load(&w.engine->draining))
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_false(world_done(r));
    engine_stop(w.engine, 0);
    pthread_join(t, NULL);
    assert_true(world_done(r));
    request_release(r);
    world_close(&w);
}

static void test_waiting_adapters_are_loaded_while_all_slots_are_taken(void **state)
{
    struct world_options opt = world_default;
    struct world w;
    struct engine_stats stats;
    opt.seqs_max = 1;
    world_open(&w, &opt);
    struct request *runs = world_request(&w, 1, 10, 120, 1, WORLD_BASE);
    struct request *next = world_request(&w, 2, 10, 20, 1, 3);
    runs->params.ignore_eos = true;
    world_submit(&w, runs);
    world_submit(&w, next);
    while (out_count(runs, 0) < 100) {
        world_step(&w);
        world_advance_ms(1);
    }
    engine_get_stats(w.engine, &stats);
    assert_int_equal(stats.store.loads, 1);
    assert_int_equal(world_store_pins(&w), 0);
    assert_int_equal(next->admit_ns, 0);
    world_run(&w);
    release_all((struct request *[]){runs, next}, 2);
    world_close(&w);
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
        cmocka_unit_test(test_a_light_key_is_not_behind_a_heavy_one),
        cmocka_unit_test(test_priority_goes_first),
        cmocka_unit_test(test_a_cold_adapter_stops_nobody_and_is_bounded),
        cmocka_unit_test(test_a_failed_load_fails_its_request_only),
        cmocka_unit_test(test_more_adapters_than_slots_all_finish),
        cmocka_unit_test(test_a_composition_that_never_fits_is_told),
        cmocka_unit_test(test_what_can_never_run_is_refused_with_numbers),
        cmocka_unit_test(test_a_full_queue_says_so),
        cmocka_unit_test(test_options_are_refused_by_name),
        cmocka_unit_test(test_threads_submit_unload_and_stop),
        cmocka_unit_test(test_stop_at_the_deadline_ends_the_rest),
        cmocka_unit_test(test_a_second_stop_brings_the_deadline_forward),
        cmocka_unit_test(test_waiting_adapters_are_loaded_while_all_slots_are_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
