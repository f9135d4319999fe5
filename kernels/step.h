/* What a backend learns of a pass before its ops run. The CPU backends read the args structs of the
 * ops and need none of it; a device keeps the facts of a step in tables at fixed addresses, so that
 * a recorded pass can be replayed while everything in it varies.
 *
 * Use       prepare once -> for each step: step -> pass_begin -> ops of the forward pass (unless
 *           replayed) -> pass_end -> logits, sample, score ...
 * Thread    the engine's. */
#ifndef RS_KERNELS_STEP_H
#define RS_KERNELS_STEP_H

#include "kernels/args.h"

/* The largest of everything; known once the model and the engine's options are. */
struct backend_limits {
    uint32_t rows_max;    /* rows of a pass */
    uint32_t seqs_max;    /* rows of the page table */
    uint32_t page_stride; /* pages of a sequence */
    uint32_t segs_max;
    uint32_t slots_max, layouts_max; /* of the LoRA table; 0: no adapters */
    uint32_t rank_sum_max;           /* of a group over a segment, true ranks */
    uint32_t logits_rows_max;        /* rows of one logits, sample, top_logprobs, score call */
    uint32_t n_layer, d_model, d_ff, n_head, n_kv_head, d_head, n_vocab;
};

/* One step, all pointers in host memory, read during the call only. */
struct step_args {
    const int32_t *ids; /* [n_tok]; below 0, where the backend has sample_begin: the token that
                           sample found last for sample_row.slot ~id */
    struct kv_rows rows;
    const struct lora_table *lora; /* NULL: no row has an adapter */
    const struct lora_seg *seg;    /* sorted, disjoint, covering all rows; n_seg 0 without lora */
    const uint32_t *out_rows;      /* [n_out] */
    uint32_t n_tok, n_seg, n_out;
};

/* What a recorded pass depends on, beside the tables of the step. Equal args, equal launches. */
struct pass_args {
    const void *owner;  /* whose buffers the ops use */
    const void *kv;     /* base of the KV cache */
    const void *hidden; /* output of the final norm, NULL: none */
    const void *norm2;  /* NULL: no telemetry */
    bool lora;          /* some row has an adapter */
    bool keep;          /* keep mode: never recorded */
    uint32_t n_tok, n_out;
};
struct pass {
    uint32_t n_tok, n_out; /* rows that the ops must be called with: not fewer than asked */
    bool replayed;         /* all is launched: call no op */
    bool again;            /* pass_end: nothing has run yet */
};

#endif
