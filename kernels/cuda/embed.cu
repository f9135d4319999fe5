/* embed: rows of the embedding table, bf16, to the residual stream, f32. One block a row, 16-byte
 * loads, 8 features a thread and turn. An id below 0 is a token that the host has not seen: ~id is
 * the slot that sample wrote it for. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

#define THREADS 128

struct embed_rows {
    const struct cuda_counts *counts;
    const int32_t *ids, *latest;
    const bf16_t *table;
    float *out;
    uint32_t d;
};

static KERNEL(THREADS, 8) void embed_rows(struct embed_rows a)
{
    uint32_t row = blockIdx.x;
    pdl_trigger();
    pdl_wait();
    if (row >= a.counts->n_tok)
        return;
    int32_t id = a.ids[row];
    if (id < 0)
        id = a.latest[~id];
    const bf16_t *from = a.table + (size_t)id * a.d;
    float *out = a.out + (size_t)row * a.d;
    for (uint32_t i = threadIdx.x * 8; i < a.d; i += THREADS * 8) {
        uint4 v = ldg_16(from + i);
        float4 lo = {bf16x2_lo(v.x), bf16x2_hi(v.x), bf16x2_lo(v.y), bf16x2_hi(v.y)};
        float4 hi = {bf16x2_lo(v.z), bf16x2_hi(v.z), bf16x2_lo(v.w), bf16x2_hi(v.w)};
        *(float4 *)(out + i) = lo;
        *(float4 *)(out + i + 4) = hi;
    }
}

enum status cuda_embed(struct backend *b, const struct embed_args *a)
{
    struct cuda_backend *c = cuda_of(b);
    CHECK(a->table.dtype == DTYPE_BF16);
    CHECK(a->table.d_in % 8 == 0);
    if (a->n_tok == 0)
        return STATUS_OK;
    struct embed_rows args = {c->step.counts, c->step.ids,
                              cuda_latest(b), (const bf16_t *)a->table.data,
                              a->out,         a->table.d_in};
    LAUNCH_PDL(embed_rows, a->n_tok, THREADS, 0, c->stream, args);
    return gpu_launched("embed");
}
