/* See bench_cell.h. */
#include "tests/gpu/bench_cell.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

static uint32_t pages_of(uint32_t context)
{
    return (context + PAGE_TOK - 1) / PAGE_TOK;
}

/* Sequences of n_tok / n_seq rows each, the last of them at position context-1. */
static void make_rows(struct cell *c)
{
    uint32_t per = c->n_tok / c->n_seq;
    c->page_stride = pages_of(c->context);
    c->ids = mem_array(c->n_tok, sizeof(*c->ids));
    c->seq = mem_array(c->n_tok, sizeof(*c->seq));
    c->pos = mem_array(c->n_tok, sizeof(*c->pos));
    c->out_rows = mem_array(c->n_tok, sizeof(*c->out_rows));
    c->page = mem_array((size_t)c->n_seq * c->page_stride, sizeof(*c->page));
    CHECK(per * c->n_seq == c->n_tok && per <= c->context);
    for (uint32_t t = 0; t < c->n_tok; t++) {
        c->ids[t] = (int32_t)((t * 7919u + 13u) % c->rig->shape.n_vocab);
        c->seq[t] = t / per;
        c->pos[t] = c->context - per + t % per;
        c->out_rows[t] = t;
    }
    /* pages of a sequence are apart, as they are after a while of serving */
    for (uint32_t i = 0; i < c->n_seq * c->page_stride; i++)
        c->page[i] = i % c->page_stride * c->n_seq + i / c->page_stride;
}

static void make_segments(struct cell *c)
{
    uint32_t n = c->adapters && c->adapters->count ? MIN(c->adapters->count, c->n_tok) : 1;
    c->n_seg = n;
    c->seg = mem_array(n, sizeof(*c->seg));
    for (uint32_t i = 0; i < n; i++) {
        uint32_t begin = (uint32_t)((uint64_t)c->n_tok * i / n);
        uint32_t end = (uint32_t)((uint64_t)c->n_tok * (i + 1) / n);
        c->seg[i] = (struct lora_seg){begin, end - begin, 1, {{i, 65536}}};
    }
}

static bool make_kv(struct cell *c, uint32_t layers)
{
    const struct shape *s = &c->rig->shape;
    struct kv_cache *kv = &c->kv;
    uint32_t pages = c->n_seq * c->page_stride;
    kv->dtype = DTYPE_BF16;
    kv->page_tok = PAGE_TOK;
    kv->stride_tok = s->d_head;
    kv->stride_head = kv->stride_tok * PAGE_TOK;
    kv->stride_kv = kv->stride_head * s->n_kv_head;
    kv->stride_layer = layers ? 2 * kv->stride_kv : 0;
    kv->stride_page = 2 * kv->stride_kv * MAX(layers, 1u);
    kv->base = rig_bf16(c->rig, (size_t)kv->stride_page * pages);
    return kv->base != NULL;
}

static bool make_buffers(struct cell *c)
{
    struct rig *r = c->rig;
    const struct shape *s = &r->shape;
    size_t n = c->n_tok, q = (size_t)s->n_head * s->d_head;
    size_t wide =
        MAX(MAX(2 * (size_t)s->d_ff, q + 2 * (size_t)s->n_kv_head * s->d_head), (size_t)s->d_model);
    size_t scratch = r->b->ops->lora_scratch_bytes(r->b, &r->lim);
    c->x = rig_bf16(r, n * MAX((size_t)s->d_model, MAX((size_t)s->d_ff, q)));
    c->y = rig_f32(r, n * wide);
    c->h = rig_f32(r, n * s->d_model);
    c->act = rig_zero(r, n * s->d_ff * 2);
    c->q = rig_bf16(r, n * q);
    c->attn = rig_zero(r, n * q * 2);
    c->s = rig_zero(r, scratch ? scratch : 256);
    float *cos = rig_f32(r, (size_t)c->context * (s->d_head / 2));
    float *sin = rig_f32(r, (size_t)c->context * (s->d_head / 2));
    c->rope = (struct rope_table){cos, sin, c->context};
    return c->x && c->y && c->h && c->act && c->q && c->attn && c->s && cos && sin;
}

static void prepare(struct cell *c)
{
    struct backend_limits lim = rig_limits(c->rig);
    lim.rows_max = lim.seqs_max = c->n_tok;
    lim.page_stride = c->page_stride;
    lim.segs_max = c->n_seg;
    lim.slots_max = c->adapters->count;
    lim.layouts_max = c->adapters->layout_count;
    lim.rank_sum_max = c->adapters->rank_sum_max;
    lim.n_layer = c->copies;
    rig_prepare(c->rig, &lim);
}

bool cell_open(struct cell *c, struct rig *r, const struct cell_options *opt)
{
    memset(c, 0, sizeof(*c));
    c->rig = r;
    c->adapters = opt->adapters;
    c->n_tok = opt->n_tok;
    c->n_seq = opt->n_seq;
    c->context = opt->context;
    c->copies = opt->copies;
    c->group = opt->group;
    if (c->group < GROUP_COUNT)
        c->dims = group_dims(&r->shape, c->group);
    c->mark = rig_mark(r);
    make_rows(c);
    make_segments(c);
    if (c->adapters)
        prepare(c);
    if (!make_kv(c, opt->kv_layers) || !make_buffers(c)) {
        cell_close(c);
        return false;
    }
    return true;
}

