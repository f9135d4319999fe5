/* Rope tables against rows that transformers made (tests/oracle/rope_golden.py), for every rope
 * kind and both config spellings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdlib.h>
#include <math.h>
#include <string.h>

#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/model/config.h"

#define POS_COUNT 4096

static void check_case(const json_t *item)
{
    struct model_config c;
    struct errtext err = ERRTEXT_INIT;
    char *text = json_dumps(json_object_get(item, "config"), 0);
    const char *name = json_string_value(json_object_get(item, "name"));
    if (model_config_parse(&c, text, strlen(text), NULL, 0, &err))
        fail_msg("%s: %s", name, err.text);
    uint32_t half = c.d_head / 2;
    float *cos_out = mem_array((size_t)POS_COUNT * half, sizeof(*cos_out));
    float *sin_out = mem_array((size_t)POS_COUNT * half, sizeof(*sin_out));
    model_rope_fill(&c, POS_COUNT, cos_out, sin_out);
    const json_t *positions = json_object_get(item, "positions");
    for (size_t p = 0; p < json_array_size(positions); p++) {
        size_t pos = (size_t)json_integer_value(json_array_get(positions, p));
        for (uint32_t i = 0; i < half; i++) {
            double want_cos = json_number_value(
                json_array_get(json_array_get(json_object_get(item, "cos"), p), i));
            double want_sin = json_number_value(
                json_array_get(json_array_get(json_object_get(item, "sin"), p), i));
            /* one f32 ulp of frequency turns into pos ulps of angle */
            double bar = 2e-6 + (double)pos * 2.4e-7;
            double d = fmax(fabs(cos_out[pos * half + i] - want_cos),
                            fabs(sin_out[pos * half + i] - want_sin));
            if (d > bar)
                fail_msg("%s: position %zu, pair %u: differs by %g (bar %g)", name, pos, i, d, bar);
        }
    }
    mem_free(cos_out);
    mem_free(sin_out);
    free(text);
}

static void test_golden(void **state)
{
    char *text;
    size_t len;
    struct errtext err = ERRTEXT_INIT;
    if (file_read(RS_TEST_DATA "/rope_golden.json", 1u << 24, &text, &len, &err))
        fail_msg("%s", err.text);
    json_t *root = json_loadb(text, len, 0, NULL);
    const json_t *cases = json_object_get(root, "cases");
    assert_true(json_array_size(cases) >= 10);
    for (size_t i = 0; i < json_array_size(cases); i++)
        check_case(json_array_get(cases, i));
    json_decref(root);
    mem_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
