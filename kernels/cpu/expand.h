/* LoRA expand for a few rows of one segment and a chunk of columns: the first half of every finish.
 * delta[t, n] = sum over parts, then ranks, both ascending, of s[t, r] * Bt[r, n]; one fused
 * multiply-add each, from 0, so an element's bits depend on its own s and B only. */
#ifndef RS_KERNELS_CPU_EXPAND_H
#define RS_KERNELS_CPU_EXPAND_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/isa.h"

#define EXPAND_ROWS 4
#define EXPAND_COLS 512

/* Rows [t0, t0+rows) of one segment and one module of the group that starts at `first`. */
struct expand_rows {
    const struct lora_step *lora;
    const struct lora_seg *seg; /* NULL: base only */
    /* Whose B is read next, the same columns of the module but then_cols further: it is fetched
     * meanwhile. NULL: nothing, or the same B again. */
    const struct lora_seg *then;
    uint32_t then_cols;
    uint32_t layer, first, t0, rows;
};

/* Columns [n0, n0+n_col) of the module, whose rows of B are d_out long. Returns false, leaving
 * delta alone, if the module is not adapted here. */
bool ISA(expand)(const struct expand_rows *e, uint32_t module, uint32_t d_out, uint32_t n0,
                 uint32_t n_col, float delta[EXPAND_ROWS][EXPAND_COLS]);

#endif
