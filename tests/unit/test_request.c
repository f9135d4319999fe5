/* A request's memory: shapes, refusals, two owners. */
#include "tests/unit/engine_world.h"

static uint32_t wakes;

static void count_wake(void *arg)
{
    (*(uint32_t *)arg)++;
}

static void test_request_create_lays_out_prompts_and_choices(void **state)
{
    struct request *r = request_create(3, 2, 7, true);
    assert_non_null(r);
    assert_int_equal(r->seq_count, 6);
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(r->seq[i].prompt_idx, i / 2);
        assert_int_equal(r->seq[i].choice_idx, i % 2);
        assert_int_equal(r->seq[i].stop_token, -1);
        assert_int_equal(r->seq[i].stop_index, -1);
        r->seq[i].out_id[6] = 1; /* the sanitizer knows the size */
        r->seq[i].out_logprob[6] = 1;
        r->seq[i].out_top[6].id = 1;
    }
    assert_int_equal(r->params.max_tokens, 7);
    assert_int_equal(r->params.n, 2);
    assert_int_equal(r->params.prompt_top_count, -1);
    request_release(r);
    request_release(r);
}

static void test_request_create_refuses_what_it_cannot_hold(void **state)
{
    assert_null(request_create(0, 1, 1, false));
    assert_null(request_create(1, 0, 1, false));
    assert_null(request_create(REQUEST_PROMPTS_MAX + 1, 1, 1, false));
    assert_null(request_create(2, REQUEST_SEQS_MAX / 2 + 1, 1, false));
    assert_null(request_create(1, UINT32_MAX, 1, false));
    struct request *r =
        request_create(REQUEST_PROMPTS_MAX, REQUEST_SEQS_MAX / REQUEST_PROMPTS_MAX, 0, false);
    assert_non_null(r);
    assert_null(r->seq[0].out_top);
    request_release(r);
    request_release(r);
}

static void test_request_finish_publishes_then_wakes_and_last_owner_frees(void **state)
{
    struct request *r = request_create(1, 1, 1, false);
    struct adapter_entry *e = mem_alloc(sizeof(*e));
    atomic_init(&e->refs, 2);
    r->entry[0] = e;
    r->wake = count_wake;
    r->wake_arg = &wakes;
    request_finish(r);
    assert_true(world_done(r));
    assert_int_equal(wakes, 1);
    request_release(r);
    assert_int_equal(atomic_load(&e->refs), 2);
    request_release(r);
    assert_int_equal(atomic_load(&e->refs), 1);
    catalog_release(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request_create_lays_out_prompts_and_choices),
        cmocka_unit_test(test_request_create_refuses_what_it_cannot_hold),
        cmocka_unit_test(test_request_finish_publishes_then_wakes_and_last_owner_frees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
