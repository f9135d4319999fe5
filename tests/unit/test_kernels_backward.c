/* The backward ops: ref against central differences of the forward formulas in f64, every CPU path
 * against ref on random shapes, and bits that depend neither on threads nor on other jobs. */
#include "tests/unit/kernels_fixture.h"

#define BITS(n, got, want) fx_bits(got, want, n)

static void *copy_of(const void *p, size_t bytes)
{
    void *c = mem_array(bytes + 1, 1);
    memcpy(c, p, bytes);
    return c;
}

/* ---- central differences ---- */

/* A scalar of x [n], in f64; arg is the case. */
typedef double loss_fn(const double *x, const void *arg);

/* |grad - difference| <= 2e-4 * (rms + |difference|) for every element. */
static void fd_check_at(loss_fn *f, const void *arg, const float *x, const float *grad, size_t n,
                        int line)
{
    double *at = mem_array(n, sizeof(*at)), h = 1e-5;
    float *want = mem_array(n, sizeof(*want));
    for (size_t i = 0; i < n; i++)
        at[i] = (double)x[i];
    for (size_t i = 0; i < n; i++) {
        double x0 = at[i];
        at[i] = x0 + h;
        double up = f(at, arg);
        at[i] = x0 - h;
        double down = f(at, arg);
        at[i] = x0;
        want[i] = (float)((up - down) / (2 * h));
    }
    fx_near_at(grad, want, n, 2e-4, "gradient", line);
    mem_free(at);
    mem_free(want);
}
#define fd_check(f, arg, x, grad, n) fd_check_at(f, arg, x, grad, n, __LINE__)

struct fd_rows {
    const float *gain, *dy, *cos, *sin;
    uint32_t d;
};

static double norm_value(const double *x, const float *gain, uint32_t d, uint32_t i)
{
    double sum = 0;
    for (uint32_t k = 0; k < d; k++)
        sum += x[k] * x[k];
    return x[i] / sqrt(sum / d + 1e-6) * (double)gain[i];
}

static double norm_loss(const double *x, const void *arg)
{
    const struct fd_rows *c = arg;
    double loss = 0;
    for (uint32_t i = 0; i < c->d; i++)
        loss += norm_value(x, c->gain, c->d, i) * (double)c->dy[i];
    return loss;
}

static double head_loss(const double *x, const void *arg)
{
    const struct fd_rows *c = arg;
    uint32_t half = c->d / 2;
    double loss = 0;
    for (uint32_t i = 0; i < half; i++) {
        double lo = norm_value(x, c->gain, c->d, i), hi = norm_value(x, c->gain, c->d, i + half);
        double co = (double)c->cos[i], si = (double)c->sin[i];
        loss += (lo * co - hi * si) * (double)c->dy[i];
        loss += (hi * co + lo * si) * (double)c->dy[i + half];
    }
    return loss;
}

static void test_fd_norms(void **state)
{
    struct backend *ref = fx_backend("ref", 1);
    (void)state;
    enum { D = 12 };
    float *x = fx_floats(D, 1), *gain = fx_floats(D, 1), *dy = fx_floats(D, 1);
    float *cos = fx_floats(D / 2, 1), *sin = fx_floats(D / 2, 1), zero[D] = {0}, out[D], rstd;
    struct norm_args fwd = {out, x, gain, NULL, &rstd, 1e-6f, 1, D, NULL};
    ref->ops->norm(ref, &fwd);
    struct norm_back_args a = {zero, dy, x, gain, &rstd, NULL, 1, D};
    assert_int_equal(ref->ops->back->norm_back(ref, &a), STATUS_OK);
    struct fd_rows c = {gain, dy, cos, sin, D};
    fd_check(norm_loss, &c, x, zero, D);
    uint32_t pos = 0;
    float *turned = copy_of(dy, D * sizeof(*dy));
    struct qkv_back_args q = {.dy = turned, .qk_in = x, .q_norm = gain, .k_norm = gain};
    q.norm_eps = 1e-6f;
    q.rope = (struct rope_table){cos, sin, 1};
    q.pos = &pos;
    q.n_tok = q.n_head = 1;
    q.dy_stride = q.d_head = D;
    assert_int_equal(ref->ops->back->qkv_back(ref, &q), STATUS_OK);
    fd_check(head_loss, &c, x, turned, D);
    float *all[] = {x, gain, dy, cos, sin, turned};
    for (size_t i = 0; i < ARRAY_COUNT(all); i++)
        mem_free(all[i]);
    backend_destroy(ref);
}

struct fd_mlp {
    const float *dout;
    uint32_t n;
};

