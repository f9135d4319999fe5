/* Names: order, replacement, bounds, references, many threads. */
#include "tests/unit/adapter_fixture.h"

#include <pthread.h>

static struct adapter_entry *entry(const char *name, uint8_t byte)
{
    struct adapter_entry *e = catalog_entry_new();
    snprintf(e->name, sizeof(e->name), "%s", name);
    memset(e->id, byte, 32);
    return e;
}

static enum status put(struct catalog *c, const char *name, uint8_t byte, bool replace,
                       struct errtext *err)
{
    struct adapter_entry *e = entry(name, byte), *old;
    enum status st = catalog_put(c, e, replace, &old, err);
    catalog_release(old);
    catalog_release(e);
    return st;
}

static bool note(void *arg, struct adapter_entry *e)
{
    char *out = arg;
    strcat(out, e->name);
    strcat(out, " ");
    return strcmp(e->name, "stop") != 0;
}

static void test_names(void **state)
{
    struct catalog *c = catalog_create(4);
    struct errtext err = ERRTEXT_INIT;
    char order[64] = "";
    catalog_reserve_name(c, "base");
    assert_int_equal(put(c, "m", 1, false, NULL), STATUS_OK);
    assert_int_equal(put(c, "z", 2, false, NULL), STATUS_OK);
    assert_int_equal(put(c, "a/b-c_d.e", 3, false, NULL), STATUS_OK);
    assert_int_equal(put(c, "m", 1, false, NULL), STATUS_OK); /* the same again */
    assert_int_equal(put(c, "m", 9, false, &err), STATUS_EXISTS);
    assert_string_equal(err.param, "lora_name");
    assert_int_equal(put(c, "stop", 4, false, NULL), STATUS_OK);
    err_clear(&err);
    assert_int_equal(put(c, "n", 5, false, &err), STATUS_FULL);
    assert_non_null(strstr(err.text, "adapters_registered_max"));
    assert_int_equal(catalog_count(c), 4);
    catalog_each(c, note, order);
    assert_string_equal(order, "a/b-c_d.e m stop ");
    static const char *const bad[] = {"", "base", "with space", "uml\xc3\xa4ut", "semi;colon"};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        assert_int_equal(put(c, bad[i], 6, true, NULL), STATUS_INVALID);
    char longest[CATALOG_NAME_MAX + 2];
    memset(longest, 'x', sizeof(longest));
    longest[CATALOG_NAME_MAX + 1] = '\0';
    assert_int_equal(catalog_check_name(c, longest, NULL), STATUS_INVALID);
    longest[CATALOG_NAME_MAX] = '\0';
    assert_int_equal(catalog_check_name(c, longest, NULL), STATUS_OK);
    catalog_destroy(c);
}

/* A replaced name never changes what someone holds. */
static void test_replace(void **state)
{
    struct catalog *c = catalog_create(4);
    assert_int_equal(put(c, "m", 1, false, NULL), STATUS_OK);
    struct adapter_entry *held = catalog_find(c, "m"), *e = entry("m", 2), *old;
    assert_int_equal(catalog_put(c, e, true, &old, NULL), STATUS_OK);
    assert_ptr_equal(old, held);
    catalog_release(old);
    assert_int_equal(held->id[0], 1);
    struct adapter_entry *now = catalog_find(c, "m");
    assert_ptr_equal(now, e);
    catalog_release(now);
    uint8_t id[32];
    memset(id, 1, 32);
    assert_null(catalog_find_id(c, id));
    memset(id, 2, 32);
    now = catalog_find_id(c, id);
    assert_ptr_equal(now, e);
    catalog_release(now);
    catalog_release(e);
    catalog_release(held);
    struct adapter_entry *gone = catalog_remove(c, "m");
    assert_non_null(gone);
    catalog_release(gone);
    assert_null(catalog_remove(c, "m"));
    assert_null(catalog_find(c, "m"));
    catalog_destroy(c);
}

static void *hammer(void *arg)
{
    struct catalog *c = arg;
    for (int i = 0; i < 2000; i++) {
        char name[16];
        snprintf(name, sizeof(name), "n%d", i % 17);
        if (i % 3 == 0)
            (void)!put(c, name, (uint8_t)i, true, NULL);
        else if (i % 31 == 1)
            catalog_release(catalog_remove(c, name));
        else
            catalog_release(catalog_find(c, name));
    }
    return NULL;
}

static void test_threads(void **state)
{
    struct catalog *c = catalog_create(64);
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, hammer, c), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    assert_true(catalog_count(c) <= 17);
    catalog_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_replace),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
