/* The CUDA backend: creation, the tables of a step, and what its files share. Args structs are
 * those of every backend, but tensors are device memory, activations typed void * are bf16, and
 * what varies from step to step (ids, positions, pages, segments, adapters, row counts) is read on
 * the device from the tables of struct cuda_step, never from the host pointers in the args: a
 * recorded pass stays valid. An op's n_tok is the number of rows to launch for; rows from
 * counts->n_tok on are padding.
 *
 * Included by kernels/cuda, its tests, and kernels/backend.c. No CUDA type appears. */
#ifndef RS_KERNELS_CUDA_CUDA_H
#define RS_KERNELS_CUDA_CUDA_H

#ifdef __cplusplus
extern "C" {
#endif
#include "kernels/backend.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/gpu.h"
#include "server/base/check.h"

MUST_CHECK enum status cuda_backend_create(struct backend **out, const struct backend_options *opt,
                                           struct errtext *err);

/* ---- the tables of a step ---- */

#define CUDA_NONE         UINT32_MAX
#define CUDA_DECODE_ROWS  8  /* rows of an item of lora_decode */
#define CUDA_PREFILL_ROWS 64 /* rows of an item of lora_prefill */
#define CUDA_PREFILL_MIN  17 /* rows of one sequence, side by side: so many are prefill */

/* One piece of LoRA work: rows begin .. begin+count-1 of segment seg. */
struct cuda_item {
    uint32_t seg, begin, count;
};

struct cuda_counts {
    uint32_t n_tok, n_out, n_seq, n_seg;
    uint32_t n_lora_decode, n_lora_prefill;
};

/* Device pointers, constant from prepare on; kernels take the struct by value. */
struct cuda_step {
    const struct cuda_counts *counts;
    const int32_t *ids;       /* [rows_max] */
    const uint32_t *seq;      /* [rows_max] sequence of the batch, 0..n_seq-1; CUDA_NONE: padding */
    const uint32_t *pos;      /* [rows_max] */
    const uint32_t *out_rows; /* [rows_max] */
    const uint32_t *page_begin; /* [seqs_max] where a sequence's pages start in page */
    const uint32_t *page; /* position p of sequence q is in page[page_begin[q] + p/page_tok] */
    const struct lora_seg *seg;       /* [segs_max]; without adapters one base-only segment */
    const struct lora_slot *slot;     /* [slots_max] blobs are device pointers */
    const struct lora_layout *layout; /* [layouts_max] entries are device pointers */
    const struct cuda_item *lora_decode, *lora_prefill;
    const struct attn_list *attn; /* with its items */
    uint32_t n_layer;
};

/* The host's view of the pass under way: which kernels are worth launching. Part of what a recorded
 * pass is chosen by, so launchers may branch on it. */
struct cuda_pass {
    bool lora;                      /* some row has an adapter */
    bool lora_decode, lora_prefill; /* the list has items */
    bool attn_decode, attn_prefill;
};

/* ---- the backend ---- */

struct cuda_graphs;
struct cuda_results;
struct cuda_tables;
struct cuda_uploads;

struct cuda_backend {
    struct backend base;
    struct gpu *gpu;
    void *stream; /* ops run here, in order */
    struct cuda_uploads *uploads;
    uint32_t sm_count; /* grids of persistent kernels are multiples of it */
    struct backend_limits limits;
    struct cuda_step step;
    struct cuda_pass pass;
    struct cuda_tables *tables;
    struct cuda_graphs *graphs;
    struct cuda_results *results;
    /* the families' own state, made by their prepare */
    struct cuda_gemm *gemm;
    struct cuda_lora *lora;
    struct cuda_attention *attention;
    struct cuda_head *head;
};

static inline struct cuda_backend *cuda_of(struct backend *b)
{
    return (struct cuda_backend *)(void *)b;
}

/* A family: prepare takes its device and pinned memory once limits are known (NO_MEMORY says what
 * did not fit); release takes back whatever prepare made, also after it failed. */
enum status cuda_gemm_prepare(struct cuda_backend *c, struct errtext *err);
void cuda_gemm_release(struct cuda_backend *c);
enum status cuda_lora_prepare(struct cuda_backend *c, struct errtext *err);
void cuda_lora_release(struct cuda_backend *c);
enum status cuda_attention_prepare(struct cuda_backend *c, struct errtext *err);
void cuda_attention_release(struct cuda_backend *c);
/* attention's part of a step's tables: bytes at most, known from limits alone; and filled. */
size_t cuda_attention_list_bytes_max(const struct cuda_backend *c);
size_t cuda_attention_plan(const struct cuda_backend *c, const struct attn_rows *rows,
                           struct attn_list *out);
enum status cuda_head_prepare(struct cuda_backend *c, struct errtext *err);
void cuda_head_release(struct cuda_backend *c);

/* gpu_smem_allow for the large kernels of a file: at creation. */
enum status cuda_gemm_skinny_allow(void);
enum status cuda_gemm_tile_allow(void);
enum status cuda_lora_allow(void);
enum status cuda_finish_allow(void);
enum status cuda_qkv_allow(void);
enum status cuda_attn_split_allow(void);
enum status cuda_attn_full_allow(void);
enum status cuda_sample_allow(void);
enum status cuda_pick_allow(void);

/* cuda.c: device memory for a family; err names `what` and the sizes. */
enum status cuda_take(struct cuda_backend *c, void **out, size_t bytes, const char *what,
                      struct errtext *err);

enum status cuda_embed(struct backend *b, const struct embed_args *a);
enum status cuda_norm(struct backend *b, const struct norm_args *a);
enum status cuda_gemm(struct backend *b, const struct gemm_args *a);
enum status cuda_lora_shrink(struct backend *b, const struct lora_shrink_args *a);
enum status cuda_qkv_finish(struct backend *b, const struct qkv_finish_args *a);
enum status cuda_residual_finish(struct backend *b, const struct residual_finish_args *a);
enum status cuda_mlp_finish(struct backend *b, const struct mlp_finish_args *a);
enum status cuda_attention(struct backend *b, const struct attention_args *a);
enum status cuda_logits(struct backend *b, const struct logits_args *a);
enum status cuda_score(struct backend *b, const struct score_args *a);
enum status cuda_score_begin(struct backend *b, const struct score_args *a, uint32_t *ticket);
enum status cuda_sketch(struct backend *b, const struct sketch_args *a);
enum status cuda_sketch_begin(struct backend *b, const struct sketch_args *a, uint32_t *ticket);
enum status cuda_sample(struct backend *b, const struct sample_args *a);
enum status cuda_sample_begin(struct backend *b, const struct sample_args *a, uint32_t *ticket);
enum status cuda_top_logprobs(struct backend *b, const struct top_logprobs_args *a);
enum status cuda_cross_entropy(struct backend *b, const struct cross_entropy_args *a);
enum status cuda_gemm_back(struct backend *b, const struct gemm_back_args *a);
enum status cuda_lora_back(struct backend *b, const struct lora_back_args *a);
enum status cuda_norm_back(struct backend *b, const struct norm_back_args *a);
enum status cuda_qkv_back(struct backend *b, const struct qkv_back_args *a);
enum status cuda_mlp_back(struct backend *b, const struct mlp_back_args *a);
enum status cuda_dropout(struct backend *b, const struct dropout_args *a);
enum status cuda_attention_back(struct backend *b, const struct attention_back_args *a);
/* Device [seqs_max]: the id that sample returned last for each sample_row.slot. Written in stream
 * order, so a pass given after it may read its ids here. NULL before prepare. */
const int32_t *cuda_latest(const struct backend *b);
/* results.c: device memory on its way to the host in stream order. bytes > 0. */
enum status cuda_read_begin(struct backend *b, const void *from, size_t bytes, uint32_t *ticket);
enum status cuda_read_end(struct backend *b, uint32_t ticket, void *host);
size_t cuda_sample_scratch_bytes(const struct backend *b, uint32_t n_vocab);
size_t cuda_lora_scratch_bytes(const struct backend *b, const struct backend_limits *lim);

#ifdef __cplusplus
}
#endif

#endif
