/* gemm_skinny: y = x W^T for up to 16 rows of x, as fast as the weights arrive.
 *
 * Formula   kernels/cuda/gemm.cuh
 * Mapping   a block of 8 warps takes tiles of 32 weight rows over
 * the whole of d_in, one after another (persistent, grid <= SMs). Warp (m, s) multiplies 16 of the
 * rows with slice s of d_in; the four partials of an output meet in shared memory and are added in
 * order of s. So no tile is cut across blocks, nothing but y is written, and 4096 outputs already
 * make 128 blocks.
 *
 * Bound     bytes of W from memory. Each step brings 256 bytes of every row and slice with
 * cp.async: 32 KB of W, and x's share of it (rows/32 of that, from L2). 4 or 3 steps are under way
 * at any time, also across tiles and while partials are added: 128 KB (up to 8 rows) or 96 KB (16
 * rows) of W in flight per SM; Little's law asks 26 KB at 4.3 TB/s and 0.8 us. Under programmatic
 * launch the first two steps of W start before the predecessor has ended.
 * Rejected: fragments by direct loads into registers (64 bytes of a row at a time, and fewer bytes
 * in flight than shared memory holds); K cut across blocks (a second launch or an atomic for the
 * sum, longer than the product for the small matrices).
 * Registers 56 (8 rows) and 125 (16 rows), no spills; shared memory 205 KB and 202 KB, one block an
 * SM. Not yet run on a GPU. */
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/gemm.h"

#define STEP   128 /* k of a step */
#define M      32  /* weight rows of a tile */
#define EARLY  2   /* steps of W fetched before the predecessor's end */
#define PITCH  36  /* floats between tokens of the partials: no bank is hit twice by a store */
#define W_STEP (GEMM_SLICES * M * STEP * 2)

HOST_DEVICE constexpr uint32_t skinny_stages(uint32_t nt)
{
    return nt == 1 ? 5 : 4;
}
HOST_DEVICE constexpr uint32_t skinny_stage_bytes(uint32_t nt)
{
    return W_STEP + GEMM_SLICES * nt * 8 * STEP * 2;
}
HOST_DEVICE constexpr uint32_t skinny_smem_bytes(uint32_t nt)
{
    return skinny_stages(nt) * skinny_stage_bytes(nt) + GEMM_SLICES * nt * 8 * PITCH * 4;
}

/* Where a block stands in its list of tiles. */
struct skinny_at {
    uint32_t tile, k, col;
    struct gemm_rows w;
};

DEVICE void skinny_open(struct skinny_at *at, const struct gemm_job *j)
{
    at->k = 0;
    if (at->tile < j->tile_count)
        at->w = gemm_weights(j, at->tile, M, &at->col);
}
DEVICE void skinny_next(struct skinny_at *at, const struct gemm_job *j)
{
    at->k += STEP;
    if (at->k < j->slice_k)
        return;
    at->tile += gridDim.x;
    skinny_open(at, j);
}

/* Partials [slice][token][M] to shared memory, their sum to y. The loop's next barrier comes before
 * the next tile's partials. */
template <uint32_t NT>
DEVICE void skinny_finish(const struct gemm_job *j, const struct skinny_at *at, float *red,
                          float acc[1][NT][4])
{
    const uint32_t g = lane_id() / 4, t = lane_id() % 4, slice = warp_id() % GEMM_SLICES;
    float *mine = red + slice * NT * 8 * PITCH + warp_id() / GEMM_SLICES * 16;
    UNROLL
    for (uint32_t n = 0; n < NT; n++) {
        UNROLL
        for (uint32_t e = 0; e < 4; e++) {
            mine[(n * 8 + t * 2 + e % 2) * PITCH + g + e / 2 * 8] = acc[0][n][e];
            acc[0][n][e] = 0;
        }
    }
    block_sync();
    UNROLL
    for (uint32_t i = threadIdx.x; i < NT * 8 * M; i += GEMM_THREADS) {
        const uint32_t row = i / M, m = i % M;
        if (row >= j->n_row || m >= at->w.count)
            continue;
        float sum = red[row * PITCH + m];
        UNROLL
        for (uint32_t s = 1; s < GEMM_SLICES; s++) {
            if (s < j->slice_count)
                sum += red[(s * NT * 8 + row) * PITCH + m];
        }
        j->out[(size_t)row * j->out_stride + at->col + m] = sum;
    }
}

