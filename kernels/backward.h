/* The backward pass: gradients of the forward ops with respect to their inputs and to the LoRA
 * matrices. The base is frozen: no gradient of a base matrix, gain or bias is ever formed.
 *
 * Gradients f32 on every backend, activations kept by the forward pass in backend.act; d... is
 *           dL/d(...), in the shape of what it belongs to
 * Bits      a row's depend on its own sequence and its own adapters only; an element of an
 *           adapter's gradient is one chain over the adapter's rows in the order of the batch,
 *           continued from what stands there: other jobs in the batch, threads, and where batches
 *           are cut between rows do not show
 * Memory    every tensor where the backend keeps them; seq, seg and the tables are the host's, read
 *           during the call
 * Backends  backend_ops.back; NULL: this backend serves and does not train */
#ifndef RS_KERNELS_BACKWARD_H
#define RS_KERNELS_BACKWARD_H

#include "kernels/dropout.h"
#include "kernels/finish.h"
#include "kernels/linear.h"

struct backend;

/* cross_entropy
 *
 * Formula   logprob[t] = logit[t, target[t]] - logsumexp_v(logit[t, v]), as score's, bit for bit on
 *           the CPU backends; then, in place,
 *           logit[t, v] = weight[t] * (softmax_v(logit[t]) - [v == target[t]]),
 *           the gradient of sum_t -weight[t] * logprob[t]
 * Shapes    logits [n_row, n_vocab] f32 in-out; target [n_row] i32; weight, logprob [n_row] f32
 * Masks     target below 0: logprob 0, gradient 0, the logits are not looked at
 * Before    target < n_vocab
 * Cost      three passes over the logits; the caller tiles rows, so that no more than a tile of
 *           dlogits ever exists */
struct cross_entropy_args {
    float *logits;
    const int32_t *target;
    const float *weight;
    float *logprob;
    uint32_t n_row, n_vocab;
};

/* gemm_back: of gemm and of logits.
 *
 * Formula   dx[t, k] = sum over parts p, then n, ascending, of dy[t, col_p + n] * w_p[n, k]; dy is
 *           rounded to bf16 where w is bf16; f32 accumulation
 * Shapes    dx [n_tok, dx_stride], d_in written; dy [n_tok, dy_stride]
 * Cost      2 * n_tok * d_in * sum(d_out) flop */
struct gemm_back_args {
    float *dx;
    const float *dy;
    struct weight part[GEMM_PARTS_MAX];
    uint32_t part_count;
    uint32_t n_tok, dx_stride, dy_stride;
};

/* lora_back: a group's modules first .. first+module_count-1, which share x; dy holds their
 * outputs' gradients side by side, as gemm wrote the outputs.
 *
 * Formula   with c = scale(layer,m,p) * (weight_q16/65536), one f32 product:
 *           ds[t, off+r]  = c * sum_n dy[t, col_m + n] * Bt[r, n]
 *           dA[r, k]     += sum_t ds[t, off+r] * x[t, k]
 *           dBt[r, n]    += sum_t (c * ax[t, off+r]) * dy[t, col_m + n]
 *           dx[t, k]     += sum_m sum_p sum_r ds[t, off+r] * A[r, k]
 *           dy, and ds before A, rounded to bf16 where the blob is bf16; dA and dB take f32
 * Shapes    lora.s out: ds [n_tok, s_stride]; ax as shrink kept it; dy [n_tok, dy_stride];
 *           x [n_tok, x_stride] act; dx [n_tok, dx_stride] in-out, NULL: not wanted
 * Gradient  grad[slot] is the adapter's blob in f32, element by element: what stands at byte o of
 *           the blob has its gradient at element o / dtype_bytes(table->dtype). NULL: not trained,
 *           only passed through. Segments that share an adapter all add to it */
struct lora_back_args {
    struct lora_step lora;
    const float *dy;
    const void *x;
    const float *ax;
    float *dx;
    float *const *grad; /* [n_slot] */
    uint32_t n_tok, dy_stride, x_stride, dx_stride, d_in;
    uint32_t d_out[GEMM_PARTS_MAX];
    uint32_t layer;
    enum lora_module first;
    uint32_t module_count;
};