static double mlp_loss(const double *x, const void *arg)
{
    const struct fd_mlp *c = arg;
    double loss = 0;
    for (uint32_t i = 0; i < c->n; i++)
        loss += x[i] / (1 + exp(-x[i])) * x[c->n + i] * (double)c->dout[i];
    return loss;
}

static double entropy_loss(const double *x, const void *arg)
{
    const struct fd_mlp *c = arg; /* target 3, weight 0.7 */
    double sum = 0;
    for (uint32_t i = 0; i < c->n; i++)
        sum += exp(x[i]);
    return (double)0.7f * (log(sum) - x[3]);
}

static void test_fd_mlp_entropy(void **state)
{
    struct backend *ref = fx_backend("ref", 1);
    (void)state;
    enum { N = 9 };
    float *x = fx_floats(2 * N, 1.5f), *dout = fx_floats(N, 1), dy[2 * N];
    struct fd_mlp c = {dout, N};
    struct mlp_back_args a = {dy, dout, x, x + N, 1, 2 * N, N};
    assert_int_equal(ref->ops->back->mlp_back(ref, &a), STATUS_OK);
    fd_check(mlp_loss, &c, x, dy, 2 * N);
    float *logits = copy_of(x, N * sizeof(*x)), weight = 0.7f, logprob;
    int32_t target = 3;
    struct cross_entropy_args e = {logits, &target, &weight, &logprob, 1, N};
    assert_int_equal(ref->ops->back->cross_entropy(ref, &e), STATUS_OK);
    fd_check(entropy_loss, &c, x, logits, N);
    double at[N];
    for (uint32_t i = 0; i < N; i++)
        at[i] = (double)x[i];
    assert_true(fabs((double)weight * (double)logprob + entropy_loss(at, &c)) < 1e-5);
    mem_free(x);
    mem_free(dout);
    mem_free(logits);
    backend_destroy(ref);
}

/* One sequence, two heads on one kv head, a window. x: q | k | v of all rows, row by row. */
enum { FD_ROWS = 7, FD_D = 6, FD_WINDOW = 4, FD_WIDE = 4 * FD_D };

static double attend_row(const double *x, uint32_t t, uint32_t h, const float *dout, double *out,
                         double *lse)
{
    const double *q = x + t * FD_WIDE + h * FD_D;
    double p[FD_ROWS], sum = 0, loss = 0;
    uint32_t first = t + 1 > FD_WINDOW ? t + 1 - FD_WINDOW : 0;
    for (uint32_t j = first; j <= t; j++) {
        double s = 0;
        for (uint32_t i = 0; i < FD_D; i++)
            s += q[i] * x[j * FD_WIDE + 2 * FD_D + i];
        sum += p[j] = exp(0.4 * s);
    }
    for (uint32_t i = 0; i < FD_D; i++) {
        out[i] = 0;
        for (uint32_t j = first; j <= t; j++)
            out[i] += p[j] / sum * x[j * FD_WIDE + 3 * FD_D + i];
        loss += out[i] * (double)dout[i];
    }
    *lse = log(sum);
    return loss;
}

static double attention_loss(const double *x, const void *arg)
{
    const float *dout = arg;
    double loss = 0, out[FD_D], lse;
    for (uint32_t t = 0; t < FD_ROWS; t++)
        for (uint32_t h = 0; h < 2; h++)
            loss += attend_row(x, t, h, dout + (t * 2 + h) * FD_D, out, &lse);
    return loss;
}

static void test_fd_attention(void **state)
{
    struct backend *ref = fx_backend("ref", 1);
    (void)state;
    float *x = fx_floats(FD_ROWS * FD_WIDE, 1), *dout = fx_floats(FD_ROWS * 2 * FD_D, 1);
    float q[FD_ROWS * 2 * FD_D], k[FD_ROWS * FD_D], v[FD_ROWS * FD_D], out[FD_ROWS * 2 * FD_D];
    float lse[FD_ROWS * 2], dy[FD_ROWS * FD_WIDE];
    double at[FD_ROWS * FD_WIDE], o[FD_D], l;
    for (uint32_t i = 0; i < FD_ROWS * FD_WIDE; i++)
        at[i] = (double)x[i];
    for (uint32_t t = 0; t < FD_ROWS; t++) {
        memcpy(q + t * 2 * FD_D, x + t * FD_WIDE, 2 * FD_D * sizeof(*q));
        memcpy(k + t * FD_D, x + t * FD_WIDE + 2 * FD_D, FD_D * sizeof(*q));
        memcpy(v + t * FD_D, x + t * FD_WIDE + 3 * FD_D, FD_D * sizeof(*q));
        for (uint32_t h = 0; h < 2; h++) {
            attend_row(at, t, h, dout, o, &l);
            lse[t * 2 + h] = (float)l;
            for (uint32_t i = 0; i < FD_D; i++)
                out[(t * 2 + h) * FD_D + i] = (float)o[i];
        }
    }
    struct attention_back_seq seq = {0, FD_ROWS};
    struct attention_back_args a = {dy,        dout, q, out,     k, v, lse,  &seq,
                                    DTYPE_F32, 0.4f, 1, FD_WIDE, 2, 1, FD_D, FD_WINDOW};
    assert_int_equal(ref->ops->back->attention_back(ref, &a), STATUS_OK);
    fd_check(attention_loss, dout, x, dy, FD_ROWS * FD_WIDE);
    mem_free(x);
    mem_free(dout);
    backend_destroy(ref);
}

