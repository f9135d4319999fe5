/* Sampling on the emulated device: the ids of kernels/ref, draw by draw, over every parameter and
 * over rows that are hard to cut (ties, near ties, infinities); log-probabilities; the same bits in
 * any company; histories that the device keeps. */
#include "server/base/philox.h"
#include "tests/emulation/fixture.h"

#define CONTEXT_PAGES 8
#define CONTEXT       (CONTEXT_PAGES * 16)

static void open_for(struct ec *e, uint32_t n_vocab, uint32_t page_stride)
{
    struct backend_limits lim = ec_limits();
    lim.n_vocab = n_vocab;
    lim.page_stride = page_stride;
    lim.seqs_max = 8;
    lim.rows_max = lim.logits_rows_max = 80;
    ec_open_with(e, &lim, "cuda");
}

static void run_ref(struct ec *e, const float *logits, uint32_t v, const struct sample_row *row,
                    uint32_t n, struct sample_out *out)
{
    float *copy = mem_array((size_t)n * v, sizeof(float));
    size_t bytes = backend_sample_scratch_bytes(e->ref, v);
    void *scratch = mem_alloc_aligned(bytes);
    memcpy(copy, logits, (size_t)n * v * sizeof(float));
    struct sample_args a = {out, copy, row, scratch, n, v};
    assert_int_equal(e->ref->ops->sample(e->ref, &a), STATUS_OK);
    mem_free_aligned(scratch, bytes);
    mem_free(copy);
}

static void run_cuda(struct ec *e, const float *logits, uint32_t v, const struct sample_row *row,
                     uint32_t n, struct sample_out *out)
{
    float *dev = ec_put(e, logits, (size_t)n * v * sizeof(float));
    struct sample_args a = {out, dev, row, NULL, n, v};
    memset(out, 0xa5, n * sizeof(*out));
    assert_int_equal(e->cuda->ops->sample(e->cuda, &a), STATUS_OK);
    ec_free(e, dev);
}

static void expect_near(const float *got, const float *want)
{
    if (isnan(*want))
        assert_true(isnan(*got));
    else if (*got != *want)
        assert_true(fabsf(*got - *want) <= 1e-5f * (1 + fabsf(*want)));
}

static void expect_equal(const struct sample_out *got, const struct sample_out *want,
                         const struct sample_row *row, uint32_t n)
{
    for (uint32_t t = 0; t < n; t++) {
        if (got[t].id != want[t].id)
            print_error("row %u: id %d, expected %d: T %g top_k %d top_p %.9g min_p %.9g seed %llu "
                        "draw %u\n",
                        t, got[t].id, want[t].id, (double)row[t].temperature, row[t].top_k,
                        (double)row[t].top_p, (double)row[t].min_p, (unsigned long long)row[t].seed,
                        row[t].draw);
        assert_int_equal(got[t].id, want[t].id);
        expect_near(&got[t].logprob, &want[t].logprob);
        for (uint32_t k = 0; k < row[t].top_count; k++) {
            assert_int_equal(got[t].top_id[k], want[t].top_id[k]);
            expect_near(&got[t].top_logprob[k], &want[t].top_logprob[k]);
        }
    }
}

static void compare(struct ec *e, const float *logits, uint32_t v, const struct sample_row *row,
                    uint32_t n)
{
    struct sample_out *want = mem_array(n, sizeof(*want)), *got = mem_array(n, sizeof(*got));
    run_ref(e, logits, v, row, n, want);
    run_cuda(e, logits, v, row, n, got);
    expect_equal(got, want, row, n);
    mem_free(want);
    mem_free(got);
}

static const struct sample_row plain = {.temperature = 1, .top_p = 1, .repetition = 1};

/* Less of everything where races are looked for. */
static uint32_t amount(uint32_t n, uint32_t under_tsan)
{
    return emu_is_tsan() ? under_tsan : n;
}

/* ---- random rows ---- */

