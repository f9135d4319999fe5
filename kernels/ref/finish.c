/* The three finishes. Each element is y = (base + bias) + delta, then what follows the projection:
 * qk-norm, RoPE and the cache write; the residual sum; SiLU(gate) * up. Columns of one row are
 * finished in order, so the telemetry sums have one order too. */
#include "kernels/bf16.h"
#include "kernels/ref/ref.h"
#include "server/base/check.h"

#include <math.h>
#include <string.h>

/* One row's view of one module of a group. */
struct finish_row {
    const struct lora_step *lora;
    const struct lora_seg *seg; /* NULL: base only */
    const float *s;             /* the module's range in s */
    uint32_t rank;              /* of all parts; 0: not adapted */
    uint32_t layer, module, d_out;
    double *norm2;
};

static const struct lora_seg *seg_of(const struct lora_step *lora, uint32_t t)
{
    if (!lora->table)
        return NULL;
    for (uint32_t i = 0; i < lora->n_seg; i++)
        if (t >= lora->seg[i].tok_begin && t - lora->seg[i].tok_begin < lora->seg[i].tok_count)
            return lora->seg[i].part_count ? &lora->seg[i] : NULL;
    return NULL;
}

static struct finish_row row_begin(const struct lora_step *lora, uint32_t t, uint32_t layer,
                                   uint32_t first)
{
    struct finish_row r = {.lora = lora, .seg = seg_of(lora, t), .layer = layer, .module = first};
    if (r.seg) {
        r.s = lora->s + (size_t)t * lora->s_stride;
        r.norm2 = lora->norm2 ? lora->norm2 + 2 * (size_t)t : NULL;
    }
    return r;
}

/* Move to a module of the group; d_out is the row length of its B. */
static void row_module(struct finish_row *r, uint32_t module, uint32_t d_out)
{
    if (r->seg) {
        for (; r->module < module; r->module++)
            r->s += lora_seg_rank(r->lora->table, r->seg, r->layer, r->module);
        r->rank = lora_seg_rank(r->lora->table, r->seg, r->layer, module);
    }
    r->module = module;
    r->d_out = d_out;
}

static float row_value(struct finish_row *r, float y, const float *bias, uint32_t n)
{
    float base = bias ? y + bias[n] : y;
    if (!r->rank)
        return base;
    const struct lora_table *table = r->lora->table;
    const float *s = r->s;
    float delta = 0;
    for (uint32_t p = 0; p < r->seg->part_count; p++) {
        uint32_t slot = r->seg->part[p].slot;
        const struct lora_entry *e = lora_entry_at(table, slot, r->layer, r->module);
        const char *bt = (const char *)table->slot[slot].blob + e->b_off;
        for (uint32_t i = 0; i < e->rank; i++, s++) {
            float si = table->dtype == DTYPE_BF16 ? bf16_round(*s) : *s;
            delta += si * elem_load(bt, table->dtype, (size_t)i * r->d_out + n);
        }
    }
    if (r->norm2) {
        r->norm2[0] += (double)delta * delta;
        r->norm2[1] += (double)base * base;
    }
    return base + delta;
}

static void head_norm(float *v, const float *gain, float eps, uint32_t d)
{
    double sum = 0;
    for (uint32_t i = 0; i < d; i++)
        sum += (double)v[i] * v[i];
    float rstd = (float)(1.0 / sqrt(sum / d + (double)eps));
    for (uint32_t i = 0; i < d; i++)
        v[i] = v[i] * rstd * gain[i];
}

static void head_rope(float *v, const struct rope_table *rope, uint32_t pos, uint32_t d)
{
    const float *c = rope->cos + (size_t)pos * (d / 2);
    const float *s = rope->sin + (size_t)pos * (d / 2);
    for (uint32_t i = 0; i < d / 2; i++) {
        float lo = v[i], hi = v[i + d / 2];
        v[i] = lo * c[i] - hi * s[i];
        v[i + d / 2] = hi * c[i] + lo * s[i];
    }
}

#define REF_HEAD_MAX 1024

