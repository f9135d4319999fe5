/* See gradient_rig.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "kernels/cuda/lora_pack.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/model/safetensors.h"
#include "tests/lib/gradient_rig.h"

#include <dirent.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Folders logits/ and gradients/; RS_GRADIENT_DATA: another, with random cases. */
static const char *data = RS_TEST_DATA;
static double own_share = 0.5; /* of torch's own bf16 error, where that is above the bar */

static const uint32_t lengths[GRADIENT_SEQS] = {13, 9, 21};
static const struct lora_seg compositions[GRADIENT_SEQS] = {
    {0, 0, 1, {{0, 65536}}}, {0, 0, 1, {{1, 65536}}}, {0, 0, 2, {{0, 49152}, {1, -32768}}}};

static size_t hidden_bytes(const struct gradient_rig *g)
{
    return (size_t)GRADIENT_ROWS * g->r.model->config.d_model * dtype_bytes(g->r.backend->act);
}

bool gradient_rig_open(struct gradient_rig *g, const char *name, const struct gradient_options *opt)
{
    char dir[PATH_MAX];
    struct errtext err = ERRTEXT_INIT;
    memset(g, 0, sizeof(*g));
    g->dropout = opt->dropout;
    snprintf(dir, sizeof(dir), "%s/logits/%s/model", data, name);
    struct logits_rig_options ro = {.model_dir = dir,
                                    .backend = opt->backend,
                                    .dtype = opt->dtype,
                                    .thread_count = opt->threads,
                                    .chunk = 1,
                                    .context_max = 32};
    if (logits_rig_open(&g->r, &ro, &err))
        fail_msg("%s", err.text);
    const struct backend_ops *ops = g->r.backend->ops;
    for (int i = 0; i < GRADIENT_SLOTS; i++) {
        snprintf(dir, sizeof(dir), "%s/logits/%s/%c", data, name, 'a' + i);
        assert_int_equal(logits_rig_add(&g->r, dir, &err), STATUS_OK);
        g->n_grad[i] = g->r.layout[i].blob_bytes / dtype_bytes(g->r.table.dtype);
        g->grad[i] = mem_array(g->n_grad[i], sizeof(float));
        g->there[i] = ops->mem_alloc(g->r.backend, g->n_grad[i] * sizeof(float));
        assert_non_null(g->there[i]);
        assert_int_equal(ops->mem_zero(g->r.backend, g->there[i], g->n_grad[i] * sizeof(float)),
                         STATUS_OK);
    }
    g->hidden = ops->mem_alloc(g->r.backend, hidden_bytes(g));
    assert_non_null(g->hidden);
    struct forward_options fo = {.rows_max = GRADIENT_ROWS,
                                 .pos_max = 32,
                                 .rank_sum_max = g->r.rank_sum_max,
                                 .seqs_max = GRADIENT_SEQS,
                                 .slots_max = GRADIENT_SLOTS,
                                 .layouts_max = GRADIENT_SLOTS};
    struct backward_options bo = {
        .head_rows = opt->head_rows, .recompute = opt->recompute, .dropout = true};
    const struct model *m = resident_model(g->r.resident);
    enum status st = forward_create(&g->forward, m, g->r.backend, &fo, &err);
    if (!st)
        st = backward_create(&g->backward, m, g->r.backend, g->forward, &bo, &err);
    if (st && st != STATUS_UNSUPPORTED)
        fail_msg("%s", err.text);
    return st == STATUS_OK;
}

void gradient_rig_close(struct gradient_rig *g)
{
    backward_destroy(g->backward);
    forward_destroy(g->forward);
    g->r.backend->ops->mem_free(g->r.backend, g->hidden, hidden_bytes(g));
    for (int i = 0; i < GRADIENT_SLOTS; i++) {
        g->r.backend->ops->mem_free(g->r.backend, g->there[i], g->n_grad[i] * sizeof(float));
        mem_free(g->grad[i]);
    }
    logits_rig_close(&g->r);
}

/* Five rows of a user, under both adapters. */
static void other_pass(struct gradient_rig *g)
{
    static const int32_t ids[5] = {9, 8, 7, 6, 5};
    static const uint32_t seq[5], pos[5] = {0, 1, 2, 3, 4};
    struct lora_seg seg = compositions[2];
    uint32_t last = 4;
    seg.tok_count = 5;
    struct forward_batch b = {.ids = ids,
                              .n_tok = 5,
                              .rows = {seq, pos, g->r.page_table, g->r.page_stride},
                              .kv = g->r.kv,
                              .lora = &g->r.table,
                              .seg = &seg,
                              .n_seg = 1,
                              .out_rows = &last,
                              .n_out = 1,
                              .hidden = g->hidden};
    assert_int_equal(forward_run(g->forward, &b), STATUS_OK);
}

static void run_batch(struct gradient_rig *g, const struct backward_batch *b)
{
    if (!g->disturbed) {
        assert_int_equal(backward_run(g->backward, b), STATUS_OK);
        return;
    }
    assert_int_equal(backward_begin(g->backward, b), STATUS_OK);
    for (bool done = false; !done;) {
        other_pass(g);
        assert_int_equal(backward_next(g->backward, &done), STATUS_OK);
    }
}

