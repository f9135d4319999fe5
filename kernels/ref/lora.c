/* lora_shrink: s = scale * weight * (A x), segment by segment at true rank. */
#include "kernels/bf16.h"
#include "kernels/ref/ref.h"

static void shrink_row(const struct lora_shrink_args *a, const struct lora_seg *seg, uint32_t t)
{
    const struct lora_table *table = a->lora.table;
    uint32_t col = 0;
    for (uint32_t m = a->first; m < a->first + a->module_count; m++) {
        for (uint32_t p = 0; p < seg->part_count; p++) {
            const struct lora_part *part = &seg->part[p];
            const struct lora_entry *e = lora_entry_at(table, part->slot, a->layer, m);
            struct weight w = {(const char *)table->slot[part->slot].blob + e->a_off, table->dtype,
                               e->rank, a->d_in, NULL};
            float scale = e->scale * ((float)part->weight_q16 / 65536.0f);
            for (uint32_t r = 0; r < e->rank; r++, col++) {
                float ax = ref_dot((const float *)a->x + (size_t)t * a->x_stride, &w, r);
                a->lora.s[(size_t)t * a->lora.s_stride + col] = scale * ax;
                if (a->keep_ax)
                    a->keep_ax[(size_t)t * a->lora.s_stride + col] = ax;
            }
        }
    }
}

enum status ref_lora_shrink(struct backend *b, const struct lora_shrink_args *a)
{
    (void)b;
    if (!a->lora.table)
        return STATUS_OK;
    for (uint32_t i = 0; i < a->lora.n_seg; i++) {
        const struct lora_seg *seg = &a->lora.seg[i];
        for (uint32_t t = seg->tok_begin; t < seg->tok_begin + seg->tok_count; t++)
            shrink_row(a, seg, t);
    }
    return STATUS_OK;
}
