/* The three finishes. Work is a grid of column chunks by row tiles: a tile is up to EXPAND_ROWS
 * rows of one segment, a chunk up to EXPAND_COLS columns (whole heads for qkv). Workers share the
 * grid, chunk-major, so that a chunk of B is reused by the segment's rows from L1. Chunk borders
 * depend on the model's shape only, and telemetry is summed in chunks, then over chunks in order:
 * the number of workers shows nowhere. */
#include "kernels/bf16.h"
#include "kernels/cpu/expand.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec.h"
#include "server/base/check.h"

struct finish_pass;
typedef void finish_tile_fn(const struct finish_pass *p, const struct expand_rows *e,
                            uint32_t chunk);

struct finish_pass {
    const void *args;
    const struct lora_step *lora;
    finish_tile_fn *tile;
    double *norm_part;     /* of the pass, or NULL */
    uint32_t layer, first; /* group's first module */
    uint32_t t0, t1, n_chunk, chunk_cols;
};

/* ---- the grid ---- */

static uint32_t seg_tiles(const struct finish_pass *p, uint32_t begin, uint32_t end)
{
    begin = MAX(begin, p->t0);
    end = MIN(end, p->t1);
    return begin < end ? (end - begin + EXPAND_ROWS - 1) / EXPAND_ROWS : 0;
}

static uint32_t pass_tiles(const struct finish_pass *p)
{
    uint32_t n = 0;
    if (!p->lora->table)
        return seg_tiles(p, p->t0, p->t1);
    for (uint32_t i = 0; i < p->lora->n_seg; i++) {
        const struct lora_seg *seg = &p->lora->seg[i];
        n += seg_tiles(p, seg->tok_begin, seg->tok_begin + seg->tok_count);
    }
    return n;
}

/* Tiles [lo, hi) of the rows [begin, end), whose first tile has index `index`. */
static void run_rows(const struct finish_pass *p, struct expand_rows *e, const uint32_t tiles[3],
                     uint32_t begin, uint32_t end)
{
    uint32_t chunk = tiles[2], n = seg_tiles(p, begin, end);
    begin = MAX(begin, p->t0);
    end = MIN(end, p->t1);
    const struct lora_seg *then = e->then;
    for (uint32_t i = tiles[0]; i < MIN(tiles[1], n); i++) {
        e->then = i + 1 == n ? then : NULL;
        e->t0 = begin + i * EXPAND_ROWS;
        e->rows = MIN((uint32_t)EXPAND_ROWS, end - e->t0);
        p->tile(p, e, chunk);
    }
}

/* The adapted segment after segment i; past the last it is the first, for the next chunk. */
static void set_then(const struct finish_pass *p, struct expand_rows *e, uint32_t i)
{
    const struct lora_step *lora = p->lora;
    e->then_cols = 0;
    do {
        if (++i == lora->n_seg) {
            i = 0;
            e->then_cols = p->chunk_cols;
        }
        e->then = &lora->seg[i];
    } while (e->then != e->seg && e->then->part_count == 0);
}

static void run_chunk(const struct finish_pass *p, uint32_t chunk, uint32_t lo, uint32_t hi)
{
    struct expand_rows e = {.lora = p->lora, .layer = p->layer, .first = p->first};
    uint32_t index = 0;
    if (!p->lora->table) {
        uint32_t tiles[3] = {lo, hi, chunk};
        run_rows(p, &e, tiles, p->t0, p->t1);
        return;
    }
    for (uint32_t i = 0; i < p->lora->n_seg && index < hi; i++) {
        const struct lora_seg *seg = &p->lora->seg[i];
        uint32_t end = seg->tok_begin + seg->tok_count, n = seg_tiles(p, seg->tok_begin, end);
        if (index + n > lo) {
            uint32_t tiles[3] = {lo > index ? lo - index : 0, hi - index, chunk};
            e.seg = seg->part_count ? seg : NULL;
            e.then = NULL;
            if (e.seg)
                set_then(p, &e, i);
            run_rows(p, &e, tiles, seg->tok_begin, end);
        }
        index += n;
    }
}

