/* The backward ops of the CUDA backend that read a batch's shape, on random ones, against ref:
 * qkv_back, attention_back, lora_back, dropout; and the promise of kernels/backward.h: rows and an
 * adapter's gradient have the bits that they have alone, or in batches cut elsewhere. */
#include "kernels/cuda/lora_pack.h"
#include "tests/emulation/fixture.h"

/* ---- tensors on both sides ---- */

struct both {
    float *host;
    void *dev;
};

static struct both both_f32(struct ec *e, size_t n, float scale)
{
    struct both b = {fx_floats(n, scale), NULL};
    b.dev = ec_put(e, b.host, n * sizeof(float));
    return b;
}

static struct both both_acts(struct ec *e, size_t n, float scale)
{
    struct both b = {fx_floats(n, scale), NULL};
    b.dev = ec_put_acts(e, b.host, n);
    return b;
}

static struct both both_poisoned(struct ec *e, size_t n)
{
    return (struct both){fx_poisoned(n), ec_alloc(e, n * sizeof(float))};
}

static void both_free(struct ec *e, const struct both *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        mem_free(list[i].host);
        ec_free(e, list[i].dev);
    }
}

static void both_near(struct ec *e, const struct both *b, size_t n, double tol, const char *what)
{
    float *got = ec_get_floats(e, b->dev, n);
    ec_close_to(got, b->host, n, tol, what);
    mem_free(got);
}

static void write_floats(struct ec *e, void *dev, const float *host, size_t n)
{
    assert_int_equal(e->cuda->ops->mem_write(e->cuda, dev, host, n * sizeof(float)), STATUS_OK);
}

/* ---- qkv_back ---- */

#define ROPE_POS 50

static void qkv_back_case(struct ec *e, uint32_t rows, uint32_t d, bool q_norm, bool k_norm)
{
    const uint32_t kv = 1 + fx_below(3), heads = kv * (1 + fx_below(4)), half = d / 2;
    const uint32_t stride = (heads + 2 * kv) * d + fx_below(5);
    const size_t n = (size_t)rows * stride;
    struct both dy = both_f32(e, n, 1), in = both_f32(e, (size_t)rows * (heads + kv) * d, 2);
    struct both cos = both_f32(e, ROPE_POS * half, 1), sin = both_f32(e, ROPE_POS * half, 1);
    struct both qg = both_f32(e, d, 1), kg = both_f32(e, d, 1);
    uint32_t *pos = mem_array(rows, sizeof(*pos));
    for (uint32_t t = 0; t < rows; t++)
        pos[t] = fx_below(ROPE_POS);
    uint32_t *dpos = ec_put(e, pos, rows * sizeof(*pos));
    float *before = ec_get_floats(e, dy.dev, n), *one = NULL, *all = NULL;
    struct qkv_back_args a = {dy.host,
                              in.host,
                              q_norm ? qg.host : NULL,
                              k_norm ? kg.host : NULL,
                              1e-6f,
                              {cos.host, sin.host, ROPE_POS},
                              pos,
                              rows,
                              stride,
                              heads,
                              kv,
                              d};
    assert_int_equal(e->ref->ops->back->qkv_back(e->ref, &a), STATUS_OK);
    a.dy = dy.dev;
    a.qk_in = in.dev;
    a.q_norm = q_norm ? qg.dev : NULL;
    a.k_norm = k_norm ? kg.dev : NULL;
    a.rope = (struct rope_table){cos.dev, sin.dev, ROPE_POS};
    a.pos = dpos;
    assert_int_equal(e->cuda->ops->back->qkv_back(e->cuda, &a), STATUS_OK);
    both_near(e, &dy, n, EC_TOL_F32, "qkv_back");
    all = ec_get_floats(e, dy.dev, n); /* then row by row */
    write_floats(e, dy.dev, before, n);
    for (uint32_t t = rows; t-- > 0;) {
        struct qkv_back_args row = a;
        row.dy = (float *)dy.dev + (size_t)t * stride;
        row.qk_in = (float *)in.dev + (size_t)t * (heads + kv) * d;
        row.pos = dpos + t;
        row.n_tok = 1;
        assert_int_equal(e->cuda->ops->back->qkv_back(e->cuda, &row), STATUS_OK);
    }
    one = ec_get_floats(e, dy.dev, n);
    fx_bits(one, all, n);
    const struct both used[] = {dy, in, cos, sin, qg, kg};
    both_free(e, used, ARRAY_COUNT(used));
    ec_free(e, dpos);
    mem_free(pos);
    mem_free(before);
    mem_free(all);
    mem_free(one);
}

