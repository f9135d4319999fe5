/* lora_shrink and the three finishes: every CPU path against ref with mixed ranks, compositions and
 * base-only segments, and the bitwise promise row by row. */
#include "tests/unit/kernels_fixture.h"

#define N_LAYER  2
#define N_SLOT   6
#define N_LAYOUT 3
#define SEG_MAX  40

struct world {
    uint32_t n_head, n_kv, d_head, d_model, d_ff, n_tok;
    uint32_t s_stride, page_tok, n_page, pos_max, layer;
    enum dtype dtype;
    struct lora_entry entry[N_LAYOUT][N_LAYER * LORA_MODULE_COUNT];
    struct lora_layout layout[N_LAYOUT];
    struct lora_slot slot[N_SLOT];
    struct lora_table table;
    struct lora_seg seg[SEG_MAX];
    struct lora_step step;
    float *x, *y, *bias, *gain, *cos, *sin, *h;
    uint32_t *pos, *seq, *page_table;
};

static uint32_t module_in(const struct world *w, uint32_t m)
{
    uint32_t q = w->n_head * w->d_head;
    return m == LORA_MODULE_O ? q : m == LORA_MODULE_DOWN ? w->d_ff : w->d_model;
}

static uint32_t module_out(const struct world *w, uint32_t m)
{
    switch (m) {
    case LORA_MODULE_Q:
        return w->n_head * w->d_head;
    case LORA_MODULE_K:
    case LORA_MODULE_V:
        return w->n_kv * w->d_head;
    case LORA_MODULE_GATE:
    case LORA_MODULE_UP:
        return w->d_ff;
    default:
        return w->d_model;
    }
}

static uint64_t align64(uint64_t n)
{
    return (n + 63) / 64 * 64;
}

static void make_layout(struct world *w, uint32_t l)
{
    static const uint32_t ranks[] = {0, 1, 3, 4, 5, 8, 16, 17, 70};
    uint64_t at = 64;
    for (uint32_t i = 0; i < N_LAYER * LORA_MODULE_COUNT; i++) {
        uint32_t m = i % LORA_MODULE_COUNT, rank = ranks[fx_below(ARRAY_COUNT(ranks))];
        struct lora_entry *e = &w->entry[l][i];
        *e = (struct lora_entry){.rank = rank, .scale = 0.25f + (float)fx_below(8)};
        e->a_off = at;
        at = align64(at + (uint64_t)rank * module_in(w, m) * dtype_bytes(w->dtype));
        e->b_off = at;
        at = align64(at + (uint64_t)rank * module_out(w, m) * dtype_bytes(w->dtype));
    }
    w->layout[l] = (struct lora_layout){w->entry[l], at};
}

static void make_segments(struct world *w, bool many)
{
    uint32_t n = 0, t = 0;
    while (t < w->n_tok) {
        struct lora_seg *s = &w->seg[n++];
        uint32_t left = w->n_tok - t, want = 1 + fx_below(many ? 2 : 13);
        memset(s, 0, sizeof(*s));
        s->tok_begin = t;
        s->tok_count = n == SEG_MAX ? left : MIN(left, want);
        s->part_count = fx_below(4) == 0 ? 0 : 1 + fx_below(fx_below(2) ? 1 : LORA_PARTS_MAX);
        for (uint32_t p = 0; p < s->part_count; p++)
            s->part[p] =
                (struct lora_part){fx_below(N_SLOT), (int32_t)fx_below(1 << 18) - (1 << 16)};
        t += s->tok_count;
    }
    w->step = (struct lora_step){&w->table, w->seg, n, NULL, w->s_stride, NULL};
}

static void make_rows(struct world *w)
{
    uint32_t n_seq = w->n_tok + 1, pages = (w->pos_max + w->page_tok - 1) / w->page_tok;
    w->pos = mem_array(w->n_tok + 1, sizeof(uint32_t));
    w->seq = mem_array(w->n_tok + 1, sizeof(uint32_t));
    w->page_table = mem_array((size_t)n_seq * pages, sizeof(uint32_t));
    w->n_page = n_seq * pages;
    for (uint32_t i = 0; i < w->n_page; i++)
        w->page_table[i] = w->n_page - 1 - i;
    for (uint32_t t = 0; t < w->n_tok; t++) {
        w->pos[t] = fx_below(w->pos_max);
        w->seq[t] = t;
    }
}

