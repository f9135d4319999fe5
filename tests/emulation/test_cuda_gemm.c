/* gemm, logits and the piece of a product that score walks, on the emulated device: equal to
 * kernels/ref within f32 rounding; and bit for bit the same whatever the number of rows, the number
 * of SMs (hence tile, grid and cut), the range of weight rows, and the order of blocks and warps.
 * Then the plan for cuBLASLt, with a stand-in for the library. */
#include "kernels/cuda/gemm.h"
#include "tests/emulation/fixture.h"
#include "tests/emulation/lt_double.h"

#define TOL 2e-5 /* f32 sums of up to 1100 products in another order */

/* The race detector needs each kernel and edge once; values and bits are checked without it. */
#ifdef __SANITIZE_THREAD__
#define SPARSE 1
#else
#define SPARSE 0
#endif

/* A product on both sides. x has NaN behind the d_in of every row, y has room behind its columns.
 */
struct product {
    struct gemm_args ref, dev;
    float *x, *want;
    uint16_t *w[GEMM_PARTS_MAX];
    void *dev_w[GEMM_PARTS_MAX];
    void *dev_x, *dev_y;
    uint32_t width;
    size_t y_size;
};

static void product_make(struct ec *e, struct product *p, uint32_t n_row, uint32_t d_in,
                         const uint32_t d_out[GEMM_PARTS_MAX])
{
    memset(p, 0, sizeof(*p));
    p->ref.n_tok = n_row;
    p->ref.x_stride = d_in + 8 * fx_below(3);
    for (uint32_t i = 0; i < GEMM_PARTS_MAX && d_out[i]; i++) {
        p->w[i] = fx_tensor((size_t)d_out[i] * d_in, DTYPE_BF16, 1.0f / sqrtf((float)d_in), 0);
        p->ref.part[i] = (struct weight){p->w[i], DTYPE_BF16, d_out[i], d_in, NULL};
        p->ref.part_count++;
        p->width += d_out[i];
    }
    p->ref.y_stride = p->width + fx_below(3);
    p->y_size = (size_t)n_row * p->ref.y_stride;
    p->x = fx_floats((size_t)n_row * p->ref.x_stride, 1);
    for (uint32_t t = 0; t < n_row; t++)
        for (uint32_t k = d_in; k < p->ref.x_stride; k++)
            p->x[(size_t)t * p->ref.x_stride + k] = NAN;
    p->want = fx_poisoned(p->y_size);
    p->dev = p->ref;
    p->dev_x = ec_put_acts(e, p->x, (size_t)n_row * p->ref.x_stride);
    p->dev_y = ec_alloc(e, p->y_size * sizeof(float));
    for (uint32_t i = 0; i < p->ref.part_count; i++)
        p->dev.part[i].data = p->dev_w[i] = ec_put(e, p->w[i], (size_t)d_out[i] * d_in * 2);
    p->ref.x = p->x;
    p->ref.y = p->want;
    p->dev.x = p->dev_x;
    p->dev.y = p->dev_y;
    assert_int_equal(e->ref->ops->gemm(e->ref, &p->ref), STATUS_OK);
}

static void product_free(struct ec *e, struct product *p)
{
    for (uint32_t i = 0; i < p->ref.part_count; i++) {
        ec_free(e, p->dev_w[i]);
        mem_free(p->w[i]);
    }
    ec_free(e, p->dev_x);
    ec_free(e, p->dev_y);
    mem_free(p->x);
    mem_free(p->want);
}

/* The device's y for the first n_row rows, everything else poisoned; mem_free it. */
static float *product_run(struct ec *e, struct product *p, uint32_t n_row)
{
    float *nan = fx_poisoned(p->y_size);
    struct gemm_args a = p->dev;
    a.n_tok = n_row;
    assert_int_equal(e->cuda->ops->mem_write(e->cuda, p->dev_y, nan, p->y_size * 4), STATUS_OK);
    struct cuda_gemm *g = cuda_of(e->cuda)->gemm;
    assert_int_equal(gpu_fill(cuda_of(e->cuda)->stream, g->partials, 0xff, g->partials_bytes),
                     STATUS_OK);
    assert_int_equal(e->cuda->ops->gemm(e->cuda, &a), STATUS_OK);
    mem_free(nan);
    return ec_get_floats(e, p->dev_y, p->y_size);
}

static void open_with_sms(struct ec *e, int sm_count)
{
    emu_reset();
    emu_device.sm_count = sm_count;
    ec_open(e);
    assert_int_equal(cuda_of(e->cuda)->sm_count, sm_count);
}

