/* The trainer on a small model: what a step is made of, states that were cut, and the optimiser by
 * hand. The curve beside torch's: tests/train. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/train/trainer.h"

#define MODEL RS_TEST_DATA "/logits/qwen3_qknorm/model"

static const char config[] = "{\"peft_type\":\"LORA\",\"r\":3,\"lora_alpha\":6,\"target_modules\":"
                             "[\"q_proj\",\"down_proj\",\"o_proj\"]}";
enum { ROWS = 7 };
static const uint32_t lengths[ROWS] = {9, 1, 14, 5, 2, 11, 8};

struct rig {
    struct model *model;
    struct backend *backend;
    struct resident *resident;
    struct train_lora lora;
    struct training_rows rows;
    struct trainer *trainer;
    struct train_pass *pass;
};

/* How the next rig's base is opened. */
static enum dtype_choice base_dtype = DTYPE_CHOICE_F32;
static bool base_packed;

static struct train_options standard(void)
{
    return (struct train_options){
        .optim = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip = 1, .warmup = 1},
        .epochs = 2,
        .batch = 3,
        .tokens = 24,
        .seed = 5,
        .shuffle = true};
}

static void fill_rows(struct training_rows *r)
{
    uint64_t at = 0;
    *r = (struct training_rows){.n = ROWS};
    r->ids = mem_array(64, sizeof(*r->ids));
    r->begin = mem_array(ROWS + 1, sizeof(*r->begin));
    for (uint32_t i = 0; i < ROWS; i++) {
        for (uint32_t k = 0; k < lengths[i]; k++, at++)
            r->ids[at] = (int32_t)((at * 37 + i * 11 + 5) % 256);
        r->begin[i + 1] = at;
    }
}

static void rig_open_as(struct rig *g, const struct train_options *opt, uint32_t threads,
                        bool recompute)
{
    struct errtext err = ERRTEXT_INIT;
    struct backend_options bo = {.name = "cpu", .thread_count = threads, .deterministic = true};
    struct model_options mo = {.dtype = base_dtype, .id_cache_dir = ""};
    memset(g, 0, sizeof(*g));
    fill_rows(&g->rows);
    if (backend_create(&g->backend, &bo, &err) || model_load(&g->model, MODEL, &mo, &err) ||
        train_lora_new(&g->lora, config, strlen(config), &g->model->config, 3, &err))
        fail_msg("%s", err.text);
    if (base_packed)
        g->resident = resident_create_own(g->model, g->backend);
    else if (resident_create(&g->resident, g->model, g->backend, NULL, &err))
        fail_msg("%s", err.text);
    const struct train_base base = {g->model, g->backend, g->resident};
    const struct train_pass_options po = {.tokens = opt->tokens,
                                          .adapters_max = 4,
                                          .rank_sum_max = 9,
                                          .dropout = true,
                                          .recompute = recompute};
    if (train_pass_create(&g->pass, &base, &po, &err) ||
        trainer_create(&g->trainer, &g->lora, &g->rows, opt, &err))
        fail_msg("%s", err.text);
}

static void rig_open(struct rig *g, const struct train_options *opt, uint32_t threads)
{
    rig_open_as(g, opt, threads, false);
}

static void rig_close(struct rig *g)
{
    trainer_free(g->trainer);
    train_pass_free(g->pass);
    train_lora_fini(&g->lora);
    training_rows_fini(&g->rows);
    resident_destroy(g->resident);
    model_free(g->model);
    backend_destroy(g->backend);
}

/* One step of each, through the first one's passes. */
static enum status step_all(struct rig *g, struct trainer **trainer, uint32_t n,
                            struct train_step *step)
{
    enum status st[4], worst = STATUS_OK;
    struct train_step made[4];
    bool stepped[4];
    for (uint32_t left = n; left > 0;) {
        const struct train_round r = {trainer, made, st, stepped, left, 1 % left, NULL};
        assert_int_equal(train_round(g->pass, &r), STATUS_OK);
        for (uint32_t k = left; k-- > 0;) {
            if (!stepped[k])
                continue;
            worst = st[k] ? st[k] : worst;
            *step = made[k];
            trainer[k] = trainer[--left];
        }
    }
    return worst;
}

static enum status step_one(struct rig *g, struct train_step *step)
{
    struct trainer *t = g->trainer;
    return step_all(g, &t, 1, step);
}