static void finish_work(void *arg, uint32_t worker, uint32_t n_worker)
{
    const struct finish_pass *p = arg;
    uint64_t lo, hi, n_tile = pass_tiles(p);
    pool_share(n_tile * p->n_chunk, worker, n_worker, &lo, &hi);
    for (uint64_t i = lo; i < hi;) {
        uint64_t chunk = i / n_tile, end = MIN(hi, (chunk + 1) * n_tile);
        run_chunk(p, (uint32_t)chunk, (uint32_t)(i - chunk * n_tile),
                  (uint32_t)(end - chunk * n_tile));
        i = end;
    }
}

static void add_norms(const struct finish_pass *p)
{
    for (uint32_t t = p->t0; t < p->t1; t++) {
        const double *part = p->norm_part + (size_t)(t - p->t0) * p->n_chunk * 2;
        for (uint32_t c = 0; c < p->n_chunk; c++) {
            p->lora->norm2[2 * (size_t)t] += part[2 * c];
            p->lora->norm2[2 * (size_t)t + 1] += part[2 * c + 1];
        }
    }
}

static void finish_run(struct backend *b, struct finish_pass *p, uint32_t n_tok, uint64_t cols)
{
    struct cpu_backend *c = cpu_of(b);
    bool norms = p->lora->table && p->lora->norm2;
    CHECK(p->n_chunk <= CPU_FINISH_CHUNKS);
    p->norm_part = norms ? c->norm_part : NULL;
    for (p->t0 = 0; p->t0 < n_tok; p->t0 = p->t1) {
        p->t1 = norms ? MIN(n_tok, p->t0 + CPU_FINISH_ROWS) : n_tok;
        if (norms)
            memset(c->norm_part, 0, sizeof(double) * 2 * (size_t)(p->t1 - p->t0) * p->n_chunk);
        cpu_run(c, finish_work, p, (p->t1 - p->t0) * cols < 16384);
        if (norms)
            add_norms(p);
    }
}

/* ---- what the tiles share ---- */

/* Telemetry of one row of a tile: base is y + bias, delta the adapters' part. */
static void norm_add(const struct finish_pass *p, uint32_t t, uint32_t chunk, const float *delta,
                     const float *base, uint32_t n)
{
    if (!p->norm_part)
        return;
    double *part = p->norm_part + ((size_t)(t - p->t0) * p->n_chunk + chunk) * 2;
    part[0] += (double)ISA(sum_squares)(delta, n);
    part[1] += (double)ISA(sum_squares)(base, n);
}

/* out = (y + bias) + delta; delta NULL: not adapted. */
static void add_base(float *out, const float *y, const float *bias, uint32_t n)
{
    if (bias)
        for (uint32_t i = 0; i < n; i++)
            out[i] = y[i] + bias[i];
    else
        memcpy(out, y, n * sizeof(float));
}

static void add_to(float *out, const float *delta, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] += delta[i];
}

/* ---- residual ---- */

static void residual_tile(const struct finish_pass *p, const struct expand_rows *e, uint32_t chunk)
{
    const struct residual_finish_args *a = p->args;
    uint32_t n0 = chunk * EXPAND_COLS, n = MIN((uint32_t)EXPAND_COLS, a->d_model - n0);
    float delta[EXPAND_ROWS][EXPAND_COLS], v[EXPAND_COLS];
    bool adapted = ISA(expand)(e, a->module, a->d_model, n0, n, delta);
    for (uint32_t r = 0; r < e->rows; r++) {
        uint32_t t = e->t0 + r;
        add_base(v, a->y + (size_t)t * a->y_stride + n0, a->bias ? a->bias + n0 : NULL, n);
        if (adapted) {
            norm_add(p, t, chunk, delta[r], v, n);
            add_to(v, delta[r], n);
        }
        add_to(a->h + (size_t)t * a->d_model + n0, v, n);
    }
}

