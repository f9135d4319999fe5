/* The outer-product kernel: see outer.h. A register tile holds TILE_M rows and TILE_V vectors of c;
 * for each k, the vectors of b are loaded once and a's elements broadcast. With native bf16
 * products the panel's step takes two rows of W at once. */
#include "kernels/cpu/outer.h"
#include "kernels/bf16.h"
#include "kernels/cpu/vec.h"

#define TILE_M 6
#if VW == 16
#define TILE_V 4
#else
#define TILE_V 2
#endif

/* n_row rows, n_vec vectors at c. */
INLINE void outer_tile(const struct outer *o, float *c, const float *a, const float *b,
                       const uint32_t n_row, const uint32_t n_vec, const bool scaled)
{
    vf acc[TILE_M][TILE_V];
#pragma GCC unroll 6
    for (uint32_t m = 0; m < n_row; m++)
#pragma GCC unroll 4
        for (uint32_t v = 0; v < n_vec; v++)
            acc[m][v] = vf_load(c + m * o->c_stride + v * VW);
    for (uint32_t k = 0; k < o->k; k++, a += o->a_k, b += o->b_stride) {
        vf bv[TILE_V];
#pragma GCC unroll 4
        for (uint32_t v = 0; v < n_vec; v++)
            bv[v] = vf_load(b + v * VW);
#pragma GCC unroll 6
        for (uint32_t m = 0; m < n_row; m++) {
            float am = a[m * o->a_m];
            vf av = vf_set1(scaled ? o->scale * am : am);
#pragma GCC unroll 4
            for (uint32_t v = 0; v < n_vec; v++)
                acc[m][v] = vf_fma(av, bv[v], acc[m][v]);
        }
    }
#pragma GCC unroll 6
    for (uint32_t m = 0; m < n_row; m++)
#pragma GCC unroll 4
        for (uint32_t v = 0; v < n_vec; v++)
            vf_store(c + m * o->c_stride + v * VW, acc[m][v]);
}

static void outer_tail(const struct outer *o, float *c, const float *a, const float *b,
                       uint32_t n_row, uint32_t n)
{
    for (uint32_t m = 0; m < n_row; m++) {
        vf acc = vf_load_n(c + m * o->c_stride, n, 0);
        for (uint32_t k = 0; k < o->k; k++) {
            float am = a[m * o->a_m + k * o->a_k];
            vf bv = vf_load_n(b + k * o->b_stride, n, 0);
            acc = vf_fma(vf_set1(o->scale != 1 ? o->scale * am : am), bv, acc);
        }
        vf_store_n(c + m * o->c_stride, n, acc);
    }
}

INLINE void outer_rows(const struct outer *o, float *c, const float *a, const uint32_t n_row,
                       const bool scaled)
{
    uint32_t n = 0;
    for (; n + TILE_V * VW <= o->n; n += TILE_V * VW)
        outer_tile(o, c + n, a, o->b + n, n_row, TILE_V, scaled);
    for (; n + VW <= o->n; n += VW)
        outer_tile(o, c + n, a, o->b + n, n_row, 1, scaled);
    if (n < o->n)
        outer_tail(o, c + n, a, o->b + n, n_row, o->n - n);
}

INLINE void outer_all(const struct outer *o, const bool scaled)
{
    for (uint32_t m = 0; m < o->m; m += TILE_M) {
        float *c = o->c + m * o->c_stride;
        const float *a = o->a + m * o->a_m;
        switch (o->m - m) {
        case 1:
            outer_rows(o, c, a, 1, scaled);
            break;
        case 2:
            outer_rows(o, c, a, 2, scaled);
            break;
        case 3:
            outer_rows(o, c, a, 3, scaled);
            break;
        case 4:
            outer_rows(o, c, a, 4, scaled);
            break;
        case 5:
            outer_rows(o, c, a, 5, scaled);
            break;
        default:
            outer_rows(o, c, a, TILE_M, scaled);
        }
    }
}

void ISA(outer)(const struct outer *o)
{
    if (o->scale != 1)
        outer_all(o, true);
    else
        outer_all(o, false);
}

/* ---- panels ---- */

#if defined(__AVX512BF16__)
#define NATIVE(dtype) ((dtype) == DTYPE_BF16)
#else
#define NATIVE(dtype) false
#endif

size_t ISA(panel_bytes)(enum dtype dtype, uint32_t n)
{
    return PANEL_COLS * (NATIVE(dtype) ? 2 * (size_t)(n + n % 2) : 4 * (size_t)n);
}

size_t ISA(panel_row_bytes)(enum dtype dtype, uint32_t n)
{
    return (NATIVE(dtype) ? 2 : 4) * (size_t)(n + n % 2);
}

void ISA(panel_row)(char *dst, const float *dy, uint32_t n, enum dtype dtype)
{
#if defined(__AVX512BF16__)
    if (NATIVE(dtype)) {
        uint16_t *to = (uint16_t *)(void *)dst;
        row_to_bf16(to, dy, n);
        if (n % 2)
            to[n] = 0;
        return;
    }
#endif
    float *to = (float *)(void *)dst;
    for (uint32_t i = 0; i < n; i++)
        to[i] = dtype == DTYPE_BF16 ? bf16_round(dy[i]) : dy[i];
}