#define TOKENS 100

struct pool { /* what rows point to */
    int32_t token[TOKENS];
    struct sample_bias bias[6];
};

static void pool_make(struct pool *p, uint32_t v)
{
    for (uint32_t i = 0; i < TOKENS; i++)
        p->token[i] = (int32_t)fx_below(i % 3 ? v : MIN(v, 5u)); /* some many times */
    for (uint32_t i = 0; i < 6; i++)
        p->bias[i] = (struct sample_bias){(int32_t)fx_below(v), i ? fx_normal() : -INFINITY};
    p->bias[5].id = p->bias[4].id; /* twice: added in order */
    p->token[7] = (int32_t)v + 3;  /* of no logit: ignored */
    p->bias[3].id = (int32_t)v;
}

static void row_make(struct sample_row *r, const struct pool *p, uint32_t v)
{
    static const float temps[] = {0, 1e-30f, 0.01f, 0.3f, 0.7f, 1, 2, 50, 1e30f};
    *r = plain;
    r->temperature = temps[fx_below(ARRAY_COUNT(temps))];
    r->top_k = fx_below(2) ? (int32_t)fx_below(60) : fx_below(4) ? 0 : (int32_t)v + 1;
    r->top_p = fx_below(2) ? (float)fx_below(1001) / 1000.0f : 1;
    r->min_p = fx_below(3) ? 0 : fx_below(8) ? (float)fx_below(1000) / 2000.0f : 1.5f;
    r->seed = ((uint64_t)fx_u32() << 32) | fx_u32();
    r->draw = fx_below(1000);
    r->top_count = fx_below(4) ? fx_below(4) : fx_below(SAMPLE_TOP_MAX + 1);
    r->bias = p->bias;
    r->bias_count = fx_below(3) ? 0 : fx_below(7);
    if (fx_below(2)) {
        r->repetition = 0.7f + (float)fx_below(100) / 100.0f;
        r->frequency = (float)fx_below(100) / 100.0f - 0.5f;
        r->presence = (float)fx_below(100) / 100.0f;
        r->n_prompt = fx_below(TOKENS);
        r->prompt = p->token;
        r->output = p->token + r->n_prompt;
        r->n_output = TOKENS - r->n_prompt;
    }
}

static float *logits_make(uint32_t v, uint32_t n, uint32_t kind)
{
    float *x = fx_floats((size_t)v * n, kind == 1 ? 0.05f : 3);
    for (size_t i = 0; i < (size_t)v * n; i++) {
        if (kind == 2 || (kind == 0 && i % 3 == 0))
            x[i] = roundf(x[i]); /* ties */
        if (kind == 3 && fx_below(3) == 0)
            x[i] = -INFINITY;
        if (kind == 4)
            x[i] = bf16_round(x[i]);
        if (kind == 5 && i % 2)
            x[i] = i % 4 == 1 ? 0.0f : -0.0f; /* equal */
    }
    return x;
}

static void test_ids_are_those_of_ref(void **state)
{
    static const uint32_t vocab[] = {1, 2, 31, 1000, 1024, 1025, 3001, 9000};
    (void)state;
    for (uint32_t i = 0; i < ARRAY_COUNT(vocab); i += amount(1, 2)) {
        uint32_t v = vocab[i], rounds = amount(v > 2000 ? 12 : 18, 2);
        struct ec e;
        open_for(&e, v, CONTEXT_PAGES);
        for (uint32_t round = 0; round < rounds; round++) {
            uint32_t n = 1 + fx_below(6);
            float *logits = logits_make(v, n, round % 6);
            struct pool p;
            struct sample_row row[6];
            pool_make(&p, v);
            for (uint32_t t = 0; t < n; t++)
                row_make(&row[t], &p, v);
            emu_set_seed(round + 1);
            compare(&e, logits, v, row, n);
            mem_free(logits);
        }
        ec_close(&e);
    }
}

