/* attention: online softmax over blocks of 16 positions counted from position 0. For each (run of
 * rows of one sequence, kv head) a block's K is transposed to f32 once and shared by all rows of
 * the run and all heads of the group; scores then are 16 lanes at a time, values d_head lanes at a
 * time. What a (row, head) computes is the same whatever else the run holds: blocks outside its
 * range are skipped, positions outside are masked, and the order is fixed. */
#include "kernels/bf16.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/reduce.h"
#include "kernels/cpu/vec.h"
#include "server/base/check.h"

#define BLOCK      16
#define D_MAX      256
#define RUN_ROWS   8
#define STATE_MAX  16384 /* floats of accumulators in a unit */
#define BLOCK_VECS (BLOCK / VW)
#define ROW_PAD    16                 /* keeps the rows of a block out of one cache set */
#define HEADS_MAX  (VW == 16 ? 4 : 1) /* heads at a time: four accumulators each in registers */

/* A worker's scratch. */
struct attn_work {
    float k[D_MAX][BLOCK]; /* transposed */
    float v[BLOCK][D_MAX + ROW_PAD];
    float row[BLOCK][D_MAX + ROW_PAD]; /* K as stored */
    float acc[STATE_MAX];
    float max[STATE_MAX / 8], sum[STATE_MAX / 8];
};

/* Rows [t0, t0+rows) of one sequence, heads [h0, h0+heads) of one kv head. */
struct attn_unit {
    uint32_t t0, rows, kv_head, h0, heads;
    uint32_t first, last; /* positions that any row needs */
};

struct attn_pass {
    const struct attention_args *a;
    struct cpu_backend *c;
    uint32_t group, head_step, run_rows;
    uint64_t cost;
};

static uint32_t row_first(const struct attention_args *a, uint32_t t)
{
    uint32_t end = a->rows.pos[t] + 1;
    return a->window && end > a->window ? end - a->window : 0;
}

static const char *elem_row(const struct attention_args *a, const struct attn_unit *u, uint32_t pos,
                            uint32_t is_v)
{
    const struct kv_cache *kv = &a->kv;
    uint32_t page =
        a->rows.page_table[(size_t)a->rows.seq[u->t0] * a->rows.page_stride + pos / kv->page_tok];
    uint64_t off = kv_offset(kv, page, a->layer, is_v, u->kv_head, pos % kv->page_tok);
    return (const char *)kv->base + off * dtype_bytes(kv->dtype);
}

static void load_row(float *dst, const char *src, enum dtype dtype, uint32_t d)
{
    uint32_t i = 0;
    if (dtype == DTYPE_F32) {
        memcpy(dst, src, d * sizeof(float));
        return;
    }
    for (; i + VW <= d; i += VW)
        vf_store(dst + i, vf_load_bf16(src + 2 * i));
    if (i < d)
        vf_store_n(dst + i, d - i, vf_load_bf16_n(src + 2 * i, d - i));
}

/* dst[i][j] = src[j][i] for VW by VW floats. */
INLINE void transpose(float *dst, size_t dst_stride, const float *src, size_t src_stride)
{
#if VW == 16
    __m512 r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        r[i] = _mm512_loadu_ps(src + (size_t)i * src_stride);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = (__m512)_mm512_unpacklo_pd((__m512d)t[i], (__m512d)t[i + 2]);
        r[i + 1] = (__m512)_mm512_unpackhi_pd((__m512d)t[i], (__m512d)t[i + 2]);
        r[i + 2] = (__m512)_mm512_unpacklo_pd((__m512d)t[i + 1], (__m512d)t[i + 3]);
        r[i + 3] = (__m512)_mm512_unpackhi_pd((__m512d)t[i + 1], (__m512d)t[i + 3]);
    }
    /* r[4g + c] holds columns c, c+4, c+8, c+12 of rows 4g..4g+3, one in each 128-bit lane */
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        __m512 a = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);
        __m512 b = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
        __m512 d = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
        __m512 e = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
        _mm512_storeu_ps(dst + (size_t)c * dst_stride, _mm512_shuffle_f32x4(a, b, 0x88));
        _mm512_storeu_ps(dst + (size_t)(c + 8) * dst_stride, _mm512_shuffle_f32x4(a, b, 0xdd));
        _mm512_storeu_ps(dst + (size_t)(c + 4) * dst_stride, _mm512_shuffle_f32x4(d, e, 0x88));
        _mm512_storeu_ps(dst + (size_t)(c + 12) * dst_stride, _mm512_shuffle_f32x4(d, e, 0xdd));
    }
