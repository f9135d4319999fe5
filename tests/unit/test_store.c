/* Residency with the real loader and real directories: budget, LRU, pins, unload, failures and
 * retries, layouts, files that change under us. */
#include "server/adapter/store.h"
#include "server/base/clock.h"
#include "tests/unit/adapter_fixture.h"

#include <stdatomic.h>

static struct store *store;
static _Atomic uint32_t wakes;

static void on_wake(void *arg)
{
    (void)arg;
    atomic_fetch_add(&wakes, 1);
}

static void open_store(uint32_t slots, uint32_t layouts, uint64_t bytes)
{
    struct store_options opt = {.slots_max = slots,
                                .layouts_max = layouts,
                                .host_bytes_max = bytes,
                                .dtype = DTYPE_F32,
                                .model = &base,
                                .wake = on_wake};
    struct errtext err = ERRTEXT_INIT;
    if (store_create(&store, &opt, &err))
        fail_msg("%s", err.text);
}

static struct store_stats stats(void)
{
    struct store_stats st;
    store_get_stats(store, &st);
    return st;
}

/* Acquire, waiting for the loader. */
static enum status acquire(struct adapter_entry *e, uint64_t now_ms, uint32_t *slot,
                           struct errtext *err)
{
    enum status st = STATUS_BUSY;
    for (int i = 0; i < 20000 && st == STATUS_BUSY; i++) {
        st = store_acquire(store, e, now_ms, slot, err);
        if (st == STATUS_BUSY) {
            usleep(500);
            (void)store_poll(store, now_ms);
        }
    }
    return st;
}

/* Acquire and release: resident, unpinned, used at now_ms. */
static void touch(struct adapter_entry *e, uint64_t now_ms)
{
    uint32_t slot;
    struct errtext err = ERRTEXT_INIT;
    if (acquire(e, now_ms, &slot, &err))
        fail_msg("%s", err.text);
    store_release(store, slot);
}

static uint32_t state_of(const struct adapter_entry *e)
{
    return atomic_load(&e->state);
}

/* The blob is what peft_pack makes of the files. */
static void test_load(void **state)
{
    struct adapter_entry *e = make_entry("a", 1, 4);
    struct peft_adapter a;
    struct lora_entry layout[2 * LORA_MODULE_COUNT];
    uint32_t slot;
    uint64_t bytes;
    open_store(4, 4, 1 << 20);
    assert_int_equal(store_acquire(store, e, 1, &slot, NULL), STATUS_BUSY); /* never waits */
    assert_false(store_is_resident(store, e->id));
    assert_int_equal(acquire(e, 1, &slot, NULL), STATUS_OK);
    assert_true(store_is_resident(store, e->id));
    assert_int_equal(state_of(e), ADAPTER_HOST);
    for (int i = 0; i < 20000 && atomic_load(&wakes) == 0; i++)
        usleep(500); /* the loader wakes after it has handed over */
    assert_true(atomic_load(&wakes) > 0);
    const struct lora_table *t = store_table(store);
    const struct lora_layout *l = &t->layout[t->slot[slot].layout];
    assert_int_equal(peft_read_dir(&a, e->dir, NULL, &base, 1 << 20, NULL), STATUS_OK);
    peft_layout(&a, 2, DTYPE_F32, layout, &bytes);
    assert_int_equal(bytes, l->blob_bytes);
    assert_memory_equal(l->entry, layout, sizeof(layout));
    void *want = mem_alloc_aligned(bytes);
    peft_pack(&a, 2, DTYPE_F32, layout, want);
    assert_memory_equal(t->slot[slot].blob, want, bytes);
    mem_free_aligned(want, bytes);
    peft_fini(&a);
    assert_int_equal(store_slot_rank_sum(store, slot), 4);
    assert_int_equal(stats().host_bytes, bytes);
    assert_int_equal(stats().pinned, 1);
    store_release(store, slot);
    assert_int_equal(stats().pinned, 0);
    store_destroy(store);
    assert_int_equal(atomic_load(&e->refs), 1);
    catalog_release(e);
}

