/* The elementwise op that must follow each base GEMM, with the LoRA expand, bias and telemetry
 * folded in.
 *
 * Formula   delta(m)[t, n] = sum_p sum_r s[t, off(m,p)+r] * Bt(layer,m,p)[r, n]
 *           y = (base + bias) + delta
 * Order     parts, then ranks ascending; f32 sums starting from 0; s as lora_shrink wrote it,
 *           rounded to bf16 before the product when the blob is bf16
 * Cost      lora.table NULL or all segments base-only: no LoRA work */
#ifndef RS_KERNELS_FINISH_H
#define RS_KERNELS_FINISH_H

#include "kernels/args.h"

/* Rotary embedding tables, made by the engine at start from the model's rope settings (f32,
 * attention factor folded in). Pairs are (i, i + d_head/2): "rotate half", as the HF families. */
struct rope_table {
    const float *cos, *sin; /* [pos_max, d_head/2] */
    uint32_t pos_max;
};

/* qkv_finish: adds bias and LoRA, applies the per-head RMSNorm of qwen3 to q and k where q_norm is
 * given, RoPE to q and k, writes q out and k, v into the paged cache (rounded to its dtype).
 *
 * Shapes    y [n_tok, y_stride]: q | k | v side by side; q_out [n_tok, n_head*d_head] act;
 *           bias_* [n_head*d_head], [n_kv_head*d_head] f32 or NULL;
 *           q_norm, k_norm [d_head] f32 or NULL; norm_eps used with them
 * Before    every page that a row's position falls in is allocated; pos < rope.pos_max */
struct qkv_finish_args {
    struct lora_step lora;
    void *q_out;
    const float *y;
    const float *bias_q, *bias_k, *bias_v;
    const float *q_norm, *k_norm;
    float norm_eps;
    struct rope_table rope;
    struct kv_cache kv;
    struct kv_rows rows;
    float *keep_qk; /* keep mode: q | k before norm, [n_tok, (n_head+n_kv_head)*d_head]; or NULL */
    float *keep_k, *keep_v; /* keep mode: [n_tok, n_kv_head*d_head] k after RoPE, v; or NULL */
    uint32_t n_tok, y_stride, layer, n_head, n_kv_head, d_head;
};

/* residual_finish
 *
 * Formula   h[t, :] += y[t, :] + bias + delta(module), module O or DOWN
 * Shapes    h [n_tok, d_model] f32 in-out; y [n_tok, y_stride]; bias [d_model] f32 or NULL */
struct residual_finish_args {
    struct lora_step lora;
    float *h;
    const float *y;
    const float *bias;
    uint32_t n_tok, y_stride, layer, d_model;
    enum lora_module module;
};

/* mlp_finish
 *
 * Formula   out[t, i] = silu(g) * u, g = y[t, i] + delta(GATE), u = y[t, d_ff + i] + delta(UP),
 *           silu(g) = g / (1 + e^-g)
 * Shapes    y [n_tok, y_stride]: gate | up; out [n_tok, d_ff] act;
 *           keep_gate, keep_up [n_tok, d_ff] or NULL */
struct mlp_finish_args {
    struct lora_step lora;
    void *out;
    const float *y;
    const float *bias_gate, *bias_up; /* [d_ff] or NULL */
    float *keep_gate, *keep_up;
    uint32_t n_tok, y_stride, layer, d_ff;
};

#endif
