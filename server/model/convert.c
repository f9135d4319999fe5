/* Scalar loops that the compiler vectorises; loading is bound by the disk, not by these. */
#include "server/model/convert.h"
#include "kernels/bf16.h"

#include <string.h>

static float bits_to_f32(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31)
        return bits_to_f32(sign | 0x7f800000 | mantissa << 13);
    if (exponent != 0)
        return bits_to_f32(sign | (exponent + 112) << 23 | mantissa << 13);
    float v = (float)mantissa * (1.0f / 16777216.0f); /* subnormal: mantissa * 2^-24, exact */
    return sign ? -v : v;
}

float convert_load(const void *in, enum dtype dtype, size_t index)
{
    const uint8_t *p = (const uint8_t *)in + index * dtype_bytes(dtype);
    uint32_t word;
    uint16_t half;
    if (dtype == DTYPE_F32) {
        memcpy(&word, p, sizeof word);
        return bits_to_f32(word);
    }
    memcpy(&half, p, sizeof half);
    return dtype == DTYPE_BF16 ? bits_to_f32((uint32_t)half << 16) : f16_to_f32(half);
}

void convert_elements(void *out, enum dtype out_dtype, const void *in, enum dtype in_dtype,
                      size_t n)
{
    if (out_dtype == in_dtype) {
        memcpy(out, in, n * dtype_bytes(in_dtype));
    } else if (out_dtype == DTYPE_F32) {
        for (size_t i = 0; i < n; i++)
            ((float *)out)[i] = convert_load(in, in_dtype, i);
    } else {
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)out)[i] = bf16_from_f32(convert_load(in, in_dtype, i));
    }
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

const char *convert_dtype_name(enum dtype t)
{
    return t == DTYPE_F32 ? "f32" : t == DTYPE_BF16 ? "bf16" : "f16";
}
