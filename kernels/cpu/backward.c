/* The row-wise backward ops: cross-entropy, RMSNorm, RoPE with the norm of q and k, SwiGLU. A row
 * is one worker's, so its bits depend on the row alone. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/reduce.h"
#include "kernels/cpu/vec.h"
#include "server/base/check.h"

/* ---- cross-entropy ---- */

/* l = weight * exp(l - lse) */
static void soften(float *l, uint32_t n, float lse, float weight)
{
    const vf top = vf_set1(lse), w = vf_set1(weight);
    uint32_t i = 0;
    for (; i + VW <= n; i += VW)
        vf_store(l + i, w * vf_exp(vf_load(l + i) - top));
    if (i < n)
        vf_store_n(l + i, n - i, w * vf_exp(vf_load_n(l + i, n - i, 0) - top));
}

static void entropy_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct cross_entropy_args *a = arg;
    uint64_t lo, hi;
    pool_share(a->n_row, worker, n_worker, &lo, &hi);
    for (uint64_t t = lo; t < hi; t++) {
        float *l = a->logits + t * a->n_vocab;
        struct lse lse = {-INFINITY, 0};
        a->logprob[t] = 0;
        if (a->target[t] < 0) {
            memset(l, 0, a->n_vocab * sizeof(*l));
            continue;
        }
        CHECK((uint32_t)a->target[t] < a->n_vocab);
        for (uint32_t n0 = 0; n0 < a->n_vocab; n0 += SCORE_TILE)
            ISA(lse_add)
        (&lse, ISA(lse_tile)(l + n0, MIN(a->n_vocab - n0, (uint32_t)SCORE_TILE)));
        a->logprob[t] = ISA(lse_logprob)(&lse, l[a->target[t]]);
        soften(l, a->n_vocab, (float)(lse.max + log(lse.sum)), a->weight[t]);
        l[a->target[t]] -= a->weight[t];
    }
}

enum status ISA(cross_entropy)(struct backend *b, const struct cross_entropy_args *a)
{
    struct cross_entropy_args args = *a;
    cpu_run(cpu_of(b), entropy_work, &args, (uint64_t)a->n_row * a->n_vocab < 16384);
    return STATUS_OK;
}

/* ---- norms ---- */

/* sum_i x_i * (gain_i * dy_i), four chains and one tree. */
static float weighted_dot(const float *x, const float *gain, const float *dy, uint32_t n)
{
    vf s[4] = {{0}, {0}, {0}, {0}};
    uint32_t i = 0;
    for (; i + VW <= n; i += VW) {
        vf *acc = &s[i / VW % 4];
        *acc = vf_fma(vf_load(x + i), vf_load(gain + i) * vf_load(dy + i), *acc);
    }
    if (i < n) {
        vf *acc = &s[i / VW % 4];
        *acc = vf_fma(vf_load_n(x + i, n - i, 0),
                      vf_load_n(gain + i, n - i, 0) * vf_load_n(dy + i, n - i, 0), *acc);
    }
    return vf_sum((s[0] + s[1]) + (s[2] + s[3]));
}

/* dx += rstd * (gain dy - x * rstd^2 * mean(x gain dy)) */
static void norm_row(float *dx, const float *dy, const float *x, const float *gain, float rstd,
                     uint32_t n)
{
    float mean = weighted_dot(x, gain, dy, n) / (float)n;
    float back = mean * rstd * rstd;
    for (uint32_t i = 0; i < n; i++)
        dx[i] += rstd * (gain[i] * dy[i] - x[i] * back);
}

static void norm_back_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct norm_back_args *a = arg;
    uint64_t lo, hi;
    pool_share(a->n_tok, worker, n_worker, &lo, &hi);
    for (uint64_t t = lo; t < hi; t++) {
        size_t r = (size_t)(a->rows ? a->rows[t] : t) * a->d_model;
        norm_row(a->dx + r, a->dy + t * a->d_model, a->x + r, a->gain, a->rstd[t], a->d_model);
    }
}

