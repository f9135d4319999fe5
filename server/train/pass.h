/* One forward and backward pass over whole sequences of several adapters on one base: what trains
 * one adapter trains many, and reads the base once for all of them. Sequences are taken until there
 * is no room, then run together.
 *
 * Device    weights, gradients and moments stay in host memory (pass_device.h); adapters have what
 *           the backend's memory has left when the pass is made
 * Bits      an adapter's gradient and its sequences' log-probabilities depend on its own sequences
 *           and their order alone: not on the company in a pass, nor on where passes are cut
 * Thread    one, the backend's. Base, adapters and what sequences point to outlive the run. */
#ifndef RS_TRAIN_PASS_H
#define RS_TRAIN_PASS_H

#include "server/engine/resident.h"
#include "server/train/train_lora.h"

#include <stdatomic.h>

struct train_base {
    const struct model *model;
    struct backend *backend;
    const struct resident *resident;
};

struct train_pass_options {
    uint32_t tokens;          /* of a pass, and so of a sequence; <= the base's context */
    uint32_t adapters_max;    /* in one pass */
    uint32_t rank_sum_max;    /* of an adapter: train_lora.rank_sum_max */
    bool dropout;             /* room for sequences that have it */
    bool recompute;           /* less memory, one more forward pass; the same bits */
    uint64_t bytes_max;       /* of kept activations beyond which it is done; 0: any are kept */
    const _Atomic bool *stop; /* looked at layer by layer: the run ends CANCELLED; or NULL */
};

struct train_seq {
    const struct train_lora *lora;
    float *grad; /* [lora->n], += of every matrix; NULL: log-probabilities alone */
    const int32_t *ids;
    const int32_t *target; /* [n] what a token is to predict; below 0: nothing */
    const float *weight;   /* [n] the loss is the sum of -weight * logprob */
    float *logprob;        /* [n] out: of the target, 0 without one */
    uint32_t n;            /* 1 .. tokens */
    float dropout;         /* share of the adapter's inputs that falls; 0: none */
    uint64_t dropout_seed;
};

struct train_pass;
/* Errors: INVALID naming the option, UNSUPPORTED where the backend does not train, NO_MEMORY. */
MUST_CHECK enum status train_pass_create(struct train_pass **out, const struct train_base *base,
                                         const struct train_pass_options *opt, struct errtext *err);
void train_pass_free(struct train_pass *p); /* NULL is fine */
/* Bytes that a pass of these options takes. */
uint64_t train_pass_bytes(const struct train_base *base, const struct train_pass_options *opt);
/* Bytes that an adapter takes of a device while it is in a pass; 0 where ops read host memory. */
uint64_t train_pass_adapter_bytes(const struct train_base *base, const struct train_lora *lora);

/* false: there is no room for it in this pass; in an empty one there always is, but on a device
 * whose memory does not hold the adapter. */
MUST_CHECK bool train_pass_add(struct train_pass *p, const struct train_seq *s);
uint32_t train_pass_tokens(const struct train_pass *p); /* taken */
/* Whoever has sequences: next shows one (false: none now), take moves on to the one behind it. */
struct seq_source {
    void *self;
    bool (*next)(void *self, struct train_seq *out);
    void (*take)(void *self);
};
/* Takes from all of them in turns, from the one at `first` on, until nobody has one that fits: so
 * nobody's long step keeps the others waiting. */
void train_pass_fill(struct train_pass *p, const struct seq_source *source, uint32_t n,
                     uint32_t first);
/* Runs what was taken, and is empty again. Errors: CANCELLED; what the ops say. Gradients are of no
 * use then. */
MUST_CHECK enum status train_pass_run(struct train_pass *p);
/* For statistics: passes run, their tokens, and the room they had. */
struct train_pass_stats {
    uint64_t passes, tokens, room, sequences;
};
struct train_pass_stats train_pass_stats(const struct train_pass *p);

#endif
