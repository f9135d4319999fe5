/* One forward and backward pass of a model with LoRA of rank 16 on every module, sequences of 512
 * rows: tokens/s and peak memory. Jobs share the batch, each with sequences of its own.
 *
 *   bench_train MODEL_DIR [--threads N] [--seqs N] [--jobs N] [--recompute 0|1] [--repeats N]
 *               [--dtype f32|bf16] [--length N] [--lora f32|bf16] [--packed 0|1] */
#include "kernels/bf16.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/engine/backward.h"
#include "server/engine/resident.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { RANK = 16, JOBS_MAX = 16, SEQS_MAX = 64 };

struct bench {
    const char *dir;
    uint32_t threads, seqs, jobs, recompute, repeats, length, packed;
    enum dtype_choice dtype;
    enum dtype lora; /* of the adapters' matrices: f32 as the trainer has them */
    struct backend *backend;
    struct model *model;
    struct resident *resident;
    struct forward *forward;
    struct backward *backward;
    struct lora_entry *entry;
    struct lora_layout layout;
    struct lora_slot slot[JOBS_MAX];
    struct lora_table table;
    float *grad[JOBS_MAX];
    size_t n_grad;
};

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double now(void)
{
    return seconds(CLOCK_MONOTONIC);
}

static void must(enum status st, const struct errtext *err)
{
    if (!st)
        return;
    fprintf(stderr, "bench_train: %s\n", err->text);
    exit(1);
}

static float noise(size_t i)
{
    return (float)((i * 2654435761u) >> 8 & 0xffff) / 65536.0f - 0.5f;
}

static void make_adapters(struct bench *b)
{
    const struct model_config *c = &b->model->config;
    size_t item = dtype_bytes(b->lora), n = (size_t)c->n_layer * LORA_MODULE_COUNT;
    uint64_t at = 0;
    b->entry = mem_array(n, sizeof(*b->entry));
    for (size_t i = 0; i < n; i++) {
        uint32_t d_out, d_in;
        model_module_shape(c, (enum lora_module)(i % LORA_MODULE_COUNT), &d_out, &d_in);
        b->entry[i] = (struct lora_entry){RANK, 2, at, (at + RANK * d_in * item + 63) / 64 * 64};
        at = (b->entry[i].b_off + RANK * d_out * item + 63) / 64 * 64;
    }
    b->layout = (struct lora_layout){b->entry, at};
    b->n_grad = at / item;
    for (uint32_t j = 0; j < b->jobs; j++) {
        void *blob = mem_array(b->n_grad, item);
        for (size_t i = 0; i < b->n_grad; i++)
            elem_store(blob, b->lora, i, noise(i + j) * 0.05f);
        b->slot[j] = (struct lora_slot){blob, 0};
        b->grad[j] = mem_array(b->n_grad, sizeof(float));
    }
    b->table = (struct lora_table){b->slot, &b->layout, b->jobs, 1, c->n_layer, b->lora};
}

static void open_all(struct bench *b)
{
    struct errtext err = ERRTEXT_INIT;
    struct backend_options bo = {.name = "cpu", .thread_count = b->threads, .deterministic = true};
    must(backend_create(&b->backend, &bo, &err), &err);
    struct model_options mo = {.dtype = b->dtype, .id_cache_dir = ""};
    must(model_load(&b->model, b->dir, &mo, &err), &err);
    if (b->packed)
        b->resident = resident_create_own(b->model, b->backend);
    else
        must(resident_create(&b->resident, b->model, b->backend, NULL, &err), &err);
    const struct model *m = resident_model(b->resident);
    make_adapters(b);
    struct forward_options fo = {.rows_max = b->seqs * b->length,
                                 .pos_max = b->length,
                                 .rank_sum_max = 3 * RANK,
                                 .seqs_max = b->seqs,
                                 .slots_max = b->jobs,
                                 .layouts_max = 1};
    struct backward_options wo = {.recompute = b->recompute};
    must(forward_create(&b->forward, m, b->backend, &fo, &err), &err);
    must(backward_create(&b->backward, m, b->backend, b->forward, &wo, &err), &err);
    printf("%s, %u threads, %u jobs, %u x %u rows, %s, %.0f MB of activations\n",
           b->backend->version, b->backend->worker_count, b->jobs, b->seqs, b->length,
           b->recompute ? "recompute" : "all kept",
           (double)backward_bytes(b->backend, &b->model->config, &fo, &wo) / 1e6);
}