static void pack_wide(float *out, const struct panel *p, uint32_t n_col)
{
    const size_t item = dtype_bytes(p->dtype);
    for (uint32_t r = 0; r < p->n; r++, out += PANEL_COLS) {
        const char *row = p->w + ((size_t)(p->n0 + r) * p->d_in + p->k0) * item;
        if (p->dtype == DTYPE_F32)
            memcpy(out, row, n_col * sizeof(*out));
        else
            for (uint32_t i = 0; i < n_col; i++)
                out[i] = elem_load(row, DTYPE_BF16, i);
        memset(out + n_col, 0, (PANEL_COLS - n_col) * sizeof(*out));
    }
}

#if defined(__AVX512BF16__)
/* 16 columns of two rows, side by side. */
INLINE __m512i pair_up(const char *lo, const char *hi, __mmask16 live)
{
    __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(live, lo));
    __m512i b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(live, hi));
    return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

static void pack_pairs(char *out, const struct panel *p, uint32_t n_col)
{
    const size_t stride = 2 * (size_t)p->d_in;
    const char *row = p->w + p->n0 * stride + 2 * (size_t)p->k0;
    __mmask16 live[4];
    for (uint32_t v = 0; v < 4; v++)
        live[v] = n_col >= (v + 1) * VW ? 0xffff
                  : n_col > v * VW      ? (__mmask16)((1u << (n_col - v * VW)) - 1)
                                        : 0;
    for (uint32_t r = 0; r < p->n; r += 2, row += 2 * stride, out += 4 * PANEL_COLS) {
        const bool both = r + 1 < p->n;
#pragma GCC unroll 4
        for (uint32_t v = 0; v < 4; v++)
            _mm512_storeu_si512(out + v * 64,
                                pair_up(row + v * 32, row + stride * both + v * 32, live[v]));
        if (!both)
            for (uint32_t v = 0; v < PANEL_COLS; v++)
                memset(out + 4 * v + 2, 0, 2);
    }
}

/* 16 rows of W, 16 pairs of k each, become 16 pairs of 16 outputs. */
INLINE void turn_block(char *out, const __m512i r[16])
{
    __m512i a[16], b[16];
#pragma GCC unroll 8
    for (uint32_t i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 16; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    /* b[4 g + c]: pairs c, c + 4, c + 8, c + 12 of rows 4 g .. 4 g + 3, a 128-bit lane each. */
#pragma GCC unroll 4
    for (uint32_t c = 0; c < 4; c++) {
        __m512i lo01 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x44);
        __m512i hi01 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xee);
        __m512i lo23 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x44);
        __m512i hi23 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xee);
        char *to = out + c * (4 * PANEL_COLS);
        _mm512_storeu_si512(to, _mm512_shuffle_i32x4(lo01, lo23, 0x88));
        _mm512_storeu_si512(to + 16 * PANEL_COLS, _mm512_shuffle_i32x4(lo01, lo23, 0xdd));
        _mm512_storeu_si512(to + 32 * PANEL_COLS, _mm512_shuffle_i32x4(hi01, hi23, 0x88));
        _mm512_storeu_si512(to + 48 * PANEL_COLS, _mm512_shuffle_i32x4(hi01, hi23, 0xdd));
    }
}

void ISA(panel_turn)(void *panel, const struct panel *p, uint32_t n_k)
{
    const size_t stride = 2 * (size_t)p->d_in;
    char *out = panel;
    /* The next 64 rows, in the order of their addresses. */
    const char *next = p->w + (p->n0 + PANEL_COLS) * stride + (size_t)p->k0 / 32 * 64 * PANEL_COLS;
    for (uint32_t k = 0; k < n_k; k += 2 * VW, out += 16 * 4 * PANEL_COLS) {
        for (uint32_t i = 0; i < PANEL_COLS; i++, next += 64)
            __builtin_prefetch(next, 0, 2);
        const uint32_t left = n_k - k;
        const __mmask32 live = left < 2 * VW ? (1u << left) - 1 : UINT32_MAX;
        for (uint32_t v = 0; v < PANEL_COLS / VW; v++) {
            __m512i r[16];
            const char *row = p->w + (p->n0 + v * VW) * stride + 2 * (size_t)(p->k0 + k);
#pragma GCC unroll 16
            for (uint32_t i = 0; i < 16; i++)
                r[i] = v * VW + i < p->n ? _mm512_maskz_loadu_epi16(live, row + i * stride)
                                         : _mm512_setzero_si512();
            turn_block(out + v * 64, r);
        }
    }
}

/* ahead: the next line behind the panel to fetch; each step of n_tile tiles fetches 4 / n_tile, so
 * that what lies there has come when the last one ends. NULL: none. */
struct pair_fetch {
    const char *ahead;
    uint32_t n_tile, due;
};

