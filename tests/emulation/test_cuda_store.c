/* Residency on a device: packed blobs in page-locked memory, copies beside the
 * steps, eviction by least use with pins, unload that frees both tiers, and
 * what does not fit is told by name. */
#include "server/adapter/device_form.h"
#include "server/adapter/store.h"
#include "tests/emulation/emu_control.h"
#include "tests/unit/adapter_fixture.h"

#define DEVICE_BYTES ((uint64_t)64 << 20)
#define PIECE        ((uint64_t)2 << 20)

static struct backend *backend;
static struct store *store;

static void open_store(uint32_t slots, uint64_t host_bytes, uint64_t device_bytes)
{
    struct errtext err = ERRTEXT_INIT;
    struct backend_options bo = {
        .name = "cuda", .deterministic = true, .device_bytes = DEVICE_BYTES};
    if (backend_create(&backend, &bo, &err))
        fail_msg("%s", err.text);
    struct store_options opt = {.slots_max = slots,
                                .layouts_max = 4,
                                .host_bytes_max = host_bytes,
                                .device_bytes_max = device_bytes,
                                .dtype = DTYPE_BF16,
                                .backend = backend,
                                .model = &base};
    if (store_create(&store, &opt, &err))
        fail_msg("%s", err.text);
}

static void close_store(void)
{
    uint64_t total, left;
    store_destroy(store);
    backend->ops->mem_room(backend, &total, &left);
    assert_int_equal(left, total); /* the pool is the backend's again */
    backend_destroy(backend);
}

static struct store_stats stats(void)
{
    struct store_stats st;
    store_get_stats(store, &st);
    return st;
}

/* As a publisher with opt.form makes it; the layouts are given where asked for.
 */
static struct adapter_entry *device_entry(const char *name, uint32_t seed, uint32_t rank)
{
    struct adapter_entry *e = make_entry(name, seed, rank);
    struct peft_adapter a;
    struct lora_entry layout[2 * LORA_MODULE_COUNT];
    assert_int_equal(peft_read_dir(&a, e->dir, NULL, &base, 1 << 20, NULL), STATUS_OK);
    peft_layout(&a, 2, DTYPE_BF16, layout, &e->blob_bytes);
    e->blob_bytes = device_form_layout(backend->ops->adapters, &base, layout, layout);
    peft_fini(&a);
    return e;
}

static enum status acquire(struct adapter_entry *e, uint64_t now_ms, uint32_t *slot,
                           struct errtext *err)
{
    enum status st = STATUS_BUSY;
    for (int i = 0; i < 20000 && st == STATUS_BUSY; i++) {
        st = store_acquire(store, e, now_ms, slot, err);
        if (st == STATUS_BUSY) {
            usleep(200);
            (void)store_poll(store, now_ms);
        }
    }
    return st;
}

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

/* What the slot's blob must be, packed here. */
static void assert_blob(const struct adapter_entry *e, uint32_t slot)
{
    struct peft_adapter a;
    struct lora_entry plain[2 * LORA_MODULE_COUNT], packed[2 * LORA_MODULE_COUNT];
    uint64_t bytes;
    const struct lora_table *t = store_table(store);
    const struct lora_layout *l = &t->layout[t->slot[slot].layout];
    assert_int_equal(peft_read_dir(&a, e->dir, NULL, &base, 1 << 20, NULL), STATUS_OK);
    peft_layout(&a, 2, DTYPE_BF16, plain, &bytes);
    void *blob = mem_alloc_aligned(bytes);
    peft_pack(&a, 2, DTYPE_BF16, plain, blob);
    uint64_t want_bytes = device_form_layout(backend->ops->adapters, &base, packed, plain);
    void *want = mem_alloc_aligned(want_bytes), *got = mem_alloc_aligned(want_bytes);
    device_form_pack(backend->ops->adapters, &base, want, packed, blob, plain);
    assert_int_equal(want_bytes, l->blob_bytes);
    assert_memory_equal(l->entry, packed, sizeof(packed));
    assert_int_equal(backend->ops->mem_read(backend, got, t->slot[slot].blob, want_bytes),
                     STATUS_OK);
    assert_memory_equal(got, want, want_bytes);
    mem_free_aligned(blob, bytes);
    mem_free_aligned(want, want_bytes);
    mem_free_aligned(got, want_bytes);
    peft_fini(&a);
}

