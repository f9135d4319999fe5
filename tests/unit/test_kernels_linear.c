/* embed, norm and gemm: every CPU path against ref on random shapes, and the bitwise promise: a
 * row's output is the same alone, among others, in any order, at any thread count. */
#include "tests/unit/kernels_fixture.h"

static void test_embed(void **state)
{
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    for (int round = 0; round < 12; round++) {
        uint32_t d = 1 + fx_below(200), v = 1 + fx_below(50), n = fx_below(40);
        enum dtype t = round & 1 ? DTYPE_BF16 : DTYPE_F32;
        char *table = fx_tensor((size_t)v * d, t, 1, (size_t)round % 4);
        int32_t *ids = mem_array(n + 1, sizeof(*ids));
        for (uint32_t i = 0; i < n; i++)
            ids[i] = (int32_t)fx_below(v);
        float *want = fx_poisoned((size_t)n * d);
        struct embed_args a = {want, {table + round % 4, t, v, d, NULL}, ids, n};
        f.ref->ops->embed(f.ref, &a);
        for (uint32_t i = 0; i < f.n_cpu; i++) {
            float *got = fx_poisoned((size_t)n * d);
            a.out = got;
            assert_int_equal(f.cpu[i]->ops->embed(f.cpu[i], &a), STATUS_OK);
            fx_bits(got, want, (size_t)n * d);
            mem_free(got);
        }
        mem_free(want);
        mem_free(ids);
        mem_free(table);
    }
    fx_close(&f);
}

static void test_norm(void **state)
{
    static const uint32_t sizes[] = {1, 2, 3, 15, 16, 17, 63, 64, 65, 100, 896, 1030};
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    for (size_t s = 0; s < ARRAY_COUNT(sizes); s++) {
        uint32_t d = sizes[s], n = fx_below(30), n_x = n + 5;
        float *x = fx_floats((size_t)n_x * d, 1), *gain = fx_floats(d, 1);
        uint32_t *rows = mem_array(n + 1, sizeof(*rows));
        for (uint32_t i = 0; i < n; i++)
            rows[i] = i + fx_below(5);
        float *want = fx_poisoned((size_t)n * d), *want_rstd = fx_poisoned(n);
        struct norm_args a = {want, x, gain, s & 1 ? rows : NULL, want_rstd, 1e-6f, n, d, NULL};
        f.ref->ops->norm(f.ref, &a);
        for (uint32_t i = 0; i < f.n_cpu; i++) {
            float *got = fx_poisoned((size_t)n * d), *rstd = fx_poisoned(n);
            a.out = got;
            a.keep_rstd = rstd;
            assert_int_equal(f.cpu[i]->ops->norm(f.cpu[i], &a), STATUS_OK);
            fx_near(got, want, (size_t)n * d, 2e-6, "norm");
            fx_near(rstd, want_rstd, n, 2e-6, "rstd");
            for (uint32_t t = 0; t < n; t++) { /* alone, in place */
                float *one = mem_array(d, sizeof(float));
                memcpy(one, x + (size_t)(a.rows ? rows[t] : t) * d, d * sizeof(float));
                float *kept = fx_poisoned(d);
                struct norm_args alone = {one, one, gain, NULL, NULL, 1e-6f, 1, d, kept};
                f.cpu[i]->ops->norm(f.cpu[i], &alone);
                fx_bits(one, got + (size_t)t * d, d);
                fx_bits(kept, x + (size_t)(a.rows ? rows[t] : t) * d, d);
                mem_free(kept);
                mem_free(one);
            }
            mem_free(got);
            mem_free(rstd);
        }
        mem_free(want);
        mem_free(want_rstd);
        mem_free(rows);
        mem_free(gain);
        mem_free(x);
    }
    fx_close(&f);
}

struct gemm_case {
    struct gemm_args a;
    char *w[GEMM_PARTS_MAX];
    float *x, *want, *first; /* first: bits of the first backend of a path */
    uint32_t d_in, d_out;
};

