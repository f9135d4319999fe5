/* The table of one instruction path. */
#include "kernels/cpu/ops.h"
#include "kernels/cpu/cpu.h"
#include "kernels/host.h"

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
    HOST_OPS,
    .destroy = cpu_backend_destroy,
};
