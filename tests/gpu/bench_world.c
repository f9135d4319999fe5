/* See bench_world.h. */
#include "tests/gpu/bench_world.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the model ---- */

static bool matrix(struct rig *r, struct weight *w, uint32_t d_out, uint32_t d_in)
{
    *w = (struct weight){rig_bf16(r, (size_t)d_out * d_in), DTYPE_BF16, d_out, d_in, NULL};
    return w->data != NULL;
}

/* Matrices of a group lie side by side, as a loader would put them. */
static bool group(struct rig *r, enum group g, struct weight *const w[3])
{
    struct group_dims d = group_dims(&r->shape, g);
    char *at = rig_bf16(r, (size_t)d.d_in * d.d_out);
    if (!at)
        return false;
    for (uint32_t m = 0; m < d.module_count; m++) {
        *w[m] = (struct weight){at, DTYPE_BF16, d.width[m], d.d_in, NULL};
        at += 2 * (size_t)d.width[m] * d.d_in;
    }
    return true;
}

static bool layer_fill(struct rig *r, struct model_layer *l)
{
    struct weight *qkv[3] = {&l->q, &l->k, &l->v}, *gate_up[3] = {&l->gate, &l->up};
    struct weight *o[3] = {&l->o}, *down[3] = {&l->down};
    l->attn_norm = rig_f32(r, r->shape.d_model);
    l->mlp_norm = rig_f32(r, r->shape.d_model);
    return l->attn_norm && l->mlp_norm && group(r, GROUP_QKV, qkv) && group(r, GROUP_O, o) &&
           group(r, GROUP_GATE_UP, gate_up) && group(r, GROUP_DOWN, down);
}

static bool model_fill(struct rig *r, struct model *m, uint32_t context)
{
    const struct shape *s = &r->shape;
    struct model_config *c = &m->config;
    snprintf(c->family_name, sizeof(c->family_name), "llama");
    c->family = MODEL_LLAMA;
    c->n_layer = s->n_layer;
    c->d_model = s->d_model;
    c->d_ff = s->d_ff;
    c->n_head = s->n_head;
    c->n_kv_head = s->n_kv_head;
    c->d_head = s->d_head;
    c->n_vocab = s->n_vocab;
    c->pos_max = context;
    c->norm_eps = 1e-5f;
    c->stored_dtype = m->dtype = DTYPE_BF16;
    c->rope = (struct rope_config){
        .kind = ROPE_DEFAULT, .theta = 500000, .factor = 1, .attention_factor = 1};
    m->layer = mem_array(s->n_layer, sizeof(*m->layer));
    m->final_norm = rig_f32(r, s->d_model);
    bool ok = m->final_norm && matrix(r, &m->embed, s->n_vocab, s->d_model) &&
              matrix(r, &m->lm_head, s->n_vocab, s->d_model);
    for (uint32_t i = 0; ok && i < s->n_layer; i++)
        ok = layer_fill(r, &m->layer[i]);
    return ok;
}

/* ---- the world ---- */

struct world *world_open(struct rig *r, const struct world_limits *lim)
{
    struct world *w = mem_alloc(sizeof(*w));
    w->rig = r;
    w->opt = (struct forward_options){.rows_max = lim->batch,
                                      .pos_max = lim->context,
                                      .seqs_max = lim->batch,
                                      .segs_max = lim->batch,
                                      .logits_rows_max = lim->batch,
                                      .rank_sum_max = 3 * lim->rank,
                                      .slots_max = lim->adapters,
                                      .layouts_max = RIG_LAYOUT_MAX};
    if (!model_fill(r, &w->model, lim->context)) {
        world_close(w);
        return NULL;
    }
    w->mark_adapters = rig_mark(r);
    return w;
}

void world_close(struct world *w)
{
    if (!w)
        return;
    forward_destroy(w->forward);
    adapters_free(&w->adapters);
    mem_free(w->model.layer);
    mem_free(w);
}

bool world_adapters(struct world *w, uint32_t count, const char *rank)
{
    if (w->adapters.count >= count && strcmp(w->rank, rank) == 0)
        return true;
    rig_release(w->rig, w->mark_adapters);
    adapters_free(&w->adapters);
    snprintf(w->rank, sizeof(w->rank), "%s", rank);
    if (adapters_make(w->rig, &w->adapters, count, rank, w->rig->shape.n_layer, GROUP_COUNT))
        return true;
    rig_release(w->rig, w->mark_adapters);
    adapters_free(&w->adapters);
    return false;
}

/* A server that was never told of adapters differs from one that has none in use. */
static void world_forward(struct world *w, bool configured)
{
    struct errtext err = ERRTEXT_INIT;
    struct forward_options opt = w->opt;
    if (w->forward && w->configured == configured)
        return;
    if (!configured)
        opt.rank_sum_max = opt.slots_max = opt.layouts_max = 0;
    forward_destroy(w->forward);
    w->configured = configured;
    if (forward_create(&w->forward, &w->model, w->rig->b, &opt, &err) == STATUS_OK)
        return;
    fprintf(stderr, "bench_cuda: %s\n", err.text);
    exit(1);
}

/* ---- a batch ---- */

