/* See lora_world.h. One list of ops serves both backends: pointers are host memory for ref, device
 * memory for cuda. */
#include "tests/emulation/lora_world.h"

#define PAGE_TOK 16

const char *const lw_names[LW_TENSORS] = {"ax_qkv", "ax_o", "ax_mlp", "ax_down", "q", "k",
                                          "v",      "h",    "mlp",    "gate",    "up"};

uint32_t lw_rank_mixed(uint32_t layout, uint32_t layer, uint32_t module)
{
    static const uint32_t mixed[] = {8, 16, 24, 32, 64, 128}, odd[] = {0, 1, 17, 40};
    (void)layer;
    (void)module;
    return layout == 0   ? 16
           : layout == 1 ? mixed[fx_below(ARRAY_COUNT(mixed))]
                         : odd[fx_below(ARRAY_COUNT(odd))];
}

/* ---- making it ---- */

static void make_dims(struct lw *w)
{
    const struct lw_shape *s = &w->shape;
    uint32_t q = s->n_head * s->d_head, kv = s->n_kv * s->d_head;
    uint32_t in[LORA_MODULE_COUNT] = {s->d_model, s->d_model, s->d_model, q,
                                      s->d_model, s->d_model, s->d_ff};
    uint32_t out[LORA_MODULE_COUNT] = {q, kv, kv, s->d_model, s->d_ff, s->d_ff, s->d_model};
    w->dims.n_layer = LW_LAYERS;
    memcpy(w->dims.d_in, in, sizeof(in));
    memcpy(w->dims.d_out, out, sizeof(out));
}

static uint64_t align64(uint64_t n)
{
    return (n + 63) / 64 * 64;
}

static void make_layout(struct lw *w, uint32_t l, lw_rank_fn *rank)
{
    uint64_t at = 64;
    for (uint32_t i = 0; i < LW_LAYERS * LORA_MODULE_COUNT; i++) {
        uint32_t m = i % LORA_MODULE_COUNT;
        struct lora_entry *e = &w->entry[l][i];
        e->rank = rank(l, i / LORA_MODULE_COUNT, m);
        e->scale = 0.25f + (float)fx_below(8);
        e->a_off = at;
        at = align64(at + (uint64_t)e->rank * w->dims.d_in[m] * 2);
        e->b_off = at;
        at = align64(at + (uint64_t)e->rank * w->dims.d_out[m] * 2);
    }
    w->layout[l] = (struct lora_layout){w->entry[l], at};
    uint64_t bytes = lora_pack_layout(w->packed[l], w->entry[l], &w->dims);
    w->packed_layout[l] = (struct lora_layout){w->packed[l], bytes};
}

static void make_adapters(struct lw *w)
{
    for (uint32_t s = 0; s < LW_SLOTS; s++) {
        uint32_t l = s % LW_LAYOUTS;
        void *blob = fx_tensor(w->layout[l].blob_bytes / 2, DTYPE_BF16, 0.1f, 0);
        void *packed = mem_array(w->packed_layout[l].blob_bytes + 1, 1);
        lora_pack_blob(packed, w->packed[l], blob, w->entry[l], &w->dims);
        w->slot[s] = (struct lora_slot){blob, l};
        w->packed_slot[s] =
            (struct lora_slot){ec_put(&w->e, packed, w->packed_layout[l].blob_bytes), l};
        mem_free(packed);
    }
    w->table = (struct lora_table){.slot = w->slot,
                                   .layout = w->layout,
                                   .n_slot = LW_SLOTS,
                                   .n_layout = LW_LAYOUTS,
                                   .n_layer = LW_LAYERS,
                                   .dtype = DTYPE_BF16};
    w->packed_table = w->table;
    w->packed_table.slot = w->packed_slot;
    w->packed_table.layout = w->packed_layout;
}