/* Two modules on one x, one adapter of rank 2, two segments of it. vars: x | A, B of both. */
enum { LD_T = 3, LD_K = 5, LD_N = 4, LD_R = 2 };
#define LD_A(m) (LD_T * LD_K + (m) * (LD_R * (LD_K + LD_N)))

static double lora_loss(const double *v, const void *arg)
{
    const float *dy = arg;
    double loss = 0;
    for (uint32_t t = 0; t < LD_T; t++)
        for (uint32_t m = 0; m < 2; m++)
            for (uint32_t r = 0; r < LD_R; r++) {
                const double *a = v + LD_A(m), *b = a + LD_R * LD_K;
                double s = 0;
                for (uint32_t k = 0; k < LD_K; k++)
                    s += v[t * LD_K + k] * a[r * LD_K + k];
                for (uint32_t n = 0; n < LD_N; n++)
                    loss += 0.75 * s * b[r * LD_N + n] * (double)dy[(t * 2 + m) * LD_N + n];
            }
    return loss;
}

static void test_fd_lora(void **state)
{
    struct backend *ref = fx_backend("ref", 1);
    (void)state;
    enum { VARS = LD_A(2) };
    float *v = fx_floats(VARS, 1), *dy = fx_floats(LD_T * 2 * LD_N, 1);
    float s[LD_T * 2 * LD_R], ax[LD_T * 2 * LD_R], grad[VARS] = {0}, *grads = grad;
    struct lora_entry entry[LORA_MODULE_COUNT] = {{0}};
    for (uint32_t m = 0; m < 2; m++) {
        uint64_t at = sizeof(float) * LD_A(m);
        entry[LORA_MODULE_GATE + m] =
            (struct lora_entry){LD_R, 1.5f, at, at + sizeof(float) * LD_R * LD_K};
    }
    struct lora_layout layout = {entry, sizeof(float) * VARS};
    struct lora_slot slot = {v, 0};
    struct lora_table table = {&slot, &layout, 1, 1, 1, DTYPE_F32};
    struct lora_seg seg[2] = {{0, 1, 1, {{0, 1 << 15}}}, {1, LD_T - 1, 1, {{0, 1 << 15}}}};
    struct lora_step step = {&table, seg, 2, s, 2 * LD_R, NULL};
    struct lora_shrink_args fwd = {step, v, ax, LD_T, LD_K, LD_K, 0, LORA_MODULE_GATE, 2};
    ref->ops->lora_shrink(ref, &fwd);
    struct lora_back_args a = {step,     dy,   v,    ax,   grad,         &grads, LD_T,
                               2 * LD_N, LD_K, LD_K, LD_K, {LD_N, LD_N}, 0,      LORA_MODULE_GATE,
                               2};
    assert_int_equal(ref->ops->back->lora_back(ref, &a), STATUS_OK);
    fd_check(lora_loss, dy, v, grad, VARS);
    mem_free(v);
    mem_free(dy);
    backend_destroy(ref);
}

/* ---- cpu against ref ---- */

/* Run `op` on every backend on a fresh copy of `out`; near ref, and equal bits within a path. */
struct versus {
    struct fx_backends f;
    double tol;
    int line;
};

typedef void op_fn(struct backend *b, float *out, const void *arg);

static void versus_at(struct versus *v, op_fn *op, const void *arg, const float *init, size_t n,
                      int line)
{
    float *want = copy_of(init, n * sizeof(float)), *first = NULL;
    op(v->f.ref, want, arg);
    for (uint32_t i = 0; i < v->f.n_cpu; i++) {
        float *got = copy_of(init, n * sizeof(float));
        op(v->f.cpu[i], got, arg);
        fx_near_at(got, want, n, v->tol, v->f.cpu[i]->version, line);
        if (i > 0 && fx_same_path(v->f.cpu[i], v->f.cpu[i - 1])) {
            BITS(n, got, first);
            mem_free(got);
        } else {
            mem_free(first);
            first = got;
        }
    }
    mem_free(first);
    mem_free(want);
}
#define versus(v, op, arg, init, n) versus_at(v, op, arg, init, n, __LINE__)