static void qkv_back_equals_ref(void **state)
{
    static const uint32_t rows[] = {1, 3, 21}, heads[] = {2, 16, 24, 64, 80, 128, 256};
    struct ec e;
    (void)state;
    ec_open(&e);
    for (size_t i = 0; i < ARRAY_COUNT(heads); i++)
        qkv_back_case(&e, rows[i % ARRAY_COUNT(rows)], heads[i], i % 3 != 0, i % 3 != 0);
    ec_close(&e);
}

/* ---- attention_back ---- */

#define ATTN_SEQS 4

struct attn_case {
    struct attention_back_args ref, cuda;
    struct attention_back_seq seq[ATTN_SEQS];
    struct both q, k, v, out, lse, dout, dy;
    uint32_t n_tok; /* with rows of no sequence between */
};

static float attn_kv(const struct attn_case *c, const float *kv, uint32_t row, uint32_t at)
{
    float f = kv[(size_t)row * c->ref.n_kv_head * c->ref.d_head + at];
    return c->ref.kv_dtype == DTYPE_BF16 ? bf16_round(f) : f;
}

/* What the forward pass keeps: the log of a row's sum. */
static float attn_lse(const struct attn_case *c, const struct attention_back_seq *s, uint32_t t,
                      uint32_t h)
{
    const struct attention_back_args *a = &c->ref;
    const uint32_t d = a->d_head, g = h / (a->n_head / a->n_kv_head);
    const float *q = c->q.host + ((size_t)(s->row + t) * a->n_head + h) * d;
    double sum = 0;
    for (uint32_t j = a->window && t + 1 > a->window ? t + 1 - a->window : 0; j <= t; j++) {
        double dot = 0;
        for (uint32_t i = 0; i < d; i++)
            dot += (double)q[i] * (double)attn_kv(c, c->k.host, s->row + j, g * d + i);
        sum += exp(dot * (double)a->scale);
    }
    return (float)log(sum);
}

static void attn_lse_fill(struct ec *e, struct attn_case *c)
{
    const uint32_t heads = c->ref.n_head;
    c->lse = both_f32(e, (size_t)c->n_tok * heads, 1);
    for (uint32_t s = 0; s < c->ref.n_seq; s++)
        for (uint32_t t = 0; t < c->seq[s].n_row; t++)
            for (uint32_t h = 0; h < heads; h++)
                c->lse.host[(size_t)(c->seq[s].row + t) * heads + h] =
                    attn_lse(c, &c->seq[s], t, h);
    write_floats(e, c->lse.dev, c->lse.host, (size_t)c->n_tok * heads);
}

static void attn_make(struct ec *e, struct attn_case *c, uint32_t d, enum dtype kv, uint32_t window)
{
    struct attention_back_args *a = &c->ref;
    memset(c, 0, sizeof(*c));
    a->n_kv_head = 1 + fx_below(2);
    a->n_head = a->n_kv_head * (1 + fx_below(3));
    a->d_head = d;
    a->window = window;
    a->kv_dtype = kv;
    a->scale = 1.0f / sqrtf((float)d);
    a->n_seq = 1 + fx_below(ATTN_SEQS);
    a->seq = c->seq;
    for (uint32_t s = 0; s < a->n_seq; s++) {
        c->seq[s] = (struct attention_back_seq){c->n_tok, fx_below(s ? 9 : 30)};
        c->n_tok += c->seq[s].n_row + fx_below(2);
    }
    c->n_tok++;
    a->dy_stride = (a->n_head + 2 * a->n_kv_head) * d + fx_below(3);
    const size_t qn = (size_t)c->n_tok * a->n_head * d, kn = (size_t)c->n_tok * a->n_kv_head * d;
    c->q = both_acts(e, qn, 2);
    c->k = both_f32(e, kn, 1);
    c->v = both_f32(e, kn, 1);
    c->out = both_acts(e, qn, 1);
    c->dout = both_f32(e, qn, 1);
    c->dy = both_poisoned(e, (size_t)c->n_tok * a->dy_stride);
    attn_lse_fill(e, c);
    a->dy = c->dy.host;
    a->q = c->q.host;
    a->k = c->k.host;
    a->v = c->v.host;
    a->out = c->out.host;
    a->lse = c->lse.host;
    a->dout = c->dout.host;
    c->cuda = *a;
    c->cuda.dy = c->dy.dev;
    c->cuda.q = c->q.dev;
    c->cuda.k = c->k.dev;
    c->cuda.v = c->v.dev;
    c->cuda.out = c->out.dev;
    c->cuda.lse = c->lse.dev;
    c->cuda.dout = c->dout.dev;
}