static void test_lru_and_pins(void **state)
{
    struct adapter_entry *e[4];
    struct errtext err = ERRTEXT_INIT;
    uint32_t slot, other;
    for (uint32_t i = 0; i < 4; i++) {
        char name[8];
        snprintf(name, sizeof(name), "e%u", i);
        e[i] = make_entry(name, i, 4);
    }
    open_store(8, 4, 2 * e[0]->blob_bytes + 10);
    touch(e[0], 1);
    touch(e[1], 2);
    touch(e[0], 3);
    touch(e[2], 4); /* e1 was used longest ago */
    assert_true(store_is_resident(store, e[0]->id));
    assert_false(store_is_resident(store, e[1]->id));
    assert_int_equal(state_of(e[1]), ADAPTER_DISK);
    assert_int_equal(stats().evictions, 1);
    /* a pinned adapter stays, however old */
    assert_int_equal(acquire(e[0], 5, &slot, NULL), STATUS_OK);
    touch(e[2], 6);
    touch(e[3], 7);
    assert_true(store_is_resident(store, e[0]->id));
    assert_false(store_is_resident(store, e[2]->id));
    /* all pinned: full, and nothing that could stay is evicted for it */
    assert_int_equal(acquire(e[3], 8, &other, NULL), STATUS_OK);
    assert_int_equal(acquire(e[1], 9, &other, &err), STATUS_FULL);
    assert_non_null(strstr(err.text, "held by running requests"));
    assert_true(stats().host_bytes <= stats().host_bytes_max);
    store_release(store, other);
    touch(e[1], 10);
    store_release(store, slot);
    store_destroy(store);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(atomic_load(&e[i]->refs), 1);
        catalog_release(e[i]);
    }
}

/* One that can never fit says so and evicts nobody; one that cannot fit now evicts nobody either.
 */
static void test_too_large(void **state)
{
    struct adapter_entry *small = make_entry("small", 1, 2), *mid = make_entry("mid", 2, 8),
                         *big = make_entry("big", 3, 32);
    struct errtext err = ERRTEXT_INIT;
    uint32_t slot;
    open_store(8, 8, mid->blob_bytes + small->blob_bytes);
    assert_int_equal(acquire(big, 1, &slot, &err), STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "adapters_host_bytes_max"));
    struct adapter_entry *pinned = make_entry("pinned", 4, 2);
    touch(small, 1);
    assert_int_equal(acquire(pinned, 2, &slot, NULL), STATUS_OK);
    struct adapter_entry *mid2 = make_entry("mid2", 5, 9);
    uint32_t none;
    assert_int_equal(acquire(mid2, 3, &none, NULL), STATUS_FULL);
    assert_true(store_is_resident(store, small->id));
    store_release(store, slot);
    store_destroy(store);
    catalog_release(small);
    catalog_release(mid);
    catalog_release(big);
    catalog_release(pinned);
    catalog_release(mid2);
}

struct done {
    bool called;
    uint64_t bytes_then;
};

static void on_done(void *arg)
{
    struct done *d = arg;
    assert_false(d->called);
    d->called = true;
    d->bytes_then = stats().host_bytes;
}

static void poll_until(const bool *flag)
{
    for (int i = 0; i < 20000 && !*flag; i++) {
        usleep(500);
        (void)store_poll(store, 1);
    }
    assert_true(*flag);
}