static void op_gemm_back(struct backend *b, float *out, const void *arg)
{
    struct gemm_back_args a = *(const struct gemm_back_args *)arg;
    a.dx = out;
    assert_int_equal(b->ops->back->gemm_back(b, &a), STATUS_OK);
}

/* d: d_in, d_out at most */
static void gemm_back_case(struct versus *v, uint32_t rows, const uint32_t d[2], enum dtype dtype)
{
    struct gemm_back_args a = {.part_count = 1 + fx_below(3), .n_tok = rows};
    uint32_t d_in = 1 + fx_below(d[0]), width = 0;
    for (uint32_t i = 0; i < a.part_count; i++) {
        a.part[i] = (struct weight){.dtype = dtype, .d_out = 1 + fx_below(d[1]), .d_in = d_in};
        a.part[i].data = fx_tensor((size_t)a.part[i].d_out * d_in, dtype, 0.1f, 0);
        width += a.part[i].d_out;
    }
    a.dy_stride = width + fx_below(3);
    a.dx_stride = d_in + fx_below(3);
    float *dy = fx_floats((size_t)rows * a.dy_stride, 1);
    float *out = fx_poisoned((size_t)rows * a.dx_stride);
    a.dy = dy;
    v->tol = dtype == DTYPE_BF16 ? 2e-5 : 1e-5;
    versus(v, op_gemm_back, &a, out, (size_t)rows * a.dx_stride);
    for (uint32_t i = 0; rows > 3 && i < v->f.n_cpu; i++) { /* the last row alone */
        float *all = copy_of(out, (size_t)rows * a.dx_stride * 4), *one = fx_poisoned(a.dx_stride);
        struct gemm_back_args alone = a;
        op_gemm_back(v->f.cpu[i], all, &a);
        alone.n_tok = 1;
        alone.dy = dy + (size_t)(rows - 1) * a.dy_stride;
        op_gemm_back(v->f.cpu[i], one, &alone);
        BITS(d_in, one, all + (size_t)(rows - 1) * a.dx_stride);
        mem_free(all);
        mem_free(one);
    }
    for (uint32_t i = 0; i < a.part_count; i++)
        mem_free((void *)(uintptr_t)a.part[i].data);
    mem_free(dy);
    mem_free(out);
}

static void test_gemm_back(void **state)
{
    static const uint32_t rows[] = {0, 1, 2, 5, 13, 70, 301}, usual[2] = {300, 700};
    static const uint32_t slabs[2] = {130, 2600}, passes[2] = {20, 300};
    struct versus v = {.tol = 1e-5};
    (void)state;
    fx_open(&v.f);
    for (size_t r = 0; r < ARRAY_COUNT(rows); r++) {
        gemm_back_case(&v, rows[r], usual, DTYPE_F32);
        gemm_back_case(&v, rows[r], usual, DTYPE_BF16);
    }
    for (uint32_t i = 0; i < 2; i++) { /* W in several slabs, rows in several passes */
        gemm_back_case(&v, 30 + 200 * i, slabs, DTYPE_BF16);
        gemm_back_case(&v, 30 + 200 * i, slabs, DTYPE_F32);
        gemm_back_case(&v, 1500 + 1000 * i, passes, i ? DTYPE_BF16 : DTYPE_F32);
    }
    fx_close(&v.f);
}

static void op_entropy(struct backend *b, float *out, const void *arg)
{
    struct cross_entropy_args a = *(const struct cross_entropy_args *)arg;
    a.logits = out;
    a.logprob = out + (size_t)a.n_row * a.n_vocab;
    assert_int_equal(b->ops->back->cross_entropy(b, &a), STATUS_OK);
}

static void op_norm_back(struct backend *b, float *out, const void *arg)
{
    struct norm_back_args a = *(const struct norm_back_args *)arg;
    a.dx = out;
    assert_int_equal(b->ops->back->norm_back(b, &a), STATUS_OK);
}

static void op_mlp_back(struct backend *b, float *out, const void *arg)
{
    struct mlp_back_args a = *(const struct mlp_back_args *)arg;
    a.dy = out;
    assert_int_equal(b->ops->back->mlp_back(b, &a), STATUS_OK);
}

static void op_qkv_back(struct backend *b, float *out, const void *arg)
{
    struct qkv_back_args a = *(const struct qkv_back_args *)arg;
    a.dy = out;
    assert_int_equal(b->ops->back->qkv_back(b, &a), STATUS_OK);
}

