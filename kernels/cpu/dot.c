/* The dot-product kernel: see dot.h. Three element kinds: f32 weights; bf16 weights widened to f32
 * (x rounded to bf16 and kept as f32); bf16 weights with native bf16 products. Weights are streamed
 * once for each block of rows that fits in L2 beside them; while the first rows of a tile run, the
 * next tile's weights are prefetched, so that memory and arithmetic overlap at any row count. */
#include "kernels/cpu/dot.h"

#include "kernels/bf16.h"
#include "kernels/cpu/vec.h"

#define TILE_N 4
#if VW == 16
#define TILE_M 6
#elif VW == 8
#define TILE_M 3
#else
#define TILE_M 2
#endif

#define X_BLOCK_BYTES ((size_t)384 << 10)
/* Longer rows are walked in blocks of k when several runs share a tile's weights, so that these
 * stay in L1; the accumulators wait in memory between blocks, which changes no bit of them. */
#define K_BLOCK        2048
#define K_BLOCK_ABOVE  3072
#define K_BLOCK_ROWS   48
#define PREFETCH_BYTES 4096 /* distance at least */

enum dot_kind { DOT_F32, DOT_WIDE, DOT_NATIVE };

#if defined(__AVX512BF16__)
#define BF16_KIND DOT_NATIVE
#else
#define BF16_KIND DOT_WIDE
#endif

/* Elements of k that one vector step consumes. */
#define STEP(kind) ((kind) == DOT_NATIVE ? 2u * VW : (uint32_t)VW)

INLINE vf load_w(enum dot_kind kind, const char *w)
{
    return kind == DOT_WIDE ? vf_load_bf16(w) : vf_load(w);
}

INLINE vf load_w_tail(enum dot_kind kind, const char *w, uint32_t n)
{
    if (kind == DOT_WIDE)
        return vf_load_bf16_n(w, n);
    if (kind == DOT_F32)
        return vf_load_n(w, n, 0);
    uint16_t tmp[2 * VW] = {0};
    memcpy(tmp, w, n * sizeof(uint16_t));
    return vf_load(tmp);
}

INLINE vf dot_step(enum dot_kind kind, vf acc, vf w, vf x)
{
#if defined(__AVX512BF16__)
    if (kind == DOT_NATIVE)
        return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)x);
#endif
    (void)kind;
    return vf_fma(w, x, acc);
}

struct tile {
    const char *w[TILE_N];
    const char *x;
    size_t x_stride;
    const char *prefetch; /* where this run's share of coming weights begins */
    size_t prefetch_step; /* bytes of it for each step of k; 0: none */
    uint32_t d_in;
    uint32_t k0, k1;   /* this block of k: a multiple of the step, but for the last */
    vf (*acc)[TILE_N]; /* [rows] between blocks; unused when one block is all */
    float out[TILE_M][TILE_N];
};

/* The elements of k past the last whole vector. */
INLINE void tile_tail(const struct tile *tl, const uint32_t m_count, const enum dot_kind kind,
                      uint32_t full, vf acc[TILE_M][TILE_N])
{
    const size_t w_bytes = kind == DOT_F32 ? 4 : 2, x_bytes = kind == DOT_NATIVE ? 2 : 4;
    vf w[TILE_N];
    for (uint32_t n = 0; n < TILE_N; n++)
        w[n] = load_w_tail(kind, tl->w[n] + full * w_bytes, tl->d_in - full);
#pragma GCC unroll 8
    for (uint32_t m = 0; m < m_count; m++) {
        vf x = vf_load(tl->x + m * tl->x_stride + full * x_bytes);
#pragma GCC unroll 4
        for (uint32_t n = 0; n < TILE_N; n++)
            acc[m][n] = dot_step(kind, acc[m][n], w[n], x);
    }
}

/* acc += one step of k. With 32 registers the four weight vectors stay while rows stream by; with
 * 16 it is the rows that stay. The sums are the same. */
INLINE void tile_step(const enum dot_kind kind, const char *const w[TILE_N], const char *x,
                      size_t x_stride, const uint32_t m_count, vf acc[TILE_M][TILE_N])
{
    if (VW == 16) {
        vf a = load_w(kind, w[0]), b = load_w(kind, w[1]);
        vf c = load_w(kind, w[2]), d = load_w(kind, w[3]);
#pragma GCC unroll 8
        for (uint32_t m = 0; m < m_count; m++) {
            vf v = vf_load(x + m * x_stride);
            acc[m][0] = dot_step(kind, acc[m][0], a, v);
            acc[m][1] = dot_step(kind, acc[m][1], b, v);
            acc[m][2] = dot_step(kind, acc[m][2], c, v);
            acc[m][3] = dot_step(kind, acc[m][3], d, v);
        }
        return;
    }
    vf v[TILE_M];
#pragma GCC unroll 8
    for (uint32_t m = 0; m < m_count; m++)
        v[m] = vf_load(x + m * x_stride);
#pragma GCC unroll 4
    for (uint32_t n = 0; n < TILE_N; n++) {
        vf a = load_w(kind, w[n]);
#pragma GCC unroll 8
        for (uint32_t m = 0; m < m_count; m++)
            acc[m][n] = dot_step(kind, acc[m][n], a, v[m]);
    }
}