static void run(struct rig *g, uint32_t steps)
{
    struct train_step s;
    for (uint32_t i = 0; i < steps; i++)
        assert_int_equal(step_one(g, &s), STATUS_OK);
}

static void same_weights(const struct rig *a, const struct rig *b)
{
    assert_int_equal(a->lora.n, b->lora.n);
    assert_memory_equal(a->lora.blob, b->lora.blob, a->lora.n * sizeof(float));
    assert_memory_equal(trainer_losses(a->trainer), trainer_losses(b->trainer),
                        trainer_done(a->trainer) * sizeof(float));
}

static void test_bits(void **state)
{
    struct rig plain, other;
    struct train_options opt = standard();
    (void)state;
    rig_open(&plain, &opt, 1);
    assert_int_equal(trainer_steps(plain.trainer), 6); /* of 3, 3 and 1 rows, twice */
    run(&plain, 6);
    opt.tokens = 32;
    rig_open_as(&other, &opt, 2, true);
    run(&other, 6);
    same_weights(&plain, &other);
    rig_close(&other);
    /* dropout is another result, the same however it is cut */
    struct rig dropped;
    opt.dropout = 0.25;
    rig_open(&dropped, &opt, 2);
    run(&dropped, 6);
    assert_memory_not_equal(plain.lora.blob, dropped.lora.blob, plain.lora.n * sizeof(float));
    opt.tokens = 24;
    rig_open(&other, &opt, 1);
    run(&other, 6);
    same_weights(&dropped, &other);
    rig_close(&other);
    rig_close(&dropped);
    opt.dropout = 0;
    opt.seed = 6;
    rig_open(&other, &opt, 1);
    run(&other, 6);
    assert_memory_not_equal(plain.lora.blob, other.lora.blob, plain.lora.n * sizeof(float));
    rig_close(&other);
    rig_close(&plain);
}

/* A bf16 base with packed copies, where the backend has such, trains to the bits of the mapped. */
static void test_packed(void **state)
{
    struct rig mapped, packed;
    struct train_options opt = standard();
    (void)state;
    base_dtype = DTYPE_CHOICE_BF16;
    rig_open(&mapped, &opt, 1);
    run(&mapped, 6);
    base_packed = true;
    rig_open(&packed, &opt, 2);
    const struct model *m = resident_model(packed.resident);
    assert_true(!packed.backend->has_bf16 || (m->layer[0].q.packed && m->lm_head.packed));
    run(&packed, 6);
    same_weights(&mapped, &packed);
    rig_close(&packed);
    rig_close(&mapped);
    base_dtype = DTYPE_CHOICE_F32;
    base_packed = false;
}

/* Four in the same passes, one of them with dropout: each as it is alone. */
static void test_company(void **state)
{
    enum { JOBS = 4 };
    static const uint32_t batch[JOBS] = {3, 3, 2, 5};
    struct rig alone[JOBS], beside[JOBS];
    struct trainer *t[JOBS];
    struct train_step s;
    (void)state;
    for (uint32_t k = 0; k < JOBS; k++) {
        struct train_options opt = standard();
        opt.seed = 5 + k;
        opt.batch = batch[k];
        opt.dropout = k == 1 ? 0.25 : 0;
        rig_open(&alone[k], &opt, 1);
        run(&alone[k], 4);
        rig_open(&beside[k], &opt, 2);
    }
    for (uint32_t i = 0; i < 4; i++) {
        for (uint32_t k = 0; k < JOBS; k++)
            t[k] = beside[k].trainer;
        assert_int_equal(step_all(&beside[0], t, JOBS, &s), STATUS_OK);
    }
    for (uint32_t k = 0; k < JOBS; k++) {
        same_weights(&alone[k], &beside[k]);
        rig_close(&alone[k]);
    }
    assert_memory_not_equal(beside[0].lora.blob, beside[3].lora.blob,
                            beside[0].lora.n * sizeof(float));
    struct train_pass_stats st = train_pass_stats(beside[0].pass);
    assert_true(st.passes > 8 && st.tokens * 2 > st.room);
    for (uint32_t k = 0; k < JOBS; k++)
        rig_close(&beside[k]);
}