static void rows_case(struct versus *v, uint32_t n, uint32_t d)
{
    float *x = fx_floats((size_t)(n + 3) * d, 1), *y = fx_floats((size_t)n * d, 1);
    float *z = fx_floats((size_t)n * d, 1), *gain = fx_floats(d, 1), *rstd = fx_floats(n, 1);
    float *out = fx_floats((size_t)(2 * n + 3) * d + n, 3);
    int32_t *target = mem_array(n + 1, sizeof(*target));
    uint32_t *rows = mem_array(n + 1, sizeof(*rows));
    for (uint32_t i = 0; i < n; i++) {
        rstd[i] = fabsf(rstd[i]);
        target[i] = i % 3 == 2 ? -1 : (int32_t)fx_below(d);
        rows[i] = i + (i > n / 2) * 2;
    }
    struct cross_entropy_args e = {NULL, target, rstd, NULL, n, d};
    versus(v, op_entropy, &e, out, (size_t)n * d + n);
    struct norm_back_args norm = {NULL, y, x, gain, rstd, rows, n, d};
    versus(v, op_norm_back, &norm, out, (size_t)(n + 3) * d);
    norm.rows = NULL;
    versus(v, op_norm_back, &norm, out, (size_t)n * d);
    struct mlp_back_args mlp = {NULL, y, x, z, n, 2 * d, d};
    versus(v, op_mlp_back, &mlp, out, (size_t)n * 2 * d);
    float *all[] = {x, y, z, gain, rstd, out};
    for (size_t i = 0; i < ARRAY_COUNT(all); i++)
        mem_free(all[i]);
    mem_free(target);
    mem_free(rows);
}

static void qkv_case(struct versus *v, uint32_t n, uint32_t d, bool norms)
{
    struct qkv_back_args a = {.n_tok = n, .n_head = 1 + fx_below(5), .n_kv_head = 1 + fx_below(2)};
    uint32_t heads = a.n_head + a.n_kv_head;
    a.d_head = d;
    a.dy_stride = (heads + a.n_kv_head) * d + fx_below(3);
    a.norm_eps = 1e-6f;
    float *in = fx_floats((size_t)n * heads * d, 1), *gain = fx_floats(d, 1);
    float *turn = fx_floats((size_t)50 * d, 0.7f), *out = fx_floats((size_t)n * a.dy_stride, 1);
    uint32_t *pos = mem_array(n + 1, sizeof(*pos));
    for (uint32_t i = 0; i < n; i++)
        pos[i] = fx_below(50);
    a.pos = pos;
    a.rope = (struct rope_table){turn, turn + 25 * d, 50};
    a.qk_in = in;
    a.q_norm = a.k_norm = norms ? gain : NULL;
    versus(v, op_qkv_back, &a, out, (size_t)n * a.dy_stride);
    mem_free(in);
    mem_free(gain);
    mem_free(turn);
    mem_free(out);
    mem_free(pos);
}

static void test_rows(void **state)
{
    static const uint32_t widths[] = {1, 7, 16, 33, 200, 1030, 2100};
    struct versus v = {.tol = 2e-5};
    (void)state;
    fx_open(&v.f);
    for (size_t i = 0; i < ARRAY_COUNT(widths); i++) {
        rows_case(&v, fx_below(30), widths[i]);
        rows_case(&v, 20, widths[i]);
        qkv_case(&v, fx_below(40), 8 * (1 + fx_below(20)), i & 1);
    }
    fx_close(&v.f);
}

/* The log-probability is what score reports for the same row, bit for bit. */
static void test_entropy_is_score(void **state)
{
    struct fx_backends f;
    enum { D = 40, V = 3000, N = 5 };
    float *x = fx_floats(N * D, 1), *w = fx_floats((size_t)V * D, 0.3f), one[N] = {1, 1, 1, 1, 1};
    int32_t target[N] = {0, 1023, 1024, 2999, 77};
    float *logits = mem_array(N * V, sizeof(float)), *scratch = mem_array(N * SCORE_TILE, 4);
    (void)state;
    fx_open(&f);
    for (uint32_t i = 0; i <= f.n_cpu; i++) {
        struct backend *b = i < f.n_cpu ? f.cpu[i] : f.ref;
        float score[N], logprob[N];
        struct logits_args l = {logits, x, {w, DTYPE_F32, V, D, NULL}, N};
        struct score_args s = {score, x, {w, DTYPE_F32, V, D, NULL}, target, scratch, N};
        struct cross_entropy_args e = {logits, target, one, logprob, N, V};
        b->ops->score(b, &s);
        b->ops->logits(b, &l);
        b->ops->back->cross_entropy(b, &e);
        fx_bits(logprob, score, N);
    }
    fx_close(&f);
    mem_free(x);
    mem_free(w);
    mem_free(logits);
    mem_free(scratch);
}

