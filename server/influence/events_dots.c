/* Dot products of up to eight queries with the 16 events of a key block. A block holds four bytes
 * of each of its events side by side, so that one instruction advances 16 events and no sum ever
 * crosses lanes. i32 sums of exact products: every path gives the same integers.
 *
 * AVX-512 VNNI multiplies unsigned with signed bytes: events are taken + 128, and the sum starts at
 * -128 times the sum of the query. AVX2 multiplies |event| with the query under the event's sign:
 * pairs stay below 2^15 because no byte is -128. */
#include "server/influence/events_impl.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <string.h>

#define GROUPS (EVENTS_HALF / 4)

void events_dots_query(struct events_dots *t, uint32_t q, const int8_t *query, bool both)
{
    t->query[q] = query;
    t->shift[q][0] = t->shift[q][1] = 0;
    for (uint32_t i = 0; i < EVENTS_HALF; i++) {
        t->shift[q][0] -= 128 * query[i];
        t->shift[q][1] -= both ? 128 * query[EVENTS_HALF + i] : 0;
    }
}

static void mark_over(struct events_dots *t, uint32_t q)
{
    uint32_t over = 0;
    for (uint32_t lane = 0; lane < EVENTS_LANES; lane++)
        over |= (uint32_t)(t->dot[q][lane] >= t->min[q] || t->dot1[q][lane] >= t->min1[q]) << lane;
    t->over[q] = (uint16_t)over;
}

static void add_plain(int32_t dot[EVENTS_LANES], const int8_t *k, const int8_t *query)
{
    for (uint32_t g = 0; g < GROUPS; g++) {
        for (uint32_t lane = 0; lane < EVENTS_LANES; lane++) {
            const int8_t *e = k + 64 * g + 4 * lane, *q = query + 4 * g;
            dot[lane] += e[0] * q[0] + e[1] * q[1] + e[2] * q[2] + e[3] * q[3];
        }
    }
}

static void dots_plain(struct events_dots *t, const int8_t *k1, const int8_t *k2)
{
    for (uint32_t q = 0; q < t->n; q++) {
        memset(t->dot1[q], 0, sizeof(t->dot1[q]));
        add_plain(t->dot1[q], k1, t->query[q]);
        memcpy(t->dot[q], t->dot1[q], sizeof(t->dot[q]));
        if (k2)
            add_plain(t->dot[q], k2, t->query[q] + EVENTS_HALF);
        mark_over(t, q);
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static inline __m256i load_four(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof(four));
    return _mm256_set1_epi32(four);
}

__attribute__((target("avx2"))) static void add_avx2(__m256i sum[2], const int8_t *k,
                                                     const int8_t *query)
{
    const __m256i ones = _mm256_set1_epi16(1);
    for (uint32_t g = 0; g < GROUPS; g++) {
        __m256i q = load_four(query + 4 * g);
        for (uint32_t h = 0; h < 2; h++) {
            __m256i e = _mm256_loadu_si256((const __m256i *)(k + 64 * g + 32 * h));
            __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(e), _mm256_sign_epi8(q, e));
            sum[h] = _mm256_add_epi32(sum[h], _mm256_madd_epi16(pairs, ones));
        }
    }
}

__attribute__((target("avx2"))) static void store_avx2(int32_t dot[EVENTS_LANES],
                                                       const __m256i sum[2])
{
    _mm256_storeu_si256((__m256i *)dot, sum[0]);
    _mm256_storeu_si256((__m256i *)(dot + 8), sum[1]);
}

__attribute__((target("avx2"))) static void dots_avx2(struct events_dots *t, const int8_t *k1,
                                                      const int8_t *k2)
{
    for (uint32_t q = 0; q < t->n; q++) {
        __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        add_avx2(sum, k1, t->query[q]);
        store_avx2(t->dot1[q], sum);
        if (k2)
            add_avx2(sum, k2, t->query[q] + EVENTS_HALF);
        store_avx2(t->dot[q], sum);
        mark_over(t, q);
    }
}

#define VNNI    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define VNNI_IN VNNI __attribute__((always_inline)) static inline

VNNI_IN void add_vnni(__m512i *sum, const int8_t *k, const int8_t *const *query, uint32_t half,
                      uint32_t n)
{
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    for (uint32_t g = 0; g < GROUPS; g++) {
        __m512i e = _mm512_xor_si512(_mm512_loadu_si512(k + 64 * g), flip);
        for (uint32_t q = 0; q < n; q++) {
            int32_t four;
            memcpy(&four, query[q] + half + 4 * g, sizeof(four));
            sum[q] = _mm512_dpbusd_epi32(sum[q], e, _mm512_set1_epi32(four));
        }
    }
}

VNNI_IN void some_vnni(struct events_dots *t, const int8_t *k1, const int8_t *k2, uint32_t first,
                       uint32_t n)
{
    __m512i sum[4];
    for (uint32_t q = 0; q < n; q++)
        sum[q] = _mm512_set1_epi32(t->shift[first + q][0]);
    add_vnni(sum, k1, t->query + first, 0, n);
    for (uint32_t q = 0; q < n; q++) {
        _mm512_storeu_si512(t->dot1[first + q], sum[q]);
        t->over[first + q] = _mm512_cmpge_epi32_mask(sum[q], _mm512_set1_epi32(t->min1[first + q]));
        if (k2)
            sum[q] = _mm512_add_epi32(sum[q], _mm512_set1_epi32(t->shift[first + q][1]));
    }
    if (k2)
        add_vnni(sum, k2, t->query + first, EVENTS_HALF, n);
    for (uint32_t q = 0; q < n; q++) {
        _mm512_storeu_si512(t->dot[first + q], sum[q]);
        t->over[first + q] |= _mm512_cmpge_epi32_mask(sum[q], _mm512_set1_epi32(t->min[first + q]));
    }
}

VNNI static void dots_vnni(struct events_dots *t, const int8_t *k1, const int8_t *k2)
{
    uint32_t q = 0;
    for (; q + 4 <= t->n; q += 4)
        some_vnni(t, k1, k2, q, 4);
    for (; q < t->n; q++)
        some_vnni(t, k1, k2, q, 1);
}
#endif

uint32_t events_dots_paths(struct events_dots_path out[3])
{
    uint32_t n = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        out[n++] = (struct events_dots_path){"avx512vnni", dots_vnni};
    if (__builtin_cpu_supports("avx2"))
        out[n++] = (struct events_dots_path){"avx2", dots_avx2};
#endif
    out[n++] = (struct events_dots_path){"plain", dots_plain};
    return n;
}