static void world_make(struct world *w, uint32_t n_tok, enum dtype dtype, bool many)
{
    static const uint32_t heads[] = {8, 16, 24, 64, 80, 128};
    memset(w, 0, sizeof(*w));
    w->n_kv = 1 + fx_below(2);
    w->n_head = w->n_kv * (1 + fx_below(4));
    w->d_head = heads[fx_below(ARRAY_COUNT(heads))];
    w->d_model = 1 + fx_below(1100);
    w->d_ff = 1 + fx_below(1100);
    w->n_tok = n_tok;
    w->dtype = dtype;
    w->page_tok = 16;
    w->pos_max = 50;
    w->layer = fx_below(N_LAYER);
    w->s_stride = LORA_PARTS_MAX * 70 * 3 + fx_below(3);
    for (uint32_t l = 0; l < N_LAYOUT; l++)
        make_layout(w, l);
    for (uint32_t s = 0; s < N_SLOT; s++) {
        w->slot[s].layout = s % N_LAYOUT;
        uint64_t bytes = w->layout[s % N_LAYOUT].blob_bytes;
        w->slot[s].blob = fx_tensor(bytes / dtype_bytes(dtype), dtype, 0.3f, 0);
    }
    w->table = (struct lora_table){w->slot, w->layout, N_SLOT, N_LAYOUT, N_LAYER, dtype};
    make_segments(w, many);
    make_rows(w);
    uint32_t wide = MAX(MAX(w->d_model, 2 * w->d_ff), (w->n_head + 2 * w->n_kv) * w->d_head);
    w->x = fx_floats((size_t)n_tok * wide, 1);
    w->y = fx_floats((size_t)n_tok * wide, 1);
    w->h = fx_floats((size_t)n_tok * w->d_model, 1);
    w->bias = fx_floats(wide, 1);
    w->gain = fx_floats(w->d_head, 1);
    w->cos = fx_floats((size_t)w->pos_max * w->d_head, 0.5f);
    w->sin = fx_floats((size_t)w->pos_max * w->d_head, 0.5f);
}

static void world_free(struct world *w)
{
    for (uint32_t s = 0; s < N_SLOT; s++)
        mem_free((void *)(uintptr_t)w->slot[s].blob);
    mem_free(w->pos);
    mem_free(w->seq);
    mem_free(w->page_table);
    mem_free(w->x);
    mem_free(w->y);
    mem_free(w->h);
    mem_free(w->bias);
    mem_free(w->gain);
    mem_free(w->cos);
    mem_free(w->sin);
}

/* One run of everything on one backend; out buffers are NaN where nothing may be written. */
struct result {
    float *s, *keep_ax, *q, *kv, *keep_k, *keep_v, *h, *mlp, *keep_g, *keep_u;
    double *norm2;
    size_t n_s, n_q, n_kv, n_keep, n_h, n_mlp;
};

static void result_free(struct result *r)
{
    float *all[] = {r->s,      r->keep_ax, r->q,   r->kv,     r->keep_k,
                    r->keep_v, r->h,       r->mlp, r->keep_g, r->keep_u};
    for (size_t i = 0; i < ARRAY_COUNT(all); i++)
        mem_free(all[i]);
    mem_free(r->norm2);
}

static void shrink(struct backend *b, const struct world *w, struct result *r,
                   enum lora_module first, uint32_t count)
{
    struct lora_shrink_args a = {.lora = w->step,
                                 .x = w->x,
                                 .keep_ax = r->keep_ax,
                                 .n_tok = w->n_tok,
                                 .x_stride = module_in(w, first),
                                 .d_in = module_in(w, first),
                                 .layer = w->layer,
                                 .first = first,
                                 .module_count = count};
    a.lora.s = r->s;
    assert_int_equal(b->ops->lora_shrink(b, &a), STATUS_OK);
}

