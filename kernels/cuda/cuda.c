/* The CUDA backend's table, its creation, and its memory. "cuda:eager" records no passes. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/tables.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <stdio.h>
#include <string.h>

static void *cuda_mem_alloc(struct backend *b, size_t bytes)
{
    return gpu_alloc(cuda_of(b)->gpu, bytes);
}

static void cuda_mem_free(struct backend *b, void *p, size_t bytes)
{
    (void)bytes;
    if (p)
        (void)gpu_stream_sync(cuda_of(b)->stream); /* ops given may still use it */
    gpu_free(cuda_of(b)->gpu, p);
}

static enum status cuda_mem_write(struct backend *b, void *to, const void *host, size_t bytes)
{
    return gpu_write(cuda_of(b)->gpu, to, host, bytes);
}

static enum status cuda_mem_read(struct backend *b, void *host, const void *from, size_t bytes)
{
    return gpu_read(cuda_of(b)->gpu, host, from, bytes);
}

static enum status cuda_mem_zero(struct backend *b, void *p, size_t bytes)
{
    return gpu_fill(cuda_of(b)->stream, p, 0, bytes);
}

enum status cuda_take(struct cuda_backend *c, void **out, size_t bytes, const char *what,
                      struct errtext *err)
{
    *out = gpu_alloc(c->gpu, bytes);
    if (*out)
        return STATUS_OK;
    return err_param(err, STATUS_TOO_LARGE, "device_bytes",
                     "%s: %.1f MiB do not fit, %.1f of %.1f MiB of device memory are left; raise "
                     "device_bytes or lower rows_max, seqs_max or context_max",
                     what, (double)bytes / 1048576.0, (double)gpu_bytes_free(c->gpu) / 1048576.0,
                     (double)gpu_properties(c->gpu)->arena_bytes / 1048576.0);
}

static void release_all(struct cuda_backend *c)
{
    if (!c->tables)
        return;
    (void)gpu_stream_sync(c->stream);
    cuda_results_release(c);
    cuda_head_release(c);
    cuda_attention_release(c);
    cuda_lora_release(c);
    cuda_gemm_release(c);
    cuda_tables_release(c);
}

static enum status cuda_prepare(struct backend *b, const struct backend_limits *lim,
                                struct errtext *err)
{
    struct cuda_backend *c = cuda_of(b);
    CHECK(lim->rows_max > 0 && lim->seqs_max > 0 && lim->page_stride > 0 && lim->n_layer > 0);
    release_all(c);
    cuda_graphs_forget(c);
    c->limits = *lim;
    enum status st = cuda_tables_prepare(c, err);
    if (!st)
        st = cuda_gemm_prepare(c, err);
    if (!st)
        st = cuda_lora_prepare(c, err);
    if (!st)
        st = cuda_attention_prepare(c, err);
    if (!st)
        st = cuda_head_prepare(c, err);
    if (!st)
        st = cuda_results_prepare(c, err);
    if (st)
        release_all(c);
    return st;
}

static void cuda_destroy(struct backend *b)
{
    struct cuda_backend *c = cuda_of(b);
    if (c->gpu) {
        (void)gpu_stream_sync(c->stream);
        cuda_uploads_release(c);
        cuda_graphs_release(c);
        release_all(c);
    }
    gpu_close(c->gpu);
    mem_free(c);
}

static void cuda_mem_room(const struct backend *b, uint64_t *total, uint64_t *left)
{
    const struct cuda_backend *c = (const struct cuda_backend *)(const void *)b;
    *total = gpu_properties(c->gpu)->arena_bytes;
    *left = gpu_bytes_free(c->gpu);
}

/* What prepare takes of a device that only counts; with the library's workspace, which a machine
 * without the library spares. */
static struct backend_workspace cuda_workspace(const struct backend *b,
                                               const struct backend_limits *lim)
{
    const uint64_t plenty = (uint64_t)1 << 50;
    struct cuda_backend probe = *(const struct cuda_backend *)(const void *)b;
    struct backend_workspace w = {.passes_max = probe.graphs ? cuda_graphs_max() : 0};
    probe.tables = NULL;
    probe.graphs = NULL;
    probe.gemm = NULL;
    probe.lora = NULL;
    probe.attention = NULL;
    probe.head = NULL;
    probe.results = NULL;
    probe.base.deterministic = true;
    if (gpu_open_counting(&probe.gpu, plenty, NULL))
        return w;
    if (cuda_prepare(&probe.base, lim, NULL) == STATUS_OK) {
        w.bytes = plenty - gpu_bytes_free(probe.gpu) + (b->deterministic ? 0 : GEMM_LIBRARY_BYTES);
        w.pinned_bytes = gpu_pinned_counted(probe.gpu);
    }
    release_all(&probe);
    gpu_close(probe.gpu);
    return w;
}