static void test_load(void **state)
{
    uint32_t slot;
    open_store(4, 1 << 20, 2 * PIECE);
    struct adapter_entry *e = device_entry("a", 1, 5);
    assert_int_equal(store_acquire(store, e, 1, &slot, NULL), STATUS_BUSY); /* never waits */
    assert_int_equal(acquire(e, 1, &slot, NULL), STATUS_OK);
    assert_int_equal(state_of(e), ADAPTER_DEVICE);
    assert_blob(e, slot);
    assert_int_equal(store_slot_rank_sum(store, slot), 5); /* true, not padded */
    assert_int_equal(stats().device_bytes, PIECE);
    assert_int_equal(stats().host_bytes, e->blob_bytes);
    assert_int_equal(stats().uploads, 1);
    store_release(store, slot);
    touch(e, 2);
    assert_int_equal(stats().uploads, 1);
    close_store();
    assert_int_equal(atomic_load(&e->refs), 1);
    catalog_release(e);
}

/* Two places on the device, more in memory: what is evicted there comes back
 * without a load. */
static void test_lru_and_pins(void **state)
{
    struct adapter_entry *e[4];
    struct errtext err = ERRTEXT_INIT;
    uint32_t slot, other;
    open_store(8, 1 << 20, 2 * PIECE);
    for (uint32_t i = 0; i < 4; i++) {
        char name[8];
        snprintf(name, sizeof(name), "e%u", i);
        e[i] = device_entry(name, i, 4);
    }
    touch(e[0], 1);
    touch(e[1], 2);
    touch(e[0], 3);
    touch(e[2], 4); /* e1 was used longest ago */
    assert_int_equal(state_of(e[0]), ADAPTER_DEVICE);
    assert_int_equal(state_of(e[1]), ADAPTER_HOST);
    assert_int_equal(stats().device_evictions, 1);
    assert_int_equal(stats().evictions, 0);
    assert_int_equal(acquire(e[0], 5, &slot, NULL), STATUS_OK);
    assert_int_equal(acquire(e[3], 6, &other, NULL), STATUS_OK);
    assert_int_equal(acquire(e[1], 7, &other, &err), STATUS_FULL); /* both are pinned */
    assert_non_null(strstr(err.text, "held by running requests"));
    assert_int_equal(state_of(e[0]), ADAPTER_DEVICE);
    store_release(store, slot);
    assert_int_equal(acquire(e[1], 8, &slot, NULL), STATUS_OK);
    assert_blob(e[1], slot);
    assert_int_equal(stats().loads, 4);
    assert_int_equal(state_of(e[0]), ADAPTER_HOST);
    store_release(store, slot);
    for (uint32_t i = 0; i < 8; i++) {
        if (store_table(store)->slot[i].blob)
            assert_true(stats().on_device <= 2);
    }
    assert_int_equal(stats().pinned, 1); /* e3 */
    uint32_t again;
    assert_int_equal(acquire(e[3], 9, &again, NULL), STATUS_OK);
    store_release(store, again);
    store_release(store, again);
    close_store();
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(atomic_load(&e[i]->refs), 1);
        catalog_release(e[i]);
    }
}

static void test_the_host_tier_evicts_too(void **state)
{
    struct adapter_entry *e[6];
    open_store(8, 3 * (64 << 10), 8 * PIECE);
    for (uint32_t i = 0; i < 6; i++) {
        char name[8];
        snprintf(name, sizeof(name), "e%u", i);
        e[i] = device_entry(name, i, 4);
        touch(e[i], i + 1);
    }
    assert_int_equal(stats().resident, 3);
    assert_int_equal(stats().on_device, 3);
    assert_int_equal(stats().evictions, 3);
    assert_int_equal(state_of(e[0]), ADAPTER_DISK);
    assert_int_equal(state_of(e[5]), ADAPTER_DEVICE);
    close_store();
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(atomic_load(&e[i]->refs), 1);
        catalog_release(e[i]);
    }
}

struct done {
    bool called;
    uint64_t host_then, device_then;
};

static void on_done(void *arg)
{
    struct done *d = arg;
    d->called = true;
    d->host_then = stats().host_bytes;
    d->device_then = stats().device_bytes;
}

static void test_unload_frees_both_tiers(void **state)
{
    struct done d = {0};
    uint32_t slot;
    open_store(4, 1 << 20, 2 * PIECE);
    struct adapter_entry *e = device_entry("a", 1, 4);
    assert_int_equal(acquire(e, 1, &slot, NULL), STATUS_OK);
    assert_int_equal(store_unload(store, e->id, on_done, &d), STATUS_OK);
    assert_int_equal(state_of(e), ADAPTER_DRAINING);
    usleep(5000);
    (void)store_poll(store, 2);
    assert_false(d.called); /* pinned */
    store_release(store, slot);
    for (int i = 0; i < 20000 && !d.called; i++) {
        usleep(200);
        (void)store_poll(store, 3);
    }
    assert_true(d.called);
    assert_int_equal(d.host_then, 0);
    assert_int_equal(d.device_then, 0);
    assert_null(store_table(store)->slot[slot].blob);
    /* unloaded while its copy is under way: it lands first */
    d.called = false;
    while (stats().uploading == 0) {
        assert_int_equal(store_acquire(store, e, 4, &slot, NULL), STATUS_BUSY);
        if (stats().uploading == 0) {
            usleep(200);
            (void)store_poll(store, 4);
        }
    }
    assert_int_equal(store_unload(store, e->id, on_done, &d), STATUS_OK);
    for (int i = 0; i < 20000 && !d.called; i++) {
        usleep(200);
        (void)store_poll(store, 5);
    }
    assert_true(d.called);
    assert_int_equal(d.device_then, 0);
    close_store();
    assert_int_equal(atomic_load(&e->refs), 1);
    catalog_release(e);
}

