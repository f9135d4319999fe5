/* Training on a device: adapters that learn on the emulated one, beside a backend that serves from
 * the same weights, come to what ref makes of them within bf16; and their bits depend on nothing
 * but themselves. */
#include "server/train/optim.h"
#include "server/train/pass.h"
#include "tests/emulation/fixture.h"

#define MODEL    RS_TEST_DATA "/logits/qwen3_qknorm/model"
#define LEARNERS 3
#define SEQS     4 /* of a learner's step */
#define STEPS    6
#define SEQ_MAX  14

static const char *const configs[LEARNERS] = {
    "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8,\"target_modules\":[\"q_proj\",\"v_proj\","
    "\"down_proj\"]}",
    "{\"peft_type\":\"LORA\",\"r\":3,\"lora_alpha\":4,\"target_modules\":[\"k_proj\",\"o_proj\","
    "\"gate_proj\"]}",
    "{\"peft_type\":\"LORA\",\"r\":17,\"lora_alpha\":17,\"target_modules\":[\"q_proj\",\"k_proj\","
    "\"v_proj\",\"o_proj\","
    "\"gate_proj\",\"up_proj\",\"down_proj\"]}"};

struct learner {
    struct train_lora lora;
    float *grad, *m, *v;
    double loss[STEPS];
};

struct rig {
    struct backend *serving, *backend; /* ref: one and the same */
    struct model *model;
    struct resident *resident;
    void *weights;
    struct train_pass *pass;
    struct learner learner[LEARNERS];
};

static struct backend *open_backend(const char *name, bool background)
{
    struct errtext err = ERRTEXT_INIT;
    struct backend *b;
    const struct backend_options opt = {.name = name,
                                        .thread_count = 1,
                                        .deterministic = true,
                                        .device_bytes = (uint64_t)64 << 20,
                                        .background = background};
    if (backend_create(&b, &opt, &err))
        fail_msg("%s", err.text);
    return b;
}

static void learner_open(struct learner *l, const char *config, const struct model *m)
{
    struct errtext err = ERRTEXT_INIT;
    if (train_lora_new(&l->lora, config, strlen(config), &m->config, 3, &err))
        fail_msg("%s", err.text);
    for (size_t i = 0; i < l->lora.n; i++) /* B too: a new one has zeros there */
        l->lora.blob[i] += 0.02f * sinf((float)i);
    l->grad = mem_array(l->lora.n, sizeof(float));
    l->m = mem_array(l->lora.n, sizeof(float));
    l->v = mem_array(l->lora.n, sizeof(float));
}

static void rig_open(struct rig *g, const char *name, uint32_t tokens)
{
    struct errtext err = ERRTEXT_INIT;
    const struct model_options mo = {.dtype = DTYPE_CHOICE_BF16, .id_cache_dir = ""};
    memset(g, 0, sizeof(*g));
    g->serving = open_backend(name, false);
    g->backend = g->serving->is_device ? open_backend(name, true) : g->serving;
    if (model_load(&g->model, MODEL, &mo, &err))
        fail_msg("%s", err.text);
    if (g->serving->is_device)
        g->weights = g->serving->ops->mem_alloc(g->serving, resident_bytes(g->model));
    if (resident_create(&g->resident, g->model, g->serving, g->weights, &err))
        fail_msg("%s", err.text);
    const struct train_base base = {g->model, g->backend, g->resident};
    const struct train_pass_options po = {
        .tokens = tokens, .adapters_max = LEARNERS, .rank_sum_max = 51, .dropout = true};
    if (train_pass_create(&g->pass, &base, &po, &err))
        fail_msg("%s", err.text);
    for (uint32_t i = 0; i < LEARNERS; i++)
        learner_open(&g->learner[i], configs[i], g->model);
}

static void rig_close(struct rig *g)
{
    train_pass_free(g->pass);
    for (uint32_t i = 0; i < LEARNERS; i++) {
        struct learner *l = &g->learner[i];
        train_lora_fini(&l->lora);
        mem_free(l->grad);
        mem_free(l->m);
        mem_free(l->v);
    }
    resident_destroy(g->resident);
    g->serving->ops->mem_free(g->serving, g->weights, resident_bytes(g->model));
    model_free(g->model);
    if (g->backend != g->serving)
        backend_destroy(g->backend);
    backend_destroy(g->serving);
}

/* Sequences of a learner's step, which repeat every other step, so that it learns. */
struct sequences {
    struct train_seq seq[SEQS];
    int32_t ids[SEQS][SEQ_MAX], target[SEQS][SEQ_MAX];
    float weight[SEQS][SEQ_MAX], logprob[SEQS][SEQ_MAX];
};