/* Each sequence by itself, the last one first. */
static void attn_alone(struct ec *e, const struct attn_case *c)
{
    const size_t n = (size_t)c->n_tok * c->ref.dy_stride;
    float *all = ec_get_floats(e, c->dy.dev, n), *poison = fx_poisoned(n), *one;
    write_floats(e, c->dy.dev, poison, n);
    for (uint32_t s = c->ref.n_seq; s-- > 0;) {
        struct attention_back_args a = c->cuda;
        a.seq = &c->seq[s];
        a.n_seq = 1;
        assert_int_equal(e->cuda->ops->back->attention_back(e->cuda, &a), STATUS_OK);
    }
    one = ec_get_floats(e, c->dy.dev, n);
    for (size_t i = 0; i < n; i++)
        if (!isnan(all[i]) || !isnan(one[i]))
            fx_bits(&one[i], &all[i], 1);
    mem_free(all);
    mem_free(one);
    mem_free(poison);
}

static void attention_back_equals_ref(void **state)
{
    static const uint32_t heads[] = {8, 16, 24, 64, 80, 128, 256}, windows[] = {0, 1, 7, 20};
    struct ec e;
    (void)state;
    ec_open(&e);
    for (size_t i = 0; i < ARRAY_COUNT(heads); i++) {
        struct attn_case c;
        attn_make(&e, &c, heads[i], i & 1 ? DTYPE_BF16 : DTYPE_F32, windows[i % 4]);
        assert_int_equal(e.ref->ops->back->attention_back(e.ref, &c.ref), STATUS_OK);
        assert_int_equal(e.cuda->ops->back->attention_back(e.cuda, &c.cuda), STATUS_OK);
        both_near(&e, &c.dy, (size_t)c.n_tok * c.ref.dy_stride, EC_TOL_F32, "attention_back");
        attn_alone(&e, &c);
        const struct both used[] = {c.q, c.k, c.v, c.out, c.lse, c.dout, c.dy};
        both_free(&e, used, ARRAY_COUNT(used));
    }
    ec_close(&e);
}

/* ---- lora_back ---- */

#define N_SLOT   4
#define SEG_MAX  12
#define S_STRIDE 430 /* three modules, two parts, rank 70 at most; and some */

struct lora_case {
    struct lora_back_args a; /* shapes */
    struct lora_dims dims;
    struct lora_entry entry[N_SLOT][LORA_MODULE_COUNT], packed[N_SLOT][LORA_MODULE_COUNT];
    struct lora_layout layout[N_SLOT], packed_layout[N_SLOT];
    struct lora_slot slot[N_SLOT], packed_slot[N_SLOT];
    struct lora_table table, packed_table;
    struct lora_seg seg[SEG_MAX];
    struct both x, dy, ax, dx, s;
    float *dx0;
    /* the slots' gradients before, in both forms, and where they come to be */
    size_t n_grad[N_SLOT], n_packed[N_SLOT];
    float *grad0[N_SLOT], *packed0[N_SLOT], *grad[N_SLOT], *grad_dev[N_SLOT];
    float *trained[N_SLOT], *trained_dev[N_SLOT]; /* slot 3 is not: NULL */
};

