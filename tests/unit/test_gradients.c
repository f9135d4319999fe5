/* Gradients of rows and answers: whose they are, what a projection keeps, and scores beside a
 * system solved by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/philox.h"
#include "server/influence/gradients.h"

#define MODEL RS_TEST_DATA "/logits/qwen3_qknorm/model"

static const char config[] = "{\"peft_type\":\"LORA\",\"r\":3,\"lora_alpha\":6,\"target_modules\":"
                             "[\"q_proj\",\"down_proj\"]}";
enum { ROWS = 21, TOKENS = 40 };

struct rig {
    struct model *model;
    struct backend *backend;
    struct resident *resident;
    struct train_lora lora;
    struct training_rows rows;
};

static void rig_open(struct rig *g)
{
    struct errtext err = ERRTEXT_INIT;
    struct backend_options bo = {.name = "cpu", .thread_count = 2, .deterministic = true};
    struct model_options mo = {.dtype = DTYPE_CHOICE_F32, .id_cache_dir = ""};
    memset(g, 0, sizeof(*g));
    if (backend_create(&g->backend, &bo, &err) || model_load(&g->model, MODEL, &mo, &err) ||
        resident_create(&g->resident, g->model, g->backend, NULL, &err) ||
        train_lora_new(&g->lora, config, strlen(config), &g->model->config, 3, &err))
        fail_msg("%s", err.text);
    for (size_t i = 0; i < g->lora.n; i++) /* B too: a new one has zeros there */
        g->lora.blob[i] += 0.02f * sinf((float)i);
    g->rows = (struct training_rows){.n = ROWS};
    g->rows.ids = mem_array(ROWS * 12, sizeof(*g->rows.ids));
    g->rows.begin = mem_array(ROWS + 1, sizeof(*g->rows.begin));
    for (uint32_t i = 0, at = 0; i < ROWS; i++) {
        uint32_t n = i == 4 ? 1 : 3 + i * 5 % 9; /* row 4 has nothing to learn */
        for (uint32_t k = 0; k < n; k++, at++)
            g->rows.ids[at] = (int32_t)((k * 37 + i * 11 + 5) % 256);
        g->rows.begin[i + 1] = at;
    }
}

static void rig_close(struct rig *g)
{
    training_rows_fini(&g->rows);
    train_lora_fini(&g->lora);
    resident_destroy(g->resident);
    model_free(g->model);
    backend_destroy(g->backend);
}

static struct gradients_taken take(const struct rig *g, const struct gradient_blocks *b,
                                   const struct training_rows *rows)
{
    struct errtext err = ERRTEXT_INIT;
    struct gradients_taken out;
    const struct gradients_job job = {.base = {g->model, g->backend, g->resident},
                                      .lora = &g->lora,
                                      .blocks = b,
                                      .tokens = TOKENS};
    if (gradients_take(&job, rows, &out, &err))
        fail_msg("%s", err.text);
    return out;
}

static struct training_rows one_row(const struct training_rows *r, uint32_t row, uint64_t begin[2])
{
    begin[0] = 0;
    begin[1] = r->begin[row + 1] - r->begin[row];
    return (struct training_rows){.ids = r->ids + r->begin[row], .begin = begin, .n = 1};
}

