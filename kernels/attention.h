/* Paged causal attention with grouped heads, prefill and decode in one contract: every row attends
 * to positions 0..pos (or the last `window` of them) of its sequence, all of which are already in
 * the cache.
 * Fixed arithmetic: a row's bits depend on its q and its sequence's cache only. KV is walked from
 * position 0 in pages, so chunk boundaries, prefix hits and the number of rows do not show. */
#ifndef RS_KERNELS_ATTENTION_H
#define RS_KERNELS_ATTENTION_H

#include "kernels/args.h"

/* attention
 *
 * Formula   out[t, h, :] = sum_j softmax_j(scale * q[t,h,:] . K[j, h/group, :]) V[j, h/group, :],
 *           j from max(0, pos-window+1) to pos; window 0: none
 * Shapes    out, q [n_tok, n_head*d_head] act; keep_lse [n_tok, n_head] f32 log-sum-exp, or NULL
 * Pages     one wholly before the window may be skipped; a partly covered one is masked
 * Cost      the KV bytes of each sequence once per kv head (decode) */
struct attention_args {
    void *out;
    const void *q;
    struct kv_cache kv;
    struct kv_rows rows;
    float *keep_lse;
    float scale; /* 1/sqrt(d_head) */
    uint32_t n_tok, layer, n_head, n_kv_head, d_head, window;
};

#endif