INLINE void tile_run(struct tile *tl, const uint32_t m_count, const enum dot_kind kind)
{
    const size_t w_bytes = kind == DOT_F32 ? 4 : 2, x_bytes = kind == DOT_NATIVE ? 2 : 4;
    const uint32_t step = STEP(kind), full = tl->k1 / step * step;
    const char *w0 = tl->w[0], *w1 = tl->w[1], *w2 = tl->w[2], *w3 = tl->w[3];
    const char *ahead = tl->prefetch;
    const size_t ahead_step = tl->prefetch_step;
    vf acc[TILE_M][TILE_N] = {{{0}}};
    if (tl->k0)
        memcpy(acc, tl->acc, m_count * sizeof(acc[0]));
    for (uint32_t k = tl->k0; k < full; k += step) {
        size_t at = k * w_bytes;
        for (size_t i = 0; i < ahead_step; i += 64)
            __builtin_prefetch(ahead + i, 0, 2);
        ahead += ahead_step;
        const char *const w[TILE_N] = {w0 + at, w1 + at, w2 + at, w3 + at};
        tile_step(kind, w, tl->x + k * x_bytes, tl->x_stride, m_count, acc);
    }
    if (tl->k1 < tl->d_in) {
        memcpy(tl->acc, acc, m_count * sizeof(acc[0]));
        return;
    }
    if (full < tl->d_in)
        tile_tail(tl, m_count, kind, full, acc);
#pragma GCC unroll 8
    for (uint32_t m = 0; m < m_count; m++)
        vf_sum4(tl->out[m], acc[m][0], acc[m][1], acc[m][2], acc[m][3]);
}

#define TILE_FN(kind, m)                                                                           \
    static void tile_##kind##_##m(struct tile *t)                                                  \
    {                                                                                              \
        tile_run(t, m, kind);                                                                      \
    }
#if TILE_M == 6
#define TILE_FNS(kind)                                                                             \
    TILE_FN(kind, 1)                                                                               \
    TILE_FN(kind, 2) TILE_FN(kind, 3) TILE_FN(kind, 4) TILE_FN(kind, 5) TILE_FN(kind, 6)
#define TILE_ROW(kind)                                                                             \
    {                                                                                              \
        tile_##kind##_1, tile_##kind##_2, tile_##kind##_3, tile_##kind##_4, tile_##kind##_5,       \
            tile_##kind##_6                                                                        \
    }
#elif TILE_M == 3
#define TILE_FNS(kind) TILE_FN(kind, 1) TILE_FN(kind, 2) TILE_FN(kind, 3)
#define TILE_ROW(kind)                                                                             \
    {                                                                                              \
        tile_##kind##_1, tile_##kind##_2, tile_##kind##_3                                          \
    }
#else
#define TILE_FNS(kind) TILE_FN(kind, 1) TILE_FN(kind, 2)
#define TILE_ROW(kind)                                                                             \
    {                                                                                              \
        tile_##kind##_1, tile_##kind##_2                                                           \
    }
#endif

TILE_FNS(DOT_F32)
#if defined(__AVX512BF16__)
TILE_FNS(DOT_NATIVE)
#define BF16_ROW TILE_ROW(DOT_NATIVE)
#else
TILE_FNS(DOT_WIDE)
#define BF16_ROW TILE_ROW(DOT_WIDE)
#endif

static void (*const tile_fn[2][TILE_M])(struct tile *) = {TILE_ROW(DOT_F32), BF16_ROW};

size_t ISA(dot_row_bytes)(enum dtype dtype, uint32_t d_in)
{
    size_t item = dtype == DTYPE_BF16 && BF16_KIND == DOT_NATIVE ? 2 : 4;
    return (d_in * item + 63) / 64 * 64;
}