static void fill(struct sequences *s, struct learner *l, uint32_t who, uint32_t step)
{
    for (uint32_t q = 0; q < SEQS; q++) {
        const uint32_t n = 3 + (who * 5 + q * 4) % (SEQ_MAX - 2);
        s->seq[q] = (struct train_seq){.lora = &l->lora,
                                       .grad = l->grad,
                                       .ids = s->ids[q],
                                       .target = s->target[q],
                                       .weight = s->weight[q],
                                       .logprob = s->logprob[q],
                                       .n = n,
                                       .dropout = who == 1 ? 0.25f : 0,
                                       .dropout_seed = step * 10 + q};
        for (uint32_t i = 0; i < n; i++) {
            s->ids[q][i] = (int32_t)((i * 7 + q * 31 + who * 13 + step % 2 * 57) % 256);
            s->target[q][i] = i + 1 == n ? -1 : (s->ids[q][i] + 7) % 256;
            s->weight[q][i] = 0.1f;
        }
    }
}

static void run(struct rig *g)
{
    assert_int_equal(train_pass_run(g->pass), STATUS_OK);
}

/* One step of the learners of `who`, a bit each, through passes as they fill. */
static void step(struct rig *g, uint32_t who, uint32_t at)
{
    static struct sequences all[LEARNERS];
    const struct optim_options o = {
        .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-6, .steps = STEPS};
    for (uint32_t i = 0; i < LEARNERS; i++) {
        struct learner *l = &g->learner[i];
        memset(l->grad, 0, l->lora.n * sizeof(float));
        fill(&all[i], l, i, at);
        for (uint32_t q = 0; q < SEQS && (who >> i & 1); q++)
            if (!train_pass_add(g->pass, &all[i].seq[q])) {
                run(g);
                assert_true(train_pass_add(g->pass, &all[i].seq[q]));
            }
    }
    run(g);
    for (uint32_t i = 0; i < LEARNERS; i++) {
        struct learner *l = &g->learner[i];
        l->loss[at] = 0;
        for (uint32_t q = 0; q < SEQS; q++)
            for (uint32_t t = 0; t < all[i].seq[q].n; t++)
                l->loss[at] -= (double)all[i].logprob[q][t];
        if (who >> i & 1)
            (void)optim_step(&o, at, l->lora.blob, l->m, l->v, l->grad, l->lora.n);
    }
}

static double way(const struct learner *l, float *out, const struct learner *from)
{
    double sum = 0;
    for (size_t i = 0; i < l->lora.n; i++) {
        out[i] = l->lora.blob[i] - from->lora.blob[i];
        sum += (double)out[i] * (double)out[i];
    }
    return sqrt(sum);
}

static void learns_as_ref(void **state)
{
    struct rig ref, cuda, start;
    (void)state;
    rig_open(&start, "ref", 64);
    rig_open(&ref, "ref", 64);
    rig_open(&cuda, "cuda", 64);
    for (uint32_t s = 0; s < STEPS; s++) {
        step(&ref, 7, s);
        step(&cuda, 7, s);
        for (uint32_t i = 0; i < LEARNERS; i++) {
            const struct learner *want = &ref.learner[i], *got = &cuda.learner[i];
            assert_true(fabs(got->loss[s] - want->loss[s]) < 2e-2 * want->loss[s]);
            if (s == 0)
                ec_close_to(got->grad, want->grad, want->lora.n, 3e-2, "gradient");
        }
    }
    for (uint32_t i = 0; i < LEARNERS; i++) {
        const struct learner *want = &ref.learner[i], *got = &cuda.learner[i];
        float *a = fx_poisoned(want->lora.n), *b = fx_poisoned(want->lora.n);
        assert_true(way(want, a, &start.learner[i]) > 0);
        (void)way(got, b, &start.learner[i]);
        ec_close_to(b, a, want->lora.n, 0.15, "what was learned");
        assert_true(got->loss[STEPS - 2] < got->loss[0]);
        mem_free(a);
        mem_free(b);
    }
    rig_close(&start);
    rig_close(&ref);
    rig_close(&cuda);
}

/* Alone in small passes as with the others in large ones. */
static void bits_are_its_own(void **state)
{
    struct rig all, alone;
    (void)state;
    rig_open(&all, "cuda", 128);
    rig_open(&alone, "cuda", 20);
    for (uint32_t s = 0; s < 2; s++) {
        step(&all, 7, s);
        for (uint32_t i = 0; i < LEARNERS; i++)
            step(&alone, 1u << i, s);
    }
    for (uint32_t i = 0; i < LEARNERS; i++)
        fx_bits(alone.learner[i].lora.blob, all.learner[i].lora.blob, all.learner[i].lora.n);
    rig_close(&all);
    rig_close(&alone);
}

/* What trains comes after what serves. */
static void training_yields(void **state)
{
    struct rig g;
    (void)state;
    rig_open(&g, "cuda", 20);
    assert_true(emu_stream_priority(cuda_of(g.backend)->stream) >
                emu_stream_priority(cuda_of(g.serving)->stream));
    rig_close(&g);
}

int main(void)
{
    emu_set_seed(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(learns_as_ref),
        cmocka_unit_test(bits_are_its_own),
        cmocka_unit_test(training_yields),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
