/* A request's life beside others: whose turn it is, adapters that come, fail or do not come, what
 * is refused, and the engine with its thread. */
#include "tests/unit/engine_world.h"

#include <time.h>

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
    world_release_all(heavy, 40);
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
    assert_int_equal(world_out_count(r[0], 0), 0);
    assert_int_equal(world_out_count(r[1], 0), 0);
    world_run(&w);
    assert_true(r[1]->finish_ns < r[0]->finish_ns);
    world_release_all(r, 3);
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
    assert_int_equal(world_out_count(cold, 0), 0);
    assert_int_equal(after.adapter_waiting_count, 1);
    assert_false(world_done(cold));
    for (int i = 0; i < 21; i++) {
        world_advance_ms(100);
        world_step(&w);
    }
    assert_true(world_done(cold));
    assert_int_equal(world_finish(cold, 0), FINISH_ERROR);
    assert_int_equal(cold->status, STATUS_BUSY);
    assert_non_null(strstr(cold->error.text, "adapter-3"));
    assert_non_null(strstr(cold->error.text, "2000 ms"));
    world_store_stick(&w, false);
    world_run(&w);
    assert_int_equal(world_out_count(base, 0), 100);
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
        assert_int_equal(world_finish(bad, i), FINISH_ERROR);
        assert_true(world_finish(good, i) == FINISH_LENGTH || world_finish(good, i) == FINISH_STOP);
    }
    assert_int_equal(bad->status, STATUS_CORRUPT);
    assert_int_equal(mixed->status, STATUS_CORRUPT);
    assert_non_null(strstr(bad->error.text, "by script"));
    world_release_all((struct request *[]){bad, good, mixed}, 3);
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
            assert_int_equal(world_finish(r[i], 0), FINISH_LENGTH);
        world_release_all(r, 36);
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
    assert_int_equal(world_finish(r, 0), FINISH_ERROR);
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
    opt.adapters_per_batch_max = 2;
    world_open(&w, &opt);
    refuse(&w, world_request(&w, 1, 100, 60, 1, WORLD_BASE), STATUS_INVALID,
           "prompt has 100 tokens and max_tokens is 60, the KV pool holds 128 tokens");
    struct request *r = world_request(&w, 1, 10, 5, 1, WORLD_BASE);
    r->comp.n = 3;
    refuse(&w, r, STATUS_INVALID, "the request mixes 3 adapters, this server takes 2 in a batch");
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
    world_release_all(r, 4);
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
    assert_int_equal(world_out_count(slow, 0), 200);
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
    assert_int_equal(world_finish(r, 0), FINISH_ERROR);
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
    while (world_out_count(runs, 0) < 100) {
        world_step(&w);
        world_advance_ms(1);
    }
    engine_get_stats(w.engine, &stats);
    assert_int_equal(stats.store.loads, 1);
    assert_int_equal(world_store_pins(&w), 0);
    assert_int_equal(next->admit_ns, 0);
    world_run(&w);
    world_release_all((struct request *[]){runs, next}, 2);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
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