void cell_close(struct cell *c)
{
    rig_release(c->rig, c->mark);
    mem_free(c->ids);
    mem_free(c->seq);
    mem_free(c->pos);
    mem_free(c->out_rows);
    mem_free(c->page);
    mem_free(c->seg);
    memset(c, 0, sizeof(*c));
}

static struct kv_rows rows_of(const struct cell *c)
{
    return (struct kv_rows){c->seq, c->pos, c->page, c->page_stride};
}

void cell_step(struct cell *c, bool with_adapters)
{
    struct lora_seg base = {.tok_count = c->n_tok};
    bool lora = with_adapters && c->adapters;
    struct step_args a = {
        .ids = c->ids,
        .rows = rows_of(c),
        .lora = lora ? &c->adapters->table : NULL,
        .seg = lora ? c->seg : &base,
        .out_rows = c->out_rows,
        .n_tok = c->n_tok,
        .n_seg = lora ? c->n_seg : 1,
        .n_out = MIN(c->n_tok, 256u),
    };
    must(c->rig->b->ops->step(c->rig->b, &a), "step");
}

/* Host pointers are what the contract asks for; this backend reads the tables of the step. */
static struct lora_step lora_of(const struct cell *c)
{
    return (struct lora_step){
        .table = c->rig->c->pass.lora ? &c->adapters->table : NULL,
        .seg = c->seg,
        .n_seg = c->n_seg,
        .s = c->s,
        .s_stride = MAX(c->rig->lim.rank_sum_max, 1u),
    };
}

enum status cell_shrink(void *cell, uint32_t layer)
{
    struct cell *c = cell;
    struct lora_shrink_args a = {
        .lora = lora_of(c),
        .x = c->x,
        .n_tok = c->n_tok,
        .x_stride = c->dims.d_in,
        .d_in = c->dims.d_in,
        .layer = layer,
        .first = c->dims.first,
        .module_count = c->dims.module_count,
    };
    return c->rig->b->ops->lora_shrink(c->rig->b, &a);
}

static enum status qkv(struct cell *c, uint32_t layer)
{
    const struct shape *s = &c->rig->shape;
    struct qkv_finish_args a = {
        .lora = lora_of(c),
        .q_out = c->q,
        .y = c->y,
        .rope = c->rope,
        .kv = c->kv,
        .rows = rows_of(c),
        .n_tok = c->n_tok,
        .y_stride = c->dims.d_out,
        .layer = layer,
        .n_head = s->n_head,
        .n_kv_head = s->n_kv_head,
        .d_head = s->d_head,
    };
    return c->rig->b->ops->qkv_finish(c->rig->b, &a);
}

static enum status residual(struct cell *c, uint32_t layer)
{
    struct residual_finish_args a = {
        .lora = lora_of(c),
        .h = c->h,
        .y = c->y,
        .n_tok = c->n_tok,
        .y_stride = c->dims.d_out,
        .layer = layer,
        .d_model = c->rig->shape.d_model,
        .module = c->dims.first,
    };
    return c->rig->b->ops->residual_finish(c->rig->b, &a);
}

static enum status mlp(struct cell *c, uint32_t layer)
{
    struct mlp_finish_args a = {
        .lora = lora_of(c),
        .out = c->act,
        .y = c->y,
        .n_tok = c->n_tok,
        .y_stride = c->dims.d_out,
        .layer = layer,
        .d_ff = c->rig->shape.d_ff,
    };
    return c->rig->b->ops->mlp_finish(c->rig->b, &a);
}

enum status cell_finish(void *cell, uint32_t layer)
{
    struct cell *c = cell;
    if (c->group == GROUP_QKV)
        return qkv(c, layer);
    return c->group == GROUP_GATE_UP ? mlp(c, layer) : residual(c, layer);
}

enum status cell_pair(void *cell, uint32_t layer)
{
    enum status st = cell_shrink(cell, layer);
    return st ? st : cell_finish(cell, layer);
}

enum status cell_gemm(void *cell, uint32_t layer)
{
    struct cell *c = cell;
    const char *w = (const char *)c->w + (size_t)layer * c->dims.d_in * c->dims.d_out * 2;
    struct gemm_args a = {
        .y = c->y,
        .x = c->x,
        .part_count = c->dims.module_count,
        .n_tok = c->n_tok,
        .x_stride = c->dims.d_in,
        .y_stride = c->dims.d_out,
    };
    for (uint32_t m = 0; m < a.part_count; m++) {
        a.part[m] = (struct weight){w, DTYPE_BF16, c->dims.width[m], c->dims.d_in, NULL};
        w += (size_t)c->dims.width[m] * c->dims.d_in * 2;
    }
    return c->rig->b->ops->gemm(c->rig->b, &a);
}

enum status cell_attention(void *cell, uint32_t layer)
{
    struct cell *c = cell;
    const struct shape *s = &c->rig->shape;
    struct attention_args a = {
        .out = c->attn,
        .q = c->q,
        .kv = c->kv,
        .rows = rows_of(c),
        .scale = 0.088f,
        .n_tok = c->n_tok,
        .layer = layer,
        .n_head = s->n_head,
        .n_kv_head = s->n_kv_head,
        .d_head = s->d_head,
    };
    return c->rig->b->ops->attention(c->rig->b, &a);
}