static void gemm_case_make(struct gemm_case *c, uint32_t n_tok, uint32_t d_in, enum dtype t)
{
    memset(c, 0, sizeof(*c));
    c->d_in = d_in;
    c->a.part_count = 1 + fx_below(GEMM_PARTS_MAX);
    for (uint32_t p = 0; p < c->a.part_count; p++) {
        uint32_t d_out = 1 + fx_below(p ? 40 : 120);
        size_t shift = fx_below(4);
        c->w[p] = fx_tensor((size_t)d_out * d_in, t, 1.0f / sqrtf((float)d_in), shift);
        c->a.part[p] = (struct weight){c->w[p] + shift, t, d_out, d_in, NULL};
        c->d_out += d_out;
    }
    c->a.n_tok = n_tok;
    c->a.x_stride = d_in + fx_below(3);
    c->a.y_stride = c->d_out + fx_below(3);
    c->x = fx_floats((size_t)n_tok * c->a.x_stride, 1);
    c->want = fx_poisoned((size_t)n_tok * c->a.y_stride);
    c->a.x = c->x;
    c->a.y = c->want;
}

static void gemm_case_free(struct gemm_case *c)
{
    for (uint32_t p = 0; p < c->a.part_count; p++)
        mem_free(c->w[p]);
    mem_free(c->x);
    mem_free(c->want);
}

/* Every row alone must give the bits it has in the batch. */
static void check_rows_alone(struct backend *b, const struct gemm_case *c, const float *got)
{
    float *one = fx_poisoned(c->d_out);
    for (uint32_t t = 0; t < c->a.n_tok; t++) {
        struct gemm_args a = c->a;
        a.x = c->x + (size_t)t * c->a.x_stride;
        a.n_tok = 1;
        a.y = one;
        a.y_stride = c->d_out;
        b->ops->gemm(b, &a);
        fx_bits(one, got + (size_t)t * c->a.y_stride, c->d_out);
    }
    mem_free(one);
}

/* The packed copy gives the bits of the mapped rows, at every row count. */
static void check_packed(struct backend *b, const struct gemm_case *c, const float *got)
{
    struct gemm_args a = c->a;
    size_t n = (size_t)c->a.n_tok * c->a.y_stride, bytes[GEMM_PARTS_MAX];
    void *packed[GEMM_PARTS_MAX];
    if (!b->ops->pack)
        return;
    a.y = fx_poisoned(n);
    for (uint32_t p = 0; p < a.part_count; p++) {
        bytes[p] = b->ops->pack_bytes(b, &a.part[p]);
        assert_true(!b->has_bf16 || strstr(b->version, "dnnl") || a.part[p].dtype != DTYPE_BF16 ||
                    bytes[p] > 0);
        packed[p] = bytes[p] ? mem_alloc_aligned(bytes[p]) : NULL;
        if (!packed[p])
            continue;
        b->ops->pack(b, packed[p], &a.part[p]);
        a.part[p].packed = packed[p];
        a.part[p].data = NULL;
    }
    b->ops->gemm(b, &a);
    fx_bits(a.y, got, n);
    for (uint32_t p = 0; p < a.part_count; p++)
        if (packed[p])
            mem_free_aligned(packed[p], bytes[p]);
    mem_free(a.y);
}

static void gemm_compare(struct fx_backends *f, const struct gemm_case *c, bool alone)
{
    size_t n = (size_t)c->a.n_tok * c->a.y_stride;
    float *first = NULL;
    for (uint32_t i = 0; i < f->n_cpu; i++) {
        struct gemm_args a = c->a;
        float *got = fx_poisoned(n);
        a.y = got;
        assert_int_equal(f->cpu[i]->ops->gemm(f->cpu[i], &a), STATUS_OK);
        fx_near(got, c->want, n, 2e-5, "gemm");
        check_packed(f->cpu[i], c, got);
        if (i > 0 && fx_same_path(f->cpu[i], f->cpu[i - 1])) {
            fx_bits(got, first, n);
            mem_free(got);
            continue;
        }
        mem_free(first);
        first = got;
        if (alone)
            check_rows_alone(f->cpu[i], c, got);
    }
    mem_free(first);
}

static void test_gemm(void **state)
{
    static const uint32_t rows[] = {0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 17, 33, 64};
    static const uint32_t depth[] = {1, 2, 7, 15, 16, 17, 31, 32, 33, 64, 100, 129, 300};
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    for (size_t r = 0; r < ARRAY_COUNT(rows); r++) {
        for (size_t k = 0; k < ARRAY_COUNT(depth); k++) {
            struct gemm_case c;
            gemm_case_make(&c, rows[r], depth[k], (r + k) & 1 ? DTYPE_BF16 : DTYPE_F32);
            f.ref->ops->gemm(f.ref, &c.a);
            gemm_compare(&f, &c, true);
            gemm_case_free(&c);
        }
    }
    fx_close(&f);
}

