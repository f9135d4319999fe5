/* gemm_tile: y = x W^T for any number of rows of x, in tiles of 128 weight rows by 16, 32, 64 or
 * 128 rows of x. gemm_reduce adds partials.
 *
 * Formula   kernels/cuda/gemm.cuh: the same bits as gemm_skinny's. Mapping: 8 warps share a tile,
 * each warp has MT*16 weight rows by NT*8 rows of x; a step brings 64 k of the tile's rows with
 * cp.async. A block walks its items (persistent, grid <= SMs); tiles of the same weights are
 * neighbours, so all but the first find them in L2. An item is a tile over the whole of d_in: p_s
 * collects in the accumulators, and a second set of registers adds it at the end of each slice.
 * When that makes too few items for the SMs, an item is one slice of a tile: its p_s goes to the
 * workspace, and gemm_reduce adds the slices in order. Which of the two, and the width of a tile,
 * change no bit.
 *
 * Bound     up to 64 rows: bytes of W from memory; 160, 128 and 112 KB of it under way per SM at
 * tiles of 16, 32 and 64 rows (x's share, rows/128, comes from L2). 128 rows: the rate of mma.sync
 * with operands from shared memory, 6 KB of fragments for 32 mma of a warp: about 0.94 of a step's
 * tensor time at mma.sync's rate [computed]; wgmma would halve that and is the next step if
 * deterministic prefill matters.
 * Rejected: partial sums in y itself (slices times the traffic of y); a tree instead of a chain of
 * slices (one more set of accumulators a level).
 * Registers 91, 131, 168 and 254 for 16, 32, 64 and 128 rows, no spills; one block an SM. Not yet
 * run on a GPU. */
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/gemm.h"

#define STEP   64  /* k of a step */
#define M      128 /* weight rows of a tile */
#define EARLY  3   /* steps of W fetched before the predecessor's end */
#define W_STEP (M * STEP * 2)

/* Where a block stands in its list of items. */
struct tile_at {
    uint32_t item, slice, slice_end, k, k_end, col, row;
    struct gemm_rows w, x;
};

HOST_DEVICE uint32_t tile_items(const struct gemm_job *j, uint32_t n)
{
    return j->tile_count * ((j->n_row + n - 1) / n) * (j->split ? j->slice_count : 1);
}

/* Item -> slices, then rows of x fastest. */
template <uint32_t N> DEVICE void tile_open(struct tile_at *at, const struct gemm_job *j)
{
    if (at->item >= tile_items(j, N))
        return;
    const uint32_t wide = (j->n_row + N - 1) / N;
    uint32_t tile = at->item / wide;
    at->row = at->item % wide * N;
    at->slice = 0;
    at->slice_end = j->slice_count;
    if (j->split) {
        at->slice = tile % j->slice_count;
        at->slice_end = at->slice + 1;
        tile /= j->slice_count;
    }
    at->k = 0;
    at->k_end = gemm_slice_pad(j, at->slice);
    at->w = gemm_weights(j, tile, M, &at->col);
    at->x = {j->x + (size_t)at->row * j->x_stride, j->x_stride, j->n_row - at->row};
}
template <uint32_t N> DEVICE void tile_next(struct tile_at *at, const struct gemm_job *j)
{
    at->k += STEP;
    if (at->k < at->k_end)
        return;
    at->k = 0;
    if (++at->slice < at->slice_end) {
        at->k_end = gemm_slice_pad(j, at->slice);
        return;
    }
    at->item += gridDim.x;
    tile_open<N>(at, j);
}

/* Steps of this block's items. */
template <uint32_t N> DEVICE uint32_t tile_steps(const struct gemm_job *j)
{
    uint32_t steps = 0, all = 0;
    for (uint32_t s = 0; s < j->slice_count; s++)
        all += gemm_slice_pad(j, s) / STEP;
    if (!j->split)
        return (tile_items(j, N) - blockIdx.x + gridDim.x - 1) / gridDim.x * all;
    struct tile_at at = {};
    for (at.item = blockIdx.x; at.item < tile_items(j, N); at.item += gridDim.x) {
        const uint32_t wide = (j->n_row + N - 1) / N;
        steps += gemm_slice_pad(j, at.item / wide % j->slice_count) / STEP;
    }
    return steps;
}