/* to: a slot's gradient in the device's form, zero beyond the matrices. */
static void grad_pack(const struct lora_case *c, uint32_t s, float *to, const float *from)
{
    memset(to, 0, c->n_packed[s] * sizeof(*to));
    for (uint32_t m = 0; m < LORA_MODULE_COUNT; m++) {
        const struct lora_entry *e = &c->entry[s][m], *p = &c->packed[s][m];
        const uint32_t d_in = c->dims.d_in[m], d_out = c->dims.d_out[m];
        for (uint32_t r = 0; r < e->rank; r++) {
            for (uint32_t k = 0; k < d_in; k++)
                to[p->a_off / 2 + lora_pack_a_at(r, k, d_in)] = from[e->a_off / 2 + r * d_in + k];
            for (uint32_t n = 0; n < d_out; n++)
                to[p->b_off / 2 + lora_pack_b_at(n, r, e->rank)] =
                    from[e->b_off / 2 + r * d_out + n];
        }
    }
}

static void slot_make(struct ec *e, struct lora_case *c, uint32_t s)
{
    static const uint32_t ranks[] = {0, 1, 3, 8, 16, 17, 70};
    uint64_t at = 64;
    for (uint32_t i = 0; i < c->a.module_count; i++) {
        const uint32_t m = c->a.first + i, rank = ranks[fx_below(ARRAY_COUNT(ranks))];
        struct lora_entry *en = &c->entry[s][m];
        *en = (struct lora_entry){.rank = rank, .scale = 0.5f + (float)fx_below(3), .a_off = at};
        at = (at + (uint64_t)rank * c->dims.d_in[m] * 2 + 63) / 64 * 64;
        en->b_off = at;
        at = (at + (uint64_t)rank * c->dims.d_out[m] * 2 + 63) / 64 * 64;
    }
    const uint64_t bytes = lora_pack_layout(c->packed[s], c->entry[s], &c->dims);
    void *blob = fx_tensor(at / 2, DTYPE_BF16, 0.2f, 0), *packed = mem_array(bytes + 1, 1);
    lora_pack_blob(packed, c->packed[s], blob, c->entry[s], &c->dims);
    c->layout[s] = (struct lora_layout){c->entry[s], at};
    c->packed_layout[s] = (struct lora_layout){c->packed[s], bytes};
    c->slot[s] = (struct lora_slot){blob, s};
    c->packed_slot[s] = (struct lora_slot){ec_put(e, packed, bytes), s};
    c->n_grad[s] = at / 2;
    c->n_packed[s] = bytes / 2;
    c->grad0[s] = fx_floats(c->n_grad[s], 1);
    c->packed0[s] = mem_array(c->n_packed[s] + 1, sizeof(float));
    grad_pack(c, s, c->packed0[s], c->grad0[s]);
    c->grad[s] = mem_array(c->n_grad[s], sizeof(float));
    c->grad_dev[s] = ec_alloc(e, c->n_packed[s] * sizeof(float));
    mem_free(packed);
}

static uint32_t segments_make(struct lora_case *c, uint32_t rows)
{
    uint32_t n = 0;
    for (uint32_t t = 0; t < rows; t += c->seg[n++].tok_count) {
        struct lora_seg *s = &c->seg[n];
        *s = (struct lora_seg){t, n == SEG_MAX - 1 ? rows - t : 1 + fx_below(20), 0, {{0, 0}}};
        s->tok_count = MIN(s->tok_count, rows - t);
        s->part_count = fx_below(3);
        for (uint32_t p = 0; p < s->part_count; p++)
            s->part[p] = (struct lora_part){(fx_below(2) + 2 * p) % N_SLOT,
                                            (fx_below(2) ? 1 : -1) * (1 << (14 + fx_below(3)))};
    }
    return n;
}

