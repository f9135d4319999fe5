/* The backward pass on the CUDA backend: its ops against ref, whole models of every family against
 * torch autograd, and bits that depend neither on company nor on recompute. */
#include "tests/emulation/fixture.h"
#include "tests/lib/gradient_rig.h"

static struct backward_case {
    uint32_t n, d;
} const shapes[] = {{1, 8}, {5, 64}, {70, 200}, {33, 136}};

/* ref on host copies and cuda on device copies of the same floats. */
static float *put(struct ec *e, const float *host, size_t n)
{
    return ec_put(e, host, n * sizeof(*host));
}

static void expect(struct ec *e, const float *dev, const float *want, size_t n, double tol,
                   const char *what)
{
    float *got = ec_get_floats(e, dev, n);
    ec_close_to(got, want, n, tol, what);
    mem_free(got);
}

static void rows_equal_ref(void **state)
{
    struct ec e;
    (void)state;
    ec_open(&e);
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        uint32_t n = shapes[i].n, d = shapes[i].d;
        size_t size = (size_t)n * d;
        float *x = fx_floats(size, 1), *y = fx_floats(size, 1), *z = fx_floats(size, 1);
        float *gain = fx_floats(d, 1), *rstd = fx_floats(n, 1), *out = fx_floats(2 * size, 1);
        float *lp = fx_poisoned(n);
        int32_t *target = mem_array(n, sizeof(*target));
        for (uint32_t t = 0; t < n; t++)
            target[t] = t % 3 == 1 ? -1 : (int32_t)fx_below(d);
        float *dx = put(&e, x, size), *dy = put(&e, y, size), *dz = put(&e, z, size);
        float *dgain = put(&e, gain, d), *drstd = put(&e, rstd, n), *dout = put(&e, out, 2 * size);
        float *dlp = ec_alloc(&e, n * sizeof(float));
        int32_t *dtarget = ec_put(&e, target, n * sizeof(*target));
        struct norm_back_args norm = {out, y, x, gain, rstd, NULL, n, d};
        assert_int_equal(e.ref->ops->back->norm_back(e.ref, &norm), STATUS_OK);
        norm = (struct norm_back_args){dout, dy, dx, dgain, drstd, NULL, n, d};
        assert_int_equal(e.cuda->ops->back->norm_back(e.cuda, &norm), STATUS_OK);
        expect(&e, dout, out, size, EC_TOL_F32, "norm_back");
        struct mlp_back_args mlp = {out, y, x, z, n, 2 * d, d};
        assert_int_equal(e.ref->ops->back->mlp_back(e.ref, &mlp), STATUS_OK);
        mlp = (struct mlp_back_args){dout, dy, dx, dz, n, 2 * d, d};
        assert_int_equal(e.cuda->ops->back->mlp_back(e.cuda, &mlp), STATUS_OK);
        expect(&e, dout, out, 2 * size, EC_TOL_F32, "mlp_back");
        struct cross_entropy_args ce = {y, target, rstd, lp, n, d};
        assert_int_equal(e.ref->ops->back->cross_entropy(e.ref, &ce), STATUS_OK);
        ce = (struct cross_entropy_args){dy, dtarget, drstd, dlp, n, d};
        assert_int_equal(e.cuda->ops->back->cross_entropy(e.cuda, &ce), STATUS_OK);
        expect(&e, dy, y, size, EC_TOL_F32, "cross_entropy");
        expect(&e, dlp, lp, n, EC_TOL_F32, "logprob");
        struct dropout_seg seg = {0, n, 3, 0.4f, 99};
        struct dropout_args drop = {out, x, &seg, 1, d, d, d, 5, true};
        assert_int_equal(e.ref->ops->back->dropout(e.ref, &drop), STATUS_OK);
        drop.out = dout;
        drop.x = dx;
        assert_int_equal(e.cuda->ops->back->dropout(e.cuda, &drop), STATUS_OK);
        expect(&e, dout, out, size, EC_TOL_F32, "dropout");
        void *dev[] = {dx, dy, dz, dgain, drstd, dout, dlp, dtarget};
        void *host[] = {x, y, z, gain, rstd, out, lp, target};
        for (size_t k = 0; k < ARRAY_COUNT(dev); k++) {
            ec_free(&e, dev[k]);
            mem_free(host[k]);
        }
    }
    ec_close(&e);
}

