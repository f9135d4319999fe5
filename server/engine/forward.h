/* One pass of the model over a step's rows: a straight list of launcher calls (kernels/backend.h),
 * from token ids to the final-norm hidden states of the rows whose logits are wanted. Logits,
 * score, sample and sketch are the caller's next calls. All activation buffers are made by
 * forward_create; forward_run allocates nothing and keeps nothing between calls (what lasts is in
 * the KV cache).
 *
 * Use       forward_create -> fill a forward_batch -> forward_run -> ops->logits(hidden) ...
 * Thread    the engine's. Model and backend outlive the forward. */
#ifndef RS_ENGINE_FORWARD_H
#define RS_ENGINE_FORWARD_H

#include "kernels/backend.h"
#include "server/model/model.h"

struct forward;

struct forward_options {
    uint32_t rows_max;     /* rows per step */
    uint32_t pos_max;      /* positions 0 .. pos_max-1 (rope tables), <= the model's pos_max */
    uint32_t rank_sum_max; /* widest row of shrink outputs: the largest sum of ranks of a group
                              (qkv | o | gate,up | down) over a segment; 0: never any adapter */
    /* what a device needs to know beforehand; 0: as many as there can be for rows_max rows */
    uint32_t seqs_max, segs_max;     /* rows of the page table; segments of a step */
    uint32_t slots_max, layouts_max; /* of the LoRA table; 0: never any adapter */
    uint32_t logits_rows_max;        /* rows of one logits, sample or score call */
};

/* What forward_create tells the backend. */
struct backend_limits forward_limits(const struct model_config *c,
                                     const struct forward_options *opt);
/* Bytes that forward_create allocates where the ops compute; for the memory plan. */
uint64_t forward_bytes(const struct backend *backend, const struct model_config *c,
                       const struct forward_options *opt);

/* Also tells the backend these limits (ops->prepare). Errors: INVALID naming the option,
 * UNSUPPORTED for a size or dtype the backend lacks, NO_MEMORY, TOO_LARGE. */
MUST_CHECK enum status forward_create(struct forward **out, const struct model *model,
                                      struct backend *backend, const struct forward_options *opt,
                                      struct errtext *err);
void forward_destroy(struct forward *f);

/* Keep mode: what a backward pass needs, each [rows of the batch, ...] in backend memory, f32 or,
 * where typed void *, the backend's activations; NULL members are not kept. */
struct forward_keep_layer {
    float *attn_x, *mlp_x;       /* [n_tok, d_model] inputs of the norms */
    float *attn_rstd, *mlp_rstd; /* [n_tok] */
    void *attn_in, *mlp_in;      /* [n_tok, d_model] inputs of q,k,v and of gate,up */
    void *q;                     /* [n_tok, n_head*d_head] after norm and RoPE */
    float *qk_in;                /* [n_tok, (n_head+n_kv_head)*d_head] q | k before their norm */
    float *k, *v;                /* [n_tok, n_kv_head*d_head], k after RoPE */
    float *lse;                  /* [n_tok, n_head] */
    void *o_in;                  /* [n_tok, n_head*d_head] input of o */
    float *gate, *up;            /* [n_tok, d_ff] */
    void *down_in;               /* [n_tok, d_ff] */
    float *ax_qkv, *ax_o, *ax_mlp, *ax_down; /* [n_tok, rank_sum_max] unscaled A x */
};

/* The site of a group's input, by its first module, in dropout_args. */
static inline uint32_t forward_site(uint32_t layer, enum lora_module first)
{
    return layer * LORA_MODULE_COUNT + (uint32_t)first;
}

struct forward_batch {
    const int32_t *ids; /* [n_tok], 0 <= id < n_vocab: checked by the caller */
    uint32_t n_tok;     /* 0 .. rows_max */
    struct kv_rows rows;
    struct kv_cache kv;
    const struct lora_table *lora; /* NULL: no adapters exist */
    const struct lora_seg *seg;    /* sorted, disjoint, covering all rows; unused without lora */
    uint32_t n_seg;
    const uint32_t *out_rows; /* [n_out] rows of the batch whose hidden states are wanted */
    uint32_t n_out;
    void *hidden;                          /* [n_out, d_model] act, out: after the final norm;
                                              room for rows_max rows on a device */
    double *norm2;                         /* telemetry [n_tok][2], += (see args.h); NULL: off */
    const struct forward_keep_layer *keep; /* [n_layer] or NULL */
    float *keep_final_rstd;                /* [n_out] or NULL */
    const struct dropout_seg *dropout; /* [n_dropout] of LoRA's inputs, training only; NULL: none */
    uint32_t n_dropout;
    void *drop; /* with dropout: [n_tok, the widest input] act, scratch */
};

/* Errors: only those of the ops. Broken preconditions panic. */
MUST_CHECK enum status forward_run(struct forward *f, const struct forward_batch *b);

/* The same pass in pieces, with the same bits, so that other work may come between them: h [n_tok,
 * d_model] in the backend's memory is the residual stream, in and out. keep[layer] of the layer
 * says what is kept. Never recorded. */
MUST_CHECK enum status forward_embed(struct forward *f, const struct forward_batch *b, float *h);
MUST_CHECK enum status forward_layer(struct forward *f, const struct forward_batch *b,
                                     uint32_t layer, float *h);
MUST_CHECK enum status forward_final(struct forward *f, const struct forward_batch *b, float *h);

/* For a backward pass: what the forward was made with, and its rope tables. */
const struct forward_options *forward_made_with(const struct forward *f);
struct rope_table forward_rope(const struct forward *f);

#endif
