/* What sampling and scoring share on the device: the order of logits as integers, a tile of the
 * vocabulary in a warp's registers, and log-sum-exp in one arithmetic, so that a score equals the
 * log-probability that sampling reports, bit for bit.
 *
 * Tile      SCORE_TILE (1024) logits belong to one warp: lane l holds elements 128 q + 4 l + c
 * Order     a key is a u32 whose ascending order is the descending order of logits; NaN counts as
 *           -inf, -0 as 0; candidates are compared by (key, id)
 * lse       per tile, f32: max, then the sum of e^(x - max) in one fixed order; over the tiles,
 *           f64: sums scaled to the row's max, lane by lane, then a butterfly; depends on n_vocab
 *           alone
 * Included  by .cu files only */
#ifndef RS_KERNELS_CUDA_SAMPLE_CUH
#define RS_KERNELS_CUDA_SAMPLE_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/head.h"

#define TILE_QUADS  (SCORE_TILE / (4 * LANES)) /* 16-byte groups of a lane */
#define LANE_LOGITS (4 * TILE_QUADS)
#define LOG2E       1.4426950408889634 /* f64 */
#define KEY_NONE    0xffffffffu        /* behind every logit */
#define KEY_LAST    0xff800000u        /* of -inf */

/* ---- bits ---- */

DEVICE uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof(u));
    return u;
}
DEVICE float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}
DEVICE uint32_t logit_key(float l)
{
    uint32_t u = l == l ? bits_of(l + 0.0f) : KEY_LAST; /* + 0: no -0 */
    return u >> 31 ? u : ~u & 0x7fffffffu;
}
DEVICE float key_logit(uint32_t key)
{
    return float_of(key >> 31 ? key : ~key & 0x7fffffffu);
}

DEVICE uint32_t bit_count(uint32_t u)
{
#ifdef __CUDA_ARCH__
    return (uint32_t)__popc(u);
#else
    return (uint32_t)__builtin_popcount(u);
#endif
}
/* a - b * c in two roundings, as a host without fused multiply-add does it. */
DEVICE float sub_product(float a, float b, float c)
{
#ifdef __CUDA_ARCH__
    return __fsub_rn(a, __fmul_rn(b, c));
#else
    return a - b * c;
#endif
}

/* ---- warp operations on wider types ---- */

DEVICE uint64_t warp_shfl_u64(uint64_t v, uint32_t lane)
{
    uint32_t lo = warp_shfl((uint32_t)v, lane), hi = warp_shfl((uint32_t)(v >> 32), lane);
    return (uint64_t)hi << 32 | lo;
}
DEVICE uint32_t warp_min_u32(uint32_t v)
{
    UNROLL
    for (uint32_t m = LANES / 2; m; m /= 2) {
        uint32_t other = warp_shfl_xor(v, m);
        v = other < v ? other : v;
    }
    return v;
}
DEVICE uint64_t warp_xor_u64(uint64_t v, uint32_t mask)
{
    uint32_t lo = warp_shfl_xor((uint32_t)v, mask), hi = warp_shfl_xor((uint32_t)(v >> 32), mask);
    return (uint64_t)hi << 32 | lo;
}
DEVICE uint64_t warp_min_u64(uint64_t v)
{
    UNROLL
    for (uint32_t m = LANES / 2; m; m /= 2) {
        uint64_t other = warp_xor_u64(v, m);
        v = other < v ? other : v;
    }
    return v;
}
DEVICE uint64_t warp_sum_u64(uint64_t v)
{
    UNROLL
    for (uint32_t m = LANES / 2; m; m /= 2)
        v += warp_xor_u64(v, m);
    return v;
}
DEVICE double warp_sum_f64(double v)
{
    UNROLL
    for (uint32_t m = LANES / 2; m; m /= 2) {
        uint64_t u;
        double other;
        memcpy(&u, &v, sizeof(u));
        u = warp_xor_u64(u, m);
        memcpy(&other, &u, sizeof(other));
        v += other;
    }
    return v;
}

/* ---- a tile ---- */

/* Four logits from x[i] on, -inf behind n. aligned: x is 16-byte aligned (i is a multiple of 4). */
DEVICE void read_quad(float v[4], const float *x, uint32_t i, uint32_t n, bool aligned)
{
    if (aligned && i + 4 <= n) {
        uint4 u = ldg_16(x + i);
        v[0] = float_of(u.x);
        v[1] = float_of(u.y);
        v[2] = float_of(u.z);
        v[3] = float_of(u.w);
    } else {
        UNROLL
        for (uint32_t c = 0; c < 4; c++)
            v[c] = i + c < n ? x[i + c] : -INFINITY;
    }
}
DEVICE bool is_aligned_16(const float *x)
{
    return ((uintptr_t)x & 15u) == 0;
}
DEVICE void tile_read(float v[LANE_LOGITS], const float *x, uint32_t n)
{
    bool aligned = is_aligned_16(x);
    UNROLL
    for (uint32_t q = 0; q < TILE_QUADS; q++)
        read_quad(v + 4 * q, x, 4 * (q * LANES + lane_id()), n, aligned);
}

/* Whole warp: best key and sum of a tile. All -inf or NaN: sum 0. */
DEVICE void tile_lse(const float v[LANE_LOGITS], uint32_t *key, float *sum)
{
    float max = -INFINITY, s[4] = {0, 0, 0, 0};
    UNROLL
    for (uint32_t i = 0; i < LANE_LOGITS; i++)
        max = fmaxf(max, v[i]);
    max = warp_max(max);
    if (max > -INFINITY)
        UNROLL
    for (uint32_t i = 0; i < LANE_LOGITS; i++)
        s[i % 4] += fast_exp2((v[i] - max) * (float)LOG2E);
    *key = logit_key(max);
    *sum = warp_sum((s[0] + s[1]) + (s[2] + s[3]));
}

/* ---- a row ---- */

struct row_sum {
    double max, sum;
};

/* Whole warp, every lane the same. tile [n_tile] of one row. */
DEVICE struct row_sum row_lse(const struct tile_stat *tile, uint32_t n_tile)
{
    struct row_sum l = {0, 0};
    uint32_t best = KEY_NONE;
    for (uint32_t i = lane_id(); i < n_tile; i += LANES)
        best = tile[i].key < best ? tile[i].key : best;
    l.max = (double)key_logit(warp_min_u32(best));
    for (uint32_t i = lane_id(); i < n_tile; i += LANES)
        if (tile[i].key != KEY_LAST)
            l.sum = fma((double)tile[i].sum, exp2(((double)key_logit(tile[i].key) - l.max) * LOG2E),
                        l.sum);
    l.sum = warp_sum_f64(l.sum);
    return l;
}
DEVICE float lse_logprob(const struct row_sum *l, float logit)
{
    return (float)((double)logit - (l->max + log(l->sum)));
}

#endif