static void test_state(void **state)
{
    static const uint8_t what[32] = {7}, else_what[32] = {8};
    struct rig plain, other;
    struct train_options opt = standard();
    struct errtext err = ERRTEXT_INIT;
    char path[64], *data;
    size_t len;
    (void)state;
    snprintf(path, sizeof(path), "/tmp/rs-train-state-%d", (int)getpid());
    rig_open(&plain, &opt, 1);
    run(&plain, 4);
    assert_int_equal(trainer_save(plain.trainer, path, what, &err), STATUS_OK);
    run(&plain, 2);
    rig_open(&other, &opt, 1);
    assert_int_equal(trainer_resume(other.trainer, path, else_what, NULL), STATUS_CONFLICT);
    assert_int_equal(trainer_resume(other.trainer, path, what, &err), STATUS_OK);
    assert_int_equal(trainer_done(other.trainer), 4);
    run(&other, 2);
    same_weights(&plain, &other);
    assert_int_equal(file_read(path, 1u << 24, &data, &len, &err), STATUS_OK);
    for (uint32_t i = 0; i < 64; i++) { /* cut or changed anywhere */
        size_t at = len * i / 64;
        char kept = data[at];
        data[at] ^= 4;
        assert_int_equal(file_write_atomic(path, data, len, 0600, NULL), STATUS_OK);
        assert_int_equal(trainer_resume(other.trainer, path, what, NULL), STATUS_CORRUPT);
        data[at] = kept;
        assert_int_equal(file_write_atomic(path, data, at, 0600, NULL), STATUS_OK);
        assert_int_equal(trainer_resume(other.trainer, path, what, NULL), STATUS_CORRUPT);
    }
    same_weights(&plain, &other);
    mem_free(data);
    unlink(path);
    assert_int_equal(trainer_resume(other.trainer, path, what, NULL), STATUS_NOT_FOUND);
    rig_close(&other);
    rig_close(&plain);
}

/* ---- rows that are held out ---- */

enum { HELD = 4 };

/* The same seven rows, of which some are learned and others asked. */
static void rig_split(struct rig *g, struct training_rows *held, const struct train_options *opt,
                      uint32_t every, uint32_t patience)
{
    static const uint8_t ask[ROWS] = {1, 1, 0, 1, 0, 0, 1};
    uint8_t learn[ROWS];
    struct training_rows all;
    struct errtext err = ERRTEXT_INIT;
    rig_open(g, opt, 1);
    trainer_free(g->trainer);
    all = g->rows;
    for (uint32_t i = 0; i < ROWS; i++)
        learn[i] = !ask[i];
    if (training_rows_pick(held, &all, ask, &err) ||
        training_rows_pick(&g->rows, &all, learn, &err) ||
        trainer_create(&g->trainer, &g->lora, &g->rows, opt, &err))
        fail_msg("%s", err.text);
    const struct train_evaluation e = {held, every, patience};
    assert_int_equal(held->n, HELD);
    if (trainer_evaluate(g->trainer, &e, &err))
        fail_msg("%s", err.text);
    training_rows_fini(&all);
}

/* Rounds until it has ended, or `most` of them. */
static uint32_t run_rounds(struct rig *g, uint32_t most)
{
    struct train_step made;
    enum status st;
    bool stepped;
    uint32_t rounds = 0;
    while (!trainer_ended(g->trainer) && rounds++ < most) {
        const struct train_round r = {&g->trainer, &made, &st, &stepped, 1, 0, NULL};
        assert_int_equal(train_round(g->pass, &r), STATUS_OK);
        assert_true(!stepped || !st);
    }
    return rounds;
}

static void test_held_out_rows_change_nothing(void **state)
{
    struct rig with, without;
    struct training_rows held, unused;
    struct train_options opt = standard();
    uint32_t n;
    (void)state;
    opt.epochs = 5;
    opt.tokens = 16; /* the held-out rows need several passes */
    rig_split(&with, &held, &opt, 2, 0);
    assert_true(run_rounds(&with, 100) > 8);
    assert_int_equal(trainer_done(with.trainer), 5);
    const struct train_eval *e = trainer_evals(with.trainer, &n);
    assert_true(n == 3 && e[0].step == 2 && e[1].step == 4 && e[2].step == 5);
    assert_true(trainer_best(with.trainer)->loss <= e[0].loss && isfinite(e[2].loss));
    rig_split(&without, &unused, &opt, 100, 0);
    run_rounds(&without, 100);
    same_weights(&with, &without);
    /* the last one is asked of the weights that are there at the end */
    assert_true(fabsf(trainer_best(without.trainer)->loss - e[2].loss) <= 0);
    assert_true(fabsf(e[0].loss - e[2].loss) > 1e-6f);
    rig_close(&with);
    rig_close(&without);
    training_rows_fini(&held);
    training_rows_fini(&unused);
}

