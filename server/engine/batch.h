/* The rows of one step as the kernels want them: token ids, sequence and position of each row, runs
 * of equal composition as segments, and the list of rows whose hidden state is wanted. Filled in
 * order of composition by the engine; valid until the next batch_clear. Pure but for its arrays,
 * which are the caller's. Engine thread. */
#ifndef RS_ENGINE_BATCH_H
#define RS_ENGINE_BATCH_H

#include "kernels/args.h"
#include "server/adapter/composition.h"

struct batch_out { /* why a row's hidden state is wanted, beside batch.out_row */
    uint32_t slot; /* the sequence */
    uint32_t pos;  /* of the row */
};

struct batch {
    int32_t *ids;          /* [rows_max] step_args.ids */
    uint32_t *seq;         /* [rows_max] row of the page table */
    uint32_t *pos;         /* [rows_max] */
    uint32_t *out_row;     /* [rows_max] */
    struct batch_out *out; /* [rows_max] */
    struct lora_seg *seg;  /* [segs_max] */
    uint32_t rows_max, segs_max;
    uint32_t n_tok, n_seg, n_out;
    bool any_lora;
};

/* A run of rows of one sequence: positions first..first+count-1. */
struct batch_run {
    uint32_t slot;
    const struct composition *comp;
    const uint32_t *lora_slot; /* [comp->n] */
    const int32_t *prompt, *output;
    uint32_t n_prompt, n_known; /* ids from n_known on are the device's to know: ~slot stands for
                                   the one sampled last */
    uint32_t first, count;
};

void batch_clear(struct batch *b);
/* Append; returns the first row. A run that computes with the same slots and weights as the one
 * before it joins its segment. Room is the caller's promise (rows_max, segs_max). */
uint32_t batch_add(struct batch *b, const struct batch_run *run);
/* Ask for the hidden state of a row. */
void batch_want(struct batch *b, uint32_t row);
/* Panic unless segments tile the rows, ids are in the vocabulary and positions have pages. */
void batch_verify(const struct batch *b, uint32_t n_vocab, uint32_t pos_max);

#endif
