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
    f->rules = (struct textout_rules){.model = &model, .params = &f->params};
    f->seq = (struct request_seq){
        .out_id = ids.ids, .out_logprob = logprobs, .stop_token = -1, .stop_index = -1};
    textout_init(&f->text, &f->rules);
    buf_init(&f->out, 1u << 16);
}

static const char *pull(struct fixture *f, uint32_t n, enum finish_reason finish)
{
    if (finish != FINISH_NONE)
        atomic_store(&f->seq.end_tokens, n);
    atomic_store(&f->seq.n_out, n);
    atomic_store(&f->seq.finish, finish);
    textout_pull(&f->text, &f->rules, &f->seq, &f->out, NULL);
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
        f.seq.cut_byte = 6;
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

/* The engine says that a sequence has ended before it says why: that is enough. */
static void test_the_end_is_known_with_the_last_token(void **state)
{
    struct fixture f;
    (void)state;
    begin(&f, "alpha beta", "beta");
    f.seq.stop_index = 0;
    f.seq.cut_byte = 6;
    atomic_store(&f.seq.end_tokens, (uint32_t)ids.n);
    (void)pull(&f, (uint32_t)ids.n - 1, FINISH_NONE);
    assert_false(f.text.ended);
    assert_string_equal(pull(&f, (uint32_t)ids.n, FINISH_NONE), "alpha ");
    assert_true(f.text.ended);
    assert_int_equal(f.text.given, ids.n);
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
        const char *before = pull(&f, (uint32_t)ids.n - 1, FINISH_NONE);
        assert_string_equal(before, "The keeper");
        f.seq.stop_token = ids.ids[ids.n - 1];
        assert_string_equal(pull(&f, (uint32_t)ids.n, FINISH_STOP),
                            include ? "The keeper." : "The keeper");
        end(&f);
    }
}

static void test_special_tokens_that_show_are_text(void **state)
{
    struct fixture f;
    (void)state;
    begin(&f, "<|end|>alpha beta", "beta");
    f.params.show_special = f.params.ignore_eos = true;
    textout_init(&f.text, &f.rules);
    f.seq.stop_index = 0;
    f.seq.cut_byte = 13;
    assert_string_equal(pull(&f, (uint32_t)ids.n, FINISH_STOP), "<|end|>alpha ");
    end(&f);
}

static void expect_offsets(const struct buf *got, const char *want)
{
    char text[256] = "";
    for (size_t i = 0; i < got->len / sizeof(uint32_t); i++) {
        size_t len = strlen(text);
        snprintf(text + len, sizeof(text) - len, i ? " %u" : "%u",
                 ((const uint32_t *)(const void *)got->data)[i]);
    }
    assert_string_equal(text, want);
}

static void test_prompt_offsets_point_into_the_echo(void **state)
{
    static const struct {
        const char *text, *offsets;
        bool sent, show;
    } cases[] = {{"<|end|>The <|end|>k", "0 7 10 11 18", true, false},
                 {"<|end|>The <|end|>k", "0 7 10 11 18", false, true},
                 {"The k", "0 0 3 4 4", false, false}, /* hidden in ids that were sent */
                 {"The k", "0 0 3 4 4", true, false}}; /* added, not written */
    static const int32_t written[] = {'e', 'T', ' ', 'e', 'k'};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct request_params params = {.show_special = cases[i].show};
        struct textout_rules rules = {.model = &model, .params = &params};
        struct textout_echo echo = {
            .text = cases[i].text, .len = strlen(cases[i].text), .sent = cases[i].sent};
        struct buf offsets;
        int32_t prompt[5];
        for (size_t k = 0; k < ARRAY_COUNT(prompt); k++) {
            const char *text = written[k] == 'e'   ? DOUBLE_EOS
                               : written[k] == 'T' ? "The"
                               : written[k] == ' ' ? " "
                                                   : "k";
            ids.n = 0;
            assert_int_equal(tokenizer_encode(model.tokenizer, text, strlen(text),
                                              TOKENIZE_PARSE_SPECIAL, &ids, NULL),
                             STATUS_OK);
            prompt[k] = ids.ids[0];
        }
        buf_init(&offsets, 1024);
        assert_true(textout_prompt_offsets(&rules, prompt, 5, &echo, &offsets));
        expect_offsets(&offsets, cases[i].offsets);
        buf_fini(&offsets);
    }
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
        cmocka_unit_test(test_the_end_is_known_with_the_last_token),
        cmocka_unit_test(test_a_stop_token_has_no_text_unless_asked),
        cmocka_unit_test(test_special_tokens_that_show_are_text),
        cmocka_unit_test(test_prompt_offsets_point_into_the_echo)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