/* What is asked in passes that others train in is what is asked alone. */
static void test_held_out_rows_in_company(void **state)
{
    struct rig alone, beside, other;
    struct training_rows held, same;
    struct train_options opt = standard();
    struct train_step step[2];
    enum status st[2];
    bool stepped[2];
    uint32_t n, m;
    (void)state;
    rig_split(&alone, &held, &opt, 1, 2);
    run_rounds(&alone, 100);
    rig_split(&beside, &same, &opt, 1, 2);
    opt.epochs = 50;
    opt.batch = 2;
    opt.seed = 77;
    rig_open(&other, &opt, 1);
    struct trainer *both[2] = {other.trainer, beside.trainer};
    for (uint32_t i = 0; !trainer_ended(beside.trainer) && i < 200; i++) {
        const struct train_round r = {both, step, st, stepped, 2, i % 2, NULL};
        assert_int_equal(train_round(beside.pass, &r), STATUS_OK);
    }
    same_weights(&alone, &beside);
    const struct train_eval *a = trainer_evals(alone.trainer, &n);
    const struct train_eval *b = trainer_evals(beside.trainer, &m);
    assert_true(n == m && n > 1 && trainer_done(other.trainer) > 2);
    assert_memory_equal(a, b, n * sizeof(*a));
    rig_close(&alone);
    rig_close(&beside);
    rig_close(&other);
    training_rows_fini(&held);
    training_rows_fini(&same);
}

/* Stopped anywhere, also between two passes of an evaluation, it ends with the same weights: those
 * of its best evaluation. */
static void test_early_stop(void **state)
{
    static const uint8_t what[32] = {7};
    struct rig whole, cut, best;
    struct training_rows held, other, third;
    struct train_options opt = standard();
    struct errtext err = ERRTEXT_INIT;
    char path[64];
    (void)state;
    opt.epochs = 60;
    opt.tokens = 16;
    opt.optim.lr = 0.1;
    snprintf(path, sizeof(path), "/tmp/rs-train-early-%d", (int)getpid());
    rig_split(&whole, &held, &opt, 1, 3);
    uint32_t rounds = run_rounds(&whole, 1000), steps = trainer_done(whole.trainer);
    uint32_t at = trainer_best(whole.trainer)->step;
    assert_true(steps < trainer_steps(whole.trainer) && at == steps - 3 && at > 0);
    for (uint32_t k = 0; k <= rounds; k += 1 + rounds / 9) {
        rig_split(&cut, &other, &opt, 1, 3);
        run_rounds(&cut, k);
        assert_int_equal(trainer_save(cut.trainer, path, what, &err), STATUS_OK);
        rig_close(&cut);
        training_rows_fini(&other);
        rig_split(&cut, &other, &opt, 1, 3);
        if (trainer_resume(cut.trainer, path, what, &err))
            fail_msg("%s", err.text);
        run_rounds(&cut, 1000);
        same_weights(&whole, &cut);
        rig_close(&cut);
        training_rows_fini(&other);
    }
    rig_split(&best, &third, &opt, 1000, 0);
    while (trainer_done(best.trainer) < at)
        run_rounds(&best, 1);
    assert_memory_equal(best.lora.blob, whole.lora.blob, best.lora.n * sizeof(float));
    unlink(path);
    rig_close(&best);
    rig_close(&whole);
    training_rows_fini(&held);
    training_rows_fini(&third);
}

