/* A backend is one table of launchers, chosen at start. The same args struct goes to all of them;
 * kernels/ref is the specification, cpu and cuda must match it on random shapes.
 *
 * Use       backend_create("auto", ...) -> ops through b->ops->gemm(b, &args) -> backend_destroy
 * Thread    the engine's for ops; create and destroy anywhere; a backend with workers parks them
 *           when idle
 * Errors    ops return STATUS_OK, or STATUS_IO for a broken device (the CPU backends never fail);
 *           broken preconditions panic */
#ifndef RS_KERNELS_BACKEND_H
#define RS_KERNELS_BACKEND_H

#include "kernels/attention.h"
#include "kernels/backward.h"
#include "kernels/finish.h"
#include "kernels/head.h"
#include "kernels/linear.h"
#include "kernels/lora.h"
#include "kernels/norm.h"
#include "kernels/step.h"
#include "server/base/errtext.h"

struct backend;

/* How adapters come to a device. Threads: pack any; the others the engine's. */
struct backend_adapter_ops {
    /* The device form of blobs: see lora_pack_layout, lora_pack_blob. */
    uint64_t (*layout)(struct lora_entry *packed, const struct lora_entry *entry,
                       const struct lora_dims *dims);
    void (*pack)(void *out, const struct lora_entry *packed, const void *in,
                 const struct lora_entry *entry, const struct lora_dims *dims);
    /* Of one that is trained: up, weights rounded to bf16, and grad (NULL: none) as it is, zeros
     * where no matrix is; down, grad alone. */
    void (*train_up)(const struct lora_train_form *f, const float *grad);
    void (*train_down)(const struct lora_train_form *f, float *grad);
    /* Page-locked host memory; NULL: the system refused. */
    void *(*pinned_alloc)(size_t bytes);
    void (*pinned_free)(void *p);
    /* Copies run beside the ops, those of one lane in order. begin: after the ops given so far,
     * from pinned memory that stays as it is until poll says done. Neither waits. */
    enum status (*upload_begin)(struct backend *b, uint32_t lane, void *to, const void *pinned,
                                size_t bytes);
    enum status (*upload_poll)(struct backend *b, uint32_t lane, bool *done);
};
#define BACKEND_UPLOAD_LANES 8

struct backend_workspace {
    uint64_t bytes;        /* of mem_alloc's memory */
    uint64_t pinned_bytes; /* of the host's, page-locked */
    uint32_t passes_max;   /* recorded, in memory that the driver takes beside mem_alloc's */
};

struct backend_ops {
    /* Before a thread's first op, unless it made the backend. NULL: nothing to do. */
    enum status (*enter)(struct backend *b);
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

    /* Memory that ops read and write; host memory on the CPU backends. mem_alloc: 256-byte aligned
     * on a device, contents undefined, NULL when it does not fit. mem_write returns when the host
     * bytes may change; mem_read waits for the ops before it. */
    void *(*mem_alloc)(struct backend *b, size_t bytes);
    void (*mem_free)(struct backend *b, void *p, size_t bytes);
    enum status (*mem_write)(struct backend *b, void *to, const void *host, size_t bytes);
    enum status (*mem_read)(struct backend *b, void *host, const void *from, size_t bytes);
    enum status (*mem_zero)(struct backend *b, void *p, size_t bytes);
    /* Results for a host that works on while the device does; NULL where ops return when they are
     * done. begin puts the copy behind the ops given so far: of what sample, score and sketch find
     * (the args' outputs stay alone; of sketch the rows from the first segment's begin to the last
     * one's end), of device memory. read_end waits for it and fills host. Under way at once: for
     * two passes the samples of all sequences, one score, one sketch and one read. */
    enum status (*sample_begin)(struct backend *b, const struct sample_args *a, uint32_t *ticket);
    enum status (*score_begin)(struct backend *b, const struct score_args *a, uint32_t *ticket);
    enum status (*sketch_begin)(struct backend *b, const struct sketch_args *a, uint32_t *ticket);
    enum status (*read_begin)(struct backend *b, const void *from, size_t bytes, uint32_t *ticket);
    enum status (*read_end)(struct backend *b, uint32_t ticket, void *host);
    /* A second form of a matrix that products read faster (weight.packed), 64-byte aligned: its
     * bytes (0: this backend has none for the dtype), and its making. NULL: there is none. Threads:
     * the engine's. */
    size_t (*pack_bytes)(const struct backend *b, const struct weight *w);
    void (*pack)(struct backend *b, void *out, const struct weight *w);
    /* Bytes of lora_step.s for these limits: the backend's own form. */
    size_t (*lora_scratch_bytes)(const struct backend *b, const struct backend_limits *lim);
    /* Memory for mem_alloc in all, and what is left of it; 0 and 0: the host's. */
    void (*mem_room)(const struct backend *b, uint64_t *total, uint64_t *left);
    /* What prepare takes for the backend itself. */
    struct backend_workspace (*workspace)(const struct backend *b,
                                          const struct backend_limits *lim);
    /* NULL on the CPU backends, where adapters stay where the loader puts them. */
    const struct backend_adapter_ops *adapters;
    /* The backward pass; NULL: this backend does not train. */
    const struct backend_back_ops *back;

