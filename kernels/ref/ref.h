/* The reference backend: plain loops, f64 sums, one thread. It is the specification the other
 * backends are tested against, not a way to serve. */
#ifndef RS_KERNELS_REF_REF_H
#define RS_KERNELS_REF_REF_H

#include "kernels/backend.h"

MUST_CHECK enum status ref_backend_create(struct backend **out, const struct backend_options *opt,
                                          struct errtext *err);

/* ---- shared inside the folder ---- */

/* sum_k x[k] * w[row, k], x rounded to bf16 if w is bf16; f64 sum, rounded to f32 once. */
float ref_dot(const float *x, const struct weight *w, uint32_t row);

/* The part of a running log-sum-exp. Start with max = -inf, sum = 0. */
struct ref_lse {
    double max, sum;
};
void ref_lse_add(struct ref_lse *l, const float *x, uint32_t n); /* n <= SCORE_TILE */
float ref_lse_logprob(const struct ref_lse *l, float logit);

enum status ref_embed(struct backend *b, const struct embed_args *a);
enum status ref_norm(struct backend *b, const struct norm_args *a);
enum status ref_gemm(struct backend *b, const struct gemm_args *a);
enum status ref_lora_shrink(struct backend *b, const struct lora_shrink_args *a);
enum status ref_qkv_finish(struct backend *b, const struct qkv_finish_args *a);
enum status ref_residual_finish(struct backend *b, const struct residual_finish_args *a);
enum status ref_mlp_finish(struct backend *b, const struct mlp_finish_args *a);
enum status ref_attention(struct backend *b, const struct attention_args *a);
enum status ref_logits(struct backend *b, const struct logits_args *a);
enum status ref_score(struct backend *b, const struct score_args *a);
enum status ref_sketch(struct backend *b, const struct sketch_args *a);
enum status ref_sample(struct backend *b, const struct sample_args *a);
enum status ref_top_logprobs(struct backend *b, const struct top_logprobs_args *a);
enum status ref_cross_entropy(struct backend *b, const struct cross_entropy_args *a);
enum status ref_gemm_back(struct backend *b, const struct gemm_back_args *a);
enum status ref_lora_back(struct backend *b, const struct lora_back_args *a);
enum status ref_norm_back(struct backend *b, const struct norm_back_args *a);
enum status ref_qkv_back(struct backend *b, const struct qkv_back_args *a);
enum status ref_mlp_back(struct backend *b, const struct mlp_back_args *a);
enum status ref_dropout(struct backend *b, const struct dropout_args *a);
enum status ref_attention_back(struct backend *b, const struct attention_back_args *a);
size_t ref_sample_scratch_bytes(const struct backend *b, uint32_t n_vocab);

#endif