/* A row's gradient is its own, to the bit, whoever is in the pass. */
static void test_own(void **state)
{
    struct rig g;
    struct gradient_blocks b;
    (void)state;
    rig_open(&g);
    gradient_blocks_make(&b, &g.lora, 0, 0);
    assert_int_equal(b.width, g.lora.weights);
    struct gradients_taken all = take(&g, &b, &g.rows);
    for (uint32_t row = 0; row < ROWS; row++) {
        uint64_t begin[2];
        struct training_rows r = one_row(&g.rows, row, begin);
        struct gradients_taken alone = take(&g, &b, &r);
        assert_memory_equal(alone.gradient, all.gradient + row * b.width, b.width * sizeof(float));
        assert_true(fabsf(alone.logprob[0] - all.logprob[row]) <= 0);
        gradients_taken_fini(&alone);
    }
    assert_true(fabsf(all.logprob[4]) <= 0 && fabsf(all.gradient[4 * b.width]) <= 0);
    assert_true(all.logprob[5] < 0);
    uint8_t learn[ROWS * 12] = {0}; /* the last token of row 5 alone */
    struct training_rows masked = g.rows;
    uint64_t last = g.rows.begin[6] - 1;
    masked.learn = learn;
    learn[last / 8] |= (uint8_t)(1u << last % 8);
    struct gradients_taken less = take(&g, &b, &masked);
    assert_true(less.logprob[5] < 0 && less.logprob[5] > all.logprob[5]);
    assert_true(fabsf(less.logprob[6]) <= 0);
    gradients_taken_fini(&less);
    gradients_taken_fini(&all);
    gradient_blocks_fini(&b);
    rig_close(&g);
}

/* A small step against a row's gradient makes the row likelier, by the gradient's square. */
static void test_downhill(void **state)
{
    struct rig g;
    struct gradient_blocks b;
    const float step = 1e-4f;
    (void)state;
    rig_open(&g);
    gradient_blocks_make(&b, &g.lora, 0, 0);
    struct gradients_taken was = take(&g, &b, &g.rows);
    const float *grad = was.gradient + 7 * b.width;
    double square = 0;
    for (uint32_t k = 0; k < b.n; k++) {
        const struct gradient_block *at = &b.block[k];
        for (uint32_t i = 0; i < at->rank * at->columns; i++) {
            g.lora.blob[at->blob_at + i] -= step * grad[at->at + i];
            square += (double)grad[at->at + i] * (double)grad[at->at + i];
        }
    }
    struct gradients_taken is = take(&g, &b, &g.rows);
    double rose = (double)is.logprob[7] - (double)was.logprob[7];
    assert_true(square > 0 && fabs(rose / ((double)step * square) - 1) < 0.1);
    gradients_taken_fini(&was);
    gradients_taken_fini(&is);
    gradient_blocks_fini(&b);
    rig_close(&g);
}

static void test_projection(void **state)
{
    enum { COLUMNS = 5, SEED = 99 };
    struct rig g;
    struct gradient_blocks whole, less;
    (void)state;
    rig_open(&g);
    gradient_blocks_make(&whole, &g.lora, 0, SEED);
    gradient_blocks_make(&less, &g.lora, COLUMNS, SEED);
    assert_true(less.width < whole.width && less.n == whole.n);
    struct gradients_taken a = take(&g, &whole, &g.rows);
    struct gradients_taken p = take(&g, &less, &g.rows);
    for (uint32_t k = 0; k < less.n; k++) {
        const struct gradient_block *from = &whole.block[k], *to = &less.block[k];
        double want[COLUMNS] = {0};
        assert_int_equal(to->columns, COLUMNS);
        for (uint32_t l = 0; l < from->length; l++) {
            uint32_t out[4];
            const uint32_t ctr[4] = {l, k, 0x70726f6a, 0};
            philox4x32(out, ctr, SEED);
            for (uint32_t j = 0; j < COLUMNS; j++)
                want[j] += (out[0] >> j & 1 ? 1 : -1) / sqrt(COLUMNS) *
                           (double)a.gradient[3 * whole.width + from->at + l];
        }
        for (uint32_t j = 0; j < COLUMNS; j++)
            assert_true(fabs((double)p.gradient[3 * less.width + to->at + j] - want[j]) < 1e-4);
    }
    gradients_taken_fini(&a);
    gradients_taken_fini(&p);
    gradient_blocks_fini(&whole);
    gradient_blocks_fini(&less);
    rig_close(&g);
}

/* x of m x = y, without a pivot: m is well conditioned here. */
static void eliminate(double *m, double *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t r = i + 1; r < n; r++) {
            double f = m[r * n + i] / m[i * n + i];
            for (uint32_t k = i; k < n; k++)
                m[r * n + k] -= f * m[i * n + k];
            x[r] -= f * x[i];
        }
    }
    for (uint32_t i = n; i-- > 0;) {
        for (uint32_t k = i + 1; k < n; k++)
            x[i] -= m[i * n + k] * x[k];
        x[i] /= m[i * n + i];
    }
}