/* ---- values ---- */

static void gemm_equals_ref(void **state)
{
    static const uint32_t rows[] = {1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 64, 65, 128, 129};
    static const uint32_t depth[] = {8, 24, 120, 128, 136, 392, 512, 520, 1096};
    struct ec e;
    (void)state;
    for (size_t r = 0; r < ARRAY_COUNT(rows); r++) {
        open_with_sms(&e, 1 + (int)fx_below(9));
        for (size_t k = 0; k < ARRAY_COUNT(depth); k += SPARSE ? 3 : 1) {
            const uint32_t out[] = {1 + fx_below(r & 1 ? 40 : 200), fx_below(3) * fx_below(150),
                                    fx_below(70)};
            struct product p;
            product_make(&e, &p, rows[r], depth[k], out);
            float *got = product_run(&e, &p, rows[r]);
            ec_close_to(got, p.want, p.y_size, EC_TOL_F32, "gemm");
            fx_near(got, p.want, p.y_size, TOL, "gemm");
            mem_free(got);
            product_free(&e, &p);
        }
        ec_close(&e);
    }
}

static void nothing_to_do_writes_nothing(void **state)
{
    struct ec e;
    struct product p;
    const uint32_t out[] = {3, 0, 0};
    (void)state;
    open_with_sms(&e, 2);
    product_make(&e, &p, 2, 16, out);
    float *got = product_run(&e, &p, 0);
    for (size_t i = 0; i < p.y_size; i++)
        assert_true(isnan(got[i]));
    mem_free(got);
    product_free(&e, &p);
    ec_close(&e);
}

/* ---- bits ---- */

static void expect_rows(const struct product *p, const float *got, const float *bits, uint32_t n)
{
    for (uint32_t t = 0; t < n; t++) {
        const size_t at = (size_t)t * p->ref.y_stride;
        if (memcmp(got + at, bits + (size_t)t * p->width, p->width * sizeof(float)) != 0) {
            print_error("row %u of %u differs from itself alone\n", t, n);
            fail();
        }
        for (uint32_t c = p->width; c < p->ref.y_stride; c++)
            assert_true(isnan(got[at + c]));
    }
    for (size_t i = (size_t)n * p->ref.y_stride; i < p->y_size; i++)
        assert_true(isnan(got[i]));
}

/* Each row alone, as bits [n_row][width]; mem_free it. */
static float *rows_alone(struct ec *e, const struct product *p)
{
    float *bits = fx_poisoned((size_t)p->ref.n_tok * p->width);
    void *y = ec_alloc(e, p->width * sizeof(float));
    for (uint32_t t = 0; t < p->ref.n_tok; t++) {
        struct gemm_args a = p->dev;
        a.x = (void *)((uint16_t *)p->dev_x + (size_t)t * a.x_stride);
        a.y = y;
        a.y_stride = p->width;
        a.n_tok = 1;
        assert_int_equal(e->cuda->ops->gemm(e->cuda, &a), STATUS_OK);
        ec_get(e, bits + (size_t)t * p->width, y, p->width * sizeof(float));
    }
    ec_free(e, y);
    return bits;
}

/* All row counts from 1 to 200: every kernel and tile width. */
static void bits_do_not_depend_on_the_number_of_rows(void **state)
{
    struct ec e;
    struct product p;
    const uint32_t out[] = {97, 40, 5};
    (void)state;
    open_with_sms(&e, 4);
    product_make(&e, &p, 200, 392, out); /* slices of 128, 128, 128 and 8 */
    float *bits = rows_alone(&e, &p);
    for (uint32_t n = 1; n <= 200; n += SPARSE ? 29 : 1) {
        float *got = product_run(&e, &p, n);
        expect_rows(&p, got, bits, n);
        mem_free(got);
    }
    mem_free(bits);
    product_free(&e, &p);
    ec_close(&e);
}

/* One SM makes a block walk all tiles; many cut a tile into slices. Seeds change the order of
 * blocks and warps. */