/* Long rows: several blocks of rows and several passes through the conversion buffer. */
static void test_gemm_large(void **state)
{
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct gemm_case c;
        gemm_case_make(&c, 270, 9001, bf16 ? DTYPE_BF16 : DTYPE_F32);
        c.a.part_count = 1;
        c.a.part[0].d_out = MIN(c.a.part[0].d_out, 21u);
        c.d_out = c.a.part[0].d_out;
        f.ref->ops->gemm(f.ref, &c.a);
        gemm_compare(&f, &c, false);
        c.a.part_count = GEMM_PARTS_MAX;
        gemm_case_free(&c);
    }
    fx_close(&f);
}

/* Parts of different dtypes in one call. */
static void test_gemm_mixed_parts(void **state)
{
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    struct gemm_case a, b;
    gemm_case_make(&a, 5, 77, DTYPE_F32);
    gemm_case_make(&b, 5, 77, DTYPE_BF16);
    float *want = fx_poisoned(5 * 400), *got = fx_poisoned(5 * 400);
    struct gemm_args m = {.y = want,
                          .x = a.x,
                          .part = {a.a.part[0], b.a.part[0], a.a.part[0]},
                          .part_count = 3,
                          .n_tok = 5,
                          .x_stride = a.a.x_stride,
                          .y_stride = 400};
    f.ref->ops->gemm(f.ref, &m);
    for (uint32_t i = 0; i < f.n_cpu; i++) {
        m.y = got;
        f.cpu[i]->ops->gemm(f.cpu[i], &m);
        fx_near(got, want, 5 * 400, 2e-5, "mixed");
    }
    mem_free(want);
    mem_free(got);
    gemm_case_free(&a);
    gemm_case_free(&b);
    fx_close(&f);
}

/* deterministic = false may hand large products to a library: same values within rounding. */
static void test_gemm_by_shape(void **state)
{
    struct backend *b = NULL, *ref = fx_backend("ref", 1);
    struct backend_options opt = {.name = "cpu", .thread_count = 2, .deterministic = false};
    struct gemm_case c;
    (void)state;
    assert_int_equal(backend_create(&b, &opt, NULL), STATUS_OK);
    gemm_case_make(&c, 70, 200, DTYPE_BF16);
    ref->ops->gemm(ref, &c.a);
    float *got = fx_poisoned((size_t)c.a.n_tok * c.a.y_stride);
    c.a.y = got;
    assert_int_equal(b->ops->gemm(b, &c.a), STATUS_OK);
    fx_near(got, c.want, (size_t)c.a.n_tok * c.a.y_stride, 2e-5, "by shape");
    mem_free(got);
    gemm_case_free(&c);
    backend_destroy(b);
    backend_destroy(ref);
}

static void test_unknown_backend(void **state)
{
    struct backend *b = NULL;
    struct errtext err = ERRTEXT_INIT;
    struct backend_options opt = {.name = "tpu"};
    (void)state;
    assert_int_equal(backend_create(&b, &opt, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "tpu"));
    assert_string_equal(err.param, "backend");
    opt.name = "cuda";
    err_clear(&err);
    assert_int_equal(backend_create(&b, &opt, &err), STATUS_UNSUPPORTED);
    opt.name = "cpu:mmx";
    err_clear(&err);
    assert_int_equal(backend_create(&b, &opt, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "mmx"));
    opt.name = "cpu";
    opt.thread_count = 100000;
    err_clear(&err);
    assert_int_equal(backend_create(&b, &opt, &err), STATUS_INVALID);
    assert_null(b);
    opt.name = "auto";
    opt.thread_count = 0;
    err_clear(&err);
    assert_int_equal(backend_create(&b, &opt, &err), STATUS_OK);
    assert_string_equal(b->name, "cpu");
    assert_true(b->worker_count >= 1);
    backend_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_gemm_large),
        cmocka_unit_test(test_gemm_mixed_parts),
        cmocka_unit_test(test_gemm_by_shape),
        cmocka_unit_test(test_unknown_backend),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