static void test_unload(void **state)
{
    struct adapter_entry *e = make_entry("a", 1, 4);
    struct done d = {0}, second = {0};
    uint32_t slot;
    open_store(4, 4, 1 << 20);
    assert_int_equal(store_unload(store, e->id, on_done, &d), STATUS_OK); /* not resident */
    assert_true(d.called);
    d.called = false;
    assert_int_equal(acquire(e, 1, &slot, NULL), STATUS_OK);
    assert_int_equal(store_unload(store, e->id, on_done, &d), STATUS_OK);
    assert_int_equal(state_of(e), ADAPTER_DRAINING);
    assert_int_equal(store_unload(store, e->id, on_done, &second), STATUS_BUSY);
    assert_false(store_is_resident(store, e->id));
    assert_int_equal(store_acquire(store, e, 2, &slot, NULL), STATUS_BUSY); /* no new pins */
    usleep(20000);
    (void)store_poll(store, 2);
    assert_false(d.called); /* pinned */
    assert_int_equal(stats().host_bytes, e->blob_bytes);
    store_release(store, slot);
    assert_false(d.called); /* the loader frees */
    poll_until(&d.called);
    assert_int_equal(d.bytes_then, 0);
    assert_int_equal(atomic_load(&e->refs), 1);
    touch(e, 3); /* and it can come back */
    /* unloaded while it loads */
    d.called = false;
    assert_int_equal(store_unload(store, e->id, on_done, &d), STATUS_OK);
    poll_until(&d.called);
    d.called = false;
    assert_int_equal(store_acquire(store, e, 4, &slot, NULL), STATUS_BUSY);
    assert_int_equal(store_unload(store, e->id, on_done, &d), STATUS_OK);
    poll_until(&d.called);
    assert_int_equal(atomic_load(&e->refs), 1);
    assert_int_equal(stats().resident, 0);
    store_destroy(store);
    catalog_release(e);
}

/* New content under the same name: another id, another slot; the old one keeps serving. */
static void test_replace_in_place(void **state)
{
    struct adapter_entry *old = make_entry("a", 1, 4);
    uint32_t slot, fresh;
    open_store(4, 4, 1 << 20);
    assert_int_equal(acquire(old, 1, &slot, NULL), STATUS_OK);
    struct adapter_entry *now = make_entry("a", 2, 4);
    assert_memory_not_equal(old->id, now->id, 32);
    assert_int_equal(acquire(now, 2, &fresh, NULL), STATUS_OK);
    assert_int_not_equal(slot, fresh);
    assert_true(store_is_resident(store, old->id));
    const struct lora_table *t = store_table(store);
    assert_int_equal(t->slot[slot].layout, t->slot[fresh].layout); /* one shape, one layout */
    store_release(store, slot);
    store_release(store, fresh);
    store_destroy(store);
    catalog_release(old);
    catalog_release(now);
}

static void test_failure_and_retry(void **state)
{
    struct adapter_entry *e = make_entry("a", 1, 4);
    struct errtext err = ERRTEXT_INIT;
    uint32_t slot;
    char path[512], kept[512];
    open_store(4, 4, 1 << 20);
    snprintf(path, sizeof(path), "%s/adapter_model.safetensors", e->dir);
    snprintf(kept, sizeof(kept), "%s/kept", e->dir);
    assert_int_equal(rename(path, kept), 0);
    assert_int_not_equal(acquire(e, 1000, &slot, &err), STATUS_OK);
    assert_non_null(strstr(err.text, "adapter 'a'"));
    assert_int_equal(state_of(e), ADAPTER_FAILED);
    assert_int_equal(stats().host_bytes, 0);
    assert_int_equal(stats().load_failures, 1);
    assert_int_equal(rename(kept, path), 0);
    err_clear(&err);
    enum status again = store_acquire(store, e, 1001, &slot, &err); /* too soon */
    assert_true(again != STATUS_OK && again != STATUS_BUSY);
    assert_non_null(strstr(err.text, "adapter 'a'"));
    assert_int_equal(acquire(e, 10000, &slot, NULL), STATUS_OK);
    store_release(store, slot);
    assert_int_equal(atomic_load(&e->load_count), 1);
    assert_int_equal(atomic_load(&e->fail_count), 1);
    store_destroy(store);
    assert_int_equal(atomic_load(&e->refs), 1);
    catalog_release(e);
}

/* Files that changed since they were registered are not what the name promised. */
static void test_changed_files(void **state)
{
    struct adapter_entry *e = make_entry("a", 1, 4);
    struct errtext err = ERRTEXT_INIT;
    uint32_t slot;
    open_store(4, 4, 1 << 20);
    write_adapter(e->dir, 2, 4);
    assert_int_equal(acquire(e, 1, &slot, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.text, "changed"));
    err_clear(&err);
    char path[512];
    snprintf(path, sizeof(path), "%s/adapter_model.safetensors", e->dir);
    assert_int_equal(truncate(path, 40), 0);
    assert_int_not_equal(acquire(e, 10000, &slot, &err), STATUS_OK);
    store_destroy(store);
    catalog_release(e);
}

