/* The book against a scripted chain: what a request is told before, at and after a change, while
 * the node is dead, and after a restart with a good, damaged or foreign file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "server/base/file.h"
#include "server/base/log.h"
#include "tests/unit/book_fixture.h"

#include <stdio.h>
#include <stdlib.h>

#define T0 1000000u

static char dir[64];
static struct fake_chain chain;
static struct book *book;

static int setup(void **state)
{
    (void)state;
    log_set_level(LOG_LEVEL_ERROR);
    memset(&chain, 0, sizeof(chain));
    pthread_mutex_init(&chain.lock, NULL);
    chain.notice_s = 1000;
    chain.tariff[0] = (struct registry_tariff){10, 5, 7};
    fake_head(&chain, 100, T0);
    snprintf(dir, sizeof(dir), "/tmp/rs-book-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    char cmd[128];
    (void)state;
    book_close(book);
    book = NULL;
    snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    return system(cmd);
}

static void open_book(void)
{
    struct errtext err = ERRTEXT_INIT;
    struct book_options o = fake_options(&chain, dir);
    if (book_open(&book, &o, &err))
        fail_msg("%s", err.text);
}

static struct terms *terms_at(uint8_t byte, uint64_t now_s)
{
    uint8_t id[32];
    struct terms *t = NULL;
    struct errtext err = ERRTEXT_INIT;
    memset(id, byte, 32);
    if (book_terms_wait(book, id, now_s, 4000, &t, &err))
        fail_msg("%s", err.text);
    return t;
}

static uint64_t price_at(uint8_t byte, uint64_t now_s)
{
    struct terms *t = terms_at(byte, now_s);
    uint64_t price = (uint64_t)terms_tariff(t).in;
    terms_release(t);
    return price;
}

static void test_content_ids_have_terms(void **state)
{
    struct tariff base;
    struct fake_adapter *a =
        fake_add(&chain, 1, (struct fake_entry){.active_at = 50, .price_in = 9});
    open_book();
    struct terms *t = terms_at(1, T0);
    assert_true(t->r.registered);
    assert_int_equal((uint64_t)t->r.price_in, 9);
    assert_memory_equal(t->r.entry[0].payee, a->owner, 20);
    terms_release(t);
    t = terms_at(2, T0);
    assert_false(t->r.registered);
    assert_int_equal((uint64_t)terms_tariff(t).in, 0);
    terms_release(t);
    assert_true(fake_wait(book, 100));
    assert_int_equal(book_base(book, T0, &base, NULL), STATUS_OK);
    assert_int_equal((uint64_t)base.in, 5);
    assert_int_equal((uint64_t)base.out, 7);
}

/* A change is known before it comes into force, and comes in by the second, node or no node. */
static void test_a_change_comes_into_force_by_itself(void **state)
{
    struct fake_adapter *a =
        fake_add(&chain, 1, (struct fake_entry){.active_at = 50, .price_in = 9});
    open_book();
    assert_int_equal(price_at(1, T0), 9);
    fake_change(&chain, a, (struct fake_entry){.active_at = T0 + 500, .price_in = 20}, 101);
    chain.tariff[1] = (struct registry_tariff){T0 + 600, 50, 70};
    fake_head(&chain, 101, T0 + 2);
    assert_true(fake_wait(book, 101));
    fake_die(&chain, "no answer");
    assert_int_equal(price_at(1, T0 + 499), 9);
    assert_int_equal(price_at(1, T0 + 500), 20);
    struct tariff base;
    assert_int_equal(book_base(book, T0 + 599, &base, NULL), STATUS_OK);
    assert_int_equal((uint64_t)base.in, 5);
    assert_int_equal(book_base(book, T0 + 600, &base, NULL), STATUS_OK);
    assert_int_equal((uint64_t)base.in, 50);
}

/* Only what an event names is read again, and one entry a round besides. */
static void test_events_say_what_to_read(void **state)
{
    struct fake_adapter *a = NULL;
    for (uint8_t i = 1; i <= 6; i++)
        a = fake_add(&chain, i, (struct fake_entry){.active_at = 50, .price_in = i});
    open_book();
    for (uint8_t i = 1; i <= 6; i++)
        assert_int_equal(price_at(i, T0), i);
    assert_true(fake_wait(book, 100));
    uint32_t before = chain.asked;
    fake_change(&chain, a, (struct fake_entry){.active_at = T0, .price_in = 99}, 101);
    fake_head(&chain, 101, T0 + 1);
    assert_true(fake_wait(book, 101));
    assert_int_equal(price_at(6, T0 + 1), 99);
    assert_in_range(chain.asked - before, 1, 2);
}

