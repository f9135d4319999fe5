/* One scalar loop for each pair of types, without calls or branches, so that the compiler
 * vectorises it. */
#include "server/model/convert.h"
#include "kernels/bf16.h"

#include <string.h>

static inline float bits_to_f32(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof(v));
    return v;
}

/* Every case is computed and masks choose, so that a loop over this has no branch. Signed, as the
 * baseline vector instructions compare. */
static inline float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    int32_t rest = (h & 0x7fff) << 13;
    int32_t infinite = -(rest >= 31 << 23), tiny = -(rest < 1 << 23); /* or NaN; or zero */
    float scaled = (float)(h & 1023) * (1.0f / 16777216.0f);          /* mantissa * 2^-24, exact */
    int32_t scaled_bits;
    memcpy(&scaled_bits, &scaled, sizeof(scaled_bits));
    int32_t bits = (rest + (112 << 23)) | (infinite & 0x7f800000);
    return bits_to_f32(sign | (uint32_t)((bits & ~tiny) | (scaled_bits & tiny)));
}

static inline float load_f32(const uint8_t *in, size_t i)
{
    uint32_t word;
    memcpy(&word, in + 4 * i, sizeof(word));
    return bits_to_f32(word);
}

static inline uint16_t load_u16(const uint8_t *in, size_t i)
{
    uint16_t half;
    memcpy(&half, in + 2 * i, sizeof(half));
    return half;
}

static inline float load_bf16(const uint8_t *in, size_t i)
{
    return bits_to_f32((uint32_t)load_u16(in, i) << 16);
}

static inline float load_f16(const uint8_t *in, size_t i)
{
    return f16_to_f32(load_u16(in, i));
}

float convert_load(const void *in, enum dtype dtype, size_t index)
{
    if (dtype == DTYPE_F32)
        return load_f32(in, index);
    return dtype == DTYPE_BF16 ? load_bf16(in, index) : load_f16(in, index);
}

static void to_f32(float *restrict out, const uint8_t *restrict in, enum dtype in_dtype, size_t n)
{
    if (in_dtype == DTYPE_BF16) {
        for (size_t i = 0; i < n; i++)
            out[i] = load_bf16(in, i);
    } else {
        for (size_t i = 0; i < n; i++)
            out[i] = load_f16(in, i);
    }
}

static void to_bf16(uint16_t *restrict out, const uint8_t *restrict in, enum dtype in_dtype,
                    size_t n)
{
    if (in_dtype == DTYPE_F32) {
        for (size_t i = 0; i < n; i++)
            out[i] = bf16_from_f32(load_f32(in, i));
    } else {
        for (size_t i = 0; i < n; i++)
            out[i] = bf16_from_f32(load_f16(in, i));
    }
}

void convert_elements(void *out, enum dtype out_dtype, const void *in, enum dtype in_dtype,
                      size_t n)
{
    if (out_dtype == in_dtype)
        memcpy(out, in, n * dtype_bytes(in_dtype));
    else if (out_dtype == DTYPE_F32)
        to_f32(out, in, in_dtype, n);
    else
        to_bf16(out, in, in_dtype, n);
}

/* The largest magnitude says whether all are finite and whether any is not zero. */
static uint32_t magnitude_max16(const uint8_t *in, size_t n)
{
    int16_t most = 0; /* signed, as the baseline vector instructions compare */
    for (size_t i = 0; i < n; i++) {
        int16_t m = (int16_t)(load_u16(in, i) & 0x7fff);
        most = m > most ? m : most;
    }
    return (uint32_t)most;
}

static uint32_t magnitude_max32(const uint8_t *in, size_t n)
{
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t m;
        memcpy(&m, in + 4 * i, sizeof(m));
        m &= 0x7fffffff;
        most = m > most ? m : most;
    }
    return most;
}

bool convert_scan(const void *in, enum dtype dtype, size_t n, bool *any_nonzero)
{
    static const uint32_t infinite[] = {
        [DTYPE_F32] = 0x7f800000, [DTYPE_BF16] = 0x7f80, [DTYPE_F16] = 0x7c00};
    uint32_t most = dtype == DTYPE_F32 ? magnitude_max32(in, n) : magnitude_max16(in, n);
    *any_nonzero = most != 0;
    return most < infinite[dtype];
}

bool convert_dtype(enum st_dtype stored, enum dtype *out)
{
    if (stored == ST_F32)
        *out = DTYPE_F32;
    else if (stored == ST_BF16)
        *out = DTYPE_BF16;
    else if (stored == ST_F16)
        *out = DTYPE_F16;
    else
        return false;
    return true;
}
