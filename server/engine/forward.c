/* The pass as a straight list of launcher calls. The residual stream h lives in one buffer and is
 * updated in place; x holds the normed input of a block, y the raw products of a GEMM group, q and
 * attn the attention's input and output, act the MLP's inner row. A keep buffer, where given,
 * simply takes the place of the scratch buffer, so that keep mode costs no copies.
 *
 * LoRA: a batch whose segments are all base-only runs without any LoRA call. Otherwise each group
 * (qkv | o | gate,up | down) is one shrink into s, read by the finish that follows the base GEMM.
 */
#include "server/engine/forward.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

struct forward {
    const struct model *model;
    struct backend *backend;
    struct forward_options opt;
    float *rope_cos, *rope_sin; /* [pos_max, d_head/2] */
    float *h, *x;               /* [rows_max, d_model] */
    float *y;                   /* [rows_max, y_width] */
    float *q, *attn;            /* [rows_max, n_head*d_head] */
    float *act;                 /* [rows_max, d_ff] */
    float *s;                   /* [rows_max, rank_sum_max] */
    uint32_t y_width;
};

static uint32_t y_width_of(const struct model_config *c)
{
    uint32_t qkv = (c->n_head + 2 * c->n_kv_head) * c->d_head;
    return MAX(MAX(qkv, 2 * c->d_ff), c->d_model);
}

static uint64_t rope_bytes(const struct model_config *c, const struct forward_options *opt)
{
    return sizeof(float) * (uint64_t)opt->pos_max * (c->d_head / 2);
}

static uint64_t row_bytes(const struct forward_options *opt, uint64_t width)
{
    return sizeof(float) * (uint64_t)opt->rows_max * width;
}

uint64_t forward_bytes(const struct model_config *c, const struct forward_options *opt)
{
    uint64_t width = 2ull * c->d_model + y_width_of(c) + 2ull * c->n_head * c->d_head + c->d_ff +
                     opt->rank_sum_max;
    return sizeof(struct forward) + 2 * rope_bytes(c, opt) + row_bytes(opt, width);
}

static enum status check_options(const struct model_config *c, const struct backend *backend,
                                 const struct forward_options *opt, struct errtext *err)
{
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
    return STATUS_OK;
}

enum status forward_create(struct forward **out, const struct model *model, struct backend *backend,
                           const struct forward_options *opt, struct errtext *err)
{
    const struct model_config *c = &model->config;
    *out = NULL;
    enum status st = check_options(c, backend, opt, err);
    if (st)
        return st;
    struct forward *f = mem_alloc(sizeof *f);
    f->model = model;
    f->backend = backend;
    f->opt = *opt;
    f->y_width = y_width_of(c);
    f->rope_cos = mem_try_alloc_aligned(rope_bytes(c, opt));
    f->rope_sin = mem_try_alloc_aligned(rope_bytes(c, opt));
    f->h = mem_try_alloc_aligned(row_bytes(opt, c->d_model));
    f->x = mem_try_alloc_aligned(row_bytes(opt, c->d_model));
    f->y = mem_try_alloc_aligned(row_bytes(opt, f->y_width));
    f->q = mem_try_alloc_aligned(row_bytes(opt, (uint64_t)c->n_head * c->d_head));
    f->attn = mem_try_alloc_aligned(row_bytes(opt, (uint64_t)c->n_head * c->d_head));
    f->act = mem_try_alloc_aligned(row_bytes(opt, c->d_ff));
    f->s = mem_try_alloc_aligned(row_bytes(opt, opt->rank_sum_max));
    if (!f->rope_cos || !f->rope_sin || !f->h || !f->x || !f->y || !f->q || !f->attn || !f->act ||
        !f->s) {
        forward_destroy(f);
        return err_set(err, STATUS_NO_MEMORY, "activations: no memory for %llu bytes",
                       (unsigned long long)forward_bytes(c, opt));
    }
    model_rope_fill(c, opt->pos_max, f->rope_cos, f->rope_sin);
    *out = f;
    return STATUS_OK;
}

void forward_destroy(struct forward *f)
{
    if (!f)
        return;
    const struct model_config *c = &f->model->config;
    const struct forward_options *opt = &f->opt;
    mem_free_aligned(f->rope_cos, rope_bytes(c, opt));
    mem_free_aligned(f->rope_sin, rope_bytes(c, opt));
    mem_free_aligned(f->h, row_bytes(opt, c->d_model));
    mem_free_aligned(f->x, row_bytes(opt, c->d_model));
    mem_free_aligned(f->y, row_bytes(opt, f->y_width));
    mem_free_aligned(f->q, row_bytes(opt, (uint64_t)c->n_head * c->d_head));
    mem_free_aligned(f->attn, row_bytes(opt, (uint64_t)c->n_head * c->d_head));
    mem_free_aligned(f->act, row_bytes(opt, c->d_ff));
    mem_free_aligned(f->s, row_bytes(opt, opt->rank_sum_max));
    mem_free(f);
}