enum { WIDTH = 12, ANSWERS = 2, N_MAX = 30 };

static double number(uint32_t i)
{
    return sin(i * 12.9898) + 0.3 * cos(i * 4.1);
}

/* The Fisher of each block inverted, as it is written. */
static void by_hand(const float *rows, uint32_t n, const float *answer, double damping,
                    double *score)
{
    for (uint32_t at = 0, w = 8; at < WIDTH; at += w, w = WIDTH - at) {
        double f[WIDTH * WIDTH] = {0}, x[WIDTH], size = 0;
        for (uint32_t r = 0; r < n; r++) {
            const float *g = rows + r * WIDTH + at;
            for (uint32_t i = 0; i < w; i++) {
                size += (double)g[i] * (double)g[i] / n;
                for (uint32_t j = 0; j < w; j++)
                    f[i * w + j] += (double)g[i] * (double)g[j] / n;
            }
        }
        for (uint32_t i = 0; i < w; i++) {
            f[i * w + i] += damping * size / n;
            x[i] = (double)answer[at + i];
        }
        eliminate(f, x, w);
        for (uint32_t r = 0; r < n; r++) {
            for (uint32_t i = 0; i < w; i++)
                score[r] += x[i] * (double)rows[r * WIDTH + at + i];
        }
    }
}

/* Blocks of 8 and 4 numbers, by systems of rows (3, 6) and of numbers (6 for the second, 30). */
static void test_scores(void **state)
{
    static const uint32_t counts[] = {3, 6, N_MAX};
    struct gradient_block block[] = {{.rank = 2, .columns = 4}, {.rank = 1, .columns = 4, .at = 8}};
    const struct gradient_blocks b = {.block = block, .n = 2, .width = WIDTH};
    float rows[N_MAX * WIDTH], answers[ANSWERS * WIDTH];
    (void)state;
    for (uint32_t i = 0; i < N_MAX * WIDTH; i++)
        rows[i] = (float)number(i);
    for (uint32_t i = 0; i < ANSWERS * WIDTH; i++)
        answers[i] = (float)number(i + 1000);
    for (uint32_t c = 0; c < ARRAY_COUNT(counts); c++) {
        struct errtext err = ERRTEXT_INIT;
        uint32_t n = counts[c];
        double score[ANSWERS * N_MAX];
        const struct gradients_asked a = {
            .row = rows, .answer = answers, .n_row = n, .n_answer = ANSWERS, .damping = 0.3};
        assert_int_equal(gradients_score(&b, &a, score, &err), STATUS_OK);
        for (uint32_t q = 0; q < ANSWERS; q++) {
            double want[N_MAX] = {0};
            by_hand(rows, n, answers + q * WIDTH, 0.3, want);
            for (uint32_t r = 0; r < n; r++)
                assert_true(fabs(score[q * n + r] - want[r]) < 1e-9 * (1 + fabs(want[r])));
        }
    }
}

static void test_no_number(void **state)
{
    struct gradient_block block = {.rank = 1, .columns = 2};
    const struct gradient_blocks b = {.block = &block, .n = 1, .width = 2};
    const float zeros[4] = {0}, answer[] = {1, 1}; /* rows that move nothing */
    struct errtext err = ERRTEXT_INIT;
    struct gradients_asked a = {zeros, answer, 2, 1, 0.1};
    double score[2];
    (void)state;
    assert_int_equal(gradients_score(&b, &a, score, &err), STATUS_OK);
    assert_true(fabs(score[0]) <= 0 && fabs(score[1]) <= 0);
    const float big[] = {1e30f, 1e30f, 1e-30f, INFINITY};
    a.row = big;
    assert_int_equal(gradients_score(&b, &a, score, &err), STATUS_CORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own),        cmocka_unit_test(test_downhill),
        cmocka_unit_test(test_projection), cmocka_unit_test(test_scores),
        cmocka_unit_test(test_no_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
