/* A plan is a list of lines and two sums. It knows nothing of engines: setup.c adds the lines in
 * the order in which a reader should see them, so the line that is refused is the first that does
 * not fit beside those before it, and its key is the setting to lower. */
#include "server/engine/memplan.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <stdarg.h>
#include <stdio.h>

#define MIB(bytes) ((double)(bytes) / 1048576.0)

void memplan_init(struct memplan *p, struct backend *backend, uint64_t host_max)
{
    uint64_t left;
    *p = (struct memplan){.backend = backend, .host_max = host_max};
    backend->ops->mem_room(backend, &p->device_max, &left);
}

void memplan_add(struct memplan *p, const struct memplan_block *block, const char *formula, ...)
{
    va_list args;
    CHECK(p->line_count < MEMPLAN_LINES_MAX);
    struct memplan_line *l = &p->line[p->line_count++];
    *l = (struct memplan_line){.block = *block};
    if (!p->backend->is_device)
        l->block.place = MEMPLAN_HOST;
    va_start(args, formula);
    vsnprintf(l->formula, sizeof(l->formula), formula, args);
    va_end(args);
}

static const char *place_name(const struct memplan_line *l)
{
    return l->block.place == MEMPLAN_DEVICE ? "device" : "host";
}

static enum status refuse(const struct memplan *p, const struct memplan_line *l, uint64_t before,
                          struct errtext *err)
{
    const struct memplan_block *b = &l->block;
    bool device = b->place == MEMPLAN_DEVICE;
    return err_param(err, STATUS_TOO_LARGE, b->key,
                     "the memory plan does not fit: %s needs %.1f MiB (%s), with the %.1f MiB of "
                     "the lines before it more than the %s's %.1f MiB; lower %s%s",
                     b->what, MIB(b->bytes), l->formula, MIB(before), device ? "device" : "machine",
                     MIB(device ? p->device_max : p->host_max),
                     b->key ? b->key : "rows_max, seqs_max or kv_bytes",
                     device ? ", or raise device_bytes if the device has more" : "");
}

enum status memplan_check(const struct memplan *p, struct errtext *err)
{
    uint64_t sum[2] = {0, 0}, most[2] = {p->host_max, p->device_max};
    for (uint32_t i = 0; i < p->line_count; i++) {
        const struct memplan_line *l = &p->line[i];
        uint32_t at = l->block.place;
        if (most[at] && (l->block.bytes > most[at] || sum[at] > most[at] - l->block.bytes))
            return refuse(p, l, sum[at], err);
        sum[at] += l->block.bytes;
    }
    return STATUS_OK;
}

static void *take(struct memplan *p, const struct memplan_block *b)
{
    if (b->bytes > SIZE_MAX)
        return NULL;
    if (b->place == MEMPLAN_HOST)
        return mem_try_alloc_aligned((size_t)b->bytes);
    void *at = p->backend->ops->mem_alloc(p->backend, (size_t)b->bytes);
    if (at && p->backend->ops->mem_zero(p->backend, at, (size_t)b->bytes) == STATUS_OK)
        return at;
    p->backend->ops->mem_free(p->backend, at, (size_t)b->bytes);
    return NULL;
}

enum status memplan_take(struct memplan *p, struct errtext *err)
{
    enum status st = memplan_check(p, err);
    for (uint32_t i = 0; i < p->line_count && !st; i++) {
        const struct memplan_line *l = &p->line[i];
        const struct memplan_block *b = &l->block;
        if (!b->at)
            continue;
        *b->at = take(p, b);
        if (*b->at)
            continue;
        st = err_param(err, STATUS_TOO_LARGE, b->key,
                       "the memory plan does not fit: %s needs %.1f MiB (%s), and the %s refused "
                       "it; lower %s",
                       b->what, MIB(b->bytes), l->formula,
                       b->place == MEMPLAN_DEVICE ? "device" : "system",
                       b->key ? b->key : "rows_max, seqs_max or kv_bytes");
    }
    if (st)
        memplan_drop(p);
    return st;
}

void memplan_drop(struct memplan *p)
{
    for (uint32_t i = 0; i < p->line_count; i++) {
        const struct memplan_block *b = &p->line[i].block;
        if (!b->at || !*b->at)
            continue;
        if (b->place == MEMPLAN_DEVICE)
            p->backend->ops->mem_free(p->backend, *b->at, (size_t)b->bytes);
        else
            mem_free_aligned(*b->at, (size_t)b->bytes);
        *b->at = NULL;
    }
}

uint64_t memplan_total(const struct memplan *p, enum memplan_place place)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < p->line_count; i++)
        sum += p->line[i].block.place == place ? p->line[i].block.bytes : 0;
    return sum;
}

static void print_total(const struct memplan *p, enum memplan_place place, struct buf *out)
{
    bool device = place == MEMPLAN_DEVICE;
    uint64_t most = device ? p->device_max : p->host_max;
    buf_printf(out, "%-22s %10.1f MiB  %-6s", "total", MIB(memplan_total(p, place)),
               device ? "device" : "host");
    if (most)
        buf_printf(out, "  of %.1f MiB", MIB(most));
    buf_printf(out, "\n");
}

void memplan_print(const struct memplan *p, struct buf *out)
{
    for (uint32_t i = 0; i < p->line_count; i++) {
        const struct memplan_line *l = &p->line[i];
        buf_printf(out, "%-22s %10.1f MiB  %-6s  %s\n", l->block.what, MIB(l->block.bytes),
                   place_name(l), l->formula);
    }
    print_total(p, MEMPLAN_HOST, out);
    if (p->backend->is_device)
        print_total(p, MEMPLAN_DEVICE, out);
}