void ISA(dot_convert)(char *dst, const float *x, uint32_t d_in, enum dtype dtype)
{
    size_t bytes = ISA(dot_row_bytes)(dtype, d_in), used = d_in * sizeof(float);
    if (dtype == DTYPE_BF16 && BF16_KIND == DOT_NATIVE) {
        uint16_t *h = (uint16_t *)(void *)dst;
        for (uint32_t i = 0; i < d_in; i++)
            h[i] = bf16_from_f32(x[i]);
        used = d_in * sizeof(uint16_t);
    } else if (dtype == DTYPE_BF16) {
        float *f = (float *)(void *)dst;
        for (uint32_t i = 0; i < d_in; i++)
            f[i] = bf16_round(x[i]);
    } else {
        memcpy(dst, x, used);
    }
    memset(dst + used, 0, bytes - used);
}

static void tile_store(const struct dot_job *j, const struct tile *tl, uint32_t t0, uint32_t rows,
                       uint32_t n0, uint32_t n_count)
{
    for (uint32_t m = 0; m < rows; m++) {
        float *y = j->y + (t0 + m) * j->y_stride + n0;
        for (uint32_t n = 0; n < n_count; n++)
            y[n] = tl->out[m][n];
    }
}

/* Coming weights are fetched while this tile runs, in the order of their addresses, a share by each
 * of its first runs, so that memory is busy all the time rather than in bursts. `from` is the byte
 * after this tile's weights plus the distance; NULL: none. */
static void share_prefetch(const struct dot_job *j, struct tile *tl, const char *from,
                           uint32_t index, uint32_t n_run)
{
    size_t item = dtype_bytes(j->dtype), tile_bytes = TILE_N * j->d_in * item;
    uint32_t share = n_run >= TILE_N ? TILE_N : n_run > 1 ? 2 : 1; /* whole cache lines */
    uint32_t step = STEP(j->dtype == DTYPE_BF16 ? BF16_KIND : DOT_F32);
    tl->prefetch_step = 0;
    if (!from || index >= share)
        return;
    tl->prefetch_step = TILE_N * step * item / share;
    tl->prefetch = from + index * (tile_bytes / share) + TILE_N * tl->k0 * item / share;
}

/* One tile of outputs for the rows [rows[0], rows[1]). */
static void block_run(const struct dot_job *j, struct tile *tl, const uint32_t rows[2], uint32_t n,
                      uint32_t n1)
{
    vf acc[K_BLOCK_ROWS][TILE_N];
    uint32_t n_tile = (rows[1] - rows[0] + TILE_M - 1) / TILE_M;
    uint32_t k_block = j->d_in > K_BLOCK_ABOVE && n_tile > 2 ? K_BLOCK : j->d_in;
    uint32_t n_count = n1 - n < TILE_N ? n1 - n : TILE_N;
    size_t tile_bytes = TILE_N * j->d_in * dtype_bytes(j->dtype);
    uint32_t distance = (uint32_t)(PREFETCH_BYTES / tile_bytes) + 1; /* in tiles */
    const char *from = n + (distance + 1) * TILE_N <= n1 ? tl->w[0] + distance * tile_bytes : NULL;
    for (tl->k0 = 0; tl->k0 < j->d_in; tl->k0 = tl->k1) {
        tl->k1 = j->d_in - tl->k0 < k_block ? j->d_in : tl->k0 + k_block;
        for (uint32_t t = rows[0], i = 0, count; i < n_tile; t += count, i++) {
            count = (rows[1] - t + n_tile - i - 1) / (n_tile - i); /* nearly equal heights */
            tl->x = j->x + t * j->x_stride_bytes;
            tl->acc = k_block < j->d_in ? &acc[t - rows[0]] : NULL;
            share_prefetch(j, tl, from, i, n_tile);
            tile_fn[j->dtype == DTYPE_BF16][count - 1](tl);
            if (tl->k1 == j->d_in)
                tile_store(j, tl, t, count, n, n_count);
        }
    }
}

void ISA(dot_range)(const struct dot_job *j, uint32_t n0, uint32_t n1)
{
    size_t w_stride = j->d_in * dtype_bytes(j->dtype);
    uint32_t fit = (uint32_t)(X_BLOCK_BYTES / j->x_stride_bytes) / TILE_M * TILE_M;
    uint32_t block = fit ? fit : TILE_M;
    if (j->d_in > K_BLOCK_ABOVE && block > K_BLOCK_ROWS)
        block = K_BLOCK_ROWS;
    for (uint32_t b0 = 0; b0 < j->rows; b0 += block) {
        uint32_t rows[2] = {b0, j->rows - b0 < block ? j->rows : b0 + block};
        for (uint32_t n = n0; n < n1; n += TILE_N) {
            struct tile tl;
            tl.x_stride = j->x_stride_bytes;
            tl.d_in = j->d_in;
            for (uint32_t i = 0; i < TILE_N; i++)
                tl.w[i] = j->w + (n + i < n1 ? n + i : n1 - 1) * w_stride;
            block_run(j, &tl, rows, n, n1);
        }
    }
}
