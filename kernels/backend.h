/* A backend is one table of launchers, chosen at start. The same args struct goes to all of them;
 * kernels/ref is the specification, cpu and cuda must match it on random shapes.
 *
 * Use       backend_create("auto", ...) -> ops through b->ops->gemm(b, &args) -> backend_destroy.
 * Thread    the engine's for ops; create and destroy anywhere. A backend with workers parks them
 * when idle. Errors    ops return STATUS_OK, or STATUS_IO for a broken device (the CPU backends
 * never fail). Broken preconditions panic. */
#ifndef RS_KERNELS_BACKEND_H
#define RS_KERNELS_BACKEND_H

#include "kernels/attention.h"
#include "kernels/finish.h"
#include "kernels/head.h"
#include "kernels/linear.h"
#include "kernels/lora.h"
#include "kernels/norm.h"
#include "server/base/errtext.h"

struct backend;

struct backend_ops {
    enum status (*embed)(struct backend *b, const struct embed_args *a);
    enum status (*norm)(struct backend *b, const struct norm_args *a);
    enum status (*gemm)(struct backend *b, const struct gemm_args *a);
    enum status (*lora_shrink)(struct backend *b, const struct lora_shrink_args *a);
    enum status (*qkv_finish)(struct backend *b, const struct qkv_finish_args *a);
    enum status (*residual_finish)(struct backend *b, const struct residual_finish_args *a);
    enum status (*mlp_finish)(struct backend *b, const struct mlp_finish_args *a);
    enum status (*attention)(struct backend *b, const struct attention_args *a);
    enum status (*logits)(struct backend *b, const struct logits_args *a);
    enum status (*score)(struct backend *b, const struct score_args *a);
    enum status (*sketch)(struct backend *b, const struct sketch_args *a);
    enum status (*sample)(struct backend *b, const struct sample_args *a);
    enum status (*top_logprobs)(struct backend *b, const struct top_logprobs_args *a);
    size_t (*sample_scratch_bytes)(const struct backend *b, uint32_t n_vocab);
    void (*destroy)(struct backend *b);
};

struct backend {
    const struct backend_ops *ops;
    char name[16];         /* "ref", "cpu" */
    char version[64];      /* kernel version and instruction path: part of the engine id, since bits
                              depend on it */
    uint32_t worker_count; /* threads that share an op, the caller included */
    bool has_bf16;         /* native bf16 products: what --dtype auto asks */
    bool deterministic;    /* bits independent of batch shape */
};

struct backend_options {
    const char *name;      /* "auto", "cpu", "ref", "cuda"; "cpu:PATH" forces an instruction path of
                              the CPU backend: scalar, avx2, avx512, avx512_bf16, dnnl */
    uint32_t thread_count; /* 0: as many as the process may use */
    bool deterministic;    /* default true; false lets libraries choose by shape (oneDNN) */
};

/* Errors: UNSUPPORTED for a backend this build or machine lacks, with what was found; INVALID for
 * an unknown name. */
MUST_CHECK enum status backend_create(struct backend **out, const struct backend_options *opt,
                                      struct errtext *err);
void backend_destroy(struct backend *b);

/* Bytes of scratch that sample needs for a vocabulary (all workers together). */
size_t backend_sample_scratch_bytes(const struct backend *b, uint32_t n_vocab);

#endif
