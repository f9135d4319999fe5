#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "server/http/auth.h"

static struct http_key keys[3];
static struct keyring *ring, *none;

static void set_key(struct http_key *k, const char *name, const char *text, unsigned roles)
{
    snprintf(k->name, sizeof(k->name), "%s", name);
    crypto_generichash(k->digest, sizeof(k->digest), (const uint8_t *)text, strlen(text), NULL, 0);
    k->roles = roles;
}

static int setup(void **state)
{
    (void)state;
    set_key(&keys[0], "app", "sk-app", HTTP_ROLE_INFER);
    set_key(&keys[1], "pub", "sk-pub", HTTP_ROLE_PUBLISH);
    set_key(&keys[2], "root", "sk-root", AUTH_ROLES_ALL);
    keys[0].adapter_count = 2;
    snprintf(keys[0].adapter[0], sizeof(keys[0].adapter[0]), "alpha");
    snprintf(keys[0].adapter[1], sizeof(keys[0].adapter[1]), "team/*");
    ring = keyring_create(keys, 3);
    none = keyring_create(NULL, 0);
    return sodium_init() < 0;
}

static int teardown(void **state)
{
    (void)state;
    keyring_unref(ring);
    keyring_unref(none);
    return 0;
}

static void test_a_key_is_found_by_its_digest(void **state)
{
    const struct http_key *key = NULL;
    unsigned roles = 0;
    struct errtext err = ERRTEXT_INIT;
    (void)state;
    assert_int_equal(auth_check(ring, "Bearer sk-pub", &key, &roles, &err), STATUS_OK);
    assert_ptr_equal(key, &ring->key[1]);
    assert_int_equal(roles, HTTP_ROLE_PUBLISH);
    assert_int_equal(auth_check(ring, "bearer  sk-root ", &key, &roles, &err), STATUS_OK);
    assert_ptr_equal(key, &ring->key[2]);
}

static void test_wrong_keys_are_denied_and_never_repeated(void **state)
{
    static const char *const bad[] = {NULL,
                                      "",
                                      "sk-app",
                                      "Basic sk-app",
                                      "Bearer",
                                      "Bearer ",
                                      "Bearer sk-app2",
                                      "Bearer sk-ap",
                                      "Bearer sk-app x"};
    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const struct http_key *key = &keys[0];
        unsigned roles = 1;
        struct errtext err = ERRTEXT_INIT;
        assert_int_equal(auth_check(ring, bad[i], &key, &roles, &err), STATUS_DENIED);
        assert_null(key);
        assert_int_equal(roles, 0);
        assert_null(strstr(err.text, "sk-"));
    }
}

static void test_without_keys_everyone_has_every_role(void **state)
{
    const struct http_key *key = &keys[0];
    unsigned roles = 0;
    (void)state;
    assert_int_equal(auth_check(none, "Bearer EMPTY", &key, &roles, NULL), STATUS_OK);
    assert_null(key);
    assert_int_equal(roles, AUTH_ROLES_ALL);
    assert_int_equal(auth_fair_key(NULL), 0);
    assert_int_not_equal(auth_fair_key(&keys[0]), 0);
}

static void test_adapter_rules_match_names_and_prefixes(void **state)
{
    (void)state;
    assert_true(auth_allows_adapter(&keys[0], "alpha"));
    assert_false(auth_allows_adapter(&keys[0], "alpha2"));
    assert_true(auth_allows_adapter(&keys[0], "team/x"));
    assert_false(auth_allows_adapter(&keys[0], "team"));
    assert_true(auth_allows_adapter(&keys[1], "anything"));
    assert_true(auth_allows_adapter(NULL, "anything"));
}

static void test_keyless_servers_refuse_foreign_pages_and_hosts(void **state)
{
    (void)state;
    assert_int_equal(auth_check_origin(none, "127.0.0.1", NULL, "localhost:8080", NULL), STATUS_OK);
    assert_int_equal(auth_check_origin(none, "127.0.0.1", NULL, "[::1]:8080", NULL), STATUS_OK);
    assert_int_equal(auth_check_origin(none, "127.0.0.1", "http://127.0.0.1:9", NULL, NULL),
                     STATUS_OK);
    assert_int_equal(
        auth_check_origin(none, "127.0.0.1", "https://evil.example", "localhost", NULL),
        STATUS_DENIED);
    assert_int_equal(auth_check_origin(none, "127.0.0.1", "null", "localhost", NULL),
                     STATUS_DENIED);
    assert_int_equal(auth_check_origin(none, "127.0.0.1", NULL, "rebound.example", NULL),
                     STATUS_DENIED);
    assert_int_equal(auth_check_origin(none, "127.0.0.1", NULL, "127.0.0.1.evil.example", NULL),
                     STATUS_DENIED);
    assert_int_equal(auth_check_origin(none, "127.0.0.1", "http://localhost.evil", NULL, NULL),
                     STATUS_DENIED);
    assert_int_equal(
        auth_check_origin(ring, "127.0.0.1", "https://app.example", "api.example", NULL),
        STATUS_OK);
}

static void test_roles_have_names(void **state)
{
    char text[64];
    (void)state;
    auth_roles_text(HTTP_ROLE_INFER | HTTP_ROLE_WORKER, text, sizeof(text));
    assert_string_equal(text, "infer, worker");
    auth_roles_text(0, text, sizeof(text));
    assert_string_equal(text, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_key_is_found_by_its_digest),
        cmocka_unit_test(test_wrong_keys_are_denied_and_never_repeated),
        cmocka_unit_test(test_without_keys_everyone_has_every_role),
        cmocka_unit_test(test_adapter_rules_match_names_and_prefixes),
        cmocka_unit_test(test_keyless_servers_refuse_foreign_pages_and_hosts),
        cmocka_unit_test(test_roles_have_names)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
