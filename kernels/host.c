/* Memory of a backend whose device is the host: plain aligned blocks, and copies that are done when
 * they return. */
#include "kernels/host.h"
#include "server/base/mem.h"

#include <string.h>

void *host_mem_alloc(struct backend *b, size_t bytes)
{
    (void)b;
    return mem_try_alloc_aligned(bytes);
}

void host_mem_free(struct backend *b, void *p, size_t bytes)
{
    (void)b;
    mem_free_aligned(p, bytes);
}

enum status host_mem_write(struct backend *b, void *to, const void *host, size_t bytes)
{
    (void)b;
    if (bytes > 0)
        memcpy(to, host, bytes);
    return STATUS_OK;
}

enum status host_mem_read(struct backend *b, void *host, const void *from, size_t bytes)
{
    (void)b;
    if (bytes > 0)
        memcpy(host, from, bytes);
    return STATUS_OK;
}

enum status host_mem_zero(struct backend *b, void *p, size_t bytes)
{
    (void)b;
    if (bytes > 0)
        memset(p, 0, bytes);
    return STATUS_OK;
}

size_t host_lora_scratch_bytes(const struct backend *b, const struct backend_limits *lim)
{
    (void)b;
    return sizeof(float) * (size_t)lim->rows_max * lim->rank_sum_max;
}

void host_mem_room(const struct backend *b, uint64_t *total, uint64_t *left)
{
    (void)b;
    *total = 0;
    *left = 0;
}

struct backend_workspace host_workspace(const struct backend *b, const struct backend_limits *lim)
{
    (void)b;
    (void)lim;
    return (struct backend_workspace){0};
}

enum status host_prepare(struct backend *b, const struct backend_limits *lim, struct errtext *err)
{
    (void)b;
    (void)lim;
    (void)err;
    return STATUS_OK;
}

enum status host_step(struct backend *b, const struct step_args *a)
{
    (void)b;
    (void)a;
    return STATUS_OK;
}

enum status host_pass_begin(struct backend *b, const struct pass_args *a, struct pass *out)
{
    (void)b;
    *out = (struct pass){.n_tok = a->n_tok, .n_out = a->n_out};
    return STATUS_OK;
}

enum status host_pass_end(struct backend *b, struct pass *p, enum status st)
{
    (void)b;
    (void)p;
    return st;
}