static void make_rows(struct lw *w)
{
    w->pos_max = 40;
    w->pages = (w->pos_max + PAGE_TOK - 1) / PAGE_TOK;
    w->n_page = w->rows_max * w->pages;
    w->pos = mem_array(w->rows_max, 4);
    w->seq = mem_array(w->rows_max, 4);
    w->page_table = mem_array(w->n_page, 4);
    for (uint32_t i = 0; i < w->n_page; i++)
        w->page_table[i] = w->n_page - 1 - i;
    w->kv_host = mem_array(lw_kv_elems(w), 2);
    w->kv_dev = ec_alloc(&w->e, lw_kv_elems(w) * 2);
    lw_cache_reset(w);
}

static void make_tensors(struct lw *w)
{
    const struct lw_shape *s = &w->shape;
    uint32_t q = s->n_head * s->d_head, all = q + 2 * s->n_kv * s->d_head;
    size_t rows = w->rows_max;
    w->x_stride = MAX(MAX(q, s->d_model), s->d_ff) + 8;
    w->y_stride = MAX(MAX(all, s->d_model), 2 * s->d_ff) + 4;
    w->x = fx_floats(rows * w->x_stride, 1);
    for (size_t t = 0; t < rows; t++) /* behind the widest input: nothing may read it */
        for (uint32_t i = 1; i <= 8; i++)
            w->x[(t + 1) * w->x_stride - i] = NAN;
    w->y = fx_floats(rows * w->y_stride, 1);
    w->h = fx_floats(rows * s->d_model, 1);
    w->bias = fx_floats(w->y_stride, 1);
    w->gain = fx_floats(s->d_head, 1);
    w->cos = fx_floats((size_t)w->pos_max * s->d_head, 0.5f);
    w->sin = fx_floats((size_t)w->pos_max * s->d_head, 0.5f);
    w->dx = ec_put_acts(&w->e, w->x, rows * w->x_stride);
    w->dy = ec_put(&w->e, w->y, rows * w->y_stride * 4);
    w->dbias = ec_put(&w->e, w->bias, w->y_stride * 4);
    w->dgain = ec_put(&w->e, w->gain, s->d_head * 4);
    w->dcos = ec_put(&w->e, w->cos, (size_t)w->pos_max * s->d_head * 4);
    w->dsin = ec_put(&w->e, w->sin, (size_t)w->pos_max * s->d_head * 4);
}

static uint32_t largest_rank_sum(const struct lw *w)
{
    uint32_t most = 0;
    for (uint32_t l = 0; l < LW_LAYOUTS; l++)
        for (uint32_t i = 0; i < LW_LAYERS * LORA_MODULE_COUNT; i++)
            most = MAX(most, w->entry[l][i].rank);
    return most * 3 * LORA_PARTS_MAX;
}

void lw_open(struct lw *w, const struct lw_shape *shape, uint32_t rows_max, lw_rank_fn *rank)
{
    memset(w, 0, sizeof(*w));
    w->shape = *shape;
    w->rows_max = rows_max;
    w->layer = LW_LAYERS - 1; /* norm2 is complete after the last layer */
    w->has_bias = w->has_table = w->telemetry = w->keep = w->read_kv = true;
    w->has_norm = shape->d_head % 16 != 0 || fx_below(2);
    make_dims(w);
    for (uint32_t l = 0; l < LW_LAYOUTS; l++)
        make_layout(w, l, rank);
    w->s_stride = MAX(largest_rank_sum(w), 1);
    struct backend_limits lim = ec_limits();
    lim.rows_max = rows_max + 8;
    lim.seqs_max = rows_max + 1;
    lim.page_stride = 8;
    lim.segs_max = LW_SEGS;
    lim.slots_max = LW_SLOTS;
    lim.layouts_max = LW_LAYOUTS;
    lim.rank_sum_max = w->s_stride;
    lim.n_layer = LW_LAYERS;
    lim.d_model = shape->d_model;
    lim.d_ff = shape->d_ff;
    lim.n_head = shape->n_head;
    lim.n_kv_head = shape->n_kv;
    lim.d_head = shape->d_head;
    ec_open_with(&w->e, &lim, "cuda");
    make_adapters(w);
    make_rows(w);
    make_tensors(w);
}

