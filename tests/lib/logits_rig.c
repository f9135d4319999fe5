/* See logits_rig.h. Sizes are fixed when the rig opens, so a broken forward shows under ASan. */
#include "tests/lib/logits_rig.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

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
    kv->base = mem_alloc_aligned(r->kv_bytes);
    r->page_table = mem_array(r->page_stride, sizeof *r->page_table);
    for (uint32_t i = 0; i < r->page_stride; i++)
        r->page_table[i] = r->page_stride - 1 - i;
}

enum status logits_rig_open(struct logits_rig *r, const struct logits_rig_options *opt,
                            struct errtext *err)
{
    struct backend_options bo = {
        .name = opt->backend, .thread_count = opt->thread_count, .deterministic = true};
    memset(r, 0, sizeof *r);
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
    make_kv(r);
    r->seq = mem_array(opt->chunk, sizeof *r->seq);
    r->pos = mem_array(opt->chunk, sizeof *r->pos);
    r->rows = mem_array(opt->chunk, sizeof *r->rows);
    r->hidden = mem_array((size_t)opt->chunk * r->model->config.d_model, sizeof *r->hidden);
    r->norm2 = mem_array(2 * (size_t)opt->chunk, sizeof *r->norm2);
    r->table = (struct lora_table){.slot = r->slot,
                                   .layout = r->layout,
                                   .n_layer = r->model->config.n_layer,
                                   .dtype = r->model->dtype};
    return STATUS_OK;
}

enum status logits_rig_add(struct logits_rig *r, const char *dir, struct errtext *err)
{
    const struct model_config *c = &r->model->config;
    struct peft_adapter a;
    uint32_t i = r->table.n_slot;
    CHECK(i < RIG_ADAPTERS_MAX && !r->forward);
    enum status st = peft_read_dir(&a, dir, c, 1u << 30, err);
    if (st)
        return st;
    st = peft_check_values(&a, err);
    if (st) {
        peft_fini(&a);
        return st;
    }
    struct lora_entry *entry = mem_array((size_t)c->n_layer * LORA_MODULE_COUNT, sizeof *entry);
    peft_layout(&a, c->n_layer, r->model->dtype, entry, &r->layout[i].blob_bytes);
    void *blob = mem_alloc_aligned(r->layout[i].blob_bytes);
    peft_pack(&a, c->n_layer, r->model->dtype, entry, blob);
    r->layout[i].entry = entry;
    r->slot[i] = (struct lora_slot){.blob = blob, .layout = i};
    r->table.n_slot++;
    r->rank_sum_max += 3 * a.rank_max;
    peft_fini(&a);
    return STATUS_OK;
}

static enum status run_chunk(struct logits_rig *r, struct forward_batch *b, uint32_t from,
                             float *logits, double norm2_sum[2])
{
    memset(r->norm2, 0, 2 * sizeof *r->norm2 * b->n_tok);
    for (uint32_t t = 0; t < b->n_tok; t++) {
        r->seq[t] = 0;
        r->pos[t] = from + t;
        r->rows[t] = t;
    }
    b->norm2 = norm2_sum ? r->norm2 : NULL;
    enum status st = forward_run(r->forward, b);
    if (st)
        return st;
    for (uint32_t t = 0; norm2_sum && t < b->n_tok; t++) {
        norm2_sum[0] += r->norm2[2 * t];
        norm2_sum[1] += r->norm2[2 * t + 1];
    }
    struct logits_args a = {logits, r->hidden, r->model->lm_head, b->n_tok};
    return r->backend->ops->logits(r->backend, &a);
}

enum status logits_rig_run(struct logits_rig *r, const struct lora_part *part, uint32_t part_count,
                           const int32_t *ids, uint32_t from, uint32_t n, float *logits,
                           double norm2_sum[2])
{
    struct forward_options fo = {
        .rows_max = r->opt.chunk, .pos_max = r->opt.context_max, .rank_sum_max = r->rank_sum_max};
    enum status st = STATUS_OK;
    CHECK(n <= r->opt.context_max && part_count <= LORA_PARTS_MAX);
    if (!r->forward)
        st = forward_create(&r->forward, r->model, r->backend, &fo, NULL);
    for (uint32_t at = from; !st && at < n; at += r->opt.chunk) {
        struct lora_seg seg = {.tok_count = MIN(r->opt.chunk, n - at), .part_count = part_count};
        memcpy(seg.part, part, part_count * sizeof *part);
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

void logits_rig_close(struct logits_rig *r)
{
    forward_destroy(r->forward);
    for (uint32_t i = 0; i < r->table.n_slot; i++) {
        mem_free_aligned((void *)(uintptr_t)r->slot[i].blob, r->layout[i].blob_bytes);
        mem_free((void *)(uintptr_t)r->layout[i].entry);
    }
    mem_free_aligned(r->kv.base, r->kv_bytes);
    mem_free(r->page_table);
    mem_free(r->seq);
    mem_free(r->pos);
    mem_free(r->rows);
    mem_free(r->hidden);
    mem_free(r->norm2);
    model_free(r->model);
    if (r->backend)
        backend_destroy(r->backend);
    memset(r, 0, sizeof *r);
}
