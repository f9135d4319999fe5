/* embed: rows of the embedding table as f32, rows split over the workers. */
#include "kernels/bf16.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec.h"

static void embed_row(const struct embed_args *a, uint32_t t)
{
    uint32_t d = a->table.d_in, i = 0;
    float *out = a->out + (size_t)t * d;
    const char *row =
        (const char *)a->table.data + (size_t)a->ids[t] * d * dtype_bytes(a->table.dtype);
    if (a->table.dtype == DTYPE_F32) {
        memcpy(out, row, d * sizeof(float));
        return;
    }
    for (; i + VW <= d; i += VW)
        vf_store(out + i, vf_load_bf16(row + 2 * i));
    if (i < d)
        vf_store_n(out + i, d - i, vf_load_bf16_n(row + 2 * i, d - i));
}

static void embed_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct embed_args *a = arg;
    uint64_t lo, hi;
    pool_share(a->n_tok, worker, n_worker, &lo, &hi);
    for (uint64_t t = lo; t < hi; t++)
        embed_row(a, (uint32_t)t);
}

enum status ISA(embed)(struct backend *b, const struct embed_args *a)
{
    struct embed_args copy = *a;
    cpu_run(cpu_of(b), embed_work, &copy, (uint64_t)a->n_tok * a->table.d_in < 65536);
    return STATUS_OK;
}