static void lora_make(struct ec *e, struct lora_case *c, uint32_t rows)
{
    static const struct {
        enum lora_module first;
        uint32_t count;
    } group[] = {{LORA_MODULE_Q, 3}, {LORA_MODULE_O, 1}, {LORA_MODULE_GATE, 2}};
    const uint32_t pick = fx_below(ARRAY_COUNT(group)), d_in = 1 + fx_below(150);
    struct lora_back_args *a = &c->a;
    uint32_t width = 0;
    memset(c, 0, sizeof(*c));
    a->first = group[pick].first;
    a->module_count = group[pick].count;
    c->dims.n_layer = 1;
    for (uint32_t i = 0; i < a->module_count; i++) {
        width += a->d_out[i] = 1 + fx_below(120);
        c->dims.d_in[a->first + i] = d_in;
        c->dims.d_out[a->first + i] = a->d_out[i];
    }
    for (uint32_t s = 0; s < N_SLOT; s++) {
        slot_make(e, c, s);
        c->trained[s] = s == 3 ? NULL : c->grad[s];
        c->trained_dev[s] = s == 3 ? NULL : c->grad_dev[s];
    }
    c->table = (struct lora_table){c->slot, c->layout, N_SLOT, N_SLOT, 1, DTYPE_BF16};
    c->packed_table =
        (struct lora_table){c->packed_slot, c->packed_layout, N_SLOT, N_SLOT, 1, DTYPE_BF16};
    a->n_tok = rows;
    a->d_in = d_in;
    a->x_stride = d_in + fx_below(3);
    a->dx_stride = d_in + fx_below(3);
    a->dy_stride = width + fx_below(3);
    a->lora.s_stride = S_STRIDE;
    a->lora.seg = c->seg;
    a->lora.n_seg = segments_make(c, rows);
    c->x = both_acts(e, (size_t)rows * a->x_stride, 1);
    c->dy = both_f32(e, (size_t)rows * a->dy_stride, 1);
    c->ax = both_f32(e, (size_t)rows * S_STRIDE, 1);
    c->dx = both_f32(e, (size_t)rows * a->dx_stride, 1);
    c->s = both_poisoned(e, (size_t)rows * S_STRIDE);
    c->dx0 = ec_get_floats(e, c->dx.dev, (size_t)rows * a->dx_stride);
}

static void lora_free(struct ec *e, struct lora_case *c)
{
    const struct both used[] = {c->x, c->dy, c->ax, c->dx, c->s};
    both_free(e, used, ARRAY_COUNT(used));
    mem_free(c->dx0);
    for (uint32_t s = 0; s < N_SLOT; s++) {
        mem_free((void *)(uintptr_t)c->slot[s].blob);
        ec_free(e, (void *)(uintptr_t)c->packed_slot[s].blob);
        mem_free(c->grad0[s]);
        mem_free(c->packed0[s]);
        mem_free(c->grad[s]);
        ec_free(e, c->grad_dev[s]);
    }
}

/* dx and the gradients as they were. */
static struct lora_back_args lora_begin(struct ec *e, struct lora_case *c)
{
    struct lora_back_args a = c->a;
    write_floats(e, c->dx.dev, c->dx0, (size_t)a.n_tok * a.dx_stride);
    for (uint32_t s = 0; s < N_SLOT; s++)
        write_floats(e, c->grad_dev[s], c->packed0[s], c->n_packed[s]);
    a.lora.table = &c->packed_table;
    a.lora.s = c->s.dev;
    a.dy = c->dy.dev;
    a.x = c->x.dev;
    a.ax = c->ax.dev;
    a.dx = c->dx.dev;
    a.grad = c->trained_dev;
    return a;
}

static void lora_run(struct ec *e, const struct lora_back_args *a)
{
    assert_int_equal(e->cuda->ops->back->lora_back(e->cuda, a), STATUS_OK);
}

static void lora_run_ref(struct ec *e, struct lora_case *c)
{
    struct lora_back_args a = c->a;
    for (uint32_t s = 0; s < N_SLOT; s++)
        memcpy(c->grad[s], c->grad0[s], c->n_grad[s] * sizeof(float));
    a.lora.table = &c->table;
    a.lora.s = c->s.host;
    a.dy = c->dy.host;
    a.x = c->x.host;
    a.ax = c->ax.host;
    a.dx = c->dx.host;
    a.grad = c->trained;
    assert_int_equal(e->ref->ops->back->lora_back(e->ref, &a), STATUS_OK);
}