template <uint32_t MT, uint32_t NT>
DEVICE void tile_store(const struct gemm_job *j, const struct tile_at *at, uint32_t m0, uint32_t n0,
                       const float v[MT][NT][4])
{
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    float *out = j->out + (j->split ? at->slice * j->out_slice : 0) + at->col;
    UNROLL
    for (uint32_t n = 0; n < NT; n++) {
        UNROLL
        for (uint32_t e = 0; e < 4; e++) {
            const uint32_t row = n0 + n * 8 + t * 2 + e % 2;
            UNROLL
            for (uint32_t i = 0; i < MT; i++) {
                const uint32_t m = m0 + i * 16 + g + e / 2 * 8;
                if (row < at->x.count && m < at->w.count)
                    out[(size_t)(at->row + row) * j->out_stride + m] = v[i][n][e];
            }
        }
    }
}

/* sum (+)= acc, acc = 0. */
template <uint32_t MT, uint32_t NT>
DEVICE void tile_add(float sum[MT][NT][4], float acc[MT][NT][4], bool first)
{
    UNROLL
    for (uint32_t i = 0; i < MT; i++) {
        UNROLL
        for (uint32_t n = 0; n < NT; n++) {
            UNROLL
            for (uint32_t e = 0; e < 4; e++) {
                sum[i][n][e] = first ? acc[i][n][e] : sum[i][n][e] + acc[i][n][e];
                acc[i][n][e] = 0;
            }
        }
    }
}

template <uint32_t N>
DEVICE void tile_fill(char *stage, const struct gemm_job *j, struct tile_at *at)
{
    gemm_copy<1, M, STEP>(stage, j, at->w, at->slice, at->k);
    gemm_copy<1, N, STEP>(stage + W_STEP, j, at->x, at->slice, at->k);
    tile_next<N>(at, j);
}

/* WM x WN warps of MT*16 weight rows by NT*8 rows of x. */
template <uint32_t WM, uint32_t MT, uint32_t NT, uint32_t STAGES>
KERNEL(GEMM_THREADS, 1)
void gemm_tile(const struct gemm_job j)
{
    constexpr uint32_t N = 8 / WM * NT * 8, STAGE = W_STEP + N * STEP * 2;
    static_assert(WM * MT * 16 == M, "the warps cover the tile");
    SMEM(smem);
    const uint32_t m0 = warp_id() % WM * MT * 16, n0 = warp_id() / WM * NT * 8;
    const uint32_t steps = tile_steps<N>(&j);
    struct tile_at load = {}, now;
    load.item = blockIdx.x;
    tile_open<N>(&load, &j);
    now = load;
    UNROLL
    for (uint32_t i = 0; i < EARLY; i++) {
        if (i < steps) {
            gemm_copy<1, M, STEP>(smem + i * STAGE, &j, load.w, load.slice, load.k);
            tile_next<N>(&load, &j);
        }
    }
    pdl_wait();
    pdl_trigger();
    load = now;
    NO_UNROLL
    for (uint32_t i = 0; i < STAGES - 1; i++) {
        if (i < EARLY && i < steps) {
            gemm_copy<1, N, STEP>(smem + i * STAGE + W_STEP, &j, load.x, load.slice, load.k);
            tile_next<N>(&load, &j);
        } else if (i < steps) {
            tile_fill<N>(smem + i * STAGE, &j, &load);
        }
        cp_async_commit();
    }
    float acc[MT][NT][4] = {}, sum[MT][NT][4] = {};
    char *read = smem, *fill = smem + (STAGES - 1) * STAGE, *const end = smem + STAGES * STAGE;
    NO_UNROLL
    for (uint32_t i = 0; i < steps; i++) {
        cp_async_wait<STAGES - 2>();
        block_sync(); /* step i is here, and nobody reads step i-1, which `fill` overwrites */
        if (i + STAGES - 1 < steps)
            tile_fill<N>(fill, &j, &load);
        cp_async_commit();
        gemm_multiply<MT, NT, STEP>(acc, read + m0 * STEP * 2, read + W_STEP + n0 * STEP * 2);
        if (now.k + STEP >= now.k_end) {
            tile_add<MT, NT>(sum, acc, j.split || now.slice == 0);
            if (now.slice + 1 == now.slice_end)
                tile_store<MT, NT>(&j, &now, m0, n0, sum);
        }
        tile_next<N>(&now, &j);
        read = read + STAGE < end ? read + STAGE : smem;
        fill = fill + STAGE < end ? fill + STAGE : smem;
    }
}

