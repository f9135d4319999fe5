/* What contributions are worth: the arithmetic by hand, the measure on a small model and value.json
 * as a reader takes it. Adapters that answer: tests/train/test_value.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/train/value.h"

#define MODEL RS_TEST_DATA "/logits/qwen3_qknorm/model"

/* ---- rows ---- */

struct test_rows {
    struct training_rows rows;
    uint32_t owner[64];
};

static void rows_add(struct test_rows *t, uint32_t owner, const int32_t *ids, uint32_t n)
{
    struct training_rows *r = &t->rows;
    if (!r->ids) {
        r->ids = mem_array(1024, sizeof(*r->ids));
        r->begin = mem_array(65, sizeof(*r->begin));
    }
    memcpy(r->ids + r->begin[r->n], ids, n * sizeof(*ids));
    r->begin[r->n + 1] = r->begin[r->n] + n;
    t->owner[r->n++] = owner;
}

static void add_numbers(struct test_rows *t, uint32_t owner, uint32_t first, uint32_t rows)
{
    for (uint32_t i = 0; i < rows; i++) {
        int32_t ids[8];
        for (uint32_t k = 0; k < 8; k++)
            ids[k] = (int32_t)((first + i * 13 + k * k * 7) % 256);
        rows_add(t, owner, ids, 8);
    }
}

static void test_a_row_counts_for_who_said_it_first(void **state)
{
    static const int32_t one[] = {1, 2, 3}, other[] = {1, 2}, third[] = {1, 2, 4};
    struct test_rows t = {0}, apart = {0};
    struct errtext err = ERRTEXT_INIT;
    uint32_t repeat[5];
    (void)state;
    rows_add(&t, 0, one, 3);
    rows_add(&t, 0, other, 2);
    rows_add(&t, 1, one, 3);
    rows_add(&t, 1, other, 2);
    rows_add(&t, 1, one, 3);
    assert_int_equal(value_repeats(repeat, &t.rows, &err), STATUS_OK);
    static const uint32_t want[5] = {0, 1, 0, 1, 0};
    assert_memory_equal(repeat, want, sizeof(want));
    rows_add(&apart, 0, third, 3);
    assert_int_equal(value_check_apart(&t.rows, &apart.rows, &err), STATUS_OK);
    rows_add(&apart, 0, other, 2);
    assert_int_equal(value_check_apart(&t.rows, &apart.rows, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "held-out row 1 is row 1"));
    training_rows_fini(&t.rows);
    training_rows_fini(&apart.rows);
}

static void test_every_part_has_its_share_of_everybody(void **state)
{
    uint32_t group[60], part[60], other[60], have[4][5] = {{0}};
    (void)state;
    for (uint32_t i = 0; i < 60; i++)
        group[i] = i < 30   ? 0
                   : i < 42 ? 1
                   : i < 55 ? 2
                            : 3; /* 30, 12, 13, and 5 that are not dealt */
    assert_int_equal(value_deal(part, group, 60, 3, 5, 7, NULL), STATUS_OK);
    for (uint32_t i = 0; i < 60; i++) {
        if (group[i] == 3) {
            assert_int_equal(part[i], UINT32_MAX);
            continue;
        }
        assert_in_range(part[i], 0, 4);
        have[group[i]][part[i]]++;
    }
    for (uint32_t p = 0; p < 5; p++) {
        assert_int_equal(have[0][p], 6);
        assert_in_range(have[1][p], 2, 3);
        assert_in_range(have[2][p], 2, 3);
        assert_int_equal(have[0][p] + have[1][p] + have[2][p], 11);
    }
    assert_int_equal(value_deal(other, group, 60, 3, 5, 7, NULL), STATUS_OK);
    assert_memory_equal(part, other, sizeof(part));
    assert_int_equal(value_deal(other, group, 60, 3, 5, 8, NULL), STATUS_OK);
    assert_memory_not_equal(part, other, sizeof(part));
}