template <uint32_t NT> KERNEL(GEMM_THREADS, 1) void gemm_skinny(const struct gemm_job j)
{
    constexpr uint32_t STAGES = skinny_stages(NT), STAGE = skinny_stage_bytes(NT);
    SMEM(smem);
    float *red = (float *)(smem + STAGES * STAGE);
    const struct gemm_rows x = {j.x, j.x_stride, j.n_row};
    const uint32_t slice = warp_id() % GEMM_SLICES, pad = gemm_slice_pad(&j, slice);
    const uint32_t w_at = (slice * M + warp_id() / GEMM_SLICES * 16) * STEP * 2;
    const uint32_t x_at = W_STEP + slice * NT * 8 * STEP * 2;
    const uint32_t steps =
        (j.tile_count - blockIdx.x + gridDim.x - 1) / gridDim.x * (j.slice_k / STEP);
    struct skinny_at load = {}, now;
    load.tile = blockIdx.x;
    skinny_open(&load, &j);
    now = load;
    UNROLL
    for (uint32_t i = 0; i < STAGES - 1;
         i++) { /* two steps of W, then what the predecessor wrote */
        if (i < EARLY && i < steps) {
            gemm_copy<GEMM_SLICES, M, STEP>(smem + i * STAGE, &j, load.w, 0, load.k);
            skinny_next(&load, &j);
        }
    }
    pdl_wait();
    pdl_trigger();
    load = now;
    UNROLL
    for (uint32_t i = 0; i < STAGES - 1; i++) {
        if (i < steps) {
            if (i >= EARLY)
                gemm_copy<GEMM_SLICES, M, STEP>(smem + i * STAGE, &j, load.w, 0, load.k);
            gemm_copy<GEMM_SLICES, NT * 8, STEP>(smem + i * STAGE + W_STEP, &j, x, 0, load.k);
            skinny_next(&load, &j);
        }
        cp_async_commit();
    }
    float acc[1][NT][4] = {};
    char *read = smem, *fill = smem + (STAGES - 1) * STAGE, *const end = smem + STAGES * STAGE;
    NO_UNROLL
    for (uint32_t i = 0; i < steps; i++) {
        cp_async_wait<STAGES - 2>();
        block_sync(); /* step i is here, and nobody reads step i-1, which `fill` overwrites */
        if (i + STAGES - 1 < steps) {
            gemm_copy<GEMM_SLICES, M, STEP>(fill, &j, load.w, 0, load.k);
            gemm_copy<GEMM_SLICES, NT * 8, STEP>(fill + W_STEP, &j, x, 0, load.k);
            skinny_next(&load, &j);
        }
        cp_async_commit();
        if (now.k < pad)
            gemm_multiply<1, NT, STEP>(acc, read + w_at, read + x_at);
        if (now.k + STEP >= j.slice_k)
            skinny_finish<NT>(&j, &now, red, acc);
        skinny_next(&now, &j);
        read = read + STAGE < end ? read + STAGE : smem;
        fill = fill + STAGE < end ? fill + STAGE : smem;
    }
}

void gemm_skinny_launch(struct gemm_job *j, uint32_t sm_count, void *stream)
{
    j->tile_count = gemm_tiles(j, M);
    j->split = 0;
    const uint32_t grid = j->tile_count < sm_count ? j->tile_count : sm_count;
    if (j->n_row <= 8)
        LAUNCH_PDL(gemm_skinny<1>, grid, GEMM_THREADS, skinny_smem_bytes(1), stream, *j);
    else
        LAUNCH_PDL(gemm_skinny<2>, grid, GEMM_THREADS, skinny_smem_bytes(2), stream, *j);
}

enum status cuda_gemm_skinny_allow(void)
{
    const struct gpu_smem list[] = {{kernel_of(gemm_skinny<1>), skinny_smem_bytes(1)},
                                    {kernel_of(gemm_skinny<2>), skinny_smem_bytes(2)}};
    return gpu_smem_allow(list, ARRAY_COUNT(list));
}
