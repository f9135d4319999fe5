/* Dropout of LoRA's input in training. Which elements fall is a function of the segment's seed and
 * the row's number alone, in integers, so that every backend drops the same ones, a backward pass
 * finds them again, and a row's mask does not depend on its company. */
#ifndef RS_KERNELS_DROPOUT_H
#define RS_KERNELS_DROPOUT_H

#include "kernels/args.h"

struct dropout_seg {
    uint32_t tok_begin, tok_count;
    uint32_t first_row; /* number of its first row: a row keeps its number wherever it stands */
    float p;            /* 0 <= p < 1; 0: nothing falls */
    uint64_t seed;      /* of the job and its step */
};

/* dropout
 *
 * Formula   m(t, k) = dropped ? 0 : 1/(1-p), of t's segment:
 *           add false: out[t, k] = m x[t, k], both act; true: out[t, k] += m x[t, k], both f32
 * Shapes    out [n_tok, out_stride], x [n_tok, x_stride], width columns used; out may be x
 * Site      which of the model's inputs: masks of different sites have nothing in common
 * Before    segments are sorted, disjoint, and cover all rows; they are host memory */
struct dropout_args {
    void *out;
    const void *x;
    const struct dropout_seg *seg;
    uint32_t n_seg, width, out_stride, x_stride, site;
    bool add;
};

/* ---- the same text for every backend ---- */

KERNEL_FN uint32_t dropout_mix(uint32_t x)
{
    x = (x ^ (x >> 16)) * 0x21f0aaadu;
    x = (x ^ (x >> 15)) * 0x735a2d97u;
    return x ^ (x >> 15);
}

/* A row's key. */
KERNEL_FN uint32_t dropout_key(const struct dropout_seg *s, uint32_t t, uint32_t site)
{
    uint32_t key = dropout_mix((uint32_t)s->seed ^ 0x9e3779b9u);
    key = dropout_mix(key ^ (uint32_t)(s->seed >> 32));
    key = dropout_mix(key + (s->first_row + (t - s->tok_begin)));
    return dropout_mix(key ^ site);
}

/* Elements whose 24 bits are below it fall. */
KERNEL_FN uint32_t dropout_bar(float p)
{
    return (uint32_t)(p * 16777216.0f);
}

KERNEL_FN float dropout_factor(uint32_t key, uint32_t k, uint32_t bar, float kept)
{
    return dropout_mix(dropout_mix(k ^ key) + key) >> 8 < bar ? 0.0f : kept;
}

#endif
