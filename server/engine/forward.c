/* The pass as a straight list of launcher calls. The residual stream h lives in one buffer and is
 * updated in place; x holds the normed input of a block, y the raw products of a GEMM group, q and
 * attn the attention's input and output, act the MLP's inner row. A keep buffer, where given,
 * simply takes the place of the scratch buffer, so that keep mode costs no copies.
 *
 * LoRA: a batch whose segments are all base-only runs without any LoRA call. Otherwise each group
 * (qkv | o | gate,up | down) is one shrink into s, before the base GEMM, whose input it shares and
 * whose weights a device fetches meanwhile; the finish behind the GEMM reads s. */
#include "server/engine/forward.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/engine/kv.h"

#include <string.h>

/* Buffers in backend memory; x, q, attn and act in the backend's dtype of activations. */
struct forward {
    const struct model *model;
    struct backend *backend;
    struct forward_options opt;
    float *rope_cos, *rope_sin; /* [pos_max, d_head/2] */
    float *h;                   /* [rows_max, d_model] */
    void *x;                    /* [rows_max, d_model] */
    float *y;                   /* [rows_max, y_width] */
    void *q, *attn;             /* [rows_max, n_head*d_head] */
    void *act;                  /* [rows_max, d_ff] */
    float *s;                   /* shrink outputs, in the backend's form */
    uint32_t y_width;
};

struct buffer {
    void **at;
    uint64_t bytes;
};
#define BUFFERS 9

static uint32_t y_width_of(const struct model_config *c)
{
    uint32_t qkv = (c->n_head + 2 * c->n_kv_head) * c->d_head;
    return MAX(MAX(qkv, 2 * c->d_ff), c->d_model);
}

struct backend_limits forward_limits(const struct model_config *c,
                                     const struct forward_options *opt)
{
    return (struct backend_limits){
        .rows_max = opt->rows_max,
        .seqs_max = opt->seqs_max ? opt->seqs_max : opt->rows_max,
        .page_stride = (opt->pos_max + KV_PAGE_TOK - 1) / KV_PAGE_TOK,
        .segs_max = opt->segs_max ? opt->segs_max : opt->rows_max,
        .slots_max = opt->slots_max,
        .layouts_max = opt->layouts_max,
        .rank_sum_max = opt->rank_sum_max,
        .logits_rows_max = opt->logits_rows_max ? opt->logits_rows_max : opt->rows_max,
        .n_layer = c->n_layer,
        .d_model = c->d_model,
        .d_ff = c->d_ff,
        .n_head = c->n_head,
        .n_kv_head = c->n_kv_head,
        .d_head = c->d_head,
        .n_vocab = c->n_vocab,
    };
}

/* Every buffer of f (which may be a blank one, for the sizes alone). */
static void list_buffers(struct forward *f, const struct backend *b, const struct model_config *c,
                         const struct forward_options *opt, struct buffer list[BUFFERS])
{
    struct backend_limits lim = forward_limits(c, opt);
    uint64_t rows = opt->rows_max, act = dtype_bytes(b->act), f32 = sizeof(float);
    uint64_t rope = f32 * opt->pos_max * (c->d_head / 2), heads = (uint64_t)c->n_head * c->d_head;
    const struct buffer all[BUFFERS] = {
        {(void **)&f->rope_cos, rope},
        {(void **)&f->rope_sin, rope},
        {(void **)&f->h, f32 * rows * c->d_model},
        {&f->x, act * rows * c->d_model},
        {(void **)&f->y, f32 * rows * y_width_of(c)},
        {&f->q, act * rows * heads},
        {&f->attn, act * rows * heads},
        {&f->act, act * rows * c->d_ff},
        {(void **)&f->s, b->ops->lora_scratch_bytes(b, &lim)},
    };
    memcpy(list, all, sizeof(all));
}

uint64_t forward_bytes(const struct backend *b, const struct model_config *c,
                       const struct forward_options *opt)
{
    struct forward blank;
    struct buffer list[BUFFERS];
    uint64_t sum = sizeof(struct forward);
    list_buffers(&blank, b, c, opt, list);
    for (int i = 0; i < BUFFERS; i++)
        sum += list[i].bytes;
    return sum;
}