void lw_close(struct lw *w)
{
    void *host[] = {w->x,   w->y,   w->h,   w->bias,       w->gain,   w->cos,
                    w->sin, w->pos, w->seq, w->page_table, w->kv_host};
    for (size_t i = 0; i < ARRAY_COUNT(host); i++)
        mem_free(host[i]);
    for (uint32_t s = 0; s < LW_SLOTS; s++)
        mem_free((void *)(uintptr_t)w->slot[s].blob);
    ec_close(&w->e); /* the arena goes with it */
}

void lw_clear(struct lw *w)
{
    w->n_tok = w->n_seg = 0;
}

void lw_segment(struct lw *w, uint32_t rows, uint32_t first, uint32_t parts)
{
    assert_true(w->n_seg < LW_SEGS && w->n_tok + rows <= w->rows_max);
    struct lora_seg *s = &w->seg[w->n_seg++];
    memset(s, 0, sizeof(*s));
    s->tok_begin = w->n_tok;
    s->tok_count = rows;
    s->part_count = parts;
    for (uint32_t p = 0; p < parts; p++)
        s->part[p] =
            (struct lora_part){(first + p) % LW_SLOTS, (int32_t)fx_below(1 << 18) - (1 << 16)};
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t t = w->n_tok + i, of_prompt = i % w->pos_max;
        w->seq[t] = w->decodes ? t : t - of_prompt;
        w->pos[t] = w->decodes ? fx_below(w->pos_max) : of_prompt;
    }
    w->n_tok += rows;
}

/* ---- one layer's ops ---- */

uint32_t lw_width(const struct lw *w, enum lw_tensor t)
{
    const struct lw_shape *s = &w->shape;
    return t <= LW_AX_DOWN          ? w->s_stride
           : t == LW_Q              ? s->n_head * s->d_head
           : t == LW_K || t == LW_V ? s->n_kv * s->d_head
           : t == LW_H              ? s->d_model
                                    : s->d_ff;
}

size_t lw_kv_elems(const struct lw *w)
{
    return (size_t)w->n_page * LW_LAYERS * 2 * w->shape.n_kv * PAGE_TOK * w->shape.d_head;
}

void lw_cache_reset(struct lw *w)
{
    size_t bytes = lw_kv_elems(w) * 2;
    memset(w->kv_host, 0xff, bytes);
    assert_int_equal(w->e.cuda->ops->mem_write(w->e.cuda, w->kv_dev, w->kv_host, bytes), STATUS_OK);
}

/* What the ops of a run work on. */
struct lw_ptrs {
    const void *x;
    const float *y, *bias, *gain, *cos, *sin;
    float *h, *s;
    void *kv, *out[LW_TENSORS];
    struct lora_step lora;
    struct kv_rows rows;
    uint32_t n_tok;
};

static void shrink(struct backend *b, const struct lw *w, const struct lw_ptrs *p,
                   enum lora_module first, uint32_t count)
{
    uint32_t group = first == LORA_MODULE_Q      ? 0
                     : first == LORA_MODULE_O    ? 1
                     : first == LORA_MODULE_GATE ? 2
                                                 : 3;
    struct lora_shrink_args a = {.lora = p->lora,
                                 .x = p->x,
                                 .keep_ax = w->keep ? p->out[LW_AX_QKV + group] : NULL,
                                 .n_tok = p->n_tok,
                                 .x_stride = w->x_stride,
                                 .d_in = w->dims.d_in[first],
                                 .layer = w->layer,
                                 .first = first,
                                 .module_count = count};
    assert_int_equal(b->ops->lora_shrink(b, &a), STATUS_OK);
}