#else
    for (uint32_t j = 0; j < VW; j++)
        for (uint32_t i = 0; i < VW; i++)
            dst[i * dst_stride + j] = src[j * src_stride + i];
#endif
}

/* Positions outside [first, last] may be unwritten memory: they load as zeros. */
static void load_block(const struct attention_args *a, const struct attn_unit *u, uint32_t block,
                       struct attn_work *w)
{
    uint32_t d = a->d_head, i = 0;
    for (uint32_t j = 0; j < BLOCK; j++) {
        uint32_t pos = block * BLOCK + j;
        if (pos < u->first || pos > u->last) {
            memset(w->v[j], 0, d * sizeof(float));
            memset(w->row[j], 0, d * sizeof(float));
            continue;
        }
        load_row(w->v[j], elem_row(a, u, pos, 1), a->kv.dtype, d);
        load_row(w->row[j], elem_row(a, u, pos, 0), a->kv.dtype, d);
    }
    for (; i + VW <= d; i += VW)
        for (uint32_t j = 0; j < BLOCK; j += VW)
            transpose(&w->k[i][j], BLOCK, &w->row[j][i], D_MAX + ROW_PAD);
    for (; i < d; i++)
        for (uint32_t j = 0; j < BLOCK; j++)
            w->k[i][j] = w->row[j][i];
}

/* acc[h][x] += q_h[x] k[x] for four features, of VW positions from `at` on and n heads. */
INLINE void add_dots(vf acc[][4], const float k[][BLOCK], uint32_t at, const float *q,
                     uint32_t d_head, const uint32_t n)
{
#pragma GCC unroll 4
    for (uint32_t x = 0; x < 4; x++) {
        vf kx = vf_load(&k[x][at]);
#pragma GCC unroll 4
        for (uint32_t h = 0; h < n; h++)
            acc[h][x] = vf_fma(vf_set1(q[h * d_head + x]), kx, acc[h][x]);
    }
}

/* s[h][j] = scale * q_h . k_j for n heads, masked to -inf outside [lo, hi]. */
INLINE void block_scores(const struct attention_args *a, const struct attn_work *w, const float *q,
                         const uint32_t range[2], const uint32_t n, float s[][BLOCK])
{
    for (uint32_t b = 0; b < BLOCK_VECS; b++) {
        vf acc[HEADS_MAX][4] = {{{0}}};
        for (uint32_t i = 0; i < a->d_head; i += 4)
            add_dots(acc, &w->k[i], b * VW, q + i, a->d_head, n);
#pragma GCC unroll 4
        for (uint32_t h = 0; h < n; h++)
            vf_store(s[h] + b * VW,
                     ((acc[h][0] + acc[h][1]) + (acc[h][2] + acc[h][3])) * vf_set1(a->scale));
    }
    for (uint32_t h = 0; h < n; h++) {
        for (uint32_t j = 0; j < range[0]; j++)
            s[h][j] = -INFINITY;
        for (uint32_t j = range[1] + 1; j < BLOCK; j++)
            s[h][j] = -INFINITY;
    }
}

static float block_max(const float s[BLOCK])
{
    vf m = vf_load(s);
    for (uint32_t b = 1; b < BLOCK_VECS; b++)
        m = vf_max(vf_load(s + b * VW), m);
    return vf_top(m);
}

static float exp_one(float x)
{
    return vf_exp(vf_set1(x))[0];
}

/* Replaces s by e^(s - max) and returns their sum: lanes i and i + w/2 added, w halving. */
static float block_exp(float s[BLOCK], float max)
{
    vf v[BLOCK_VECS];
    for (uint32_t b = 0; b < BLOCK_VECS; b++) {
        v[b] = vf_exp(vf_load(s + b * VW) - vf_set1(max));
        vf_store(s + b * VW, v[b]);
    }
    for (uint32_t w = BLOCK_VECS / 2; w > 0; w /= 2)
        for (uint32_t b = 0; b < w; b++)
            v[b] += v[b + w];
    return vf_sum(v[0]);
}