enum status ISA(residual_finish)(struct backend *b, const struct residual_finish_args *a)
{
    struct finish_pass p = {.args = a, .lora = &a->lora, .tile = residual_tile, .layer = a->layer};
    p.first = a->module;
    p.n_chunk = (a->d_model + EXPAND_COLS - 1) / EXPAND_COLS;
    p.chunk_cols = EXPAND_COLS;
    finish_run(b, &p, a->n_tok, a->d_model);
    return STATUS_OK;
}

/* ---- mlp ---- */

static void silu_mul(float *out, const float *g, const float *u, uint32_t n)
{
    const vf one = vf_set1(1.0f);
    uint32_t i = 0;
    for (; i + VW <= n; i += VW) {
        vf gv = vf_load(g + i);
        vf_store(out + i, gv / (one + vf_exp(-gv)) * vf_load(u + i));
    }
    if (i < n) {
        vf gv = vf_load_n(g + i, n - i, 0);
        vf_store_n(out + i, n - i, gv / (one + vf_exp(-gv)) * vf_load_n(u + i, n - i, 0));
    }
}

static void mlp_tile(const struct finish_pass *p, const struct expand_rows *e, uint32_t chunk)
{
    const struct mlp_finish_args *a = p->args;
    uint32_t n0 = chunk * EXPAND_COLS, n = MIN((uint32_t)EXPAND_COLS, a->d_ff - n0);
    float dg[EXPAND_ROWS][EXPAND_COLS], du[EXPAND_ROWS][EXPAND_COLS];
    float g[EXPAND_COLS], u[EXPAND_COLS];
    bool has_gate = ISA(expand)(e, LORA_MODULE_GATE, a->d_ff, n0, n, dg);
    bool has_up = ISA(expand)(e, LORA_MODULE_UP, a->d_ff, n0, n, du);
    for (uint32_t r = 0; r < e->rows; r++) {
        uint32_t t = e->t0 + r;
        const float *y = a->y + (size_t)t * a->y_stride + n0;
        size_t at = (size_t)t * a->d_ff + n0;
        add_base(g, y, a->bias_gate ? a->bias_gate + n0 : NULL, n);
        add_base(u, y + a->d_ff, a->bias_up ? a->bias_up + n0 : NULL, n);
        if (has_gate) {
            norm_add(p, t, chunk, dg[r], g, n);
            add_to(g, dg[r], n);
        }
        if (has_up) {
            norm_add(p, t, chunk, du[r], u, n);
            add_to(u, du[r], n);
        }
        silu_mul((float *)a->out + at, g, u, n);
        if (a->keep_gate)
            memcpy(a->keep_gate + at, g, n * sizeof(float));
        if (a->keep_up)
            memcpy(a->keep_up + at, u, n * sizeof(float));
    }
}

enum status ISA(mlp_finish)(struct backend *b, const struct mlp_finish_args *a)
{
    struct finish_pass p = {.args = a, .lora = &a->lora, .tile = mlp_tile, .layer = a->layer};
    p.first = LORA_MODULE_GATE;
    p.n_chunk = (a->d_ff + EXPAND_COLS - 1) / EXPAND_COLS;
    p.chunk_cols = EXPAND_COLS;
    finish_run(b, &p, a->n_tok, 2 * (uint64_t)a->d_ff);
    return STATUS_OK;
}

/* ---- qkv ---- */

static void head_norm(float *v, const float *gain, float eps, uint32_t d)
{
    float rstd = 1.0f / sqrtf(ISA(sum_squares)(v, d) / (float)d + eps);
    for (uint32_t i = 0; i < d; i++)
        v[i] = v[i] * rstd * gain[i];
}

static void head_rope(float *restrict lo, float *restrict hi, const float *c, const float *s,
                      uint32_t half)
{
    for (uint32_t i = 0; i < half; i++) {
        float l = lo[i], h = hi[i];
        lo[i] = l * c[i] - h * s[i];
        hi[i] = h * c[i] + l * s[i];
    }
}

