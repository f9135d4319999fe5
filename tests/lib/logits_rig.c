/* See logits_rig.h. Sizes are fixed when the rig opens, so a broken forward shows under ASan. */
#include "tests/lib/logits_rig.h"
#include "kernels/cuda/lora_pack.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

#define RIG_DEVICE_BYTES ((uint64_t)128 << 20)

static void *take(struct logits_rig *r, size_t bytes)
{
    void *p = r->backend->ops->mem_alloc(r->backend, bytes);
    CHECK(p);
    CHECK(r->backend->ops->mem_zero(r->backend, p, bytes) == STATUS_OK);
    return p;
}

static void make_kv(struct logits_rig *r)
{
    const struct model_config *c = &r->model->config;
    struct kv_cache *kv = &r->kv;
    kv->dtype = r->model->dtype;
    kv->page_tok = 16;
    kv->stride_tok = c->d_head;
    kv->stride_head = kv->stride_tok * kv->page_tok;
    kv->stride_kv = kv->stride_head * c->n_kv_head;
    kv->stride_layer = kv->stride_kv * 2;
    kv->stride_page = kv->stride_layer * c->n_layer;
    r->page_stride = (r->opt.context_max + kv->page_tok - 1) / kv->page_tok;
    r->kv_bytes = kv->stride_page * r->page_stride * dtype_bytes(kv->dtype);
    kv->base = take(r, r->kv_bytes);
    r->page_table = mem_array(r->page_stride, sizeof(*r->page_table));
    for (uint32_t i = 0; i < r->page_stride; i++)
        r->page_table[i] = r->page_stride - 1 - i;
}

static size_t norm2_bytes(const struct logits_rig *r)
{
    return 2 * sizeof(double) * r->opt.chunk;
}

static void make_buffers(struct logits_rig *r)
{
    const struct model_config *c = &r->model->config;
    size_t rows = r->opt.chunk;
    r->hidden = take(r, rows * c->d_model * dtype_bytes(r->backend->act));
    r->logits = take(r, rows * c->n_vocab * sizeof(float));
    r->norm2 = take(r, norm2_bytes(r));
    r->norm2_host = mem_alloc(norm2_bytes(r));
}

enum status logits_rig_open(struct logits_rig *r, const struct logits_rig_options *opt,
                            struct errtext *err)
{
    struct backend_options bo = {.name = opt->backend,
                                 .thread_count = opt->thread_count,
                                 .deterministic = true,
                                 .device_bytes = RIG_DEVICE_BYTES};
    memset(r, 0, sizeof(*r));
    r->opt = *opt;
    enum status st = backend_create(&r->backend, &bo, err);
    if (st)
        return st;
    struct model_options mo = {
        .dtype = opt->dtype, .cpu_has_bf16 = r->backend->has_bf16, .id_cache_dir = ""};
    st = model_load(&r->model, opt->model_dir, &mo, err);
    if (st) {
        logits_rig_close(r);
        return st;
    }
    r->opt.context_max = MIN(opt->context_max, r->model->config.pos_max);
    if (r->backend->is_device)
        r->weights = take(r, resident_bytes(r->model));
    st = resident_create(&r->resident, r->model, r->backend, r->weights, err);
    if (st) {
        logits_rig_close(r);
        return st;
    }
    make_kv(r);
    r->seq = mem_array(opt->chunk, sizeof(*r->seq));
    r->pos = mem_array(opt->chunk, sizeof(*r->pos));
    r->rows = mem_array(opt->chunk, sizeof(*r->rows));
    make_buffers(r);
    r->table = (struct lora_table){.slot = r->slot,
                                   .layout = r->layout,
                                   .n_layer = r->model->config.n_layer,
                                   .dtype = r->model->dtype};
    return STATUS_OK;
}

/* The blob in the device's form, in the place of the row-major one. */
static void move_to_device(struct logits_rig *r, uint32_t i, struct lora_entry *entry)
{
    const struct model_config *c = &r->model->config;
    const struct backend_adapter_ops *ops = r->backend->ops->adapters;
    size_t count = (size_t)c->n_layer * LORA_MODULE_COUNT;
    struct lora_entry *packed = mem_array(count, sizeof(*packed));
    struct lora_dims dims = {.n_layer = c->n_layer};
    for (int m = 0; m < LORA_MODULE_COUNT; m++)
        model_module_shape(c, (enum lora_module)m, &dims.d_out[m], &dims.d_in[m]);
    void *old = (void *)(uintptr_t)r->slot[i].blob;
    uint64_t old_bytes = r->layout[i].blob_bytes, bytes = ops->layout(packed, entry, &dims);
    void *form = mem_alloc_aligned(bytes), *there = take(r, bytes);
    ops->pack(form, packed, old, entry, &dims);
    CHECK(r->backend->ops->mem_write(r->backend, there, form, bytes) == STATUS_OK);
    memcpy(entry, packed, count * sizeof(*entry));
    r->slot[i].blob = there;
    r->layout[i].blob_bytes = bytes;
    mem_free_aligned(old, old_bytes);
    mem_free_aligned(form, bytes);
    mem_free(packed);
}