static void op_dropout(struct backend *b, float *out, const void *arg)
{
    struct dropout_args a = *(const struct dropout_args *)arg;
    a.out = out;
    assert_int_equal(b->ops->back->dropout(b, &a), STATUS_OK);
}

/* Every backend drops the same elements, a share of p of them, by the row's number. */
static void test_dropout(void **state)
{
    enum { N = 60, W = 700 };
    struct versus v = {.tol = 1e-6};
    struct dropout_seg seg[3] = {
        {0, 20, 5, 0.25f, 77}, {20, 15, 0, 0, 77}, {35, 25, 0, 0.5f, 1ull << 40}};
    float *x = fx_floats(N * W, 1), *zero = mem_array(N * W, 4), *one = mem_array(N * W, 4);
    struct dropout_args a = {NULL, x, seg, 3, W, W, W, 9, false};
    (void)state;
    fx_open(&v.f);
    versus(&v, op_dropout, &a, zero, N * W);
    a.add = true;
    versus(&v, op_dropout, &a, x, N * W);
    op_dropout(v.f.ref, one, &a);
    uint32_t fell[3] = {0, 0, 0};
    for (uint32_t i = 0; i < N * W; i++)
        fell[i / W < 20 ? 0 : i / W < 35 ? 1 : 2] += one[i] == 0;
    assert_true(fell[0] > 20 * W * 23 / 100 && fell[0] < 20 * W * 27 / 100);
    assert_int_equal(fell[1], 0);
    assert_true(fell[2] > 25 * W * 48 / 100 && fell[2] < 25 * W * 52 / 100);
    /* rows 7.. of the first segment alone: the same mask */
    struct dropout_seg part = {0, 13, 12, 0.25f, 77};
    struct dropout_args some = {NULL, x + 7 * W, &part, 1, W, W, W, 9, true};
    memset(zero, 0, N * W * 4);
    op_dropout(v.f.ref, zero, &some);
    BITS(13 * W, zero, one + 7 * W);
    fx_close(&v.f);
    mem_free(x);
    mem_free(zero);
    mem_free(one);
}

/* ---- attention ---- */

struct attn_case {
    struct attention_back_args a;
    struct attention_back_seq seq[5];
    float *q, *k, *v, *out, *lse, *dout;
    uint32_t n_tok;
};

/* q, k, v random, out and lse from the forward op over a cache of one page a sequence. */
static void attn_make(struct attn_case *c, struct backend *ref, uint32_t d, enum dtype kv_dtype,
                      uint32_t window)
{
    memset(c, 0, sizeof(*c));
    struct attention_back_args *a = &c->a;
    a->n_kv_head = 1 + fx_below(3);
    a->n_head = a->n_kv_head * (1 + fx_below(4));
    a->d_head = d;
    a->window = window;
    a->kv_dtype = kv_dtype;
    a->scale = 1.0f / sqrtf((float)d);
    a->n_seq = 1 + fx_below(4);
    uint32_t kvd = a->n_kv_head * d, qd = a->n_head * d, seq[700], pos[700], page[5] = {0, 1, 2, 3};
    for (uint32_t s = 0; s < a->n_seq; s++) {
        c->seq[s] = (struct attention_back_seq){c->n_tok, 1 + fx_below(s ? 30 : 150)};
        for (uint32_t t = 0; t < c->seq[s].n_row; t++, c->n_tok++) {
            seq[c->n_tok] = s;
            pos[c->n_tok] = t;
        }
    }
    a->dy_stride = qd + 2 * kvd + 1;
    c->q = fx_floats((size_t)c->n_tok * qd, 2);
    c->k = fx_floats((size_t)c->n_tok * kvd, 1);
    c->v = fx_floats((size_t)c->n_tok * kvd, 1);
    c->dout = fx_floats((size_t)c->n_tok * qd, 1);
    c->out = fx_poisoned((size_t)c->n_tok * qd);
    c->lse = fx_poisoned((size_t)c->n_tok * a->n_head);
    struct attention_args f = {.out = c->out, .q = c->q, .keep_lse = c->lse, .scale = a->scale};
    f.n_tok = c->n_tok;
    f.n_head = a->n_head;
    f.n_kv_head = a->n_kv_head;
    f.d_head = d;
    f.window = window;
    f.kv = (struct kv_cache){.dtype = kv_dtype, .page_tok = 150, .stride_tok = kvd};
    f.kv.stride_head = d;
    f.kv.stride_kv = (uint64_t)150 * kvd;
    f.kv.stride_layer = f.kv.stride_page = 2 * f.kv.stride_kv;
    f.kv.base = mem_array(a->n_seq * f.kv.stride_page, sizeof(float));
    f.rows = (struct kv_rows){seq, pos, page, 1};
    for (uint32_t t = 0; t < c->n_tok; t++)
        for (uint32_t i = 0; i < kvd; i++) {
            uint64_t off = seq[t] * f.kv.stride_page + pos[t] * f.kv.stride_tok + i;
            elem_store(f.kv.base, kv_dtype, off, c->k[(size_t)t * kvd + i]);
            elem_store(f.kv.base, kv_dtype, off + f.kv.stride_kv, c->v[(size_t)t * kvd + i]);
        }
    ref->ops->attention(ref, &f);
    mem_free(f.kv.base);
    a->q = c->q;
    a->k = c->k;
    a->v = c->v;
    a->out = c->out;
    a->lse = c->lse;
    a->dout = c->dout;
    a->seq = c->seq;
}

