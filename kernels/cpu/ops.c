/* The table of one instruction path. */
#include "kernels/cpu/ops.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/product.h"
#include "kernels/host.h"

static const struct backend_back_ops back_ops = {
    .cross_entropy = ISA(cross_entropy),
    .gemm_back = ISA(gemm_back),
    .lora_back = ISA(lora_back),
    .norm_back = ISA(norm_back),
    .qkv_back = ISA(qkv_back),
    .mlp_back = ISA(mlp_back),
    .dropout = ISA(dropout),
    .attention_back = ISA(attention_back),
};

extern const struct backend_ops ISA(ops);

const struct backend_ops ISA(ops) = {
    .embed = ISA(embed),
    .norm = ISA(norm),
    .gemm = ISA(gemm),
    .lora_shrink = ISA(lora_shrink),
    .qkv_finish = ISA(qkv_finish),
    .residual_finish = ISA(residual_finish),
    .mlp_finish = ISA(mlp_finish),
    .attention = ISA(attention),
    .logits = ISA(logits),
    .score = ISA(score),
    .sketch = ISA(sketch),
    .sample = ISA(sample),
    .top_logprobs = ISA(top_logprobs),
    .sample_scratch_bytes = ISA(sample_scratch_bytes),
    .back = &back_ops,
    .pack_bytes = ISA(pack_bytes),
    .pack = ISA(pack),
    HOST_OPS,
    .destroy = cpu_backend_destroy,
};