static void gemm_back_equals_ref(void **state)
{
    struct ec e;
    (void)state;
    ec_open(&e);
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        uint32_t n = shapes[i].n, d = shapes[i].d, wide[2] = {d + 24, 37};
        struct gemm_back_args a = {.part_count = 2, .n_tok = n, .dx_stride = d};
        struct gemm_back_args on;
        float *dy = fx_floats((size_t)n * (wide[0] + wide[1]), 1);
        float *dx = fx_poisoned((size_t)n * d);
        a.dy_stride = wide[0] + wide[1];
        a.dy = dy;
        a.dx = dx;
        on = a;
        for (uint32_t p = 0; p < 2; p++) {
            void *w = fx_tensor((size_t)wide[p] * d, DTYPE_BF16, 0.1f, 0);
            a.part[p] = on.part[p] = (struct weight){w, DTYPE_BF16, wide[p], d, NULL};
            on.part[p].data = ec_put(&e, w, (size_t)wide[p] * d * 2);
        }
        on.dy = put(&e, dy, (size_t)n * a.dy_stride);
        on.dx = ec_alloc(&e, (size_t)n * d * sizeof(float));
        assert_int_equal(e.ref->ops->back->gemm_back(e.ref, &a), STATUS_OK);
        assert_int_equal(e.cuda->ops->back->gemm_back(e.cuda, &on), STATUS_OK);
        expect(&e, on.dx, dx, (size_t)n * d, EC_TOL_F32, "gemm_back");
        for (uint32_t p = 0; p < 2; p++) {
            mem_free((void *)(uintptr_t)a.part[p].data);
            ec_free(&e, (void *)(uintptr_t)on.part[p].data);
        }
        ec_free(&e, (void *)(uintptr_t)on.dy);
        ec_free(&e, on.dx);
        mem_free(dy);
        mem_free(dx);
    }
    ec_close(&e);
}

static void models_agree_with_autograd(void **state)
{
    (void)state;
    if (emu_is_tsan())
        skip(); /* takes minutes there */
    struct gradient_options all = {"cuda", DTYPE_CHOICE_BF16, 1, 7, false, 0};
    struct gradient_options less = {"cuda", DTYPE_CHOICE_BF16, 1, 0, true, 0};
    assert_true(gradient_check_all(&all, 1e-2, true) >= 5);
    assert_true(gradient_check_all(&less, 1e-2, true) >= 5);
}

static void bits_do_not_depend_on_company(void **state)
{
    struct gradient_options all = {"cuda", DTYPE_CHOICE_BF16, 1, 7, false, 0};
    struct gradient_options less = {"cuda", DTYPE_CHOICE_BF16, 1, 0, true, 0};
    struct gradient_rig one, cut;
    (void)state;
    assert_true(gradient_rig_open(&one, "qwen3_qknorm", &all));
    gradient_rig_run(&one, 0, GRADIENT_SEQS - 1);
    assert_true(gradient_rig_open(&cut, "qwen3_qknorm", &less));
    cut.disturbed = true;
    for (uint32_t s = 0; s < GRADIENT_SEQS; s++)
        gradient_rig_run(&cut, s, s);
    for (uint32_t s = 0; s < GRADIENT_SLOTS; s++)
        fx_bits(cut.grad[s], one.grad[s], one.n_grad[s]);
    gradient_rig_close(&one);
    gradient_rig_close(&cut);
}

int main(void)
{
    emu_set_seed(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_equal_ref),
        cmocka_unit_test(gemm_back_equals_ref),
        cmocka_unit_test(models_agree_with_autograd),
        cmocka_unit_test(bits_do_not_depend_on_company),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
