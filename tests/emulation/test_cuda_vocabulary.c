/* The emulation itself: warp operations against plain arithmetic, barriers that threads leave,
 * copies, streams that run late, recorded graphs. Several seeds: the order of blocks and warps
 * never shows. */
#include "tests/emulation/fixture.h"
#include "tests/emulation/vocabulary.h"

#define SEEDS 5

static void launch(struct ec *e, const char *name, uint32_t grid, uint32_t block,
                   struct vocabulary v)
{
    vocabulary_launch(name, grid, block, cuda_of(e->cuda)->stream, v);
}

static void mma_is_a_product(void **state)
{
    (void)state;
    struct ec e;
    ec_open(&e);
    for (int round = 0; round < SEEDS; round++) {
        float *a = fx_floats(256, 1), *b = fx_floats(128, 1), want[128] = {0};
        void *dev_a = ec_put_acts(&e, a, 256), *dev_b = ec_put_acts(&e, b, 128);
        void *out = ec_alloc(&e, sizeof(want));
        emu_set_seed((uint64_t)round);
        struct vocabulary v = {.a = dev_a, .b = dev_b, .out = out, .smem_bytes = 1024};
        launch(&e, "mma_tile", 1, 32, v);
        for (int i = 0; i < 16; i++)
            for (int k = 0; k < 16; k++)
                for (int j = 0; j < 8; j++)
                    want[i * 8 + j] += a[i * 16 + k] * b[k * 8 + j];
        float *got = ec_get_floats(&e, out, 128);
        ec_close_to(got, want, 128, 1e-6, "a b");
        mem_free(got);
        mem_free(a);
        mem_free(b);
        ec_free(&e, dev_a);
        ec_free(&e, dev_b);
        ec_free(&e, out);
    }
    ec_close(&e);
}

static void matrices_are_moved(void **state)
{
    (void)state;
    struct ec e;
    uint16_t a[256];
    uint32_t words[384];
    ec_open(&e);
    for (int i = 0; i < 256; i++)
        a[i] = (uint16_t)(i * 7);
    void *dev_a = ec_put(&e, a, sizeof(a)), *out = ec_alloc(&e, sizeof(words));
    struct vocabulary v = {.a = dev_a, .words = out, .smem_bytes = 512};
    launch(&e, "matrices", 1, 32, v);
    ec_get(&e, words, out, sizeof(words));
    for (uint32_t lane = 0; lane < 32; lane++)
        for (uint32_t m = 0; m < 4; m++) {
            uint32_t g = lane / 4, t = lane % 4 * 2;
            const uint16_t *tile = a + m * 64;
            uint32_t plain = tile[g * 8 + t] | (uint32_t)tile[g * 8 + t + 1] << 16;
            uint32_t trans = tile[t * 8 + g] | (uint32_t)tile[(t + 1) * 8 + g] << 16;
            const uint32_t *got = words + (lane * 4 + m) * 3;
            assert_int_equal(got[0], plain);
            assert_int_equal(got[1], trans);
            assert_int_equal(got[2], trans);
        }
    ec_free(&e, dev_a);
    ec_free(&e, out);
    ec_close(&e);
}

static void lanes_exchange(void **state)
{
    (void)state;
    struct ec e;
    ec_open(&e);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        enum { BLOCKS = 3, THREADS = 80 };
        void *out = ec_alloc(&e, BLOCKS * THREADS * 6 * 4);
        emu_set_seed(seed);
        struct vocabulary v = {.out = out};
        launch(&e, "exchange", BLOCKS, THREADS, v);
        float *got = ec_get_floats(&e, out, BLOCKS * THREADS * 6);
        for (uint32_t i = 0; i < BLOCKS * THREADS; i++) {
            uint32_t t = i % THREADS, w = t / 32, lanes = w == 2 ? 16 : 32;
            const float *o = got + i * 6;
            uint32_t ballot = 0;
            for (uint32_t l = 0; l < lanes; l += 3)
                ballot |= 1u << l;
            assert_true(o[0] == (float)(w * 32 + 4));
            assert_true(o[1] == (float)((t ^ 1) + 1));
            assert_true(o[2] == (float)(t ^ 2));
            assert_true(o[3] == (w < 2 ? (float)(32 * (w * 32 + 1) + 31 * 16) : 0));
            assert_true(o[4] == (w < 2 ? (float)(w * 32 + 32) : 0));
            assert_true(o[5] == (float)ballot);
        }
        mem_free(got);
        ec_free(&e, out);
    }
    ec_close(&e);
}

static void barriers_do_without_the_gone(void **state)
{
    (void)state;
    struct ec e;
    ec_open(&e);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        void *out = ec_alloc(&e, 4 * 64 * 4);
        emu_set_seed(seed);
        struct vocabulary v = {.out = out, .smem_bytes = 96 * 4};
        launch(&e, "leaving", 4, 96, v);
        float *got = ec_get_floats(&e, out, 4 * 64);
        for (uint32_t i = 0; i < 4 * 64; i++)
            assert_true(got[i] == (float)(95 - (63 - i % 64)));
        mem_free(got);
        ec_free(&e, out);
    }
    ec_close(&e);
}

