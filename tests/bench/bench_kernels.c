/* Kernel bench: each op's median time on the shapes of Qwen2.5-0.5B, with the bytes or the flops it
 * must move, as GB/s and share of a read bandwidth measured in the same run, or GFLOP/s.
 *
 *   bench_kernels [--backend cpu|cpu:PATH|ref] [--threads N] [--repeats N] [--packed 0|1]
 *
 * Matrices are packed as the engine packs them where memory allows; --packed 0 reads them mapped.
 * Peak: what independent vdpbf16ps on registers reach on all threads, in the same run.
 *
 * Weights rotate over copies larger than the last-level cache, so that decode shapes read memory.
 * Other load on the machine shows in the medians; the best time of the repeats is what the kernel
 * does when nobody interferes, and rates are computed from it. Where even that is rare, the least
 * processor time says what the kernel takes; of one thread only: the clock of a process learns of
 * its other threads too late. */
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include "kernels/backend.h"
#include "kernels/bf16.h"
#include "kernels/cpu/pool.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define REPEATS_MAX  200
#define ROTATE_BYTES ((size_t)192 << 20)
#define PROBE_BYTES  ((size_t)512 << 20)

static uint32_t repeats = 30;

struct bench {
    struct backend *b;
    struct pool *pool;
    double probe_gbs;
    double peak; /* GFLOP/s of native bf16 products; 0: this machine has none */
    bool pack;
};

typedef void bench_fn(void *arg, uint32_t round);

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct timing {
    double median, best, spent; /* seconds; spent: least processor time, of one thread */
};

static double spent_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static struct timing measure(bench_fn *fn, void *arg)
{
    double t[REPEATS_MAX], least = 1e9;
    fn(arg, 0);
    for (uint32_t i = 0; i < repeats; i++) {
        uint64_t begin = clock_mono_ns();
        double spent = spent_s();
        fn(arg, i + 1);
        spent = spent_s() - spent;
        least = spent < least ? spent : least;
        t[i] = (double)(clock_mono_ns() - begin) * 1e-9;
    }
    qsort(t, repeats, sizeof(t[0]), by_value);
    return (struct timing){t[repeats / 2], t[0], least};
}

/* ---- read bandwidth ---- */

struct probe {
    struct pool *pool;
    const uint64_t *data;
    uint64_t sink[POOL_WORKERS_MAX * 8];
};

typedef uint64_t v8 __attribute__((vector_size(64)));

static void probe_share(void *arg, uint32_t worker, uint32_t n_worker)
{
    struct probe *p = arg;
    uint64_t lo, hi;
    v8 a = {0}, b = {0}, c = {0}, d = {0};
    pool_share(PROBE_BYTES / 256, worker, n_worker, &lo, &hi);
    const v8 *at = (const v8 *)(const void *)p->data;
    for (uint64_t i = lo; i < hi; i++) {
        a ^= at[4 * i];
        b ^= at[4 * i + 1];
        c ^= at[4 * i + 2];
        d ^= at[4 * i + 3];
    }
    a ^= b ^ c ^ d;
    p->sink[worker * 8] = a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
}

static void probe_run(void *arg, uint32_t round)
{
    struct probe *p = arg;
    (void)round;
    pool_run(p->pool, probe_share, p);
}

static double probe_gbs(struct pool *pool)
{
    struct probe *p = mem_alloc_aligned(sizeof(*p));
    uint64_t *data = mem_alloc_aligned(PROBE_BYTES);
    memset(data, 1, PROBE_BYTES);
    p->pool = pool;
    p->data = data;
    double s = measure(probe_run, p).best;
    mem_free_aligned(data, PROBE_BYTES);
    mem_free_aligned(p, sizeof(*p));
    return (double)PROBE_BYTES / s * 1e-9;
}

/* ---- peak of native bf16 products ---- */