    /* kernels/step.h */
    enum status (*prepare)(struct backend *b, const struct backend_limits *lim,
                           struct errtext *err);
    enum status (*step)(struct backend *b, const struct step_args *a);
    /* Rows that a pass of n_tok is launched and recorded for; 0: it is not recorded. NULL: none
     * is. */
    uint32_t (*pass_rows)(const struct backend *b, uint32_t n_tok);
    enum status (*pass_begin)(struct backend *b, const struct pass_args *a, struct pass *out);
    /* st: what the ops said. Returns it, or what went wrong; or OK with p->again: the pass could
     * not be recorded and has not run, call the ops once more, which run now, and pass_end. */
    enum status (*pass_end)(struct backend *b, struct pass *p, enum status st);
    void (*destroy)(struct backend *b);
};

struct backend {
    const struct backend_ops *ops;
    char name[16];         /* "ref", "cpu" */
    char version[64];      /* kernel version and instruction path: part of the engine id, since bits
                              depend on it */
    char choice[600];      /* "auto" only: what was chosen, and why */
    uint32_t worker_count; /* threads that share an op, the caller included */
    enum dtype act;        /* of activations typed void * in the args structs */
    bool is_device;        /* its memory is not the host's */
    bool has_bf16;         /* native bf16 products: what --dtype auto asks */
    bool deterministic;    /* bits independent of batch shape */
    uint64_t passes_replayed;
    uint32_t passes_recorded;   /* so far; both the engine's thread */
    uint32_t passes_unrecorded; /* shapes of a pass that are launched kernel by kernel because a
                                   recording failed; the engine's thread */
};

struct backend_options {
    /* "auto", "cpu", "ref", "cuda"; "cuda:eager" records no passes, "cuda:plan" only counts memory,
     * without a device; "cpu:PATH" forces an instruction path of the CPU backend: scalar, avx2,
     * avx512, avx512_bf16, dnnl */
    const char *name;
    uint32_t thread_count;   /* 0: as many as the process may use */
    bool deterministic;      /* default true; false lets libraries choose by shape (oneDNN) */
    uint64_t device_bytes;   /* cuda: the one allocation of device memory; 0: device_percent */
    uint32_t device_percent; /* of the free memory; 0: 90 */
    uint32_t device;         /* cuda: which one */
    bool background;         /* its threads run where no other thread wants the processor; the
                                caller's priority stays its own */
};

/* Errors: UNSUPPORTED for a backend this build or machine lacks, with what was found; INVALID for
 * an unknown name. */
MUST_CHECK enum status backend_create(struct backend **out, const struct backend_options *opt,
                                      struct errtext *err);
void backend_destroy(struct backend *b);

/* Bytes of scratch that sample needs for a vocabulary (all workers together). */
size_t backend_sample_scratch_bytes(const struct backend *b, uint32_t n_vocab);

#endif