static void test_masked_rows_are_picked_with_their_masks(void **state)
{
    static uint8_t bits[8] = {0x0f, 0xa5, 0x3c, 0xff, 0x01, 0x80, 0x77, 0x12};
    static const uint8_t take[ROWS] = {0, 1, 1, 0, 1, 1, 0};
    struct training_rows all, some;
    (void)state;
    fill_rows(&all);
    all.learn = bits;
    all.mask = ROW_MASK_ASSISTANT;
    assert_int_equal(training_rows_pick(&some, &all, take, NULL), STATUS_OK);
    assert_true(some.n == 4 && some.mask == ROW_MASK_ASSISTANT && some.idle == 1); /* of 1 token */
    for (uint32_t r = 0, from = 0; r < ROWS; r++) {
        for (uint64_t i = all.begin[r]; i < all.begin[r + 1] && take[r]; i++, from++) {
            assert_int_equal(some.ids[from], all.ids[i]);
            assert_int_equal(training_rows_learns(&some, from), training_rows_learns(&all, i));
        }
    }
    training_rows_fini(&some);
    all.learn = NULL;
    training_rows_fini(&all);
}

/* What is written is read back as the same matrices. */
static void test_file(void **state)
{
    struct rig g;
    struct train_options opt = standard();
    struct buf out;
    struct peft_adapter a;
    struct errtext err = ERRTEXT_INIT;
    (void)state;
    rig_open(&g, &opt, 1);
    run(&g, 2);
    buf_init(&out, 1u << 24);
    assert_int_equal(train_lora_render(&g.lora, &out, &err), STATUS_OK);
    char *json = mem_alloc(g.lora.config_bytes + 1), *tensors = mem_alloc(out.len + 1);
    memcpy(json, g.lora.config_json, g.lora.config_bytes);
    memcpy(tensors, out.data, out.len);
    if (peft_from_bytes(&a, json, g.lora.config_bytes, tensors, out.len, &g.model->config, &err))
        fail_msg("%s", err.text);
    assert_int_equal(a.module_count, g.lora.modules);
    struct lora_entry *entry =
        mem_array(g.model->config.n_layer * LORA_MODULE_COUNT, sizeof(*entry));
    uint64_t bytes;
    peft_layout(&a, g.model->config.n_layer, DTYPE_F32, entry, &bytes);
    assert_int_equal(bytes, g.lora.blob_bytes);
    float *blob = mem_alloc_aligned(bytes);
    peft_pack(&a, g.model->config.n_layer, DTYPE_F32, entry, blob);
    assert_memory_equal(blob, g.lora.blob, bytes);
    mem_free_aligned(blob, bytes);
    mem_free(entry);
    peft_fini(&a);
    buf_fini(&out);
    rig_close(&g);
}

static void test_rates(void **state)
{
    struct optim_options o = {.lr = 1, .warmup = 4, .steps = 12};
    (void)state;
    assert_true(optim_lr(&o, 0) == 0 && optim_lr(&o, 2) == 0.5 && optim_lr(&o, 11) == 1);
    o.schedule = OPTIM_LINEAR;
    assert_true(optim_lr(&o, 4) == 1 && optim_lr(&o, 8) == 0.5);
    o.schedule = OPTIM_COSINE;
    assert_true(fabs(optim_lr(&o, 6) - 0.5 * (1 + sqrt(0.5))) < 1e-12);
    o.warmup = 12; /* nothing behind it */
    assert_true(optim_lr(&o, 11) < 1);
}

static void test_no_number_changes_nothing(void **state)
{
    const struct optim_options o = {
        .lr = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .clip = 1, .steps = 2};
    float w[2] = {1, 2}, m[2] = {0, 0}, v[2] = {0, 0};
    const float bad[2] = {1, NAN}, good[2] = {3, 4};
    (void)state;
    assert_true(isnan(optim_step(&o, 0, w, m, v, bad, 2)));
    assert_true(w[0] == 1 && w[1] == 2 && m[0] == 0 && v[0] == 0);
    assert_true(fabs(optim_step(&o, 0, w, m, v, good, 2) - 5) < 1e-9);
    assert_true(fabsf(m[0] - 0.06f) < 1e-6f && fabsf(v[1] - 0.0064f) < 1e-6f); /* clipped to 1 */
    assert_true(fabsf(w[0] - 0.9f) < 1e-5f && fabsf(w[1] - 1.9f) < 1e-5f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_held_out_rows_change_nothing),
        cmocka_unit_test(test_held_out_rows_in_company),
        cmocka_unit_test(test_early_stop),
        cmocka_unit_test(test_masked_rows_are_picked_with_their_masks),
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_company),
        cmocka_unit_test(test_state),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_rates),
        cmocka_unit_test(test_no_number_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
