/* Sampling: ids of every CPU path against ref over random parameters, draw by draw; frequencies
 * against the distribution; penalties, ties, -inf and NaN by hand. */
#include "tests/unit/kernels_fixture.h"

static void run(struct backend *b, const float *logits, uint32_t n_vocab,
                const struct sample_row *row, uint32_t n, struct sample_out *out)
{
    float *copy = mem_array((size_t)n * n_vocab, sizeof(float));
    size_t bytes = backend_sample_scratch_bytes(b, n_vocab);
    char *scratch = mem_alloc_aligned(bytes);
    memset(scratch, 0xa5, bytes); /* scratch carries nothing between calls */
    for (uint32_t t = 0; t < n; t++)
        memcpy(copy + (size_t)t * n_vocab, logits, n_vocab * sizeof(float));
    struct sample_args a = {out, copy, row, scratch, n, n_vocab};
    assert_int_equal(b->ops->sample(b, &a), STATUS_OK);
    mem_free_aligned(scratch, bytes);
    mem_free(copy);
}

static const struct sample_row plain = {.temperature = 1, .top_p = 1, .repetition = 1};

static void random_row(struct sample_row *r, const int32_t *tokens, uint32_t n_token)
{
    static const float temps[] = {0, 0.01f, 0.5f, 1, 2, 50};
    *r = plain;
    r->temperature = temps[fx_below(ARRAY_COUNT(temps))];
    r->top_k = fx_below(2) ? (int32_t)fx_below(60) : 0;
    r->top_p = fx_below(2) ? (float)fx_below(1000) / 1000.0f : 1;
    r->min_p = fx_below(3) ? 0 : (float)fx_below(1000) / 2000.0f;
    r->seed = ((uint64_t)fx_u32() << 32) | fx_u32();
    r->draw = fx_below(1000);
    if (fx_below(2)) {
        r->repetition = 0.7f + (float)fx_below(100) / 100.0f;
        r->frequency = (float)fx_below(100) / 100.0f - 0.5f;
        r->presence = (float)fx_below(100) / 100.0f;
        r->prompt = tokens;
        r->n_prompt = fx_below(n_token);
        r->output = tokens + r->n_prompt;
        r->n_output = n_token - r->n_prompt;
    }
}

static void test_against_ref(void **state)
{
    static const uint32_t vocab[] = {1, 2, 17, 64, 1000, 5000};
    struct fx_backends f;
    uint32_t differ = 0, total = 0;
    (void)state;
    fx_open(&f);
    for (uint32_t round = 0; round < 120; round++) {
        uint32_t v = vocab[round % ARRAY_COUNT(vocab)], n = 1 + fx_below(7);
        float *logits = fx_floats(v, round % 3 ? 2 : 0.05f);
        int32_t tokens[50];
        struct sample_row row[8];
        struct sample_bias bias[3];
        struct sample_out want[8], got[8];
        for (uint32_t i = 0; i < v; i += 3)
            logits[i] = roundf(logits[i]); /* ties */
        for (uint32_t i = 0; i < 50; i++)
            tokens[i] = (int32_t)fx_below(v);
        for (uint32_t i = 0; i < 3; i++)
            bias[i] = (struct sample_bias){(int32_t)fx_below(v), i ? fx_normal() : -INFINITY};
        for (uint32_t t = 0; t < n; t++) {
            random_row(&row[t], tokens, 50);
            row[t].bias = bias;
            row[t].bias_count = v > 3 ? fx_below(4) : 0;
            row[t].top_count = fx_below(SAMPLE_TOP_MAX + 1);
        }
        run(f.ref, logits, v, row, n, want);
        for (uint32_t i = 0; i < f.n_cpu; i++) {
            run(f.cpu[i], logits, v, row, n, got);
            for (uint32_t t = 0; t < n; t++, total++) {
                differ += got[t].id != want[t].id;
                if (got[t].id == want[t].id)
                    assert_true(isnan(want[t].logprob) || fabsf(got[t].logprob - want[t].logprob) <=
                                                              2e-6f * (1 + fabsf(want[t].logprob)));
                for (uint32_t k = 0; k < row[t].top_count; k++)
                    assert_int_equal(got[t].top_id[k], want[t].top_id[k]);
            }
        }
        mem_free(logits);
    }
    print_message("%u of %u draws differ from ref (f32 weights at a cut)\n", differ, total);
    assert_true(differ * 200 <= total);
    fx_close(&f);
}

/* Counts of 20 000 draws against the exact probabilities, five standard deviations. */
static void test_frequencies(void **state)
{
    enum { V = 40, N = 20000 };
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    float logits[V];
    for (uint32_t i = 0; i < V; i++)
        logits[i] = fx_normal() * 1.5f;
    struct sample_row *row = mem_array(N, sizeof(*row));
    struct sample_out *out = mem_array(N, sizeof(*out));
    for (uint32_t t = 0; t < N; t++) {
        row[t] = plain;
        row[t].temperature = 0.8f;
        row[t].seed = 42;
        row[t].draw = t;
    }
    double p[V], sum = 0;
    for (uint32_t i = 0; i < V; i++)
        sum += p[i] = exp((double)logits[i] / 0.8);
    for (uint32_t i = 0; i <= f.n_cpu; i++) {
        uint32_t count[V] = {0};
        run(i < f.n_cpu ? f.cpu[i] : f.ref, logits, V, row, N, out);
        for (uint32_t t = 0; t < N; t++)
            count[out[t].id]++;
        for (uint32_t v = 0; v < V; v++) {
            double q = p[v] / sum, sd = sqrt(N * q * (1 - q)) + 1;
            assert_true(fabs(count[v] - N * q) < 5 * sd);
        }
    }
    mem_free(row);
    mem_free(out);
    fx_close(&f);
}