/* Layouts are bounded: one more shape is refused and its bytes are given back at once. */
static void test_layouts(void **state)
{
    struct adapter_entry *e[3];
    struct errtext err = ERRTEXT_INIT;
    uint32_t slot;
    for (uint32_t i = 0; i < 3; i++) {
        char name[8];
        snprintf(name, sizeof(name), "e%u", i);
        e[i] = make_entry(name, i, 2 + i);
    }
    open_store(8, 2, 1 << 20);
    touch(e[0], 1);
    touch(e[1], 2);
    assert_int_equal(acquire(e[2], 3, &slot, &err), STATUS_FULL);
    assert_non_null(strstr(err.text, "rank layouts"));
    assert_int_equal(stats().host_bytes, e[0]->blob_bytes + e[1]->blob_bytes);
    struct done d = {0};
    assert_int_equal(store_unload(store, e[0]->id, on_done, &d), STATUS_OK);
    poll_until(&d.called);
    touch(e[2], 9000); /* its layout has a place now */
    store_destroy(store);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(atomic_load(&e[i]->refs), 1);
        catalog_release(e[i]);
    }
}

/* Hundreds of adapters in random order through a budget of a few; the budget holds at every step.
 */
static void test_churn(void **state)
{
    enum { COUNT = 60, PINS = 4 };
    struct adapter_entry *e[COUNT];
    uint32_t held[PINS], seed = 7;
    bool has[PINS] = {0};
    for (uint32_t i = 0; i < COUNT; i++) {
        char name[8];
        snprintf(name, sizeof(name), "e%u", i);
        e[i] = make_entry(name, i, 2 + i % 3);
    }
    open_store(10, 4, 8 * e[2]->blob_bytes);
    for (uint64_t step = 1; step <= 1500; step++) {
        seed = seed * 1664525u + 1013904223u;
        uint32_t k = (seed >> 8) % PINS, i = (seed >> 16) % COUNT;
        struct errtext err = ERRTEXT_INIT;
        if (has[k])
            store_release(store, held[k]);
        enum status st = acquire(e[i], step, &held[k], &err);
        if (st)
            fail_msg("step %llu: %s", (unsigned long long)step, err.text);
        has[k] = true;
        assert_true(stats().host_bytes <= stats().host_bytes_max);
        const struct lora_slot *slot = &store_table(store)->slot[held[k]];
        const struct lora_entry *q = &store_table(store)->layout[slot->layout].entry[LORA_MODULE_Q];
        float first; /* of A: the fixture's formula, so that a slot never serves another's bytes */
        memcpy(&first, (const char *)slot->blob + q->a_off, sizeof(first));
        assert_true(first == (float)(i * 13 % 11) / 8 - 0.5f);
        assert_int_equal(q->rank, 2 + i % 3);
    }
    assert_true(stats().evictions > 500);
    for (uint32_t k = 0; k < PINS; k++) {
        if (has[k])
            store_release(store, held[k]);
    }
    store_destroy(store);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_int_equal(atomic_load(&e[i]->refs), 1);
        catalog_release(e[i]);
    }
}

/* Destroyed with loads under way: nothing is left behind. */
static void test_destroy_busy(void **state)
{
    struct adapter_entry *e[3];
    uint32_t slot;
    for (uint32_t i = 0; i < 3; i++) {
        char name[8];
        snprintf(name, sizeof(name), "e%u", i);
        e[i] = make_entry(name, i, 4);
    }
    open_store(4, 4, 1 << 20);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(store_acquire(store, e[i], 1, &slot, NULL), STATUS_BUSY);
    store_destroy(store);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(atomic_load(&e[i]->refs), 1);
        catalog_release(e[i]);
    }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_world, drop_world)
    const struct CMUnitTest tests[] = {
        TEST(test_load),          TEST(test_lru_and_pins),     TEST(test_too_large),
        TEST(test_unload),        TEST(test_replace_in_place), TEST(test_failure_and_retry),
        TEST(test_changed_files), TEST(test_layouts),          TEST(test_churn),
        TEST(test_destroy_busy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