/* A device wants bf16 and rows of whole 16-byte words. */
static enum status check_device(const struct model *m, const struct backend *backend,
                                struct errtext *err)
{
    const struct model_config *c = &m->config;
    if (!backend->is_device)
        return STATUS_OK;
    if (m->dtype != DTYPE_BF16)
        return err_param(err, STATUS_UNSUPPORTED, "dtype",
                         "dtype f32: backend %s computes in bf16 only; set \"dtype\": \"bf16\" or "
                         "use backend cpu",
                         backend->name);
    if (c->d_model % 8 || c->d_ff % 8)
        return err_param(err, STATUS_UNSUPPORTED, "hidden_size",
                         "hidden_size %u, intermediate_size %u: backend %s serves multiples of 8",
                         c->d_model, c->d_ff, backend->name);
    return STATUS_OK;
}

static enum status check_options(const struct model *m, const struct backend *backend,
                                 const struct forward_options *opt, struct errtext *err)
{
    const struct model_config *c = &m->config;
    if (opt->rows_max == 0)
        return err_param(err, STATUS_INVALID, "rows_max", "rows per step: 0, expected 1 or more");
    if (opt->pos_max == 0 || opt->pos_max > c->pos_max)
        return err_param(err, STATUS_INVALID, "context_max",
                         "context: %u tokens, this model allows 1 to %u", opt->pos_max, c->pos_max);
    /* the vector loops of the fast backends; ref, the specification, takes any even size */
    if (strcmp(backend->name, "ref") && (c->d_head % 8 || c->d_head > 256))
        return err_param(err, STATUS_UNSUPPORTED, "head_dim",
                         "head_dim %u: backend %s serves multiples of 8 up to 256, backend ref any",
                         c->d_head, backend->name);
    return check_device(m, backend, err);
}

static enum status take_buffers(struct forward *f, struct errtext *err)
{
    struct buffer list[BUFFERS];
    list_buffers(f, f->backend, &f->model->config, &f->opt, list);
    for (int i = 0; i < BUFFERS; i++) {
        *list[i].at = f->backend->ops->mem_alloc(f->backend, list[i].bytes);
        if (!*list[i].at)
            return err_set(
                err, STATUS_NO_MEMORY, "activations: no memory for %llu bytes",
                (unsigned long long)forward_bytes(f->backend, &f->model->config, &f->opt));
    }
    return STATUS_OK;
}

static enum status fill_rope(struct forward *f, struct errtext *err)
{
    const struct model_config *c = &f->model->config;
    size_t n = (size_t)f->opt.pos_max * (c->d_head / 2);
    float *cos = mem_array(2 * n, sizeof(float)), *sin = cos + n;
    model_rope_fill(c, f->opt.pos_max, cos, sin);
    enum status st = f->backend->ops->mem_write(f->backend, f->rope_cos, cos, n * sizeof(float));
    if (!st)
        st = f->backend->ops->mem_write(f->backend, f->rope_sin, sin, n * sizeof(float));
    mem_free(cos);
    return st ? err_set(err, st, "rope tables: the device refused them") : STATUS_OK;
}

enum status forward_create(struct forward **out, const struct model *model, struct backend *backend,
                           const struct forward_options *opt, struct errtext *err)
{
    *out = NULL;
    enum status st = check_options(model, backend, opt, err);
    if (st)
        return st;
    struct backend_limits lim = forward_limits(&model->config, opt);
    struct forward *f = mem_alloc(sizeof(*f));
    f->model = model;
    f->backend = backend;
    f->opt = *opt;
    f->y_width = y_width_of(&model->config);
    st = backend->ops->prepare(backend, &lim, err);
    if (!st)
        st = take_buffers(f, err);
    if (!st)
        st = fill_rope(f, err);
    if (st) {
        forward_destroy(f);
        return st;
    }
    *out = f;
    return STATUS_OK;
}

void forward_destroy(struct forward *f)
{
    struct buffer list[BUFFERS];
    if (!f)
        return;
    list_buffers(f, f->backend, &f->model->config, &f->opt, list);
    for (int i = 0; i < BUFFERS; i++)
        f->backend->ops->mem_free(f->backend, *list[i].at, list[i].bytes);
    mem_free(f);
}

/* One group's shrink; nothing when the step has no adapter rows. */
struct shrink_group {
    const void *x;
    float *keep_ax;
    uint32_t d_in;
    enum lora_module first;
    uint32_t count;
};