/* acc_h += sum_j p[h][j] v_j for n heads, n_vec vectors of values from i on. */
INLINE void add_values(float *acc, const struct attn_work *w, uint32_t d, float p[][BLOCK],
                       const uint32_t range[2], uint32_t i, const uint32_t n,
                       const uint32_t n_vec) /* lint: waive parameters - two are constants */
{
    vf v[HEADS_MAX][4];
#pragma GCC unroll 4
    for (uint32_t h = 0; h < n; h++)
#pragma GCC unroll 4
        for (uint32_t x = 0; x < n_vec; x++)
            v[h][x] = vf_load(acc + (size_t)h * d + i + x * VW);
    for (uint32_t j = range[0]; j <= range[1]; j++) {
#pragma GCC unroll 4
        for (uint32_t x = 0; x < n_vec; x++) {
            vf value = vf_load(&w->v[j][i + x * VW]);
#pragma GCC unroll 4
            for (uint32_t h = 0; h < n; h++)
                v[h][x] = vf_fma(vf_set1(p[h][j]), value, v[h][x]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t h = 0; h < n; h++)
#pragma GCC unroll 4
        for (uint32_t x = 0; x < n_vec; x++)
            vf_store(acc + (size_t)h * d + i + x * VW, v[h][x]);
}

INLINE void weigh_values(float *acc, const struct attn_work *w, uint32_t d, float p[][BLOCK],
                         const uint32_t range[2], const uint32_t n)
{
    uint32_t i = 0;
    for (; i + 4 * VW <= d; i += 4 * VW)
        add_values(acc, w, d, p, range, i, n, 4);
    for (; i + VW <= d; i += VW)
        add_values(acc, w, d, p, range, i, n, 1);
    for (uint32_t h = 0; i < d && h < n; h++) {
        float *tail = acc + (size_t)h * d + i;
        for (uint32_t j = range[0]; j <= range[1]; j++) {
            vf v = vf_load_n(&w->v[j][i], d - i, 0);
            v = vf_fma(vf_set1(p[h][j]), v, vf_load_n(tail, d - i, 0));
            vf_store_n(tail, d - i, v);
        }
    }
}

/* One block for n heads of a row, whose states begin at index x in the unit. What a head computes
 * does not depend on n: only the loads of K and V are shared. */
INLINE void attend_heads(const struct attention_args *a, struct attn_work *w, const float *q,
                         const uint32_t range[2], uint32_t x, const uint32_t n)
{
    float s[HEADS_MAX][BLOCK], *acc = w->acc + (size_t)x * a->d_head;
    block_scores(a, w, q, range, n, s);
    for (uint32_t h = 0; h < n; h++) {
        float max = block_max(s[h]);
        if (max > w->max[x + h]) {
            float shrink = exp_one(w->max[x + h] - max);
            w->sum[x + h] *= shrink;
            for (uint32_t i = 0; i < a->d_head; i++)
                acc[(size_t)h * a->d_head + i] *= shrink;
            w->max[x + h] = max;
        }
        w->sum[x + h] += block_exp(s[h], w->max[x + h]);
    }
    weigh_values(acc, w, a->d_head, s, range, n);
}

static void attend_block(const struct attention_args *a, struct attn_work *w, const float *q,
                         const uint32_t range[2], uint32_t x, uint32_t n)
{
    switch (n) {
    case 1:
        return attend_heads(a, w, q, range, x, 1);
#if VW == 16
    case 2:
        return attend_heads(a, w, q, range, x, 2);
    case 3:
        return attend_heads(a, w, q, range, x, 3);
    default:
        return attend_heads(a, w, q, range, x, 4);
#endif
    }
}

static void unit_begin(struct attn_work *w, uint32_t count, uint32_t d)
{
    memset(w->acc, 0, (size_t)count * d * sizeof(float));
    for (uint32_t x = 0; x < count; x++) {
        w->max[x] = -INFINITY;
        w->sum[x] = 0;
    }
}

static void unit_end(const struct attention_args *a, const struct attn_unit *u,
                     const struct attn_work *w)
{
    uint32_t d = a->d_head;
    float *out = a->out;
    for (uint32_t x = 0; x < u->rows * u->heads; x++) {
        size_t th = (size_t)(u->t0 + x / u->heads) * a->n_head + u->h0 + x % u->heads;
        float inv = 1.0f / w->sum[x];
        for (uint32_t i = 0; i < d; i++)
            out[th * d + i] = w->acc[(size_t)x * d + i] * inv;
        if (a->keep_lse)
            a->keep_lse[th] = w->max[x] + logf(w->sum[x]);
    }
}

static void unit_run(const struct attn_pass *p, const struct attn_unit *u, struct attn_work *w)
{
    const struct attention_args *a = p->a;
    unit_begin(w, u->rows * u->heads, a->d_head);
    for (uint32_t block = u->first / BLOCK; block <= u->last / BLOCK; block++) {
        uint32_t begin = block * BLOCK;
        load_block(a, u, block, w);
        for (uint32_t r = 0; r < u->rows; r++) {
            uint32_t t = u->t0 + r, lo = row_first(a, t), hi = a->rows.pos[t];
            if (hi < begin || lo >= begin + BLOCK)
                continue;
            uint32_t range[2] = {lo > begin ? lo - begin : 0, MIN(hi - begin, BLOCK - 1u)};
            for (uint32_t h = 0, n; h < u->heads; h += n) {
                n = MIN(u->heads - h, (uint32_t)HEADS_MAX);
                attend_block(a, w,
                             (const float *)a->q + ((size_t)t * a->n_head + u->h0 + h) * a->d_head,
                             range, r * u->heads + h, n);
            }
        }
    }
    unit_end(a, u, w);
}

/* ---- the list of units ---- */

typedef void unit_fn(const struct attn_pass *p, const struct attn_unit *u, void *arg);

static void each_unit(const struct attn_pass *p, unit_fn *fn, void *arg)
{
    const struct attention_args *a = p->a;
    struct attn_unit u;
    for (u.t0 = 0; u.t0 < a->n_tok; u.t0 += u.rows) {
        u.first = row_first(a, u.t0);
        u.last = a->rows.pos[u.t0];
        for (u.rows = 1; u.rows < p->run_rows && u.t0 + u.rows < a->n_tok; u.rows++) {
            uint32_t t = u.t0 + u.rows;
            if (a->rows.seq[t] != a->rows.seq[u.t0])
                break;
            u.first = MIN(u.first, row_first(a, t));
            u.last = MAX(u.last, a->rows.pos[t]);
        }
        for (u.kv_head = 0; u.kv_head < a->n_kv_head; u.kv_head++) {
            for (uint32_t h = 0; h < p->group; h += p->head_step) {
                u.h0 = u.kv_head * p->group + h;
                u.heads = MIN(p->head_step, p->group - h);
                fn(p, &u, arg);
            }
        }
    }
}

static uint64_t unit_cost(const struct attn_unit *u)
{
    uint64_t blocks = u->last / BLOCK - u->first / BLOCK + 1;
    return blocks * (4 + (uint64_t)u->rows * u->heads);
}

static void unit_count(const struct attn_pass *p, const struct attn_unit *u, void *arg)
{
    (void)p;
    *(uint64_t *)arg += unit_cost(u);
}

struct attn_share {
    uint64_t at, lo, hi;
    struct attn_work *work;
};

static void unit_take(const struct attn_pass *p, const struct attn_unit *u, void *arg)
{
    struct attn_share *s = arg;
    if (s->at >= s->lo && s->at < s->hi)
        unit_run(p, u, s->work);
    s->at += unit_cost(u);
}

static void attn_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    struct attn_pass *p = arg;
    struct attn_share s = {.work = cpu_scratch(p->c, worker)};
    pool_share(p->cost, worker, n_worker, &s.lo, &s.hi);
    each_unit(p, unit_take, &s);
}

enum status ISA(attention)(struct backend *b, const struct attention_args *a)
{
    _Static_assert(sizeof(struct attn_work) <= CPU_WORKER_BYTES, "scratch of a worker");
    struct attn_pass p = {.a = a, .c = cpu_of(b)};
    CHECK(a->d_head <= D_MAX && a->d_head % 8 == 0 && a->n_head % a->n_kv_head == 0);
    p.group = a->n_head / a->n_kv_head;
    p.head_step = MIN(p.group, STATE_MAX / a->d_head);
    p.run_rows = MIN((uint32_t)RUN_ROWS, STATE_MAX / (a->d_head * p.head_step));
    each_unit(&p, unit_count, &p.cost);
    cpu_run(p.c, attn_work, &p, p.cost * a->d_head < 8192);
    return STATUS_OK;
}
