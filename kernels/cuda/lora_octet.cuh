/* What the finishes do with eight neighbouring columns of a row, an octet: load, store, add, fetch
 * early, square for the telemetry.
 * Included  by lora_expand.cuh. */
#ifndef RS_KERNELS_CUDA_LORA_OCTET_CUH
#define RS_KERNELS_CUDA_LORA_OCTET_CUH

#include "kernels/cuda/device.cuh"

#define EXPAND_WARPS   8
#define EXPAND_THREADS (EXPAND_WARPS * LANES)

struct octet {
    float v[8];
};

DEVICE struct octet octet_load(const float *p) /* 16-byte aligned */
{
    const float4 a = *(const float4 *)p, b = *(const float4 *)(p + 4);
    const struct octet o = {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
    return o;
}
DEVICE void octet_store(float *p, const struct octet *o)
{
    *(float4 *)p = make_float4(o->v[0], o->v[1], o->v[2], o->v[3]);
    *(float4 *)(p + 4) = make_float4(o->v[4], o->v[5], o->v[6], o->v[7]);
}
DEVICE void octet_store_bf16(bf16_t *p, const struct octet *o)
{
    *(uint4 *)p = make_uint4(bf16x2_pack(o->v[0], o->v[1]), bf16x2_pack(o->v[2], o->v[3]),
                             bf16x2_pack(o->v[4], o->v[5]), bf16x2_pack(o->v[6], o->v[7]));
}
DEVICE void octet_add(struct octet *o, const struct octet *b)
{
    UNROLL
    for (uint32_t i = 0; i < 8; i++)
        o->v[i] += b->v[i];
}
/* y + bias; bias NULL: y. */
DEVICE void octet_bias(struct octet *y, const float *bias, uint32_t n)
{
    if (bias) {
        const struct octet b = octet_load(bias + n);
        octet_add(y, &b);
    }
}
DEVICE float octet_norm2(const struct octet *o)
{
    float sum = 0;
    UNROLL
    for (uint32_t i = 0; i < 8; i++)
        sum = fmaf(o->v[i], o->v[i], sum);
    return sum;
}

/* An octet on its way while the tensor cores work: it waits in shared memory, where it costs no
 * registers, for the thread that sent for it. A block has EARLY_BYTES for each octet of a
 * thread. */
#define EARLY_BYTES (EXPAND_THREADS * 32)

DEVICE void early_fetch(char *early, const float *p, bool live)
{
    char *to = early + threadIdx.x * 16;
    cp_async_16(to, p, live);
    cp_async_16(to + EARLY_BYTES / 2, p + 4, live);
}
/* After cp_async_wait<0>(). */
DEVICE struct octet early_take(const char *early)
{
    const float4 *at = (const float4 *)(early + threadIdx.x * 16);
    const float4 a = at[0], b = at[EARLY_BYTES / 2 / 16];
    const struct octet o = {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
    return o;
}

/* ---- telemetry ---- */

#define NORM_COLS 128 /* columns of a norm slot: 16 octets, half a warp */

DEVICE double warp_shfl_xor_f64(double v, uint32_t mask)
{
    uint64_t u;
    memcpy(&u, &v, sizeof(u));
    u = (uint64_t)warp_shfl_xor((uint32_t)(u >> 32), mask) << 32 | warp_shfl_xor((uint32_t)u, mask);
    memcpy(&v, &u, sizeof(v));
    return v;
}

/* Adds the half-warp's octets to slot ([2], NULL: nowhere). A slot has one writer in a launch, and
 * launches are in order, so its sum has one order. The whole warp calls. */
DEVICE void norm_add(double *slot, float delta2, float base2)
{
    UNROLL
    for (uint32_t m = 8; m; m /= 2) {
        delta2 += warp_shfl_xor(delta2, m);
        base2 += warp_shfl_xor(base2, m);
    }
    if (slot && lane_id() % 16 == 0) {
        slot[0] += (double)delta2;
        slot[1] += (double)base2;
    }
}

#endif
