# Files of the CUDA backend, by compiler. One line a family; tests/emulation and tests/run read the list too.
set(RS_CUDA_KERNELS
  gpu.cu embed.cu norm.cu
  gemm.cu gemm_skinny.cu gemm_tile.cu
  lora.cu finish.cu finish_qkv.cu
  attention.cu attention_prefill.cu
  head.cu sample.cu pick.cu
  back_rows.cu gemm_back.cu lora_back.cu attention_back.cu
)
set(RS_CUDA_HOST
  cuda.c step.c pass.c upload.c results.c
  cublaslt.c gemm_plan.c
  lora_pack.c lora_train.c
  sample_rows.c
  attention_plan.c
)