void gradient_rig_run(struct gradient_rig *g, uint32_t first, uint32_t last)
{
    int32_t ids[GRADIENT_ROWS], target[GRADIENT_ROWS];
    float weight[GRADIENT_ROWS];
    struct attention_back_seq seq[GRADIENT_SEQS];
    struct lora_seg seg[GRADIENT_SEQS];
    struct dropout_seg drop[GRADIENT_SEQS];
    uint32_t t = 0;
    for (uint32_t s = first; s <= last; s++) {
        seq[s - first] = (struct attention_back_seq){t, lengths[s]};
        seg[s - first] = compositions[s];
        seg[s - first].tok_begin = t;
        seg[s - first].tok_count = lengths[s];
        drop[s - first] = (struct dropout_seg){t, lengths[s], s * 1000, g->dropout, 4711};
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
                               .dropout = g->dropout > 0 ? drop : NULL,
                               .n_dropout = last - first + 1,
                               .target = target,
                               .weight = weight,
                               .grad = g->there,
                               .logprob = g->logprob};
    run_batch(g, &b);
    g->loss = 0;
    for (uint32_t i = 0; i < t; i++)
        g->loss -= (double)weight[i] * (double)g->logprob[i];
    for (int i = 0; i < GRADIENT_SLOTS; i++)
        assert_int_equal(g->r.backend->ops->mem_read(g->r.backend, g->grad[i], g->there[i],
                                                     g->n_grad[i] * sizeof(float)),
                         STATUS_OK);
}

/* ---- against autograd ---- */

struct distance {
    double err, ref;
};

/* One matrix of an adapter: A [rank, d] or B, which peft keeps as [d, rank]. */
struct matrix {
    const float *grad;
    uint32_t rank, d;
    bool is_b, packed; /* packed: the device's form */
};

static float matrix_at(const struct matrix *m, uint32_t r, uint32_t k)
{
    if (!m->packed)
        return m->grad[(size_t)r * m->d + k];
    return m->grad[m->is_b ? lora_pack_b_at(k, r, m->rank) : lora_pack_a_at(r, k, m->d)];
}

static void add_matrix(const struct st_file *f, const char *bytes, const char *name,
                       const struct matrix *m, struct distance *sum)
{
    const struct st_tensor *t = safetensors_find(f, name);
    assert_non_null(t);
    assert_int_equal(t->dim[m->is_b], m->rank);
    assert_int_equal(t->dim[!m->is_b], m->d);
    for (uint32_t r = 0; r < m->rank; r++)
        for (uint32_t k = 0; k < m->d; k++) {
            size_t at = m->is_b ? (size_t)k * m->rank + r : (size_t)r * m->d + k;
            float want;
            memcpy(&want, bytes + t->begin + at * sizeof(want), sizeof(want));
            double e = (double)matrix_at(m, r, k) - (double)want;
            sum->err += e * e;
            sum->ref += (double)want * want;
        }
}

/* |gradient - autograd's| / |autograd's| over an adapter; each matrix adds to it. */
static double adapter_distance(const struct gradient_rig *g, const struct st_file *f,
                               const char *bytes, uint32_t slot)
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
            bool packed = g->r.backend->is_device;
            struct matrix ma = {g->grad[slot] + e->a_off / item, e->rank, d_in, false, packed};
            struct matrix mb = {g->grad[slot] + e->b_off / item, e->rank, d_out, true, packed};
            add_matrix(f, bytes, name, &ma, &sum);
            name[strlen(name) - 1] = 'B';
            add_matrix(f, bytes, name, &mb, &sum);
        }
    assert_true(sum.ref > 0);
    return sqrt(sum.err / sum.ref);
}

static void check_logprobs(const struct gradient_rig *g, const struct st_file *f, const char *bytes,
                           double tol)
{
    const struct st_tensor *t = safetensors_find(f, "logprob");
    assert_non_null(t);
    uint32_t row = 0;
    for (uint32_t s = 0; s < GRADIENT_SEQS; s++)
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
static bool check_case(const char *name, const struct gradient_options *opt, double tol)
{
    char path[PATH_MAX];
    char *bytes;
    size_t len;
    struct st_file f;
    struct errtext err = ERRTEXT_INIT;
    struct gradient_rig g;
    if (!gradient_rig_open(&g, name, opt)) {
        gradient_rig_close(&g);
        return false;
    }
    snprintf(path, sizeof(path), "%s/gradients/%s.safetensors", data, name);
    if (file_read(path, 1u << 24, &bytes, &len, &err) ||
        safetensors_parse(&f, bytes, len, len, 1u << 20, &err))
        fail_msg("%s", err.text);
    gradient_rig_run(&g, 0, GRADIENT_SEQS - 1);
    for (uint32_t s = 0; s < GRADIENT_SLOTS; s++) {
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
    gradient_rig_close(&g);
    return true;
}

uint32_t gradient_check_all(const struct gradient_options *opt, double tol, bool bf16_only)
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
