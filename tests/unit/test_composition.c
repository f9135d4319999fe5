/* Compositions: golden ids, canonical order, refusals. */
#include "server/adapter/composition.h"
#include "tests/unit/adapter_fixture.h"
#include "tests/unit/golden_json.h"

static json_t *golden(void)
{
    char *data;
    size_t len;
    assert_int_equal(file_read(RS_TEST_DATA "/golden.json", 1u << 24, &data, &len, NULL),
                     STATUS_OK);
    json_t *root = json_loadb(data, len, 0, NULL);
    mem_free(data);
    assert_non_null(root);
    return root;
}

static void test_golden(void **state)
{
    json_t *root = golden();
    const json_t *cases = get(get(root, "identities"), "compositions");
    assert_true(json_array_size(cases) >= 3);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i), *set = get(c, "set");
        struct composition a = {.n = (uint32_t)json_array_size(set)}, b = {.n = a.n};
        for (uint32_t k = 0; k < a.n; k++) {
            const json_t *part = json_array_get(set, k);
            bytes(a.part[k].adapter, 32, get(part, "id"));
            a.part[k].weight_q16 = (int32_t)json_integer_value(get(part, "weight"));
            b.part[a.n - 1 - k] = a.part[k]; /* in another order: the same id */
        }
        assert_int_equal(composition_seal(&a, NULL), STATUS_OK);
        assert_int_equal(composition_seal(&b, NULL), STATUS_OK);
        expect_hex(a.id, 32, text(c, "id"));
        expect_hex(b.id, 32, text(c, "id"));
        for (uint32_t k = 1; k < a.n; k++)
            assert_true(memcmp(b.part[k - 1].adapter, b.part[k].adapter, 32) < 0);
    }
    json_decref(root);
}

static void test_refused(void **state)
{
    struct composition c = {.n = 2};
    struct errtext err = ERRTEXT_INIT;
    c.part[0].weight_q16 = c.part[1].weight_q16 = 1;
    assert_int_equal(composition_seal(&c, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "twice"));
    assert_string_equal(err.param, "adapters");
    c.part[1].adapter[0] = 1;
    assert_int_equal(composition_seal(&c, NULL), STATUS_OK);
    c.part[1].weight_q16 = 0;
    err_clear(&err);
    assert_int_equal(composition_seal(&c, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "weight"));
    c.part[1].weight_q16 = INT32_MIN;
    assert_int_equal(composition_seal(&c, NULL), STATUS_OK);
}

/* The weight and the set decide the id. */
static void test_distinct(void **state)
{
    struct composition a = {.n = 1}, b = {.n = 1}, none = {.n = 0};
    a.part[0].weight_q16 = 65536;
    b.part[0].weight_q16 = 65535;
    assert_int_equal(composition_seal(&a, NULL), STATUS_OK);
    assert_int_equal(composition_seal(&b, NULL), STATUS_OK);
    assert_int_equal(composition_seal(&none, NULL), STATUS_OK);
    assert_memory_not_equal(a.id, b.id, 32);
    assert_memory_not_equal(a.id, none.id, 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_distinct),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
