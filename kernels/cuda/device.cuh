/* The device vocabulary: every instruction the kernels use beyond plain C, by a name that has two
 * bodies. Here the real ones, inline PTX for sm_90; tests/emulation/emu.h has the emulated ones,
 * chosen when RS_EMULATION names that header. Kernels use nothing outside of it but threadIdx,
 * blockIdx, blockDim, gridDim and float arithmetic. Shared memory is dynamic only; pointers given
 * to ldmatrix and cp_async are 16-byte aligned.
 *
 * Use       static KERNEL(256, 2) void rows(struct args a) { SMEM(buf); ... block_sync(); ... }
 *           LAUNCH(rows, grid, 256, smem_bytes, c->stream, a);  return gpu_launched("rows");
 * Included  by .cu files only. */
#ifndef RS_KERNELS_CUDA_DEVICE_CUH
#define RS_KERNELS_CUDA_DEVICE_CUH

#include <math.h>
#include <stdint.h>

#define LANES 32 /* threads of a warp */

#ifdef RS_EMULATION
#include RS_EMULATION
#include "kernels/bf16.h"
#else
#include <cuda_runtime.h>
#include "kernels/bf16.h"

/* threads of a block, and blocks that an SM must be able to hold: without the second bound the
 * compiler squeezes kernels into 64 registers. */
#define KERNEL(threads, blocks_per_sm) __global__ __launch_bounds__(threads, blocks_per_sm)
#define DEVICE                         static __device__ __forceinline__
#define HOST_DEVICE                    static __host__ __device__ __forceinline__
#define UNROLL                         _Pragma("unroll")
#define NO_UNROLL                      _Pragma("unroll 1")

/* ---- launches ---- */

/* pdl: the kernel may start while its predecessor ends; it calls pdl_wait() before it touches
 * anything the predecessor wrote or reads. */
template <class... P, class... A>
static inline void device_launch(bool pdl, void (*kernel)(P...), dim3 grid, dim3 block,
                                 size_t smem_bytes, void *stream, A... args)
{
    cudaLaunchConfig_t cfg = {};
    cudaLaunchAttribute attr[1] = {};
    attr[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attr[0].val.programmaticStreamSerializationAllowed = 1;
    cfg.gridDim = grid;
    cfg.blockDim = block;
    cfg.dynamicSmemBytes = smem_bytes;
    cfg.stream = (cudaStream_t)stream;
    cfg.attrs = attr;
    cfg.numAttrs = pdl ? 1 : 0;
    (void)cudaLaunchKernelEx(&cfg, kernel, (P)args...); /* gpu_launched() tells */
}
#define LAUNCH(kernel, grid, block, smem_bytes, stream, ...)                                       \
    device_launch(false, kernel, dim3(grid), dim3(block), smem_bytes, stream, __VA_ARGS__)
#define LAUNCH_PDL(kernel, grid, block, smem_bytes, stream, ...)                                   \
    device_launch(true, kernel, dim3(grid), dim3(block), smem_bytes, stream, __VA_ARGS__)

#define SMEM(name)                                                                                 \
    extern __shared__ __align__(128) unsigned char rs_smem[];                                      \
    char *name = (char *)rs_smem

/* ---- threads ---- */

#define lane_id()    (threadIdx.x & (LANES - 1u))
#define warp_id()    (threadIdx.x / LANES)
#define block_sync() __syncthreads()
#define warp_sync()  __syncwarp()

DEVICE float warp_shfl(float v, uint32_t lane)
{
    return __shfl_sync(0xffffffffu, v, (int)lane);
}
DEVICE uint32_t warp_shfl(uint32_t v, uint32_t lane)
{
    return __shfl_sync(0xffffffffu, v, (int)lane);
}
DEVICE float warp_shfl_xor(float v, uint32_t mask)
{
    return __shfl_xor_sync(0xffffffffu, v, (int)mask);
}
DEVICE uint32_t warp_shfl_xor(uint32_t v, uint32_t mask)
{
    return __shfl_xor_sync(0xffffffffu, v, (int)mask);
}
DEVICE uint32_t warp_ballot(bool x)
{
    return __ballot_sync(0xffffffffu, x);
}

/* ---- memory ---- */

DEVICE uint32_t smem_addr(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}
DEVICE uint4 ldg_16(const void *p)
{
    return *(const uint4 *)p;
}
/* Read once, by nobody else: does not displace what L1 holds. Not for what this kernel writes. */
DEVICE uint4 ldg_stream_16(const void *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
/* smem holds garbage from here to the wait. !valid: zeros, and gmem is not read. */
DEVICE void cp_async_16(void *smem, const void *gmem, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_addr(smem)), "l"(gmem),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
DEVICE void cp_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Until at most n of this thread's groups are under way; others see the bytes after a barrier. */
template <int n> DEVICE void cp_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}
DEVICE uint32_t atomic_add_u32(uint32_t *p, uint32_t v)
{
    return atomicAdd(p, v);
}
DEVICE void fence_device(void)
{
    __threadfence();
}
DEVICE void pdl_wait(void)
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
DEVICE void pdl_trigger(void)
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

#include "kernels/cuda/device_mma.cuh"
#endif

/* ---- the same text for both ---- */

/* For gpu_smem_allow: every kernel above 48 KB is in its file's list, which the backend's creation
 * goes through. */
template <class... P> static inline const void *kernel_of(void (*kernel)(P...))
{
    return (const void *)kernel;
}

typedef uint16_t bf16_t;

DEVICE uint32_t bf16x2_pack(float lo, float hi)
{
#ifdef __CUDA_ARCH__
    uint32_t v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(hi), "f"(lo));
    return v;
#else
    return bf16_from_f32(lo) | (uint32_t)bf16_from_f32(hi) << 16;
#endif
}
DEVICE float bf16x2_lo(uint32_t v)
{
    return bf16_to_f32((bf16_t)(v & 0xffffu));
}
DEVICE float bf16x2_hi(uint32_t v)
{
    return bf16_to_f32((bf16_t)(v >> 16));
}

#endif