static void run_qkv(struct backend *b, const struct world *w, struct result *r, struct lora_step lo)
{
    bool norm = w->d_model & 1, bias = w->d_ff & 1;
    uint32_t d = w->d_head;
    struct qkv_finish_args a = {.lora = lo,
                                .q_out = r->q,
                                .y = w->y,
                                .bias_q = bias ? w->bias : NULL,
                                .bias_k = bias ? w->bias + 1 : NULL,
                                .bias_v = bias ? w->bias + 2 : NULL,
                                .q_norm = norm ? w->gain : NULL,
                                .k_norm = norm ? w->gain : NULL,
                                .norm_eps = 1e-6f,
                                .rope = {w->cos, w->sin, w->pos_max},
                                .keep_k = r->keep_k,
                                .keep_v = r->keep_v,
                                .n_tok = w->n_tok,
                                .y_stride = (w->n_head + 2 * w->n_kv) * d,
                                .layer = w->layer,
                                .n_head = w->n_head,
                                .n_kv_head = w->n_kv,
                                .d_head = d};
    uint64_t per_head = (uint64_t)w->page_tok * d;
    a.kv = (struct kv_cache){.base = r->kv, .dtype = DTYPE_F32, .page_tok = w->page_tok};
    a.kv.stride_tok = d;
    a.kv.stride_head = per_head;
    a.kv.stride_kv = per_head * w->n_kv;
    a.kv.stride_layer = 2 * a.kv.stride_kv;
    a.kv.stride_page = N_LAYER * a.kv.stride_layer;
    a.rows = (struct kv_rows){w->seq, w->pos, w->page_table,
                              (w->pos_max + w->page_tok - 1) / w->page_tok};
    assert_int_equal(b->ops->qkv_finish(b, &a), STATUS_OK);
}

static void result_alloc(const struct world *w, struct result *r)
{
    uint32_t n = w->n_tok;
    r->n_s = (size_t)n * w->s_stride;
    r->n_q = (size_t)n * w->n_head * w->d_head;
    r->n_keep = (size_t)n * w->n_kv * w->d_head;
    r->n_kv = (size_t)w->n_page * N_LAYER * 2 * w->n_kv * w->page_tok * w->d_head;
    r->n_h = (size_t)n * w->d_model;
    r->n_mlp = (size_t)n * w->d_ff;
    r->s = fx_poisoned(r->n_s);
    r->keep_ax = fx_poisoned(r->n_s);
    r->q = fx_poisoned(r->n_q);
    r->kv = fx_poisoned(r->n_kv);
    r->keep_k = fx_poisoned(r->n_keep);
    r->keep_v = fx_poisoned(r->n_keep);
    r->h = mem_array(r->n_h + 1, sizeof(float));
    memcpy(r->h, w->h, r->n_h * sizeof(float));
    r->mlp = fx_poisoned(r->n_mlp);
    r->keep_g = fx_poisoned(r->n_mlp);
    r->keep_u = fx_poisoned(r->n_mlp);
    r->norm2 = mem_array(2 * (size_t)n + 1, sizeof(double));
}

/* s_in: finish from these shrink outputs instead of the backend's own. */
static void run_all(struct backend *b, const struct world *w, struct result *r, float *s_in)
{
    struct lora_step lo = w->step;
    result_alloc(w, r);
    shrink(b, w, r, LORA_MODULE_Q, 3);
    lo.s = s_in ? s_in : r->s;
    lo.norm2 = r->norm2;
    run_qkv(b, w, r, lo);
    shrink(b, w, r, LORA_MODULE_DOWN, 1);
    struct residual_finish_args down = {.lora = lo,
                                        .h = r->h,
                                        .y = w->y,
                                        .bias = w->d_ff & 1 ? w->bias : NULL,
                                        .n_tok = w->n_tok,
                                        .y_stride = w->d_model,
                                        .layer = w->layer,
                                        .d_model = w->d_model,
                                        .module = LORA_MODULE_DOWN};
    assert_int_equal(b->ops->residual_finish(b, &down), STATUS_OK);
    shrink(b, w, r, LORA_MODULE_GATE, 2);
    struct mlp_finish_args mlp = {.lora = lo,
                                  .out = r->mlp,
                                  .y = w->y,
                                  .bias_gate = w->d_ff & 2 ? w->bias : NULL,
                                  .bias_up = w->d_ff & 2 ? w->bias + 1 : NULL,
                                  .keep_gate = r->keep_g,
                                  .keep_up = r->keep_u,
                                  .n_tok = w->n_tok,
                                  .y_stride = 2 * w->d_ff,
                                  .layer = w->layer,
                                  .d_ff = w->d_ff};
    assert_int_equal(b->ops->mlp_finish(b, &mlp), STATUS_OK);
}

