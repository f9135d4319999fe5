/* Every family against transformers + peft (tests/oracle/logits_golden.py), on ref and cpu, in f32
 * and bf16; and bits that do not depend on chunks or threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/base/check.h"
#include "server/base/mem.h"
#include "tests/lib/logits_case.h"

static const char cases_dir[] = RS_TEST_DATA "/logits";

/* Run every case folder; the number of those that have a bar for this dtype. */
static uint32_t check_all(const struct logits_case_options *opt)
{
    struct dirent **list;
    uint32_t judged = 0;
    int n = scandir(cases_dir, &list, NULL, alphasort);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        char dir[PATH_MAX];
        struct errtext err = ERRTEXT_INIT;
        snprintf(dir, sizeof(dir), "%s/%s", cases_dir, list[i]->d_name);
        bool is_case = list[i]->d_name[0] != '.';
        free(list[i]);
        enum status st = is_case ? logits_case_check(dir, opt, &err) : STATUS_UNSUPPORTED;
        if (st && st != STATUS_UNSUPPORTED)
            fail_msg("%s: %s", dir, err.text);
        judged += st == STATUS_OK;
    }
    free(list);
    return judged;
}

static void test_f32(void **state)
{
    struct logits_case_options ref = {
        .backend = "ref", .dtype = DTYPE_CHOICE_F32, .thread_count = 1, .chunk = 16};
    struct logits_case_options cpu = {
        .backend = "cpu", .dtype = DTYPE_CHOICE_F32, .thread_count = 2, .chunk = 7};
    assert_true(check_all(&ref) >= 8);
    assert_true(check_all(&cpu) >= 7); /* one case has a head size that only ref takes */
}

static void test_bf16(void **state)
{
    struct logits_case_options ref = {
        .backend = "ref", .dtype = DTYPE_CHOICE_BF16, .thread_count = 1, .chunk = 5};
    struct logits_case_options cpu = {
        .backend = "cpu", .dtype = DTYPE_CHOICE_BF16, .thread_count = 2, .chunk = 64};
    assert_true(check_all(&ref) >= 6);
    assert_true(check_all(&cpu) >= 6);
}

/* A judge that cannot fail is no judge: another adapter's weights must miss the bar. */
static void test_judge_can_fail(void **state)
{
    char from[PATH_MAX], dir[] = "/tmp/rs-logits-XXXXXX", command[2 * PATH_MAX];
    struct errtext err = ERRTEXT_INIT;
    struct logits_case_options opt = {
        .backend = "ref", .dtype = DTYPE_CHOICE_F32, .thread_count = 1, .chunk = 16};
    snprintf(from, sizeof(from), "%s/llama_default", cases_dir);
    assert_non_null(mkdtemp(dir));
    snprintf(command, sizeof(command),
             "cp -r %s/. %s && cd %s && sed -i 's/\"lora_alpha\": 6/\"lora_alpha\": 6.01/' "
             "a/adapter_config.json",
             from, dir, dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(logits_case_check(dir, &opt, &err), STATUS_CONFLICT);
    snprintf(command, sizeof(command), "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

static void run_bits(const char *backend, enum dtype_choice dtype, uint32_t threads, uint32_t chunk,
                     float *out)
{
    char dir[PATH_MAX];
    struct logits_rig r;
    struct errtext err = ERRTEXT_INIT;
    int32_t ids[40];
    struct lora_part part[2] = {{0, 40000}, {1, -20000}};
    struct logits_rig_options ro = {.model_dir = dir,
                                    .backend = backend,
                                    .dtype = dtype,
                                    .thread_count = threads,
                                    .chunk = chunk,
                                    .context_max = 64};
    for (int i = 0; i < 40; i++)
        ids[i] = (i * 97 + 5) % 256;
    snprintf(dir, sizeof(dir), "%s/qwen2_yarn_window/model", cases_dir);
    if (logits_rig_open(&r, &ro, &err))
        fail_msg("%s", err.text);
    for (int i = 0; i < 2; i++) {
        char adapter[PATH_MAX];
        snprintf(adapter, sizeof(adapter), "%s/qwen2_yarn_window/%c", cases_dir, 'a' + i);
        assert_int_equal(logits_rig_add(&r, adapter, &err), STATUS_OK);
    }
    assert_int_equal(logits_rig_run(&r, part, 2, ids, 0, 40, out, NULL), STATUS_OK);
    logits_rig_close(&r);
}

static void test_bits(void **state)
{
    static const uint32_t shapes[][2] = {{1, 1}, {1, 7}, {2, 16}, {2, 40}};
    enum { ROWS = 40, VOCAB = 272 };
    float *first = mem_array(ROWS * VOCAB, sizeof(*first));
    float *again = mem_array(ROWS * VOCAB, sizeof(*again));
    for (int dtype = DTYPE_CHOICE_F32; dtype <= DTYPE_CHOICE_BF16; dtype++) {
        for (int cpu = 0; cpu < 2; cpu++) {
            run_bits(cpu ? "cpu" : "ref", (enum dtype_choice)dtype, 1, 40, first);
            for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
                run_bits(cpu ? "cpu" : "ref", (enum dtype_choice)dtype, shapes[i][0], shapes[i][1],
                         again);
                assert_memory_equal(first, again, ROWS * VOCAB * sizeof(*first));
            }
        }
    }
    mem_free(first);
    mem_free(again);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_judge_can_fail),
        cmocka_unit_test(test_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