static void bits_do_not_depend_on_the_grid(void **state)
{
    static const int sms[] = {4, 16, 132, 1, 3};
    static const uint32_t rows[] = {1, 5, 8, 13, 16, 24, 32, 50, 64, 100, 130};
    static const uint32_t depth[] = {16, 264, 640, 1040};
    const uint32_t out[] = {300, 0, 0}, out3[] = {33, 128, 70};
    (void)state;
    for (size_t k = SPARSE ? 3 : 0; k < ARRAY_COUNT(depth); k++) {
        float *bits = NULL;
        const uint64_t begin = fx_state;
        for (size_t s = 0; s < (SPARSE ? 2 : ARRAY_COUNT(sms)); s++) {
            struct ec e;
            struct product p;
            emu_set_seed(100 * k + s);
            fx_state = begin; /* the same numbers again */
            open_with_sms(&e, sms[s]);
            product_make(&e, &p, 130, depth[k], k & 1 ? out3 : out);
            if (!bits)
                bits = rows_alone(&e, &p);
            for (size_t r = 0; r < ARRAY_COUNT(rows); r++) {
                float *got = product_run(&e, &p, rows[r]);
                expect_rows(&p, got, bits, rows[r]);
                mem_free(got);
            }
            product_free(&e, &p);
            ec_close(&e);
        }
        mem_free(bits);
    }
}

/* Neighbours in memory are multiplied as one matrix. */
static void bits_do_not_depend_on_where_parts_lie(void **state)
{
    struct ec e;
    struct product p;
    const uint32_t out[] = {40, 8, 72};
    (void)state;
    open_with_sms(&e, 4);
    product_make(&e, &p, 40, 96, out);
    char *all = ec_alloc(&e, (size_t)p.width * 96 * 2), *at = all;
    struct product together = p;
    for (uint32_t i = 0; i < 3; i++) {
        const size_t bytes = (size_t)out[i] * 96 * 2;
        assert_int_equal(e.cuda->ops->mem_write(e.cuda, at, p.w[i], bytes), STATUS_OK);
        together.dev.part[i].data = at;
        at += bytes;
    }
    for (uint32_t n = 1; n <= 40; n += 13) {
        float *apart = product_run(&e, &p, n), *one = product_run(&e, &together, n);
        fx_bits(one, apart, p.y_size);
        mem_free(apart);
        mem_free(one);
    }
    ec_free(&e, all);
    product_free(&e, &p);
    ec_close(&e);
}

static void a_range_has_the_bits_of_the_logits(void **state)
{
    static const uint32_t rows[] = {1, 9, 20, 70};
    struct ec e;
    struct product p;
    const uint32_t out[] = {601, 0, 0};
    (void)state;
    open_with_sms(&e, 4);
    product_make(&e, &p, 70, 264, out);
    struct logits_args l = {.w = p.dev.part[0], .x = p.dev.x};
    float *packed = mem_array((size_t)70 * 264, sizeof(*packed));
    for (uint32_t t = 0; t < 70; t++)
        memcpy(packed + (size_t)t * 264, p.x + (size_t)t * p.ref.x_stride, 264 * sizeof(float));
    void *x = ec_put_acts(&e, packed, (size_t)70 * 264);
    l.x = x;
    for (size_t r = 0; r < ARRAY_COUNT(rows); r++) {
        const uint32_t n = rows[r], v0 = fx_below(601), v1 = v0 + 1 + fx_below(601 - v0);
        const size_t size = (size_t)n * 601, part = (size_t)n * (v1 - v0);
        void *out_all = ec_alloc(&e, size * 4), *out_part = ec_alloc(&e, part * 4);
        l.out = out_all;
        l.n_row = n;
        assert_int_equal(e.cuda->ops->logits(e.cuda, &l), STATUS_OK);
        const struct gemm_tile_args a = {.out = out_part,
                                         .x = p.dev.x,
                                         .w = p.dev.part[0],
                                         .v0 = v0,
                                         .v1 = v1,
                                         .n_row = n,
                                         .x_stride = p.dev.x_stride,
                                         .out_stride = v1 - v0};
        assert_int_equal(cuda_gemm_tile(e.cuda, &a), STATUS_OK);
        float *all = ec_get_floats(&e, out_all, size), *got = ec_get_floats(&e, out_part, part);
        for (uint32_t t = 0; t < n; t++)
            fx_bits(got + (size_t)t * (v1 - v0), all + (size_t)t * 601 + v0, v1 - v0);
        mem_free(all);
        mem_free(got);
        ec_free(&e, out_all);
        ec_free(&e, out_part);
    }
    ec_free(&e, x);
    mem_free(packed);
    product_free(&e, &p);
    ec_close(&e);
}

