/* score and sketch on the emulated device: against kernels/ref; a score has the bits of the
 * log-probability that sample and top_logprobs report for the same row; no row sees another. */
#include "tests/emulation/fixture.h"

#include <stdlib.h>

struct head_case {
    uint16_t *w;
    float *x;
    void *dev_w, *dev_x;
    int32_t *target;
    uint32_t n_vocab, d, n;
};

static void case_make(struct ec *e, struct head_case *c, uint32_t n_vocab, uint32_t d, uint32_t n)
{
    struct backend_limits lim = ec_limits();
    lim.n_vocab = n_vocab;
    lim.d_model = d;
    lim.rows_max = n > 24 ? n - 5 : n; /* more rows than share a walk: two of them */
    lim.logits_rows_max = n;
    ec_open_with(e, &lim, "cuda");
    c->n_vocab = n_vocab;
    c->d = d;
    c->n = n;
    c->w = fx_tensor((size_t)n_vocab * d, DTYPE_BF16, 3.0f / sqrtf((float)d), 0);
    c->x = fx_floats((size_t)n * d, 1);
    c->dev_w = ec_put(e, c->w, (size_t)n_vocab * d * 2);
    c->dev_x = ec_put_acts(e, c->x, (size_t)n * d);
    c->target = mem_array(n, sizeof(int32_t));
    for (uint32_t i = 0; i < n; i++)
        c->target[i] = (int32_t)(i == 0 ? n_vocab - 1 : i == 1 ? 0 : fx_below(n_vocab));
}

static void case_free(struct ec *e, struct head_case *c)
{
    ec_free(e, c->dev_w);
    ec_free(e, c->dev_x);
    mem_free(c->w);
    mem_free(c->x);
    mem_free(c->target);
    ec_close(e);
}

static void run_score(struct ec *e, const struct head_case *c, uint32_t first, uint32_t n,
                      float *out)
{
    struct score_args a = {out,
                           (const uint16_t *)c->dev_x + (size_t)first * c->d,
                           {c->dev_w, DTYPE_BF16, c->n_vocab, c->d, NULL},
                           c->target + first,
                           NULL,
                           n};
    for (uint32_t t = 0; t < n; t++)
        out[t] = NAN;
    assert_int_equal(e->cuda->ops->score(e->cuda, &a), STATUS_OK);
}

static void check_against_ref(struct ec *e, const struct head_case *c, const float *score)
{
    float *want = fx_poisoned(c->n), *scratch = fx_poisoned((size_t)c->n * SCORE_TILE);
    struct score_args a = {want,      c->x,    {c->w, DTYPE_BF16, c->n_vocab, c->d, NULL},
                           c->target, scratch, c->n};
    assert_int_equal(e->ref->ops->score(e->ref, &a), STATUS_OK);
    for (uint32_t t = 0; t < c->n; t++) {
        if (!(fabsf(score[t] - want[t]) <= 2e-5f * (1 + fabsf(want[t]))))
            print_error("V %u d %u row %u of %u: %.9g, expected %.9g\n", c->n_vocab, c->d, t, c->n,
                        (double)score[t], (double)want[t]);
        assert_true(fabsf(score[t] - want[t]) <= 2e-5f * (1 + fabsf(want[t])));
    }
    mem_free(want);
    mem_free(scratch);
}