/* Many seeds over one row: the draw falls everywhere. */
static void test_many_draws(void **state)
{
    enum { V = 700, N = 80 };
    (void)state;
    struct ec e;
    open_for(&e, V, CONTEXT_PAGES);
    float *one = logits_make(V, 1, 4), *logits = mem_array((size_t)V * N, sizeof(float));
    struct sample_row row[N];
    for (uint32_t t = 0; t < N; t++)
        memcpy(logits + (size_t)t * V, one, V * sizeof(float));
    for (uint32_t round = 0; round < amount(6, 0); round++) {
        for (uint32_t t = 0; t < N; t++) {
            row[t] = plain;
            row[t].seed = t;
            row[t].draw = round;
            row[t].temperature = 0.4f + (float)round;
            row[t].top_p = round & 1 ? 0.95f : 1;
        }
        compare(&e, logits, V, row, N);
    }
    mem_free(one);
    mem_free(logits);
    ec_close(&e);
}

/* Two candidates whose border is the draw itself, as near as f32 logits allow: weights in f32 would
 * put it on the wrong side half of the time. The same for top_p, then with the draw in the middle.
 */
static void test_draws_at_the_border(void **state)
{
    enum { N = 80 };
    (void)state;
    struct ec e;
    open_for(&e, 2, CONTEXT_PAGES);
    for (uint32_t cut = 0; cut < 2; cut++) {
        float logits[N][2];
        struct sample_row row[N];
        for (uint32_t t = 0; t < N; t++) {
            uint32_t ctr[4] = {0}, word[4];
            row[t] = plain;
            row[t].seed = t / 4;
            philox4x32(word, ctr, row[t].seed);
            double border = philox_unit(word[0]);
            if (cut)
                border = row[t].top_p = 0.5f + (float)(t / 4) / 50.0f;
            float above = (float)log(border / (1 - border));
            above = t & 1 ? nextafterf(above, t & 2 ? 9 : -9) : above;
            logits[t][0] = above;
            logits[t][1] = 0;
        }
        compare(&e, logits[0], 2, row, amount(N, 8));
    }
    ec_close(&e);
}

/* ---- rows that are hard to cut ---- */

/* Logits so close together that a bucket must be split, down to single floats. */
static void cluster(float *x, uint32_t v, uint32_t kind)
{
    for (uint32_t i = 0; i < v; i++) {
        uint32_t near = fx_below(kind == 0 ? 1 : kind == 1 ? 3 : 4000);
        float f = 1;
        for (uint32_t k = 0; k < (kind == 2 ? 1 : near); k++)
            f = nextafterf(f, 2);
        x[i] = kind == 2 ? 1.0f + (float)near * 0x1p-23f : f;
    }
    if (kind > 0) { /* an outlier on both sides makes buckets wide */
        x[fx_below(v)] = 15;
        x[fx_below(v)] = -400;
    }
}

static void test_crowded_buckets(void **state)
{
    enum { V = 7001, N = 12 };
    (void)state;
    struct ec e;
    open_for(&e, V, CONTEXT_PAGES);
    float *logits = mem_array((size_t)V * N, sizeof(float));
    struct sample_row row[N];
    for (uint32_t kind = 0; kind < 3; kind++) {
        for (uint32_t t = 0; t < N; t++) {
            cluster(logits + (size_t)t * V, V, kind);
            row[t] = plain;
            row[t].seed = t + 100 * kind;
            row[t].temperature = t & 1 ? 30 : 1e6f;
            row[t].top_k = t % 3 == 1 ? 5000 : 0;
            row[t].top_p = t % 4 == 2 ? 0.7f : 1;
            row[t].min_p = t % 5 == 4 ? 0.25f : 0;
            row[t].top_count = 3;
        }
        compare(&e, logits, V, row, amount(N, 3));
    }
    mem_free(logits);
    ec_close(&e);
}