static struct kv_cache cache_of(const struct lw *w, void *base)
{
    struct kv_cache kv = {.base = base, .dtype = DTYPE_BF16, .page_tok = PAGE_TOK};
    kv.stride_tok = w->shape.d_head;
    kv.stride_head = kv.stride_tok * PAGE_TOK;
    kv.stride_kv = kv.stride_head * w->shape.n_kv;
    kv.stride_layer = 2 * kv.stride_kv;
    kv.stride_page = LW_LAYERS * kv.stride_layer;
    return kv;
}

static void run_qkv(struct backend *b, const struct lw *w, const struct lw_ptrs *p)
{
    struct qkv_finish_args a = {.lora = p->lora,
                                .q_out = p->out[LW_Q],
                                .y = p->y,
                                .norm_eps = 1e-6f,
                                .rope = {p->cos, p->sin, w->pos_max},
                                .kv = cache_of(w, p->kv),
                                .rows = p->rows,
                                .keep_k = w->keep ? p->out[LW_K] : NULL,
                                .keep_v = w->keep ? p->out[LW_V] : NULL,
                                .n_tok = p->n_tok,
                                .y_stride = w->y_stride,
                                .layer = w->layer,
                                .n_head = w->shape.n_head,
                                .n_kv_head = w->shape.n_kv,
                                .d_head = w->shape.d_head};
    if (w->has_bias) {
        a.bias_q = p->bias;
        a.bias_k = p->bias + 4;
        a.bias_v = p->bias + 8;
    }
    if (w->has_norm)
        a.q_norm = a.k_norm = p->gain;
    assert_int_equal(b->ops->qkv_finish(b, &a), STATUS_OK);
}

static void run_residual(struct backend *b, const struct lw *w, const struct lw_ptrs *p,
                         enum lora_module module)
{
    struct residual_finish_args a = {.lora = p->lora,
                                     .h = p->h,
                                     .y = p->y,
                                     .bias = w->has_bias ? p->bias : NULL,
                                     .n_tok = p->n_tok,
                                     .y_stride = w->y_stride,
                                     .layer = w->layer,
                                     .d_model = w->shape.d_model,
                                     .module = module};
    assert_int_equal(b->ops->residual_finish(b, &a), STATUS_OK);
}

static void run_mlp(struct backend *b, const struct lw *w, const struct lw_ptrs *p)
{
    struct mlp_finish_args a = {.lora = p->lora,
                                .out = p->out[LW_MLP],
                                .y = p->y,
                                .bias_gate = w->has_bias ? p->bias : NULL,
                                .bias_up = w->has_bias ? p->bias + 4 : NULL,
                                .keep_gate = w->keep ? p->out[LW_GATE] : NULL,
                                .keep_up = w->keep ? p->out[LW_UP] : NULL,
                                .n_tok = p->n_tok,
                                .y_stride = w->y_stride,
                                .layer = w->layer,
                                .d_ff = w->shape.d_ff};
    assert_int_equal(b->ops->mlp_finish(b, &a), STATUS_OK);
}

static void run_layer(struct backend *b, const struct lw *w, const struct lw_ptrs *p)
{
    shrink(b, w, p, LORA_MODULE_Q, 3);
    run_qkv(b, w, p);
    shrink(b, w, p, LORA_MODULE_O, 1);
    run_residual(b, w, p, LORA_MODULE_O);
    shrink(b, w, p, LORA_MODULE_GATE, 2);
    run_mlp(b, w, p);
    shrink(b, w, p, LORA_MODULE_DOWN, 1);
    run_residual(b, w, p, LORA_MODULE_DOWN);
}

/* ---- runs ---- */

static void floats_of_bf16(float *out, const uint16_t *in, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = bf16_to_f32(in[i]);
}