#define PEAK_ROUNDS 200000
#define PEAK_CHAINS 24

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bf16"))) static void peak_share(void *arg, uint32_t worker,
                                                                     uint32_t n_worker)
{
    __m512 acc[PEAK_CHAINS];
    __m512bh x = (__m512bh)_mm512_set1_epi32((int)worker), y = x;
    (void)arg, (void)n_worker;
    for (int i = 0; i < PEAK_CHAINS; i++)
        acc[i] = _mm512_setzero_ps();
    for (int r = 0; r < PEAK_ROUNDS; r++) {
        __asm__ volatile("" : "+v"(x), "+v"(y));
#pragma GCC unroll 24
        for (int i = 0; i < PEAK_CHAINS; i++)
            acc[i] = _mm512_dpbf16_ps(acc[i], x, y);
    }
    for (int i = 0; i < PEAK_CHAINS; i++)
        __asm__ volatile("" : : "v"(acc[i]));
}

static void peak_run(void *arg, uint32_t round)
{
    (void)round;
    pool_run(arg, peak_share, NULL);
}

static double peak_gflops(struct pool *pool, const struct backend *b)
{
    if (!b->has_bf16)
        return 0;
    return (double)pool_size(pool) * PEAK_ROUNDS * PEAK_CHAINS * 64e-9 /
           measure(peak_run, pool).best;
}
#else
static double peak_gflops(struct pool *pool, const struct backend *b)
{
    (void)pool, (void)b;
    return 0;
}
#endif

/* ---- gemm ---- */

struct gemm_bench {
    struct backend *b;
    struct gemm_args a;
    char *w, *packed;
    size_t w_bytes, packed_bytes;
    uint32_t copies;
};

static void gemm_run(void *arg, uint32_t round)
{
    struct gemm_bench *g = arg;
    g->a.part[0].data = g->w + (round % g->copies) * g->w_bytes;
    if (g->packed)
        g->a.part[0].packed = g->packed + (round % g->copies) * g->packed_bytes;
    g->b->ops->gemm(g->b, &g->a);
}

static void fill(void *p, enum dtype t, size_t n)
{
    uint32_t s = 12345;
    for (size_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        elem_store(p, t, i, ((float)(s >> 8) * (1.0f / 16777216.0f) - 0.5f) * 0.1f);
    }
}

/* The copies that the engine makes at start, where the backend has such. */
static void gemm_pack(struct gemm_bench *g)
{
    struct weight w = g->a.part[0];
    g->packed_bytes = g->b->ops->pack_bytes(g->b, &w);
    if (g->packed_bytes == 0)
        return;
    g->packed = mem_alloc_aligned(g->packed_bytes * g->copies);
    for (uint32_t i = 0; i < g->copies; i++) {
        w.data = g->w + i * g->w_bytes;
        g->b->ops->pack(g->b, g->packed + i * g->packed_bytes, &w);
    }
}

static void bench_gemm(const struct bench *be, enum dtype t, uint32_t d_in, uint32_t d_out,
                       uint32_t n_tok)
{
    struct gemm_bench g = {.b = be->b};
    g.w_bytes = (size_t)d_in * d_out * dtype_bytes(t);
    g.copies = (uint32_t)(ROTATE_BYTES / g.w_bytes) + 1;
    size_t x_bytes = (size_t)n_tok * d_in * 4, y_bytes = (size_t)n_tok * d_out * 4;
    g.w = mem_alloc_aligned(g.w_bytes * g.copies);
    float *x = mem_alloc_aligned(x_bytes), *y = mem_alloc_aligned(y_bytes);
    fill(g.w, t, (size_t)d_in * d_out * g.copies);
    fill(x, DTYPE_F32, (size_t)n_tok * d_in);
    g.a = (struct gemm_args){.y = y,
                             .x = x,
                             .part = {{g.w, t, d_out, d_in, NULL}},
                             .part_count = 1,
                             .n_tok = n_tok,
                             .x_stride = d_in,
                             .y_stride = d_out};
    if (be->pack)
        gemm_pack(&g);
    struct timing m = measure(gemm_run, &g);
    double s = m.best, gbs = (double)g.w_bytes / s * 1e-9, flop = 2e-9 * n_tok * d_in * d_out;
    printf("gemm %-4s %6u -> %6u  rows %3u  median %8.1f us  best %8.1f us  %6.1f GB/s "
           "(%3.0f %% of read)  %7.1f GFLOP/s",
           t == DTYPE_F32 ? "f32" : "bf16", d_in, d_out, n_tok, m.median * 1e6, s * 1e6, gbs,
           100 * gbs / be->probe_gbs, flop / s);
    if (be->peak && t == DTYPE_BF16)
        printf("  median %3.0f %% of peak, best %3.0f %%", 100 * flop / m.median / be->peak,
               100 * flop / s / be->peak);
    if (be->peak && t == DTYPE_BF16 && be->b->worker_count == 1)
        printf(", by processor time %3.0f %%", 100 * flop / m.spent / be->peak);
    printf("\n");
    if (g.packed)
        mem_free_aligned(g.packed, g.packed_bytes * g.copies);
    mem_free_aligned(g.w, g.w_bytes * g.copies);
    mem_free_aligned(x, x_bytes);
    mem_free_aligned(y, y_bytes);
}

