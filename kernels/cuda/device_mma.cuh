/* The part of device.cuh for whole warps: matrix fragments, reductions, approximate functions.
 * Fragments of m16n8k16 (g = lane/4, t = lane%4), two bf16 a word, lower index in the low half:
 *   a[0] (g, 2t..)  a[1] (g+8, 2t..)  a[2] (g, 2t+8..)  a[3] (g+8, 2t+8..)     A [16][16] row-major
 *   b[0] (k 2t.., n g)  b[1] (k 2t+8.., n g)                                   B [16][8]
 *   d[0] (g, 2t)  d[1] (g, 2t+1)  d[2] (g+8, 2t)  d[3] (g+8, 2t+1)             D [16][8] f32
 * Included  by device.cuh only. */
#ifndef RS_KERNELS_CUDA_DEVICE_MMA_CUH
#define RS_KERNELS_CUDA_DEVICE_MMA_CUH

DEVICE void mma_16816(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Lane i gives the address of row i%8 (16 bytes) of matrix i/8; lanes beyond the matrices give
 * anything. Lane (g, t) gets elements 2t, 2t+1 of row g of each matrix; _trans: of column g. */
DEVICE void ldmatrix_x4(uint32_t r[4], const void *smem)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_addr(smem)));
}
DEVICE void ldmatrix_x2(uint32_t r[2], const void *smem)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_addr(smem)));
}
DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void *smem)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_addr(smem)));
}
DEVICE void ldmatrix_x2_trans(uint32_t r[2], const void *smem)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_addr(smem)));
}
/* The 8x8 matrix whose row g is in lanes (g, *), transposed. */
DEVICE uint32_t movmatrix_trans(uint32_t v)
{
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
    return r;
}

/* Every lane gets the result, with the same bits: a butterfly over 16, 8, 4, 2, 1. */
DEVICE float warp_sum(float v)
{
    UNROLL
    for (uint32_t m = LANES / 2; m; m /= 2)
        v += warp_shfl_xor(v, m);
    return v;
}
DEVICE float warp_max(float v)
{
    UNROLL
    for (uint32_t m = LANES / 2; m; m /= 2)
        v = fmaxf(v, warp_shfl_xor(v, m));
    return v;
}

/* 2 ulp or so; 0 for -inf. */
DEVICE float fast_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float fast_rsqrt(float x)
{
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float fast_rcp(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
