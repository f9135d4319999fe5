/* What the two own GEMM kernels share, and the one thing they must agree on: the arithmetic of an
 * output element. Weights are the M operand of mma.m16n8k16 and rows of x (tokens) the N operand,
 * so a batch of one wastes tensor throughput, which is idle, and never weight bytes.
 *
 *   slice s    k in [s * slice_k, (s+1) * slice_k), slice_k = d_in/4 rounded up to GEMM_PAD
 *   unit       32 k of a slice; lane (g, t) of a fragment holds k = 8t..8t+7 of its row: one
 *              16-byte word of memory, hence two mma: words 0,1 then words 2,3 of every lane
 *   p_s        one chain of mma over the slice's units in ascending order, from 0; the slice's end
 *              is padded with zeros to a multiple of GEMM_PAD
 *   y          ((p_0 + p_1) + p_2) + p_3 in f32
 *
 * Nothing here depends on the number of rows, the tile, the grid or who computes which slice: a
 * row's bits are the same from gemm_skinny, gemm_tile and gemm_reduce. Change it in all or none.
 *
 * In shared memory a row of a k-step is STEP bf16 without padding; the 16-byte words of odd rows
 * have bit 2 of their index flipped, so that the 64 bytes that two neighbouring rows give to a
 * quarter of a warp lie in different banks, and a copy of one row's words still fills all banks. */
#ifndef RS_KERNELS_CUDA_GEMM_CUH
#define RS_KERNELS_CUDA_GEMM_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/linear.h"

#define GEMM_SLICES  4   /* of d_in, at most */
#define GEMM_PAD     128 /* k */
#define GEMM_UNIT    32  /* k of one fragment load */
#define GEMM_THREADS 256

struct gemm_part {
    const bf16_t *w; /* [d_out, d_in], rows 16-byte aligned */
    uint32_t d_out, col;
};

/* One product as the kernels get it, by value. */
struct gemm_job {
    struct gemm_part part[GEMM_PARTS_MAX];
    const bf16_t *x; /* [n_row, x_stride] */
    float *out;      /* [n_row, out_stride]; split: partials [slice][n_row][out_stride] */
    uint64_t out_slice;
    uint32_t part_count, n_row, d_in, x_stride, out_stride;
    uint32_t slice_k, slice_count;
    uint32_t tile_count; /* of weight rows, over all parts */
    uint32_t split;      /* each slice is an item of its own and writes its partial */
};

/* Rows of one matrix that a tile covers: the first, and how many exist. */
struct gemm_rows {
    const bf16_t *at;
    uint32_t stride, count;
};

/* k that slice s has, 0 past the last; and the same padded. */
HOST_DEVICE uint32_t gemm_slice_len(const struct gemm_job *j, uint32_t s)
{
    uint32_t begin = s * j->slice_k;
    if (begin >= j->d_in)
        return 0;
    return j->d_in - begin < j->slice_k ? j->d_in - begin : j->slice_k;
}
HOST_DEVICE uint32_t gemm_slice_pad(const struct gemm_job *j, uint32_t s)
{
    return (gemm_slice_len(j, s) + GEMM_PAD - 1) / GEMM_PAD * GEMM_PAD;
}

/* The weight rows of tile i (tiles of `rows` rows, part after part) and their column in y. */
DEVICE struct gemm_rows gemm_weights(const struct gemm_job *j, uint32_t i, uint32_t rows,
                                     uint32_t *col)
{
    struct gemm_part p = j->part[0];
    UNROLL
    for (uint32_t q = 1; q < GEMM_PARTS_MAX; q++) {
        uint32_t tiles = (p.d_out + rows - 1) / rows;
        if (q >= j->part_count || i < tiles)
            break;
        i -= tiles;
        p = j->part[q];
    }
    uint32_t first = i * rows, left = p.d_out - first;
    *col = p.col + first;
    return {p.w + (size_t)first * j->d_in, j->d_in, left < rows ? left : rows};
}

/* Launchers; the caller has filled part, x, out, the strides, d_in and the slices. */
void gemm_skinny_launch(struct gemm_job *j, uint32_t sm_count, void *stream);
#define GEMM_SKINNY_ROWS 16
uint32_t gemm_tile_width(uint32_t n_row); /* rows of x of a tile */
void gemm_tile_launch(struct gemm_job *j, uint32_t sm_count, void *stream);
/* Whether gemm_tile should write partials to share the work among the SMs. */
bool gemm_tile_wants_split(const struct gemm_job *j, uint32_t sm_count);
/* out[t, n] = the sum over slices of partials [slice][n_row][width], in order. */
struct gemm_sum {
    const float *partials;
    float *out;
    uint32_t n_row, width, out_stride, slice_count;
};
void gemm_reduce_launch(const struct gemm_sum *s, void *stream);

