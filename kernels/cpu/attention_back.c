/* attention_back: a worker takes one (sequence, kv head) at a time. For 64 keys, the rows that see
 * them come in blocks of 64, head by head: scores and dP from transposed keys and values, P and S
 * in place, then three products: dv += P^T dout, dk += S^T q, dq += S k. Sums of dk and dv stay in
 * scratch, dq's stand in dy: its chain runs over the keys in ascending order. */
#include "kernels/bf16.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/outer.h"
#include "kernels/cpu/reduce.h"
#include "kernels/cpu/vec.h"
#include "server/base/check.h"

#include <stdatomic.h>

#define KEYS          64
#define ROWS          64
#define BACK_HEAD_MAX 256

struct attn_back {
    const struct attention_back_args *a;
    struct cpu_backend *c;
    atomic_uint next;
};

_Static_assert((5 * KEYS * BACK_HEAD_MAX + 2 * ROWS * KEYS) * sizeof(float) <= CPU_WORKER_BYTES,
               "a worker's scratch holds its tile");

/* A worker's scratch; kt, vt [d][KEYS], k, dk, dv [KEYS][d], p, s [ROWS][KEYS]. */
struct attn_tile {
    float *kt, *vt, *k, *dk, *dv, *p, *s;
    const struct attention_back_args *a;
    const struct attention_back_seq *seq;
    uint32_t g, j0, keys; /* kv head; first key and how many */
};

static float kv_value(const struct attention_back_args *a, float f)
{
    return a->kv_dtype == DTYPE_BF16 ? bf16_round(f) : f;
}

static void tile_keys(struct attn_tile *w)
{
    const struct attention_back_args *a = w->a;
    uint32_t d = a->d_head;
    memset(w->kt, 0, sizeof(float) * KEYS * d);
    memset(w->vt, 0, sizeof(float) * KEYS * d);
    memset(w->dk, 0, sizeof(float) * KEYS * d);
    memset(w->dv, 0, sizeof(float) * KEYS * d);
    for (uint32_t j = 0; j < w->keys; j++) {
        size_t at = ((size_t)(w->seq->row + w->j0 + j) * a->n_kv_head + w->g) * d;
        for (uint32_t i = 0; i < d; i++) {
            w->k[j * d + i] = w->kt[i * KEYS + j] = kv_value(a, a->k[at + i]);
            w->vt[i * KEYS + j] = kv_value(a, a->v[at + i]);
        }
    }
}

/* Row t's scores and dP become P and S (with the scale). */
static void row_scores(const struct attn_tile *w, float *p, float *s, uint32_t t, float lse,
                       float own)
{
    const struct attention_back_args *a = w->a;
    const vf scale = vf_set1(a->scale), base = vf_set1(lse), mine = vf_set1(own);
    /* keys that t sees: first <= j0 + j <= t */
    uint32_t first = a->window && t + 1 > a->window ? t + 1 - a->window : 0;
    uint32_t lo = first > w->j0 ? MIN(first - w->j0, (uint32_t)KEYS) : 0;
    uint32_t hi = t < w->j0 ? 0 : MIN(t - w->j0 + 1, w->keys);
    for (uint32_t j = 0; j < KEYS; j += VW) {
        vf e = vf_exp(vf_fma(vf_load(p + j), scale, -base));
        vf_store(s + j, e * (vf_load(s + j) - mine) * scale);
        vf_store(p + j, e);
    }
    for (uint32_t j = 0; j < lo; j++)
        p[j] = s[j] = 0;
    for (uint32_t j = MAX(lo, hi); j < KEYS; j++)
        p[j] = s[j] = 0;
}

static float row_dot(const float *x, const float *y, uint32_t n)
{
    vf s = {0};
    uint32_t i = 0;
    for (; i + VW <= n; i += VW)
        s = vf_fma(vf_load(x + i), vf_load(y + i), s);
    if (i < n)
        s = vf_fma(vf_load_n(x + i, n - i, 0), vf_load_n(y + i, n - i, 0), s);
    return vf_sum(s);
}

