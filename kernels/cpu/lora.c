/* lora_shrink: the dot kernel over each (segment, module, part), rank tiles of all of them split
 * over the workers by cost, so that sixteen adapters of rank 16 on sixteen rows divide as well as
 * one adapter on a long prompt. */
#include "kernels/cpu/dot.h"
#include "kernels/cpu/ops.h"
#include "server/base/check.h"

#define TILE_OUT 4

struct shrink_pass {
    const struct lora_shrink_args *a;
    const char *x; /* rows t0 .. as the dot kernel reads them */
    char *converted;
    size_t x_stride_bytes;
    uint32_t t0, t1;
    uint64_t cost;
};

/* One (segment, module, part) clipped to the pass. */
struct shrink_item {
    const struct lora_seg *seg;
    const struct lora_entry *entry;
    uint32_t module, part, col, begin, rows;
    uint64_t tiles, tile_cost, cost_begin;
};

/* Weights' bytes dominate until a tile has a few rows. */
static void item_cost(struct shrink_item *it)
{
    it->tiles = (it->entry->rank + TILE_OUT - 1) / TILE_OUT;
    it->tile_cost = 4 + (uint64_t)it->rows;
}

typedef void item_fn(const struct shrink_pass *p, const struct shrink_item *it, void *arg);

static void each_item(const struct shrink_pass *p, item_fn *fn, void *arg)
{
    const struct lora_shrink_args *a = p->a;
    struct shrink_item it = {0};
    for (uint32_t i = 0; i < a->lora.n_seg; i++) {
        it.seg = &a->lora.seg[i];
        uint32_t end = MIN(it.seg->tok_begin + it.seg->tok_count, p->t1);
        it.begin = MAX(it.seg->tok_begin, p->t0);
        if (it.begin >= end || it.seg->part_count == 0)
            continue;
        it.rows = end - it.begin;
        it.col = 0;
        for (it.module = a->first; it.module < a->first + a->module_count; it.module++) {
            for (it.part = 0; it.part < it.seg->part_count; it.part++) {
                it.entry =
                    lora_entry_at(a->lora.table, it.seg->part[it.part].slot, a->layer, it.module);
                item_cost(&it);
                fn(p, &it, arg);
                it.cost_begin += it.tiles * it.tile_cost;
                it.col += it.entry->rank;
            }
        }
    }
}

static void item_count(const struct shrink_pass *p, const struct shrink_item *it, void *arg)
{
    (void)p;
    *(uint64_t *)arg = it->cost_begin + it->tiles * it->tile_cost;
}

/* A worker's share of the cost, and the item whose turn comes when the one after it is known, since
 * an item's last weights are read while those of the next are fetched. */
struct shrink_share {
    uint64_t lo, hi;
    struct shrink_item waiting;
    uint32_t ranks[2]; /* of the waiting item; equal: none waits */
};

static uint64_t first_tile(const struct shrink_item *it, uint64_t cost)
{
    if (cost <= it->cost_begin)
        return 0;
    uint64_t n = (cost - it->cost_begin + it->tile_cost - 1) / it->tile_cost;
    return MIN(n, it->tiles);
}

static const char *item_weights(const struct shrink_pass *p, const struct shrink_item *it)
{
    const struct lora_slot *slot = p->a->lora.table->slot;
    return (const char *)slot[it->seg->part[it->part].slot].blob + it->entry->a_off;
}

/* Ranks [n0, n1) of an item; `then`: the weights used next, or NULL. */
static void item_run(const struct shrink_pass *p, const struct shrink_item *it,
                     const uint32_t ranks[2], const char *then)
{
    const struct lora_shrink_args *a = p->a;
    const struct lora_part *part = &it->seg->part[it->part];
    size_t at = (size_t)it->begin * a->lora.s_stride + it->col;
    struct dot_job j = {
        .x = p->x + (it->begin - p->t0) * p->x_stride_bytes,
        .x_stride_bytes = p->x_stride_bytes,
        .w = item_weights(p, it),
        .dtype = a->lora.table->dtype,
        .d_in = a->d_in,
        .rows = it->rows,
        .y = a->lora.s + at,
        .y_stride = a->lora.s_stride,
        .then = then,
    };
    ISA(dot_range)(&j, ranks[0], ranks[1]);
    float scale = it->entry->scale * ((float)part->weight_q16 / 65536.0f);
    for (uint32_t t = 0; t < it->rows; t++) {
        float *s = j.y + (size_t)t * j.y_stride;
        float *keep = a->keep_ax ? a->keep_ax + at + (size_t)t * j.y_stride : NULL;
        for (uint32_t n = ranks[0]; n < ranks[1]; n++) {
            if (keep)
                keep[n] = s[n];
            s[n] *= scale;
        }
    }
}

