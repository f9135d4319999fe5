/* embed and norm on the emulated device against kernels/ref. */
#include "tests/emulation/fixture.h"

static const uint32_t widths[] = {8, 64, 200, 896, 1024, 1032, 4096};
static const uint32_t counts[] = {0, 1, 7, 33, 256, 300};

static void embed_equals_ref(void **state)
{
    (void)state;
    struct ec e;
    ec_open(&e);
    for (size_t w = 0; w < ARRAY_COUNT(widths); w++)
        for (size_t k = 0; k < ARRAY_COUNT(counts); k++) {
            uint32_t d = widths[w], n = counts[k], vocab = 37;
            size_t size = (size_t)n * d;
            uint16_t *table = fx_tensor((size_t)vocab * d, DTYPE_BF16, 1, 0);
            int32_t *ids = mem_array(n + 1, sizeof(*ids));
            for (uint32_t i = 0; i < n; i++)
                ids[i] = (int32_t)fx_below(vocab);
            float *want = fx_poisoned(size);
            struct embed_args a = {
                .out = want, .table = {table, DTYPE_BF16, vocab, d, NULL}, .ids = ids, .n_tok = n};
            assert_int_equal(e.ref->ops->embed(e.ref, &a), STATUS_OK);
            void *dev_table = ec_put(&e, table, (size_t)vocab * d * 2);
            void *out = ec_alloc(&e, size * sizeof(float));
            ec_step_rows(&e, ids, n, NULL, 0);
            a.out = out;
            a.table.data = dev_table;
            assert_int_equal(e.cuda->ops->embed(e.cuda, &a), STATUS_OK);
            float *got = ec_get_floats(&e, out, size);
            if (n > 0)
                fx_bits(got, want, size);
            ec_free(&e, out);
            ec_free(&e, dev_table);
            mem_free(got);
            mem_free(want);
            mem_free(ids);
            mem_free(table);
        }
    ec_close(&e);
}

struct norm_case {
    uint32_t d, n_in, n_tok; /* rows of x, rows normed */
    const uint32_t *rows;
};

static void check_norm(struct ec *e, const struct norm_case *t)
{
    size_t in = (size_t)t->n_in * t->d, size = (size_t)t->n_tok * t->d;
    float *x = fx_floats(in, 3), *gain = fx_floats(t->d, 1);
    float *want = fx_poisoned(size), *want_rstd = fx_poisoned(t->n_tok);
    struct norm_args a = {.out = want,
                          .x = x,
                          .gain = gain,
                          .rows = t->rows,
                          .keep_rstd = want_rstd,
                          .eps = 1e-6f,
                          .n_tok = t->n_tok,
                          .d_model = t->d};
    assert_int_equal(e->ref->ops->norm(e->ref, &a), STATUS_OK);
    void *dev_x = ec_put(e, x, in * 4), *dev_gain = ec_put(e, gain, t->d * 4);
    void *out = ec_alloc(e, size * 2), *rstd = ec_alloc(e, t->n_tok * 4);
    ec_step_rows(e, NULL, t->n_in, t->rows, t->rows ? t->n_tok : 0);
    a.out = out;
    a.x = dev_x;
    a.gain = dev_gain;
    a.keep_rstd = rstd;
    assert_int_equal(e->cuda->ops->norm(e->cuda, &a), STATUS_OK);
    float *got = ec_get_acts(e, out, size), *got_rstd = ec_get_floats(e, rstd, t->n_tok);
    ec_close_to(got, want, size, EC_TOL_BF16, "norm");
    ec_close_to(got_rstd, want_rstd, t->n_tok, EC_TOL_F32, "rstd");
    ec_free(e, dev_x);
    ec_free(e, dev_gain);
    ec_free(e, out);
    ec_free(e, rstd);
    mem_free(got);
    mem_free(got_rstd);
    mem_free(want);
    mem_free(want_rstd);
    mem_free(x);
    mem_free(gain);
}

static void norm_equals_ref(void **state)
{
    (void)state;
    struct ec e;
    uint32_t rows[40];
    ec_open(&e);
    for (size_t w = 0; w < ARRAY_COUNT(widths); w++)
        for (size_t k = 0; k < ARRAY_COUNT(counts); k++) {
            struct norm_case all = {widths[w], counts[k], counts[k], NULL};
            check_norm(&e, &all);
            if (counts[k] < 2)
                continue;
            for (uint32_t i = 0; i < 40; i++)
                rows[i] = fx_below(counts[k]);
            struct norm_case some = {widths[w], counts[k], MIN(counts[k], 40), rows};
            check_norm(&e, &some);
        }
    ec_close(&e);
}

/* Rows behind the count are padding: not read, not written. */
static void padding_is_left_alone(void **state)
{
    (void)state;
    struct ec e;
    ec_open(&e);
    enum { D = 64, N = 5, PADDED = 8 };
    float *x = fx_floats(N * D, 1), *gain = fx_floats(D, 1), *first = NULL;
    for (uint32_t launched = N; launched <= PADDED; launched += PADDED - N) {
        void *dev_x = ec_put(&e, x, N * D * 4), *dev_gain = ec_put(&e, gain, D * 4);
        void *out = ec_alloc(&e, launched * D * 2);
        ec_step_rows(&e, NULL, N, NULL, 0);
        struct norm_args a = {.out = out,
                              .x = dev_x,
                              .gain = dev_gain,
                              .eps = 1e-5f,
                              .n_tok = launched,
                              .d_model = D};
        assert_int_equal(e.cuda->ops->norm(e.cuda, &a), STATUS_OK);
        float *got = ec_get_acts(&e, out, launched * D);
        for (uint32_t i = N * D; i < launched * D; i++)
            assert_true(isnan(got[i]));
        if (first)
            fx_bits(got, first, N * D);
        mem_free(first);
        first = got;
        ec_free(&e, out);
        ec_free(&e, dev_x);
        ec_free(&e, dev_gain);
    }
    mem_free(first);
    mem_free(x);
    mem_free(gain);
    ec_close(&e);
}

/* What follows them, a product or shrink, fetches its weights while they wait and work. */
static void dependents_start_early(void **state)
{
    (void)state;
    struct ec e;
    int32_t ids[3] = {0};
    ec_open(&e);
    float *x = ec_alloc(&e, 3 * 64 * 4), *gain = ec_alloc(&e, 64 * 4);
    void *table = ec_alloc(&e, 64 * 2), *out = ec_alloc(&e, 3 * 64 * 2);
    struct embed_args embed = {x, {table, DTYPE_BF16, 1, 64, NULL}, ids, 3};
    struct norm_args norm = {.out = out, .x = x, .gain = gain, .n_tok = 3, .d_model = 64};
    ec_step_rows(&e, ids, 2, NULL, 0); /* a block of padding too */
    uint64_t late = emu_late_launches();
    assert_int_equal(e.cuda->ops->embed(e.cuda, &embed), STATUS_OK);
    assert_int_equal(e.cuda->ops->norm(e.cuda, &norm), STATUS_OK);
    mem_free(ec_get_acts(&e, out, 3 * 64));
    assert_int_equal(emu_late_launches(), late);
    ec_close(&e);
}

int main(void)
{
    emu_set_seed(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dependents_start_early),
        cmocka_unit_test(embed_equals_ref),
        cmocka_unit_test(norm_equals_ref),
        cmocka_unit_test(padding_is_left_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
