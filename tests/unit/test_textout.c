/* What may leave and what must wait, with the demo's tokenizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "server/http/textout.h"
#include "tests/unit/http_double.h"

static struct model model;
static struct token_list ids;
static float logprobs[256];

struct fixture {
    struct request_params params;
    struct request_stop stop[2];
    struct textout_rules rules;
    struct request_seq seq;
    struct textout text;
    struct buf out;
};

static void begin(struct fixture *f, const char *says, const char *stop)
{
    *f = (struct fixture){0};
    ids.n = 0;
    assert_int_equal(
        tokenizer_encode(model.tokenizer, says, strlen(says), TOKENIZE_PARSE_SPECIAL, &ids, NULL),
        STATUS_OK);
    if (stop) {
        f->stop[0].len = (uint32_t)strlen(stop);
        memcpy(f->stop[0].text, stop, f->stop[0].len);
        f->params.stop = f->stop;
        f->params.stop_count = 1;
    }
    f->rules = (struct textout_rules){.model = &model, .params = &f->params, .skip_special = true};
    f->seq = (struct request_seq){
        .out_id = ids.ids, .out_logprob = logprobs, .stop_token = -1, .stop_index = -1};
    textout_init(&f->text, &f->rules);
    buf_init(&f->out, 1u << 16);
}

static const char *pull(struct fixture *f, uint32_t n, enum finish_reason finish)
{
    atomic_store(&f->seq.n_out, n);
    atomic_store(&f->seq.finish, finish);
    textout_pull(&f->text, &f->rules, &f->seq, &f->out);
    return f->out.data ? f->out.data : "";
}

static void end(struct fixture *f)
{
    textout_fini(&f->text);
    buf_fini(&f->out);
}

static void test_text_comes_as_it_is_final(void **state)
{
    struct fixture f;
    (void)state;
    begin(&f, "The keeper waits.", NULL);
    for (uint32_t i = 1; i <= ids.n; i++)
        (void)pull(&f, i, FINISH_NONE);
    assert_string_equal(f.out.data, "The keeper waits.");
    (void)pull(&f, (uint32_t)ids.n, FINISH_LENGTH);
    assert_string_equal(f.out.data, "The keeper waits.");
    assert_true(f.text.ended);
    end(&f);
}

static void test_half_characters_wait(void **state)
{
    struct fixture f;
    const char *says = "\xF0\x9F\x8C\x8A"; /* a wave: several byte tokens */
    (void)state;
    begin(&f, says, NULL);
    assert_true(ids.n > 1);
    for (uint32_t i = 1; i < ids.n; i++)
        assert_string_equal(pull(&f, i, FINISH_NONE), "");
    assert_string_equal(pull(&f, (uint32_t)ids.n, FINISH_NONE), says);
    end(&f);
    begin(&f, says, NULL);
    assert_string_equal(pull(&f, 1, FINISH_LENGTH), "\xEF\xBF\xBD");
    end(&f);
}

static void test_a_possible_stop_is_held_back_and_released(void **state)
{
    struct fixture f;
    (void)state;
    begin(&f, "one two three", "two four");
    for (uint32_t i = 1; i <= ids.n; i++) {
        const char *so_far = pull(&f, i, FINISH_NONE);
        assert_null(strstr(so_far, "four"));
        /* what begins the stop string waits until it cannot be one */
        assert_false(strcmp(so_far, "one t") == 0 || strcmp(so_far, "one two") == 0 ||
                     strcmp(so_far, "one two ") == 0);
    }
    (void)pull(&f, (uint32_t)ids.n, FINISH_LENGTH);
    assert_string_equal(f.out.data, "one two three");
    end(&f);
}

static void test_a_stop_string_ends_the_text(void **state)
{
    for (int include = 0; include < 2; include++) {
        struct fixture f;
        (void)state;
        begin(&f, "alpha beta", "beta");
        f.rules.include_stop = include;
        for (uint32_t i = 1; i < ids.n; i++)
            assert_null(strstr(pull(&f, i, FINISH_NONE), "beta"));
        f.seq.stop_index = 0;
        f.seq.stop_text_bytes = 6;
        assert_string_equal(pull(&f, (uint32_t)ids.n, FINISH_STOP),
                            include ? "alpha beta" : "alpha ");
        assert_true(f.text.ended);
        end(&f);
    }
}

static void test_a_stop_string_that_the_engine_passed_over_is_text(void **state)
{
    struct fixture f;
    (void)state;
    begin(&f, "alpha beta gamma delta", "beta"); /* min_tokens keeps the engine going */
    for (uint32_t i = 1; i < ids.n; i++)
        (void)pull(&f, i, FINISH_NONE);
    assert_non_null(strstr(f.out.data, "beta gamma"));
    assert_string_equal(pull(&f, (uint32_t)ids.n, FINISH_LENGTH), "alpha beta gamma delta");
    end(&f);
}

static void test_a_stop_seen_before_the_finish_is_held(void **state)
{
    struct fixture f;
    (void)state;
    begin(&f, "alpha beta", "beta");
    assert_string_equal(pull(&f, (uint32_t)ids.n, FINISH_NONE), "alpha ");
    f.seq.stop_index = 0;
    f.seq.stop_text_bytes = 6;
    assert_string_equal(pull(&f, (uint32_t)ids.n, FINISH_STOP), "alpha ");
    end(&f);
}

static void test_a_stop_token_has_no_text_unless_asked(void **state)
{
    for (int include = 0; include < 2; include++) {
        struct fixture f;
        (void)state;
        begin(&f, "The keeper.", NULL);
        f.rules.include_stop = include;
        f.params.stop_id[f.params.stop_id_count++] = ids.ids[ids.n - 1];
        const char *before = pull(&f, (uint32_t)ids.n, FINISH_NONE);
        assert_string_equal(before, "The keeper");
        f.seq.stop_token = ids.ids[ids.n - 1];
        assert_string_equal(pull(&f, (uint32_t)ids.n, FINISH_STOP),
                            include ? "The keeper." : "The keeper");
        end(&f);
    }
}

static void test_the_offset_is_checked_against_our_own_text(void **state)
{
    struct fixture f;
    (void)state;
    begin(&f, "<|end|>alpha beta", "beta");
    f.rules.skip_special = false;
    textout_init(&f.text, &f.rules);
    f.params.ignore_eos = true;
    f.seq.stop_index = 0;
    f.seq.stop_text_bytes = 6; /* counted without the special token's text */
    assert_string_equal(pull(&f, (uint32_t)ids.n, FINISH_STOP), "<|end|>alpha ");
    end(&f);
}

static int setup(void **state)
{
    (void)state;
    world_model(&model);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_free(model.tokenizer);
    chat_template_free(model.chat);
    mem_free(model.chat_text);
    mem_free(ids.ids);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_comes_as_it_is_final),
        cmocka_unit_test(test_half_characters_wait),
        cmocka_unit_test(test_a_possible_stop_is_held_back_and_released),
        cmocka_unit_test(test_a_stop_string_ends_the_text),
        cmocka_unit_test(test_a_stop_string_that_the_engine_passed_over_is_text),
        cmocka_unit_test(test_a_stop_seen_before_the_finish_is_held),
        cmocka_unit_test(test_a_stop_token_has_no_text_unless_asked),
        cmocka_unit_test(test_the_offset_is_checked_against_our_own_text)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