/* A bias so large that sample must choose the target: its logprob is of the raw logits. */
static void check_against_sample(struct ec *e, const struct head_case *c, const float *score)
{
    struct sample_row *row = mem_array(c->n, sizeof(*row));
    struct sample_bias *bias = mem_array(c->n, sizeof(*bias));
    struct sample_out *out = mem_array(c->n, sizeof(*out)), *top = mem_array(c->n, sizeof(*top));
    uint32_t *count = mem_array(c->n, sizeof(*count));
    float *logits = ec_alloc(e, (size_t)c->n * c->n_vocab * sizeof(float));
    struct logits_args la = {
        logits, c->dev_x, {c->dev_w, DTYPE_BF16, c->n_vocab, c->d, NULL}, c->n};
    assert_int_equal(e->cuda->ops->logits(e->cuda, &la), STATUS_OK);
    for (uint32_t t = 0; t < c->n; t++) {
        count[t] = MIN(t % 6, c->n_vocab);
        bias[t] = (struct sample_bias){c->target[t], 1000};
        row[t] = (struct sample_row){.temperature = (float)(t & 1),
                                     .top_p = 1,
                                     .repetition = 1,
                                     .bias = &bias[t],
                                     .bias_count = 1,
                                     .seed = t,
                                     .top_count = count[t]};
    }
    struct top_logprobs_args ta = {top, logits, c->target, count, c->n, c->n_vocab};
    assert_int_equal(e->cuda->ops->top_logprobs(e->cuda, &ta), STATUS_OK);
    struct sample_args sa = {out, logits, row, NULL, c->n, c->n_vocab};
    assert_int_equal(e->cuda->ops->sample(e->cuda, &sa), STATUS_OK);
    for (uint32_t t = 0; t < c->n; t++) {
        assert_int_equal(out[t].id, c->target[t]);
        fx_bits(&out[t].logprob, &score[t], 1);
        fx_bits(&top[t].logprob, &score[t], 1);
        fx_bits(out[t].top_id, top[t].top_id, count[t]);
        fx_bits(out[t].top_logprob, top[t].top_logprob, count[t]);
    }
    ec_free(e, logits);
    mem_free(row);
    mem_free(bias);
    mem_free(out);
    mem_free(top);
    mem_free(count);
}

static void test_scores(void **state)
{
    static const uint32_t vocab[] = {1, 2, 31, 63, 1023, 1024, 1025, 2500, 17000};
    (void)state;
    for (uint32_t i = 0; i < ARRAY_COUNT(vocab); i++) {
        struct ec e;
        struct head_case c;
        uint32_t n = i == 4 ? 40 : 1 + fx_below(vocab[i] > 10000 ? 2 : 12);
        case_make(&e, &c, vocab[i], 8 * (1 + fx_below(vocab[i] > 10000 ? 2 : 9)), n);
        float *score = fx_poisoned(n), alone;
        emu_set_seed(i);
        run_score(&e, &c, 0, n, score);
        check_against_ref(&e, &c, score);
        check_against_sample(&e, &c, score);
        for (uint32_t t = 0; t < n; t += 1 + n / 4) {
            emu_set_seed(100 + t);
            run_score(&e, &c, t, 1, &alone);
            fx_bits(&alone, &score[t], 1);
        }
        mem_free(score);
        case_free(&e, &c);
    }
}

/* Uniform logits: every log-probability is -log V; a lone candidate has log-probability 0. */
static void test_score_by_hand(void **state)
{
    enum { V = 3000, D = 8 };
    (void)state;
    struct ec e;
    struct head_case c;
    float score;
    case_make(&e, &c, V, D, 1);
    for (uint32_t lone = 0; lone < 2; lone++) {
        uint16_t *w = mem_array(V * D, sizeof(*w)), x[D];
        for (uint32_t i = 0; i < V * D; i++)
            w[i] = bf16_from_f32(i % D == 0 ? 2.5f : 0);
        if (lone)
            w[(V - 1) * D] = bf16_from_f32(200);
        for (uint32_t i = 0; i < D; i++)
            x[i] = bf16_from_f32(1);
        void *dev_w = ec_put(&e, w, V * D * 2), *dev_x = ec_put(&e, x, sizeof(x));
        struct head_case at = {.dev_w = dev_w, .dev_x = dev_x, .target = c.target};
        at.n_vocab = V;
        at.d = D;
        run_score(&e, &at, 0, 1, &score);
        assert_true(lone ? score == 0 : fabsf(score + logf(V)) < 1e-5f);
        ec_free(&e, dev_w);
        ec_free(&e, dev_x);
        mem_free(w);
    }
    case_free(&e, &c);
}

