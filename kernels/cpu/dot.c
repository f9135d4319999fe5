/* The dot-product kernel: see dot.h. Three element kinds: f32 weights; bf16 weights widened to f32
 * (x rounded to bf16 and kept as f32); bf16 weights with native bf16 products. Weights are streamed
 * once for each block of rows that fits in L2 beside them; while the first rows of a tile run, the
 * next tile's weights are prefetched, so that memory and arithmetic overlap at any row count. */
#include "kernels/cpu/dot.h"
#include "kernels/bf16.h"
#include "kernels/cpu/reduce.h"
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
/* Longer rows are walked in blocks of k when more than one run of rows shares a tile's weights, so
 * that a block's weights and rows stay in L1; the accumulators wait in memory between blocks, which
 * changes no bit of them. */
#define K_BLOCK      1024
#define K_BLOCK_ROWS 48

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
    const char *near;   /* the next line of weights to fetch for the next unit */
    const char *far;    /* the same line of the unit after that one; NULL: unknown */
    size_t row_jump;    /* from a row's end to the next row's begin, within the block of k */
    uint32_t row_lines; /* lines of a row within the block of k */
    uint32_t row_left;  /* of them, until the jump */
    uint32_t pace, due; /* a line is fetched each time `due` reaches n_step: the unit's lines are */
    uint32_t n_step;    /* spread evenly over the steps of its runs; pace 0: nothing to fetch */
    uint32_t d_in;
    uint32_t k0, k1;   /* this block of k: a multiple of the step, but for the last */
    vf (*acc)[TILE_N]; /* [rows] between blocks; unused when one block is all */
    float out[TILE_M][TILE_N];
};

/* The accumulators of a tile are named variables, row m's being a##m..d##m: an array of them would
 * be kept in memory around the loop. */
#if TILE_M == 6
#define EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5)
#elif TILE_M == 3
#define EACH_ROW(X) X(0) X(1) X(2)
#else
#define EACH_ROW(X) X(0) X(1)
#endif

#define ROW_BEGIN(m) vf a##m = {0}, b##m = {0}, c##m = {0}, d##m = {0};
#define ROW_RESUME(m)                                                                              \
    if (m < m_count) {                                                                             \
        a##m = tl->acc[m][0], b##m = tl->acc[m][1];                                                \
        c##m = tl->acc[m][2], d##m = tl->acc[m][3];                                                \
    }
#define ROW_PARK(m)                                                                                \
    if (m < m_count) {                                                                             \
        tl->acc[m][0] = a##m, tl->acc[m][1] = b##m;                                                \
        tl->acc[m][2] = c##m, tl->acc[m][3] = d##m;                                                \
    }
