/* attention_back in two kernels a sequence, each a warp an output row, lanes along the head: dq of
 * a row walks its keys in ascending order; dk and dv of a key walk the heads of its group and the
 * rows that see it. P is formed twice, from lse, and nothing is stored. A row's bits depend on its
 * sequence alone.
 *
 * Bound     shuffles of the two dot products of a pair. Tensor cores by tiles, as the forward pass
 *           has them, are the next step where training on a device matters. Not yet run on a GPU */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

#define THREADS  128
#define WARPS    (THREADS / LANES)
#define HEAD_MAX 256
#define PARTS    (HEAD_MAX / LANES) /* elements of a lane */
#define LOG2E    1.44269504088896341f

struct attn_back_job {
    struct attention_back_args a;
    uint32_t row, n_row;
};

/* A head's row in registers: lane l has elements l, l + 32, ...; beyond d zero. */
struct lane_row {
    float v[PARTS];
};

template <class T> DEVICE float as_float(T v)
{
    return v;
}
DEVICE float as_float(bf16_t v)
{
    return bf16_to_f32(v);
}

template <class T> DEVICE struct lane_row row_load(const T *p, uint32_t d)
{
    struct lane_row r;
    UNROLL
    for (uint32_t i = 0; i < PARTS; i++) {
        const uint32_t at = i * LANES + lane_id();
        r.v[i] = at < d ? as_float(p[at]) : 0.0f;
    }
    return r;
}
DEVICE struct lane_row kv_load(const struct attention_back_args *a, const float *kv, size_t row,
                               uint32_t g)
{
    struct lane_row r = row_load(kv + (row * a->n_kv_head + g) * a->d_head, a->d_head);
    UNROLL
    for (uint32_t i = 0; i < PARTS; i++)
        r.v[i] = a->kv_dtype == DTYPE_BF16 ? bf16_round(r.v[i]) : r.v[i];
    return r;
}
DEVICE float row_dot(const struct lane_row *x, const struct lane_row *y)
{
    float sum = 0;
    UNROLL
    for (uint32_t i = 0; i < PARTS; i++)
        sum = fmaf(x->v[i], y->v[i], sum);
    return warp_sum(sum);
}
DEVICE void row_add(struct lane_row *to, float f, const struct lane_row *x)
{
    UNROLL
    for (uint32_t i = 0; i < PARTS; i++)
        to->v[i] = fmaf(f, x->v[i], to->v[i]);
}
DEVICE void row_store(float *p, const struct lane_row *r, uint32_t d)
{
    UNROLL
    for (uint32_t i = 0; i < PARTS; i++) {
        const uint32_t at = i * LANES + lane_id();
        if (at < d)
            p[at] = r->v[i];
    }
}

/* What a row of a head brings to each of its pairs. */
struct pair_row {
    struct lane_row q, dout;
    float lse, own;
};
DEVICE struct pair_row pair_row_at(const struct attention_back_args *a, size_t row, uint32_t h)
{
    const size_t at = row * a->n_head + h;
    struct pair_row p;
    p.q = row_load((const bf16_t *)a->q + at * a->d_head, a->d_head);
    p.dout = row_load(a->dout + at * a->d_head, a->d_head);
    const struct lane_row out = row_load((const bf16_t *)a->out + at * a->d_head, a->d_head);
    p.lse = a->lse[at];
    p.own = row_dot(&p.dout, &out);
    return p;
}
/* P and S (with the scale) of a pair. */
DEVICE float pair_p(const struct attention_back_args *a, const struct pair_row *r,
                    const struct lane_row *k)
{
    return fast_exp2(fmaf(row_dot(&r->q, k), a->scale, -r->lse) * LOG2E);
}
DEVICE float pair_s(const struct attention_back_args *a, const struct pair_row *r,
                    const struct lane_row *v, float p)
{
    return p * (row_dot(&r->dout, v) - r->own) * a->scale;
}

static KERNEL(THREADS, 2) void attention_back_q(struct attn_back_job j)
{
    const struct attention_back_args *a = &j.a;
    const uint32_t unit = blockIdx.x * WARPS + warp_id(), t = unit / a->n_head;
    const uint32_t h = unit % a->n_head, g = h / (a->n_head / a->n_kv_head);
    if (t >= j.n_row)
        return;
    const struct pair_row row = pair_row_at(a, j.row + t, h);
    struct lane_row dq = {};
    for (uint32_t k = a->window && t + 1 > a->window ? t + 1 - a->window : 0; k <= t; k++) {
        const struct lane_row key = kv_load(a, a->k, j.row + k, g);
        const struct lane_row value = kv_load(a, a->v, j.row + k, g);
        row_add(&dq, pair_s(a, &row, &value, pair_p(a, &row, &key)), &key);
    }
    row_store(a->dy + (size_t)(j.row + t) * a->dy_stride + (size_t)h * a->d_head, &dq, a->d_head);
}

static KERNEL(THREADS, 2) void attention_back_kv(struct attn_back_job j)
{
    const struct attention_back_args *a = &j.a;
    const uint32_t unit = blockIdx.x * WARPS + warp_id(), k = unit / a->n_kv_head;
    const uint32_t g = unit % a->n_kv_head, group = a->n_head / a->n_kv_head;
    if (k >= j.n_row)
        return;
    const uint32_t end = a->window && k + a->window < j.n_row ? k + a->window : j.n_row;
    const struct lane_row key = kv_load(a, a->k, j.row + k, g);
    const struct lane_row value = kv_load(a, a->v, j.row + k, g);
    struct lane_row dk = {}, dv = {};
    for (uint32_t h = g * group; h < (g + 1) * group; h++)
        for (uint32_t t = k; t < end; t++) {
            const struct pair_row row = pair_row_at(a, j.row + t, h);
            const float p = pair_p(a, &row, &key);
            row_add(&dk, pair_s(a, &row, &value, p), &row.q);
            row_add(&dv, p, &row.dout);
        }
    float *to = a->dy + (size_t)(j.row + k) * a->dy_stride + (size_t)(a->n_head + g) * a->d_head;
    row_store(to, &dk, a->d_head);
    row_store(to + (size_t)a->n_kv_head * a->d_head, &dv, a->d_head);
}

enum status cuda_attention_back(struct backend *b, const struct attention_back_args *a)
{
    void *stream = cuda_of(b)->stream;
    CHECK(a->d_head <= HEAD_MAX && a->n_head % a->n_kv_head == 0);
    for (uint32_t i = 0; i < a->n_seq; i++) {
        struct attn_back_job j = {*a, a->seq[i].row, a->seq[i].n_row};
        if (j.n_row == 0)
            continue;
        LAUNCH(attention_back_q, (j.n_row * a->n_head + WARPS - 1) / WARPS, THREADS, 0, stream, j);
        LAUNCH(attention_back_kv, (j.n_row * a->n_kv_head + WARPS - 1) / WARPS, THREADS, 0, stream,
               j);
    }
    return gpu_launched("attention_back");
}
