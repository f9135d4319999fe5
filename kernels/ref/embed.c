/* embed: rows of the embedding table as f32. */
#include "kernels/bf16.h"
#include "kernels/ref/ref.h"

enum status ref_embed(struct backend *b, const struct embed_args *a)
{
    (void)b;
    uint32_t d = a->table.d_in;
    for (uint32_t t = 0; t < a->n_tok; t++)
        for (uint32_t i = 0; i < d; i++)
            a->out[(size_t)t * d + i] =
                elem_load(a->table.data, a->table.dtype, (size_t)a->ids[t] * d + i);
    return STATUS_OK;
}