/* Rows 0 .. n/2 - 1 under one basis, then a gap of one row, then the rest under another. */
static void check_sketch(struct ec *e, uint32_t d, uint32_t n, uint32_t *differ)
{
    size_t elems = (size_t)SKETCH_DIM * d, size = (size_t)n * SKETCH_DIM;
    struct sketch_basis host[2], dev[2];
    for (uint32_t i = 0; i < 2; i++) {
        host[i].w = (uint16_t *)(void *)fx_tensor(elems, DTYPE_BF16, 1, 0);
        host[i].bias = fx_floats(SKETCH_DIM, 1);
        dev[i].w = ec_put(e, host[i].w, elems * sizeof(uint16_t));
        dev[i].bias = ec_put(e, host[i].bias, SKETCH_DIM * sizeof(float));
    }
    float *x = fx_floats((size_t)n * d, 1);
    int8_t *want = mem_array(size, 1), *got = mem_array(size, 1), alone[SKETCH_DIM];
    struct sketch_seg seg[2] = {{0, n / 2, &host[0]}, {n / 2 + 1, n - n / 2 - 1, &host[1]}};
    void *dev_x = ec_put_acts(e, x, (size_t)n * d);
    struct sketch_args a = {want, x, seg, 2, d};
    assert_int_equal(e->ref->ops->sketch(e->ref, &a), STATUS_OK);
    seg[0].basis = &dev[0];
    seg[1].basis = &dev[1];
    a.out = got;
    a.x = dev_x;
    assert_int_equal(e->cuda->ops->sketch(e->cuda, &a), STATUS_OK);
    for (size_t i = 0; i < size; i++) {
        if (i / SKETCH_DIM == n / 2)
            continue;
        assert_true(abs(got[i] - want[i]) <= 1);
        *differ += got[i] != want[i];
    }
    struct sketch_seg one = {0, 1, &dev[1]};
    a = (struct sketch_args){alone, (const uint16_t *)dev_x + (size_t)(n - 1) * d, &one, 1, d};
    uint32_t ticket;
    assert_int_equal(e->cuda->ops->sketch_begin(e->cuda, &a, &ticket), STATUS_OK);
    assert_int_equal(e->cuda->ops->read_end(e->cuda, ticket, alone), STATUS_OK);
    fx_bits(alone, got + size - SKETCH_DIM, SKETCH_DIM);
    for (uint32_t i = 0; i < 2; i++) {
        ec_free(e, (void *)(uintptr_t)dev[i].w);
        ec_free(e, (void *)(uintptr_t)dev[i].bias);
        mem_free((void *)(uintptr_t)host[i].w);
        mem_free((void *)(uintptr_t)host[i].bias);
    }
    ec_free(e, dev_x);
    mem_free(x);
    mem_free(want);
    mem_free(got);
}

/* What has no direction is zeros: |z| = 0, and an x that is not finite. */
static void check_no_direction(struct ec *e)
{
    enum { D = 24 };
    uint16_t w[SKETCH_DIM * D] = {0}, x[2 * D] = {0};
    float bias[SKETCH_DIM] = {0};
    int8_t out[2 * SKETCH_DIM], zero[2 * SKETCH_DIM] = {0};
    for (uint32_t j = 0; j < SKETCH_DIM; j++)
        w[j * D + j % D] = bf16_from_f32(1);
    x[D + 3] = bf16_from_f32(INFINITY);
    struct sketch_basis basis = {ec_put(e, w, sizeof(w)), ec_put(e, bias, sizeof(bias))};
    struct sketch_seg seg = {0, 2, &basis};
    void *dev_x = ec_put(e, x, sizeof(x));
    struct sketch_args a = {out, dev_x, &seg, 1, D};
    memset(out, 77, sizeof(out));
    assert_int_equal(e->cuda->ops->sketch(e->cuda, &a), STATUS_OK);
    assert_memory_equal(out, zero, sizeof(out));
    ec_free(e, (void *)(uintptr_t)basis.w);
    ec_free(e, (void *)(uintptr_t)basis.bias);
    ec_free(e, dev_x);
}

static void test_sketches(void **state)
{
    static const uint32_t dims[] = {1, 7, 8, 9, 64, 100, 264, 896};
    uint32_t differ = 0;
    (void)state;
    struct ec e;
    struct backend_limits lim = ec_limits();
    lim.rows_max = 16;
    lim.logits_rows_max = 1;
    ec_open_with(&e, &lim, "cuda");
    for (uint32_t i = 0; i < ARRAY_COUNT(dims); i++)
        check_sketch(&e, dims[i], i == 2 ? 35 : 5, &differ); /* 35 rows: three passes */
    assert_true(differ < 16); /* of 4800: f32 sums in another order, then rounded */
    check_no_direction(&e);
    ec_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_score_by_hand),
        cmocka_unit_test(test_sketches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
