/* The expand of expand.h: B rows are streamed once for up to four rows of x, columns in blocks of
 * four vectors held in registers. */
#include "kernels/cpu/expand.h"
#include "kernels/bf16.h"
#include "kernels/cpu/vec.h"
#include "server/base/check.h"

#define RANK_BLOCK 64

struct expand_part {
    const char *bt; /* row 0 of the rank block, column n0 */
    size_t stride_bytes;
    uint32_t rank;
    const char *then;   /* the same for the B that is read next */
    uint32_t then_rank; /* rows of it; 0: nothing to fetch */
    float s[EXPAND_ROWS][RANK_BLOCK];
};

INLINE vf load_b(bool bf16, const char *p)
{
    return bf16 ? vf_load_bf16(p) : vf_load(p);
}

/* n_vec full vectors at column n. */
INLINE void expand_block(const struct expand_part *p, uint32_t n, const uint32_t n_row,
                         const uint32_t n_vec, const bool bf16, float delta[][EXPAND_COLS])
{
    const size_t item = bf16 ? 2 : 4;
    vf acc[EXPAND_ROWS][4];
#pragma GCC unroll 4
    for (uint32_t t = 0; t < n_row; t++)
#pragma GCC unroll 4
        for (uint32_t v = 0; v < n_vec; v++)
            acc[t][v] = vf_load(&delta[t][n + v * VW]);
    for (uint32_t r = 0; r < p->rank; r++) {
        const char *b = p->bt + r * p->stride_bytes + n * item;
        if (r < p->then_rank) {
            const char *then = p->then + r * p->stride_bytes + n * item;
            for (uint32_t i = 0; i < n_vec * VW * item; i += 64)
                __builtin_prefetch(then + i, 0, 2);
        }
#pragma GCC unroll 4
        for (uint32_t v = 0; v < n_vec; v++) {
            vf bv = load_b(bf16, b + v * VW * item);
#pragma GCC unroll 4
            for (uint32_t t = 0; t < n_row; t++)
                acc[t][v] = vf_fma(vf_set1(p->s[t][r]), bv, acc[t][v]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t t = 0; t < n_row; t++)
#pragma GCC unroll 4
        for (uint32_t v = 0; v < n_vec; v++)
            vf_store(&delta[t][n + v * VW], acc[t][v]);
}

INLINE void expand_cols(const struct expand_part *p, uint32_t n_col, const uint32_t n_row,
                        const bool bf16, float delta[][EXPAND_COLS])
{
    const size_t item = bf16 ? 2 : 4;
    uint32_t n = 0;
    for (; n + 4 * VW <= n_col; n += 4 * VW)
        expand_block(p, n, n_row, 4, bf16, delta);
    for (; n + VW <= n_col; n += VW)
        expand_block(p, n, n_row, 1, bf16, delta);
    if (n == n_col)
        return;
    uint32_t tail = n_col - n;
    for (uint32_t t = 0; t < n_row; t++) {
        vf acc = vf_load_n(&delta[t][n], tail, 0);
        for (uint32_t r = 0; r < p->rank; r++) {
            const char *b = p->bt + r * p->stride_bytes + n * item;
            vf bv = bf16 ? vf_load_bf16_n(b, tail) : vf_load_n(b, tail, 0);
            acc = vf_fma(vf_set1(p->s[t][r]), bv, acc);
        }
        vf_store_n(&delta[t][n], tail, acc);
    }
}

static void expand_part(const struct expand_part *p, uint32_t n_col, uint32_t n_row, bool bf16,
                        float delta[][EXPAND_COLS])
{
    switch (n_row * 2 + bf16) {
    case 2:
        return expand_cols(p, n_col, 1, false, delta);
    case 3:
        return expand_cols(p, n_col, 1, true, delta);
    case 4:
        return expand_cols(p, n_col, 2, false, delta);
    case 5:
        return expand_cols(p, n_col, 2, true, delta);
    case 6:
        return expand_cols(p, n_col, 3, false, delta);
    case 7:
        return expand_cols(p, n_col, 3, true, delta);
    case 8:
        return expand_cols(p, n_col, 4, false, delta);
    default:
        return expand_cols(p, n_col, 4, true, delta);
    }
}

/* Columns from n0 on of the B that is read next, if there is one. */
static void plan_then(struct expand_part *p, const struct expand_rows *e, uint32_t module,
                      uint32_t d_out, uint32_t n0)
{
    const struct lora_table *table = e->lora->table;
    p->then_rank = 0;
    if (!e->then || n0 + e->then_cols >= d_out)
        return;
    uint32_t slot = e->then->part[0].slot;
    const struct lora_entry *entry = lora_entry_at(table, slot, e->layer, module);
    p->then = (const char *)table->slot[slot].blob + entry->b_off +
              (n0 + e->then_cols) * dtype_bytes(table->dtype);
    p->then_rank = entry->rank;
}

bool ISA(expand)(const struct expand_rows *e, uint32_t module, uint32_t d_out, uint32_t n0,
                 uint32_t n_col, float delta[EXPAND_ROWS][EXPAND_COLS])
{
    if (!e->seg || lora_seg_rank(e->lora->table, e->seg, e->layer, module) == 0)
        return false;
    const struct lora_table *table = e->lora->table;
    bool bf16 = table->dtype == DTYPE_BF16;
    size_t item = dtype_bytes(table->dtype);
    uint32_t col = lora_seg_offset(table, e->seg, e->layer, e->first, module);
    for (uint32_t t = 0; t < e->rows; t++)
        memset(delta[t], 0, n_col * sizeof(float));
    struct expand_part p = {.stride_bytes = (size_t)d_out * item};
    plan_then(&p, e, module, d_out, n0);
    for (uint32_t i = 0; i < e->seg->part_count; i++) {
        uint32_t slot = e->seg->part[i].slot;
        const struct lora_entry *entry = lora_entry_at(table, slot, e->layer, module);
        const char *bt = (const char *)table->slot[slot].blob + entry->b_off + n0 * item;
        for (uint32_t r0 = 0; r0 < entry->rank; r0 += RANK_BLOCK, col += p.rank) {
            p.rank = MIN(entry->rank - r0, (uint32_t)RANK_BLOCK);
            p.bt = bt + r0 * p.stride_bytes;
            for (uint32_t t = 0; t < e->rows; t++) {
                const float *s = e->lora->s + (size_t)(e->t0 + t) * e->lora->s_stride + col;
                for (uint32_t r = 0; r < p.rank; r++)
                    p.s[t][r] = bf16 ? bf16_round(s[r]) : s[r];
            }
            expand_part(&p, n_col, e->rows, bf16, delta);
            p.then_rank = 0;
        }
    }
    return true;
}