static enum status shrink(struct forward *f, const struct forward_batch *b,
                          const struct lora_step *lora, uint32_t layer,
                          const struct shrink_group *g)
{
    if (!lora->table)
        return STATUS_OK;
    const void *x = g->x;
    if (b->dropout) {
        struct dropout_args drop = {.out = b->drop,
                                    .x = x,
                                    .seg = b->dropout,
                                    .n_seg = b->n_dropout,
                                    .width = g->d_in,
                                    .out_stride = g->d_in,
                                    .x_stride = g->d_in,
                                    .site = forward_site(layer, g->first)};
        enum status st = f->backend->ops->back->dropout(f->backend, &drop);
        if (st)
            return st;
        x = b->drop;
    }
    struct lora_shrink_args a = {
        .lora = *lora,
        .x = x,
        .keep_ax = g->keep_ax,
        .n_tok = b->n_tok,
        .x_stride = g->d_in,
        .d_in = g->d_in,
        .layer = layer,
        .first = g->first,
        .module_count = g->count,
    };
    return f->backend->ops->lora_shrink(f->backend, &a);
}

static enum status norm(struct forward *f, const float *gain, void *out, float *rstd, float *x,
                        uint32_t n_tok)
{
    struct norm_args a = {
        .out = out,
        .x = f->h,
        .gain = gain,
        .keep_rstd = rstd,
        .keep_x = x,
        .eps = f->model->config.norm_eps,
        .n_tok = n_tok,
        .d_model = f->model->config.d_model,
    };
    return f->backend->ops->norm(f->backend, &a);
}

static enum status gemm(struct forward *f, const void *x, const struct weight *part,
                        uint32_t part_count, uint32_t n_tok)
{
    struct gemm_args a = {
        .y = f->y,
        .x = x,
        .part_count = part_count,
        .n_tok = n_tok,
        .x_stride = part[0].d_in,
        .y_stride = f->y_width,
    };
    for (uint32_t i = 0; i < part_count; i++)
        a.part[i] = part[i];
    return f->backend->ops->gemm(f->backend, &a);
}

static enum status residual(struct forward *f, const struct forward_batch *b,
                            const struct lora_step *lora, uint32_t layer, enum lora_module module)
{
    const struct model_layer *l = &f->model->layer[layer];
    struct residual_finish_args a = {
        .lora = *lora,
        .h = f->h,
        .y = f->y,
        .bias = module == LORA_MODULE_O ? l->bias_o : l->bias_down,
        .n_tok = b->n_tok,
        .y_stride = f->y_width,
        .layer = layer,
        .d_model = f->model->config.d_model,
        .module = module,
    };
    return f->backend->ops->residual_finish(f->backend, &a);
}

static enum status qkv_finish(struct forward *f, const struct forward_batch *b,
                              const struct lora_step *lora, uint32_t layer, void *q,
                              const struct forward_keep_layer *keep)
{
    const struct model_config *c = &f->model->config;
    const struct model_layer *l = &f->model->layer[layer];
    struct qkv_finish_args a = {
        .lora = *lora,
        .q_out = q,
        .y = f->y,
        .bias_q = l->bias_q,
        .bias_k = l->bias_k,
        .bias_v = l->bias_v,
        .q_norm = l->q_norm,
        .k_norm = l->k_norm,
        .norm_eps = c->norm_eps,
        .rope = forward_rope(f),
        .kv = b->kv,
        .rows = b->rows,
        .keep_qk = keep->qk_in,
        .keep_k = keep->k,
        .keep_v = keep->v,
        .n_tok = b->n_tok,
        .y_stride = f->y_width,
        .layer = layer,
        .n_head = c->n_head,
        .n_kv_head = c->n_kv_head,
        .d_head = c->d_head,
    };
    return f->backend->ops->qkv_finish(f->backend, &a);
}

static enum status attend(struct forward *f, const struct forward_batch *b, uint32_t layer,
                          const void *q, void *out, float *lse)
{
    const struct model_config *c = &f->model->config;
    struct attention_args a = {
        .out = out,
        .q = q,
        .kv = b->kv,
        .rows = b->rows,
        .keep_lse = lse,
        .scale = model_attention_scale(c),
        .n_tok = b->n_tok,
        .layer = layer,
        .n_head = c->n_head,
        .n_kv_head = c->n_kv_head,
        .d_head = c->d_head,
        .window = model_config_window(c, layer),
    };
    return f->backend->ops->attention(f->backend, &a);
}

