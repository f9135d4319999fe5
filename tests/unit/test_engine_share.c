/* Whose turn it is while answers are long: starvation of an API key by another, and of readers by
 * prompts. Each is a small world with a device whose steps take time on the fake clock, so every
 * run is the same. Whoever was paused must come out with the bits of a world in which nobody ever
 * is. */
#include "tests/unit/engine_world.h"

#define MANY 48
#define MS   1000000ull

struct crowd { /* requests that are made again in a calm world */
    struct world w;
    struct request *r[MANY];
    uint64_t submit_ns[MANY];
    uint32_t count;
};

static struct request *make(struct world *w, uint32_t i, uint32_t key, uint32_t n,
                            uint32_t max_tokens)
{
    struct request *r = world_request(w, 300 + i, 12, max_tokens, n, i % 3 ? i % 3 : WORLD_BASE);
    r->params.ignore_eos = true;
    r->params.temperature = 0.8f;
    r->params.fair_key = key;
    return r;
}

static uint64_t now_ns(const struct crowd *c)
{
    return c->w.engine->now_ns;
}

static struct request *join(struct crowd *c, uint32_t key, uint32_t n, uint32_t max_tokens)
{
    struct request *r = make(&c->w, c->count, key, n, max_tokens);
    c->submit_ns[c->count] = now_ns(c);
    c->r[c->count++] = r;
    world_submit(&c->w, r);
    return r;
}

/* 16 slots; a step takes 50 ms and 1 ms a row. */
static struct world_options small_house(void)
{
    struct world_options opt = world_default;
    opt.backend = "cpu";
    opt.seqs_max = 16;
    opt.rows_max = 96;
    opt.kv_pages = 300;
    opt.load_polls = 0;
    opt.step_us = 50000;
    opt.row_us = 1000;
    return opt;
}

static void open_crowd(struct crowd *c, const struct world_options *opt)
{
    c->count = 0;
    world_open(&c->w, opt);
    world_step(&c->w); /* it reads the clock */
}

static void steps(struct crowd *c, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        world_step(&c->w);
}

static uint64_t share_preemptions(const struct crowd *c)
{
    struct engine_stats st;
    engine_get_stats(c->w.engine, &st);
    return st.share_preemptions;
}

/* All come to their end, with the bits of a world that has room for all. */
static void close_crowd(struct crowd *c)
{
    struct world_options opt = c->w.opt;
    struct world calm;
    opt.seqs_max = 64;
    opt.kv_pages = 2000;
    opt.late = false;
    opt.step_us = 0;
    world_run(&c->w);
    world_open(&calm, &opt);
    for (uint32_t i = 0; i < c->count; i++) {
        const struct request *wild = c->r[i];
        struct request *r = make(&calm, i, 1, wild->seq_count, wild->params.max_tokens);
        world_submit(&calm, r);
        world_run(&calm);
        assert_true(world_done(wild));
        for (uint32_t k = 0; k < r->seq_count; k++) {
            assert_int_equal(world_out_count(r, k), r->params.max_tokens);
            assert_same_seq(wild, k, r, k);
        }
        request_release(r);
    }
    world_close(&calm);
    world_release_all(c->r, c->count);
    world_close(&c->w);
}

/* ---- an API key that holds every slot ---- */

static void check_light_key_beside(uint32_t requests, uint32_t n, bool late)
{
    struct crowd c;
    struct world_options opt = small_house();
    opt.late = late;
    open_crowd(&c, &opt);
    for (uint32_t i = 0; i < requests; i++)
        join(&c, 1, n, 200);
    steps(&c, 10);
    assert_int_equal(c.w.engine->seqs_running, 16);
    struct request *light = join(&c, 2, 1, 8);
    while (!world_done(light))
        world_step(&c.w);
    /* The bound, then nine steps of at most three times 66 ms. */
    assert_in_range(light->admit_ns - c.submit_ns[requests], 1000 * MS, 1200 * MS);
    assert_in_range(light->finish_ns - light->admit_ns, 0, 2000 * MS);
    assert_int_equal(share_preemptions(&c), 1);
    for (uint32_t i = 0; i < requests; i++)
        assert_false(world_done(c.r[i]));
    close_crowd(&c);
}

static void test_many_long_answers_of_a_key_do_not_keep_another_out(void **state)
{
    check_light_key_beside(30, 1, false);
    check_light_key_beside(30, 1, true);
}

static void test_many_choices_of_a_key_do_not_keep_another_out(void **state)
{
    check_light_key_beside(4, 4, false);
}

static void test_two_heavy_keys_come_to_equal_shares_and_stay_there(void **state)
{
    struct crowd c;
    struct world_options opt = small_house();
    open_crowd(&c, &opt);
    for (uint32_t i = 0; i < 24; i++)
        join(&c, 1, 1, 120);
    steps(&c, 5);
    for (uint32_t i = 0; i < 24; i++)
        join(&c, 2, 1, 120);
    while (now_ns(&c) < c.submit_ns[24] + 1500 * MS)
        world_step(&c.w);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(
            c.w.engine->sched.key[c.w.engine->job[c.w.engine->job_live[i * 47]].fair].running, 8);
    assert_int_equal(share_preemptions(&c), 8);
    steps(&c, 60);
    assert_int_equal(share_preemptions(&c), 8); /* nobody takes back what has moved */
    close_crowd(&c);
}