static double step(struct bench *b)
{
    uint32_t rows = b->seqs * b->length;
    int32_t *ids = mem_array(rows, sizeof(*ids)), *target = mem_array(rows, sizeof(*target));
    float *weight = mem_array(rows, sizeof(*weight)), *logprob = mem_array(rows, sizeof(*logprob));
    struct attention_back_seq seq[SEQS_MAX];
    struct lora_seg seg[SEQS_MAX];
    double loss = 0;
    for (uint32_t t = 0; t < rows; t++) {
        ids[t] = (int32_t)(t * 7919u % b->model->config.n_vocab);
        target[t] = (int32_t)((t + 1) * 7919u % b->model->config.n_vocab);
        weight[t] = 1.0f / (float)rows;
    }
    for (uint32_t s = 0; s < b->seqs; s++) {
        seq[s] = (struct attention_back_seq){s * b->length, b->length};
        seg[s] = (struct lora_seg){s * b->length, b->length, 1, {{s * b->jobs / b->seqs, 65536}}};
    }
    struct backward_batch batch = {.ids = ids,
                                   .seq = seq,
                                   .n_tok = rows,
                                   .n_seq = b->seqs,
                                   .lora = &b->table,
                                   .seg = seg,
                                   .n_seg = b->seqs,
                                   .target = target,
                                   .weight = weight,
                                   .grad = b->grad,
                                   .logprob = logprob};
    double t0 = now(), spent = seconds(CLOCK_PROCESS_CPUTIME_ID), longest = 0;
    CHECK(!backward_begin(b->backward, &batch));
    for (bool done = false; !done;) {
        double t = now();
        CHECK(!backward_next(b->backward, &done));
        longest = fmax(longest, now() - t);
    }
    double took = now() - t0;
    spent = seconds(CLOCK_PROCESS_CPUTIME_ID) - spent;
    for (uint32_t t = 0; t < rows; t++)
        loss -= (double)(weight[t] * logprob[t]);
    printf(
        "%8.1f tokens/s (%.1f of processor time): %.2f s, the longest piece %.0f ms; loss %.4f\n",
        rows / took, rows / spent, took, longest * 1e3, loss);
    mem_free(ids);
    mem_free(target);
    mem_free(weight);
    mem_free(logprob);
    return took;
}

static void close_all(struct bench *b)
{
    backward_destroy(b->backward);
    forward_destroy(b->forward);
    for (uint32_t j = 0; j < b->jobs; j++) {
        mem_free((void *)(uintptr_t)b->slot[j].blob);
        mem_free(b->grad[j]);
    }
    mem_free(b->entry);
    resident_destroy(b->resident);
    model_free(b->model);
    backend_destroy(b->backend);
}

int main(int argc, char **argv)
{
    struct bench b = {.threads = 1, .seqs = 4, .jobs = 1, .repeats = 3, .length = 512, .packed = 1};
    struct rusage use;
    b.dtype = DTYPE_CHOICE_BF16;
    if (argc < 2) {
        fprintf(stderr, "usage: bench_train MODEL_DIR [--threads N] [--seqs N] [--jobs N] "
                        "[--recompute 0|1] [--repeats N] [--dtype f32|bf16] [--length N] "
                        "[--lora f32|bf16] [--packed 0|1]\n");
        return 2;
    }
    b.dir = argv[1];
    for (int i = 2; i + 1 < argc; i += 2) {
        uint32_t n = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "--threads"))
            b.threads = n;
        else if (!strcmp(argv[i], "--seqs"))
            b.seqs = MIN(MAX(n, 1u), (uint32_t)SEQS_MAX);
        else if (!strcmp(argv[i], "--jobs"))
            b.jobs = MIN(MAX(n, 1u), (uint32_t)JOBS_MAX);
        else if (!strcmp(argv[i], "--recompute"))
            b.recompute = n;
        else if (!strcmp(argv[i], "--repeats"))
            b.repeats = n;
        else if (!strcmp(argv[i], "--length"))
            b.length = MAX(n, 1u);
        else if (!strcmp(argv[i], "--packed"))
            b.packed = n;
        else if (!strcmp(argv[i], "--lora"))
            b.lora = strcmp(argv[i + 1], "f32") ? DTYPE_BF16 : DTYPE_F32;
        else if (!strcmp(argv[i], "--dtype"))
            b.dtype = strcmp(argv[i + 1], "f32") ? DTYPE_CHOICE_BF16 : DTYPE_CHOICE_F32;
    }
    open_all(&b);
    double least = INFINITY;
    for (uint32_t i = 0; i < b.repeats; i++)
        least = fmin(least, step(&b));
    getrusage(RUSAGE_SELF, &use);
    printf("best %.1f tokens/s, peak memory %.0f MB\n", b.seqs * b.length / least,
           (double)use.ru_maxrss / 1024);
    close_all(&b);
    return 0;
}
