/* The row-wise backward ops: cross_entropy, norm_back, qkv_back, mlp_back, dropout. A row is one
 * block's, a head one warp's; sums are taken by fixed trees, so a row's bits depend on the row
 * alone. All are bound by the bytes they read once and write once. Not yet run on a GPU. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

#define THREADS 256
#define WARPS   (THREADS / LANES)
#define LOG2E   1.44269504088896341f

/* The block's sum or maximum, in every thread; part [WARPS] of shared memory, free before and after
 * a barrier. */
template <bool MAX> DEVICE float block_all(float v, float *part)
{
    v = MAX ? warp_max(v) : warp_sum(v);
    block_sync();
    if (lane_id() == 0)
        part[warp_id()] = v;
    block_sync();
    v = part[0];
    UNROLL
    for (uint32_t w = 1; w < WARPS; w++)
        v = MAX ? fmaxf(v, part[w]) : v + part[w];
    return v;
}

static KERNEL(THREADS, 4) void entropy_rows(struct cross_entropy_args a)
{
    SMEM(smem);
    float *part = (float *)smem;
    const uint32_t t = blockIdx.x;
    const int32_t target = a.target[t];
    float *l = a.logits + (size_t)t * a.n_vocab;
    if (target < 0) {
        for (uint32_t i = threadIdx.x; i < a.n_vocab; i += THREADS)
            l[i] = 0;
        if (threadIdx.x == 0)
            a.logprob[t] = 0;
        return;
    }
    float max = -INFINITY, sum = 0;
    for (uint32_t i = threadIdx.x; i < a.n_vocab; i += THREADS)
        max = fmaxf(max, l[i]);
    max = block_all<true>(max, part);
    for (uint32_t i = threadIdx.x; i < a.n_vocab; i += THREADS)
        sum += fast_exp2((l[i] - max) * LOG2E);
    sum = block_all<false>(sum, part);
    const float own = l[target], lse = max + logf(sum), weight = a.weight[t];
    block_sync(); /* everyone has read the target's logit */
    for (uint32_t i = threadIdx.x; i < a.n_vocab; i += THREADS)
        l[i] = weight * (fast_exp2((l[i] - lse) * LOG2E) - (i == (uint32_t)target ? 1.0f : 0.0f));
    if (threadIdx.x == 0)
        a.logprob[t] = own - lse;
}

enum status cuda_cross_entropy(struct backend *b, const struct cross_entropy_args *a)
{
    if (a->n_row == 0)
        return STATUS_OK;
    LAUNCH(entropy_rows, a->n_row, THREADS, WARPS * sizeof(float), cuda_of(b)->stream, *a);
    return gpu_launched("cross_entropy");
}

static KERNEL(THREADS, 4) void norm_back_rows(struct norm_back_args a)
{
    SMEM(smem);
    float *part = (float *)smem, sum = 0;
    const uint32_t t = blockIdx.x, d = a.d_model;
    const size_t r = (size_t)(a.rows ? a.rows[t] : t) * d;
    const float *dy = a.dy + (size_t)t * d, rstd = a.rstd[t];
    for (uint32_t i = threadIdx.x; i < d; i += THREADS)
        sum = fmaf(a.x[r + i], a.gain[i] * dy[i], sum);
    const float back = block_all<false>(sum, part) / (float)d * rstd * rstd;
    for (uint32_t i = threadIdx.x; i < d; i += THREADS)
        a.dx[r + i] += rstd * (a.gain[i] * dy[i] - a.x[r + i] * back);
}

enum status cuda_norm_back(struct backend *b, const struct norm_back_args *a)
{
    if (a->n_tok == 0)
        return STATUS_OK;
    LAUNCH(norm_back_rows, a->n_tok, THREADS, WARPS * sizeof(float), cuda_of(b)->stream, *a);
    return gpu_launched("norm_back");
}

#define HEAD_MAX   256
#define HEAD_PAIRS (HEAD_MAX / 2 / LANES) /* of a lane: elements i and i + d_head/2 */