/* What a run left of dx and the trained gradients, end to end. */
static float *lora_result(struct ec *e, const struct lora_case *c, size_t *n)
{
    const size_t n_dx = (size_t)c->a.n_tok * c->a.dx_stride;
    *n = n_dx + c->n_packed[0] + c->n_packed[1] + c->n_packed[2];
    float *all = mem_array(*n + 1, sizeof(*all)), *to = all + n_dx;
    ec_get(e, all, c->dx.dev, n_dx * sizeof(float));
    for (uint32_t s = 0; s < 3; to += c->n_packed[s++])
        ec_get(e, to, c->grad_dev[s], c->n_packed[s] * sizeof(float));
    return all;
}

static void lora_against_ref(struct ec *e, struct lora_case *c)
{
    const struct lora_back_args a = lora_begin(e, c);
    lora_run_ref(e, c);
    lora_run(e, &a);
    both_near(e, &c->s, (size_t)a.n_tok * S_STRIDE, EC_TOL_F32, "ds");
    /* a ds just off a tie rounds the other way */
    both_near(e, &c->dx, (size_t)a.n_tok * a.dx_stride, 1e-3, "dx");
    for (uint32_t s = 0; s < 3; s++) {
        float *want = mem_array(c->n_packed[s] + 1, sizeof(*want));
        float *got = ec_get_floats(e, c->grad_dev[s], c->n_packed[s]);
        grad_pack(c, s, want, c->grad[s]);
        ec_close_to(got, want, c->n_packed[s], EC_TOL_F32, "gradient");
        mem_free(want);
        mem_free(got);
    }
    float *kept = ec_get_floats(e, c->grad_dev[3], c->n_packed[3]);
    fx_bits(kept, c->packed0[3], c->n_packed[3]);
    mem_free(kept);
}

/* The job of slot 0: without the segments that lack it. */
static void lora_alone(struct ec *e, struct lora_case *c)
{
    float *all = ec_get_floats(e, c->grad_dev[0], c->n_packed[0]), *one;
    struct lora_seg seg[SEG_MAX];
    struct lora_back_args a = lora_begin(e, c);
    memcpy(seg, c->seg, sizeof(seg));
    for (uint32_t i = 0; i < a.lora.n_seg; i++)
        if (seg[i].part_count && seg[i].part[0].slot != 0)
            seg[i].part_count = 0;
    a.lora.seg = seg;
    a.dx = NULL; /* not wanted */
    lora_run(e, &a);
    one = ec_get_floats(e, c->grad_dev[0], c->n_packed[0]);
    fx_bits(one, all, c->n_packed[0]);
    mem_free(all);
    mem_free(one);
}

/* Rows first .. last-1 as a batch. */
static void lora_rows(struct ec *e, struct lora_back_args a, uint32_t first, uint32_t last)
{
    struct lora_seg seg[SEG_MAX];
    uint32_t n = 0;
    for (uint32_t i = 0; i < a.lora.n_seg; i++) {
        const struct lora_seg *s = &a.lora.seg[i];
        const uint32_t begin = MAX(s->tok_begin, first);
        const uint32_t end = MIN(s->tok_begin + s->tok_count, last);
        if (begin >= end)
            continue;
        seg[n] = *s;
        seg[n].tok_begin = begin;
        seg[n++].tok_count = end - begin;
    }
    a.lora.seg = seg;
    a.lora.n_seg = n;
    lora_run(e, &a);
}

static void lora_cut(struct ec *e, struct lora_case *c)
{
    const uint32_t rows = c->a.n_tok, cut = fx_below(rows + 1);
    size_t n;
    struct lora_back_args a = lora_begin(e, c);
    lora_run(e, &a);
    float *whole = lora_result(e, c, &n), *parts;
    a = lora_begin(e, c);
    lora_rows(e, a, 0, cut);
    lora_rows(e, a, cut, rows);
    parts = lora_result(e, c, &n);
    fx_bits(parts, whole, n);
    mem_free(whole);
    mem_free(parts);
}

