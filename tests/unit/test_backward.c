/* The backward pass of whole models: every family against torch autograd
 * (tests/oracle/gradients_golden.py), and bits that do not depend on other jobs, threads, recompute
 * or cuts of the batch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/engine/backward.h"
#include "server/model/safetensors.h"
#include "tests/lib/logits_rig.h"

/* Folders logits/ and gradients/; RS_GRADIENT_DATA: another, with random cases. */
static const char *data = RS_TEST_DATA;
static double own_share = 0.5; /* of torch's own bf16 error, where that is above the bar */

enum { ROWS_MAX = 64, SEQS = 3, SLOTS = 2 };
static const uint32_t lengths[SEQS] = {13, 9, 21};
static const struct lora_seg compositions[SEQS] = {
    {0, 0, 1, {{0, 65536}}}, {0, 0, 1, {{1, 65536}}}, {0, 0, 2, {{0, 49152}, {1, -32768}}}};

/* A case's model and adapters on a backend, and room for a batch's gradients. */
struct rig {
    struct logits_rig r;
    struct forward *forward;
    struct backward *backward;
    float *grad[SLOTS];
    size_t n_grad[SLOTS];
    float logprob[ROWS_MAX];
};

struct rig_options {
    const char *backend;
    enum dtype_choice dtype;
    uint32_t threads, head_rows;
    bool recompute;
};

/* false: the backend does not take this model's head size. */
static bool rig_open(struct rig *g, const char *name, const struct rig_options *opt)
{
    char dir[PATH_MAX];
    struct errtext err = ERRTEXT_INIT;
    memset(g, 0, sizeof(*g));
    snprintf(dir, sizeof(dir), "%s/logits/%s/model", data, name);
    struct logits_rig_options ro = {.model_dir = dir,
                                    .backend = opt->backend,
                                    .dtype = opt->dtype,
                                    .thread_count = opt->threads,
                                    .chunk = 1,
                                    .context_max = 32};
    if (logits_rig_open(&g->r, &ro, &err))
        fail_msg("%s", err.text);
    for (int i = 0; i < SLOTS; i++) {
        snprintf(dir, sizeof(dir), "%s/logits/%s/%c", data, name, 'a' + i);
        assert_int_equal(logits_rig_add(&g->r, dir, &err), STATUS_OK);
        g->n_grad[i] = g->r.layout[i].blob_bytes / dtype_bytes(g->r.table.dtype);
        g->grad[i] = mem_array(g->n_grad[i], sizeof(float));
    }
    struct forward_options fo = {.rows_max = ROWS_MAX,
                                 .pos_max = 32,
                                 .rank_sum_max = g->r.rank_sum_max,
                                 .seqs_max = SEQS,
                                 .slots_max = SLOTS,
                                 .layouts_max = SLOTS};
    struct backward_options bo = {.head_rows = opt->head_rows, .recompute = opt->recompute};
    const struct model *m = resident_model(g->r.resident);
    enum status st = forward_create(&g->forward, m, g->r.backend, &fo, &err);
    if (!st)
        st = backward_create(&g->backward, m, g->r.backend, g->forward, &bo, &err);
    if (st && st != STATUS_UNSUPPORTED)
        fail_msg("%s", err.text);
    return st == STATUS_OK;
}

static void rig_close(struct rig *g)
{
    backward_destroy(g->backward);
    forward_destroy(g->forward);
    logits_rig_close(&g->r);
    for (int i = 0; i < SLOTS; i++)
        mem_free(g->grad[i]);
}

/* Sequences first .. last in one batch, gradients added to what is there. */
static void rig_run(struct rig *g, uint32_t first, uint32_t last)
{
    int32_t ids[ROWS_MAX], target[ROWS_MAX];
    float weight[ROWS_MAX];
    struct attention_back_seq seq[SEQS];
    struct lora_seg seg[SEQS];
    uint32_t t = 0;
    for (uint32_t s = first; s <= last; s++) {
        seq[s - first] = (struct attention_back_seq){t, lengths[s]};
        seg[s - first] = compositions[s];
        seg[s - first].tok_begin = t;
        seg[s - first].tok_count = lengths[s];
        for (uint32_t i = 0; i < lengths[s]; i++, t++) {
            uint32_t n = i + 1;
            ids[t] = (int32_t)((i * 37 + s * 11 + i * i * 5 + 5) % 256);
            target[t] = i % 4 == 3 ? -1 : (int32_t)((n * 37 + s * 11 + n * n * 5 + 5) % 256);
            weight[t] = 0.05f * (float)(1 + i % 3);
        }
    }
    struct backward_batch b = {.ids = ids,
                               .seq = seq,
                               .n_tok = t,
                               .n_seq = last - first + 1,
                               .lora = &g->r.table,
                               .seg = seg,
                               .n_seg = last - first + 1,
                               .target = target,
                               .weight = weight,
                               .grad = g->grad,
                               .logprob = g->logprob};
    assert_int_equal(backward_run(g->backward, &b), STATUS_OK);
}