/* One head of a row, by a warp. */
static KERNEL(THREADS, 4) void qkv_back_heads(struct qkv_back_args a)
{
    const uint32_t heads = a.n_head + a.n_kv_head, d = a.d_head, half = d / 2;
    const uint32_t unit = blockIdx.x * WARPS + warp_id(), t = unit / heads, h = unit % heads;
    if (t >= a.n_tok)
        return;
    const float *gain = h < a.n_head ? a.q_norm : a.k_norm;
    const float *in = gain ? a.qk_in + ((size_t)t * heads + h) * d : NULL;
    const size_t turn = (size_t)a.pos[t] * half;
    float *dy = a.dy + (size_t)t * a.dy_stride + (size_t)h * d, v[HEAD_PAIRS][2];
    float dot = 0, square = 0;
    UNROLL
    for (uint32_t p = 0; p < HEAD_PAIRS; p++) {
        const uint32_t i = p * LANES + lane_id();
        if (i >= half)
            continue;
        const float lo = dy[i], hi = dy[i + half], c = a.rope.cos[turn + i],
                    s = a.rope.sin[turn + i];
        v[p][0] = fmaf(hi, s, lo * c);
        v[p][1] = fmaf(-lo, s, hi * c);
        if (gain) {
            v[p][0] *= gain[i];
            v[p][1] *= gain[i + half];
            dot = fmaf(in[i], v[p][0], fmaf(in[i + half], v[p][1], dot));
            square = fmaf(in[i], in[i], fmaf(in[i + half], in[i + half], square));
        }
    }
    float rstd = 1, back = 0;
    if (gain) {
        rstd = 1.0f / sqrtf(warp_sum(square) / (float)d + a.norm_eps);
        back = warp_sum(dot) / (float)d * rstd * rstd;
    }
    UNROLL
    for (uint32_t p = 0; p < HEAD_PAIRS; p++) {
        const uint32_t i = p * LANES + lane_id();
        if (i >= half)
            continue;
        dy[i] = gain ? rstd * (v[p][0] - in[i] * back) : v[p][0];
        dy[i + half] = gain ? rstd * (v[p][1] - in[i + half] * back) : v[p][1];
    }
}

enum status cuda_qkv_back(struct backend *b, const struct qkv_back_args *a)
{
    const uint32_t units = a->n_tok * (a->n_head + a->n_kv_head);
    CHECK(a->d_head <= HEAD_MAX && a->d_head % 2 == 0);
    if (units == 0)
        return STATUS_OK;
    LAUNCH(qkv_back_heads, (units + WARPS - 1) / WARPS, THREADS, 0, cuda_of(b)->stream, *a);
    return gpu_launched("qkv_back");
}

static KERNEL(THREADS, 4) void mlp_back_rows(struct mlp_back_args a)
{
    const uint32_t i = blockIdx.y * THREADS + threadIdx.x, t = blockIdx.x;
    if (i >= a.d_ff)
        return;
    const size_t at = (size_t)t * a.d_ff + i;
    float *dy = a.dy + (size_t)t * a.dy_stride;
    const float g = a.gate[at], d = a.dout[at];
    const float e = 1.0f / (1.0f + fast_exp2(-g * LOG2E));
    dy[i] = d * a.up[at] * e * (1.0f + g * (1.0f - e));
    dy[a.d_ff + i] = d * (g * e);
}

enum status cuda_mlp_back(struct backend *b, const struct mlp_back_args *a)
{
    if (a->n_tok == 0)
        return STATUS_OK;
    LAUNCH(mlp_back_rows, dim3(a->n_tok, (a->d_ff + THREADS - 1) / THREADS), THREADS, 0,
           cuda_of(b)->stream, *a);
    return gpu_launched("mlp_back");
}

/* One segment. */
static KERNEL(THREADS, 4) void dropout_rows(struct dropout_args a, struct dropout_seg s)
{
    const uint32_t k = blockIdx.y * THREADS + threadIdx.x, t = s.tok_begin + blockIdx.x;
    if (k >= a.width)
        return;
    const float m =
        dropout_factor(dropout_key(&s, t, a.site), k, dropout_bar(s.p), 1.0f / (1.0f - s.p));
    const size_t to = (size_t)t * a.out_stride + k, from = (size_t)t * a.x_stride + k;
    if (a.add)
        ((float *)a.out)[to] += m * ((const float *)a.x)[from];
    else
        ((bf16_t *)a.out)[to] = bf16_from_f32(m * bf16_to_f32(((const bf16_t *)a.x)[from]));
}

enum status cuda_dropout(struct backend *b, const struct dropout_args *a)
{
    for (uint32_t i = 0; i < a->n_seg; i++) {
        const struct dropout_seg *s = &a->seg[i];
        CHECK(s->p >= 0 && s->p < 1);
        if (s->tok_count)
            LAUNCH(dropout_rows, dim3(s->tok_count, (a->width + THREADS - 1) / THREADS), THREADS, 0,
                   cuda_of(b)->stream, *a, *s);
    }
    return gpu_launched("dropout");
}