static void op_attention_back(struct backend *b, float *out, const void *arg)
{
    struct attention_back_args a = *(const struct attention_back_args *)arg;
    a.dy = out;
    assert_int_equal(b->ops->back->attention_back(b, &a), STATUS_OK);
}

static void attn_alone(struct backend *b, const struct attn_case *c)
{
    size_t n = (size_t)c->n_tok * c->a.dy_stride;
    float *all = fx_poisoned(n), *one = fx_poisoned(n);
    op_attention_back(b, all, &c->a);
    for (uint32_t s = c->a.n_seq; s-- > 0;) {
        struct attention_back_args a = c->a;
        a.seq = &c->seq[s];
        a.n_seq = 1;
        op_attention_back(b, one, &a);
    }
    BITS(n, one, all);
    mem_free(all);
    mem_free(one);
}

static void test_attention_back(void **state)
{
    static const uint32_t heads[] = {8, 16, 24, 64, 80, 128, 256};
    static const uint32_t windows[] = {0, 1, 7, 70};
    struct versus v = {.tol = 1e-4};
    (void)state;
    fx_open(&v.f);
    for (size_t i = 0; i < ARRAY_COUNT(heads); i++) {
        struct attn_case c;
        attn_make(&c, v.f.ref, heads[i], i & 1 ? DTYPE_BF16 : DTYPE_F32, windows[i % 4]);
        float *out = fx_poisoned((size_t)c.n_tok * c.a.dy_stride);
        versus(&v, op_attention_back, &c.a, out, (size_t)c.n_tok * c.a.dy_stride);
        attn_alone(v.f.cpu[v.f.n_cpu - 1], &c);
        float *all[] = {c.q, c.k, c.v, c.out, c.lse, c.dout, out};
        for (size_t k = 0; k < ARRAY_COUNT(all); k++)
            mem_free(all[k]);
    }
    fx_close(&v.f);
}

/* ---- LoRA ---- */

#define N_SLOT  4
#define SEG_MAX 12

struct lora_case {
    struct lora_back_args a;
    struct lora_entry entry[N_SLOT][LORA_MODULE_COUNT];
    struct lora_layout layout[N_SLOT];
    struct lora_slot slot[N_SLOT];
    struct lora_table table;
    struct lora_seg seg[SEG_MAX];
    float *x, *dy, *ax, *init; /* init: dx | s | the slots' gradients */
    size_t n_dx, n_s, n_grad[N_SLOT], n_all;
};

static void lora_blobs(struct lora_case *c, enum dtype dtype)
{
    static const uint32_t ranks[] = {0, 1, 3, 8, 16, 17, 70};
    for (uint32_t s = 0; s < N_SLOT; s++) {
        uint64_t at = 64, item = dtype_bytes(dtype);
        for (uint32_t m = 0; m < c->a.module_count; m++) {
            uint32_t rank = ranks[fx_below(ARRAY_COUNT(ranks))];
            struct lora_entry *e = &c->entry[s][c->a.first + m];
            *e = (struct lora_entry){.rank = rank, .scale = 0.5f + (float)fx_below(3)};
            e->a_off = at;
            at = (at + rank * c->a.d_in * item + 63) / 64 * 64;
            e->b_off = at;
            at = (at + rank * c->a.d_out[m] * item + 63) / 64 * 64;
        }
        c->layout[s] = (struct lora_layout){c->entry[s], at};
        c->slot[s] = (struct lora_slot){fx_tensor(at / item, dtype, 0.2f, 0), s};
        c->n_grad[s] = at / item;
    }
    c->table = (struct lora_table){c->slot, c->layout, N_SLOT, N_SLOT, 1, dtype};
}