static void result_near(const struct world *w, const struct result *got, const struct result *want)
{
    double tol = w->dtype == DTYPE_BF16 ? 2e-2 : 1e-4;
    fx_near(got->s, want->s, want->n_s, 2e-5, "s");
    fx_near(got->keep_ax, want->keep_ax, want->n_s, 2e-5, "keep_ax");
    fx_near(got->q, want->q, want->n_q, tol, "q");
    fx_near(got->kv, want->kv, want->n_kv, tol, "kv");
    fx_near(got->keep_k, want->keep_k, want->n_keep, tol, "keep_k");
    fx_near(got->keep_v, want->keep_v, want->n_keep, tol, "keep_v");
    fx_near(got->h, want->h, want->n_h, tol, "h");
    fx_near(got->mlp, want->mlp, want->n_mlp, tol, "mlp");
    fx_near(got->keep_g, want->keep_g, want->n_mlp, tol, "keep_gate");
    fx_near(got->keep_u, want->keep_u, want->n_mlp, tol, "keep_up");
    for (uint32_t i = 0; i < 2 * w->n_tok; i++)
        assert_true(fabs(got->norm2[i] - want->norm2[i]) <= tol * (1e-6 + want->norm2[i]));
}

static void result_bits(const struct world *w, const struct result *got, const struct result *want)
{
    fx_bits(got->s, want->s, want->n_s);
    fx_bits(got->q, want->q, want->n_q);
    fx_bits(got->kv, want->kv, want->n_kv);
    fx_bits(got->h, want->h, want->n_h);
    fx_bits(got->mlp, want->mlp, want->n_mlp);
    fx_bits(got->norm2, want->norm2, 2 * w->n_tok);
}

/* The world of row t alone. */
static void world_row(const struct world *w, struct world *one, uint32_t t)
{
    uint32_t i = 0;
    *one = *w;
    while (t - w->seg[i].tok_begin >= w->seg[i].tok_count)
        i++;
    one->seg[0] = w->seg[i];
    one->seg[0].tok_begin = 0;
    one->seg[0].tok_count = 1;
    one->n_tok = 1;
    one->pos += t;
    one->seq += t;
    one->h += (size_t)t * w->d_model;
    one->table.slot = w->slot;
    one->table.layout = w->layout;
    one->step.seg = one->seg;
    one->step.table = &one->table;
    one->step.n_seg = 1;
}

static void check_alone(struct backend *b, const struct world *w, const struct result *all)
{
    for (uint32_t t = 0; t < w->n_tok; t++) {
        struct world one;
        struct result r;
        world_row(w, &one, t);
        result_alloc(&one, &r);
        uint32_t qkv = (w->n_head + 2 * w->n_kv) * w->d_head;
        struct lora_step lo = one.step;
        lo.s = r.s;
        lo.norm2 = r.norm2;
        one.x = w->x + (size_t)t * w->d_model;
        one.y = w->y + (size_t)t * qkv;
        shrink(b, &one, &r, LORA_MODULE_Q, 3);
        run_qkv(b, &one, &r, lo);
        fx_bits(r.q, all->q + (size_t)t * w->n_head * w->d_head, r.n_q);
        fx_bits(r.keep_k, all->keep_k + (size_t)t * w->n_kv * w->d_head, r.n_keep);
        fx_bits(r.keep_v, all->keep_v + (size_t)t * w->n_kv * w->d_head, r.n_keep);
        one.x = w->x + (size_t)t * w->d_model;
        shrink(b, &one, &r, LORA_MODULE_GATE, 2);
        struct mlp_finish_args mlp = {.lora = lo,
                                      .out = r.mlp,
                                      .y = w->y + (size_t)t * 2 * w->d_ff,
                                      .bias_gate = w->d_ff & 2 ? w->bias : NULL,
                                      .bias_up = w->d_ff & 2 ? w->bias + 1 : NULL,
                                      .n_tok = 1,
                                      .y_stride = 2 * w->d_ff,
                                      .layer = w->layer,
                                      .d_ff = w->d_ff};
        b->ops->mlp_finish(b, &mlp);
        fx_bits(r.mlp, all->mlp + (size_t)t * w->d_ff, r.n_mlp);
        result_free(&r);
    }
}

static void compare(struct fx_backends *f, const struct world *w, bool alone)
{
    struct result want, first = {0};
    run_all(f->ref, w, &want, NULL);
    for (uint32_t i = 0; i < f->n_cpu; i++) {
        struct result got;
        run_all(f->cpu[i], w, &got, NULL);
        result_near(w, &got, &want);
        if (i > 0 && fx_same_path(f->cpu[i], f->cpu[i - 1])) {
            result_bits(w, &got, &first);
            result_free(&got);
            continue;
        }
        result_free(&first);
        first = got;
        if (alone)
            check_alone(f->cpu[i], w, &got);
    }
    result_free(&first);
    result_free(&want);
}