enum status logits_rig_add(struct logits_rig *r, const char *dir, struct errtext *err)
{
    const struct model_config *c = &r->model->config;
    struct peft_adapter a;
    uint32_t i = r->table.n_slot;
    CHECK(i < RIG_ADAPTERS_MAX && !r->forward);
    enum status st = peft_read_dir(&a, dir, NULL, c, 1u << 30, err);
    if (st)
        return st;
    st = peft_check_values(&a, err);
    if (st) {
        peft_fini(&a);
        return st;
    }
    struct lora_entry *entry = mem_array((size_t)c->n_layer * LORA_MODULE_COUNT, sizeof(*entry));
    peft_layout(&a, c->n_layer, r->model->dtype, entry, &r->layout[i].blob_bytes);
    void *blob = mem_alloc_aligned(r->layout[i].blob_bytes);
    peft_pack(&a, c->n_layer, r->model->dtype, entry, blob);
    r->layout[i].entry = entry;
    r->slot[i] = (struct lora_slot){.blob = blob, .layout = i};
    if (r->backend->is_device)
        move_to_device(r, i, entry);
    r->table.n_slot++;
    r->table.n_layout++;
    r->rank_sum_max += 3 * a.rank_max;
    peft_fini(&a);
    return STATUS_OK;
}

static enum status add_norms(struct logits_rig *r, uint32_t n_tok, double norm2_sum[2])
{
    const struct backend_ops *ops = r->backend->ops;
    enum status st = ops->mem_read(r->backend, r->norm2_host, r->norm2, norm2_bytes(r));
    for (uint32_t t = 0; t < n_tok && !st; t++) {
        norm2_sum[0] += r->norm2_host[2 * t];
        norm2_sum[1] += r->norm2_host[2 * t + 1];
    }
    return st;
}

static enum status run_chunk(struct logits_rig *r, struct forward_batch *b, uint32_t from,
                             float *logits, double norm2_sum[2])
{
    const struct backend_ops *ops = r->backend->ops;
    for (uint32_t t = 0; t < b->n_tok; t++) {
        r->seq[t] = 0;
        r->pos[t] = from + t;
        r->rows[t] = t;
    }
    b->norm2 = norm2_sum ? r->norm2 : NULL;
    enum status st = ops->mem_zero(r->backend, r->norm2, norm2_bytes(r));
    if (!st)
        st = forward_run(r->forward, b);
    if (!st && norm2_sum)
        st = add_norms(r, b->n_tok, norm2_sum);
    struct logits_args a = {r->logits, r->hidden, resident_model(r->resident)->lm_head, b->n_tok};
    if (!st)
        st = ops->logits(r->backend, &a);
    if (st)
        return st;
    return ops->mem_read(r->backend, logits, r->logits,
                         (size_t)b->n_tok * r->model->config.n_vocab * sizeof(float));
}

enum status logits_rig_run(struct logits_rig *r, const struct lora_part *part, uint32_t part_count,
                           const int32_t *ids, uint32_t from, uint32_t n, float *logits,
                           double norm2_sum[2])
{
    struct forward_options fo = {.rows_max = r->opt.chunk,
                                 .pos_max = r->opt.context_max,
                                 .rank_sum_max = r->rank_sum_max,
                                 .slots_max = r->table.n_slot,
                                 .layouts_max = r->table.n_layout};
    enum status st = STATUS_OK;
    CHECK(n <= r->opt.context_max && part_count <= LORA_PARTS_MAX);
    if (!r->forward)
        st = forward_create(&r->forward, resident_model(r->resident), r->backend, &fo, NULL);
    for (uint32_t at = from; !st && at < n; at += r->opt.chunk) {
        struct lora_seg seg = {.tok_count = MIN(r->opt.chunk, n - at), .part_count = part_count};
        memcpy(seg.part, part, part_count * sizeof(*part));
        struct forward_batch b = {
            .ids = ids + at,
            .n_tok = seg.tok_count,
            .rows = {r->seq, r->pos, r->page_table, r->page_stride},
            .kv = r->kv,
            .lora = &r->table,
            .seg = &seg,
            .n_seg = 1,
            .out_rows = r->rows,
            .n_out = seg.tok_count,
            .hidden = r->hidden,
        };
        st = run_chunk(r, &b, at, logits + (size_t)(at - from) * r->model->config.n_vocab,
                       norm2_sum);
    }
    return st;
}

static void give(struct logits_rig *r, void *p, size_t bytes)
{
    if (p)
        r->backend->ops->mem_free(r->backend, p, bytes);
}

void logits_rig_close(struct logits_rig *r)
{
    const struct model_config *c = r->model ? &r->model->config : NULL;
    size_t rows = r->opt.chunk;
    forward_destroy(r->forward);
    for (uint32_t i = 0; i < r->table.n_slot; i++) {
        void *blob = (void *)(uintptr_t)r->slot[i].blob;
        if (r->backend->is_device)
            give(r, blob, r->layout[i].blob_bytes);
        else
            mem_free_aligned(blob, r->layout[i].blob_bytes);
        mem_free((void *)(uintptr_t)r->layout[i].entry);
    }
    if (c) {
        give(r, r->kv.base, r->kv_bytes);
        give(r, r->hidden, rows * c->d_model * dtype_bytes(r->backend->act));
        give(r, r->logits, rows * c->n_vocab * sizeof(float));
        give(r, r->norm2, norm2_bytes(r));
        give(r, r->weights, resident_bytes(r->model));
    }
    mem_free(r->norm2_host);
    mem_free(r->page_table);
    mem_free(r->seq);
    mem_free(r->pos);
    mem_free(r->rows);
    resident_destroy(r->resident);
    model_free(r->model);
    if (r->backend)
        backend_destroy(r->backend);
    memset(r, 0, sizeof(*r));
}
