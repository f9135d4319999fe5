/* logits, score, sketch and top_logprobs: every CPU path against ref; a score equals the
 * log-probability that sample reports for the same row, bit for bit, on every backend. */
#include "tests/unit/kernels_fixture.h"

#include <stdlib.h>

struct head_case {
    char *w;
    float *x;
    int32_t *target;
    uint32_t n_vocab, d, n;
    struct weight weight;
};

static void case_make(struct head_case *c, uint32_t n_vocab, uint32_t d, uint32_t n, enum dtype t)
{
    size_t shift = fx_below(4);
    c->n_vocab = n_vocab;
    c->d = d;
    c->n = n;
    c->w = fx_tensor((size_t)n_vocab * d, t, 3.0f / sqrtf((float)d), shift);
    c->weight = (struct weight){c->w + shift, t, n_vocab, d, NULL};
    c->x = fx_floats((size_t)n * d, 1);
    c->target = mem_array(n + 1, sizeof(int32_t));
    for (uint32_t i = 0; i < n; i++)
        c->target[i] = (int32_t)(i == 0 ? n_vocab - 1 : i == 1 ? 0 : fx_below(n_vocab));
}

static void case_free(struct head_case *c)
{
    mem_free(c->w);
    mem_free(c->x);
    mem_free(c->target);
}

static void run_score(struct backend *b, const struct head_case *c, float *out)
{
    float *scratch = fx_poisoned((size_t)c->n * SCORE_TILE);
    struct score_args a = {out, c->x, c->weight, c->target, scratch, c->n};
    assert_int_equal(b->ops->score(b, &a), STATUS_OK);
    mem_free(scratch);
}

static void run_logits(struct backend *b, const struct head_case *c, float *out)
{
    struct logits_args a = {out, c->x, c->weight, c->n};
    assert_int_equal(b->ops->logits(b, &a), STATUS_OK);
}

/* A bias so large that sample must choose the target: its logprob is of the raw logits. */
static void sampled_logprobs(struct backend *b, const struct head_case *c, float *logits,
                             struct sample_out *out)
{
    struct sample_row *row = mem_array(c->n, sizeof(*row));
    struct sample_bias *bias = mem_array(c->n, sizeof(*bias));
    void *scratch = mem_alloc_aligned(backend_sample_scratch_bytes(b, c->n_vocab));
    for (uint32_t t = 0; t < c->n; t++) {
        bias[t] = (struct sample_bias){c->target[t], 1000};
        row[t] = (struct sample_row){.temperature = (float)(t & 1),
                                     .top_p = 1,
                                     .repetition = 1,
                                     .bias = &bias[t],
                                     .bias_count = 1,
                                     .seed = t,
                                     .top_count = 5};
    }
    struct sample_args a = {out, logits, row, scratch, c->n, c->n_vocab};
    assert_int_equal(b->ops->sample(b, &a), STATUS_OK);
    for (uint32_t t = 0; t < c->n; t++)
        assert_int_equal(out[t].id, c->target[t]);
    mem_free_aligned(scratch, backend_sample_scratch_bytes(b, c->n_vocab));
    mem_free(bias);
    mem_free(row);
}