static void last_block_sees_all(void **state)
{
    (void)state;
    struct ec e;
    uint32_t zero = 0;
    ec_open(&e);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        enum { BLOCKS = 7 };
        void *out = ec_alloc(&e, (1 + BLOCKS * 64) * 4), *words = ec_put(&e, &zero, 4);
        emu_set_seed(seed);
        struct vocabulary v = {.out = out, .words = words, .smem_bytes = 4};
        launch(&e, "last_block", BLOCKS, 64, v);
        float *got = ec_get_floats(&e, out, 1);
        assert_true(got[0] == (float)(64 * 21 + 7 * 63 * 32));
        mem_free(got);
        ec_free(&e, out);
        ec_free(&e, words);
    }
    ec_close(&e);
}

static void copies_come_at_the_wait(void **state)
{
    (void)state;
    struct ec e;
    ec_open(&e);
    float *in = fx_floats(4 * 32 * 4, 1);
    void *dev_in = ec_put(&e, in, 4 * 32 * 4 * 4), *out = ec_alloc(&e, 32 * 4);
    struct vocabulary v = {.in = dev_in, .out = out, .smem_bytes = 2 * 32 * 16};
    launch(&e, "pipeline", 1, 32, v);
    float *got = ec_get_floats(&e, out, 32);
    for (uint32_t t = 0; t < 32; t++) {
        float want = 0;
        for (uint32_t i = 0; i < 4; i++)
            want += in[(i * 32 + 31 - t) * 4];
        assert_true(got[t] == want);
    }
    mem_free(got);
    mem_free(in);
    ec_free(&e, dev_in);
    ec_free(&e, out);
    ec_close(&e);
}

/* A stream runs when somebody waits; a replayed graph has the arguments of its recording and the
 * memory of now. */
static void streams_run_late_and_graphs_replay(void **state)
{
    (void)state;
    struct ec e;
    ec_open(&e);
    void *stream = cuda_of(e.cuda)->stream, *graph;
    float *in = fx_floats(128, 1), *more = fx_floats(128, 1);
    void *dev_in = ec_put(&e, in, 512), *out = ec_alloc(&e, 512);
    struct vocabulary v = {.in = dev_in, .out = out, .smem_bytes = 512};
    launch(&e, "mirror", 1, 128, v);
    float seen;
    emu_peek(&seen, out, sizeof(seen));
    assert_true(isnan(seen));
    assert_int_equal(gpu_stream_sync(stream), STATUS_OK);
    emu_peek(&seen, out, sizeof(seen));
    assert_true(seen == in[127]);

    assert_int_equal(gpu_capture_begin(stream), STATUS_OK);
    launch(&e, "mirror", 1, 128, v);
    v.out = NULL; /* the recording has its own */
    assert_int_equal(gpu_capture_end(stream, &graph), STATUS_OK);
    for (int round = 0; round < 3; round++) {
        more[127] = (float)round;
        assert_int_equal(gpu_write(cuda_of(e.cuda)->gpu, dev_in, more, 512), STATUS_OK);
        assert_int_equal(gpu_graph_launch(graph, stream), STATUS_OK);
        float *got = ec_get_floats(&e, out, 128);
        for (int i = 0; i < 128; i++)
            assert_true(got[i] == more[127 - i]);
        mem_free(got);
    }
    gpu_graph_destroy(graph);
    mem_free(in);
    mem_free(more);
    ec_free(&e, dev_in);
    ec_free(&e, out);
    ec_close(&e);
}

/* More than 48 KB of shared memory has to be asked for, and is what was asked for at most. */
static void large_kernels_ask_first(void **state)
{
    (void)state;
    struct ec e;
    ec_open(&e);
    void *stream = cuda_of(e.cuda)->stream;
    assert_int_equal(vocabulary_large(48 << 10, 0, stream), STATUS_OK);
    assert_int_equal(vocabulary_large(64 << 10, 0, stream), STATUS_IO);
    assert_int_equal(vocabulary_large(64 << 10, 64 << 10, stream), STATUS_OK);
    assert_int_equal(vocabulary_large(65 << 10, 0, stream), STATUS_IO);
    assert_int_equal(vocabulary_large(0, 300 << 10, stream), STATUS_IO);
    assert_int_equal(vocabulary_large(64 << 10, 0, stream), STATUS_OK); /* as before */
    assert_int_equal(gpu_stream_sync(stream), STATUS_OK);
    ec_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mma_is_a_product),
        cmocka_unit_test(matrices_are_moved),
        cmocka_unit_test(lanes_exchange),
        cmocka_unit_test(barriers_do_without_the_gone),
        cmocka_unit_test(last_block_sees_all),
        cmocka_unit_test(copies_come_at_the_wait),
        cmocka_unit_test(streams_run_late_and_graphs_replay),
        cmocka_unit_test(large_kernels_ask_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