static enum status attention_block(struct forward *f, const struct forward_batch *b,
                                   const struct lora_step *lora, uint32_t layer,
                                   const struct forward_keep_layer *keep)
{
    const struct model_config *c = &f->model->config;
    const struct model_layer *l = &f->model->layer[layer];
    const struct weight qkv[3] = {l->q, l->k, l->v};
    void *x = keep->attn_in ? keep->attn_in : f->x;
    void *q = keep->q ? keep->q : f->q;
    void *attn = keep->o_in ? keep->o_in : f->attn;
    struct shrink_group in = {x, keep->ax_qkv, c->d_model, LORA_MODULE_Q, 3};
    struct shrink_group o = {attn, keep->ax_o, c->n_head * c->d_head, LORA_MODULE_O, 1};

    enum status st = norm(f, l->attn_norm, x, keep->attn_rstd, keep->attn_x, b->n_tok);
    if (!st)
        st = shrink(f, b, lora, layer, &in);
    if (!st)
        st = gemm(f, x, qkv, 3, b->n_tok);
    if (!st)
        st = qkv_finish(f, b, lora, layer, q, keep);
    if (!st)
        st = attend(f, b, layer, q, attn, keep->lse);
    if (!st)
        st = shrink(f, b, lora, layer, &o);
    if (!st)
        st = gemm(f, attn, &l->o, 1, b->n_tok);
    if (!st)
        st = residual(f, b, lora, layer, LORA_MODULE_O);
    return st;
}

static enum status mlp_finish(struct forward *f, const struct forward_batch *b,
                              const struct lora_step *lora, uint32_t layer, void *act,
                              const struct forward_keep_layer *keep)
{
    const struct model_layer *l = &f->model->layer[layer];
    struct mlp_finish_args a = {
        .lora = *lora,
        .out = act,
        .y = f->y,
        .bias_gate = l->bias_gate,
        .bias_up = l->bias_up,
        .keep_gate = keep->gate,
        .keep_up = keep->up,
        .n_tok = b->n_tok,
        .y_stride = f->y_width,
        .layer = layer,
        .d_ff = f->model->config.d_ff,
    };
    return f->backend->ops->mlp_finish(f->backend, &a);
}

static enum status mlp_block(struct forward *f, const struct forward_batch *b,
                             const struct lora_step *lora, uint32_t layer,
                             const struct forward_keep_layer *keep)
{
    const struct model_config *c = &f->model->config;
    const struct model_layer *l = &f->model->layer[layer];
    const struct weight gate_up[2] = {l->gate, l->up};
    void *x = keep->mlp_in ? keep->mlp_in : f->x;
    void *act = keep->down_in ? keep->down_in : f->act;
    struct shrink_group in = {x, keep->ax_mlp, c->d_model, LORA_MODULE_GATE, 2};
    struct shrink_group down = {act, keep->ax_down, c->d_ff, LORA_MODULE_DOWN, 1};

    enum status st = norm(f, l->mlp_norm, x, keep->mlp_rstd, keep->mlp_x, b->n_tok);
    if (!st)
        st = shrink(f, b, lora, layer, &in);
    if (!st)
        st = gemm(f, x, gate_up, 2, b->n_tok);
    if (!st)
        st = mlp_finish(f, b, lora, layer, act, keep);
    if (!st)
        st = shrink(f, b, lora, layer, &down);
    if (!st)
        st = gemm(f, act, &l->down, 1, b->n_tok);
    if (!st)
        st = residual(f, b, lora, layer, LORA_MODULE_DOWN);
    return st;
}

static bool has_adapter_rows(const struct forward_batch *b)
{
    for (uint32_t i = 0; b->lora && i < b->n_seg; i++) {
        if (b->seg[i].part_count > 0)
            return true;
    }
    return false;
}

static struct lora_step step_lora(const struct forward *f, const struct forward_batch *b)
{
    struct lora_step lora = {.norm2 = b->norm2};
    if (!has_adapter_rows(b))
        return lora;
    CHECK(f->opt.rank_sum_max > 0);
    lora.table = b->lora;
    lora.seg = b->seg;
    lora.n_seg = b->n_seg;
    lora.s = f->s;
    lora.s_stride = f->opt.rank_sum_max;
    return lora;
}

static enum status tell_step(struct forward *f, const struct forward_batch *b,
                             const struct lora_step *lora)
{
    struct step_args a = {
        .ids = b->ids,
        .rows = b->rows,
        .lora = lora->table,
        .seg = lora->seg,
        .out_rows = b->out_rows,
        .n_tok = b->n_tok,
        .n_seg = lora->n_seg,
        .n_out = b->n_out,
    };
    return f->backend->ops->step(f->backend, &a);
}