static void check_backend(struct backend *b, const struct head_case *c, const float *want_logits,
                          const float *want_score)
{
    size_t n_logit = (size_t)c->n * c->n_vocab;
    float *logits = fx_poisoned(n_logit), *score = fx_poisoned(c->n), *alone = fx_poisoned(1);
    struct sample_out *out = mem_array(c->n, sizeof(*out)), *top = mem_array(c->n, sizeof(*top));
    uint32_t *count = mem_array(c->n, sizeof(*count));
    run_logits(b, c, logits);
    run_score(b, c, score);
    fx_near(logits, want_logits, n_logit, 2e-5, "logits");
    for (uint32_t t = 0; t < c->n; t++)
        assert_true(fabsf(score[t] - want_score[t]) <= 1e-4f * (1 + fabsf(want_score[t])));
    for (uint32_t t = 0; t < c->n; t++) {
        struct head_case one = *c;
        one.n = 1;
        one.x += (size_t)t * c->d;
        one.target += t;
        run_score(b, &one, alone);
        fx_bits(alone, score + t, 1);
        count[t] = MIN(t % (SAMPLE_TOP_MAX + 1), c->n_vocab);
    }
    struct top_logprobs_args a = {top, logits, c->target, count, c->n, c->n_vocab};
    assert_int_equal(b->ops->top_logprobs(b, &a), STATUS_OK);
    for (uint32_t t = 0; t < c->n; t++) {
        fx_bits(&top[t].logprob, score + t, 1);
        for (uint32_t k = 1; k < count[t]; k++) {
            const float *l = logits + (size_t)t * c->n_vocab;
            float before = l[top[t].top_id[k - 1]], here = l[top[t].top_id[k]];
            assert_true(before > here ||
                        (before == here && top[t].top_id[k - 1] < top[t].top_id[k]));
        }
    }
    sampled_logprobs(b, c, logits, out);
    for (uint32_t t = 0; t < c->n; t++) {
        fx_bits(&out[t].logprob, score + t, 1);
        for (uint32_t k = 0; k < MIN(count[t], 5u); k++) {
            assert_int_equal(out[t].top_id[k], top[t].top_id[k]);
            fx_bits(&out[t].top_logprob[k], &top[t].top_logprob[k], 1);
        }
    }
    mem_free(logits);
    mem_free(score);
    mem_free(alone);
    mem_free(out);
    mem_free(top);
    mem_free(count);
}

static void test_scores(void **state)
{
    static const uint32_t vocab[] = {1, 2, 5, 63, 1023, 1024, 1025, 2500};
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    for (size_t v = 0; v < ARRAY_COUNT(vocab); v++) {
        struct head_case c;
        case_make(&c, vocab[v], 1 + fx_below(70), v == 6 ? 140 : 1 + fx_below(25),
                  v & 1 ? DTYPE_BF16 : DTYPE_F32);
        float *logits = fx_poisoned((size_t)c.n * c.n_vocab), *score = fx_poisoned(c.n);
        run_logits(f.ref, &c, logits);
        run_score(f.ref, &c, score);
        check_backend(f.ref, &c, logits, score);
        for (uint32_t i = 0; i < f.n_cpu; i++)
            check_backend(f.cpu[i], &c, logits, score);
        mem_free(logits);
        mem_free(score);
        case_free(&c);
    }
    fx_close(&f);
}

/* Uniform logits: every log-probability is -log V; a lone candidate has log-probability 0. */
static void test_score_hand(void **state)
{
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    for (uint32_t i = 0; i <= f.n_cpu; i++) {
        struct backend *b = i < f.n_cpu ? f.cpu[i] : f.ref;
        float x[1] = {1}, score[1], scratch[SCORE_TILE], *w = mem_array(3000, sizeof(float));
        int32_t target[1] = {2999};
        for (uint32_t v = 0; v < 3000; v++)
            w[v] = 2.5f;
        struct score_args a = {score, x, {w, DTYPE_F32, 3000, 1, NULL}, target, scratch, 1};
        b->ops->score(b, &a);
        assert_true(fabsf(score[0] + logf(3000.0f)) < 1e-5f);
        w[2999] = 200;
        b->ops->score(b, &a);
        assert_true(score[0] == 0);
        mem_free(w);
    }
    fx_close(&f);
}

/* ---- sketches ---- */

#define BASES       3
#define SKETCH_ROWS 24

static void bases_make(struct sketch_basis *basis, uint32_t d)
{
    for (uint32_t i = 0; i < BASES; i++) {
        basis[i].w = (uint16_t *)(void *)fx_tensor((size_t)SKETCH_DIM * d, DTYPE_BF16, 1, 0);
        basis[i].bias = fx_floats(SKETCH_DIM, 1);
    }
}

static void bases_free(struct sketch_basis *basis)
{
    for (uint32_t i = 0; i < BASES; i++) {
        mem_free((void *)(uintptr_t)basis[i].w);
        mem_free((void *)(uintptr_t)basis[i].bias);
    }
}

/* A sum of d products in f32, and 1 of 127: a component may round the other way. */
static uint32_t count_differences(const int8_t *got, const int8_t *want, size_t n)
{
    uint32_t differ = 0;
    for (size_t i = 0; i < n; i++) {
        assert_true(abs(got[i] - want[i]) <= 1);
        differ += got[i] != want[i];
    }
    return differ;
}

