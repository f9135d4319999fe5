/* What follows the final norm: logits, teacher-forced scores, sketches and sampling. */
#ifndef RS_KERNELS_HEAD_H
#define RS_KERNELS_HEAD_H

#include "kernels/args.h"

#define SAMPLE_TOP_MAX 20
#define SKETCH_DIM     64

/* logits: the gemm of linear.h with one part, kept apart because a backend may tile it.
 *
 * Formula   out[t, v] = sum_k x[t,k] * w[v,k]
 * Shapes    out [n_row, n_vocab] f32; x [n_row, d_model] act, after the final norm */
struct logits_args {
    float *out;
    const void *x;
    struct weight w;
    uint32_t n_row;
};

/* score: of raw logits, f32, without storing them.
 *
 * Formula   logprob[t] = logit[target[t]] - logsumexp_v(logit[v])
 * Order     that of sample's logprob: both walk the vocabulary in ascending order with the fixed
 *           tile SCORE_TILE, max first within a tile, so that a score equals the logprob that
 *           decoding reported, bit for bit
 * Shapes    x [n_row, d_model] act; target [n_row] i32; scratch f32 [n_row, SCORE_TILE];
 *           logprob [n_row] f32, in host memory on every backend */
#define SCORE_TILE 1024
struct score_args {
    float *logprob;
    const void *x;
    struct weight w;
    const int32_t *target;
    float *scratch;
    uint32_t n_row;
};

/* What a sketch projects on; in the backend's memory. */
struct sketch_basis {
    const uint16_t *w; /* [SKETCH_DIM, d_model] bf16, row-major, 16-byte aligned */
    const float *bias; /* [SKETCH_DIM] */
};

/* Rows row .. row + n_row - 1 of x. */
struct sketch_seg {
    uint32_t row, n_row;
    const struct sketch_basis *basis; /* host memory, read during the call */
};

/* sketch: a row's direction in a basis, in 64 bytes.
 *
 * Formula   z_j = sum_k w[j,k] * x[t,k] - bias[j]
 *           out[t, j] = round_even(127 * z_j / |z|); |z| = 0, or not finite, gives zeros
 * Order     products and sums in f32, an element's in one fixed order; bias, |z| (j ascending) and
 *           the division in f64
 * Shapes    out [rows of x, 64] i8, in host memory on every backend: row t is that of x's row t;
 *           rows outside the segments are undefined from the first segment's begin to the last
 *           one's end, and not written elsewhere; x [.., d_model] act
 * Before    segments are sorted by row, disjoint, not empty */
struct sketch_args {
    int8_t *out;
    const void *x;
    const struct sketch_seg *seg;
    uint32_t n_seg, d_model;
};

/* One row's sampling. Effects, in the order of vLLM:
 *   1. logit_bias; min-token and allowed masks are the engine's business, as biases of -inf
 *   2. penalties: repetition, l > 0 ? l/r : l*r for tokens of prompt and output; frequency and
 *      presence over output tokens
 *   3. temperature == 0: the best, ties to the lowest id
 *   4. else temperature, top_k, min_p (keeps p >= min_p * p_max), top_p (keeps the smallest prefix
 *      whose sum >= top_p), then a draw with Philox(seed; counter {draw, 0, 0, 0})
 * Candidates are ordered by (logit descending, id ascending); the draw walks that order in f64. */
struct sample_bias {
    int32_t id;
    float bias;
};
struct sample_row {
    float temperature, top_p, min_p, repetition, frequency, presence;
    int32_t top_k; /* 0 or less: off */
    uint64_t seed;
    uint32_t draw; /* index of this draw: the output position */
    const struct sample_bias *bias;
    uint32_t bias_count;
    const int32_t *prompt, *output; /* for penalties */
    uint32_t n_prompt, n_output;
    uint32_t top_count; /* logprob alternatives wanted, 0..SAMPLE_TOP_MAX */
    /* For a device that keeps tokens, so that each crosses the bus once. history: a number of its
     * own for each sequence, never used again for another; 0: nothing is kept. slot < seqs_max: the
     * sequence's, no two rows of a call share one. Between calls with the same history the prompt
     * stays, and the output only gains the ids that these calls returned: such entries need not be
     * filled in. */
    uint64_t history;
    uint32_t slot;
};
struct sample_out {
    int32_t id;
    float logprob; /* of id under the raw logits */
    int32_t top_id[SAMPLE_TOP_MAX];
    float top_logprob[SAMPLE_TOP_MAX]; /* raw, descending; ties by lowest id */
};
/* sample
 *
 * Shapes    logits [n_row, n_vocab] f32; scratch: backend_sample_scratch_bytes(n_vocab)
 * After     logits are clobbered */
struct sample_args {
    struct sample_out *out; /* [n_row], in host memory on every backend */
    float *logits;
    const struct sample_row *row; /* [n_row] */
    void *scratch;
    uint32_t n_row, n_vocab;
};

/* top_logprobs: logprob and the top alternatives of given targets from stored logits (echo,
 * lm-eval).
 *
 * After     logits are as they were */
struct top_logprobs_args {
    struct sample_out *out; /* id = target, logprob and top_* filled; host memory */
    const float *logits;
    const int32_t *target; /* [n_row] */
    const uint32_t *top_count;
    uint32_t n_row, n_vocab;
};

#endif
