/* The reference backend's table and its creation. */
#include "kernels/ref/ref.h"
#include "kernels/host.h"
#include "server/base/mem.h"

#include <stdio.h>

static void ref_destroy(struct backend *b)
{
    mem_free(b);
}

static const struct backend_back_ops ref_back_ops = {
    .cross_entropy = ref_cross_entropy,
    .gemm_back = ref_gemm_back,
    .lora_back = ref_lora_back,
    .norm_back = ref_norm_back,
    .qkv_back = ref_qkv_back,
    .mlp_back = ref_mlp_back,
    .dropout = ref_dropout,
    .attention_back = ref_attention_back,
};

static const struct backend_ops ref_ops = {
    .embed = ref_embed,
    .norm = ref_norm,
    .gemm = ref_gemm,
    .lora_shrink = ref_lora_shrink,
    .qkv_finish = ref_qkv_finish,
    .residual_finish = ref_residual_finish,
    .mlp_finish = ref_mlp_finish,
    .attention = ref_attention,
    .logits = ref_logits,
    .score = ref_score,
    .sketch = ref_sketch,
    .sample = ref_sample,
    .top_logprobs = ref_top_logprobs,
    .sample_scratch_bytes = ref_sample_scratch_bytes,
    .back = &ref_back_ops,
    HOST_OPS,
    .destroy = ref_destroy,
};

enum status ref_backend_create(struct backend **out, const struct backend_options *opt,
                               struct errtext *err)
{
    (void)opt;
    (void)err;
    struct backend *b = mem_alloc(sizeof(*b));
    b->ops = &ref_ops;
    snprintf(b->name, sizeof(b->name), "ref");
    snprintf(b->version, sizeof(b->version), "ref 1 plain loops");
    b->worker_count = 1;
    b->act = DTYPE_F32;
    b->has_bf16 = false;
    b->deterministic = true;
    *out = b;
    return STATUS_OK;
}
