/* The backward ops in plain loops and f64 sums: the specification of kernels/backward.h. A chain
 * that continues from memory (adapter gradients) is rounded to f32 once a call. */
#include "kernels/bf16.h"
#include "kernels/ref/ref.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <math.h>
#include <string.h>

enum status ref_cross_entropy(struct backend *b, const struct cross_entropy_args *a)
{
    (void)b;
    for (uint32_t t = 0; t < a->n_row; t++) {
        float *l = a->logits + (size_t)t * a->n_vocab;
        struct ref_lse lse = {-INFINITY, 0};
        a->logprob[t] = 0;
        if (a->target[t] < 0) {
            memset(l, 0, a->n_vocab * sizeof(*l));
            continue;
        }
        CHECK((uint32_t)a->target[t] < a->n_vocab);
        for (uint32_t n0 = 0; n0 < a->n_vocab; n0 += SCORE_TILE)
            ref_lse_add(&lse, l + n0, MIN(a->n_vocab - n0, (uint32_t)SCORE_TILE));
        a->logprob[t] = ref_lse_logprob(&lse, l[a->target[t]]);
        for (uint32_t v = 0; v < a->n_vocab; v++) {
            double p = exp((double)l[v] - lse.max) / lse.sum;
            l[v] = (float)((double)a->weight[t] * (p - ((int32_t)v == a->target[t])));
        }
    }
    return STATUS_OK;
}

static double back_dot(const float *dy, const struct gemm_back_args *a, uint32_t k)
{
    double sum = 0;
    for (uint32_t p = 0; p < a->part_count; p++) {
        const struct weight *w = &a->part[p];
        for (uint32_t n = 0; n < w->d_out; n++, dy++) {
            float g = w->dtype == DTYPE_BF16 ? bf16_round(*dy) : *dy;
            sum += (double)g * elem_load(w->data, w->dtype, (size_t)n * w->d_in + k);
        }
    }
    return sum;
}

enum status ref_gemm_back(struct backend *b, const struct gemm_back_args *a)
{
    (void)b;
    for (uint32_t t = 0; t < a->n_tok; t++)
        for (uint32_t k = 0; k < a->part[0].d_in; k++)
            a->dx[(size_t)t * a->dx_stride + k] =
                (float)back_dot(a->dy + (size_t)t * a->dy_stride, a, k);
    return STATUS_OK;
}

/* One row's g and u of norm_back; scale 1 and dx in place of += for a head. */
static void norm_row(float *dx, const float *dy, const float *x, const float *gain, double rstd,
                     uint32_t d)
{
    double mean = 0;
    for (uint32_t i = 0; i < d; i++)
        mean += (double)x[i] * rstd * ((double)gain[i] * dy[i]);
    mean /= d;
    for (uint32_t i = 0; i < d; i++)
        dx[i] =
            (float)((double)dx[i] + rstd * ((double)gain[i] * dy[i] - (double)x[i] * rstd * mean));
}

enum status ref_norm_back(struct backend *b, const struct norm_back_args *a)
{
    (void)b;
    for (uint32_t t = 0; t < a->n_tok; t++) {
        size_t r = (size_t)(a->rows ? a->rows[t] : t) * a->d_model;
        norm_row(a->dx + r, a->dy + (size_t)t * a->d_model, a->x + r, a->gain, (double)a->rstd[t],
                 a->d_model);
    }
    return STATUS_OK;
}

#define REF_HEAD_MAX 1024

static void head_back(const struct qkv_back_args *a, float *dy, const float *in, const float *gain,
                      uint32_t pos)
{
    uint32_t d = a->d_head, half = d / 2;
    const float *c = a->rope.cos + (size_t)pos * half, *s = a->rope.sin + (size_t)pos * half;
    for (uint32_t i = 0; i < half; i++) {
        float lo = dy[i], hi = dy[i + half];
        dy[i] = lo * c[i] + hi * s[i];
        dy[i + half] = hi * c[i] - lo * s[i];
    }
    if (!gain)
        return;
    double sum = 0;
    float g[REF_HEAD_MAX];
    for (uint32_t i = 0; i < d; i++)
        sum += (double)in[i] * in[i];
    memcpy(g, dy, d * sizeof(*g));
    memset(dy, 0, d * sizeof(*dy));
    norm_row(dy, g, in, gain, 1.0 / sqrt(sum / d + (double)a->norm_eps), d);
}

