/* Recorded passes. A pass of few rows is padded to a bucket; for each bucket and each shape of pass
 * (with or without adapters, which lists have items, whose buffers) the first run launches the ops
 * as they come, which also lets libraries choose their algorithms, the second records them, and
 * from then on one call replays the record. Padding is the same in all three, so bits are. A shape
 * that cannot be recorded, for whatever reason, is launched op by op from then on: slower, and said
 * once in the log. */
#include "kernels/cuda/tables.h"
#include "server/base/check.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <string.h>

#define GRAPHS_MAX 128

static const uint32_t buckets[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256};

struct pass_shape { /* compared as bytes: no padding that is not zeroed */
    const void *owner, *kv, *hidden, *norm2;
    uint32_t rows, has_out;
    uint32_t flags;
    uint32_t zero;
};

struct pass_entry {
    struct pass_shape shape;
    void *graph; /* NULL: not recorded yet */
    uint32_t runs;
    bool plain;    /* could not be recorded */
    uint64_t used; /* when last */
};

struct cuda_graphs {
    struct pass_entry entry[GRAPHS_MAX];
    uint32_t count;
    uint64_t clock;
    struct pass_entry *recording;
};

void cuda_graphs_create(struct cuda_backend *c)
{
    c->graphs = mem_alloc(sizeof(*c->graphs));
}

void cuda_graphs_forget(struct cuda_backend *c)
{
    for (uint32_t i = 0; c->graphs && i < c->graphs->count; i++) {
        gpu_graph_destroy(c->graphs->entry[i].graph);
        c->graphs->entry[i].graph = NULL; /* an entry's next owner destroys what it finds */
    }
    if (c->graphs)
        c->graphs->count = 0;
}

void cuda_graphs_release(struct cuda_backend *c)
{
    cuda_graphs_forget(c);
    mem_free(c->graphs);
    c->graphs = NULL;
}

uint32_t cuda_graphs_max(void)
{
    return GRAPHS_MAX;
}

/* 0: too many rows for any. */
static uint32_t bucket_of(const struct cuda_backend *c, uint32_t n_tok)
{
    for (size_t i = 0; i < ARRAY_COUNT(buckets); i++)
        if (n_tok <= buckets[i])
            return MIN(buckets[i], c->limits.rows_max);
    return 0;
}

static struct pass_shape shape_of(const struct cuda_backend *c, const struct pass_args *a,
                                  uint32_t rows)
{
    struct pass_shape s;
    memset(&s, 0, sizeof(s));
    s.owner = a->owner;
    s.kv = a->kv;
    s.hidden = a->hidden;
    s.norm2 = a->norm2;
    s.rows = rows;
    s.has_out = a->n_out > 0;
    s.flags = (uint32_t)a->lora | (uint32_t)c->pass.lora << 1 | (uint32_t)c->pass.lora_decode << 2 |
              (uint32_t)c->pass.lora_prefill << 3 | (uint32_t)c->pass.attn_decode << 4 |
              (uint32_t)c->pass.attn_prefill << 5;
    return s;
}

static struct pass_entry *entry_for(struct cuda_graphs *g, const struct pass_shape *s)
{
    struct pass_entry *oldest = &g->entry[0];
    for (uint32_t i = 0; i < g->count; i++) {
        if (memcmp(&g->entry[i].shape, s, sizeof(*s)) == 0)
            return &g->entry[i];
        if (g->entry[i].used < oldest->used)
            oldest = &g->entry[i];
    }
    struct pass_entry *e = g->count < GRAPHS_MAX ? &g->entry[g->count++] : oldest;
    gpu_graph_destroy(e->graph);
    memset(e, 0, sizeof(*e));
    e->shape = *s;
    return e;
}

static void give_up(struct cuda_backend *c, struct pass_entry *e)
{
    e->plain = true;
    c->base.passes_unrecorded++;
    log_warn("cuda",
             "passes of %u rows are launched kernel by kernel: one could not be recorded (%s)",
             e->shape.rows, gpu_reason());
}

uint32_t cuda_pass_rows(const struct backend *b, uint32_t n_tok)
{
    const struct cuda_backend *c = (const struct cuda_backend *)(const void *)b;
    return c->graphs ? bucket_of(c, n_tok) : 0;
}

enum status cuda_pass_begin(struct backend *b, const struct pass_args *a, struct pass *out)
{
    struct cuda_backend *c = cuda_of(b);
    struct cuda_graphs *g = c->graphs;
    uint32_t rows = a->keep ? 0 : bucket_of(c, a->n_tok);
    CHECK(a->n_tok <= c->limits.rows_max && a->n_out <= a->n_tok);
    *out = (struct pass){.n_tok = rows ? rows : a->n_tok, .n_out = a->n_out};
    if (!rows)
        return STATUS_OK;
    out->n_out = a->n_out ? rows : 0;
    if (!g)
        return STATUS_OK;
    struct pass_shape s = shape_of(c, a, rows);
    struct pass_entry *e = entry_for(g, &s);
    e->used = ++g->clock;
    if (e->graph) {
        out->replayed = true;
        c->base.passes_replayed++;
        return gpu_graph_launch(e->graph, c->stream);
    }
    if (e->plain || e->runs++ == 0)
        return STATUS_OK;
    if (gpu_capture_begin(c->stream) == STATUS_OK)
        g->recording = e;
    else
        give_up(c, e);
    return STATUS_OK;
}

enum status cuda_pass_end(struct backend *b, struct pass *p, enum status st)
{
    struct cuda_backend *c = cuda_of(b);
    struct pass_entry *e = c->graphs ? c->graphs->recording : NULL;
    p->again = false;
    if (p->replayed || !e)
        return st;
    c->graphs->recording = NULL;
    enum status end = gpu_capture_end(c->stream, &e->graph);
    c->base.passes_recorded += !st && !end;
    if (!st && !end)
        return gpu_graph_launch(e->graph, c->stream);
    gpu_graph_destroy(e->graph);
    e->graph = NULL;
    give_up(c, e);
    p->again = true;
    return STATUS_OK;
}