void lw_run_ref(struct lw *w, struct lw_out *out)
{
    struct lw_ptrs p = {.x = w->x,
                        .y = w->y,
                        .bias = w->bias,
                        .gain = w->gain,
                        .cos = w->cos,
                        .sin = w->sin,
                        .kv = w->kv_host,
                        .rows = {w->seq, w->pos, w->page_table, w->pages},
                        .n_tok = w->n_tok};
    memset(out, 0, sizeof(*out));
    out->n = w->n_tok;
    for (uint32_t i = 0; i < LW_TENSORS; i++)
        p.out[i] = out->t[i] = fx_poisoned((size_t)w->n_tok * lw_width(w, i));
    memcpy(out->t[LW_H], w->h, (size_t)w->n_tok * w->shape.d_model * 4);
    out->norm2 = mem_array(2 * (size_t)w->n_tok + 1, sizeof(double));
    p.h = out->t[LW_H];
    p.s = fx_poisoned((size_t)w->n_tok * w->s_stride);
    p.lora = (struct lora_step){w->has_table ? &w->table : NULL, w->seg, w->n_seg, p.s, w->s_stride,
                                w->telemetry ? out->norm2 : NULL};
    run_layer(w->e.ref, w, &p);
    out->kv = fx_poisoned(lw_kv_elems(w));
    floats_of_bf16(out->kv, w->kv_host, lw_kv_elems(w));
    mem_free(p.s);
}

/* The segments of the rows t0 .. t0+n-1, counted from t0. */
static uint32_t clip(const struct lw *w, struct lora_seg *seg, uint32_t t0, uint32_t n)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < w->n_seg; i++) {
        uint32_t begin = MAX(w->seg[i].tok_begin, t0);
        uint32_t end = MIN(w->seg[i].tok_begin + w->seg[i].tok_count, t0 + n);
        if (begin >= end && !(n == w->n_tok && w->seg[i].tok_count == 0))
            continue; /* a whole run keeps its empty segments */
        seg[count] = w->seg[i];
        seg[count].tok_begin = begin - t0;
        seg[count++].tok_count = end - begin;
    }
    return count;
}

static bool is_act(enum lw_tensor t)
{
    return t == LW_Q || t == LW_MLP;
}

/* Read a tensor back; what lies behind row n must be as ec_alloc left it. */
static float *fetch(struct lw *w, enum lw_tensor t, const void *dev, uint32_t n, uint32_t pad)
{
    size_t width = lw_width(w, t), all = width * (n + pad);
    float *f = is_act(t) ? ec_get_acts(&w->e, dev, all) : ec_get_floats(&w->e, dev, all);
    for (size_t i = width * n; i < all; i++)
        assert_true(isnan(f[i]));
    return f;
}

static void step(struct lw *w, const struct lora_seg *seg, uint32_t n_seg, uint32_t t0, uint32_t n)
{
    int32_t *ids = mem_array(n + 1, sizeof(*ids));
    struct step_args a = {.ids = ids,
                          .rows = {w->seq + t0, w->pos + t0, w->page_table, w->pages},
                          .lora = w->has_table ? &w->packed_table : NULL,
                          .seg = seg,
                          .n_tok = n,
                          .n_seg = w->has_table ? n_seg : 0};
    assert_int_equal(w->e.cuda->ops->step(w->e.cuda, &a), STATUS_OK);
    mem_free(ids);
}