static void lora_back_equals_ref(void **state)
{
    static const uint32_t rows[] = {1, 2, 7, 33, 90};
    struct ec e;
    (void)state;
    ec_open(&e);
    for (size_t i = 0; i < 3 * ARRAY_COUNT(rows); i++) {
        struct lora_case c;
        lora_make(&e, &c, rows[i % ARRAY_COUNT(rows)]);
        lora_against_ref(&e, &c);
        lora_alone(&e, &c);
        lora_cut(&e, &c);
        lora_free(&e, &c);
    }
    ec_close(&e);
}

/* ---- dropout ---- */

#define DROP_SEGS 5

/* The last segment as a batch of its own: the same elements fall. */
static void dropout_alone(struct ec *e, const struct dropout_args *a, const void *before, size_t n)
{
    struct dropout_seg last = a->seg[a->n_seg - 1];
    const size_t row = last.tok_begin, item = a->add ? sizeof(float) : sizeof(uint16_t);
    const size_t begin = row * a->out_stride * item, bytes = n * item - begin;
    char *all = mem_array(n, item), *one = mem_array(n, item);
    struct dropout_args alone = *a;
    ec_get(e, all, a->out, n * item);
    assert_int_equal(e->cuda->ops->mem_write(e->cuda, a->out, before, n * item), STATUS_OK);
    last.tok_begin = 0;
    alone.seg = &last;
    alone.n_seg = 1;
    alone.out = (char *)a->out + begin;
    alone.x = (const char *)a->x + row * a->x_stride * item;
    assert_int_equal(e->cuda->ops->back->dropout(e->cuda, &alone), STATUS_OK);
    ec_get(e, one, a->out, n * item);
    fx_bits(one + begin, all + begin, bytes);
    mem_free(all);
    mem_free(one);
}

static void dropout_case(struct ec *e, uint32_t width, bool add)
{
    static const float shares[] = {0, 0.1f, 0.5f, 0.9f};
    struct dropout_seg seg[DROP_SEGS];
    struct dropout_args a = {.seg = seg, .n_seg = 1 + fx_below(DROP_SEGS), .width = width};
    uint32_t rows = 0;
    for (uint32_t s = 0; s < a.n_seg; s++) {
        seg[s] = (struct dropout_seg){rows, fx_below(6), fx_below(1000),
                                      shares[fx_below(ARRAY_COUNT(shares))],
                                      (uint64_t)fx_u32() << 32 | fx_u32()};
        rows += seg[s].tok_count += s + 1 == a.n_seg;
    }
    a.site = fx_below(40);
    a.out_stride = width + fx_below(3);
    a.x_stride = width + fx_below(3);
    a.add = add;
    const size_t n = (size_t)rows * a.out_stride, nx = (size_t)rows * a.x_stride;
    struct both out = add ? both_f32(e, n, 1) : both_acts(e, n, 1);
    struct both x = add ? both_f32(e, nx, 1) : both_acts(e, nx, 1);
    char *before = mem_array(n, sizeof(float));
    ec_get(e, before, out.dev, n * (add ? sizeof(float) : sizeof(uint16_t)));
    a.out = out.host;
    a.x = x.host;
    assert_int_equal(e->ref->ops->back->dropout(e->ref, &a), STATUS_OK);
    a.out = out.dev;
    a.x = x.dev;
    assert_int_equal(e->cuda->ops->back->dropout(e->cuda, &a), STATUS_OK);
    float *got = add ? ec_get_floats(e, out.dev, n) : ec_get_acts(e, out.dev, n);
    ec_close_to(got, out.host, n, add ? EC_TOL_F32 : EC_TOL_BF16, "dropout");
    dropout_alone(e, &a, before, n);
    const struct both used[] = {out, x};
    both_free(e, used, ARRAY_COUNT(used));
    mem_free(before);
    mem_free(got);
}

static void dropout_equals_ref(void **state)
{
    struct ec e;
    (void)state;
    ec_open(&e);
    for (int i = 0; i < 12; i++)
        dropout_case(&e, 1 + fx_below(600), i & 1);
    ec_close(&e);
}

int main(void)
{
    emu_set_seed(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qkv_back_equals_ref),
        cmocka_unit_test(attention_back_equals_ref),
        cmocka_unit_test(lora_back_equals_ref),
        cmocka_unit_test(dropout_equals_ref),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
