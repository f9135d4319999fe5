/* The backward ops at the shapes of SmolLM2-135M (d 576, d_ff 1536, 9/3 heads of 64, V 49152),
 * bf16, rank 16 on every module, sequences of 512 rows: time and GFLOP/s of each, and what a layer
 * takes, beside the forward products in the same run.
 *
 *   bench_backward [--threads N] [--rows N] [--repeats N] [--backend NAME] */
#include "kernels/backend.h"
#include "kernels/bf16.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { D = 576, FF = 1536, HEADS = 9, KV = 3, DH = 64, VOCAB = 49152, RANK = 16, SEQ = 512 };
enum { QKV = (HEADS + 2 * KV) * DH, WIDE = 2 * FF, HEAD_ROWS = 128 };

struct bench {
    struct backend *b;
    uint32_t rows, repeats;
    float *x, *dy, *dx, *s, *ax, *grad, *lse;
    uint16_t *w, *blob;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static float *floats(size_t n)
{
    float *v = mem_array(n, sizeof(*v));
    for (size_t i = 0; i < n; i++)
        v[i] = (float)((i * 2654435761u) >> 8 & 0xffff) / 65536.0f - 0.5f;
    return v;
}

static uint16_t *halves(size_t n)
{
    uint16_t *v = mem_array(n, sizeof(*v));
    for (size_t i = 0; i < n; i++)
        v[i] = bf16_from_f32((float)((i * 2654435761u) >> 8 & 0xffff) / 655360.0f - 0.05f);
    return v;
}

typedef void run_fn(const struct bench *k, uint32_t d_in, uint32_t d_out);

static double best(const struct bench *k, const char *name, run_fn *fn, uint32_t d_in,
                   uint32_t d_out, double flop)
{
    double least = INFINITY;
    for (uint32_t i = 0; i < k->repeats; i++) {
        double t = now();
        fn(k, d_in, d_out);
        least = fmin(least, now() - t);
    }
    printf("%-14s %5u -> %5u  %9.3f ms  %6.1f GFLOP/s\n", name, d_in, d_out, least * 1e3,
           flop / least * 1e-9);
    return least;
}

static void run_gemm(const struct bench *k, uint32_t d_in, uint32_t d_out)
{
    struct gemm_args a = {k->dy, k->x, {{k->w, DTYPE_BF16, d_out, d_in, NULL}}, 1, k->rows,
                          d_in,  d_out};
    CHECK(!k->b->ops->gemm(k->b, &a));
}

static void run_gemm_back(const struct bench *k, uint32_t d_in, uint32_t d_out)
{
    struct gemm_back_args a = {k->dx, k->dy, {{k->w, DTYPE_BF16, d_out, d_in, NULL}}, 1, k->rows,
                               d_in,  d_out};
    CHECK(!k->b->ops->back->gemm_back(k->b, &a));
}

static void run_head(const struct bench *k, uint32_t d_in, uint32_t d_out)
{
    struct gemm_back_args a = {k->dx, k->dy, {{k->w, DTYPE_BF16, d_out, d_in, NULL}}, 1, HEAD_ROWS,
                               d_in,  d_out};
    CHECK(!k->b->ops->back->gemm_back(k->b, &a));
}

static void run_lora_back(const struct bench *k, uint32_t d_in, uint32_t d_out)
{
    struct lora_entry entry[LORA_MODULE_COUNT] = {
        [LORA_MODULE_O] = {RANK, 2, 0, sizeof(uint16_t) * RANK * d_in}};
    struct lora_layout layout = {entry, sizeof(uint16_t) * RANK * (d_in + d_out)};
    struct lora_slot slot = {k->blob, 0};
    struct lora_table table = {&slot, &layout, 1, 1, 1, DTYPE_BF16};
    struct lora_seg seg = {0, k->rows, 1, {{0, 65536}}};
    struct lora_back_args a = {{&table, &seg, 1, k->s, RANK, NULL},
                               k->dy,
                               k->x,
                               k->ax,
                               k->dx,
                               &k->grad,
                               k->rows,
                               d_out,
                               d_in,
                               d_in,
                               d_in,
                               {d_out, 0, 0},
                               0,
                               LORA_MODULE_O,
                               1};
    CHECK(!k->b->ops->back->lora_back(k->b, &a));
}

static void run_attention_back(const struct bench *k, uint32_t d_in, uint32_t d_out)
{
    struct attention_back_seq seq[64];
    uint32_t n = 0;
    (void)d_in;
    (void)d_out;
    for (uint32_t t = 0; t < k->rows; t += SEQ)
        seq[n++] = (struct attention_back_seq){t, MIN(k->rows - t, (uint32_t)SEQ)};
    struct attention_back_args a = {.dy = k->dy,
                                    .dout = k->x,
                                    .q = k->x,
                                    .out = k->x,
                                    .k = k->x,
                                    .v = k->x,
                                    .lse = k->lse,
                                    .seq = seq,
                                    .kv_dtype = DTYPE_BF16,
                                    .scale = 0.125f,
                                    .n_seq = n,
                                    .dy_stride = QKV,
                                    .n_head = HEADS,
                                    .n_kv_head = KV,
                                    .d_head = DH};
    CHECK(!k->b->ops->back->attention_back(k->b, &a));
}

static void run_mlp_back(const struct bench *k, uint32_t d_in, uint32_t d_out)
{
    struct mlp_back_args a = {k->dy, k->x, k->x, k->x, k->rows, d_out, d_in};
    CHECK(!k->b->ops->back->mlp_back(k->b, &a));
}

/* gemm and gemm_back of a shape, lora_back beside it. */
static void shape(const struct bench *k, uint32_t d_in, uint32_t d_out, double sum[3])
{
    double flop = 2.0 * k->rows * d_in * d_out, lora = 8.0 * k->rows * RANK * (d_in + d_out) / 2;
    sum[0] += best(k, "gemm", run_gemm, d_in, d_out, flop);
    sum[1] += best(k, "gemm_back", run_gemm_back, d_in, d_out, flop);
    sum[2] += best(k, "lora_back", run_lora_back, d_in, d_out, lora);
}

static void run(const struct bench *k)
{
    double sum[3] = {0, 0, 0}, pairs = 0;
    shape(k, D, QKV, sum);
    shape(k, HEADS * DH, D, sum);
    shape(k, D, WIDE, sum);
    shape(k, FF, D, sum);
    for (uint32_t t = 0; t < k->rows; t += SEQ)
        pairs += 0.5 * SEQ * SEQ * HEADS;
    double attn = best(k, "attention_back", run_attention_back, SEQ, DH, 10 * pairs * DH);
    double mlp = best(k, "mlp_back", run_mlp_back, FF, WIDE, 0);
    double head = best(k, "head dX", run_head, D, VOCAB, 2.0 * HEAD_ROWS * D * VOCAB);
    printf("a layer: gemm %.2f, gemm_back %.2f, lora_back %.2f, attention_back %.2f, mlp_back %.2f "
           "ms; head dX of %u rows %.2f ms\n",
           sum[0] * 1e3, sum[1] * 1e3, sum[2] * 1e3, attn * 1e3, mlp * 1e3, k->rows,
           head * k->rows / HEAD_ROWS * 1e3);
}

int main(int argc, char **argv)
{
    struct backend_options opt = {.name = "cpu", .thread_count = 1, .deterministic = true};
    struct bench k = {.rows = 1024, .repeats = 5};
    struct errtext err = ERRTEXT_INIT;
    for (int i = 1; i + 1 < argc; i += 2) {
        uint32_t n = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "--threads"))
            opt.thread_count = n;
        else if (!strcmp(argv[i], "--rows"))
            k.rows = MIN(MAX(n, 1u), 64u * SEQ);
        else if (!strcmp(argv[i], "--repeats"))
            k.repeats = n;
        else if (!strcmp(argv[i], "--backend"))
            opt.name = argv[i + 1];
    }
    if (backend_create(&k.b, &opt, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    size_t rows = MAX(k.rows, (uint32_t)HEAD_ROWS);
    k.x = floats(rows * WIDE);
    k.dy = floats(MAX(rows * WIDE, (size_t)HEAD_ROWS * VOCAB));
    k.dx = floats(rows * WIDE);
    k.s = floats(rows * RANK);
    k.ax = floats(rows * RANK);
    k.lse = floats(rows * HEADS);
    k.grad = floats((size_t)RANK * (D + WIDE + FF));
    k.w = halves((size_t)D * VOCAB);
    k.blob = halves((size_t)RANK * (D + WIDE + FF));
    printf("%s, %u threads, %u rows\n", k.b->version, k.b->worker_count, k.rows);
    run(&k);
    void *all[] = {k.x, k.dy, k.dx, k.s, k.ax, k.lse, k.grad, k.w, k.blob};
    for (size_t i = 0; i < ARRAY_COUNT(all); i++)
        mem_free(all[i]);
    backend_destroy(k.b);
    return 0;
}
