/* The backward pass of the model: from token ids, targets and weights to the gradients of every
 * LoRA matrix of the batch's adapters. It drives server/engine/forward.h in keep mode and
 * kernels/backward.h behind it; the base is frozen. Sequences are whole and packed one after the
 * other; each attends to itself alone, under its segment's adapters.
 *
 * Bits      an adapter's gradient depends on its own sequences and their order only: not on other
 *           adapters in the batch, on threads, on recompute, or on how sequences are spread over
 *           batches
 * Memory    keep mode holds every layer's activations; with recompute only each layer's input and
 *           one layer's activations, for one more forward pass
 * Use       backward_create -> for each batch: backward_run; or backward_begin, then backward_next
 *           until done, with other passes of the same forward between the calls: a piece is one
 *           layer forward, one tile of the head or one layer back
 * Thread    the engine's. Model, backend and forward outlive it. */
#ifndef RS_ENGINE_BACKWARD_H
#define RS_ENGINE_BACKWARD_H

#include "server/engine/forward.h"

struct backward;

struct backward_options {
    uint32_t head_rows; /* rows whose logits exist at once; 0: 128 to 512, by the vocabulary */
    bool recompute;
    bool dropout; /* room for batches that have it */
};

/* Bytes that backward_create allocates where the ops compute. */
uint64_t backward_bytes(const struct backend *backend, const struct model_config *c,
                        const struct forward_options *fo, const struct backward_options *opt);

/* model: the one that forward was made for (resident on the backend). Errors: UNSUPPORTED for a
 * backend that does not train, NO_MEMORY. */
MUST_CHECK enum status backward_create(struct backward **out, const struct model *model,
                                       struct backend *backend, struct forward *forward,
                                       const struct backward_options *opt, struct errtext *err);
void backward_destroy(struct backward *w);

struct backward_batch {
    const int32_t *ids;                   /* [n_tok] */
    const struct attention_back_seq *seq; /* [n_seq] ascending, covering all rows */
    uint32_t n_tok, n_seq;                /* n_tok <= the forward's rows_max */
    const struct lora_table *lora;
    const struct lora_seg *seg; /* sorted, disjoint, covering all rows */
    uint32_t n_seg;
    const struct dropout_seg *dropout; /* [n_dropout] kernels/dropout.h; NULL: none */
    uint32_t n_dropout;
    const int32_t *target; /* [n_tok] what a row is to predict; below 0: no loss */
    const float *weight;   /* [n_tok] the loss is the sum of -weight * logprob */
    float *const *grad;    /* [n_slot], +=: kernels/backward.h; NULL: not trained */
    float *logprob;        /* [n_tok] out, host memory: of the target, 0 without */
};

/* n_tok > 0. The batch and what it points to stay until done. A batch without targets is done when
 * its forward pass is, one that trains nothing when its head is. */
MUST_CHECK enum status backward_begin(struct backward *w, const struct backward_batch *b);
MUST_CHECK enum status backward_next(struct backward *w, bool *done);
MUST_CHECK enum status backward_run(struct backward *w, const struct backward_batch *b);

#endif
