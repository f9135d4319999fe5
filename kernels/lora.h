/* LoRA, by segment and at true rank. Shrink is an op; expand is never one: it is the first half of
 * the finish that follows each base GEMM anyway (kernels/finish.h). Base-only segments cost
 * nothing. */
#ifndef RS_KERNELS_LORA_H
#define RS_KERNELS_LORA_H

#include "kernels/args.h"

/* lora_shrink: for every segment, its parts and the group's modules m = first .. first+count-1.
 *
 * Formula   s[t, off(m,p) + r] = scale(layer,m,p) * (weight_q16/65536)
 *                                * sum_k x[t,k] * A(layer,m,p)[r,k]
 *           scale*weight is one f32 multiplication, done before it multiplies the f32 sum
 * Shapes    x [n_tok, x_stride] act (rounded to bf16 when the blob is bf16);
 *           lora->s [n_tok, s_stride]
 * After     columns past a segment's sum of ranks, and rows of base-only segments, are untouched
 * Cost      the bytes of the distinct A of the batch */
struct lora_shrink_args {
    struct lora_step lora;
    const void *x;
    float *keep_ax; /* keep mode: [n_tok, s_stride] unscaled A x, or NULL */
    uint32_t n_tok, x_stride, d_in;
    uint32_t layer;
    enum lora_module first;
    uint32_t module_count;
};

/* ---- where things are, shared by every backend ---- */

static inline const struct lora_entry *lora_entry_at(const struct lora_table *table, uint32_t slot,
                                                     uint32_t layer, uint32_t module)
{
    const struct lora_layout *layout = &table->layout[table->slot[slot].layout];
    return &layout->entry[(size_t)layer * LORA_MODULE_COUNT + module];
}

/* Sum of ranks of a segment's parts in one (layer, module): the module's width in s. */
static inline uint32_t lora_seg_rank(const struct lora_table *table, const struct lora_seg *seg,
                                     uint32_t layer, uint32_t module)
{
    uint32_t sum = 0;
    for (uint32_t p = 0; p < seg->part_count; p++)
        sum += lora_entry_at(table, seg->part[p].slot, layer, module)->rank;
    return sum;
}

/* off(module, part 0) within the group that starts at `first`. */
static inline uint32_t lora_seg_offset(const struct lora_table *table, const struct lora_seg *seg,
                                       uint32_t layer, uint32_t first, uint32_t module)
{
    uint32_t sum = 0;
    for (uint32_t m = first; m < module; m++)
        sum += lora_seg_rank(table, seg, layer, m);
    return sum;
}

#endif
