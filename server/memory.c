/* Budgets given as a part of the whole become bytes, and the sum of what is asked is compared with
 * what the machine or its control group has. */
#include "server/memory.h"
#include "server/adapter/blob_pool.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/engine/resident.h"

#include <inttypes.h>

#define POOL_PART   4 /* of what the base leaves, one part is the adapters' */
#define BLOB_ALIGN  64
#define ROWS_CPU    1024
#define ROWS_DEVICE 2048
#define ROWS_BESIDE 768 /* above seqs_max at least */
#define MIB(bytes)  ((double)(bytes) / 1048576.0)

static const uint32_t ranks[] = {8, 16, 32, 64, 128};

enum status memory_adapter_pool(uint64_t *bytes, const struct config *c, const struct model *m,
                                const struct backend *b, struct errtext *err)
{
    uint64_t total, left, base = resident_bytes(m);
    *bytes = 0;
    if (!b->is_device)
        return STATUS_OK;
    b->ops->mem_room(b, &total, &left);
    if (base > total)
        return err_param(err, STATUS_TOO_LARGE, "device_bytes",
                         "the memory plan does not fit: model weights need %.1f MiB on the device, "
                         "which has %.1f MiB for this server; raise device_bytes, or choose a "
                         "smaller model",
                         MIB(base), MIB(total));
    uint64_t rest = total - base;
    uint64_t want = budget_bytes(c->adapters_device_bytes_max, rest);
    want = want ? want : rest / POOL_PART;
    *bytes = want / BLOB_POOL_DEVICE_GRANULE * BLOB_POOL_DEVICE_GRANULE;
    if (want > rest)
        return err_param(err, STATUS_TOO_LARGE, "adapters_device_bytes_max",
                         "the memory plan does not fit: adapter pool needs %.1f MiB "
                         "(adapters_device_bytes_max), the base leaves %.1f of the device's %.1f "
                         "MiB; lower adapters_device_bytes_max, or raise device_bytes",
                         MIB(want), MIB(rest), MIB(total));
    if (*bytes > 0)
        return STATUS_OK;
    return err_param(err, STATUS_TOO_LARGE, "adapters_device_bytes_max",
                     "adapter pool: %" PRIu64 " bytes hold no adapter, it is shared out in pieces "
                     "of %d MiB; one of rank %u on all linear layers needs %.1f MiB: raise "
                     "adapters_device_bytes_max or device_bytes",
                     want, BLOB_POOL_DEVICE_GRANULE >> 20, ranks[0],
                     MIB(memory_adapter_bytes(m, b, ranks[0])));
}

uint64_t memory_host_adapters(const struct config *c)
{
    return budget_bytes(c->adapters_host_bytes_max, mem_machine_bytes());
}

uint32_t memory_rows(const struct config *c, const struct backend *b)
{
    uint64_t standard = b->is_device ? ROWS_DEVICE : ROWS_CPU;
    return (uint32_t)(c->rows_max ? c->rows_max : MAX(standard, c->seqs_max + ROWS_BESIDE));
}

uint64_t memory_kv(const struct config *c, const struct model *m, const struct backend *b,
                   uint32_t context)
{
    const struct model_config *mc = &m->config;
    uint64_t per_token =
        (uint64_t)mc->n_layer * 2 * mc->n_kv_head * mc->d_head * dtype_bytes(m->dtype);
    uint64_t whole = mem_machine_bytes(), left;
    if (b->is_device) {
        b->ops->mem_room(b, &whole, &left);
        whole -= MIN(whole, resident_bytes(m));
    }
    if (c->kv_bytes || b->is_device)
        return budget_bytes(c->kv_bytes, whole);
    return MIN(per_token * context * c->seqs_max, whole / 4);
}

static uint64_t align_up(uint64_t n)
{
    return (n + BLOB_ALIGN - 1) / BLOB_ALIGN * BLOB_ALIGN;
}

uint64_t memory_adapter_bytes(const struct model *m, const struct backend *b, uint32_t rank)
{
    const uint32_t n = m->config.n_layer;
    struct lora_dims dims = {.n_layer = n};
    struct lora_entry *entry = mem_array((size_t)n * LORA_MODULE_COUNT, sizeof(*entry));
    uint64_t bytes = 0;
    for (uint32_t k = 0; k < LORA_MODULE_COUNT; k++)
        model_module_shape(&m->config, (enum lora_module)k, &dims.d_out[k], &dims.d_in[k]);
    for (uint32_t i = 0; i < n * LORA_MODULE_COUNT; i++) {
        uint32_t k = i % LORA_MODULE_COUNT;
        entry[i].rank = rank;
        entry[i].a_off = bytes;
        bytes += align_up((uint64_t)rank * dims.d_in[k] * dtype_bytes(m->dtype));
        entry[i].b_off = bytes;
        bytes += align_up((uint64_t)rank * dims.d_out[k] * dtype_bytes(m->dtype));
    }
    if (b->ops->adapters)
        bytes = b->ops->adapters->layout(entry, entry, &dims);
    mem_free(entry);
    return bytes;
}

static uint64_t fit(uint64_t room, uint64_t bytes, uint64_t granule)
{
    uint64_t each = (bytes + granule - 1) / granule * granule;
    return room / each;
}

void memory_print_adapters(struct buf *out, const struct config *c, const struct model *m,
                           const struct backend *b, uint64_t pool_bytes)
{
    uint64_t granule = b->is_device ? BLOB_POOL_HOST_GRANULE : BLOB_ALIGN;
    buf_printf(out,
               "adapters that fit, on all linear layers (at most %" PRIu64
               " are resident: adapters_resident_max)\n",
               c->adapters_resident_max);
    for (size_t i = 0; i < ARRAY_COUNT(ranks); i++) {
        uint64_t bytes = memory_adapter_bytes(m, b, ranks[i]);
        buf_printf(out, "  rank %-4u %8.1f MiB each", ranks[i], MIB(bytes));
        if (b->is_device)
            buf_printf(out, "  device %7" PRIu64, fit(pool_bytes, bytes, BLOB_POOL_DEVICE_GRANULE));
        buf_printf(out, "  host %7" PRIu64 "%s\n", fit(memory_host_adapters(c), bytes, granule),
                   ranks[i] > c->adapter_rank_max ? "  (above adapter_rank_max)" : "");
    }
}