/* ---- lora: one layer's gate,up shrink and finish, rank 16 ---- */

#define LORA_RANK 16
#define LORA_ROWS 64

struct lora_bench {
    struct backend *b;
    struct lora_shrink_args shrink;
    struct mlp_finish_args mlp;
    struct lora_slot slot[LORA_ROWS];
    struct lora_entry entry[LORA_MODULE_COUNT];
    struct lora_layout layout;
    struct lora_table table;
    struct lora_seg seg[LORA_ROWS];
    struct lora_step step;
    char *blob[LORA_ROWS];
};

static void shrink_run(void *arg, uint32_t round)
{
    struct lora_bench *l = arg;
    (void)round;
    l->b->ops->lora_shrink(l->b, &l->shrink);
}

static void mlp_run(void *arg, uint32_t round)
{
    struct lora_bench *l = arg;
    (void)round;
    l->b->ops->mlp_finish(l->b, &l->mlp);
}

static void bench_lora(const struct bench *be, uint32_t n_tok, uint32_t n_adapter)
{
    enum { D = 896, FF = 4864 };
    struct lora_bench *l = mem_alloc(sizeof(*l));
    size_t a_bytes = (size_t)LORA_RANK * D * 2, b_bytes = (size_t)LORA_RANK * FF * 2;
    size_t blob_bytes = 2 * (a_bytes + b_bytes);
    l->b = be->b;
    for (uint32_t i = 0; i < 2; i++)
        l->entry[LORA_MODULE_GATE + i] = (struct lora_entry){
            LORA_RANK, 1.0f, i * (a_bytes + b_bytes), i * (a_bytes + b_bytes) + a_bytes};
    l->layout = (struct lora_layout){l->entry, blob_bytes};
    l->table = (struct lora_table){l->slot, &l->layout, n_adapter, 1, 1, DTYPE_BF16};
    for (uint32_t i = 0; i < n_adapter; i++) {
        l->blob[i] = mem_alloc_aligned(blob_bytes);
        fill(l->blob[i], DTYPE_BF16, blob_bytes / 2);
        l->slot[i].blob = l->blob[i];
        l->seg[i] = (struct lora_seg){
            i * (n_tok / n_adapter), n_tok / n_adapter, 1, {{.slot = i, .weight_q16 = 65536}}};
    }
    float *x = mem_array((size_t)n_tok * D, 4), *s = mem_array((size_t)n_tok * 2 * LORA_RANK, 4);
    float *y = mem_array((size_t)n_tok * 2 * FF, 4), *out = mem_array((size_t)n_tok * FF, 4);
    fill(x, DTYPE_F32, (size_t)n_tok * D);
    fill(y, DTYPE_F32, (size_t)n_tok * 2 * FF);
    l->step = (struct lora_step){&l->table, l->seg, n_adapter, s, 2 * LORA_RANK, NULL};
    l->shrink = (struct lora_shrink_args){l->step, x, NULL, n_tok, D, D, 0, LORA_MODULE_GATE, 2};
    l->mlp = (struct mlp_finish_args){
        .lora = l->step, .out = out, .y = y, .n_tok = n_tok, .y_stride = 2 * FF, .d_ff = FF};
    double ts = measure(shrink_run, l).best, tm = measure(mlp_run, l).best;
    struct lora_seg base = {0, n_tok, 0, {{0}}};
    l->mlp.lora.seg = &base;
    l->mlp.lora.n_seg = 1;
    double tb = measure(mlp_run, l).best;
    printf("lora bf16 rank 16, gate+up  rows %2u adapters %2u  shrink %7.1f us %6.1f GB/s  "
           "mlp_finish %7.1f us (base only %7.1f) %6.1f GB/s\n",
           n_tok, n_adapter, ts * 1e6, 2e-9 * (double)a_bytes * n_adapter / ts, tm * 1e6, tb * 1e6,
           2e-9 * (double)b_bytes * n_adapter / tm);
    for (uint32_t i = 0; i < n_adapter; i++)
        mem_free_aligned(l->blob[i], blob_bytes);
    mem_free(x);
    mem_free(s);
    mem_free(y);
    mem_free(out);
    mem_free(l);
}

