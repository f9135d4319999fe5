/* What the two attention kernels share: the job, the walk through a work list, the copies into
 * shared memory, and the arithmetic of an output element, which they must agree on to the bit.
 *
 *   scores   s[j] = q . K[j]: one chain of mma over d_head in ascending slices of 16, from 0. Rows
 *            of q (row, head pairs of one kv head) are the M operand, positions the N operand.
 *   tile     64 positions, aligned. m' = max(m, max s), decay = 2^((m - m') c),
 *            c = scale log2(e); p[j] = 2^(s[j] c - m' c); the lane's share of the sum, 4 groups of
 *            16 positions in order; o *= decay, then o += p V: a chain of mma over the tile's 4
 *            slices of 16, p in bf16 as M operand, d_head as N operand.
 *   chunk    256 positions, aligned: its m, sum and o start at -inf, 0, 0.
 *   row      total = blend(total, chunk), chunks ascending; out = total.o / total.sum.
 *
 * Positions that a row does not see have p = 0, which changes nothing: o * 1 + 0. So it does not
 * matter which other rows share a block, which masked tiles a kernel walks or skips, or whether a
 * chunk's result passes through memory on its way to the total. Every expression that a compiler
 * could contract is written with fmaf. Change this in both kernels or in neither.
 *
 * Included  by attention.cu and attention_prefill.cu. */
#ifndef RS_KERNELS_CUDA_ATTENTION_CUH
#define RS_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

struct attn_job {
    bf16_t *out;      /* [n_tok, n_head, d_head] */
    const bf16_t *q;  /* the same */
    float *lse;       /* [n_tok, n_head] or NULL */
    const bf16_t *kv; /* of the layer; strides in elements */
    uint64_t stride_page, stride_kv, stride_head, stride_tok;
    const struct attn_list *list;
    float *part;      /* [slot][d_head] partial o, see attn_slot */
    float *part_stat; /* [slot][2] their max and sum */
    uint32_t *done;   /* [block][n_kv_head] parts that are done */
    float scale;      /* c above */
    uint32_t n_head, n_kv_head, group, d_head, window;
};

/* ---- the walk ---- */

/* A thread block's way through one list. Turns alternate in direction, since items are sorted by
 * length: who had the longest of one turn has the shortest of the next. The item itself is read
 * again where it is needed, from L1: registers are what the kernels lack. */
struct attn_walk {
    const struct attn_item *items;
    uint32_t turn, count;    /* of the next item; items times kv heads */
    uint32_t lo, hi;         /* positions that some row of this item's block sees */
    uint32_t tile, tile_end; /* of this part */
    uint32_t head;           /* kv head */
    uint32_t page;           /* lane i: the id of page i of the 32 around `tile` */
};

DEVICE uint32_t attn_first(const struct attn_job *j, uint32_t pos)
{
    return j->window && pos + 1 > j->window ? pos + 1 - j->window : 0;
}

DEVICE void attn_walk_begin(const struct attn_job *j, struct attn_walk *w, uint32_t first,
                            uint32_t count)
{
    w->items = (const struct attn_item *)(j->list + 1) + first;
    w->count = count * j->n_kv_head;
    w->turn = 0;
}

DEVICE uint32_t attn_turn(uint32_t turn)
{
    return turn * gridDim.x + (turn & 1 ? gridDim.x - 1 - blockIdx.x : (uint32_t)blockIdx.x);
}

/* This item. */
DEVICE struct attn_item attn_walk_item(const struct attn_job *j, const struct attn_walk *w)
{
    return w->items[attn_turn(w->turn - 1) / j->n_kv_head];
}

/* The next item with a position in the window; false: none is left. */
DEVICE bool attn_walk_next(const struct attn_job *j, struct attn_walk *w)
{
    do {
        uint32_t at = attn_turn(w->turn);
        if (at >= w->count)
            return false;
        w->turn++;
        w->head = at % j->n_kv_head;
        struct attn_item item = w->items[at / j->n_kv_head];
        w->lo = attn_first(j, item.pos);
        w->hi = item.pos + item.n_row - 1;
        uint32_t begin = item.chunk_begin * (ATTN_CHUNK / ATTN_TILE);
        uint32_t end = item.chunk_end * (ATTN_CHUNK / ATTN_TILE);
        w->tile = w->lo / ATTN_TILE > begin ? w->lo / ATTN_TILE : begin;
        w->tile_end = w->hi / ATTN_TILE + 1 < end ? w->hi / ATTN_TILE + 1 : end;
    } while (w->tile >= w->tile_end);
    return true;
}

#define ATTN_PAGE_TILES (LANES * ATTN_PAGE / ATTN_TILE) /* tiles that `page` covers */

DEVICE void attn_walk_pages(const struct attn_job *j, struct attn_walk *w)
{
    uint32_t page = w->tile / ATTN_PAGE_TILES * LANES + lane_id();
    bool used = page >= w->lo / ATTN_PAGE && page <= w->hi / ATTN_PAGE;
    w->page = used ? ((const uint32_t *)j->list)[attn_walk_item(j, w).page + page] : 0;
}

/* To the next tile, of the next item if need be. Page ids are used at the next copy: their load has
 * until then. */
DEVICE bool attn_walk_step(const struct attn_job *j, struct attn_walk *w, bool *fresh)
{
    bool any = true;
    *fresh = ++w->tile == w->tile_end;
    if (*fresh)
        any = attn_walk_next(j, w);
    if (any && (*fresh || w->tile % ATTN_PAGE_TILES == 0))
        attn_walk_pages(j, w);
    return any;
}

#include "kernels/cuda/attention_copy.cuh"
#include "kernels/cuda/attention_math.cuh"

/* Calls f<D>(...) for the smallest D that is compiled and holds d_head; what is between them is
 * zeros. */
#define ATTN_BY_HEAD(d_head, f, ...)                                                               \
    do {                                                                                           \
        if ((d_head) <= 64)                                                                        \
            f<64>(__VA_ARGS__);                                                                    \
        else if ((d_head) <= 80)                                                                   \
            f<80>(__VA_ARGS__);                                                                    \
        else if ((d_head) <= 96)                                                                   \
            f<96>(__VA_ARGS__);                                                                    \
        else if ((d_head) <= 128)                                                                  \
            f<128>(__VA_ARGS__);                                                                   \
        else                                                                                       \
            f<256>(__VA_ARGS__);                                                                   \
    } while (0)

#define ATTN_EACH_HEAD(f, ...)                                                                     \
    do {                                                                                           \
        f<64>(__VA_ARGS__);                                                                        \
        f<80>(__VA_ARGS__);                                                                        \
        f<96>(__VA_ARGS__);                                                                        \
        f<128>(__VA_ARGS__);                                                                       \
        f<256>(__VA_ARGS__);                                                                       \
    } while (0)

void attn_full_launch(const struct attn_job *j, uint32_t sm_count, void *stream);

#endif
