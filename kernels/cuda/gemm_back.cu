/* gemm_back: dx = dy W in tiles of 64 rows by 64 columns of dx, 32 rows of W a step.
 *
 * Mapping   four warps, each 16 rows by 64 columns: dy is rounded to bf16 on its way into shared
 *           memory, W [n, k] goes in as it lies and is read transposed by ldmatrix. An element is
 *           one chain of mma over n, parts ascending, whatever the other rows are.
 * Edges     rows of W past the part's end and columns past d_in are zeros
 * Bound     the rate of mma.sync for many rows; one stage, so latency shows for few. Not yet run on
 *           a GPU */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

#define ROWS    64
#define COLS    64
#define STEP    32
#define THREADS 128
#define X_PITCH (STEP + 8) /* elements: 80 bytes, rows of ldmatrix on distinct banks */
#define W_PITCH (COLS + 8)

struct gemm_back_part {
    float *dx;
    const float *dy; /* the part's first column */
    const bf16_t *w;
    uint32_t n_tok, dx_stride, dy_stride, d_in, d_out;
    bool add; /* a part before has written dx */
};

DEVICE void fill_dy(bf16_t *x, const struct gemm_back_part *a, uint32_t t0, uint32_t n0)
{
    for (uint32_t i = threadIdx.x; i < ROWS * STEP; i += THREADS) {
        const uint32_t r = i / STEP, n = i % STEP;
        const bool live = t0 + r < a->n_tok && n0 + n < a->d_out;
        const float v = live ? a->dy[(size_t)(t0 + r) * a->dy_stride + n0 + n] : 0.0f;
        x[r * X_PITCH + n] = bf16_from_f32(v);
    }
}

DEVICE void fill_w(bf16_t *w, const struct gemm_back_part *a, uint32_t n0, uint32_t k0)
{
    for (uint32_t i = threadIdx.x; i < STEP * COLS; i += THREADS) {
        const uint32_t n = i / COLS, k = i % COLS;
        const bool live = n0 + n < a->d_out && k0 + k < a->d_in;
        w[n * W_PITCH + k] = live ? a->w[(size_t)(n0 + n) * a->d_in + k0 + k] : (bf16_t)0;
    }
}

static KERNEL(THREADS, 4) void gemm_back_tiles(struct gemm_back_part a)
{
    SMEM(smem);
    bf16_t *x = (bf16_t *)smem, *w = x + ROWS * X_PITCH;
    const uint32_t k0 = blockIdx.x * COLS, t0 = blockIdx.y * ROWS, lane = lane_id();
    const uint32_t g = lane / 4, t = lane % 4, m0 = warp_id() * 16;
    float acc[COLS / 8][4];
    UNROLL
    for (uint32_t c = 0; c < COLS / 8; c++) {
        UNROLL
        for (uint32_t e = 0; e < 4; e++) {
            const uint32_t row = t0 + m0 + g + e / 2 * 8, col = k0 + c * 8 + t * 2 + e % 2;
            const bool live = a.add && row < a.n_tok && col < a.d_in;
            acc[c][e] = live ? a.dx[(size_t)row * a.dx_stride + col] : 0.0f;
        }
    }
    NO_UNROLL
    for (uint32_t n0 = 0; n0 < a.d_out; n0 += STEP) {
        block_sync();
        fill_dy(x, &a, t0, n0);
        fill_w(w, &a, n0, k0);
        block_sync();
        UNROLL
        for (uint32_t s = 0; s < STEP; s += 16) {
            uint32_t xa[4], wb[4];
            ldmatrix_x4(xa, x + (m0 + lane % 16) * X_PITCH + s + lane / 16 * 8);
            UNROLL
            for (uint32_t c = 0; c < COLS / 8; c += 2) {
                ldmatrix_x4_trans(wb, w + (s + lane % 16) * W_PITCH + (c + lane / 16) * 8);
                mma_16816(acc[c], xa, wb);
                mma_16816(acc[c + 1], xa, wb + 2);
            }
        }
    }
    UNROLL
    for (uint32_t c = 0; c < COLS / 8; c++) {
        UNROLL
        for (uint32_t e = 0; e < 4; e++) {
            const uint32_t row = t0 + m0 + g + e / 2 * 8, col = k0 + c * 8 + t * 2 + e % 2;
            if (row < a.n_tok && col < a.d_in)
                a.dx[(size_t)row * a.dx_stride + col] = acc[c][e];
        }
    }
}

enum status cuda_gemm_back(struct backend *b, const struct gemm_back_args *a)
{
    const float *dy = a->dy;
    if (a->n_tok == 0)
        return STATUS_OK;
    for (uint32_t i = 0; i < a->part_count; i++) {
        const struct weight *w = &a->part[i];
        CHECK(w->dtype == DTYPE_BF16);
        struct gemm_back_part tile = {a->dx,    dy,           (const bf16_t *)w->data,
                                      a->n_tok, a->dx_stride, a->dy_stride,
                                      w->d_in,  w->d_out,     i > 0};
        LAUNCH(gemm_back_tiles, dim3((w->d_in + COLS - 1) / COLS, (a->n_tok + ROWS - 1) / ROWS),
               THREADS, (ROWS * X_PITCH + STEP * W_PITCH) * sizeof(bf16_t), cuda_of(b)->stream,
               tile);
        dy += w->d_out;
    }
    return gpu_launched("gemm_back");
}
