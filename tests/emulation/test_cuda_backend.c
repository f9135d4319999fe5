/* Creation of the CUDA backend on machines that lack something, its memory, and a device that
 * breaks: each refusal says what was found and what to change. */
#include "tests/emulation/fixture.h"

#include <pthread.h>

static enum status create(const char *name, uint64_t device_bytes, uint32_t device,
                          struct errtext *err)
{
    struct backend *b = NULL;
    struct backend_options opt = {.name = name,
                                  .thread_count = 1,
                                  .deterministic = true,
                                  .device_bytes = device_bytes,
                                  .device = device};
    *err = (struct errtext)ERRTEXT_INIT;
    enum status st = backend_create(&b, &opt, err);
    if (!st)
        assert_string_equal(b->name, "cuda");
    else
        assert_null(b);
    backend_destroy(b);
    return st;
}

static void expect(enum status want, const char *const *texts, uint64_t device_bytes,
                   uint32_t device)
{
    struct errtext err;
    assert_int_equal(create("cuda", device_bytes, device, &err), want);
    for (; *texts; texts++)
        if (!strstr(err.text, *texts)) {
            print_error("\"%s\" does not say \"%s\"\n", err.text, *texts);
            fail();
        }
    emu_reset();
    assert_int_equal(create("cuda", 1 << 20, 0, &err), STATUS_OK);
}
#define EXPECT(st, bytes, device, ...)                                                             \
    expect(st, (const char *const[]){__VA_ARGS__, NULL}, bytes, device)

static void what_is_missing_is_said(void **state)
{
    (void)state;
    emu_device.driver_version = 0;
    EXPECT(STATUS_UNSUPPORTED, 0, 0, "no NVIDIA driver", "install one for CUDA 13.0", "\"cpu\"");
    emu_device.driver_version = 12040;
    EXPECT(STATUS_UNSUPPORTED, 0, 0, "driver is for CUDA 12.4", "needs 13.0", "update");
    emu_device.count = 0;
    EXPECT(STATUS_UNSUPPORTED, 0, 0, "finds no device", "CUDA_VISIBLE_DEVICES");
    emu_device.major = 8;
    EXPECT(STATUS_UNSUPPORTED, 0, 0, "compute capability 8.0", "need 9.0", "another device");
    EXPECT(STATUS_UNSUPPORTED, 0, 3, "device 3 was asked for", "0 to 0");
    EXPECT(STATUS_TOO_LARGE, (uint64_t)600 << 20, 0, "600 MiB", "512 of 512 MiB are free",
           "lower device_bytes");
    emu_device.refuse_pinned = true;
    EXPECT(STATUS_NO_MEMORY, 0, 0, "page-locked", "ulimit -l");
}

static void the_arena_is_a_part_of_what_is_free(void **state)
{
    (void)state;
    const uint32_t percents[] = {0, 25, 100}, want[] = {90, 25, 100};
    for (size_t i = 0; i < ARRAY_COUNT(want); i++) {
        struct backend_options opt = {
            .name = "cuda", .deterministic = true, .device_percent = percents[i]};
        struct backend *b;
        uint64_t total, left;
        assert_int_equal(backend_create(&b, &opt, NULL), STATUS_OK);
        b->ops->mem_room(b, &total, &left);
        assert_in_range(total, ((uint64_t)512 << 20) / 100 * want[i] - 4096,
                        ((uint64_t)512 << 20) / 100 * want[i]);
        backend_destroy(b);
    }
}

static void auto_says_what_it_chose(void **state)
{
    (void)state;
    struct errtext err = ERRTEXT_INIT;
    struct backend_options opt = {.name = "auto", .thread_count = 1, .deterministic = true};
    struct backend *b;
    assert_int_equal(backend_create(&b, &opt, &err), STATUS_OK);
    assert_string_equal(b->name, "cuda");
    assert_non_null(strstr(b->choice, "a device answers"));
    backend_destroy(b);
    emu_device.count = 0;
    assert_int_equal(backend_create(&b, &opt, &err), STATUS_OK);
    assert_string_equal(b->name, "cpu");
    assert_non_null(strstr(b->choice, "finds no device"));
    backend_destroy(b);
    emu_reset();
}

#define HELD 40
static void memory_is_given_back(void **state)
{
    (void)state;
    struct ec e;
    struct block {
        char *p;
        size_t bytes;
        uint8_t fill;
    } held[HELD] = {0};
    ec_open(&e);
    struct gpu *g = cuda_of(e.cuda)->gpu;
    uint64_t free_before = gpu_bytes_free(g);
    for (int round = 0; round < 600; round++) {
        struct block *h = &held[fx_below(HELD)];
        if (h->p) {
            uint8_t *got = mem_array(h->bytes, 1);
            ec_get(&e, got, h->p, h->bytes);
            for (size_t i = 0; i < h->bytes; i++)
                assert_int_equal(got[i], h->fill);
            mem_free(got);
            ec_free(&e, h->p);
            h->p = NULL;
            continue;
        }
        h->bytes = 1 + fx_below(round % 50 ? 3000 : 9 << 20);
        h->fill = (uint8_t)fx_below(256);
        h->p = ec_alloc(&e, h->bytes);
        assert_int_equal((uintptr_t)h->p % 256, 0);
        uint8_t *bytes = mem_array(h->bytes, 1);
        memset(bytes, h->fill, h->bytes);
        assert_int_equal(e.cuda->ops->mem_write(e.cuda, h->p, bytes, h->bytes), STATUS_OK);
        mem_free(bytes);
    }
    for (int i = 0; i < HELD; i++)
        ec_free(&e, held[i].p);
    assert_true(gpu_bytes_free(g) == free_before);
    assert_null(e.cuda->ops->mem_alloc(e.cuda, (size_t)free_before + 1));
    assert_null(e.cuda->ops->mem_alloc(e.cuda, SIZE_MAX));
    ec_close(&e);
}