/* A replayed graph computes with what is in memory then; capture runs nothing. */
static void a_recorded_product_reads_memory_at_replay(void **state)
{
    static const uint32_t rows[] = {3, 40};
    const uint32_t out[] = {260, 0, 0};
    (void)state;
    for (size_t r = 0; r < ARRAY_COUNT(rows); r++) {
        struct ec e;
        struct product p;
        void *graph = NULL;
        open_with_sms(&e, 8);
        product_make(&e, &p, rows[r], 520, out);
        float *want = product_run(&e, &p, rows[r]), *nan = fx_poisoned(p.y_size);
        struct cuda_backend *c = cuda_of(e.cuda);
        assert_int_equal(gpu_capture_begin(c->stream), STATUS_OK);
        assert_int_equal(e.cuda->ops->gemm(e.cuda, &p.dev), STATUS_OK);
        assert_int_equal(gpu_capture_end(c->stream, &graph), STATUS_OK);
        for (int replay = 0; replay < 2; replay++) {
            const size_t x_bytes = (size_t)rows[r] * p.ref.x_stride * 2;
            uint16_t *x = mem_array(x_bytes, 1);
            ec_get(&e, x, p.dev_x, x_bytes);
            for (size_t i = 0; replay && i < x_bytes / 2; i++)
                x[i] ^= 0x8000; /* -x gives -y */
            assert_int_equal(e.cuda->ops->mem_write(e.cuda, p.dev_x, x, x_bytes), STATUS_OK);
            assert_int_equal(e.cuda->ops->mem_write(e.cuda, p.dev_y, nan, p.y_size * 4), STATUS_OK);
            assert_int_equal(gpu_graph_launch(graph, c->stream), STATUS_OK);
            float *got = ec_get_floats(&e, p.dev_y, p.y_size);
            for (size_t i = 0; i < p.y_size; i++)
                assert_true(isnan(want[i]) ? isnan(got[i])
                                           : got[i] == (replay ? -want[i] : want[i]));
            mem_free(got);
            mem_free(x);
        }
        gpu_graph_destroy(graph);
        mem_free(want);
        mem_free(nan);
        product_free(&e, &p);
        ec_close(&e);
    }
}

/* ---- refusals ---- */

static void widths_that_are_no_multiple_of_8_are_refused(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct backend_options opt = {
        .name = "cuda", .deterministic = true, .device_bytes = (uint64_t)64 << 20};
    struct backend_limits lim = ec_limits();
    struct backend *b = NULL;
    (void)state;
    emu_reset();
    assert_int_equal(backend_create(&b, &opt, &err), STATUS_OK);
    lim.d_ff = 1028;
    assert_int_equal(b->ops->prepare(b, &lim, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "d_ff is 1028"));
    backend_destroy(b);
}

/* Where the library is installed it loads; where not, the text says what was looked for. */
static void a_missing_library_is_named(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct cublaslt_api api;
    struct backend_options opt = {
        .name = "cuda", .deterministic = false, .device_bytes = (uint64_t)64 << 20};
    struct backend_limits lim = ec_limits();
    struct backend *b = NULL;
    (void)state;
    emu_reset();
    if (cublaslt_load(&api, &err) == STATUS_OK) {
        assert_non_null(api.matmul);
        cublaslt_unload(&api);
        skip();
    }
    assert_non_null(strstr(err.text, "libcublasLt.so.13"));
    assert_non_null(strstr(err.text, "libcublasLt.so.12"));
    assert_non_null(strstr(err.text, "deterministic"));
    err_clear(&err);
    assert_int_equal(backend_create(&b, &opt, &err), STATUS_OK);
    assert_int_equal(b->ops->prepare(b, &lim, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "libcublasLt.so.13"));
    backend_destroy(b);
}

/* ---- the plan ---- */

static struct backend_limits small_limits(void)
{
    struct backend_limits lim = ec_limits();
    lim.rows_max = 10;
    lim.logits_rows_max = 3;
    lim.d_model = 64;
    lim.d_ff = 96;
    lim.n_head = 4;
    lim.n_kv_head = 2;
    lim.d_head = 16;
    lim.n_vocab = 90;
    return lim;
}

/* The backend again, with the stand-in as its library. */
static void open_with_library(struct ec *e, struct backend_limits lim)
{
    struct errtext err = ERRTEXT_INIT;
    const struct cublaslt_api api = lt_double_api();
    emu_reset();
    ec_open_with(e, &lim, "cuda");
    struct cuda_backend *c = cuda_of(e->cuda);
    cuda_gemm_release(c);
    c->base.deterministic = false;
    assert_int_equal(cuda_gemm_prepare_with(c, &api, &err), STATUS_OK);
    assert_non_null(c->gemm->plan);
}