/* Each row alone: the bits do not know the company. */
static void check_alone(struct backend *b, const struct sketch_args *all, const int8_t *got)
{
    for (uint32_t s = 0; s < all->n_seg; s++) {
        const struct sketch_seg *seg = &all->seg[s];
        for (uint32_t t = seg->row; t < seg->row + seg->n_row; t++) {
            int8_t alone[SKETCH_DIM];
            struct sketch_seg one = {0, 1, seg->basis};
            struct sketch_args a = {alone, (const float *)all->x + (size_t)t * all->d_model, &one,
                                    1, all->d_model};
            assert_int_equal(b->ops->sketch(b, &a), STATUS_OK);
            assert_memory_equal(alone, got + (size_t)t * SKETCH_DIM, SKETCH_DIM);
        }
    }
}

static void test_sketch(void **state)
{
    static const uint32_t dims[] = {1, 7, 8, 9, 64, 100, 896};
    struct fx_backends f;
    uint32_t differ = 0, total = 0;
    (void)state;
    fx_open(&f);
    for (size_t s = 0; s < ARRAY_COUNT(dims); s++) {
        uint32_t d = dims[s];
        struct sketch_basis basis[BASES];
        int8_t want[SKETCH_ROWS * SKETCH_DIM], got[SKETCH_ROWS * SKETCH_DIM];
        bases_make(basis, d);
        float *x = fx_floats((size_t)SKETCH_ROWS * d, 1);
        /* rows 0, 1, 5 and 21 to 23 have none */
        struct sketch_seg seg[] = {{2, 3, &basis[0]}, {6, 11, &basis[2]}, {17, 4, &basis[1]}};
        struct sketch_args a = {want, x, seg, ARRAY_COUNT(seg), d};
        memset(want, 77, sizeof(want));
        assert_int_equal(f.ref->ops->sketch(f.ref, &a), STATUS_OK);
        check_alone(f.ref, &a, want);
        for (uint32_t i = 0; i < f.n_cpu; i++) {
            a.out = got;
            memset(got, 77, sizeof(got));
            assert_int_equal(f.cpu[i]->ops->sketch(f.cpu[i], &a), STATUS_OK);
            differ += count_differences(got, want, sizeof(got));
            total += sizeof(got);
            check_alone(f.cpu[i], &a, got);
            assert_int_equal(got[0], 77);
            assert_int_equal(got[5 * SKETCH_DIM], 77);
            assert_int_equal(got[sizeof(got) - 1], 77);
        }
        bases_free(basis);
        mem_free(x);
    }
    assert_true(differ * 1000 < total);
    fx_close(&f);
}

/* The unit vectors as basis: the formula by hand, the bias, and what has no direction. */
static void test_sketch_hand(void **state)
{
    struct fx_backends f;
    uint16_t w[SKETCH_DIM * SKETCH_DIM] = {0};
    float x[4 * SKETCH_DIM] = {0}, bias[SKETCH_DIM] = {0};
    (void)state;
    fx_open(&f);
    for (uint32_t j = 0; j < SKETCH_DIM; j++)
        w[j * SKETCH_DIM + j] = bf16_from_f32(1);
    bias[9] = 4;
    x[3] = 3, x[9] = 8;                /* z: 3 and 4 of 5 */
    x[SKETCH_DIM + 9] = 4;             /* z: zeros */
    x[2 * SKETCH_DIM + 9] = INFINITY;  /* no direction */
    x[3 * SKETCH_DIM + 3] = -INFINITY; /* nor here */
    x[3 * SKETCH_DIM + 9] = NAN;
    struct sketch_basis basis = {w, bias};
    struct sketch_seg seg = {0, 4, &basis};
    for (uint32_t i = 0; i <= f.n_cpu; i++) {
        struct backend *b = i < f.n_cpu ? f.cpu[i] : f.ref;
        int8_t out[4 * SKETCH_DIM], want[4 * SKETCH_DIM] = {0};
        struct sketch_args a = {out, x, &seg, 1, SKETCH_DIM};
        want[3] = 76, want[9] = 102; /* 76.2 and 101.6 */
        assert_int_equal(b->ops->sketch(b, &a), STATUS_OK);
        assert_memory_equal(out, want, sizeof(want));
        a.n_seg = 0;
        assert_int_equal(b->ops->sketch(b, &a), STATUS_OK);
    }
    fx_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_score_hand),
        cmocka_unit_test(test_sketch),
        cmocka_unit_test(test_sketch_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