/* norm_back
 *
 * Formula   u = x[r, :] * rstd[t], g = gain * dy[t, :]:
 *           dx[r, i] += rstd[t] * (g_i - u_i * mean_j(u_j g_j)), r = rows ? rows[t] : t
 * Shapes    dx, x [.., d_model] f32; dy [n_tok, d_model]; rstd [n_tok] as norm kept it
 * Before    rows are distinct */
struct norm_back_args {
    float *dx;
    const float *dy, *x, *gain, *rstd;
    const uint32_t *rows;
    uint32_t n_tok, d_model;
};

/* qkv_back: of RoPE and of the norm of q and k, in place. Values pass as they are; biases are
 * constants.
 *
 * Formula   each head of q and k: turned back by its position's angle; where q_norm is given, then
 *           as norm_back with x the head's row of qk_in, rstd = 1/sqrt(mean x^2 + norm_eps)
 * Shapes    dy [n_tok, dy_stride]: q | k | v side by side; qk_in [n_tok, (n_head + n_kv_head) *
 *           d_head] as qkv_finish kept it, unused without norms; pos [n_tok] */
struct qkv_back_args {
    float *dy;
    const float *qk_in;
    const float *q_norm, *k_norm;
    float norm_eps;
    struct rope_table rope;
    const uint32_t *pos;
    uint32_t n_tok, dy_stride, n_head, n_kv_head, d_head;
};

/* mlp_back
 *
 * Formula   with e = 1/(1 + e^-gate): dgate = dout * up * e * (1 + gate * (1 - e)),
 *           dup = dout * gate * e
 * Shapes    dy [n_tok, dy_stride]: gate | up; dout, gate, up [n_tok, d_ff] */
struct mlp_back_args {
    float *dy;
    const float *dout, *gate, *up;
    uint32_t n_tok, dy_stride, d_ff;
};

/* A whole sequence: rows row .. row + n_row - 1 stand at positions 0 .. n_row - 1. */
struct attention_back_seq {
    uint32_t row, n_row;
};

/* attention_back: each sequence attends to itself alone, so packed ones cannot leak.
 *
 * Formula   P[t,j] = exp(scale * q[t,h] . k[j,g] - lse[t,h]), j from max(0, t-window+1) to t
 *           S[t,j] = P[t,j] * (dout[t,h] . v[j,g] - dout[t,h] . out[t,h])
 *           dq[t,h] = scale * sum_j S[t,j] k[j,g]; dk[j,g] = scale * sum_h sum_t S[t,j] q[t,h];
 *           dv[j,g] = sum_h sum_t P[t,j] dout[t,h]; P by tiles, from lse, never stored
 * Shapes    dy [n_tok, dy_stride] out: dq | dk | dv side by side; dout [n_tok, n_head*d_head];
 *           q, out act; k, v [n_tok, n_kv_head*d_head], rounded to kv_dtype before use, as the
 *           cache has them; lse [n_tok, n_head]
 * Rows      of no sequence are not written */
struct attention_back_args {
    float *dy;
    const float *dout;
    const void *q, *out;
    const float *k, *v, *lse;
    const struct attention_back_seq *seq;
    enum dtype kv_dtype;
    float scale;
    uint32_t n_seq, dy_stride, n_head, n_kv_head, d_head, window;
};

/* An adapter that is trained, f32 in host memory (offsets of entry are bytes of f32), and its
 * device form; the gradient's host side goes beside it. */
struct lora_train_form {
    const struct lora_entry *entry, *packed;
    const struct lora_dims *dims;
    const float *weights;
    uint16_t *packed_weights; /* bf16, packed_bytes */
    float *packed_grad;       /* twice as many */
    uint64_t packed_bytes;
};

struct backend_back_ops {
    enum status (*cross_entropy)(struct backend *b, const struct cross_entropy_args *a);
    enum status (*gemm_back)(struct backend *b, const struct gemm_back_args *a);
    enum status (*lora_back)(struct backend *b, const struct lora_back_args *a);
    enum status (*norm_back)(struct backend *b, const struct norm_back_args *a);
    enum status (*qkv_back)(struct backend *b, const struct qkv_back_args *a);
    enum status (*mlp_back)(struct backend *b, const struct mlp_back_args *a);
    enum status (*dropout)(struct backend *b, const struct dropout_args *a);
    enum status (*attention_back)(struct backend *b, const struct attention_back_args *a);
};

#endif