static void item_turn(const struct shrink_pass *p, const struct shrink_item *it, void *arg)
{
    struct shrink_share *share = arg;
    uint32_t n0 = (uint32_t)first_tile(it, share->lo) * TILE_OUT;
    uint32_t n1 = MIN((uint32_t)first_tile(it, share->hi) * TILE_OUT, it->entry->rank);
    if (n0 >= n1)
        return;
    size_t row_bytes = p->a->d_in * dtype_bytes(p->a->lora.table->dtype);
    if (share->ranks[0] < share->ranks[1])
        item_run(p, &share->waiting, share->ranks, item_weights(p, it) + n0 * row_bytes);
    share->waiting = *it;
    share->ranks[0] = n0;
    share->ranks[1] = n1;
}

static void convert_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct shrink_pass *p = arg;
    const struct lora_shrink_args *a = p->a;
    uint64_t lo, hi;
    pool_share(p->t1 - p->t0, worker, n_worker, &lo, &hi);
    for (uint32_t i = 0; i < a->lora.n_seg; i++) {
        const struct lora_seg *seg = &a->lora.seg[i];
        uint64_t from = MAX((uint64_t)seg->tok_begin, p->t0 + lo);
        uint64_t to = MIN((uint64_t)seg->tok_begin + seg->tok_count, p->t0 + hi);
        for (uint64_t t = from; seg->part_count && t < to; t++)
            ISA(dot_convert)
        (p->converted + (t - p->t0) * p->x_stride_bytes, (const float *)a->x + t * a->x_stride,
         a->d_in, a->lora.table->dtype);
    }
}

static void shrink_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    struct shrink_pass *p = arg;
    struct shrink_share share = {0};
    pool_share(p->cost, worker, n_worker, &share.lo, &share.hi);
    each_item(p, item_turn, &share);
    if (share.ranks[0] < share.ranks[1])
        item_run(p, &share.waiting, share.ranks, NULL);
}

static bool any_adapted(const struct lora_step *lora)
{
    for (uint32_t i = 0; lora->table && i < lora->n_seg; i++)
        if (lora->seg[i].part_count && lora->seg[i].tok_count)
            return true;
    return false;
}

enum status ISA(lora_shrink)(struct backend *b, const struct lora_shrink_args *a)
{
    struct cpu_backend *c = cpu_of(b);
    if (!any_adapted(&a->lora) || a->d_in == 0)
        return STATUS_OK;
    struct shrink_pass p = {.a = a, .x = c->x, .converted = c->x};
    const bool as_is = ISA(dot_as_is)(a->lora.table->dtype, a->d_in);
    p.x_stride_bytes = ISA(dot_row_bytes)(a->lora.table->dtype, a->d_in);
    uint32_t fit = (uint32_t)(CPU_X_BYTES / p.x_stride_bytes);
    CHECK(fit > 0);
    if (as_is) {
        p.x = a->x;
        p.x_stride_bytes = a->x_stride * sizeof(float);
        fit = a->n_tok;
    }
    for (p.t0 = 0; p.t0 < a->n_tok; p.t0 = p.t1) {
        p.t1 = p.t0 + MIN(a->n_tok - p.t0, fit);
        p.cost = 0;
        each_item(&p, item_count, &p.cost);
        if (!as_is)
            cpu_run(c, convert_work, &p, (uint64_t)(p.t1 - p.t0) * a->d_in < 65536);
        cpu_run(c, shrink_work, &p, p.cost * a->d_in < 65536);
    }
    return STATUS_OK;
}
