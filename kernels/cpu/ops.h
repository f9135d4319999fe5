/* The ops of one instruction path, and the few helpers its files share. */
#ifndef RS_KERNELS_CPU_OPS_H
#define RS_KERNELS_CPU_OPS_H

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

enum status ISA(embed)(struct backend *b, const struct embed_args *a);
enum status ISA(norm)(struct backend *b, const struct norm_args *a);
enum status ISA(gemm)(struct backend *b, const struct gemm_args *a);
enum status ISA(lora_shrink)(struct backend *b, const struct lora_shrink_args *a);
enum status ISA(qkv_finish)(struct backend *b, const struct qkv_finish_args *a);
enum status ISA(residual_finish)(struct backend *b, const struct residual_finish_args *a);
enum status ISA(mlp_finish)(struct backend *b, const struct mlp_finish_args *a);
enum status ISA(attention)(struct backend *b, const struct attention_args *a);
enum status ISA(logits)(struct backend *b, const struct logits_args *a);
enum status ISA(score)(struct backend *b, const struct score_args *a);
enum status ISA(sketch)(struct backend *b, const struct sketch_args *a);
enum status ISA(sample)(struct backend *b, const struct sample_args *a);
enum status ISA(top_logprobs)(struct backend *b, const struct top_logprobs_args *a);
enum status ISA(cross_entropy)(struct backend *b, const struct cross_entropy_args *a);
enum status ISA(gemm_back)(struct backend *b, const struct gemm_back_args *a);
enum status ISA(lora_back)(struct backend *b, const struct lora_back_args *a);
enum status ISA(norm_back)(struct backend *b, const struct norm_back_args *a);
enum status ISA(qkv_back)(struct backend *b, const struct qkv_back_args *a);
enum status ISA(mlp_back)(struct backend *b, const struct mlp_back_args *a);
enum status ISA(dropout)(struct backend *b, const struct dropout_args *a);
enum status ISA(attention_back)(struct backend *b, const struct attention_back_args *a);
size_t ISA(sample_scratch_bytes)(const struct backend *b, uint32_t n_vocab);

/* gemm by our own kernel whatever the mode: the head, whose bits must equal score's. */
enum status ISA(gemm_own)(struct backend *b, const struct gemm_args *a);

/* sum_i x_i^2, one order for a given n. */
float ISA(sum_squares)(const float *x, uint32_t n);

/* Log-sum-exp by SCORE_TILE tiles: each tile's maximum and sum in f32, tiles combined in ascending
 * order in f64. */
struct lse_tile {
    float max, sum;
};
struct lse {
    double max, sum;
};
struct lse_tile ISA(lse_tile)(const float *x, uint32_t n);
void ISA(lse_add)(struct lse *l, struct lse_tile t);
float ISA(lse_logprob)(const struct lse *l, float logit);

#endif
