/* One value of a vector's lanes, each by one fixed tree. */
#ifndef RS_KERNELS_CPU_REDUCE_H
#define RS_KERNELS_CPU_REDUCE_H

#include "kernels/cpu/vec.h"

/* Lanes i and i + w/2 are added, w halving: one tree for every caller. */
INLINE float vf_sum(vf v)
{
#if VW >= 8
#if VW == 16
    __m256 h =
        _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    __m256 h = (__m256)v;
#endif
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
#else
    return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

INLINE float vf_top(vf v)
{
#if VW >= 8
#if VW == 16
    __m256 h =
        _mm256_max_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    __m256 h = (__m256)v;
#endif
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
#else
    float lo = v[0] > v[2] ? v[0] : v[2], hi = v[1] > v[3] ? v[1] : v[3];
    return lo > hi ? lo : hi;
#endif
}

/* out[i] = sum of the lanes of v_i; every element is summed by the same tree. */
INLINE void vf_sum4(float out[4], vf a, vf b, vf c, vf d)
{
#if VW == 16
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b),
                              _mm512_unpackhi_ps((__m512)a, (__m512)b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps((__m512)c, (__m512)d),
                              _mm512_unpackhi_ps((__m512)c, (__m512)d));
    __m512d lo = _mm512_unpacklo_pd((__m512d)ab, (__m512d)cd);
    __m512d hi = _mm512_unpackhi_pd((__m512d)ab, (__m512d)cd);
    __m512 s = _mm512_add_ps((__m512)lo, (__m512)hi);
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
#elif VW == 8
    __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps((__m256)a, (__m256)b),
                              _mm256_unpackhi_ps((__m256)a, (__m256)b));
    __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps((__m256)c, (__m256)d),
                              _mm256_unpackhi_ps((__m256)c, (__m256)d));
    __m256d lo = _mm256_unpacklo_pd((__m256d)ab, (__m256d)cd);
    __m256d hi = _mm256_unpackhi_pd((__m256d)ab, (__m256d)cd);
    __m256 h = _mm256_add_ps((__m256)lo, (__m256)hi);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
#else
    out[0] = (a[0] + a[2]) + (a[1] + a[3]);
    out[1] = (b[0] + b[2]) + (b[1] + b[3]);
    out[2] = (c[0] + c[2]) + (c[1] + c[3]);
    out[3] = (d[0] + d[2]) + (d[1] + d[3]);
#endif
}

#endif