void lw_run_cuda(struct lw *w, uint32_t t0, uint32_t n, uint32_t pad, struct lw_out *out)
{
    struct backend *b = w->e.cuda;
    struct lora_seg seg[LW_SEGS];
    uint32_t n_seg = clip(w, seg, t0, n), rows = n + pad;
    size_t d_model = w->shape.d_model, norm_bytes = ((size_t)rows * 2 + 1) * sizeof(double);
    struct lw_ptrs p = {.x = (char *)w->dx + (size_t)t0 * w->x_stride * 2,
                        .y = w->dy + (size_t)t0 * w->y_stride,
                        .bias = w->dbias,
                        .gain = w->dgain,
                        .cos = w->dcos,
                        .sin = w->dsin,
                        .kv = w->kv_dev,
                        .n_tok = rows};
    double *norm2 = ec_alloc(&w->e, norm_bytes);
    assert_int_equal(b->ops->mem_zero(b, norm2, norm_bytes), STATUS_OK);
    for (uint32_t i = 0; i < LW_TENSORS; i++)
        p.out[i] = ec_alloc(&w->e, (size_t)rows * lw_width(w, i) * (is_act(i) ? 2 : 4) + 1);
    p.h = p.out[LW_H];
    if (n > 0)
        assert_int_equal(b->ops->mem_write(b, p.h, w->h + t0 * d_model, n * d_model * 4),
                         STATUS_OK);
    struct backend_limits lim = cuda_of(b)->limits;
    lim.rows_max = rows;
    p.s = ec_alloc(&w->e, b->ops->lora_scratch_bytes(b, &lim) + 1);
    p.lora = (struct lora_step){w->has_table ? &w->packed_table : NULL,
                                seg,
                                n_seg,
                                p.s,
                                w->s_stride,
                                w->telemetry ? norm2 : NULL};
    step(w, seg, n_seg, t0, n);
    run_layer(b, w, &p);
    memset(out, 0, sizeof(*out));
    out->n = n;
    for (uint32_t i = 0; i < LW_TENSORS; i++) {
        out->t[i] = fetch(w, i, p.out[i], n, pad);
        ec_free(&w->e, p.out[i]);
    }
    if (w->read_kv)
        out->kv = ec_get_acts(&w->e, w->kv_dev, lw_kv_elems(w));
    out->norm2 = mem_array((size_t)rows * 2 + 1, sizeof(double));
    ec_get(&w->e, out->norm2, norm2, norm_bytes);
    for (size_t i = 2 * (size_t)n; i < 2 * (size_t)rows; i++)
        assert_true(out->norm2[i] == 0);
    ec_free(&w->e, norm2);
    ec_free(&w->e, p.s);
}

void lw_free(struct lw_out *out)
{
    for (uint32_t i = 0; i < LW_TENSORS; i++)
        mem_free(out->t[i]);
    mem_free(out->kv);
    mem_free(out->norm2);
}

/* ---- comparison ---- */

/* Partials are f32 sums in another order; everything behind s moves where a rounding of s to bf16
 * falls the other way, which the norm of a tensor sees as a part in a thousand at most; q, mlp and
 * the cache are bf16 themselves. */
void lw_near(const struct lw *w, const struct lw_out *got, const struct lw_out *want)
{
    for (uint32_t i = 0; i < LW_TENSORS; i++) {
        double tol = i <= LW_AX_DOWN ? EC_TOL_F32 : is_act(i) ? EC_TOL_BF16 : 1e-3;
        ec_close_to(got->t[i], want->t[i], (size_t)want->n * lw_width(w, i), tol, lw_names[i]);
    }
    ec_close_to(got->kv, want->kv, lw_kv_elems(w), EC_TOL_BF16, "kv");
    for (uint32_t i = 0; i < 2 * want->n; i++)
        if (!(fabs(got->norm2[i] - want->norm2[i]) <= 2e-3 * want->norm2[i])) {
            print_error("norm2[%u] is %.9g, expected %.9g\n", i, got->norm2[i], want->norm2[i]);
            fail();
        }
}

void lw_same_bits(const struct lw *w, const struct lw_out *part, const struct lw_out *all,
                  uint32_t t0)
{
    for (uint32_t i = 0; i < LW_TENSORS; i++) {
        size_t width = lw_width(w, i);
        if (part->n && memcmp(part->t[i], all->t[i] + t0 * width, part->n * width * 4) != 0) {
            print_error("rows %u .. %u alone: other bits in %s\n", t0, t0 + part->n - 1,
                        lw_names[i]);
            fail();
        }
    }
    fx_bits(part->norm2, all->norm2 + 2 * (size_t)t0, 2 * part->n);
}