static void test_what_does_not_fit_is_told(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct store *none;
    uint32_t slot;
    open_store(4, 8 << 20, PIECE);
    struct adapter_entry *e = device_entry("big", 1, 4);
    e->blob_bytes = 3 << 20;
    assert_int_equal(store_acquire(store, e, 1, &slot, &err), STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "'big' needs 3145728 bytes"));
    assert_non_null(strstr(err.text, "2097152 (adapters_device_bytes_max)"));
    struct store_options opt = {.slots_max = 4,
                                .layouts_max = 4,
                                .host_bytes_max = 1 << 20,
                                .device_bytes_max = 1 << 20,
                                .dtype = DTYPE_BF16,
                                .backend = backend,
                                .model = &base};
    err_clear(&err);
    assert_int_equal(store_create(&none, &opt, &err), STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "hold no adapter"));
    err_clear(&err);
    opt.device_bytes_max = 2 * DEVICE_BYTES;
    assert_int_equal(store_create(&none, &opt, &err), STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "do not fit"));
    err_clear(&err);
    opt.device_bytes_max = PIECE;
    emu_device.refuse_pinned = true;
    assert_int_equal(store_create(&none, &opt, &err), STATUS_NO_MEMORY);
    assert_non_null(strstr(err.text, "page-locked"));
    emu_reset();
    close_store();
    catalog_release(e);
}

/* Many adapters in random order through both tiers: a pinned slot's bytes are
 * always its own. */
static void test_churn(void **state)
{
    enum { COUNT = 24, PINS = 3 };
    struct adapter_entry *e[COUNT];
    uint32_t held[PINS], seed = 7;
    bool has[PINS] = {0};
    open_store(10, 8 * (64 << 10), 4 * PIECE);
    for (uint32_t i = 0; i < COUNT; i++) {
        char name[8];
        snprintf(name, sizeof(name), "e%u", i);
        e[i] = device_entry(name, i, 2 + i % 3);
    }
    for (uint64_t step = 1; step <= 300; step++) {
        seed = seed * 1664525u + 1013904223u;
        uint32_t k = (seed >> 8) % PINS, i = (seed >> 16) % COUNT;
        struct errtext err = ERRTEXT_INIT;
        if (has[k])
            store_release(store, held[k]);
        enum status st = acquire(e[i], step, &held[k], &err);
        if (st)
            fail_msg("step %llu: %s", (unsigned long long)step, err.text);
        has[k] = true;
        assert_blob(e[i], held[k]);
        assert_true(stats().device_bytes <= stats().device_bytes_max);
    }
    assert_true(stats().evictions > 50);
    assert_true(stats().device_evictions > 50);
    for (uint32_t k = 0; k < PINS; k++) {
        if (has[k])
            store_release(store, held[k]);
    }
    close_store();
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_int_equal(atomic_load(&e[i]->refs), 1);
        catalog_release(e[i]);
    }
}

/* The device breaks while a copy is under way: it is told, and nothing is used
 * that is not there. */
static void test_a_lost_device(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    uint32_t slot;
    open_store(4, 1 << 20, 2 * PIECE);
    struct adapter_entry *e = device_entry("a", 1, 4);
    for (int i = 0; i < 20000 && !store_is_resident(store, e->id); i++) {
        assert_int_equal(store_acquire(store, e, 1, &slot, NULL), STATUS_BUSY);
        usleep(200);
        (void)store_poll(store, 1);
    }
    emu_break_device();
    enum status st = acquire(e, 2, &slot, &err);
    assert_int_equal(st, STATUS_IO);
    assert_int_equal(stats().on_device, 0);
    store_destroy(store);
    backend_destroy(backend);
    emu_reset();
    assert_int_equal(atomic_load(&e->refs), 1);
    catalog_release(e);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_world, drop_world)
    const struct CMUnitTest tests[] = {
        TEST(test_load),
        TEST(test_lru_and_pins),
        TEST(test_the_host_tier_evicts_too),
        TEST(test_unload_frees_both_tiers),
        TEST(test_what_does_not_fit_is_told),
        TEST(test_churn),
        TEST(test_a_lost_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