static void test_a_lower_priority_takes_nothing(void **state)
{
    struct crowd c;
    struct world_options opt = small_house();
    open_crowd(&c, &opt);
    for (uint32_t i = 0; i < 20; i++) {
        c.submit_ns[c.count] = now_ns(&c);
        struct request *r = c.r[c.count] = make(&c.w, c.count, 1, 1, 60);
        r->params.priority = i < 10 ? 1 : 0;
        c.count++;
        world_submit(&c.w, r);
    }
    steps(&c, 5);
    struct request *light = make(&c.w, c.count, 2, 1, 8);
    light->params.priority = -1;
    c.r[c.count++] = light;
    world_submit(&c.w, light);
    steps(&c, 30); /* two seconds */
    assert_int_equal(light->admit_ns, 0);
    assert_int_equal(share_preemptions(&c), 0);
    struct request *equal = join(&c, 3, 1, 8);
    while (!world_done(equal))
        world_step(&c.w);
    assert_int_equal(share_preemptions(&c), 1);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(c.r[i]->preempt_count, 0);
    close_crowd(&c);
}

static void test_more_keys_than_slots_take_turns(void **state)
{
    struct crowd c;
    struct world_options opt = small_house();
    opt.seqs_max = 4;
    open_crowd(&c, &opt);
    for (uint32_t i = 0; i < 10; i++)
        join(&c, 1 + i, 1, 240);
    while (now_ns(&c) < 40000 * MS + c.submit_ns[0] && share_preemptions(&c) < 6)
        world_step(&c.w);
    assert_int_equal(share_preemptions(&c), 6);
    steps(&c, 3);
    for (uint32_t i = 0; i < 10; i++)
        assert_true(world_out_count(c.r[i], 0) > 0);
    close_crowd(&c);
}

static void test_a_key_that_holds_every_page_gives_some(void **state)
{
    struct crowd c;
    struct world_options opt = small_house();
    opt.kv_pages = 40;
    opt.prefix_cache = false;
    open_crowd(&c, &opt);
    for (uint32_t i = 0; i < 20; i++)
        join(&c, 1, 1, 200);
    steps(&c, 60);
    assert_in_range(c.w.engine->seqs_running, 3, 15); /* pages are short, not slots */
    struct request *light = join(&c, 2, 1, 40);
    while (!world_done(light))
        world_step(&c.w);
    assert_in_range(light->admit_ns - c.submit_ns[20], 0, 1200 * MS);
    assert_int_equal(light->preempt_count, 0); /* nor is it the first to give them back */
    close_crowd(&c);
}

/* ---- prompts beside decodes ---- */

/* 12 readers, then newcomers with long prompts; the longest step with readers, in ms. */
static uint64_t longest_step(uint32_t stretch, uint64_t *wait_ms)
{
    struct crowd c;
    struct world_options opt = small_house();
    uint64_t longest = 0, before;
    opt.rows_max = 256;
    opt.step_stretch_max = stretch;
    open_crowd(&c, &opt);
    for (uint32_t i = 0; i < 12; i++)
        join(&c, 1, 1, 150);
    steps(&c, 20);
    for (uint32_t k = 0; k < 2; k++) { /* the first teaches what a row costs */
        struct request *r = world_request(&c.w, 700 + k, 240, 2, 1, WORLD_BASE);
        uint64_t begin = now_ns(&c);
        world_submit(&c.w, r);
        longest = 0;
        while (!world_done(r)) {
            before = now_ns(&c);
            world_step(&c.w);
            longest = MAX(longest, (now_ns(&c) - before) / MS);
        }
        *wait_ms = (r->first_token_ns - begin) / MS;
        request_release(r);
    }
    close_crowd(&c);
    return longest;
}

static void test_prompts_stretch_the_steps_of_readers_to_a_bound(void **state)
{
    uint64_t unbound_ms, bound_ms;
    /* 62 ms a step of 12 rows; 302 ms with a prompt of 240 as a whole. */
    assert_in_range(longest_step(0, &unbound_ms), 300, 310);
    assert_in_range(longest_step(200, &bound_ms), 100, 128);
    /* Half of the time is the prompt's: 240 rows in five steps, and a step to be timed. */
    assert_in_range(bound_ms, unbound_ms, 800);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_long_answers_of_a_key_do_not_keep_another_out),
        cmocka_unit_test(test_many_choices_of_a_key_do_not_keep_another_out),
        cmocka_unit_test(test_two_heavy_keys_come_to_equal_shares_and_stay_there),
        cmocka_unit_test(test_a_lower_priority_takes_nothing),
        cmocka_unit_test(test_more_keys_than_slots_take_turns),
        cmocka_unit_test(test_a_key_that_holds_every_page_gives_some),
        cmocka_unit_test(test_prompts_stretch_the_steps_of_readers_to_a_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
