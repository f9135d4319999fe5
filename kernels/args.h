/* What every op shares: the dimension glossary, dtypes, weights, segments, adapter tables and the
 * paged KV layout.
 *
 * Glossary    n_tok tokens (rows) in the step | n_seg segments | d_model | d_in, d_out | rank |
 *             n_head, n_kv_head, d_head | d_ff | n_vocab | page_tok tokens in a KV page
 * Memory      all tensors are row-major and live where the backend keeps them ("dev"; the CPU's
 *             device is host memory)
 * Dtypes      activations typed void * have the backend's own (backend.act): f32 on the CPU
 *             backends, bf16 on a device; the residual stream and sums are f32 on all
 * Arithmetic  a GEMM or LoRA product whose weights are bf16 first rounds its input to bf16
 *             (nearest even) and accumulates in f32, on every backend; kernels/ref is the
 *             specification
 * Calls       n_tok = 0 does nothing; args are read during the call only
 * Thread      the engine's */
#ifndef RS_KERNELS_ARGS_H
#define RS_KERNELS_ARGS_H

#include "server/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A function for host and device code alike. */
#ifdef __CUDACC__
#define KERNEL_FN static __host__ __device__ __forceinline__
#else
#define KERNEL_FN static inline
#endif

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16 };

KERNEL_FN size_t dtype_bytes(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : 2;
}

/* A linear layer's matrix [d_out, d_in] in the backend's own form (row-major for ref and cpu, any
 * alignment). dtype F32 or BF16: the loader converts F16. */
struct weight {
    const void *data;
    enum dtype dtype;
    uint32_t d_out, d_in;
    const void *packed; /* the same values as backend_ops.pack lays them, or NULL: then products
                           read data; bits are the same. Everything else reads data */
};

/* ---- LoRA ---- */

#define LORA_PARTS_MAX 8
enum lora_module {
    LORA_MODULE_Q,
    LORA_MODULE_K,
    LORA_MODULE_V,
    LORA_MODULE_O,
    LORA_MODULE_GATE,
    LORA_MODULE_UP,
    LORA_MODULE_DOWN,
    LORA_MODULE_COUNT
};

/* Shapes of the model's seven modules, by enum lora_module. */
struct lora_dims {
    uint32_t n_layer;
    uint32_t d_in[LORA_MODULE_COUNT], d_out[LORA_MODULE_COUNT];
};

/* One (layer, module) of an adapter. rank 0: the module is not adapted. Offsets are bytes from the
 * blob's start, 64-byte aligned. A is [rank, d_in] row-major; B is stored transposed, [rank, d_out]
 * row-major, so that an expand streams it. */
struct lora_entry {
    uint32_t rank;
    float scale; /* alpha/r, or alpha/sqrt(r) for rsLoRA */
    uint64_t a_off, b_off;
};

/* Layouts are shared by all adapters of the same shape. entry [n_layer][LORA_MODULE_COUNT]. */
struct lora_layout {
    const struct lora_entry *entry;
    uint64_t blob_bytes;
};

struct lora_slot {
    const void *blob; /* NULL: the slot is free */
    uint32_t layout;
};

/* The device table: an adapter's slot may be refilled between steps, nothing else is touched. */
struct lora_table {
    const struct lora_slot *slot; /* [n_slot] */
    const struct lora_layout *layout;
    uint32_t n_slot, n_layout, n_layer;
    enum dtype dtype; /* of A and B in the blobs */
};

struct lora_part {
    uint32_t slot;
    int32_t weight_q16; /* the request's weight, Q16.16; multiplies the entry's scale as
                           (float)weight/65536 */
};

/* A run of rows with one composition. part_count 0: base only, no LoRA work at all. */
struct lora_seg {
    uint32_t tok_begin, tok_count;
    uint32_t part_count;
    struct lora_part part[LORA_PARTS_MAX];
};

/* The LoRA side of a step, common to shrink and finishes. s holds the shrink outputs of ONE group
 * of modules that share an input (q,k,v | o | gate,up | down).
 *
 * Formula   s[t, off(m, p) .. + rank(m, p)] = scale * weight * A(m, p) x_t
 * Layout    off runs over the group's modules in enum order, then over the segment's parts: one
 *           module's range is contiguous across parts, so one expand serves a mix
 * Before    segments are sorted by tok_begin, disjoint, and cover all rows */
struct lora_step {
    const struct lora_table *table;
    const struct lora_seg *seg;
    uint32_t n_seg;
    float *s;          /* [n_tok, s_stride] f32 */
    uint32_t s_stride; /* >= the largest sum of ranks of a group over the batch's segments */
    double *norm2;     /* telemetry [n_tok][2]: += |delta|^2, += |base output|^2; NULL: off */
};

/* ---- paged KV: layout is data ---- */

struct kv_cache {
    void *base;
    enum dtype dtype;  /* F32 or BF16 */
    uint32_t page_tok; /* 16 */
    /* strides in elements; the head dimension is contiguous */
    uint64_t stride_page, stride_layer, stride_kv, stride_head, stride_tok;
};

/* Where each row stands. page_table [n_seq, page_stride]; row t belongs to seq[t] at position
 * pos[t]. */
struct kv_rows {
    const uint32_t *seq; /* [n_tok] */
    const uint32_t *pos; /* [n_tok] */
    const uint32_t *page_table;
    uint32_t page_stride;
};

KERNEL_FN uint64_t kv_offset(const struct kv_cache *kv, uint32_t page, uint32_t layer,
                             uint32_t is_v, uint32_t head, uint32_t tok_in_page)
{
    return page * kv->stride_page + layer * kv->stride_layer + is_v * kv->stride_kv +
           head * kv->stride_head + tok_in_page * kv->stride_tok;
}

#endif