static void make_host(struct batch *b)
{
    uint32_t n = b->n;
    b->page_stride = (b->context + PAGE_TOK - 1) / PAGE_TOK;
    b->ids = mem_array(n, sizeof(*b->ids));
    b->seq = mem_array(n, sizeof(*b->seq));
    b->pos = mem_array(n, sizeof(*b->pos));
    b->out_rows = mem_array(n, sizeof(*b->out_rows));
    b->row = mem_array(n, sizeof(*b->row));
    b->sampled.host = mem_array(n, sizeof(struct sample_out));
    b->page = mem_array((size_t)n * b->page_stride, sizeof(*b->page));
    for (uint32_t i = 0; i < n; i++) {
        b->ids[i] = (int32_t)((i * 7919u + 13u) % b->w->rig->shape.n_vocab);
        b->seq[i] = b->out_rows[i] = i;
        b->pos[i] = b->context - 1;
        b->row[i] = (struct sample_row){.top_p = 1, .repetition = 1, .slot = i};
    }
    for (uint32_t i = 0; i < n * b->page_stride; i++)
        b->page[i] = i % b->page_stride * n + i / b->page_stride;
}

static bool make_device(struct batch *b)
{
    struct rig *r = b->w->rig;
    const struct shape *s = &r->shape;
    /* a pass may be padded to as many rows as the forward has */
    size_t n = b->w->opt.rows_max, sample = backend_sample_scratch_bytes(r->b, s->n_vocab);
    b->logits = rig_zero(r, n * s->n_vocab * sizeof(float));
    b->norm2 = rig_zero(r, n * 2 * sizeof(double));
    b->hidden = rig_zero(r, n * s->d_model * dtype_bytes(r->b->act));
    b->scratch = rig_zero(r, MAX(sample, (size_t)256));
    b->kv = (struct kv_cache){.dtype = DTYPE_BF16, .page_tok = PAGE_TOK};
    b->kv.stride_tok = s->d_head;
    b->kv.stride_head = b->kv.stride_tok * PAGE_TOK;
    b->kv.stride_kv = b->kv.stride_head * s->n_kv_head;
    b->kv.stride_layer = 2 * b->kv.stride_kv;
    b->kv.stride_page = b->kv.stride_layer * s->n_layer;
    b->kv.base = rig_bf16(r, b->kv.stride_page * b->n * b->page_stride);
    return b->logits && b->norm2 && b->hidden && b->scratch && b->kv.base;
}

bool batch_open(struct batch *b, struct world *w, const struct batch_options *opt)
{
    memset(b, 0, sizeof(*b));
    b->w = w;
    b->n = opt->n;
    b->context = opt->context;
    b->seg = opt->seg;
    b->n_seg = opt->n_seg;
    b->lora = opt->seg != NULL;
    b->mark = rig_mark(w->rig);
    CHECK(b->n <= w->opt.rows_max && b->context <= w->opt.pos_max);
    if (!b->seg) {
        b->seg = mem_array(1, sizeof(*b->seg));
        b->seg[0].tok_count = b->n;
        b->n_seg = 1;
    }
    make_host(b);
    world_forward(w, opt->configured);
    if (make_device(b))
        return true;
    batch_close(b);
    return false;
}

void batch_close(struct batch *b)
{
    batch_take(b);
    mem_free(b->sampled.host);
    rig_release(b->w->rig, b->mark);
    mem_free(b->ids);
    mem_free(b->seq);
    mem_free(b->pos);
    mem_free(b->out_rows);
    mem_free(b->row);
    mem_free(b->page);
    mem_free(b->seg);
    memset(b, 0, sizeof(*b));
}

uint64_t batch_bytes(const struct batch *b)
{
    const struct rig *r = b->w->rig;
    const struct shape *s = &r->shape;
    uint64_t bytes = 2ull * s->n_vocab * s->d_model;
    for (int g = 0; g < GROUP_COUNT; g++) {
        struct group_dims d = group_dims(s, (enum group)g);
        bytes += 2ull * s->n_layer * d.d_in * d.d_out;
        for (uint32_t i = 0; b->lora && i < b->n_seg; i++)
            bytes += s->n_layer *
                     adapter_group_bytes(r, &b->w->adapters, b->seg[i].part[0].slot, (enum group)g);
    }
    return bytes + 4ull * s->n_kv_head * s->d_head * s->n_layer * b->n * b->context;
}

static void sample(struct batch *b)
{
    struct backend *be = b->w->rig->b;
    struct logits_args l = {b->logits, b->hidden, b->w->model.lm_head, b->n};
    struct sample_args a = {NULL, b->logits, b->row, b->scratch, b->n, l.w.d_out};
    uint32_t ticket;
    must(be->ops->logits(be, &l), "logits");
    must(be->ops->sample_begin(be, &a, &ticket), "sample");
    rig_began(b->w->rig, &b->sampled, ticket);
}

void batch_take(struct batch *b)
{
    rig_take(b->w->rig, &b->sampled);
}

void batch_step(struct batch *b)
{
    struct backend *be = b->w->rig->b;
    struct forward_batch f = {
        .ids = b->ids,
        .n_tok = b->n,
        .rows = {b->seq, b->pos, b->page, b->page_stride},
        .kv = b->kv,
        .lora = b->w->configured ? &b->w->adapters.table : NULL,
        .seg = b->seg,
        .n_seg = b->n_seg,
        .out_rows = b->out_rows,
        .n_out = b->n,
        .hidden = b->hidden,
    };
    if (b->lora) {
        f.norm2 = b->norm2;
        must(be->ops->mem_zero(be, b->norm2, b->n * 2 * sizeof(double)), "zeroing");
    }
    must(forward_run(b->w->forward, &f), "the pass");
    sample(b);
}