/* One group's shrink; nothing when the step has no adapter rows. */
struct shrink_group {
    const float *x;
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
    struct lora_shrink_args a = {
        .lora = *lora,
        .x = g->x,
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

static enum status norm(struct forward *f, const float *gain, float *out, float *rstd,
                        uint32_t n_tok)
{
    struct norm_args a = {
        .out = out,
        .x = f->h,
        .gain = gain,
        .keep_rstd = rstd,
        .eps = f->model->config.norm_eps,
        .n_tok = n_tok,
        .d_model = f->model->config.d_model,
    };
    return f->backend->ops->norm(f->backend, &a);
}

static enum status gemm(struct forward *f, const float *x, const struct weight *part,
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
                              const struct lora_step *lora, uint32_t layer, float *q,
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
        .rope = {f->rope_cos, f->rope_sin, f->opt.pos_max},
        .kv = b->kv,
        .rows = b->rows,
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
                          const float *q, float *out, float *lse)
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
    float *x = keep->attn_in ? keep->attn_in : f->x;
    float *q = keep->q ? keep->q : f->q;
    float *attn = keep->o_in ? keep->o_in : f->attn;
    struct shrink_group in = {x, keep->ax_qkv, c->d_model, LORA_MODULE_Q, 3};
    struct shrink_group o = {attn, keep->ax_o, c->n_head * c->d_head, LORA_MODULE_O, 1};

    enum status st = norm(f, l->attn_norm, x, keep->attn_rstd, b->n_tok);
    if (!st)
        st = gemm(f, x, qkv, 3, b->n_tok);
    if (!st)
        st = shrink(f, b, lora, layer, &in);
    if (!st)
        st = qkv_finish(f, b, lora, layer, q, keep);
    if (!st)
        st = attend(f, b, layer, q, attn, keep->lse);
    if (!st)
        st = gemm(f, attn, &l->o, 1, b->n_tok);
    if (!st)
        st = shrink(f, b, lora, layer, &o);
    if (!st)
        st = residual(f, b, lora, layer, LORA_MODULE_O);
    return st;
}

static enum status mlp_finish(struct forward *f, const struct forward_batch *b,
                              const struct lora_step *lora, uint32_t layer, float *act,
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
    float *x = keep->mlp_in ? keep->mlp_in : f->x;
    float *act = keep->down_in ? keep->down_in : f->act;
    struct shrink_group in = {x, keep->ax_mlp, c->d_model, LORA_MODULE_GATE, 2};
    struct shrink_group down = {act, keep->ax_down, c->d_ff, LORA_MODULE_DOWN, 1};

    enum status st = norm(f, l->mlp_norm, x, keep->mlp_rstd, b->n_tok);
    if (!st)
        st = gemm(f, x, gate_up, 2, b->n_tok);
    if (!st)
        st = shrink(f, b, lora, layer, &in);
    if (!st)
        st = mlp_finish(f, b, lora, layer, act, keep);
    if (!st)
        st = gemm(f, act, &l->down, 1, b->n_tok);
    if (!st)
        st = shrink(f, b, lora, layer, &down);
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

enum status forward_run(struct forward *f, const struct forward_batch *b)
{
    static const struct forward_keep_layer keep_nothing;
    const struct model *m = f->model;
    CHECK(b->n_tok <= f->opt.rows_max);
    if (b->n_tok == 0)
        return STATUS_OK;
    struct lora_step lora = step_lora(f, b);
    struct embed_args embed = {f->h, m->embed, b->ids, b->n_tok};
    enum status st = f->backend->ops->embed(f->backend, &embed);
    for (uint32_t layer = 0; !st && layer < m->config.n_layer; layer++) {
        const struct forward_keep_layer *keep = b->keep ? &b->keep[layer] : &keep_nothing;
        st = attention_block(f, b, &lora, layer, keep);
        if (!st)
            st = mlp_block(f, b, &lora, layer, keep);
    }
    if (st || b->n_out == 0)
        return st;
    struct norm_args last = {
        .out = b->hidden,
        .x = f->h,
        .gain = m->final_norm,
        .rows = b->out_rows,
        .keep_rstd = b->keep_final_rstd,
        .eps = m->config.norm_eps,
        .n_tok = b->n_out,
        .d_model = m->config.d_model,
    };
    return f->backend->ops->norm(f->backend, &last);
}