/* ---- attention ---- */

struct attn_bench {
    struct backend *b;
    struct attention_args a;
};

static void attn_run(void *arg, uint32_t round)
{
    struct attn_bench *t = arg;
    (void)round;
    t->b->ops->attention(t->b, &t->a);
}

/* n_seq sequences of `context` positions, the last `rows` of each asked. */
static void bench_attention(const struct bench *be, uint32_t n_seq, uint32_t context, uint32_t rows)
{
    enum { H = 14, KV = 2, D = 64, PAGE = 16 };
    uint32_t pages = (context + PAGE - 1) / PAGE, n = n_seq * rows;
    struct attn_bench t = {.b = be->b};
    size_t elems = (size_t)n_seq * pages * 2 * KV * PAGE * D;
    uint16_t *cache = mem_alloc_aligned(elems * 2);
    uint32_t *seq = mem_array(n, 4), *pos = mem_array(n, 4);
    uint32_t *table = mem_array((size_t)n_seq * pages, 4);
    float *q = mem_array((size_t)n * H * D, 4), *out = mem_array((size_t)n * H * D, 4);
    fill(cache, DTYPE_BF16, elems);
    fill(q, DTYPE_F32, (size_t)n * H * D);
    for (uint32_t i = 0; i < n; i++) {
        seq[i] = i / rows;
        pos[i] = context - rows + i % rows;
    }
    for (uint32_t i = 0; i < n_seq * pages; i++)
        table[i] = i;
    t.a = (struct attention_args){.out = out,
                                  .q = q,
                                  .kv = {cache, DTYPE_BF16, PAGE, 2 * KV * PAGE * D,
                                         2 * KV * PAGE * D, KV * PAGE * D, PAGE * D, D},
                                  .rows = {seq, pos, table, pages},
                                  .scale = 0.125f,
                                  .n_tok = n,
                                  .n_head = H,
                                  .n_kv_head = KV,
                                  .d_head = D};
    struct timing m = measure(attn_run, &t);
    double s = m.best;
    printf("attention bf16 14/2 heads of 64  seqs %2u context %4u rows %3u  median %8.1f us  best "
           "%8.1f us  %6.2f "
           "GFLOP/s\n",
           n_seq, context, n, m.median * 1e6, s * 1e6,
           4e-9 * n * H * D * (context - rows / 2.0) / s);
    mem_free_aligned(cache, elems * 2);
    mem_free(seq);
    mem_free(pos);
    mem_free(table);
    mem_free(q);
    mem_free(out);
}

/* ---- head ---- */

struct sample_bench {
    struct backend *b;
    struct sample_args a;
};

static void sample_run(void *arg, uint32_t round)
{
    struct sample_bench *t = arg;
    (void)round;
    t->b->ops->sample(t->b, &t->a);
}