static void test_vocabulary_of_qwen(void **state)
{
    enum { V = 151936, N = 6 };
    (void)state;
    if (emu_is_tsan())
        return; /* nothing that smaller rows do not do */
    struct ec e;
    open_for(&e, V, CONTEXT_PAGES);
    float *logits = fx_floats((size_t)V * N, 3);
    struct sample_row row[N];
    struct pool p;
    pool_make(&p, V);
    for (uint32_t t = 0; t < N; t++) {
        row[t] = plain;
        row[t].seed = t + 9;
        row[t].top_count = 5;
    }
    row[0].temperature = 0;
    row[2].top_p = 0.9f;
    row[3].top_k = 40;
    row[3].top_p = 0.95f;
    row[3].repetition = 1.05f;
    row[3].prompt = p.token;
    row[3].n_prompt = TOKENS;
    row[4].temperature = 2;
    for (uint32_t i = 0; i < V; i++)
        logits[5 * (size_t)V + i] = 0.5f;
    compare(&e, logits, V, row, N);
    mem_free(logits);
    ec_close(&e);
}

static void test_odd_rows(void **state)
{
    static const float rows[][4] = {
        {-INFINITY, -INFINITY, -INFINITY, -INFINITY},
        {NAN, NAN, NAN, NAN},
        {NAN, 1, NAN, 1},
        {INFINITY, 1, INFINITY, 0},
        {-0.0f, 0, -0.0f, 0},
        {3e38f, -3e38f, 3e38f, 1},
        {1e-44f, 0, -1e-44f, -INFINITY},
    };
    (void)state;
    struct ec e;
    open_for(&e, 4, CONTEXT_PAGES);
    for (uint32_t i = 0; i < ARRAY_COUNT(rows); i++)
        for (uint32_t t = 0; t < 12; t += amount(1, 7)) {
            struct sample_row r = plain;
            r.seed = t;
            r.temperature = (float)(t % 3);
            r.top_p = t & 1 ? 0.4f : 1;
            r.top_count = t % 6;
            compare(&e, rows[i], 4, &r, 1);
        }
    ec_close(&e);
}

/* ---- company ---- */

static void expect_same(const struct sample_out *got, const struct sample_out *want,
                        uint32_t top_count)
{
    assert_int_equal(got->id, want->id);
    fx_bits(&got->logprob, &want->logprob, 1);
    fx_bits(got->top_id, want->top_id, top_count);
    fx_bits(got->top_logprob, want->top_logprob, top_count);
}

static void test_company_does_not_matter(void **state)
{
    enum { V = 2050, MOST = 70 };
    const uint32_t n = amount(MOST, 3);
    (void)state;
    struct ec e;
    open_for(&e, V, CONTEXT_PAGES);
    float *logits = logits_make(V, n, 0);
    struct pool p;
    struct sample_row *row = mem_array(n, sizeof(*row));
    struct sample_out *got = mem_array(n, sizeof(*got)), *again = mem_array(n, sizeof(*again)), one;
    pool_make(&p, V);
    for (uint32_t t = 0; t < n; t++)
        row_make(&row[t], &p, V);
    run_cuda(&e, logits, V, row, n, got); /* two passes: 64 rows and 6 */
    emu_set_seed(77);
    run_cuda(&e, logits, V, row, n, again);
    for (uint32_t t = 0; t < n; t++) {
        expect_same(&again[t], &got[t], row[t].top_count);
        run_cuda(&e, logits + (size_t)t * V, V, &row[t], 1, &one);
        expect_same(&one, &got[t], row[t].top_count);
    }
    mem_free(got);
    mem_free(again);
    mem_free(row);
    mem_free(logits);
    ec_close(&e);
}