HOST_DEVICE uint32_t gemm_tiles(const struct gemm_job *j, uint32_t rows)
{
    uint32_t n = 0;
    for (uint32_t p = 0; p < j->part_count; p++)
        n += (j->part[p].d_out + rows - 1) / rows;
    return n;
}

/* ---- memory to shared memory: STEP k of ROWS rows, for SLICES slices at once ---- */

template <uint32_t SLICES, uint32_t ROWS, uint32_t STEP>
DEVICE void gemm_copy(char *smem, const struct gemm_job *j, struct gemm_rows m, uint32_t slice,
                      uint32_t k)
{
    /* A thread keeps its word of a row; a round of the block takes EACH rows. ROWS and EACH are
     * even and divide one another, so the flip is the thread's too. A step ends in its slice, whose
     * length is a multiple of steps; only d_in may end earlier. */
    constexpr uint32_t WORDS = STEP / 8, EACH = GEMM_THREADS / WORDS, ALL = SLICES * ROWS;
    const uint32_t line = threadIdx.x / WORDS, c = threadIdx.x % WORDS, r = line % ROWS;
    const uint32_t s = slice + line / ROWS;
    const uint32_t at = s * j->slice_k + k + c * 8;
    const bf16_t *from = m.at + (size_t)r * m.stride + at;
    char *to = smem + (line * WORDS + (c ^ (r & 1) << 2)) * 16;
    UNROLL
    for (uint32_t i = 0; i < ALL; i += EACH) {
        const uint32_t slice_at = i / ROWS * j->slice_k;
        const bool valid = r + i % ROWS < m.count && at + slice_at < j->d_in;
        if (ALL % EACH == 0 || line + i < ALL)
            cp_async_16(to + i * WORDS * 16, from + (size_t)(i % ROWS) * m.stride + slice_at,
                        valid);
    }
}

/* ---- shared memory to tensor cores ---- */

DEVICE uint4 gemm_word(const char *rows, uint32_t step, uint32_t row, uint32_t word)
{
    return *(const uint4 *)(rows + (row * (step / 8) + (word ^ (row & 1) << 2)) * 16);
}

/* acc += one unit of MT*16 weight rows by NT*8 rows of x, of which b has the words. */
template <uint32_t MT, uint32_t NT, uint32_t STEP>
DEVICE void gemm_multiply_unit(float acc[MT][NT][4], const char *w, const uint4 b[NT], uint32_t u)
{
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    UNROLL
    for (uint32_t m = 0; m < MT; m++) {
        uint4 lo = gemm_word(w, STEP, m * 16 + g, u * 4 + t);
        uint4 hi = gemm_word(w, STEP, m * 16 + 8 + g, u * 4 + t);
        const uint32_t a0[4] = {lo.x, hi.x, lo.y, hi.y}, a1[4] = {lo.z, hi.z, lo.w, hi.w};
        UNROLL
        for (uint32_t n = 0; n < NT; n++) {
            const uint32_t b0[2] = {b[n].x, b[n].y};
            mma_16816(acc[m][n], a0, b0);
        }
        UNROLL
        for (uint32_t n = 0; n < NT; n++) { /* apart: each waits for the other's result */
            const uint32_t b1[2] = {b[n].z, b[n].w};
            mma_16816(acc[m][n], a1, b1);
        }
    }
}

/* acc += STEP k of MT*16 weight rows by NT*8 rows of x; w and x begin at this warp's first row. */
template <uint32_t MT, uint32_t NT, uint32_t STEP>
DEVICE void gemm_multiply(float acc[MT][NT][4], const char *w, const char *x)
{
    UNROLL
    for (uint32_t u = 0; u < STEP / GEMM_UNIT; u++) {
        uint4 b[NT];
        UNROLL
        for (uint32_t n = 0; n < NT; n++)
            b[n] = gemm_word(x, STEP, n * 8 + lane_id() / 4, u * 4 + lane_id() % 4);
        gemm_multiply_unit<MT, NT, STEP>(acc, w, b, u);
    }
}

#endif