static void test_figures_by_hand(void **state)
{
    /* per token .1, .3, .2 of 10, 10 and 20: mean .2; (1-2)^2 + (3-2)^2 + 0 = 2; 3/2 * 2 = 3 */
    const struct value_unit unit[] = {{1, 10}, {3, 10}, {4, 20}, {0, 0}};
    const struct value_unit same[] = {{1, 10}, {2, 20}};
    struct value_figure f;
    (void)state;
    value_figure_of(&f, unit, 4, 1);
    assert_int_equal(f.value, 200000);
    assert_int_equal(f.total, 8000000);
    assert_int_equal(f.tokens, 40);
    double half = 4.303 * sqrt(3) / 40;
    assert_int_equal(f.high, llround((0.2 + half) * 1e6));
    assert_int_equal(f.low, llround((0.2 - half) * 1e6));
    value_figure_of(&f, same, 2, 2);
    assert_true(f.value == 100000 && f.low == 100000 && f.high == 100000);
    assert_true(f.total == 1500000 && f.tokens == 15);
    value_figure_of(&f, unit + 3, 1, 1);
    assert_true(f.value == 0 && f.low == 0 && f.high == 0 && f.tokens == 0);
    assert_true(value_t95(1) > 12 && fabs(value_t95(31) - 2.04) < 0.01 &&
                fabs(value_t95(1000) - 1.9623) < 0.001);
}

/* ---- a measure ---- */

static const char config[] = "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"target_modules\":"
                             "[\"q_proj\",\"down_proj\"]}";
static const uint8_t address[3][20] = {{0x11}, {0x22}, {0x33}};

struct rig {
    struct model *model;
    struct backend *backend;
    struct resident *resident;
    struct test_rows rows, exam;
    struct value_job job;
};

static void rig_open(struct rig *g)
{
    struct errtext err = ERRTEXT_INIT;
    struct backend_options bo = {.name = "cpu", .thread_count = 1, .deterministic = true};
    struct model_options mo = {.dtype = DTYPE_CHOICE_F32, .id_cache_dir = ""};
    *g = (struct rig){0};
    if (backend_create(&g->backend, &bo, &err) || model_load(&g->model, MODEL, &mo, &err) ||
        resident_create(&g->resident, g->model, g->backend, NULL, &err))
        fail_msg("%s", err.text);
    add_numbers(&g->rows, 0, 5, 8);
    add_numbers(&g->rows, 1, 6, 6);
    add_numbers(&g->rows, 2, 5, 4); /* says what 0 has said */
    add_numbers(&g->exam, 3, 18, 3);
    for (uint32_t i = 0; i < g->exam.rows.n; i++)
        g->exam.rows.ids[i * 8 + 7] += 1;
    g->job = (struct value_job){
        .base = {g->model, g->backend, g->resident},
        .learned = {&g->rows.rows, g->rows.owner},
        .owner = address,
        .owners = 3,
        .train = {.optim = {.lr = 0.02, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip = 1},
                  .epochs = 3,
                  .batch = 4,
                  .tokens = 64,
                  .seed = 9,
                  .shuffle = true},
        .config = config,
        .config_bytes = sizeof(config) - 1,
        .parts = 3,
        .seeds = 2};
}

static void rig_close(struct rig *g)
{
    training_rows_fini(&g->rows.rows);
    training_rows_fini(&g->exam.rows);
    resident_destroy(g->resident);
    model_free(g->model);
    backend_destroy(g->backend);
}

static const struct value_line *line_of(const struct value_report *r, uint32_t owner)
{
    for (uint32_t i = 0; i < r->n; i++) {
        if (memcmp(r->line[i].owner, address[owner], 20) == 0)
            return &r->line[i];
    }
    fail_msg("no line of %u", owner);
    return NULL;
}