static void test_top_logprobs_are_those_of_sample(void **state)
{
    enum { V = 2050, MOST = 67 };
    const uint32_t n = amount(MOST, 5);
    (void)state;
    struct ec e;
    open_for(&e, V, CONTEXT_PAGES);
    float *logits = logits_make(V, n, 2);
    struct sample_row row[MOST];
    struct sample_out want[MOST], got[MOST];
    int32_t target[MOST];
    uint32_t count[MOST];
    for (uint32_t t = 0; t < n; t++) {
        row[t] = plain;
        row[t].seed = t;
        row[t].top_count = count[t] = t % (SAMPLE_TOP_MAX + 1);
    }
    run_cuda(&e, logits, V, row, n, want);
    for (uint32_t t = 0; t < n; t++)
        target[t] = want[t].id;
    float *dev = ec_put(&e, logits, (size_t)n * V * sizeof(float));
    struct top_logprobs_args a = {got, dev, target, count, n, V};
    assert_int_equal(e.cuda->ops->top_logprobs(e.cuda, &a), STATUS_OK);
    for (uint32_t t = 0; t < n; t++)
        expect_same(&got[t], &want[t], count[t]);
    ec_free(&e, dev);
    mem_free(logits);
    ec_close(&e);
}

/* ---- histories ---- */

struct speaker { /* a sequence that is sampled step by step */
    int32_t token[CONTEXT];
    uint32_t n_prompt, n_output;
    struct sample_row row;
};

static void speaker_start(struct speaker *s, uint32_t v, uint32_t slot, uint64_t history)
{
    s->n_prompt = 1 + fx_below(60);
    s->n_output = 0;
    for (uint32_t i = 0; i < CONTEXT; i++)
        s->token[i] = i < s->n_prompt ? (int32_t)fx_below(v) : -1;
    s->row = plain;
    s->row.repetition = 1.3f;
    s->row.frequency = 0.2f;
    s->row.presence = 0.1f;
    s->row.temperature = 0.8f;
    s->row.seed = history * 7;
    s->row.history = history;
    s->row.slot = slot;
}

static void speaker_ask(struct speaker *s, struct sample_row *r, const int32_t *output)
{
    s->row.prompt = s->token;
    s->row.n_prompt = s->n_prompt;
    s->row.output = output;
    s->row.n_output = s->row.draw = s->n_output;
    *r = s->row;
}

/* Sequences come, speak, go back a step, and leave their slots to others. What the device has
 * already is not read from the host again: those entries of the output are left unset there. */
static void test_history_is_kept(void **state)
{
    enum { V = 60, SLOTS = 5 };
    static int32_t unset[CONTEXT];
    (void)state;
    struct ec e;
    open_for(&e, V, CONTEXT_PAGES);
    struct speaker s[SLOTS];
    uint64_t next = 1;
    memset(unset, 0x7f, sizeof(unset));
    for (uint32_t i = 0; i < SLOTS; i++)
        speaker_start(&s[i], V, i, next++);
    for (uint32_t step = 0; step < amount(60, 6); step++) {
        struct sample_row host[SLOTS], kept[SLOTS];
        struct sample_out want[SLOTS], got[SLOTS];
        float *logits = logits_make(V, SLOTS, 4);
        uint32_t who[SLOTS], n = 0;
        for (uint32_t i = 0; i < SLOTS; i++) {
            bool idle = fx_below(5) == 0;
            if (s[i].n_prompt + s[i].n_output == CONTEXT || fx_below(20) == 0)
                speaker_start(&s[i], V, i, next++);
            else if (s[i].n_output > 2 && fx_below(8) == 0)
                s[i].n_output -= 1 + fx_below(2); /* preempted and computed again */
            if (idle)
                continue;
            speaker_ask(&s[i], &host[n], s[i].token + s[i].n_prompt);
            speaker_ask(&s[i], &kept[n], unset);
            who[n++] = i;
        }
        run_ref(&e, logits, V, host, n, want);
        run_cuda(&e, logits, V, kept, n, got);
        expect_equal(got, want, host, n);
        for (uint32_t t = 0; t < n; t++) {
            struct speaker *w = &s[who[t]];
            int32_t latest;
            ec_get(&e, &latest, cuda_latest(e.cuda) + who[t], sizeof(latest));
            assert_int_equal(latest, got[t].id);
            w->token[w->n_prompt + w->n_output] = got[t].id;
            w->n_output++;
        }
        mem_free(logits);
    }
    ec_close(&e);
}

