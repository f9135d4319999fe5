/* norm: RMSNorm of f32 rows to bf16. One block a row: each thread sums its features in ascending
 * order, lanes and then warps are added by fixed trees, so a row's bits depend on the row alone.
 * The second pass finds the row in L1. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

#define THREADS 256
#define WARPS   (THREADS / LANES)

struct norm_rows {
    const uint32_t *count; /* rows that are not padding */
    const uint32_t *rows;  /* NULL: row t is row t */
    const float *x, *gain;
    bf16_t *out;
    float *keep_rstd, *keep_x; /* NULL: not kept */
    float eps;
    uint32_t d;
};

static KERNEL(THREADS, 4) void norm_rows(struct norm_rows a)
{
    SMEM(smem);
    float *part = (float *)smem; /* [WARPS] */
    uint32_t t = blockIdx.x;
    pdl_trigger(); /* the product that follows fetches its weights meanwhile */
    pdl_wait();
    if (t >= *a.count)
        return;
    const float *x = a.x + (size_t)(a.rows ? a.rows[t] : t) * a.d;
    bf16_t *out = a.out + (size_t)t * a.d;
    float sum = 0;
    for (uint32_t i = threadIdx.x * 4; i < a.d; i += THREADS * 4) {
        float4 v = *(const float4 *)(x + i);
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        if (a.keep_x)
            *(float4 *)(a.keep_x + (size_t)t * a.d + i) = v;
    }
    sum = warp_sum(sum);
    if (lane_id() == 0)
        part[warp_id()] = sum;
    block_sync();
    sum = 0;
    UNROLL
    for (uint32_t w = 0; w < WARPS; w++)
        sum += part[w];
    float rstd = 1.0f / sqrtf(sum / (float)a.d + a.eps);
    for (uint32_t i = threadIdx.x * 4; i < a.d; i += THREADS * 4) {
        float4 v = *(const float4 *)(x + i), g = *(const float4 *)(a.gain + i);
        uint2 o = {bf16x2_pack(v.x * rstd * g.x, v.y * rstd * g.y),
                   bf16x2_pack(v.z * rstd * g.z, v.w * rstd * g.w)};
        *(uint2 *)(out + i) = o;
    }
    if (a.keep_rstd && threadIdx.x == 0)
        a.keep_rstd[t] = rstd;
}

enum status cuda_norm(struct backend *b, const struct norm_args *a)
{
    struct cuda_backend *c = cuda_of(b);
    CHECK(a->d_model % 4 == 0);
    if (a->n_tok == 0)
        return STATUS_OK;
    struct norm_rows args = {.count = a->rows ? &c->step.counts->n_out : &c->step.counts->n_tok,
                             .rows = a->rows ? c->step.out_rows : NULL,
                             .x = a->x,
                             .gain = a->gain,
                             .out = (bf16_t *)a->out,
                             .keep_rstd = a->keep_rstd,
                             .keep_x = a->keep_x,
                             .eps = a->eps,
                             .d = a->d_model};
    LAUNCH_PDL(norm_rows, a->n_tok, THREADS, WARPS * sizeof(float), c->stream, args);
    return gpu_launched("norm");
}
