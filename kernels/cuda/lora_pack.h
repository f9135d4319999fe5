/* The device form of an adapter: A and B cut into the fragments that one mma.m16n8k16 eats, so that
 * a warp's load of a tile is one run of bytes and needs neither shared memory nor ldmatrix. Plain
 * C, no CUDA: the loader thread packs, the copy engine moves the bytes.
 *
 *   blob, row-major (kernels/args.h)           packed
 *   A  [rank, d_in]   bf16                 ->  A tiles [rank/16][d_in/32]   1 KB: 16 ranks x 32 k
 *   Bt [rank, d_out]  bf16                 ->  B tiles [d_out/16][rank/16]  512 B: 16 outputs x
 *                                                                           16 ranks
 *
 * Counts round up; what is beyond rank, d_in or d_out is zero. Lane (g = lane/4, t = lane%4) of a
 * warp owns two 16-byte words of an A tile, at (word*32 + lane)*16:
 *   word h:  A[g][k..k+1]  A[g+8][k..k+1]  A[g][k+2..k+3]  A[g+8][k+2..k+3],  k = 8t + 4h
 * which permutes k inside each 32 so that the token's side is 8 neighbouring elements, x[8t..8t+7].
 * A B tile is one word a lane, at lane*16, in natural order:
 *   B[g][2t..2t+1]  B[g+8][2t..2t+1]  B[g][2t+8..2t+9]  B[g+8][2t+8..2t+9],   B[n][r] = Bt[r][n]
 *
 * Use       bytes = lora_pack_layout(packed, entry, &dims); lora_pack_blob(dst, packed, src, entry,
 *           &dims);  ranks and scales are copied, offsets become those of the packed form.
 * Thread    any; no shared state. Cost: reads the blob once, writes the packed form once. */
#ifndef RS_KERNELS_CUDA_LORA_PACK_H
#define RS_KERNELS_CUDA_LORA_PACK_H

#include "kernels/args.h"

#define LORA_TILE_RANKS   16 /* ranks of a tile of A and of B */
#define LORA_TILE_K       32 /* inputs of a tile of A */
#define LORA_TILE_OUT     16 /* outputs of a tile of B */
#define LORA_TILE_A_BYTES 1024
#define LORA_TILE_B_BYTES 512
#define LORA_RANK_MAX     256 /* of one module of one adapter */

KERNEL_FN uint32_t lora_rank_tiles(uint32_t rank)
{
    return (rank + LORA_TILE_RANKS - 1) / LORA_TILE_RANKS;
}

KERNEL_FN uint32_t lora_k_tiles(uint32_t d_in)
{
    return (d_in + LORA_TILE_K - 1) / LORA_TILE_K;
}

KERNEL_FN uint32_t lora_out_tiles(uint32_t d_out)
{
    return (d_out + LORA_TILE_OUT - 1) / LORA_TILE_OUT;
}

/* Where A[r][k] and Bt[r][n] are, in elements from the matrix's first tile. */
KERNEL_FN size_t lora_pack_a_at(uint32_t r, uint32_t k, uint32_t d_in)
{
    const size_t tile = (size_t)(r / LORA_TILE_RANKS) * lora_k_tiles(d_in) + k / LORA_TILE_K;
    const uint32_t in = k % LORA_TILE_K, lane = r % 8 * 4 + in / 8, word = in % 8 / 4 * 32 + lane;
    return tile * (LORA_TILE_A_BYTES / 2) + word * 8 + in % 4 / 2 * 4 + r % 16 / 8 * 2 + in % 2;
}

KERNEL_FN size_t lora_pack_b_at(uint32_t n, uint32_t r, uint32_t rank)
{
    const size_t tile = (size_t)(n / LORA_TILE_OUT) * lora_rank_tiles(rank) + r / LORA_TILE_RANKS;
    const uint32_t lane = n % 8 * 4 + r % 8 / 2;
    return tile * (LORA_TILE_B_BYTES / 2) + lane * 8 + r % 16 / 8 * 4 + n % 16 / 8 * 2 + r % 2;
}

#ifdef __cplusplus
extern "C" {
#endif

/* Fills packed [n_layer][LORA_MODULE_COUNT] from entry (same shape; may be the same array) and
 * returns the packed blob's bytes, a multiple of 512. Entries without rank get offset 0. */
uint64_t lora_pack_layout(struct lora_entry *packed, const struct lora_entry *entry,
                          const struct lora_dims *dims);

/* Packs a blob. out: 128-byte aligned for the device, any alignment here; every byte of it is
 * written. in: any alignment. The two must not overlap. */
void lora_pack_blob(void *out, const struct lora_entry *packed, const void *in,
                    const struct lora_entry *entry, const struct lora_dims *dims);

/* lora_train.c: backend_adapter_ops.train_up and train_down. */
struct lora_train_form;
void lora_train_up(const struct lora_train_form *f, const float *grad);
void lora_train_down(const struct lora_train_form *f, float *grad);

/* One matrix of it. */
void lora_pack_a(void *out, const void *a, uint32_t rank, uint32_t d_in);
void lora_pack_b(void *out, const void *bt, uint32_t rank, uint32_t d_out);

#ifdef __cplusplus
}
#endif

#endif
