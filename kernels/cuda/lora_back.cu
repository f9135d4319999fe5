/* lora_back, a launch for each (module, segment, part), in that order of segments that the contract
 * gives an adapter's rows. A and B are read in the device's form (lora_pack.h), and the gradient
 * mirrors it: grad[slot][o/2] belongs to the element at byte o of the packed blob; what pads a tile
 * keeps gradient 0.
 *
 * Kernels   ds: a warp an element, lanes along n; dx: a thread an element, ranks ascending; dA, dB:
 *           a thread an element, one chain over the segment's rows, continued from memory
 * Bound     ds by B once a row, dA and dB by dy and x once a rank, from L2. Not yet run on a GPU */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/lora_pack.h"

#define THREADS 256
#define WARPS   (THREADS / LANES)

/* One (module, segment, part); pointers at the segment's first row and the part's first column. */
struct back_run {
    const bf16_t *a, *b; /* packed */
    const bf16_t *x;
    const float *dy, *ax;
    float *ds, *dx, *grad_a, *grad_b; /* NULL: not wanted */
    float scale;
    uint32_t rows, rank, d_in, d_out;
    uint32_t x_stride, dy_stride, s_stride, dx_stride;
};

static KERNEL(THREADS, 4) void lora_back_ds(struct back_run j)
{
    const uint32_t unit = blockIdx.x * WARPS + warp_id(), t = unit / j.rank, r = unit % j.rank;
    float sum = 0;
    if (t >= j.rows)
        return;
    for (uint32_t n = lane_id(); n < j.d_out; n += LANES)
        sum = fmaf(bf16_round(j.dy[(size_t)t * j.dy_stride + n]),
                   bf16_to_f32(j.b[lora_pack_b_at(n, r, j.rank)]), sum);
    sum = warp_sum(sum);
    if (lane_id() == 0)
        j.ds[(size_t)t * j.s_stride + r] = j.scale * sum;
}

static KERNEL(THREADS, 4) void lora_back_dx(struct back_run j)
{
    const uint32_t k = blockIdx.y * THREADS + threadIdx.x, t = blockIdx.x;
    if (k >= j.d_in)
        return;
    const float *ds = j.ds + (size_t)t * j.s_stride;
    float *dx = j.dx + (size_t)t * j.dx_stride + k, sum = *dx;
    for (uint32_t r = 0; r < j.rank; r++)
        sum = fmaf(bf16_round(ds[r]), bf16_to_f32(j.a[lora_pack_a_at(r, k, j.d_in)]), sum);
    *dx = sum;
}

static KERNEL(THREADS, 4) void lora_back_da(struct back_run j)
{
    const uint32_t k = blockIdx.y * THREADS + threadIdx.x, r = blockIdx.x;
    if (k >= j.d_in)
        return;
    float *grad = j.grad_a + lora_pack_a_at(r, k, j.d_in), sum = *grad;
    for (uint32_t t = 0; t < j.rows; t++)
        sum = fmaf(j.ds[(size_t)t * j.s_stride + r], bf16_to_f32(j.x[(size_t)t * j.x_stride + k]),
                   sum);
    *grad = sum;
}

static KERNEL(THREADS, 4) void lora_back_db(struct back_run j)
{
    const uint32_t n = blockIdx.y * THREADS + threadIdx.x, r = blockIdx.x;
    if (n >= j.d_out)
        return;
    float *grad = j.grad_b + lora_pack_b_at(n, r, j.rank), sum = *grad;
    for (uint32_t t = 0; t < j.rows; t++)
        sum = fmaf(j.scale * j.ax[(size_t)t * j.s_stride + r], j.dy[(size_t)t * j.dy_stride + n],
                   sum);
    *grad = sum;
}

static uint32_t blocks_of(uint32_t n)
{
    return (n + THREADS - 1) / THREADS;
}

static void run_launch(const struct back_run *j, void *stream)
{
    LAUNCH(lora_back_ds, (j->rows * j->rank + WARPS - 1) / WARPS, THREADS, 0, stream, *j);
    if (j->dx)
        LAUNCH(lora_back_dx, dim3(j->rows, blocks_of(j->d_in)), THREADS, 0, stream, *j);
    if (!j->grad_a)
        return;
    LAUNCH(lora_back_da, dim3(j->rank, blocks_of(j->d_in)), THREADS, 0, stream, *j);
    LAUNCH(lora_back_db, dim3(j->rank, blocks_of(j->d_out)), THREADS, 0, stream, *j);
}

/* A segment's modules and parts; y_col and s_col walk dy and s. */
static void seg_launch(const struct lora_back_args *a, const struct lora_seg *seg, void *stream)
{
    const struct lora_table *table = a->lora.table;
    const size_t t = seg->tok_begin;
    uint32_t y_col = 0, s_col = 0;
    struct back_run j = {};
    j.x = (const bf16_t *)a->x + t * a->x_stride;
    j.dx = a->dx ? a->dx + t * a->dx_stride : NULL;
    j.rows = seg->tok_count;
    j.d_in = a->d_in;
    j.x_stride = a->x_stride;
    j.dy_stride = a->dy_stride;
    j.s_stride = a->lora.s_stride;
    j.dx_stride = a->dx_stride;
    for (uint32_t m = 0; m < a->module_count; m++) {
        j.d_out = a->d_out[m];
        j.dy = a->dy + t * a->dy_stride + y_col;
        for (uint32_t p = 0; p < seg->part_count; p++) {
            const uint32_t slot = seg->part[p].slot;
            const struct lora_entry *e = lora_entry_at(table, slot, a->layer, a->first + m);
            const char *blob = (const char *)table->slot[slot].blob;
            float *grad = a->grad[slot];
            j.a = (const bf16_t *)(blob + e->a_off);
            j.b = (const bf16_t *)(blob + e->b_off);
            j.ax = a->ax + t * j.s_stride + s_col;
            j.ds = a->lora.s + t * j.s_stride + s_col;
            j.grad_a = grad ? grad + e->a_off / sizeof(bf16_t) : NULL;
            j.grad_b = grad ? grad + e->b_off / sizeof(bf16_t) : NULL;
            j.scale = e->scale * ((float)seg->part[p].weight_q16 / 65536.0f);
            j.rank = e->rank;
            s_col += e->rank;
            if (j.rank && j.rows)
                run_launch(&j, stream);
        }
        y_col += j.d_out;
    }
}

enum status cuda_lora_back(struct backend *b, const struct lora_back_args *a)
{
    if (!a->lora.table)
        return STATUS_OK;
    CHECK(a->lora.table->dtype == DTYPE_BF16);
    for (uint32_t i = 0; i < a->lora.n_seg; i++)
        seg_launch(a, &a->lora.seg[i], cuda_of(b)->stream);
    return gpu_launched("lora_back");
}
