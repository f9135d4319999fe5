/* One small kernel for each part of the device vocabulary, and for each fault that the emulation
 * must find. test_cuda_vocabulary.c and test_cuda_faults.c launch them by name. */
#include "tests/emulation/vocabulary.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

/* out[16][8] = a[16][16] b[16][8] by one warp, a by ldmatrix, b as the transpose of smem rows. */
static KERNEL(32, 1) void mma_tile(struct vocabulary v)
{
    SMEM(smem);
    bf16_t *a = (bf16_t *)smem, *b = a + 16 * 16;
    uint32_t lane = lane_id(), fa[4], fb[2];
    float d[4] = {0, 0, 0, 0};
    cp_async_16(a + lane * 8, v.a + lane * 8, true);
    cp_async_16(b + lane * 8, v.b + lane % 16 * 8, lane < 16); /* behind the tile: zeros */
    cp_async_commit();
    cp_async_wait<0>();
    warp_sync();
    d[0] = bf16_to_f32(b[128 + lane * 4]);
    ldmatrix_x4(fa, a + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x2_trans(fb, b + lane % 16 * 8);
    mma_16816(d, fa, fb);
    float *out = v.out + lane / 4 * 8 + lane % 4 * 2;
    out[0] = d[0];
    out[1] = d[1];
    out[64] = d[2];
    out[65] = d[3];
}

/* out: the lane's words of an 8x8 tile read plain, read transposed, and moved; [lane][3]. */
static KERNEL(32, 1) void matrices(struct vocabulary v)
{
    SMEM(smem);
    bf16_t *a = (bf16_t *)smem;
    uint32_t lane = lane_id(), plain[4], trans[4];
    for (uint32_t i = 0; i < 8; i++)
        a[lane * 8 + i] = v.a[lane * 8 + i];
    warp_sync();
    ldmatrix_x4(plain, a + lane * 8);
    ldmatrix_x4_trans(trans, a + lane * 8);
    for (uint32_t m = 0; m < 4; m++) {
        v.words[(lane * 4 + m) * 3] = plain[m];
        v.words[(lane * 4 + m) * 3 + 1] = trans[m];
        v.words[(lane * 4 + m) * 3 + 2] = movmatrix_trans(plain[m]);
    }
}

/* [block thread][6] of shuffles, sums, maxima and ballots; the last warp is not whole. */
static KERNEL(80, 1) void exchange(struct vocabulary v)
{
    uint32_t t = threadIdx.x, lane = lane_id();
    float x = (float)(t + 1);
    float *out = v.out + (blockIdx.x * blockDim.x + t) * 6;
    out[0] = warp_shfl(x, 3);
    out[1] = warp_shfl_xor(x, 1);
    out[2] = (float)warp_shfl(t, lane ^ 2);
    out[3] = warp_id() < 2 ? warp_sum(x) : 0;
    out[4] = warp_id() < 2 ? warp_max(x) : 0;
    out[5] = (float)warp_ballot(lane % 3 == 0);
}

/* Threads leave at different times; the others' barriers are complete without them. */
static KERNEL(96, 1) void leaving(struct vocabulary v)
{
    SMEM(smem);
    float *s = (float *)smem;
    uint32_t t = threadIdx.x;
    s[t] = (float)t;
    block_sync();
    if (t >= 64)
        return;
    float x = s[95 - t];
    block_sync();
    s[t] = x;
    block_sync();
    v.out[blockIdx.x * 64 + t] = s[63 - t];
}

/* The last block to come adds what all have written: the split-and-merge of attention. */
static KERNEL(64, 1) void last_block(struct vocabulary v)
{
    SMEM(smem);
    uint32_t *last = (uint32_t *)smem;
    v.out[1 + blockIdx.x * 64 + threadIdx.x] = (float)(blockIdx.x + threadIdx.x);
    if (v.fault != FAULT_NO_FENCE)
        fence_device();
    block_sync();
    if (threadIdx.x == 0)
        *last = atomic_add_u32(v.words, 1) == gridDim.x - 1;
    block_sync();
    if (!*last || threadIdx.x != 0)
        return;
    if (v.fault != FAULT_NO_FENCE)
        fence_device();
    float sum = 0;
    for (uint32_t i = 0; i < gridDim.x * 64; i++)
        sum += v.out[1 + i];
    v.out[0] = sum;
}

/* Each thread takes its mirror's number through shared memory; v.fault says what goes wrong. */
static KERNEL(128, 1) void mirror(struct vocabulary v)
{
    SMEM(smem);
    float *s = (float *)smem;
    uint32_t t = threadIdx.x, at = blockIdx.x * 128 + t;
    float x = v.in[at];
    if (v.fault == FAULT_SMEM_BOUNDS && t == 127)
        s[128] = x;
    s[t] = x;
    if (v.fault == FAULT_DIVERGENT_BARRIER && t < 32)
        block_sync();
    else if (v.fault == FAULT_LONELY_BARRIER && t == 5)
        block_sync();
    if (v.fault != FAULT_NO_BARRIER)
        block_sync();
    x = s[127 - t];
    if (v.fault == FAULT_DIVERGENT_OP && lane_id() < 7)
        x += warp_sum(x);
    x = warp_shfl(x, lane_id());
    if (v.fault == FAULT_BOUNDS && at == 255)
        at++;
    if (v.fault == FAULT_BLOCKS_COLLIDE && t == 9)
        at = 9;
    v.out[at] = x;
}

/* Lanes of one warp take their neighbour's number without a block barrier. */
static KERNEL(32, 1) void neighbours(struct vocabulary v)
{
    SMEM(smem);
    float *s = (float *)smem;
    s[threadIdx.x] = v.in[threadIdx.x];
    if (v.fault != FAULT_NO_WARP_SYNC)
        warp_sync();
    v.out[threadIdx.x] = s[(threadIdx.x + 1) % 32];
}

/* Four stages of copies, two in flight; each thread adds what another thread's copies brought. */
static KERNEL(32, 1) void pipeline(struct vocabulary v)
{
    SMEM(smem);
    float *s = (float *)smem;
    uint32_t t = threadIdx.x;
    float sum = 0;
    cp_async_16(s + t * 4, v.in + t * 4, true);
    cp_async_commit();
    for (uint32_t i = 0; i < 4; i++) {
        if (i + 1 < 4)
            cp_async_16(s + ((i + 1) % 2 * 32 + t) * 4, v.in + ((i + 1) * 32 + t) * 4, true);
        cp_async_commit();
        if (v.fault != FAULT_NO_WAIT)
            cp_async_wait<1>();
        block_sync();
        sum += s[(i % 2 * 32 + 31 - t) * 4];
        if (v.fault != FAULT_STAGE_REUSED)
            block_sync();
    }
    v.out[t] = sum;
}

/* As many numbers as the device's count says, from where the device's table says: what a recorded
 * launch must do, since both change before it is replayed. */
static KERNEL(32, 1) void listed(struct vocabulary v)
{
    uint32_t count = v.fault == FAULT_COUNT_BY_VALUE ? v.count : *v.words;
    const float *in = v.fault == FAULT_TABLE_BY_VALUE ? v.in : *v.table;
    for (uint32_t i = threadIdx.x; i < count; i += 32)
        v.out[i] = in[i];
}

/* Nothing, in whatever shared memory. */
static KERNEL(LANES, 1) void idle(struct vocabulary)
{
}

enum status vocabulary_large(size_t smem_bytes, size_t allowed, void *stream)
{
    const struct gpu_smem mine = {kernel_of(idle), allowed};
    enum status st = allowed ? gpu_smem_allow(&mine, 1) : STATUS_OK;
    if (!st) {
        LAUNCH(idle, 1, LANES, smem_bytes, stream, vocabulary());
        st = gpu_launched("idle");
    }
    return st;
}

void vocabulary_launch(const char *name, uint32_t grid, uint32_t block, void *stream,
                       struct vocabulary v)
{
    static const struct {
        const char *name;
        void (*kernel)(struct vocabulary v);
    } kernels[] = {
        {"mma_tile", mma_tile},     {"matrices", matrices},     {"exchange", exchange},
        {"leaving", leaving},       {"last_block", last_block}, {"mirror", mirror},
        {"neighbours", neighbours}, {"pipeline", pipeline},     {"listed", listed},
    };
    for (size_t i = 0; i < ARRAY_COUNT(kernels); i++)
        if (strcmp(kernels[i].name, name) == 0) {
            LAUNCH(kernels[i].kernel, grid, block, v.smem_bytes, stream, v);
            CHECK(gpu_launched(name) == STATUS_OK);
            return;
        }
    PANIC("no kernel \"%s\"", name);
}