enum status ISA(norm_back)(struct backend *b, const struct norm_back_args *a)
{
    struct norm_back_args args = *a;
    cpu_run(cpu_of(b), norm_back_work, &args, (uint64_t)a->n_tok * a->d_model < 16384);
    return STATUS_OK;
}

/* ---- q and k ---- */

#define BACK_HEAD_MAX 1024

static void head_turn_back(float *restrict lo, float *restrict hi, const float *c, const float *s,
                           uint32_t half)
{
    for (uint32_t i = 0; i < half; i++) {
        float l = lo[i], h = hi[i];
        lo[i] = l * c[i] + h * s[i];
        hi[i] = h * c[i] - l * s[i];
    }
}

static void head_norm_back(float *dy, const float *in, const float *gain, float eps, uint32_t d)
{
    float g[BACK_HEAD_MAX];
    memcpy(g, dy, d * sizeof(*g));
    memset(dy, 0, d * sizeof(*dy));
    norm_row(dy, g, in, gain, 1.0f / sqrtf(ISA(sum_squares)(in, d) / (float)d + eps), d);
}

static void qkv_back_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct qkv_back_args *a = arg;
    uint32_t d = a->d_head, heads = a->n_head + a->n_kv_head;
    uint64_t lo, hi;
    pool_share(a->n_tok, worker, n_worker, &lo, &hi);
    for (uint64_t t = lo; t < hi; t++) {
        size_t rope = (size_t)a->pos[t] * (d / 2);
        VERIFY(a->pos[t] < a->rope.pos_max);
        for (uint32_t h = 0; h < heads; h++) {
            float *dy = a->dy + t * a->dy_stride + (size_t)h * d;
            const float *gain = h < a->n_head ? a->q_norm : a->k_norm;
            head_turn_back(dy, dy + d / 2, a->rope.cos + rope, a->rope.sin + rope, d / 2);
            if (gain)
                head_norm_back(dy, a->qk_in + (t * heads + h) * d, gain, a->norm_eps, d);
        }
    }
}

enum status ISA(qkv_back)(struct backend *b, const struct qkv_back_args *a)
{
    struct qkv_back_args args = *a;
    CHECK(a->d_head <= BACK_HEAD_MAX && a->d_head % 2 == 0);
    cpu_run(cpu_of(b), qkv_back_work, &args,
            (uint64_t)a->n_tok * (a->n_head + a->n_kv_head) * a->d_head < 16384);
    return STATUS_OK;
}

/* ---- SwiGLU ---- */

INLINE void silu_back(vf g, vf u, vf d, vf *dg, vf *du)
{
    const vf one = vf_set1(1.0f);
    vf e = one / (one + vf_exp(-g));
    *dg = d * u * e * (one + g * (one - e));
    *du = d * (g * e);
}

static void mlp_back_row(float *dg, float *du, const float *d, const float *g, const float *u,
                         uint32_t n)
{
    uint32_t i = 0;
    vf a, b;
    for (; i + VW <= n; i += VW) {
        silu_back(vf_load(g + i), vf_load(u + i), vf_load(d + i), &a, &b);
        vf_store(dg + i, a);
        vf_store(du + i, b);
    }
    if (i < n) {
        silu_back(vf_load_n(g + i, n - i, 0), vf_load_n(u + i, n - i, 0),
                  vf_load_n(d + i, n - i, 0), &a, &b);
        vf_store_n(dg + i, n - i, a);
        vf_store_n(du + i, n - i, b);
    }
}

static void mlp_back_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct mlp_back_args *a = arg;
    uint64_t lo, hi;
    pool_share(a->n_tok, worker, n_worker, &lo, &hi);
    for (uint64_t t = lo; t < hi; t++) {
        float *dy = a->dy + t * a->dy_stride;
        size_t at = t * a->d_ff;
        mlp_back_row(dy, dy + a->d_ff, a->dout + at, a->gate + at, a->up + at, a->d_ff);
    }
}

enum status ISA(mlp_back)(struct backend *b, const struct mlp_back_args *a)
{
    struct mlp_back_args args = *a;
    cpu_run(cpu_of(b), mlp_back_work, &args, (uint64_t)a->n_tok * a->d_ff < 16384);
    return STATUS_OK;
}
