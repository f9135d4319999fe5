/* lora_back in two rounds. By rows: ds and dx, each worker some rows at a time, since a row's need
 * nothing of another. By columns: dA and dB, tiles of 64 columns taken as workers come free, each
 * walking all segments in order, so that an element is one worker's chain over the rows. */
#include "kernels/bf16.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/outer.h"
#include "server/base/check.h"

#include <stdatomic.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)512 << 10) /* of converted dy, of a worker's scratch */
#define CHUNK_ROWS  48
#define A_COLS      256 /* of a panel of A widened to f32 */
#define RANKS       64
#define GRAD_COLS   64
#define GRAD_ROWS   128

struct back_job {
    const struct lora_back_args *a;
    struct cpu_backend *c;
    atomic_uint next;
};

/* One (segment, module, part). */
struct back_part {
    const struct lora_seg *seg;
    const struct lora_entry *e;
    const char *blob;
    float *grad; /* the adapter's, or NULL */
    float scale;
    uint32_t module, col, y_col, d_out; /* module of the group; first column in s, in dy; width */
};

typedef void part_fn(const struct back_job *j, const struct back_part *p, void *arg);

static void each_part(const struct back_job *j, const struct lora_seg *seg, part_fn *fn, void *arg)
{
    const struct lora_back_args *a = j->a;
    const struct lora_table *table = a->lora.table;
    struct back_part p = {.seg = seg};
    for (p.module = 0; p.module < a->module_count; p.module++) {
        p.d_out = a->d_out[p.module];
        for (uint32_t i = 0; i < seg->part_count; i++) {
            uint32_t slot = seg->part[i].slot;
            p.e = lora_entry_at(table, slot, a->layer, a->first + p.module);
            p.blob = table->slot[slot].blob;
            p.grad = a->grad[slot];
            p.scale = p.e->scale * ((float)seg->part[i].weight_q16 / 65536.0f);
            if (p.e->rank)
                fn(j, &p, arg);
            p.col += p.e->rank;
        }
        p.y_col += p.d_out;
    }
}

/* ---- by rows ---- */

struct back_rows {
    char *dy; /* converted rows of the module under way, where the dot kernel wants such */
    float *rounded, *panel;
    uint32_t t0, rows, module; /* module: whose dy is converted; module_count: none */
};

static void rows_convert(const struct back_job *j, const struct back_part *p, struct back_rows *r)
{
    const struct lora_back_args *a = j->a;
    size_t stride = ISA(dot_row_bytes)(a->lora.table->dtype, p->d_out);
    r->module = p->module;
    if (ISA(dot_as_is)(a->lora.table->dtype, p->d_out))
        return;
    for (uint32_t t = 0; t < r->rows; t++)
        ISA(dot_convert)
    (r->dy + t * stride, a->dy + (size_t)(r->t0 + t) * a->dy_stride + p->y_col, p->d_out,
     a->lora.table->dtype);
}

static void rows_ds(const struct back_job *j, const struct back_part *p, struct back_rows *r)
{
    const struct lora_back_args *a = j->a;
    struct dot_job d = {.x = r->dy,
                        .x_stride_bytes = ISA(dot_row_bytes)(a->lora.table->dtype, p->d_out),
                        .w = p->blob + p->e->b_off,
                        .dtype = a->lora.table->dtype,
                        .d_in = p->d_out,
                        .rows = r->rows,
                        .y = a->lora.s + (size_t)r->t0 * a->lora.s_stride + p->col,
                        .y_stride = a->lora.s_stride};
    if (ISA(dot_as_is)(d.dtype, d.d_in)) {
        const float *dy = a->dy + (size_t)r->t0 * a->dy_stride + p->y_col;
        d.x = (const char *)(const void *)dy;
        d.x_stride_bytes = a->dy_stride * sizeof(*dy);
    }
    ISA(dot_range)(&d, 0, p->e->rank);
    for (uint32_t t = 0; t < r->rows; t++)
        for (uint32_t i = 0; i < p->e->rank; i++)
            d.y[t * d.y_stride + i] *= p->scale;
}

/* dx += ds A, for ranks r0 .. r0+n-1 */
static void rows_dx(const struct back_job *j, const struct back_part *p, struct back_rows *r,
                    uint32_t r0, uint32_t n)
{
    const struct lora_back_args *a = j->a;
    const bool bf16 = a->lora.table->dtype == DTYPE_BF16;
    const float *ds = a->lora.s + (size_t)r->t0 * a->lora.s_stride + p->col + r0;
    const char *from = p->blob + p->e->a_off;
    struct outer o = {.c = a->dx + (size_t)r->t0 * a->dx_stride,
                      .c_stride = a->dx_stride,
                      .a = ds,
                      .a_m = a->lora.s_stride,
                      .a_k = 1,
                      .b = (const float *)(const void *)from + (size_t)r0 * a->d_in,
                      .b_stride = a->d_in,
                      .scale = 1,
                      .m = r->rows,
                      .n = a->d_in,
                      .k = n};
    if (!bf16) {
        ISA(outer)(&o);
        return;
    }
    for (uint32_t t = 0; t < r->rows; t++)
        for (uint32_t i = 0; i < n; i++)
            r->rounded[t * RANKS + i] = bf16_round(ds[t * a->lora.s_stride + i]);
    o.a = r->rounded;
    o.a_m = RANKS;
    o.b = r->panel;
    o.b_stride = A_COLS;
    for (uint32_t k0 = 0; k0 < a->d_in; k0 += A_COLS) {
        o.n = MIN(a->d_in - k0, (uint32_t)A_COLS);
        o.c = a->dx + (size_t)r->t0 * a->dx_stride + k0;
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t k = 0; k < o.n; k++)
                r->panel[i * A_COLS + k] =
                    elem_load(from, DTYPE_BF16, (size_t)(r0 + i) * a->d_in + k0 + k);
        ISA(outer)(&o);
    }
}

