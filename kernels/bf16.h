/* bfloat16 <-> f32: the one rounding rule (nearest, ties to even; NaN stays a quiet NaN) that
 * weights, activations, KV and LoRA intermediates share. Loads go through memcpy because mapped
 * tensors have any alignment. Pure. */
#ifndef RS_KERNELS_BF16_H
#define RS_KERNELS_BF16_H

#include "kernels/args.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

KERNEL_FN float bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}

KERNEL_FN uint16_t bf16_from_f32(float f)
{
#ifdef __CUDA_ARCH__
    uint16_t h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
#else
    uint32_t u;
    memcpy(&u, &f, sizeof(u));
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    uint32_t quiet = (u >> 16) | 0x40u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
#endif
}

KERNEL_FN float bf16_round(float f)
{
    return bf16_to_f32(bf16_from_f32(f));
}

/* Element i of a tensor of dtype F32 or BF16 at any alignment, as f32. */
KERNEL_FN float elem_load(const void *data, enum dtype t, size_t i)
{
    if (t == DTYPE_BF16) {
        uint16_t h;
        memcpy(&h, (const char *)data + 2 * i, sizeof(h));
        return bf16_to_f32(h);
    }
    float f;
    memcpy(&f, (const char *)data + 4 * i, sizeof(f));
    return f;
}

KERNEL_FN void elem_store(void *data, enum dtype t, size_t i, float f)
{
    if (t == DTYPE_BF16) {
        uint16_t h = bf16_from_f32(f);
        memcpy((char *)data + 2 * i, &h, sizeof(h));
    } else {
        memcpy((char *)data + 4 * i, &f, sizeof(f));
    }
}

#endif