static void qkv_head(const struct qkv_finish_args *a, struct finish_row *r, uint32_t t, uint32_t hh)
{
    uint32_t d = a->d_head, n_q = a->n_head, n_kv = a->n_kv_head;
    uint32_t which = hh < n_q ? 0 : hh < n_q + n_kv ? 1 : 2;
    uint32_t h = which == 0 ? hh : which == 1 ? hh - n_q : hh - n_q - n_kv;
    const float *bias = which == 0 ? a->bias_q : which == 1 ? a->bias_k : a->bias_v;
    const float *gain = which == 0 ? a->q_norm : which == 1 ? a->k_norm : NULL;
    uint32_t pos = a->rows.pos[t];
    float v[REF_HEAD_MAX], *q_out = a->q_out;
    row_module(r, LORA_MODULE_Q + which, (which ? n_kv : n_q) * d);
    for (uint32_t i = 0; i < d; i++)
        v[i] = row_value(r, a->y[(size_t)t * a->y_stride + (size_t)hh * d + i], bias, h * d + i);
    if (a->keep_qk && which < 2)
        memcpy(a->keep_qk + ((size_t)t * (n_q + n_kv) + hh) * d, v, d * sizeof(*v));
    if (gain)
        head_norm(v, gain, a->norm_eps, d);
    if (which < 2)
        head_rope(v, &a->rope, pos, d);
    if (which == 0) {
        for (uint32_t i = 0; i < d; i++)
            q_out[((size_t)t * n_q + h) * d + i] = v[i];
        return;
    }
    uint32_t page =
        a->rows.page_table[(size_t)a->rows.seq[t] * a->rows.page_stride + pos / a->kv.page_tok];
    uint64_t off = kv_offset(&a->kv, page, a->layer, which == 2, h, pos % a->kv.page_tok);
    float *keep = which == 1 ? a->keep_k : a->keep_v;
    for (uint32_t i = 0; i < d; i++) {
        elem_store(a->kv.base, a->kv.dtype, off + i, v[i]);
        if (keep)
            keep[((size_t)t * n_kv + h) * d + i] = v[i];
    }
}

enum status ref_qkv_finish(struct backend *b, const struct qkv_finish_args *a)
{
    (void)b;
    CHECK(a->d_head <= REF_HEAD_MAX);
    for (uint32_t t = 0; t < a->n_tok; t++) {
        struct finish_row r = row_begin(&a->lora, t, a->layer, LORA_MODULE_Q);
        CHECK(a->rows.pos[t] < a->rope.pos_max);
        for (uint32_t hh = 0; hh < a->n_head + 2 * a->n_kv_head; hh++)
            qkv_head(a, &r, t, hh);
    }
    return STATUS_OK;
}

enum status ref_residual_finish(struct backend *b, const struct residual_finish_args *a)
{
    (void)b;
    for (uint32_t t = 0; t < a->n_tok; t++) {
        struct finish_row r = row_begin(&a->lora, t, a->layer, a->module);
        row_module(&r, a->module, a->d_model);
        for (uint32_t n = 0; n < a->d_model; n++)
            a->h[(size_t)t * a->d_model + n] +=
                row_value(&r, a->y[(size_t)t * a->y_stride + n], a->bias, n);
    }
    return STATUS_OK;
}

enum status ref_mlp_finish(struct backend *b, const struct mlp_finish_args *a)
{
    (void)b;
    float *out = a->out;
    for (uint32_t t = 0; t < a->n_tok; t++) {
        struct finish_row gate = row_begin(&a->lora, t, a->layer, LORA_MODULE_GATE);
        struct finish_row up = gate;
        row_module(&gate, LORA_MODULE_GATE, a->d_ff);
        row_module(&up, LORA_MODULE_UP, a->d_ff);
        const float *y = a->y + (size_t)t * a->y_stride;
        for (uint32_t n = 0; n < a->d_ff; n++) {
            float g = row_value(&gate, y[n], a->bias_gate, n);
            float u = row_value(&up, y[a->d_ff + n], a->bias_up, n);
            size_t at = (size_t)t * a->d_ff + n;
            out[at] = (float)((double)g / (1.0 + exp(-(double)g))) * u;
            if (a->keep_gate)
                a->keep_gate[at] = g;
            if (a->keep_up)
                a->keep_up[at] = u;
        }
    }
    return STATUS_OK;
}