/* ---- against autograd ---- */

struct distance {
    double err, ref;
};

static void add_matrix(const struct st_file *f, const char *bytes, const char *name,
                       const float *grad, uint32_t rank, uint32_t d, bool transposed,
                       struct distance *sum)
{
    const struct st_tensor *t = safetensors_find(f, name);
    assert_non_null(t);
    assert_int_equal(t->dim[transposed], rank);
    assert_int_equal(t->dim[!transposed], d);
    for (uint32_t r = 0; r < rank; r++)
        for (uint32_t k = 0; k < d; k++) {
            size_t at = transposed ? (size_t)k * rank + r : (size_t)r * d + k;
            float want;
            memcpy(&want, bytes + t->begin + at * sizeof(want), sizeof(want));
            double e = (double)grad[(size_t)r * d + k] - (double)want;
            sum->err += e * e;
            sum->ref += (double)want * want;
        }
}

/* |gradient - autograd's| / |autograd's| over an adapter; each matrix adds to it. */
static double adapter_distance(const struct rig *g, const struct st_file *f, const char *bytes,
                               uint32_t slot)
{
    static const char *const names[LORA_MODULE_COUNT] = {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
    const struct model_config *c = &g->r.model->config;
    size_t item = dtype_bytes(g->r.table.dtype);
    struct distance sum = {0, 0};
    for (uint32_t l = 0; l < c->n_layer; l++)
        for (uint32_t m = 0; m < LORA_MODULE_COUNT; m++) {
            const struct lora_entry *e = &g->r.layout[slot].entry[l * LORA_MODULE_COUNT + m];
            uint32_t d_out, d_in;
            char name[64];
            if (!e->rank)
                continue;
            model_module_shape(c, (enum lora_module)m, &d_out, &d_in);
            snprintf(name, sizeof(name), "%c.%u.%s.A", 'a' + (char)slot, l, names[m]);
            add_matrix(f, bytes, name, g->grad[slot] + e->a_off / item, e->rank, d_in, false, &sum);
            name[strlen(name) - 1] = 'B';
            add_matrix(f, bytes, name, g->grad[slot] + e->b_off / item, e->rank, d_out, true, &sum);
        }
    assert_true(sum.ref > 0);
    return sqrt(sum.err / sum.ref);
}

static void check_logprobs(const struct rig *g, const struct st_file *f, const char *bytes,
                           double tol)
{
    const struct st_tensor *t = safetensors_find(f, "logprob");
    assert_non_null(t);
    uint32_t row = 0;
    for (uint32_t s = 0; s < SEQS; s++)
        for (uint32_t i = 0; i < lengths[s]; i++, row++) {
            float want;
            memcpy(&want, bytes + t->begin + row * sizeof(want), sizeof(want));
            if (i % 4 == 3)
                want = 0;
            assert_true(fabs((double)g->logprob[row] - (double)want) <= tol);
        }
}

/* How far torch's own bf16 pass is off: where that is far above the bar, the model amplifies
 * rounding, and own_share of it is asked. */
static double own_bf16(const struct st_file *f, const char *bytes, uint32_t slot)
{
    const struct st_tensor *t = safetensors_find(f, "own_bf16");
    float own;
    assert_non_null(t);
    memcpy(&own, bytes + t->begin + slot * sizeof(own), sizeof(own));
    return (double)own;
}

/* Returns whether the backend takes the case. */
static bool check_case(const char *name, const struct rig_options *opt, double tol)
{
    char path[PATH_MAX];
    char *bytes;
    size_t len;
    struct st_file f;
    struct errtext err = ERRTEXT_INIT;
    struct rig g;
    if (!rig_open(&g, name, opt)) {
        rig_close(&g);
        return false;
    }
    snprintf(path, sizeof(path), "%s/gradients/%s.safetensors", data, name);
    if (file_read(path, 1u << 24, &bytes, &len, &err) ||
        safetensors_parse(&f, bytes, len, len, 1u << 20, &err))
        fail_msg("%s", err.text);
    rig_run(&g, 0, SEQS - 1);
    for (uint32_t s = 0; s < SLOTS; s++) {
        double d = adapter_distance(&g, &f, bytes, s);
        if (getenv("RS_PRINT_GRADIENTS"))
            print_message("%s %s %d slot %u: %.2e\n", name, opt->backend, opt->dtype, s, d);
        double bar =
            opt->dtype == DTYPE_CHOICE_BF16 ? MAX(tol, own_bf16(&f, bytes, s) * own_share) : tol;
        if (!(d <= bar))
            fail_msg("%s on %s: gradient of adapter %c is %.3g off, at most %.3g", name,
                     opt->backend, 'a' + (char)s, d, bar);
    }
    check_logprobs(&g, &f, bytes, tol * 10);
    safetensors_fini(&f);
    mem_free(bytes);
    rig_close(&g);
    return true;
}

static uint32_t check_all(const struct rig_options *opt, double tol, bool bf16_only)
{
    struct dirent **list;
    uint32_t taken = 0;
    char dir[PATH_MAX];
    const char *given = getenv("RS_GRADIENT_DATA");
    data = given ? given : RS_TEST_DATA;
    own_share = given ? 1 : 0.5;
    snprintf(dir, sizeof(dir), "%s/logits", data);
    int n = scandir(dir, &list, NULL, alphasort);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        const char *name = list[i]->d_name;
        bool narrow = strstr(name, "_f32") || strstr(name, "_f16");
        if (name[0] != '.' && !(bf16_only && narrow))
            taken += check_case(name, opt, tol);
        free(list[i]);
    }
    free(list);
    data = RS_TEST_DATA;
    return given ? UINT32_MAX : taken;
}