static void bench_sample(const struct bench *be, uint32_t n, struct sample_row row,
                         const char *what)
{
    enum { V = 151936 };
    struct sample_bench t = {.b = be->b};
    size_t bytes = backend_sample_scratch_bytes(be->b, V);
    float *logits = mem_array((size_t)n * V, 4);
    void *scratch = mem_alloc_aligned(bytes);
    struct sample_row *rows = mem_array(n, sizeof(*rows));
    struct sample_out *out = mem_array(n, sizeof(*out));
    fill(logits, DTYPE_F32, (size_t)n * V);
    for (size_t i = 0; i < (size_t)n * V; i++)
        logits[i] *= 100;
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = row;
        rows[i].draw = i;
    }
    t.a = (struct sample_args){out, logits, rows, scratch, n, V};
    struct timing m = measure(sample_run, &t);
    double s = m.best;
    printf("sample %-28s rows %2u  median %8.1f us  best %8.1f us  %7.1f us a row\n", what, n,
           m.median * 1e6, s * 1e6, s * 1e6 / n);
    mem_free_aligned(scratch, bytes);
    mem_free(logits);
    mem_free(rows);
    mem_free(out);
}

struct score_bench {
    struct backend *b;
    struct score_args a;
};

static void score_run(void *arg, uint32_t round)
{
    struct score_bench *t = arg;
    (void)round;
    t->b->ops->score(t->b, &t->a);
}

static void bench_score(const struct bench *be, uint32_t n)
{
    enum { V = 151936, D = 896 };
    struct score_bench t = {.b = be->b};
    size_t w_bytes = (size_t)V * D * 2;
    char *w = mem_alloc_aligned(w_bytes);
    float *x = mem_array((size_t)n * D, 4), *out = mem_array(n, 4);
    float *scratch = mem_array((size_t)n * SCORE_TILE, 4);
    int32_t *target = mem_array(n, 4);
    fill(w, DTYPE_BF16, (size_t)V * D);
    fill(x, DTYPE_F32, (size_t)n * D);
    t.a = (struct score_args){out, x, {w, DTYPE_BF16, V, D, NULL}, target, scratch, n};
    size_t packed_bytes = be->pack ? be->b->ops->pack_bytes(be->b, &t.a.w) : 0;
    void *packed = packed_bytes ? mem_alloc_aligned(packed_bytes) : NULL;
    if (packed)
        be->b->ops->pack(be->b, packed, &t.a.w);
    t.a.w.packed = packed;
    uint32_t kept = repeats;
    repeats = MIN(repeats, 7u);
    struct timing m = measure(score_run, &t);
    double s = m.best;
    repeats = kept;
    printf("score bf16 V 151936 d 896  rows %3u  median %9.1f us  best %9.1f us  %6.1f GB/s  %7.1f "
           "GFLOP/s\n",
           n, m.median * 1e6, s * 1e6, (double)w_bytes / s * 1e-9, 2e-9 * n * (double)V * D / s);
    mem_free_aligned(w, w_bytes);
    if (packed)
        mem_free_aligned(packed, packed_bytes);
    mem_free(x);
    mem_free(out);
    mem_free(scratch);
    mem_free(target);
}

struct sketch_bench {
    struct backend *b;
    struct sketch_args a;
};

static void sketch_run(void *arg, uint32_t round)
{
    struct sketch_bench *t = arg;
    (void)round;
    t->b->ops->sketch(t->b, &t->a);
}

/* Keys of n rows under n_basis bases. */
static void bench_sketch(const struct bench *be, uint32_t d, uint32_t n, uint32_t n_basis)
{
    enum { BASES = 8 };
    struct sketch_bench t = {.b = be->b};
    struct sketch_basis basis[BASES];
    struct sketch_seg seg[BASES];
    float *x = mem_array((size_t)n * d, 4), bias[SKETCH_DIM] = {0};
    int8_t *out = mem_array(n, SKETCH_DIM);
    uint16_t *w = mem_array((size_t)n_basis * SKETCH_DIM * d, 2);
    fill((char *)w, DTYPE_BF16, (size_t)n_basis * SKETCH_DIM * d);
    fill(x, DTYPE_F32, (size_t)n * d);
    for (uint32_t i = 0; i < n_basis; i++) {
        basis[i] = (struct sketch_basis){w + (size_t)i * SKETCH_DIM * d, bias};
        seg[i] = (struct sketch_seg){i * (n / n_basis), n / n_basis, &basis[i]};
    }
    t.a = (struct sketch_args){out, x, seg, n_basis, d};
    struct timing m = measure(sketch_run, &t);
    printf("sketch d %4u  rows %3u  bases %u  median %8.1f us  best %8.1f us  %7.2f us a row\n", d,
           n, n_basis, m.median * 1e6, m.best * 1e6, m.best * 1e6 / n);
    mem_free(x);
    mem_free(out);
    mem_free(w);
}