static void the_faster_one_is_chosen_at_start(void **state)
{
    const uint32_t out[] = {64, 32, 32};
    (void)state;
    for (uint32_t slow = 0; slow < 2; slow++) {
        struct ec e;
        struct product p;
        lt_double = (struct lt_double){.burn_us = slow ? 60000 : 0};
        struct backend_limits lim = small_limits();
        if (slow)
            lim.rows_max = lim.logits_rows_max = 1;
        open_with_library(&e, lim);
        assert_true(lt_double.runs > 0);
        assert_true(lt_double.used[0] > 0 && lt_double.used[1] > 0 && lt_double.used[2] == 0);
        product_make(&e, &p, lim.rows_max, 64, out);
        lt_double.runs = lt_double.used[0] = lt_double.used[1] = 0;
        for (uint32_t n = 1; n <= lim.rows_max; n += 3) {
            float *got = product_run(&e, &p, n);
            fx_near(got, p.want, (size_t)n * p.ref.y_stride, TOL, "by plan");
            mem_free(got);
        }
        if (slow) {
            assert_int_equal(lt_double.runs, 0);
        } else { /* parts of their own, or neighbours as one: 4 calls at least */
            assert_true(lt_double.used[1] >= 4);
            assert_int_equal(lt_double.used[0], 0);
        }
        product_free(&e, &p);
        ec_close(&e);
        assert_int_equal(lt_double.alive, 0);
    }
}

static void what_the_library_refuses_is_done_by_own_kernels(void **state)
{
    struct ec e;
    struct product p;
    const uint32_t out[] = {64, 32, 32}, unknown[] = {50, 3, 0};
    (void)state;
    lt_double = (struct lt_double){0};
    open_with_library(&e, small_limits());
    product_make(&e, &p, 10, 64, out);
    lt_double.refuse = true;
    float *got = product_run(&e, &p, 10);
    fx_near(got, p.want, p.y_size, TOL, "refused");
    mem_free(got);
    product_free(&e, &p);
    lt_double.refuse = false;
    lt_double.runs = 0;
    product_make(&e, &p, 10, 72, unknown); /* not a shape of the model */
    got = product_run(&e, &p, 10);
    fx_near(got, p.want, p.y_size, TOL, "unknown");
    assert_int_equal(lt_double.runs, 0);
    mem_free(got);
    product_free(&e, &p);
    ec_close(&e);
    assert_int_equal(lt_double.alive, 0);
}

/* No room for a matrix's copy: the shape is left out, the start goes on. A device that the library
 * refuses: the start ends, and says how to do without. */
static void a_start_that_cannot_time_goes_on_or_says_why(void **state)
{
    struct ec e;
    struct errtext err = ERRTEXT_INIT;
    const struct cublaslt_api api = lt_double_api();
    struct backend_limits lim = small_limits();
    (void)state;
    emu_reset();
    lim.rows_max = lim.logits_rows_max = 1;
    ec_open_with(&e, &lim, "cuda");
    struct cuda_backend *c = cuda_of(e.cuda);
    cuda_gemm_release(c);
    lt_double = (struct lt_double){.refuse_device = true};
    assert_int_equal(cuda_gemm_prepare_with(c, &api, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "deterministic"));
    cuda_gemm_release(c);
    lt_double.refuse_device = false;
    void *most = gpu_alloc(c->gpu, gpu_bytes_free(c->gpu) - ((size_t)40 << 20));
    assert_non_null(most);
    void *rest = gpu_alloc(c->gpu, ((size_t)8 << 20) - 20000);
    assert_non_null(rest);
    err_clear(&err);
    assert_int_equal(cuda_gemm_prepare_with(c, &api, &err), STATUS_OK);
    assert_int_equal(lt_double.runs, 0);
    gpu_free(c->gpu, most);
    gpu_free(c->gpu, rest);
    ec_close(&e);
    assert_int_equal(lt_double.alive, 0);
}

int main(void)
{
    emu_set_seed(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gemm_equals_ref),
        cmocka_unit_test(nothing_to_do_writes_nothing),
        cmocka_unit_test(bits_do_not_depend_on_the_number_of_rows),
        cmocka_unit_test(bits_do_not_depend_on_the_grid),
        cmocka_unit_test(bits_do_not_depend_on_where_parts_lie),
        cmocka_unit_test(a_range_has_the_bits_of_the_logits),
        cmocka_unit_test(a_recorded_product_reads_memory_at_replay),
        cmocka_unit_test(widths_that_are_no_multiple_of_8_are_refused),
        cmocka_unit_test(a_missing_library_is_named),
        cmocka_unit_test(the_faster_one_is_chosen_at_start),
        cmocka_unit_test(what_the_library_refuses_is_done_by_own_kernels),
        cmocka_unit_test(a_start_that_cannot_time_goes_on_or_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