static void too_little_memory_names_the_line(void **state)
{
    (void)state;
    struct errtext err = ERRTEXT_INIT;
    struct backend_options opt = {.name = "cuda", .deterministic = true, .device_bytes = 64 << 10};
    struct backend_limits lim = ec_limits();
    struct backend *b;
    assert_int_equal(backend_create(&b, &opt, &err), STATUS_OK);
    assert_int_equal(b->ops->prepare(b, &lim, &err), STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "do not fit"));
    assert_string_equal(err.param, "device_bytes");
    backend_destroy(b);
}

/* A sticky error: every call fails from then on, as a status; nothing hangs, nothing is leaked. */
static void broken_device_is_a_status(void **state)
{
    (void)state;
    struct ec e;
    float x[64] = {0};
    int32_t id = 0;
    uint32_t zero = 0;
    ec_open(&e);
    void *dev = ec_put(&e, x, sizeof(x));
    struct norm_args norm = {
        .out = ec_alloc(&e, 16), .x = dev, .gain = ec_alloc(&e, 32), .n_tok = 1, .d_model = 8};
    ec_step_rows(&e, NULL, 1, NULL, 0);
    struct step_args step = {.ids = &id, .rows = {&zero, &zero, &zero, 1}, .n_tok = 1};
    emu_break_device();
    assert_int_equal(e.cuda->ops->mem_write(e.cuda, dev, x, sizeof(x)), STATUS_IO);
    assert_int_equal(e.cuda->ops->mem_read(e.cuda, x, dev, sizeof(x)), STATUS_IO);
    assert_int_equal(e.cuda->ops->step(e.cuda, &step), STATUS_IO);
    assert_int_equal(e.cuda->ops->norm(e.cuda, &norm), STATUS_IO);
    ec_close(&e);
    emu_reset();
}

struct visitor {
    struct backend *b;
    struct norm_args norm;
    bool enters;
    enum status st;
};

static void *visit(void *arg)
{
    struct visitor *v = arg;
    v->st = v->enters ? v->b->ops->enter(v->b) : STATUS_OK;
    if (!v->st)
        v->st = v->b->ops->norm(v->b, &v->norm);
    return NULL;
}

/* A thread's device is 0 until it says otherwise: one that launches elsewhere has to enter. */
static void threads_enter_their_device(void **state)
{
    (void)state;
    struct backend_options opt = {
        .name = "cuda", .deterministic = true, .device_bytes = (uint64_t)64 << 20, .device = 1};
    struct backend_limits lim = ec_limits();
    float x[8] = {1};
    int32_t id = 0;
    uint32_t zero = 0;
    struct ec e = {0};
    pthread_t thread;
    emu_device.count = 2;
    assert_int_equal(backend_create(&e.cuda, &opt, NULL), STATUS_OK);
    assert_int_equal(e.cuda->ops->prepare(e.cuda, &lim, NULL), STATUS_OK);
    struct step_args step = {.ids = &id, .rows = {&zero, &zero, &zero, 1}, .n_tok = 1};
    assert_int_equal(e.cuda->ops->step(e.cuda, &step), STATUS_OK);
    struct visitor v = {.b = e.cuda,
                        .norm = {.out = ec_alloc(&e, 16),
                                 .x = ec_put(&e, x, sizeof(x)),
                                 .gain = ec_put(&e, x, sizeof(x)),
                                 .n_tok = 1,
                                 .d_model = 8}};
    for (int enters = 0; enters < 2; enters++) {
        v.enters = enters;
        assert_int_equal(pthread_create(&thread, NULL, visit, &v), 0);
        pthread_join(thread, NULL);
        assert_int_equal(v.st, enters ? STATUS_OK : STATUS_IO);
    }
    assert_int_equal(e.cuda->ops->norm(e.cuda, &v.norm), STATUS_OK);
    backend_destroy(e.cuda);
    opt.device = 0; /* this thread goes back */
    assert_int_equal(backend_create(&e.cuda, &opt, NULL), STATUS_OK);
    backend_destroy(e.cuda);
    emu_reset();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_missing_is_said),
        cmocka_unit_test(the_arena_is_a_part_of_what_is_free),
        cmocka_unit_test(auto_says_what_it_chose),
        cmocka_unit_test(memory_is_given_back),
        cmocka_unit_test(too_little_memory_names_the_line),
        cmocka_unit_test(broken_device_is_a_status),
        cmocka_unit_test(threads_enter_their_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