static int32_t pick(struct backend *b, const float *logits, uint32_t v, struct sample_row row)
{
    struct sample_out out;
    run(b, logits, v, &row, 1, &out);
    return out.id;
}

static void check_penalties(struct backend *b)
{
    const float l[4] = {2.0f, 1.9f, -1.0f, -3.0f};
    static const int32_t zero[] = {0, 0, 0}, one[] = {1};
    struct sample_row r = plain;
    r.temperature = 0;
    assert_int_equal(pick(b, l, 4, r), 0);
    r.repetition = 1.1f; /* 2/1.1 = 1.82: of the prompt too, once however often it occurs */
    r.prompt = zero;
    r.n_prompt = 3;
    assert_int_equal(pick(b, l, 4, r), 1);
    r.repetition = 1.04f; /* 1.923 */
    assert_int_equal(pick(b, l, 4, r), 0);
    r.repetition = 1;
    r.frequency = 1; /* prompt tokens do not count */
    r.presence = 1;
    assert_int_equal(pick(b, l, 4, r), 0);
    r.frequency = 0.04f; /* output: 3 * 0.04 = 0.12 */
    r.presence = 0;
    r.output = zero;
    r.n_output = 3;
    assert_int_equal(pick(b, l, 4, r), 1);
    r.frequency = 0;
    r.presence = 0.09f; /* once: 1.91 */
    assert_int_equal(pick(b, l, 4, r), 0);
    r.presence = 0.11f;
    assert_int_equal(pick(b, l, 4, r), 1);
    r.output = one;
    r.n_output = 1;
    assert_int_equal(pick(b, l, 4, r), 0);
    const float neg[2] = {-1.0f, -1.5f}; /* negative logits are multiplied */
    r = plain;
    r.temperature = 0;
    r.repetition = 2;
    r.prompt = zero;
    r.n_prompt = 1;
    assert_int_equal(pick(b, neg, 2, r), 1);
}

static void check_cuts(struct backend *b)
{
    const float l[5] = {1, 3, 3, 2, -INFINITY};
    struct sample_row r = plain;
    r.temperature = 0;
    assert_int_equal(pick(b, l, 5, r), 1); /* a tie goes to the lowest id */
    for (uint32_t i = 0; i < 200; i++) {
        r = plain;
        r.seed = i;
        r.temperature = 3;
        assert_int_not_equal(pick(b, l, 5, r), 4);
        r.top_k = 1;
        assert_int_equal(pick(b, l, 5, r), 1);
        r.top_k = 2;
        assert_true(pick(b, l, 5, r) == 1 || pick(b, l, 5, r) == 2);
        r.top_k = 0;
        r.top_p = 0;
        assert_int_equal(pick(b, l, 5, r), 1);
        r.top_p = 1;
        r.min_p = 1; /* equal weights stay */
        assert_true(pick(b, l, 5, r) == 1 || pick(b, l, 5, r) == 2);
        r.min_p = 0.5f; /* e^(-1/3) = 0.72 stays, e^(-2/3) = 0.51 stays */
        assert_int_not_equal(pick(b, l, 5, r), 4);
        r.min_p = 0.6f;
        assert_int_not_equal(pick(b, l, 5, r), 0);
        r.temperature = 1e-4f;
        r.min_p = 0;
        assert_true(pick(b, l, 5, r) == 1 || pick(b, l, 5, r) == 2);
    }
}

static void check_odd_rows(struct backend *b)
{
    const float inf[3] = {-INFINITY, -INFINITY, -INFINITY}, nan[3] = {NAN, 1, NAN};
    const float all_nan[2] = {NAN, NAN}, same[5] = {2, 2, 2, 2, 2};
    struct sample_row r = plain;
    assert_int_equal(pick(b, inf, 3, r), 0);
    assert_int_equal(pick(b, all_nan, 2, r), 0);
    assert_int_equal(pick(b, nan, 3, r), 1);
    bool seen[5] = {false};
    for (uint32_t i = 0; i < 300; i++) {
        r.draw = i;
        seen[pick(b, same, 5, r)] = true;
        r.top_k = 3;
        assert_true(pick(b, same, 5, r) < 3);
        r.top_k = 0;
    }
    for (uint32_t i = 0; i < 5; i++)
        assert_true(seen[i]);
    r.temperature = 0;
    assert_int_equal(pick(b, nan, 3, r), 1);
}

static void test_by_hand(void **state)
{
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    for (uint32_t i = 0; i <= f.n_cpu; i++) {
        struct backend *b = i < f.n_cpu ? f.cpu[i] : f.ref;
        check_penalties(b);
        check_cuts(b);
        check_odd_rows(b);
    }
    fx_close(&f);
}

/* The same draw in any batch, at any thread count. */
static void test_batch_invariance(void **state)
{
    enum { V = 3000, N = 13 };
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    float *logits = fx_floats(V, 2);
    int32_t tokens[50] = {1, 2, 3};
    struct sample_row row[N];
    struct sample_out first[N], got[N], one;
    for (uint32_t t = 0; t < N; t++)
        random_row(&row[t], tokens, 50);
    for (uint32_t i = 0; i < f.n_cpu; i++) {
        run(f.cpu[i], logits, V, row, N, got);
        for (uint32_t t = 0; t < N; t++) {
            run(f.cpu[i], logits, V, &row[t], 1, &one);
            assert_int_equal(one.id, got[t].id);
            fx_bits(&one.logprob, &got[t].logprob, 1);
            if (i > 0 && fx_same_path(f.cpu[i], f.cpu[i - 1]))
                assert_int_equal(first[t].id, got[t].id);
        }
        memcpy(first, got, sizeof(first));
    }
    mem_free(logits);
    fx_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_ref),
        cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_batch_invariance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