static void rows_part(const struct back_job *j, const struct back_part *p, void *arg)
{
    struct back_rows *r = arg;
    if (r->module != p->module)
        rows_convert(j, p, r);
    rows_ds(j, p, r);
    for (uint32_t r0 = 0; j->a->dx && r0 < p->e->rank; r0 += RANKS)
        rows_dx(j, p, r, r0, MIN(p->e->rank - r0, (uint32_t)RANKS));
}

static uint32_t chunk_rows(const struct lora_back_args *a)
{
    size_t widest = 0;
    for (uint32_t m = 0; m < a->module_count; m++)
        widest = MAX(widest, ISA(dot_row_bytes)(a->lora.table->dtype, a->d_out[m]));
    CHECK(widest <= CHUNK_BYTES);
    return (uint32_t)MIN(CHUNK_BYTES / widest, (size_t)CHUNK_ROWS);
}

static void rows_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct back_job *j = arg;
    const struct lora_back_args *a = j->a;
    uint32_t chunk = chunk_rows(a);
    uint64_t lo, hi;
    struct back_rows r = {.dy = cpu_scratch(j->c, worker)};
    r.rounded = (float *)(void *)(r.dy + CHUNK_BYTES);
    r.panel = r.rounded + CHUNK_ROWS * RANKS;
    pool_share(a->n_tok, worker, n_worker, &lo, &hi);
    for (uint32_t i = 0; i < a->lora.n_seg; i++) {
        const struct lora_seg *seg = &a->lora.seg[i];
        uint32_t end = (uint32_t)MIN((uint64_t)seg->tok_begin + seg->tok_count, hi);
        r.t0 = (uint32_t)MAX((uint64_t)seg->tok_begin, lo);
        for (; seg->part_count && r.t0 < end; r.t0 += r.rows) {
            r.rows = MIN(end - r.t0, chunk);
            r.module = a->module_count;
            each_part(j, seg, rows_part, &r);
        }
    }
}

/* ---- by columns ---- */

/* Columns n0 .. of dA (module == module_count) or of one module's dB. */
struct back_tile {
    uint32_t module, n0, n;
};

static void tile_part(const struct back_job *j, const struct back_part *p, void *arg)
{
    const struct lora_back_args *a = j->a;
    const struct back_tile *tile = arg;
    const bool is_a = tile->module == a->module_count;
    if (!p->grad || (!is_a && tile->module != p->module))
        return;
    uint32_t width = is_a ? a->d_in : p->d_out;
    uint64_t off = is_a ? p->e->a_off : p->e->b_off;
    const float *left = is_a ? a->lora.s : a->ax;
    const float *right = is_a ? (const float *)a->x + tile->n0 : a->dy + p->y_col + tile->n0;
    size_t right_stride = is_a ? a->x_stride : a->dy_stride;
    struct outer o = {.c = p->grad + off / dtype_bytes(a->lora.table->dtype) + tile->n0,
                      .c_stride = width,
                      .a_m = 1,
                      .a_k = a->lora.s_stride,
                      .b_stride = right_stride,
                      .scale = is_a ? 1 : p->scale,
                      .m = p->e->rank,
                      .n = tile->n};
    for (uint32_t t = 0; t < p->seg->tok_count; t += o.k) {
        size_t row = (size_t)p->seg->tok_begin + t;
        o.k = MIN(p->seg->tok_count - t, (uint32_t)GRAD_ROWS);
        o.a = left + row * a->lora.s_stride + p->col;
        o.b = right + row * right_stride;
        ISA(outer)(&o);
    }
}

static void grad_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    struct back_job *j = arg;
    const struct lora_back_args *a = j->a;
    uint32_t i;
    (void)worker;
    (void)n_worker;
    while (true) {
        struct back_tile tile = {0};
        uint32_t width = 0;
        i = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed);
        for (; tile.module <= a->module_count; tile.module++) {
            width = tile.module == a->module_count ? a->d_in : a->d_out[tile.module];
            uint32_t tiles = (width + GRAD_COLS - 1) / GRAD_COLS;
            if (i < tiles)
                break;
            i -= tiles;
        }
        if (tile.module > a->module_count)
            return;
        tile.n0 = i * GRAD_COLS;
        tile.n = MIN(width - tile.n0, (uint32_t)GRAD_COLS);
        for (uint32_t s = 0; s < a->lora.n_seg; s++)
            each_part(j, &a->lora.seg[s], tile_part, &tile);
    }
}

static uint64_t adapted_rows(const struct lora_back_args *a)
{
    uint64_t rows = 0;
    for (uint32_t i = 0; a->lora.table && i < a->lora.n_seg; i++)
        rows += a->lora.seg[i].part_count ? a->lora.seg[i].tok_count : 0;
    return rows;
}

enum status ISA(lora_back)(struct backend *b, const struct lora_back_args *a)
{
    struct back_job j = {.a = a, .c = cpu_of(b)};
    uint64_t rows = adapted_rows(a);
    if (!rows)
        return STATUS_OK;
    cpu_run(j.c, rows_work, &j, rows * a->d_in < 16384);
    cpu_run(j.c, grad_work, &j, rows * a->d_in < 16384);
    return STATUS_OK;
}