static void test_autograd_f32(void **state)
{
    (void)state;
    struct rig_options ref = {"ref", DTYPE_CHOICE_F32, 1, 5, false};
    struct rig_options cpu = {"cpu", DTYPE_CHOICE_F32, 2, 0, true};
    assert_true(check_all(&ref, 1e-4, false) >= 8);
    assert_true(check_all(&cpu, 1e-4, false) >= 7);
}

static void test_autograd_bf16(void **state)
{
    (void)state;
    struct rig_options ref = {"ref", DTYPE_CHOICE_BF16, 1, 0, true};
    struct rig_options cpu = {"cpu", DTYPE_CHOICE_BF16, 2, 7, false};
    assert_true(check_all(&ref, 1e-2, true) >= 6);
    assert_true(check_all(&cpu, 1e-2, true) >= 6);
}

/* ---- bits ---- */

static void expect_same(const struct rig *a, const struct rig *b, uint32_t slot)
{
    assert_int_equal(a->n_grad[slot], b->n_grad[slot]);
    assert_memory_equal(a->grad[slot], b->grad[slot], a->n_grad[slot] * sizeof(float));
}

/* One batch, one thread, all activations kept: what every other way must equal. */
static void test_bits(void **state)
{
    static const char name[] = "qwen3_qknorm";
    (void)state;
    data = RS_TEST_DATA;
    for (int dtype = DTYPE_CHOICE_F32; dtype <= DTYPE_CHOICE_BF16; dtype++) {
        struct rig_options plain = {"cpu", (enum dtype_choice)dtype, 1, 0, false};
        struct rig_options other = {"cpu", (enum dtype_choice)dtype, 2, 3, true};
        struct rig all, again, cut, alone;
        assert_true(rig_open(&all, name, &plain));
        rig_run(&all, 0, SEQS - 1);
        assert_true(rig_open(&again, name, &other));
        rig_run(&again, 0, SEQS - 1);
        assert_memory_equal(all.logprob, again.logprob, sizeof(all.logprob));
        assert_true(rig_open(&cut, name, &other));
        for (uint32_t s = 0; s < SEQS; s++)
            rig_run(&cut, s, s);
        for (uint32_t s = 0; s < SLOTS; s++) {
            expect_same(&again, &all, s);
            expect_same(&cut, &all, s);
        }
        /* the job of adapter a alone: the first sequence without the second and third */
        assert_true(rig_open(&alone, name, &other));
        rig_run(&alone, 0, 0);
        struct rig two;
        assert_true(rig_open(&two, name, &plain));
        rig_run(&two, 0, 1);
        expect_same(&alone, &two, 0);
        rig_close(&two);
        rig_close(&alone);
        rig_close(&cut);
        rig_close(&again);
        rig_close(&all);
    }
}

/* What the backend was asked for is what it takes. */
static void test_bytes(void **state)
{
    struct rig_options keep = {"cpu", DTYPE_CHOICE_F32, 1, 0, false};
    struct rig g;
    (void)state;
    data = RS_TEST_DATA;
    assert_true(rig_open(&g, "qwen2_yarn_window", &keep));
    struct backward_options all = {0, false}, less = {0, true};
    const struct forward_options *fo = forward_made_with(g.forward);
    uint64_t kept = backward_bytes(g.r.backend, &g.r.model->config, fo, &all);
    uint64_t recomputed = backward_bytes(g.r.backend, &g.r.model->config, fo, &less);
    assert_true(recomputed < kept);
    rig_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_autograd_f32),
        cmocka_unit_test(test_autograd_bf16),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
