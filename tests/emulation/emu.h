/* The device vocabulary (kernels/cuda/device.cuh) for the CPU: the same .cu sources, compiled as
 * C++17, run with every thread a fiber. A fiber runs until it waits at a barrier or a warp
 * operation; the last lane to arrive does the operation for all. Warps and blocks take turns in an
 * order drawn from emu_set_seed. Shared memory is NaN at the start of a block, exactly as large as
 * asked, and private to it (AddressSanitizer sees its ends). Memory accesses happen in this header,
 * in the kernel's own translation unit, so that a sanitizer sees them with the lane that made them;
 * emu.cc holds what no sanitizer needs to see. Barriers are release and acquire for
 * ThreadSanitizer; warp operations that carry no memory order on the device carry none here.
 * Faults of the kernel (divergent barriers or operations, bad addresses) print and abort. */
#ifndef RS_TESTS_EMULATION_EMU_H
#define RS_TESTS_EMULATION_EMU_H

#include "tests/emulation/emu_control.h"

#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <tuple>

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};
#define EMU_VECTOR(name, elem, count, ...)                                                         \
    struct alignas(sizeof(elem) * count) name {                                                    \
        elem __VA_ARGS__;                                                                          \
    };
EMU_VECTOR(uint2, uint32_t, 2, x, y)
EMU_VECTOR(uint4, uint32_t, 4, x, y, z, w)
EMU_VECTOR(float2, float, 2, x, y)
EMU_VECTOR(float4, float, 4, x, y, z, w)
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
    return {x, y, z, w};
}
static inline uint2 make_uint2(uint32_t x, uint32_t y)
{
    return {x, y};
}
static inline float2 make_float2(float x, float y)
{
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

#define KERNEL(threads, blocks_per_sm) /* the bounds matter to nvcc only */
#define DEVICE                         static inline
#define HOST_DEVICE                    static inline
#define UNROLL
#define NO_UNROLL

/* ---- the running thread, and what a lane hands to the runtime ---- */

enum emu_kind {
    EMU_SYNC,
    EMU_SHFL,
    EMU_SHFL_XOR,
    EMU_BALLOT,
    EMU_SUM,
    EMU_MAX,
    EMU_MMA,
    EMU_MATRIX,       /* ldmatrix: in = the lane's row, count matrices */
    EMU_MATRIX_TRANS, /* the same, transposed */
    EMU_MOVMATRIX,
};
struct emu_op {
    enum emu_kind kind;
    int line;
    uint32_t count; /* matrices; the lane or the mask of a shuffle */
    alignas(8) uint32_t in[6];
    union {
        uint32_t out[4];
        float d[4];
    };
};
struct emu_thread {
    dim3 tid;
    uint32_t lane, warp;
    bool waited, triggered; /* has called pdl_wait, pdl_trigger */
};
struct emu_block {
    dim3 bid, bdim, gdim;
    char *smem;
    size_t smem_bytes;
    bool dependent, triggered; /* by LAUNCH_PDL: every thread calls pdl_wait; some has triggered */
};
extern struct emu_thread *emu_self;
extern struct emu_block emu_now;

void emu_block_sync(int line);
void emu_warp_op(struct emu_op *op); /* returns with out filled */
[[noreturn]] void emu_fault(int line, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void emu_check_smem(const void *p, size_t bytes, int line); /* in this block's, aligned */
void emu_fence(void);
/* Device memory that is nobody's: an access is reported. Opened memory is NaN. */
void emu_guard(void *p, size_t bytes);
void emu_open(void *p, size_t bytes);
void emu_copy_begin(void *smem, const void *gmem, int line); /* gmem NULL: zeros */
void emu_copy_commit(void);
/* The oldest copy that is not in the last n groups, or NULL. */
void *emu_copy_next(uint32_t n, const void **gmem);
/* Queued on the stream, or recorded while the stream is being captured (emu_runtime.cc). */
struct emu_grid {
    dim3 grid, block;
    size_t smem_bytes;
    bool dependent;
};
void emu_launch(const void *kernel, const struct emu_grid *g, void *s, std::function<void()> body);

#define threadIdx  (emu_self->tid)
#define blockIdx   (emu_now.bid)
#define blockDim   (emu_now.bdim)
#define gridDim    (emu_now.gdim)
#define lane_id()  (emu_self->lane)
#define warp_id()  (emu_self->warp)
#define SMEM(name) char *name = emu_now.smem

/* Arguments are copied at the launch, as a device launch does: a replay cannot see later values. */
template <class... P, class... A>
static inline void emu_launch_kernel(void (*kernel)(P...), const struct emu_grid &g, void *stream,
                                     A... args)
{
    std::tuple<P...> copy((P)args...);
    emu_launch((const void *)kernel, &g, stream, [kernel, copy] { std::apply(kernel, copy); });
}
static inline struct emu_grid emu_grid_of(dim3 grid, dim3 block, size_t smem_bytes, bool dependent)
{
    return {grid, block, smem_bytes, dependent};
}
#define LAUNCH(kernel, grid, block, smem_bytes, stream, ...)                                       \
    emu_launch_kernel(kernel, emu_grid_of(grid, block, smem_bytes, false), stream, __VA_ARGS__)
#define LAUNCH_PDL(kernel, grid, block, smem_bytes, stream, ...)                                   \
    emu_launch_kernel(kernel, emu_grid_of(grid, block, smem_bytes, true), stream, __VA_ARGS__)

/* ---- the vocabulary ---- */

#define EMU_LINE int line = __builtin_LINE()

DEVICE void block_sync(EMU_LINE)
{
    emu_block_sync(line);
}
DEVICE void warp_sync(EMU_LINE)
{
    struct emu_op op = {EMU_SYNC, line, 0, {}, {}};
    emu_warp_op(&op);
}
DEVICE uint32_t emu_exchange(enum emu_kind kind, uint32_t v, uint32_t count, int line)
{
    struct emu_op op = {kind, line, count, {v}, {}};
    emu_warp_op(&op);
    return op.out[0];
}
DEVICE float emu_exchange_f(enum emu_kind kind, float v, uint32_t count, int line)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    u = emu_exchange(kind, u, count, line);
    memcpy(&v, &u, 4);
    return v;
}
DEVICE uint32_t warp_shfl(uint32_t v, uint32_t lane, EMU_LINE)
{
    return emu_exchange(EMU_SHFL, v, lane % 32, line);
}
DEVICE float warp_shfl(float v, uint32_t lane, EMU_LINE)
{
    return emu_exchange_f(EMU_SHFL, v, lane % 32, line);
}
DEVICE uint32_t warp_shfl_xor(uint32_t v, uint32_t mask, EMU_LINE)
{
    return emu_exchange(EMU_SHFL_XOR, v, mask, line);
}
DEVICE float warp_shfl_xor(float v, uint32_t mask, EMU_LINE)
{
    return emu_exchange_f(EMU_SHFL_XOR, v, mask, line);
}
DEVICE uint32_t warp_ballot(bool x, EMU_LINE)
{
    return emu_exchange(EMU_BALLOT, x, 0, line);
}
DEVICE float warp_sum(float v, EMU_LINE)
{
    return emu_exchange_f(EMU_SUM, v, 0, line);
}
DEVICE float warp_max(float v, EMU_LINE)
{
    return emu_exchange_f(EMU_MAX, v, 0, line);
}

#include "tests/emulation/emu_memory.h"

#endif