/* Rows t0 .. t0+n-1 of head h against the tile's keys. */
static void tile_rows(struct attn_tile *w, uint32_t h, uint32_t t0, uint32_t n)
{
    const struct attention_back_args *a = w->a;
    uint32_t d = a->d_head;
    size_t wide = (size_t)a->n_head * d, row = w->seq->row + t0, at = row * wide + (size_t)h * d;
    const float *q = (const float *)a->q + at, *out = (const float *)a->out + at;
    const float *dout = a->dout + at;
    memset(w->p, 0, sizeof(float) * KEYS * n);
    memset(w->s, 0, sizeof(float) * KEYS * n);
    struct outer o = {.c = w->p,
                      .c_stride = KEYS,
                      .a = q,
                      .a_m = wide,
                      .a_k = 1,
                      .b = w->kt,
                      .b_stride = KEYS,
                      .scale = 1,
                      .m = n,
                      .n = KEYS,
                      .k = d};
    ISA(outer)(&o);
    o.c = w->s;
    o.a = dout;
    o.b = w->vt;
    ISA(outer)(&o);
    for (uint32_t t = 0; t < n; t++)
        row_scores(w, w->p + t * KEYS, w->s + t * KEYS, t0 + t, a->lse[(row + t) * a->n_head + h],
                   row_dot(dout + t * wide, out + t * wide, d));
    struct outer v = {.c = w->dv,
                      .c_stride = d,
                      .a = w->p,
                      .a_m = 1,
                      .a_k = KEYS,
                      .b = dout,
                      .b_stride = wide,
                      .scale = 1,
                      .m = w->keys,
                      .n = d,
                      .k = n};
    ISA(outer)(&v);
    v.c = w->dk;
    v.a = w->s;
    v.b = q;
    ISA(outer)(&v);
    struct outer g = {.c = a->dy + row * a->dy_stride + (size_t)h * d,
                      .c_stride = a->dy_stride,
                      .a = w->s,
                      .a_m = KEYS,
                      .a_k = 1,
                      .b = w->k,
                      .b_stride = d,
                      .scale = 1,
                      .m = n,
                      .n = d,
                      .k = w->keys};
    ISA(outer)(&g);
}

static void head_back(struct attn_tile *w)
{
    const struct attention_back_args *a = w->a;
    uint32_t d = a->d_head, group = a->n_head / a->n_kv_head, n_row = w->seq->n_row;
    float *dy = a->dy + (size_t)w->seq->row * a->dy_stride;
    for (uint32_t t = 0; t < n_row; t++)
        memset(dy + (size_t)t * a->dy_stride + (size_t)w->g * group * d, 0,
               sizeof(*dy) * group * d);
    for (w->j0 = 0; w->j0 < n_row; w->j0 += KEYS) {
        w->keys = MIN(n_row - w->j0, (uint32_t)KEYS);
        uint32_t end = a->window ? MIN(n_row, w->j0 + w->keys - 1 + a->window) : n_row;
        tile_keys(w);
        for (uint32_t h = w->g * group; h < (w->g + 1) * group; h++)
            for (uint32_t t0 = w->j0; t0 < end; t0 += ROWS)
                tile_rows(w, h, t0, MIN(end - t0, (uint32_t)ROWS));
        for (uint32_t j = 0; j < w->keys; j++) {
            float *to = dy + (size_t)(w->j0 + j) * a->dy_stride + (size_t)(a->n_head + w->g) * d;
            memcpy(to, w->dk + j * d, d * sizeof(*to));
            memcpy(to + (size_t)a->n_kv_head * d, w->dv + j * d, d * sizeof(*to));
        }
    }
}

static void attn_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    struct attn_back *j = arg;
    const struct attention_back_args *a = j->a;
    struct attn_tile w = {.a = a, .kt = cpu_scratch(j->c, worker)};
    size_t side = (size_t)KEYS * a->d_head;
    uint32_t i;
    (void)n_worker;
    w.vt = w.kt + side;
    w.k = w.vt + side;
    w.dk = w.k + side;
    w.dv = w.dk + side;
    w.p = w.dv + side;
    w.s = w.p + ROWS * KEYS;
    while ((i = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed)) <
           a->n_seq * a->n_kv_head) {
        w.seq = &a->seq[i / a->n_kv_head];
        w.g = i % a->n_kv_head;
        head_back(&w);
    }
}

enum status ISA(attention_back)(struct backend *b, const struct attention_back_args *a)
{
    struct attn_back j = {.a = a, .c = cpu_of(b)};
    uint64_t rows = 0;
    CHECK(a->d_head <= BACK_HEAD_MAX && a->n_head % a->n_kv_head == 0);
    for (uint32_t i = 0; i < a->n_seq; i++)
        rows += a->seq[i].n_row;
    cpu_run(j.c, attn_work, &j, rows * a->n_head * a->d_head < 4096);
    return STATUS_OK;
}
