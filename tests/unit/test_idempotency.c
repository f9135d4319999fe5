#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "server/http/idempotency.h"

static uint8_t id_a[32] = {1}, id_b[32] = {2}, first[32];

static enum status put(struct idempotency *t, uint64_t fair_key, const char *key, const char *body,
                       const uint8_t *id, uint64_t now_ms)
{
    uint8_t key_digest[16], body_digest[16];
    struct idempotency_ask ask = {
        .key = key_digest, .body = body_digest, .now_ms = now_ms, .request_id = id};
    idempotency_digest_key(key_digest, NULL, fair_key, key);
    idempotency_digest_body(body_digest, body, strlen(body));
    return idempotency_put(t, &ask, first);
}

static void test_a_repeat_gets_the_first_id_for_24_hours(void **state)
{
    struct idempotency t;
    (void)state;
    idempotency_init(&t, 8);
    assert_int_equal(put(&t, 1, "k", "body", id_a, 1000), STATUS_OK);
    assert_int_equal(put(&t, 1, "k", "body", id_b, 2000), STATUS_EXISTS);
    assert_memory_equal(first, id_a, 32);
    assert_int_equal(put(&t, 1, "k", "other", id_b, 2000), STATUS_CONFLICT);
    assert_int_equal(put(&t, 2, "k", "body", id_b, 2000), STATUS_OK);
    assert_int_equal(put(&t, 1, "k", "body", id_b, 1000 + IDEMPOTENCY_TTL_MS - 1), STATUS_EXISTS);
    assert_int_equal(put(&t, 1, "k", "body", id_b, 1000 + IDEMPOTENCY_TTL_MS), STATUS_OK);
    idempotency_fini(&t);
}

static void test_a_dropped_key_may_be_used_again(void **state)
{
    struct idempotency t;
    (void)state;
    idempotency_init(&t, 8);
    assert_int_equal(put(&t, 1, "k", "body", id_a, 1), STATUS_OK);
    uint8_t key[16];
    idempotency_digest_key(key, NULL, 1, "k");
    idempotency_drop(&t, key, id_b); /* not this one's */
    assert_int_equal(put(&t, 1, "k", "body", id_b, 2), STATUS_EXISTS);
    idempotency_drop(&t, key, id_a);
    assert_int_equal(put(&t, 1, "k", "body", id_b, 3), STATUS_OK);
    idempotency_fini(&t);
}

static void test_full_refuses_and_expiry_makes_room(void **state)
{
    struct idempotency t;
    char key[16];
    (void)state;
    idempotency_init(&t, 4);
    for (int i = 0; i < 4; i++) {
        snprintf(key, sizeof(key), "k%d", i);
        assert_int_equal(put(&t, 1, key, "b", id_a, (uint64_t)i), STATUS_OK);
    }
    assert_int_equal(put(&t, 1, "more", "b", id_b, 10), STATUS_FULL);
    assert_int_equal(put(&t, 1, "k2", "b", id_b, 10), STATUS_EXISTS);
    assert_int_equal(put(&t, 1, "more", "b", id_b, IDEMPOTENCY_TTL_MS + 1), STATUS_OK);
    assert_int_equal(put(&t, 1, "k3", "b", id_b, IDEMPOTENCY_TTL_MS + 1), STATUS_EXISTS);
    idempotency_fini(&t);
}

/* An account's new key repeats the old one's request; without an account every key is somebody. */
static void test_owner(void **state)
{
    uint8_t account[20] = {7}, other[20] = {8}, a[16], b[16];
    (void)state;
    idempotency_digest_key(a, account, 1, "k");
    idempotency_digest_key(b, account, 2, "k");
    assert_memory_equal(a, b, 16);
    idempotency_digest_key(b, other, 1, "k");
    assert_memory_not_equal(a, b, 16);
    idempotency_digest_key(a, NULL, 1, "k");
    idempotency_digest_key(b, NULL, 2, "k");
    assert_memory_not_equal(a, b, 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_repeat_gets_the_first_id_for_24_hours),
        cmocka_unit_test(test_owner), cmocka_unit_test(test_a_dropped_key_may_be_used_again),
        cmocka_unit_test(test_full_refuses_and_expiry_makes_room)};
    return sodium_init() < 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
