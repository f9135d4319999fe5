/* The backward pass of whole models: every family against torch autograd, and bits that do not
 * depend on other jobs, threads, recompute or cuts of the batch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/lib/gradient_rig.h"

#include <math.h>

static void test_autograd_f32(void **state)
{
    (void)state;
    struct gradient_options ref = {"ref", DTYPE_CHOICE_F32, 1, 5, false, 0};
    struct gradient_options cpu = {"cpu", DTYPE_CHOICE_F32, 2, 0, true, 0};
    assert_true(gradient_check_all(&ref, 1e-4, false) >= 8);
    assert_true(gradient_check_all(&cpu, 1e-4, false) >= 7);
}

static void test_autograd_bf16(void **state)
{
    (void)state;
    struct gradient_options ref = {"ref", DTYPE_CHOICE_BF16, 1, 0, true, 0};
    struct gradient_options cpu = {"cpu", DTYPE_CHOICE_BF16, 2, 7, false, 0};
    assert_true(gradient_check_all(&ref, 1e-2, true) >= 6);
    assert_true(gradient_check_all(&cpu, 1e-2, true) >= 6);
}

/* ---- bits ---- */

static void expect_same(const struct gradient_rig *a, const struct gradient_rig *b, uint32_t slot)
{
    assert_int_equal(a->n_grad[slot], b->n_grad[slot]);
    assert_memory_equal(a->grad[slot], b->grad[slot], a->n_grad[slot] * sizeof(float));
}

/* One batch, one thread, all activations kept: what every other way must equal. */
static void test_bits(void **state)
{
    static const char name[] = "qwen3_qknorm";
    (void)state;
    for (int dtype = DTYPE_CHOICE_F32; dtype <= DTYPE_CHOICE_BF16; dtype++) {
        struct gradient_options plain = {"cpu", (enum dtype_choice)dtype, 1, 0, false, 0};
        struct gradient_options other = {"cpu", (enum dtype_choice)dtype, 2, 3, true, 0};
        struct gradient_rig all, again, cut, alone;
        assert_true(gradient_rig_open(&all, name, &plain));
        gradient_rig_run(&all, 0, GRADIENT_SEQS - 1);
        assert_true(gradient_rig_open(&again, name, &other));
        gradient_rig_run(&again, 0, GRADIENT_SEQS - 1);
        assert_memory_equal(all.logprob, again.logprob, sizeof(all.logprob));
        assert_true(gradient_rig_open(&cut, name, &other));
        cut.disturbed = true;
        for (uint32_t s = 0; s < GRADIENT_SEQS; s++)
            gradient_rig_run(&cut, s, s);
        for (uint32_t s = 0; s < GRADIENT_SLOTS; s++) {
            expect_same(&again, &all, s);
            expect_same(&cut, &all, s);
        }
        /* the job of adapter a alone: the first sequence without the second and third */
        assert_true(gradient_rig_open(&alone, name, &other));
        gradient_rig_run(&alone, 0, 0);
        struct gradient_rig two;
        assert_true(gradient_rig_open(&two, name, &plain));
        gradient_rig_run(&two, 0, 1);
        expect_same(&alone, &two, 0);
        gradient_rig_close(&two);
        gradient_rig_close(&alone);
        gradient_rig_close(&cut);
        gradient_rig_close(&again);
        gradient_rig_close(&all);
    }
}

static void move_weights(struct gradient_rig *g, const struct gradient_rig *along, double by)
{
    double norm2 = 0;
    for (uint32_t s = 0; s < GRADIENT_SLOTS; s++)
        for (size_t i = 0; i < g->n_grad[s]; i++)
            norm2 += (double)along->grad[s][i] * (double)along->grad[s][i];
    for (uint32_t s = 0; s < GRADIENT_SLOTS; s++) {
        float *blob = (void *)(uintptr_t)g->r.slot[s].blob;
        for (size_t i = 0; i < g->n_grad[s]; i++)
            blob[i] += (float)(by * (double)along->grad[s][i] / sqrt(norm2));
    }
}

/* With dropout the gradient is that of the loss under the same mask: along itself its slope is its
 * length; and another seed is another loss. */
static void test_dropout(void **state)
{
    struct gradient_options opt = {"cpu", DTYPE_CHOICE_F32, 2, 0, true, 0.3f};
    struct gradient_rig g, up, down;
    double norm2 = 0, step = 2e-3;
    (void)state;
    assert_true(gradient_rig_open(&g, "qwen3_qknorm", &opt));
    gradient_rig_run(&g, 0, GRADIENT_SEQS - 1);
    assert_true(gradient_rig_open(&up, "qwen3_qknorm", &opt));
    move_weights(&up, &g, step);
    gradient_rig_run(&up, 0, GRADIENT_SEQS - 1);
    assert_true(gradient_rig_open(&down, "qwen3_qknorm", &opt));
    move_weights(&down, &g, -step);
    gradient_rig_run(&down, 0, GRADIENT_SEQS - 1);
    for (uint32_t s = 0; s < GRADIENT_SLOTS; s++)
        for (size_t i = 0; i < g.n_grad[s]; i++)
            norm2 += (double)g.grad[s][i] * (double)g.grad[s][i];
    double slope = (up.loss - down.loss) / (2 * step);
    assert_true(fabs(slope - sqrt(norm2)) < 2e-3 * sqrt(norm2));
    gradient_rig_close(&up);
    opt.dropout = 0;
    assert_true(gradient_rig_open(&up, "qwen3_qknorm", &opt));
    gradient_rig_run(&up, 0, GRADIENT_SEQS - 1);
    assert_true(fabs(up.loss - g.loss) > 1e-3 * g.loss);
    gradient_rig_close(&up);
    gradient_rig_close(&down);
    gradient_rig_close(&g);
}

/* What the backend was asked for is what it takes. */
static void test_bytes(void **state)
{
    struct gradient_options keep = {"cpu", DTYPE_CHOICE_F32, 1, 0, false, 0};
    struct gradient_rig g;
    (void)state;
    assert_true(gradient_rig_open(&g, "qwen2_yarn_window", &keep));
    struct backward_options all = {0, false, false}, less = {0, true, false};
    const struct forward_options *fo = forward_made_with(g.forward);
    uint64_t kept = backward_bytes(g.r.backend, &g.r.model->config, fo, &all);
    uint64_t recomputed = backward_bytes(g.r.backend, &g.r.model->config, fo, &less);
    assert_true(recomputed < kept);
    gradient_rig_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_autograd_f32), cmocka_unit_test(test_autograd_bf16),
        cmocka_unit_test(test_bits),         cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