#define ROW_SUM(m)                                                                                 \
    if (m < m_count)                                                                               \
        vf_sum4(tl->out[m], a##m, b##m, c##m, d##m);
/* With 32 registers the four weight vectors stay while rows stream by. */
#define ROW_STEP(m)                                                                                \
    if (m < m_count) {                                                                             \
        vf v = vf_load(x + m * x_stride);                                                          \
        a##m = dot_step(kind, a##m, w[0], v);                                                      \
        b##m = dot_step(kind, b##m, w[1], v);                                                      \
        c##m = dot_step(kind, c##m, w[2], v);                                                      \
        d##m = dot_step(kind, d##m, w[3], v);                                                      \
    }
/* With 16 it is the rows that stay. The sums are the same. */
#define ROW_LOAD(m) vf v##m = m < m_count ? vf_load(x + m * x_stride) : (vf){0};
#define ROW_STEP_A(m)                                                                              \
    if (m < m_count)                                                                               \
        a##m = dot_step(kind, a##m, wa, v##m);
#define ROW_STEP_B(m)                                                                              \
    if (m < m_count)                                                                               \
        b##m = dot_step(kind, b##m, wb, v##m);
#define ROW_STEP_C(m)                                                                              \
    if (m < m_count)                                                                               \
        c##m = dot_step(kind, c##m, wc, v##m);
#define ROW_STEP_D(m)                                                                              \
    if (m < m_count)                                                                               \
        d##m = dot_step(kind, d##m, wd, v##m);

/* The near line into L1, where it is used next; the far one into L2: L1 has too few misses in
 * flight to keep memory busy by itself, and drops what is too many. */
INLINE void fetch_lines(struct tile *tl)
{
    for (tl->due += tl->pace; tl->due >= tl->n_step; tl->due -= tl->n_step) {
        size_t step = 64;
        if (--tl->row_left == 0) {
            tl->row_left = tl->row_lines;
            step += tl->row_jump;
        }
        __builtin_prefetch(tl->near, 0, 3);
        tl->near += step;
        if (tl->far) {
            __builtin_prefetch(tl->far, 0, 2);
            tl->far += step;
        }
    }
}

INLINE void tile_run(struct tile *tl, const uint32_t m_count, const enum dot_kind kind)
{
    const size_t w_bytes = kind == DOT_F32 ? 4 : 2, x_bytes = kind == DOT_NATIVE ? 2 : 4;
    const size_t x_stride = tl->x_stride;
    const uint32_t step = STEP(kind), full = tl->k1 / step * step;
    const char *w0 = tl->w[0], *w1 = tl->w[1], *w2 = tl->w[2], *w3 = tl->w[3];
    EACH_ROW(ROW_BEGIN)
    if (tl->k0) {
        EACH_ROW(ROW_RESUME)
    }
    for (uint32_t k = tl->k0; k < full; k += step) {
        size_t at = k * w_bytes;
        const char *x = tl->x + k * x_bytes;
        if (tl->pace)
            fetch_lines(tl);
#if VW == 16
        const vf w[TILE_N] = {load_w(kind, w0 + at), load_w(kind, w1 + at), load_w(kind, w2 + at),
                              load_w(kind, w3 + at)};
        EACH_ROW(ROW_STEP)
#else
        EACH_ROW(ROW_LOAD)
        vf wa = load_w(kind, w0 + at);
        EACH_ROW(ROW_STEP_A)
        vf wb = load_w(kind, w1 + at);
        EACH_ROW(ROW_STEP_B)
        vf wc = load_w(kind, w2 + at);
        EACH_ROW(ROW_STEP_C)
        vf wd = load_w(kind, w3 + at);
        EACH_ROW(ROW_STEP_D)
#endif
    }
    if (tl->k1 < tl->d_in) {
        EACH_ROW(ROW_PARK)
        return;
    }
    if (full < tl->d_in) {
        const uint32_t rest = tl->d_in - full;
        const char *x = tl->x + full * x_bytes;
        const vf w[TILE_N] = {load_w_tail(kind, w0 + full * w_bytes, rest),
                              load_w_tail(kind, w1 + full * w_bytes, rest),
                              load_w_tail(kind, w2 + full * w_bytes, rest),
                              load_w_tail(kind, w3 + full * w_bytes, rest)};
        EACH_ROW(ROW_STEP)
    }
    EACH_ROW(ROW_SUM)
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
    if (dtype == DTYPE_BF16) {
#if defined(__AVX512BF16__)
        row_to_bf16((uint16_t *)(void *)dst, x, d_in);
        used = d_in * sizeof(uint16_t);
#else
        float *f = (float *)(void *)dst;
        for (uint32_t i = 0; i < d_in; i++)
            f[i] = bf16_round(x[i]);
#endif
    } else {
        memcpy(dst, x, used);
    }
    memset(dst + used, 0, bytes - used);
}

bool ISA(dot_as_is)(enum dtype dtype, uint32_t d_in)
{
    return dtype == DTYPE_F32 && d_in % VW == 0;
}

static void tile_store(const struct dot_job *j, const struct tile *tl, uint32_t t0, uint32_t rows,
                       uint32_t n0, uint32_t n_count)
{
    float *y = j->y + t0 * j->y_stride + n0;
    for (uint32_t m = 0; m < rows; m++, y += j->y_stride) {
        if (n_count == TILE_N)
            memcpy(y, tl->out[m], TILE_N * sizeof(float));
        else
            memcpy(y, tl->out[m], n_count * sizeof(float));
    }
}

/* Where the weights begin that are used `ahead` units after this one; NULL: unknown. A unit is four
 * rows of weights and one block of k. */
static const char *unit_after(const struct dot_job *j, const struct tile *tl, uint32_t n_left,
                              uint32_t k_block, uint32_t ahead)
{
    uint32_t n_block = (j->d_in + k_block - 1) / k_block, unit = tl->k0 / k_block + ahead;
    uint32_t tile = unit / n_block, here = (n_left + TILE_N - 1) / TILE_N;
    const char *w = tl->w[0];
    if (tile >= here) {
        w = j->then;
        tile -= here;
    }
    size_t at = (size_t)tile * TILE_N * j->d_in + (size_t)(unit % n_block) * k_block;
    return w ? w + at * dtype_bytes(j->dtype) : NULL;
}

/* The weights of the next unit are fetched while n_run runs of rows use this one, at an even pace,
 * so that memory is busy all the time rather than in bursts. */
static void plan_fetch(const struct dot_job *j, struct tile *tl, uint32_t n_left, uint32_t k_block,
                       uint32_t n_run)
{
    size_t item = dtype_bytes(j->dtype);
    tl->row_lines = (uint32_t)(((tl->k1 - tl->k0) * item + 63) / 64);
    tl->row_left = tl->row_lines;
    tl->row_jump = j->d_in * item - (size_t)tl->row_lines * 64;
    tl->near = unit_after(j, tl, n_left, k_block, 1);
    tl->far = unit_after(j, tl, n_left, k_block, 2);
    tl->n_step = n_run * ((tl->k1 - tl->k0) / STEP(j->dtype == DTYPE_BF16 ? BF16_KIND : DOT_F32));
    tl->pace = tl->near && tl->n_step ? TILE_N * tl->row_lines : 0;
    tl->due = 0;
}

/* One tile of outputs for the rows [rows[0], rows[1]). */
static void block_run(const struct dot_job *j, struct tile *tl, const uint32_t rows[2], uint32_t n,
                      uint32_t n1)
{
    vf acc[K_BLOCK_ROWS][TILE_N];
    uint32_t n_tile = (rows[1] - rows[0] + TILE_M - 1) / TILE_M;
    uint32_t n_block = n_tile > 1 ? (j->d_in + K_BLOCK - 1) / K_BLOCK : 1;
    uint32_t k_block = n_block > 1 ? (j->d_in / n_block + 63) / 64 * 64 : j->d_in;
    uint32_t n_count = n1 - n < TILE_N ? n1 - n : TILE_N;
    for (tl->k0 = 0; tl->k0 < j->d_in; tl->k0 = tl->k1) {
        tl->k1 = j->d_in - tl->k0 <= k_block ? j->d_in : tl->k0 + k_block;
        plan_fetch(j, tl, n1 - n, k_block, n_tile);
        for (uint32_t t = rows[0], i = 0, count; i < n_tile; t += count, i++) {
            count = (rows[1] - t + n_tile - i - 1) / (n_tile - i); /* nearly equal heights */
            tl->x = j->x + t * j->x_stride_bytes;
            tl->acc = k_block < j->d_in ? &acc[t - rows[0]] : NULL;
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
    if (j->d_in > K_BLOCK && block > K_BLOCK_ROWS)
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