static void test_lora(void **state)
{
    static const uint32_t rows[] = {0, 1, 2, 3, 4, 5, 8, 16, 17, 30, 61};
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    for (size_t r = 0; r < ARRAY_COUNT(rows); r++) {
        for (int i = 0; i < 4; i++) {
            struct world w;
            world_make(&w, rows[r], i & 1 ? DTYPE_BF16 : DTYPE_F32, i & 2);
            compare(&f, &w, rows[r] <= 17);
            world_free(&w);
        }
    }
    fx_close(&f);
}

/* More rows than a telemetry pass holds. */
static void test_lora_many_rows(void **state)
{
    struct fx_backends f;
    struct world w;
    (void)state;
    fx_open(&f);
    world_make(&w, 300, DTYPE_F32, false);
    compare(&f, &w, false);
    world_free(&w);
    fx_close(&f);
}

/* Without a table, or with base-only segments, a finish is base + bias and reads no s. */
static void test_base_only(void **state)
{
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    for (int with_table = 0; with_table < 2; with_table++) {
        struct world w;
        world_make(&w, 9, DTYPE_F32, false);
        for (uint32_t i = 0; i < w.step.n_seg; i++)
            w.seg[i].part_count = 0;
        if (!with_table)
            w.step.table = NULL;
        compare(&f, &w, false);
        struct result r;
        run_all(f.cpu[0], &w, &r, NULL);
        for (size_t i = 0; i < r.n_s; i++)
            assert_true(isnan(r.s[i]));
        for (uint32_t i = 0; i < 2 * w.n_tok; i++)
            assert_true(r.norm2[i] == 0);
        result_free(&r);
        world_free(&w);
    }
    fx_close(&f);
}

/* Hand-made values: one row, rank 2, so that the layout of s, scale and B are pinned. */
static void test_hand_values(void **state)
{
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    float blob[64] = {1, 2, 3, 4 /* A 2x2 */};
    blob[16] = 10; /* Bt row 0: 10 20 30 */
    blob[17] = 20;
    blob[18] = 30;
    blob[19] = 1; /* Bt row 1: 1 2 3 */
    blob[20] = 2;
    blob[21] = 3;
    struct lora_entry entry[LORA_MODULE_COUNT] = {
        [LORA_MODULE_O] = {.rank = 2, .scale = 0.5f, .a_off = 0, .b_off = 64}};
    struct lora_layout layout = {entry, sizeof(blob)};
    struct lora_slot slot = {blob, 0};
    struct lora_table table = {&slot, &layout, 1, 1, 1, DTYPE_F32};
    struct lora_seg seg = {0, 1, 1, {{0, 1 << 17}}};
    for (uint32_t i = 0; i <= f.n_cpu; i++) {
        struct backend *b = i < f.n_cpu ? f.cpu[i] : f.ref;
        float x[2] = {1, 1}, y[3] = {100, 200, 300}, h[3] = {0.5f, 0, 0}, s[2] = {0}, ax[2];
        float bias[3] = {1, 1, 1};
        double norm2[2] = {0};
        struct lora_step lo = {&table, &seg, 1, s, 2, norm2};
        struct lora_shrink_args sh = {lo, x, ax, 1, 2, 2, 0, LORA_MODULE_O, 1};
        b->ops->lora_shrink(b, &sh);
        assert_true(ax[0] == 3 && ax[1] == 7); /* A x */
        assert_true(s[0] == 3 && s[1] == 7);   /* scale 0.5 * weight 2 */
        struct residual_finish_args fin = {lo, h, y, bias, 1, 3, 0, 3, LORA_MODULE_O};
        b->ops->residual_finish(b, &fin);
        assert_true(h[0] == 0.5f + 101 + 37 && h[1] == 201 + 74 && h[2] == 301 + 111);
        assert_true(norm2[0] == 37.0 * 37 + 74.0 * 74 + 111.0 * 111);
        assert_true(norm2[1] == 101.0 * 101 + 201.0 * 201 + 301.0 * 301);
    }
    fx_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hand_values),
        cmocka_unit_test(test_lora),
        cmocka_unit_test(test_lora_many_rows),
        cmocka_unit_test(test_base_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