static void lora_make(struct lora_case *c, uint32_t n_tok, enum dtype dtype)
{
    memset(c, 0, sizeof(*c));
    struct lora_back_args *a = &c->a;
    uint32_t n_seg = 0, width = 0;
    a->first = fx_below(2) ? LORA_MODULE_Q : LORA_MODULE_DOWN;
    a->module_count = a->first == LORA_MODULE_Q ? 3 : 1;
    a->d_in = 1 + fx_below(400);
    for (uint32_t m = 0; m < a->module_count; m++)
        width += a->d_out[m] = 1 + fx_below(300);
    a->n_tok = n_tok;
    a->x_stride = a->d_in + 1;
    a->dx_stride = a->d_in + 2;
    a->dy_stride = width + 3;
    lora_blobs(c, dtype);
    for (uint32_t t = 0; t < n_tok; t += c->seg[n_seg++].tok_count) {
        struct lora_seg *s = &c->seg[n_seg];
        *s = (struct lora_seg){t, n_seg == SEG_MAX - 1 ? n_tok - t : 1 + fx_below(60), 0, {{0, 0}}};
        s->tok_count = MIN(s->tok_count, n_tok - t);
        s->part_count = fx_below(3);
        for (uint32_t p = 0; p < s->part_count; p++)
            s->part[p] =
                (struct lora_part){(fx_below(2) + 2 * p) % N_SLOT, 1 << (14 + fx_below(3))};
    }
    a->lora = (struct lora_step){&c->table, c->seg, n_seg, NULL, 430, NULL};
    c->n_dx = (size_t)n_tok * a->dx_stride;
    c->n_s = (size_t)n_tok * a->lora.s_stride;
    c->n_all = c->n_dx + c->n_s;
    for (uint32_t s = 0; s < N_SLOT; s++)
        c->n_all += c->n_grad[s];
    c->x = fx_floats((size_t)n_tok * a->x_stride, 1);
    c->dy = fx_floats((size_t)n_tok * a->dy_stride, 1);
    c->ax = fx_floats(c->n_s, 1);
    c->init = fx_floats(c->n_all, 1);
    a->x = c->x;
    a->dy = c->dy;
    a->ax = c->ax;
}

static void lora_free(struct lora_case *c)
{
    for (uint32_t s = 0; s < N_SLOT; s++)
        mem_free((void *)(uintptr_t)c->slot[s].blob);
    mem_free(c->x);
    mem_free(c->dy);
    mem_free(c->ax);
    mem_free(c->init);
}

/* Slot 3 is not trained. */
static void op_lora_back(struct backend *b, float *out, const void *arg)
{
    const struct lora_case *c = arg;
    struct lora_back_args a = c->a;
    float *grad[N_SLOT], *at = out + c->n_dx + c->n_s;
    for (uint32_t s = 0; s < N_SLOT; at += c->n_grad[s++])
        grad[s] = s == 3 ? NULL : at;
    a.dx = out;
    a.lora.s = out + c->n_dx;
    a.grad = grad;
    assert_int_equal(b->ops->back->lora_back(b, &a), STATUS_OK);
}

/* The job of slot 0: its gradient is the same bits without the rows of segments that lack it. */
static void lora_alone(struct backend *b, const struct lora_case *c)
{
    float *all = copy_of(c->init, c->n_all * sizeof(float)), *one = copy_of(c->init, c->n_all * 4);
    struct lora_case job = *c;
    op_lora_back(b, all, c);
    job.a.lora.seg = job.seg;
    for (uint32_t i = 0; i < job.a.lora.n_seg; i++) {
        struct lora_seg *s = &job.seg[i];
        bool mine = s->part_count && s->part[0].slot == 0;
        if (!mine)
            s->part_count = 0;
    }
    op_lora_back(b, one, &job);
    size_t at = c->n_dx + c->n_s;
    BITS(c->n_grad[0], one + at, all + at);
    mem_free(all);
    mem_free(one);
}

static void test_lora_back(void **state)
{
    static const uint32_t rows[] = {0, 1, 2, 7, 33, 90, 200};
    struct versus v = {.tol = 1e-4};
    (void)state;
    fx_open(&v.f);
    for (size_t r = 0; r < ARRAY_COUNT(rows); r++)
        for (int i = 0; i < 4; i++) {
            struct lora_case c;
            lora_make(&c, rows[r], i & 1 ? DTYPE_BF16 : DTYPE_F32);
            v.tol = i & 1 ? 2e-2 : 1e-4; /* a sum just off a tie rounds the other way */
            versus(&v, op_lora_back, &c, c.init, c.n_all);
            lora_alone(v.f.cpu[v.f.n_cpu - 1], &c);
            lora_free(&c);
        }
    fx_close(&v.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fd_norms),         cmocka_unit_test(test_fd_mlp_entropy),
        cmocka_unit_test(test_fd_attention),     cmocka_unit_test(test_fd_lora),
        cmocka_unit_test(test_gemm_back),        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_entropy_is_score), cmocka_unit_test(test_attention_back),
        cmocka_unit_test(test_lora_back),        cmocka_unit_test(test_dropout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