INLINE void pair_tile(const struct panel_product *p, float *c, const char *x, struct pair_fetch *f,
                      const uint32_t n_row)
{
    __m512 acc[TILE_M][4];
    const char *b = p->panel, *ahead = f->ahead;
    const size_t c_stride = p->c_stride;
    const uint32_t n_tile = f->n_tile;
    uint32_t due = f->due;
    const uint32_t pairs = (p->n + 1) / 2;
    const __mmask16 go_on = p->begin ? 0 : 0xffff;
#pragma GCC unroll 6
    for (uint32_t m = 0; m < n_row; m++)
#pragma GCC unroll 4
        for (uint32_t v = 0; v < 4; v++)
            acc[m][v] = _mm512_maskz_loadu_ps(go_on, c + m * c_stride + v * VW);
#pragma GCC unroll 6
    for (uint32_t m = 0; m < n_row; m++)
#pragma GCC unroll 4
        for (uint32_t v = 0; v < 4; v++)
            __builtin_prefetch(c + m * c_stride + v * VW, 1, 3);
    for (uint32_t k = 0; k < pairs; k++, b += 4 * PANEL_COLS) {
        __m512bh bv[4];
        if (ahead)
            for (due += 4; due >= n_tile; due -= n_tile, ahead += 64)
                __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 4
        for (uint32_t v = 0; v < 4; v++)
            bv[v] = (__m512bh)_mm512_loadu_si512(b + v * 64);
#pragma GCC unroll 6
        for (uint32_t m = 0; m < n_row; m++) {
            int32_t two;
            memcpy(&two, x + m * p->x_stride_bytes + 4 * (size_t)k, sizeof(two));
            __m512bh xv = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 4
            for (uint32_t v = 0; v < 4; v++)
                acc[m][v] = _mm512_dpbf16_ps(acc[m][v], bv[v], xv);
        }
    }
#pragma GCC unroll 6
    for (uint32_t m = 0; m < n_row; m++)
#pragma GCC unroll 4
        for (uint32_t v = 0; v < 4; v++)
            _mm512_storeu_ps(c + m * c_stride + v * VW, acc[m][v]);
    f->ahead = ahead;
    f->due = due;
}

static void pair_rows(const struct panel_product *p, float *c, const char *x, struct pair_fetch *f,
                      uint32_t n_row)
{
    switch (n_row) {
    case 1:
        return pair_tile(p, c, x, f, 1);
    case 2:
        return pair_tile(p, c, x, f, 2);
    case 3:
        return pair_tile(p, c, x, f, 3);
    case 4:
        return pair_tile(p, c, x, f, 4);
    case 5:
        return pair_tile(p, c, x, f, 5);
    default:
        return pair_tile(p, c, x, f, TILE_M);
    }
}

/* A panel of fewer columns than a tile's: through a whole one beside c. */
static void pair_rows_narrow(const struct panel_product *p, float *c, const char *x,
                             struct pair_fetch *f, uint32_t n_row)
{
    float part[TILE_M][PANEL_COLS] = {{0}};
    struct panel_product q = *p;
    q.c_stride = PANEL_COLS;
    for (uint32_t i = 0; i < n_row && !p->begin; i++)
        memcpy(part[i], c + i * p->c_stride, p->n_col * sizeof(*c));
    pair_rows(&q, part[0], x, f, n_row);
    for (uint32_t i = 0; i < n_row; i++)
        memcpy(c + i * p->c_stride, part[i], p->n_col * sizeof(*c));
}

static void pair_product(const struct panel_product *p)
{
    struct pair_fetch f = {p->ahead, (p->m + TILE_M - 1) / TILE_M, 0};
    for (uint32_t m = 0, i = 0, n_row; m < p->m; m += n_row, i++) {
        n_row = (p->m - m + f.n_tile - i - 1) / (f.n_tile - i); /* nearly equal heights */
        const char *x = p->x + m * p->x_stride_bytes;
        float *c = p->c + m * p->c_stride;
        if (p->n_col == PANEL_COLS)
            pair_rows(p, c, x, &f, n_row);
        else
            pair_rows_narrow(p, c, x, &f, n_row);
    }
}
#endif

void ISA(panel_pack)(void *out, const struct panel *p)
{
    uint32_t left = p->d_in - p->k0, n_col = left < PANEL_COLS ? left : PANEL_COLS;
#if defined(__AVX512BF16__)
    if (NATIVE(p->dtype)) {
        pack_pairs(out, p, n_col);
        return;
    }
#endif
    pack_wide(out, p, n_col);
}

void ISA(panel_product)(const struct panel_product *p)
{
#if defined(__AVX512BF16__)
    if (NATIVE(p->dtype)) {
        pair_product(p);
        return;
    }
#endif
    for (uint32_t m = 0; p->begin && m < p->m; m++)
        memset(p->c + m * p->c_stride, 0, p->n_col * sizeof(*p->c));
    struct outer o = {.c = p->c,
                      .c_stride = p->c_stride,
                      .a = (const float *)(const void *)p->x,
                      .a_m = p->x_stride_bytes / sizeof(float),
                      .a_k = 1,
                      .b = p->panel,
                      .b_stride = PANEL_COLS,
                      .scale = 1,
                      .m = p->m,
                      .n = p->n_col,
                      .k = p->n};
    ISA(outer)(&o);
}