static void test_measure(void **state)
{
    struct rig g;
    struct value_report folds = {0}, again = {0}, exam = {0};
    struct errtext err = ERRTEXT_INIT;
    (void)state;
    rig_open(&g);
    if (value_measure(&folds, &g.job, &err) || value_measure(&again, &g.job, &err))
        fail_msg("%s", err.text);
    assert_int_equal(folds.n, 3);
    assert_memory_equal(folds.line, again.line, 3 * sizeof(*folds.line));
    assert_int_equal(folds.gain.tokens, 14 * 7); /* each row that counts, once */
    assert_int_equal(folds.base_loss - folds.loss, folds.gain.value);
    const struct value_line *zero = line_of(&folds, 2), *first = line_of(&folds, 0);
    assert_true(zero->rows == 0 && zero->repeated == 4 && !zero->has_own);
    assert_true(zero->worth.value == 0 && zero->worth.low == 0 && zero->worth.high == 0);
    assert_int_equal(zero->worth.tokens, 14 * 7);
    assert_true(first->rows == 8 && first->has_own && first->worth.value != 0);
    assert_int_equal(first->worth.tokens, 6 * 7); /* his own rows do not judge him */
    g.job.held = (struct value_set){&g.exam.rows, g.exam.owner};
    if (value_measure(&exam, &g.job, &err))
        fail_msg("%s", err.text);
    assert_int_equal(exam.gain.tokens, 3 * 7);
    assert_true(line_of(&exam, 0)->worth.tokens == 3 * 7 && !line_of(&exam, 0)->has_own);
    assert_true(line_of(&exam, 0)->worth.value != first->worth.value);
    mem_free(folds.line);
    mem_free(again.line);
    mem_free(exam.line);
    rig_close(&g);
}

/* Rows without a rule: whoever has not learned them cannot know them. */
static void test_what_is_held_out_is_not_learned(void **state)
{
    struct rig g;
    struct test_rows t = {0};
    struct value_report out = {0};
    struct errtext err = ERRTEXT_INIT;
    uint32_t draw = 1;
    (void)state;
    rig_open(&g);
    for (uint32_t i = 0; i < 8; i++) {
        int32_t ids[8];
        for (uint32_t k = 0; k < 8; k++) {
            draw = draw * 1664525 + 1013904223;
            ids[k] = (int32_t)(draw >> 24);
        }
        rows_add(&t, i % 2, ids, 8);
    }
    struct value_job job = g.job;
    job.learned = (struct value_set){&t.rows, t.owner};
    job.owners = 2;
    job.train.epochs = 40;
    job.parts = 2;
    job.seeds = 1;
    if (value_measure(&out, &job, &err))
        fail_msg("%s", err.text);
    assert_true(out.loss > 4500000); /* ln 256 is 5.5 */
    mem_free(out.line);
    training_rows_fini(&t.rows);
    rig_close(&g);
}

static void refused(const struct value_job *job, const char *says)
{
    struct value_report out = {0};
    struct errtext err = ERRTEXT_INIT;
    assert_int_equal(value_measure(&out, job, &err), STATUS_INVALID);
    if (!strstr(err.text, says))
        fail_msg("'%s' does not say '%s'", err.text, says);
}

static void test_what_cannot_be_measured(void **state)
{
    struct rig g;
    struct test_rows none = {0}, alone = {0};
    static const int32_t ids[] = {7};
    (void)state;
    rig_open(&g);
    struct value_job job = g.job;
    add_numbers(&alone, 1, 5, 8);
    add_numbers(&alone, 2, 5, 8); /* nothing but repeated rows */
    job.learned = (struct value_set){&alone.rows, alone.owner};
    refused(&job, "rows of one contributor count");
    job = g.job;
    job.parts = 15;
    refused(&job, "only 14 rows count");
    rows_add(&none, 3, ids, 1);
    job = g.job;
    job.held = (struct value_set){&none.rows, none.owner};
    refused(&job, "no held-out row has a token");
    job.held = (struct value_set){&g.exam.rows, g.exam.owner};
    job.parts = 4;
    refused(&job, "only 3 rows are held out");
    job = g.job;
    job.train.tokens = 7;
    refused(&job, "at most 7");
    training_rows_fini(&none.rows);
    training_rows_fini(&alone.rows);
    rig_close(&g);
}

/* ---- the file ---- */

static char folder[] = "/tmp/test_value.XXXXXX";

static struct datanet *datanet_of(const char *text)
{
    struct datanet *d;
    struct errtext err = ERRTEXT_INIT;
    uint8_t digest[32];
    char path[128], hex[65], list[1024];
    crypto_generichash(digest, 32, (const uint8_t *)text, strlen(text), NULL, 0);
    hex_encode(hex, digest, 32);
    snprintf(path, sizeof(path), "%s/1.txt", folder);
    assert_int_equal(file_write_atomic(path, text, strlen(text), 0644, &err), STATUS_OK);
    int n = snprintf(list, sizeof(list),
                     "{\"version\":1,\"name\":\"n\",\"documents\":[{\"docId\":1,\"owner\":"
                     "\"0x1100000000000000000000000000000000000000\",\"licence\":\"MIT\",\"bytes\":"
                     "%zu,\"digest\":\"%s\",\"file\":\"1.txt\"}]}",
                     strlen(text), hex);
    snprintf(path, sizeof(path), "%s/datanet.json", folder);
    assert_int_equal(file_write_atomic(path, list, (size_t)n, 0644, &err), STATUS_OK);
    if (datanet_open(&d, folder, NULL, &err))
        fail_msg("%s", err.text);
    return d;
}

