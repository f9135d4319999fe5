#include "server/engine/memplan.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <stdarg.h>
#include <stdio.h>

void memplan_add(struct memplan *p, void **at, uint64_t bytes, const char *what,
                 const char *formula, ...)
{
    va_list args;
    CHECK(p->line_count < MEMPLAN_LINES_MAX);
    struct memplan_line *l = &p->line[p->line_count++];
    *l = (struct memplan_line){.what = what, .bytes = bytes, .at = at};
    va_start(args, formula);
    vsnprintf(l->formula, sizeof(l->formula), formula, args);
    va_end(args);
}

static enum status refuse(struct memplan *p, const struct memplan_line *l, uint64_t bytes_max,
                          struct errtext *err)
{
    memplan_drop(p);
    if (bytes_max)
        return err_set(
            err, STATUS_TOO_LARGE,
            "the memory plan does not fit: %s needs %.1f MiB (%s), with the lines before "
            "it more than the machine's %.1f MiB",
            l->what, (double)l->bytes / 1048576.0, l->formula, (double)bytes_max / 1048576.0);
    return err_set(
        err, STATUS_TOO_LARGE,
        "the memory plan does not fit: %s needs %.1f MiB (%s), and the system refused it", l->what,
        (double)l->bytes / 1048576.0, l->formula);
}

enum status memplan_take(struct memplan *p, uint64_t bytes_max, struct errtext *err)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < p->line_count; i++) {
        struct memplan_line *l = &p->line[i];
        if (bytes_max && (l->bytes > bytes_max || sum > bytes_max - l->bytes))
            return refuse(p, l, bytes_max, err);
        sum += l->bytes;
        if (!l->at)
            continue;
        *l->at = l->bytes <= SIZE_MAX ? mem_try_alloc_aligned((size_t)l->bytes) : NULL;
        if (!*l->at)
            return refuse(p, l, 0, err);
    }
    return STATUS_OK;
}

void memplan_drop(struct memplan *p)
{
    for (uint32_t i = 0; i < p->line_count; i++) {
        struct memplan_line *l = &p->line[i];
        if (!l->at || !*l->at)
            continue;
        mem_free_aligned(*l->at, (size_t)l->bytes);
        *l->at = NULL;
    }
}

void memplan_print(const struct memplan *p, struct buf *out)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < p->line_count; i++) {
        const struct memplan_line *l = &p->line[i];
        buf_printf(out, "%-22s %10.1f MiB  %s\n", l->what, (double)l->bytes / 1048576.0,
                   l->formula);
        sum += l->bytes;
    }
    buf_printf(out, "%-22s %10.1f MiB\n", "total", (double)sum / 1048576.0);
}