enum status ref_qkv_back(struct backend *b, const struct qkv_back_args *a)
{
    (void)b;
    uint32_t d = a->d_head, heads = a->n_head + a->n_kv_head;
    CHECK(d <= REF_HEAD_MAX);
    for (uint32_t t = 0; t < a->n_tok; t++) {
        CHECK(a->pos[t] < a->rope.pos_max);
        for (uint32_t h = 0; h < heads; h++) {
            const float *gain = h < a->n_head ? a->q_norm : a->k_norm;
            head_back(a, a->dy + (size_t)t * a->dy_stride + (size_t)h * d,
                      gain ? a->qk_in + ((size_t)t * heads + h) * d : NULL, gain, a->pos[t]);
        }
    }
    return STATUS_OK;
}

enum status ref_mlp_back(struct backend *b, const struct mlp_back_args *a)
{
    (void)b;
    for (uint32_t t = 0; t < a->n_tok; t++) {
        float *dy = a->dy + (size_t)t * a->dy_stride;
        for (uint32_t i = 0; i < a->d_ff; i++) {
            size_t at = (size_t)t * a->d_ff + i;
            double g = (double)a->gate[at], e = 1.0 / (1.0 + exp(-g)), d = (double)a->dout[at];
            dy[i] = (float)(d * (double)a->up[at] * e * (1.0 + g * (1.0 - e)));
            dy[a->d_ff + i] = (float)(d * g * e);
        }
    }
    return STATUS_OK;
}

/* ---- lora_back ---- */

/* One (segment, module, part). */
struct ref_part {
    const struct lora_back_args *a;
    const struct lora_seg *seg;
    const struct lora_entry *e;
    const char *blob;
    float *grad; /* the adapter's, or NULL */
    float c;
    uint32_t col, y_col, d_out; /* first column in s, in dy; width */
};

static double part_elem(const struct ref_part *p, uint64_t off, size_t i)
{
    return (double)elem_load(p->blob + off, p->a->lora.table->dtype, i);
}

static float maybe_round(const struct ref_part *p, float f)
{
    return p->a->lora.table->dtype == DTYPE_BF16 ? bf16_round(f) : f;
}

static void part_rows(const struct ref_part *p)
{
    const struct lora_back_args *a = p->a;
    for (uint32_t t = p->seg->tok_begin; t < p->seg->tok_begin + p->seg->tok_count; t++) {
        const float *dy = a->dy + (size_t)t * a->dy_stride + p->y_col;
        float *ds = a->lora.s + (size_t)t * a->lora.s_stride + p->col;
        float *dx = a->dx ? a->dx + (size_t)t * a->dx_stride : NULL;
        for (uint32_t r = 0; r < p->e->rank; r++) {
            double sum = 0;
            for (uint32_t n = 0; n < p->d_out; n++)
                sum += (double)maybe_round(p, dy[n]) *
                       part_elem(p, p->e->b_off, (size_t)r * p->d_out + n);
            ds[r] = p->c * (float)sum;
        }
        for (uint32_t k = 0; dx && k < a->d_in; k++) {
            double sum = (double)dx[k];
            for (uint32_t r = 0; r < p->e->rank; r++)
                sum += (double)maybe_round(p, ds[r]) *
                       part_elem(p, p->e->a_off, (size_t)r * a->d_in + k);
            dx[k] = (float)sum;
        }
    }
}

/* grad[r, k] += sum_t c * left[t, r] * right[t, k] */
static void part_outer(const struct ref_part *p, uint64_t off, float c, const float *left,
                       const float *right, uint32_t right_stride, uint32_t width)
{
    const struct lora_back_args *a = p->a;
    float *grad = p->grad + off / dtype_bytes(a->lora.table->dtype);
    uint32_t t0 = p->seg->tok_begin, t1 = t0 + p->seg->tok_count;
    for (uint32_t r = 0; r < p->e->rank; r++)
        for (uint32_t k = 0; k < width; k++, grad++) {
            double sum = (double)*grad;
            for (uint32_t t = t0; t < t1; t++)
                sum += (double)(c * left[(size_t)t * a->lora.s_stride + p->col + r]) *
                       (double)right[(size_t)t * right_stride + k];
            *grad = (float)sum;
        }
}