/* Rows whose tokens do not fit one upload together are done in passes. */
static void test_uploads_are_bounded(void **state)
{
    enum { V = 50, MOST = 24, PAGES = 400 };
    const uint32_t n = amount(MOST, 6);
    (void)state;
    struct ec e;
    open_for(&e, V, PAGES);
    float *logits = logits_make(V, n, 0);
    int32_t *token = mem_array(PAGES * 16, sizeof(*token));
    struct sample_row row[MOST];
    for (uint32_t i = 0; i < PAGES * 16; i++)
        token[i] = (int32_t)fx_below(i < 3000 ? 20 : V);
    for (uint32_t t = 0; t < n; t++) {
        row[t] = plain;
        row[t].frequency = 0.01f;
        row[t].seed = t;
        row[t].output = token;
        row[t].n_output = PAGES * 16 - t;
    }
    compare(&e, logits, V, row, n);
    mem_free(token);
    mem_free(logits);
    ec_close(&e);
}

/* Two calls are under way before anybody waits, again and again; the second goes on with what the
 * first has found, which the host has not seen yet. */
static void test_host_runs_ahead(void **state)
{
    enum { V = 40, N = 3, ROUNDS = 9 };
    static const int32_t unset[2 * ROUNDS] = {0x7f7f7f7f};
    (void)state;
    struct ec e;
    open_for(&e, V, CONTEXT_PAGES);
    int32_t said[N][2 * ROUNDS];
    for (uint32_t round = 0; round < amount(ROUNDS, 2); round++) {
        struct sample_out got[2][N], want[N];
        struct sample_row row[N];
        float *logits = logits_make(V, 2 * N, 4), *dev = ec_put(&e, logits, 2 * N * V * 4);
        uint32_t ticket[2];
        for (uint32_t half = 0; half < 2; half++) {
            for (uint32_t t = 0; t < N; t++) {
                row[t] = plain;
                row[t].presence = 1.5f;
                row[t].seed = t;
                row[t].history = 1 + t;
                row[t].slot = N - t;
                row[t].output = unset;
                row[t].draw = row[t].n_output = 2 * round + half;
            }
            struct sample_args a = {NULL, dev + half * N * V, row, NULL, N, V};
            assert_int_equal(cuda_sample_begin(e.cuda, &a, &ticket[half]), STATUS_OK);
        }
        for (uint32_t half = 0; half < 2; half++) {
            assert_int_equal(cuda_read_end(e.cuda, ticket[half], got[half]), STATUS_OK);
            for (uint32_t t = 0; t < N; t++) {
                row[t].output = said[t];
                row[t].draw = row[t].n_output = 2 * round + half;
            }
            run_ref(&e, logits + half * N * V, V, row, N, want);
            expect_equal(got[half], want, row, N);
            for (uint32_t t = 0; t < N; t++)
                said[t][2 * round + half] = want[t].id;
        }
        ec_free(&e, dev);
        mem_free(logits);
    }
    ec_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids_are_those_of_ref),
        cmocka_unit_test(test_many_draws),
        cmocka_unit_test(test_draws_at_the_border),
        cmocka_unit_test(test_crowded_buckets),
        cmocka_unit_test(test_vocabulary_of_qwen),
        cmocka_unit_test(test_odd_rows),
        cmocka_unit_test(test_company_does_not_matter),
        cmocka_unit_test(test_top_logprobs_are_those_of_sample),
        cmocka_unit_test(test_history_is_kept),
        cmocka_unit_test(test_uploads_are_bounded),
        cmocka_unit_test(test_host_runs_ahead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