static void run_gemms(const struct bench *be)
{
    static const uint32_t rows[] = {1, 2, 4, 8, 16, 32, 64, 256};
    static const uint32_t shape[][2] = {{896, 1152}, {896, 9728}, {4864, 896}, {896, 4864}};
    for (size_t s = 0; s < ARRAY_COUNT(shape); s++)
        for (size_t r = 0; r < ARRAY_COUNT(rows); r++)
            bench_gemm(be, DTYPE_BF16, shape[s][0], shape[s][1], rows[r]);
    bench_gemm(be, DTYPE_BF16, 4096, 4096, 1);
    bench_gemm(be, DTYPE_BF16, 4096, 4096, 64);
    bench_gemm(be, DTYPE_BF16, 4096, 4096, 256);
    bench_gemm(be, DTYPE_BF16, 896, 151936, 1);
    bench_gemm(be, DTYPE_BF16, 896, 151936, 16);
    bench_gemm(be, DTYPE_F32, 4864, 896, 1);
    bench_gemm(be, DTYPE_F32, 4864, 896, 64);
}

static void run_all(const struct bench *be)
{
    struct sample_row row = {.top_p = 1, .repetition = 1};
    run_gemms(be);
    bench_lora(be, 1, 1);
    bench_lora(be, 16, 1);
    bench_lora(be, 16, 16);
    bench_lora(be, 64, 1);
    bench_attention(be, 1, 256, 1);
    bench_attention(be, 16, 256, 1);
    bench_attention(be, 1, 256, 256);
    bench_score(be, 1);
    bench_score(be, 16);
    bench_score(be, 128);
    bench_sketch(be, 576, 64, 8);
    bench_sketch(be, 896, 1, 1);
    bench_sketch(be, 896, 16, 8);
    bench_sample(be, 16, row, "greedy");
    row.temperature = 1;
    bench_sample(be, 16, row, "temperature 1");
    row.top_k = 50;
    row.top_p = 0.9f;
    bench_sample(be, 16, row, "temperature 1, top_k, top_p");
}

int main(int argc, char **argv)
{
    struct backend_options opt = {.name = "cpu", .deterministic = true};
    struct errtext err = ERRTEXT_INIT;
    struct bench be = {.pack = true};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--backend") == 0)
            opt.name = argv[i + 1];
        else if (strcmp(argv[i], "--threads") == 0)
            opt.thread_count = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--repeats") == 0)
            repeats = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--packed") == 0)
            be.pack = strcmp(argv[i + 1], "0") != 0;
    }
    repeats = MAX(1u, MIN(repeats, (uint32_t)REPEATS_MAX));
    if (argc % 2 == 0 || backend_create(&be.b, &opt, &err) != STATUS_OK ||
        pool_create(&be.pool, opt.thread_count, false, &err) != STATUS_OK) {
        fprintf(stderr, "bench_kernels: %s\n", err.text[0] ? err.text : "every option has a value");
        return 1;
    }
    be.probe_gbs = probe_gbs(be.pool);
    be.peak = peak_gflops(be.pool, be.b);
    be.pack = be.pack && be.b->ops->pack;
    printf("%s, %u threads, weights %s; read bandwidth %.1f GB/s; bf16 peak %.0f GFLOP/s; %u "
           "repeats\n",
           be.b->version, be.b->worker_count, be.pack ? "packed" : "mapped", be.probe_gbs, be.peak,
           repeats);
    run_all(&be);
    pool_destroy(be.pool);
    backend_destroy(be.b);
    return 0;
}