static void seg_back(const struct lora_back_args *a, const struct lora_seg *seg)
{
    const struct lora_table *table = a->lora.table;
    struct ref_part p = {.a = a, .seg = seg};
    for (uint32_t m = 0; m < a->module_count; m++) {
        p.d_out = a->d_out[m];
        for (uint32_t i = 0; i < seg->part_count; i++) {
            uint32_t slot = seg->part[i].slot;
            p.e = lora_entry_at(table, slot, a->layer, a->first + m);
            p.blob = table->slot[slot].blob;
            p.grad = a->grad[slot];
            p.c = p.e->scale * ((float)seg->part[i].weight_q16 / 65536.0f);
            part_rows(&p);
            if (p.grad) {
                part_outer(&p, p.e->a_off, 1, a->lora.s, a->x, a->x_stride, a->d_in);
                part_outer(&p, p.e->b_off, p.c, a->ax, a->dy + p.y_col, a->dy_stride, p.d_out);
            }
            p.col += p.e->rank;
        }
        p.y_col += p.d_out;
    }
}

enum status ref_lora_back(struct backend *b, const struct lora_back_args *a)
{
    (void)b;
    for (uint32_t i = 0; a->lora.table && i < a->lora.n_seg; i++)
        if (a->lora.seg[i].part_count)
            seg_back(a, &a->lora.seg[i]);
    return STATUS_OK;
}

/* ---- attention_back ---- */

struct back_head {
    const struct attention_back_args *a;
    uint32_t row, n_row, h, g; /* the sequence; the head, its kv head */
};

static float kv_at(const struct back_head *r, const float *kv, uint32_t j, uint32_t i)
{
    const struct attention_back_args *a = r->a;
    float f = kv[((size_t)(r->row + j) * a->n_kv_head + r->g) * a->d_head + i];
    return a->kv_dtype == DTYPE_BF16 ? bf16_round(f) : f;
}

/* The pair (t, j): into dq [d] and the f64 sums dk, dv [n_row, d]. */
static void pair_back(const struct back_head *r, uint32_t t, uint32_t j, double *dq, double *dkv)
{
    const struct attention_back_args *a = r->a;
    uint32_t d = a->d_head;
    size_t th = (size_t)(r->row + t) * a->n_head + r->h;
    const float *q = (const float *)a->q + th * d, *o = (const float *)a->out + th * d;
    const float *go = a->dout + th * d;
    double score = 0, dp = 0, own = 0;
    for (uint32_t i = 0; i < d; i++) {
        score += (double)q[i] * kv_at(r, a->k, j, i);
        dp += (double)go[i] * kv_at(r, a->v, j, i);
        own += (double)go[i] * o[i];
    }
    double p = exp(score * (double)a->scale - (double)a->lse[th]);
    double s = p * (dp - own) * (double)a->scale;
    double *dk = dkv + (size_t)j * 2 * d, *dv = dk + d;
    for (uint32_t i = 0; i < d; i++) {
        dq[i] += s * kv_at(r, a->k, j, i);
        dk[i] += s * (double)q[i];
        dv[i] += p * (double)go[i];
    }
}

static void seq_back(const struct attention_back_args *a, const struct attention_back_seq *q,
                     uint32_t g)
{
    uint32_t d = a->d_head, group = a->n_head / a->n_kv_head;
    double *dkv = mem_array((size_t)q->n_row * 2 * d, sizeof(*dkv));
    for (uint32_t h = g * group; h < (g + 1) * group; h++) {
        struct back_head r = {a, q->row, q->n_row, h, g};
        for (uint32_t t = 0; t < q->n_row; t++) {
            double dq[REF_HEAD_MAX] = {0};
            float *out = a->dy + (size_t)(q->row + t) * a->dy_stride + (size_t)h * d;
            for (uint32_t j = a->window && t + 1 > a->window ? t + 1 - a->window : 0; j <= t; j++)
                pair_back(&r, t, j, dq, dkv);
            for (uint32_t i = 0; i < d; i++)
                out[i] = (float)dq[i];
        }
    }
    for (uint32_t j = 0; j < q->n_row; j++) {
        float *dk = a->dy + (size_t)(q->row + j) * a->dy_stride + (size_t)(a->n_head + g) * d;
        float *dv = dk + (size_t)a->n_kv_head * d;
        for (uint32_t i = 0; i < d; i++) {
            dk[i] = (float)dkv[(size_t)j * 2 * d + i];
            dv[i] = (float)dkv[(size_t)j * 2 * d + d + i];
        }
    }
    mem_free(dkv);
}

enum status ref_attention_back(struct backend *b, const struct attention_back_args *a)
{
    (void)b;
    CHECK(a->d_head <= REF_HEAD_MAX && a->n_head % a->n_kv_head == 0);
    for (uint32_t i = 0; i < a->n_seq; i++)
        for (uint32_t g = 0; g < a->n_kv_head; g++)
            seq_back(a, &a->seq[i], g);
    return STATUS_OK;
}
