/* The vector of the instruction path this file is compiled for: VW floats in a vf. Arithmetic is
 * lane by lane, reductions are fixed trees, and a tail is a full vector with zero (or given) lanes,
 * so the bits of an element do not depend on where in a row it stands. Loads and stores take any
 * alignment. Include from the files of this folder only. */
#ifndef RS_KERNELS_CPU_VEC_H
#define RS_KERNELS_CPU_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VW 16
#elif defined(__AVX2__)
#define VW 8
#else
#define VW 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * VW)));
typedef int32_t vi __attribute__((vector_size(4 * VW)));
typedef uint16_t vh __attribute__((vector_size(2 * VW)));

INLINE vf vf_set1(float f)
{
    return f - (vf){0};
}

INLINE vf vf_load(const void *p)
{
    vf v;
    memcpy(&v, p, sizeof(v));
    return v;
}

INLINE void vf_store(void *p, vf v)
{
    memcpy(p, &v, sizeof(v));
}

/* First n lanes (n < VW), the others `fill`. */
INLINE vf vf_load_n(const void *p, uint32_t n, float fill)
{
#if VW == 16
    return (vf)_mm512_mask_loadu_ps((__m512)vf_set1(fill), (__mmask16)((1u << n) - 1), p);
#else
    float tmp[VW];
    for (uint32_t i = 0; i < VW; i++)
        tmp[i] = fill;
    memcpy(tmp, p, n * sizeof(float));
    return vf_load(tmp);
#endif
}

INLINE void vf_store_n(void *p, uint32_t n, vf v)
{
#if VW == 16
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
    memcpy(p, &v, n * sizeof(float));
#endif
}

INLINE vf vf_widen(vh h)
{
#if VW == 16
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#elif VW == 8
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
#else
    return (vf)(__builtin_convertvector(h, vi) << 16);
#endif
}

/* VW bf16 values as f32. */
INLINE vf vf_load_bf16(const void *p)
{
    vh h;
    memcpy(&h, p, sizeof(h));
    return vf_widen(h);
}

INLINE vf vf_load_bf16_n(const void *p, uint32_t n)
{
    uint16_t tmp[VW] = {0};
    memcpy(tmp, p, n * sizeof(uint16_t));
    return vf_load_bf16(tmp);
}

#if defined(__AVX512BF16__)
/* to[i] = bf16 of f[i], rounded as bf16_from_f32 does, but what is below the normal numbers becomes
 * 0: so it is for the products that read it. */
INLINE void row_to_bf16(uint16_t *to, const float *f, uint32_t n)
{
    uint32_t i = 0;
    for (; i + VW <= n; i += VW)
        _mm256_storeu_si256((void *)(to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(f + i)));
    if (i < n) {
        const __mmask16 live = (__mmask16)((1u << (n - i)) - 1);
        _mm256_mask_storeu_epi16(to + i, live,
                                 (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(live, f + i)));
    }
}
#endif

/* a * b + c; one rounding where the path has FMA. */
INLINE vf vf_fma(vf a, vf b, vf c)
{
#if VW == 16
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif VW == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE vf vf_select(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

INLINE vf vf_max(vf a, vf b)
{
#if VW == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif VW == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return vf_select(a > b, a, b);
#endif
}

/* e^x, relative error below 3e-7, x clamped to 88; 0 below -87 (and at -inf). 2^n times a
 * polynomial on [-ln2/2, ln2/2], n rounded by adding 1.5 * 2^23, whose low bits then are n. */
INLINE vf vf_exp(vf x)
{
    const vf magic = vf_set1(12582912.0f), top = vf_set1(88.0f), bottom = vf_set1(-87.0f);
    vi small = x < bottom;
    vf c = vf_select(x > top, top, vf_select(small, bottom, x));
    vf t = vf_fma(c, vf_set1(1.44269504088896341f), magic);
    vf n = t - magic;
    vf r = vf_fma(n, vf_set1(-0.693145751953125f), c);
    r = vf_fma(n, vf_set1(-1.42860682030941723e-6f), r);
    vf p = vf_set1(1.0f / 5040);
    p = vf_fma(p, r, vf_set1(1.0f / 720));
    p = vf_fma(p, r, vf_set1(1.0f / 120));
    p = vf_fma(p, r, vf_set1(1.0f / 24));
    p = vf_fma(p, r, vf_set1(1.0f / 6));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    vf e = (vf)((vi)p + ((vi)t << 23));
    return vf_select(small, (vf){0}, e);
}

#endif
