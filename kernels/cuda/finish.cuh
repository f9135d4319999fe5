/* What the finishes share: how much shared memory a block has, the telemetry's slots, the sum
 * v = (y + bias) + delta, and how their kernels are launched.
 * Included  by finish.cu and finish_qkv.cu. */
#ifndef RS_KERNELS_CUDA_FINISH_CUH
#define RS_KERNELS_CUDA_FINISH_CUH

#include "kernels/cuda/lora_expand.cuh"
#include "server/base/check.h"

/* Rows of an item by 8 (NT): 1 decodes, three blocks an SM; 8 is prefill, two. */
HOST_DEVICE constexpr uint32_t finish_blocks(uint32_t nt)
{
    return nt == 1 ? 3 : 2;
}
HOST_DEVICE constexpr enum lora_list finish_list(uint32_t nt)
{
    return nt == 1 ? LORA_LIST_DECODE : LORA_LIST_PREFILL;
}

HOST_DEVICE constexpr uint32_t pitch_of(uint32_t cols)
{
    return cols + 4;
}

/* Shared memory of a block: the deltas of n modules, what is fetched early, the modules' s and
 * tables. */
HOST_DEVICE constexpr uint32_t sv_elems(uint32_t nt)
{
    return nt * 8 * s_pitch(nt);
}
HOST_DEVICE constexpr uint32_t out_floats(uint32_t nt, uint32_t cols)
{
    return nt * 8 * pitch_of(cols);
}
HOST_DEVICE constexpr uint32_t finish_smem(uint32_t n, uint32_t nt, uint32_t cols, uint32_t early)
{
    return n * (out_floats(nt, cols) * 4 + sv_elems(nt) * 2 + (uint32_t)sizeof(struct module_ref)) +
           early * EARLY_BYTES;
}

/* What every finish's job has. */
struct finish_lora {
    struct lora_view v;
    double *norm_part; /* NULL: off */
    uint32_t norm_slots;
};

DEVICE double *norm_slot(const struct finish_lora *f, uint32_t t, uint32_t slot)
{
    return f->norm_part ? f->norm_part + ((size_t)t * f->norm_slots + slot) * 2 : NULL;
}

/* v = (y + bias) + delta, and the squares it adds to the row's telemetry. */
DEVICE void module_add(struct octet *v, const float *bias, uint32_t n, const float *delta,
                       float norm2[2])
{
    octet_bias(v, bias, n);
    if (delta) {
        const struct octet d = octet_load(delta);
        norm2[0] = octet_norm2(&d);
        norm2[1] = octet_norm2(v);
        octet_add(v, &d);
    }
}

/* ---- the host's side ---- */

/* n pieces, at most so many blocks an SM. */
static inline uint32_t grid_of(const struct cuda_backend *c, uint64_t n, uint32_t per_sm)
{
    return (uint32_t)MIN(MAX(n, 1), (uint64_t)c->sm_count * per_sm);
}

static inline uint32_t div_up(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

static inline bool aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

/* The pass has adapters, and this call is part of it. */
static inline bool has_lora(const struct cuda_backend *c, const struct lora_step *lora)
{
    return lora->table && c->pass.lora;
}

struct finish_call {
    const struct lora_step *lora;
    uint32_t layer, first, n_tok, slots;
};

static inline struct finish_lora finish_lora_of(const struct cuda_backend *c,
                                                const struct finish_call *call, enum lora_list list)
{
    struct finish_lora f = {};
    f.v = lora_view_of(c, call->lora, list, call->layer, call->first, call->n_tok);
    f.norm_part = call->lora->norm2 ? c->lora->norm_part : NULL;
    f.norm_slots = c->lora->norm_slots;
    CHECK(!f.norm_part || call->slots <= f.norm_slots);
    return f;
}

/* finish_qkv.cu: telemetry slots of a row; blocks of heads are counted as if each module's last
 * were ragged. */
uint32_t qkv_norm_slots(const struct backend_limits *lim);

#endif