static void test_a_dead_node_changes_nothing_within_the_notice(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct book_stats s;
    fake_add(&chain, 1, (struct fake_entry){.active_at = 50, .price_in = 9});
    open_book();
    assert_int_equal(price_at(1, T0), 9);
    assert_true(fake_wait(book, 100));
    assert_int_equal(book_ready(book, T0, NULL), STATUS_OK);
    fake_die(&chain, "nobody is there");
    do {
        clock_sleep_ms(2);
        book_get_stats(book, &s);
    } while (s.failures < 2);
    assert_int_equal(s.block, 100);
    assert_int_equal(price_at(1, T0 + 1000), 9);
    assert_int_equal(book_ready(book, T0 + 1000, &err), STATUS_OK);
    assert_int_equal(book_check_age(book, T0 + 1001, &err), STATUS_BUSY);
    assert_non_null(strstr(err.text, "block 100"));
    assert_non_null(strstr(err.text, "nobody is there"));
    assert_int_equal(book_ready(book, T0 + 1001, NULL), STATUS_BUSY);
    fake_die(&chain, NULL);
    fake_head(&chain, 140, T0 + 1001);
    assert_true(fake_wait(book, 140));
    assert_int_equal(book_ready(book, T0 + 1001, NULL), STATUS_OK);
}

/* Nothing is known: nothing is charged for, and nothing given away. */
static void test_before_the_first_reading(void **state)
{
    uint8_t id[32];
    struct terms *t = NULL;
    struct tariff base;
    struct errtext err = ERRTEXT_INIT;
    memset(id, 1, 32);
    chain.dead = "nobody is there";
    open_book();
    assert_int_equal(book_terms(book, id, T0, &t, &err), STATUS_BUSY);
    assert_null(t);
    assert_int_equal(book_base(book, T0, &base, NULL), STATUS_BUSY);
    assert_int_equal(book_ready(book, T0, NULL), STATUS_BUSY);
    /* a node that is behind what was read is not believed */
    fake_die(&chain, NULL);
    assert_true(fake_wait(book, 100));
    fake_head(&chain, 90, T0 - 20);
    struct book_stats s;
    do {
        clock_sleep_ms(2);
        book_get_stats(book, &s);
    } while (s.failures < 2);
    assert_int_equal(s.block, 100);
}

static void reopen(void)
{
    book_close(book);
    book = NULL;
    open_book();
}

static void test_a_restart_needs_no_node(void **state)
{
    struct datanet_owner list[3];
    uint8_t root[32];
    fake_owners(&chain, list);
    struct fake_adapter *a =
        fake_add(&chain, 1, (struct fake_entry){.active_at = 50, .version = 2, .price_in = 9});
    open_book();
    assert_int_equal(price_at(1, T0), 9);
    assert_int_equal(price_at(7, T0), 0);
    fake_change(&chain, a, (struct fake_entry){.active_at = T0 + 500, .version = 2, .price_in = 20},
                101);
    fake_head(&chain, 101, T0 + 2);
    assert_true(fake_wait(book, 101));
    assert_int_equal(book_put_owners(book, list, 3, root, NULL), STATUS_OK);
    clock_sleep_ms(50); /* the file is written after the round */
    fake_die(&chain, "nobody is there");
    reopen();
    assert_int_equal(price_at(1, T0), 9);
    assert_int_equal(price_at(1, T0 + 500), 20);
    assert_int_equal(price_at(7, T0), 0);
    struct terms *t = terms_at(1, T0);
    assert_non_null(t->contributors);
    assert_int_equal(t->contributors->count, 3);
    assert_int_equal(t->contributors->item[2].document_count, 3);
    assert_memory_equal(t->document_root, chain.document_root, 32);
    terms_release(t);
    assert_int_equal(book_ready(book, T0 + 900, NULL), STATUS_OK);
}

static void spoil(const char *from, const char *to)
{
    char path[128], *text, *at;
    size_t len;
    snprintf(path, sizeof(path), "%s/registry.json", dir);
    assert_int_equal(file_read(path, 1 << 20, &text, &len, NULL), STATUS_OK);
    at = strstr(text, from);
    assert_non_null(at);
    memcpy(at, to, strlen(to));
    assert_int_equal(file_write_atomic(path, text, len, 0600, NULL), STATUS_OK);
    mem_free(text);
}