static enum status cuda_enter(struct backend *b)
{
    return gpu_use(cuda_of(b)->gpu);
}

static const struct backend_back_ops cuda_back_ops = {
    .cross_entropy = cuda_cross_entropy,
    .gemm_back = cuda_gemm_back,
    .lora_back = cuda_lora_back,
    .norm_back = cuda_norm_back,
    .qkv_back = cuda_qkv_back,
    .mlp_back = cuda_mlp_back,
    .dropout = cuda_dropout,
    .attention_back = cuda_attention_back,
};

static const struct backend_ops cuda_ops = {
    .enter = cuda_enter,
    .embed = cuda_embed,
    .norm = cuda_norm,
    .gemm = cuda_gemm,
    .lora_shrink = cuda_lora_shrink,
    .qkv_finish = cuda_qkv_finish,
    .residual_finish = cuda_residual_finish,
    .mlp_finish = cuda_mlp_finish,
    .attention = cuda_attention,
    .logits = cuda_logits,
    .score = cuda_score,
    .sketch = cuda_sketch,
    .sample = cuda_sample,
    .sample_begin = cuda_sample_begin,
    .score_begin = cuda_score_begin,
    .sketch_begin = cuda_sketch_begin,
    .read_begin = cuda_read_begin,
    .read_end = cuda_read_end,
    .top_logprobs = cuda_top_logprobs,
    .sample_scratch_bytes = cuda_sample_scratch_bytes,
    .mem_alloc = cuda_mem_alloc,
    .mem_free = cuda_mem_free,
    .mem_write = cuda_mem_write,
    .mem_read = cuda_mem_read,
    .mem_zero = cuda_mem_zero,
    .lora_scratch_bytes = cuda_lora_scratch_bytes,
    .mem_room = cuda_mem_room,
    .workspace = cuda_workspace,
    .adapters = &cuda_adapter_ops,
    .back = &cuda_back_ops,
    .prepare = cuda_prepare,
    .step = cuda_step,
    .pass_rows = cuda_pass_rows,
    .pass_begin = cuda_pass_begin,
    .pass_end = cuda_pass_end,
    .destroy = cuda_destroy,
};

static enum status open_gpu(struct cuda_backend *c, const struct backend_options *opt,
                            struct errtext *err)
{
    struct gpu_arena arena = {.bytes = opt->device_bytes,
                              .percent = opt->device_percent ? opt->device_percent : 90,
                              .background = opt->background};
    return gpu_open(&c->gpu, opt->device, &arena, err);
}

static enum status allow_kernels(struct errtext *err)
{
    static enum status (*const allow[])(void) = {
        cuda_gemm_skinny_allow, cuda_gemm_tile_allow, cuda_lora_allow,
        cuda_finish_allow,      cuda_qkv_allow,       cuda_attn_split_allow,
        cuda_attn_full_allow,   cuda_sample_allow,    cuda_pick_allow};
    enum status st = STATUS_OK;
    for (size_t i = 0; i < ARRAY_COUNT(allow) && !st; i++)
        st = allow[i]();
    return st ? err_set(err, st, "backend \"cuda\": the device refuses a kernel: %s", gpu_reason())
              : st;
}

enum status cuda_backend_create(struct backend **out, const struct backend_options *opt,
                                struct errtext *err)
{
    *out = NULL;
    struct cuda_backend *c = mem_alloc(sizeof(*c));
    c->base.ops = &cuda_ops;
    bool plan = opt->name && strcmp(opt->name, "cuda:plan") == 0;
    enum status st =
        plan ? gpu_open_counting(&c->gpu, opt->device_bytes, err) : open_gpu(c, opt, err);
    if (!st)
        st = allow_kernels(err);
    if (!st)
        st = cuda_uploads_create(c, err);
    if (st) {
        cuda_destroy(&c->base);
        return st;
    }
    const struct gpu_properties *p = gpu_properties(c->gpu);
    c->stream = gpu_stream(c->gpu);
    c->sm_count = p->sm_count;
    snprintf(c->base.name, sizeof(c->base.name), "cuda");
    snprintf(c->base.version, sizeof(c->base.version), "cuda 1 sm_%u%u", p->cc_major, p->cc_minor);
    c->base.worker_count = 1;
    c->base.act = DTYPE_BF16;
    c->base.is_device = true;
    c->base.has_bf16 = true;
    c->base.deterministic = opt->deterministic;
    if (!opt->name || strcmp(opt->name, "cuda:eager") != 0)
        cuda_graphs_create(c);
    *out = &c->base;
    return STATUS_OK;
}