static void render(struct buf *out, const struct datanet *d, struct value_line *line)
{
    json_t *options = json_pack("{s:f, s:i}", "learningRate", 0.0002, "batch", 8);
    struct value_report r = {.base = {1},
                             .training = {2},
                             .folds = 5,
                             .seeds = 2,
                             .seed = 3,
                             .base_loss = 3000000,
                             .loss = 1000000,
                             .gain = {2000000, 1900000, 2100000, 40000000, 20},
                             .n = 1,
                             .line = line};
    const struct value_recipe recipe = {options, "residual 1"};
    memcpy(r.document_root, datanet_head(d)->document_root, 32);
    buf_init(out, VALUE_BYTES_MAX);
    assert_int_equal(value_report_render(out, &r, &recipe, NULL), STATUS_OK);
    json_decref(options);
}

static void wrong(const struct buf *file, const struct datanet *d, const char *from, const char *to,
                  const char *says)
{
    struct value_report *r;
    struct errtext err = ERRTEXT_INIT;
    char text[8192];
    const char *at = strstr(file->data, from);
    assert_non_null(at);
    int n = snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - file->data), file->data, to,
                     at + strlen(from));
    assert_int_equal(value_report_parse(&r, text, (size_t)n, d, &err), STATUS_INVALID);
    assert_null(r);
    if (!strstr(err.text, says))
        fail_msg("'%s' does not say '%s'", err.text, says);
}

static void test_the_file(void **state)
{
    struct value_line line = {.owner = {0x11}, .rows = 4, .worth = {-70, -90, 5, -1400, 20}};
    struct errtext err = ERRTEXT_INIT;
    struct value_report *r;
    struct buf file;
    (void)state;
    struct datanet *d = datanet_of("One. Two.");
    render(&file, d, &line);
    if (value_report_parse(&r, file.data, file.len, d, &err))
        fail_msg("%s", err.text);
    assert_memory_equal(&r->line[0], &line, sizeof(line));
    assert_true(r->seed == 3 && r->seeds == 2 && r->gain.value == 2000000 && !r->has_eval);
    value_report_free(r);
    wrong(&file, d, "\"folds\":5", "\"folds\": 5", "not canonical");
    wrong(&file, d, "\"folds\":5", "\"folds\":1", "folds");
    wrong(&file, d, "[3,4]", "[3,5]", "seeds");
    wrong(&file, d, "\"low\":-90", "\"low\":-60", "low, high");
    wrong(&file, d, "\"0x1100", "\"0x1200", "owns no document");
    wrong(&file, d, "residual.value.1", "residual.value.2", "format");
    wrong(&file, d, "\"unit\":\"micronat\"", "\"unit\":\"bit\"", "unit");
    wrong(&file, d, "\"options\":{", "\"option\":{", "options");
    datanet_release(d);
    d = datanet_of("One. Two. Three.");
    wrong(&file, d, "\"folds\":5", "\"folds\":5", "other documents"); /* it is stale */
    datanet_release(d);
    buf_fini(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_row_counts_for_who_said_it_first),
        cmocka_unit_test(test_every_part_has_its_share_of_everybody),
        cmocka_unit_test(test_figures_by_hand),
        cmocka_unit_test(test_measure),
        cmocka_unit_test(test_what_is_held_out_is_not_learned),
        cmocka_unit_test(test_what_cannot_be_measured),
        cmocka_unit_test(test_the_file),
    };
    if (!mkdtemp(folder) || sodium_init() < 0)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[128];
    snprintf(command, sizeof(command), "%s/1.txt", folder);
    (void)remove(command);
    snprintf(command, sizeof(command), "%s/datanet.json", folder);
    (void)remove(command);
    (void)remove(folder);
    return failed;
}