static enum status embed(struct forward *f, const struct forward_batch *b)
{
    struct embed_args a = {f->h, f->model->embed, b->ids, b->n_tok};
    return f->backend->ops->embed(f->backend, &a);
}

static enum status run_layer(struct forward *f, const struct forward_batch *b,
                             const struct lora_step *lora, uint32_t layer)
{
    static const struct forward_keep_layer keep_nothing;
    const struct forward_keep_layer *keep = b->keep ? &b->keep[layer] : &keep_nothing;
    enum status st = attention_block(f, b, lora, layer, keep);
    return st ? st : mlp_block(f, b, lora, layer, keep);
}

static enum status final_norm(struct forward *f, const struct forward_batch *b)
{
    struct norm_args last = {
        .out = b->hidden,
        .x = f->h,
        .gain = f->model->final_norm,
        .rows = b->out_rows,
        .keep_rstd = b->keep_final_rstd,
        .eps = f->model->config.norm_eps,
        .n_tok = b->n_out,
        .d_model = f->model->config.d_model,
    };
    return f->backend->ops->norm(f->backend, &last);
}

static enum status run_layers(struct forward *f, const struct forward_batch *b,
                              const struct lora_step *lora)
{
    enum status st = embed(f, b);
    for (uint32_t layer = 0; !st && layer < f->model->config.n_layer; layer++)
        st = run_layer(f, b, lora, layer);
    return st || b->n_out == 0 ? st : final_norm(f, b);
}

enum status forward_run(struct forward *f, const struct forward_batch *b)
{
    CHECK(b->n_tok <= f->opt.rows_max);
    if (b->n_tok == 0)
        return STATUS_OK;
    struct lora_step lora = step_lora(f, b);
    struct pass_args a = {.owner = f,
                          .kv = b->kv.base,
                          .hidden = b->hidden,
                          .norm2 = b->norm2,
                          .lora = lora.table != NULL,
                          .keep = b->keep || b->keep_final_rstd,
                          .n_tok = b->n_tok,
                          .n_out = b->n_out};
    struct pass pass;
    enum status st = tell_step(f, b, &lora);
    if (!st)
        st = f->backend->ops->pass_begin(f->backend, &a, &pass);
    if (st)
        return st;
    struct forward_batch padded = *b; /* a device launches for more rows than there are */
    padded.n_tok = pass.n_tok;
    padded.n_out = pass.n_out;
    do {
        if (!pass.replayed)
            st = run_layers(f, &padded, &lora);
        st = f->backend->ops->pass_end(f->backend, &pass, st);
    } while (!st && pass.again);
    return st;
}

/* A piece of a pass: on the caller's residual stream, launched as it comes. */
static enum status run_piece(struct forward *f, const struct forward_batch *b, uint32_t layer,
                             float *h)
{
    struct lora_step lora = step_lora(f, b);
    const uint32_t n_layer = f->model->config.n_layer;
    float *own = f->h;
    CHECK(b->n_tok <= f->opt.rows_max && layer <= n_layer);
    enum status st = tell_step(f, b, &lora);
    f->h = h;
    if (!st && layer < n_layer)
        st = run_layer(f, b, &lora, layer);
    else if (!st && b->n_out)
        st = final_norm(f, b);
    f->h = own;
    return st;
}

enum status forward_embed(struct forward *f, const struct forward_batch *b, float *h)
{
    struct lora_step lora = step_lora(f, b);
    float *own = f->h;
    enum status st = tell_step(f, b, &lora);
    f->h = h;
    if (!st)
        st = embed(f, b);
    f->h = own;
    return st;
}

enum status forward_layer(struct forward *f, const struct forward_batch *b, uint32_t layer,
                          float *h)
{
    CHECK(layer < f->model->config.n_layer);
    return run_piece(f, b, layer, h);
}

enum status forward_final(struct forward *f, const struct forward_batch *b, float *h)
{
    return run_piece(f, b, f->model->config.n_layer, h);
}

const struct forward_options *forward_made_with(const struct forward *f)
{
    return &f->opt;
}

struct rope_table forward_rope(const struct forward *f)
{
    return (struct rope_table){f->rope_cos, f->rope_sin, f->opt.pos_max};
}
