/* The work lists of attention: which rows of a step go to which kernel, in which blocks, cut where.
 * Host code, called once a step; the lists are valid for every layer of it. The kernels read the
 * lists' lengths on the device, so a captured graph needs no change from step to step.
 *
 * Nothing here changes a bit of the result: a chunk of ATTN_CHUNK positions is the unit of
 * arithmetic (attention.cuh), the plan only chooses who computes which. A block of the split list
 * is at most ATTN_COLS (row, head) pairs of one kv head; its positions are cut into parts, the
 * first of one or more chunks, the others of one chunk each, as many as keep the machine busy and
 * the workspace holds. A block of the prefill list takes all its positions at once.
 *
 * Use       attn_shape of the model -> sizes below -> attn_plan(shape, rows, list) each step.
 * Memory    the caller's: nothing is allocated
 * Thread    any, pure */
#ifndef RS_KERNELS_CUDA_ATTENTION_PLAN_H
#define RS_KERNELS_CUDA_ATTENTION_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ATTN_PAGE       16  /* positions of a KV page */
#define ATTN_TILE       64  /* positions of one step of the online softmax */
#define ATTN_CHUNK      256 /* positions that are summed before they join the total */
#define ATTN_COLS       16  /* (row, head) pairs of a split block */
#define ATTN_HEAD_MAX   256 /* d_head, a multiple of 8 */
#define ATTN_GROUP_MAX  128 /* query heads of a kv head, for the prefill list */
#define ATTN_SPLIT_ROWS 64  /* a step of at most so many rows has no prefill list */
#define ATTN_PAIRS_MAX                                                                             \
    128 /* a run of at most so many (row, head) pairs may go to the split list                     \
         */

struct attn_shape {
    uint32_t n_head, n_kv_head, d_head;
    uint32_t window;     /* no layer looks further back; 0: some layer sees everything */
    uint32_t sm_count;   /* of the device: how much work keeps it busy */
    uint32_t rows_max;   /* rows of a step */
    uint32_t chunks_max; /* of all sequences together */
    uint32_t slots_max;  /* (row, head) pairs of partial results the workspace holds, a kv head */
};

/* Work for one kv head; the kernels run each item once for every kv head. */
struct attn_item {
    uint32_t row, pos;               /* first row of the block, its position */
    uint32_t page;                   /* its sequence's pages: words from the list's start */
    uint8_t n_row, n_head;           /* rows (of consecutive positions); heads of each */
    uint16_t head;                   /* the first of them within the group */
    uint16_t part, n_part;           /* of the block's parts */
    uint16_t chunk_begin, chunk_end; /* of this part */
    uint32_t slot;                   /* of the block: its parts' results start here */
    uint32_t block;                  /* number of the block, for its counter */
} __attribute__((aligned(16)));

/* Followed by its items: [n_split], then [n_prefill], the longest first; and these by the page
 * numbers of the sequences, which the caller puts there. */
struct attn_list {
    uint32_t n_split, n_prefill, unused[6];
};

/* Rows times heads of a block of the prefill kernel. */
static inline uint32_t attn_prefill_pairs(uint32_t d_head)
{
    return d_head > 128 ? 64 : 128;
}

/* What the owner of device memory needs: bytes of the list, of the partial results and of the
 * counters (zero at start; every pass leaves them zero). */
size_t attn_list_bytes_max(const struct attn_shape *s);
size_t attn_part_bytes(const struct attn_shape *s);
size_t attn_count_bytes(const struct attn_shape *s);
/* Enough for half a million positions to be cut to single chunks, or for all there can be. With
 * less than a step would like, first parts are longer. */
uint32_t attn_slots_default(const struct attn_shape *s);

struct attn_rows {
    const uint32_t *seq, *pos;  /* [n_tok]; seq UINT32_MAX: a padded row, nobody's */
    const uint32_t *page_begin; /* [seq] where its pages start, words from the first page number */
    uint32_t n_tok;
};

/* Fills the list; returns its bytes: page numbers go directly behind it.
 *
 * Before  n_tok <= rows_max, pos < 2^24
 */
size_t attn_plan(const struct attn_shape *s, const struct attn_rows *rows, struct attn_list *out);

#ifdef __cplusplus
}
#endif

#endif