KERNEL(GEMM_THREADS, 4) void gemm_reduce(const struct gemm_sum s)
{
    const uint32_t n = blockIdx.x * GEMM_THREADS + threadIdx.x, t = blockIdx.y;
    pdl_wait();
    pdl_trigger();
    if (n >= s.width)
        return;
    const float *p = s.partials + (size_t)t * s.width + n;
    float sum = p[0];
    UNROLL
    for (uint32_t i = 1; i < GEMM_SLICES; i++) {
        if (i < s.slice_count)
            sum += p[(size_t)i * s.n_row * s.width];
    }
    s.out[(size_t)t * s.out_stride + n] = sum;
}

void gemm_reduce_launch(const struct gemm_sum *s, void *stream)
{
    LAUNCH_PDL(gemm_reduce, dim3((s->width + GEMM_THREADS - 1) / GEMM_THREADS, s->n_row),
               GEMM_THREADS, 0, stream, *s);
}

/* ---- launchers ---- */

uint32_t gemm_tile_width(uint32_t n_row)
{
    return n_row <= 16 ? 16 : n_row <= 32 ? 32 : n_row <= 64 ? 64 : 128;
}

/* A round is one slice on every SM at once. Partials must save a quarter of the rounds to be worth
 * writing, reading and a second launch. */
bool gemm_tile_wants_split(const struct gemm_job *j, uint32_t sm_count)
{
    const uint32_t n = gemm_tile_width(j->n_row);
    const uint32_t tiles = gemm_tiles(j, M) * ((j->n_row + n - 1) / n);
    if (tiles >= sm_count)
        return false;
    const uint32_t cut = (tiles * j->slice_count + sm_count - 1) / sm_count;
    return cut * 4 <= j->slice_count * 3;
}

/* 200 KB of stages at most. */
#define TILE_SMEM(n, stages) ((stages) * (W_STEP + (n)*STEP * 2))
void gemm_tile_launch(struct gemm_job *j, uint32_t sm_count, void *stream)
{
    j->tile_count = gemm_tiles(j, M);
    const uint32_t n = gemm_tile_width(j->n_row), items = tile_items(j, n);
    const uint32_t grid = items < sm_count ? items : sm_count;
    if (n == 16)
        LAUNCH_PDL((gemm_tile<8, 1, 2, 11>), grid, GEMM_THREADS, TILE_SMEM(16, 11), stream, *j);
    else if (n == 32)
        LAUNCH_PDL((gemm_tile<4, 2, 2, 9>), grid, GEMM_THREADS, TILE_SMEM(32, 9), stream, *j);
    else if (n == 64)
        LAUNCH_PDL((gemm_tile<4, 2, 4, 8>), grid, GEMM_THREADS, TILE_SMEM(64, 8), stream, *j);
    else
        LAUNCH_PDL((gemm_tile<2, 4, 4, 6>), grid, GEMM_THREADS, TILE_SMEM(128, 6), stream, *j);
}

enum status cuda_gemm_tile_allow(void)
{
    const struct gpu_smem list[] = {{kernel_of(gemm_tile<8, 1, 2, 11>), TILE_SMEM(16, 11)},
                                    {kernel_of(gemm_tile<4, 2, 2, 9>), TILE_SMEM(32, 9)},
                                    {kernel_of(gemm_tile<4, 2, 4, 8>), TILE_SMEM(64, 8)},
                                    {kernel_of(gemm_tile<2, 4, 4, 6>), TILE_SMEM(128, 6)}};
    return gpu_smem_allow(list, ARRAY_COUNT(list));
}