static void head_write(const struct qkv_finish_args *a, uint32_t t, uint32_t h, bool is_v,
                       const float *v)
{
    uint32_t pos = a->rows.pos[t], d = a->d_head;
    uint32_t page =
        a->rows.page_table[(size_t)a->rows.seq[t] * a->rows.page_stride + pos / a->kv.page_tok];
    uint64_t off = kv_offset(&a->kv, page, a->layer, is_v, h, pos % a->kv.page_tok);
    float *keep = is_v ? a->keep_v : a->keep_k;
    if (a->kv.dtype == DTYPE_BF16) {
        uint16_t *dst = (uint16_t *)a->kv.base + off;
        for (uint32_t i = 0; i < d; i++)
            dst[i] = bf16_from_f32(v[i]);
    } else {
        memcpy((float *)a->kv.base + off, v, d * sizeof(float));
    }
    if (keep)
        memcpy(keep + ((size_t)t * a->n_kv_head + h) * d, v, d * sizeof(float));
}

/* One head (counted over q, k, v) of a tile's rows. */
static void qkv_head(const struct finish_pass *p, const struct expand_rows *e, uint32_t hh,
                     uint32_t chunk)
{
    const struct qkv_finish_args *a = p->args;
    uint32_t d = a->d_head, n_q = a->n_head, n_kv = a->n_kv_head;
    uint32_t which = hh < n_q ? 0 : hh < n_q + n_kv ? 1 : 2;
    uint32_t h = which == 0 ? hh : which == 1 ? hh - n_q : hh - n_q - n_kv;
    const float *bias = which == 0 ? a->bias_q : which == 1 ? a->bias_k : a->bias_v;
    const float *gain = which == 0 ? a->q_norm : which == 1 ? a->k_norm : NULL;
    float delta[EXPAND_ROWS][EXPAND_COLS], v[EXPAND_COLS];
    bool adapted = ISA(expand)(e, LORA_MODULE_Q + which, (which ? n_kv : n_q) * d, h * d, d, delta);
    for (uint32_t r = 0; r < e->rows; r++) {
        uint32_t t = e->t0 + r;
        size_t rope = (size_t)a->rows.pos[t] * (d / 2);
        add_base(v, a->y + (size_t)t * a->y_stride + (size_t)hh * d, bias ? bias + h * d : NULL, d);
        if (adapted) {
            norm_add(p, t, chunk, delta[r], v, d);
            add_to(v, delta[r], d);
        }
        if (a->keep_qk && which < 2)
            memcpy(a->keep_qk + ((size_t)t * (n_q + n_kv) + hh) * d, v, d * sizeof(*v));
        if (gain)
            head_norm(v, gain, a->norm_eps, d);
        if (which < 2)
            head_rope(v, v + d / 2, a->rope.cos + rope, a->rope.sin + rope, d / 2);
        if (which == 0)
            memcpy((float *)a->q_out + ((size_t)t * n_q + h) * d, v, d * sizeof(float));
        else
            head_write(a, t, h, which == 2, v);
    }
}

static uint32_t heads_per_chunk(const struct qkv_finish_args *a)
{
    return MAX((uint32_t)EXPAND_COLS / a->d_head, 1u);
}

static void qkv_tile(const struct finish_pass *p, const struct expand_rows *e, uint32_t chunk)
{
    const struct qkv_finish_args *a = p->args;
    uint32_t per = heads_per_chunk(a), all = a->n_head + 2 * a->n_kv_head;
    for (uint32_t hh = chunk * per; hh < MIN(all, (chunk + 1) * per); hh++)
        qkv_head(p, e, hh, chunk);
}

enum status ISA(qkv_finish)(struct backend *b, const struct qkv_finish_args *a)
{
    struct finish_pass p = {.args = a, .lora = &a->lora, .tile = qkv_tile, .layer = a->layer};
    uint32_t per = heads_per_chunk(a), all = a->n_head + 2 * a->n_kv_head;
    CHECK(a->d_head <= EXPAND_COLS && a->d_head % 2 == 0);
    for (uint32_t t = 0; t < a->n_tok; t++)
        VERIFY(a->rows.pos[t] < a->rope.pos_max);
    p.first = LORA_MODULE_Q;
    p.n_chunk = (all + per - 1) / per;
    p.chunk_cols = per * a->d_head;
    finish_run(b, &p, a->n_tok, (uint64_t)all * a->d_head);
    return STATUS_OK;
}