/* A file of another chain, lane or base, or a damaged one, is not believed: it is read anew. */
static void test_a_file_of_another_life(void **state)
{
    static const char *const change[][2] = {{"\"chain_id\":31337", "\"chain_id\":31338"},
                                            {"\"lane\":3", "\"lane\":4"},
                                            {"\"registry\":\"77", "\"registry\":\"78"},
                                            {"\"now\":\"00", "\"now\":\"zz"},
                                            {"\"format\"", "\"formal\""}};
    fake_add(&chain, 1, (struct fake_entry){.active_at = 50, .price_in = 9});
    for (size_t i = 0; i < sizeof(change) / sizeof(change[0]); i++) {
        struct errtext err = ERRTEXT_INIT;
        open_book();
        assert_int_equal(price_at(1, T0), 9);
        assert_true(fake_wait(book, 100));
        clock_sleep_ms(50);
        book_close(book);
        book = NULL;
        spoil(change[i][0], change[i][1]);
        fake_die(&chain, "nobody is there");
        open_book();
        if (book_ready(book, T0, &err) != STATUS_BUSY)
            fail_msg("%s was believed", change[i][1]);
        fake_die(&chain, NULL);
        assert_int_equal(price_at(1, T0), 9);
        book_close(book);
        book = NULL;
    }
}

/* A list counts where its root is the registered one, whoever brings it; of many owners the largest
 * share. */
static void test_owners(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct datanet_owner list[3], many[70];
    uint8_t root[32];
    struct buf json;
    fake_owners(&chain, list);
    fake_add(&chain, 1, (struct fake_entry){.active_at = 50, .version = 2, .price_in = 9});
    open_book();
    struct terms *t = terms_at(1, T0);
    assert_null(t->contributors);
    terms_release(t);
    list[0].documents = 4; /* a liar's */
    assert_int_equal(book_put_owners(book, list, 3, root, &err), STATUS_OK);
    t = terms_at(1, T0);
    assert_null(t->contributors);
    terms_release(t);
    buf_init(&json, 1 << 16);
    assert_int_equal(book_owners_json(book, chain.adapter[0].datanet_id, 2, &json, &err),
                     STATUS_NOT_FOUND);
    list[0].documents = 1;
    assert_int_equal(book_put_owners(book, list, 3, root, &err), STATUS_OK);
    assert_memory_equal(root, chain.owner_root, 32);
    t = terms_at(1, T0);
    assert_int_equal(t->contributors->count, 3);
    terms_release(t);
    buf_clear(&json);
    assert_int_equal(book_owners_json(book, chain.adapter[0].datanet_id, 2, &json, &err),
                     STATUS_OK);
    assert_non_null(
        strstr(json.data, "\"version\":2,\"owners\":[{\"documents\":1,\"owner\":\"0x10"));
    assert_int_equal(book_owners_json(book, chain.adapter[0].datanet_id, 3, &json, &err),
                     STATUS_NOT_FOUND);
    buf_fini(&json);
    for (uint32_t i = 0; i < 70; i++) {
        memset(many[i].owner, (int)i + 1, 20);
        many[i].documents = i < 10 ? 1 : 2 + i % 3;
    }
    struct owners *o;
    assert_int_equal(owners_open(&o, dir, NULL), STATUS_OK);
    assert_int_equal(owners_put(o, many, 70, root, NULL), STATUS_OK);
    struct contributors *c = owners_find(o, root);
    assert_int_equal(c->count, 64);
    for (uint32_t i = 0; i < 4; i++) /* of ten with one document the four lowest addresses */
        assert_int_equal(c->item[i].payee[0], i + 1);
    assert_int_equal(c->item[4].payee[0], 11);
    contributors_release(c);
    owners_close(o);
}

/* More ids than the book holds: the one asked for longest ago goes, and comes back when asked. */
static void test_ids_are_bounded(void **state)
{
    struct book_stats s;
    for (uint8_t i = 1; i <= 12; i++)
        fake_add(&chain, i, (struct fake_entry){.active_at = 50, .price_in = i});
    open_book();
    for (uint8_t i = 1; i <= 12; i++)
        assert_int_equal(price_at(i, T0), i);
    book_get_stats(book, &s);
    assert_int_equal(s.ids, 8);
    assert_int_equal(price_at(1, T0), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_content_ids_have_terms, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_change_comes_into_force_by_itself, setup, teardown),
        cmocka_unit_test_setup_teardown(test_events_say_what_to_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_dead_node_changes_nothing_within_the_notice, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_before_the_first_reading, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_restart_needs_no_node, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_file_of_another_life, setup, teardown),
        cmocka_unit_test_setup_teardown(test_owners, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ids_are_bounded, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
