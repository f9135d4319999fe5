/* The backward pass as a straight list of launcher calls. dh is the gradient of the residual
 * stream, updated in place from the last layer to the first; wide holds the gradient of a block's
 * inner activation, dy that of a gemm group's raw products, dn that of its normed input.
 *
 * Keys and values need no cache that lasts: attention reads them in the layer that wrote them, so
 * all layers share one layer's pages, and the backward pass reads the kept ones. */
#include "server/engine/backward.h"
#include "server/base/check.h"
#include "server/engine/backward_impl.h"

/* ---- the batch ---- */

/* Rows, positions and pages, sequence by sequence; the rows that have a target. */
static void lay_out(struct backward *w)
{
    const struct backward_batch *b = &w->batch;
    uint32_t page = 0, t = 0;
    CHECK(b->n_tok <= w->fo.rows_max && (!b->dropout || w->opt.dropout));
    CHECK(b->n_seq <= (w->fo.seqs_max ? w->fo.seqs_max : w->fo.rows_max));
    w->n_out = 0;
    for (uint32_t s = 0; s < b->n_seq; s++) {
        CHECK(b->seq[s].row == t && b->seq[s].n_row <= w->fo.pos_max);
        for (uint32_t i = 0; i < b->seq[s].n_row; i++, t++) {
            w->seq[t] = s;
            w->pos[t] = i;
            if (i % KV_PAGE_TOK == 0)
                w->page_table[(size_t)s * w->page_stride + i / KV_PAGE_TOK] = page++;
            b->logprob[t] = 0;
            if (b->target[t] < 0)
                continue;
            CHECK((uint32_t)b->target[t] < w->model->config.n_vocab);
            w->host_target[w->n_out] = b->target[t];
            w->host_weight[w->n_out] = b->weight[t];
            w->rows[w->n_out++] = t;
        }
    }
    CHECK(t == b->n_tok && page <= backward_pages(&w->fo));
}

static struct forward_batch forward_of(const struct backward *w)
{
    const struct backward_batch *b = &w->batch;
    return (struct forward_batch){
        .ids = b->ids,
        .n_tok = b->n_tok,
        .rows = {w->seq, w->pos, w->page_table, w->page_stride},
        .kv = w->kv,
        .lora = b->lora,
        .seg = b->seg,
        .n_seg = b->n_seg,
        .out_rows = w->rows,
        .n_out = w->n_out,
        .hidden = w->hidden,
        .keep = w->keep,
        .keep_final_rstd = w->rstd,
        .dropout = b->dropout,
        .n_dropout = b->n_dropout,
        .drop = w->drop,
    };
}

static enum status upload(struct backward *w)
{
    const struct backend_ops *ops = w->backend->ops;
    size_t n = w->n_out * sizeof(float);
    enum status st = ops->mem_write(w->backend, w->target, w->host_target, n);
    if (!st)
        st = ops->mem_write(w->backend, w->weight, w->host_weight, n);
    if (!st)
        st = ops->mem_write(w->backend, w->dev_rows, w->rows, n);
    if (!st)
        st = ops->mem_write(w->backend, w->dev_pos, w->pos, w->batch.n_tok * sizeof(*w->pos));
    return st;
}

/* ---- calls ---- */

static enum status gemm_back(struct backward *w, float *dx, const float *dy, uint32_t dy_stride,
                             const struct weight *part, uint32_t parts)
{
    struct gemm_back_args a = {.dx = dx,
                               .dy = dy,
                               .part_count = parts,
                               .n_tok = w->batch.n_tok,
                               .dx_stride = part[0].d_in,
                               .dy_stride = dy_stride};
    for (uint32_t i = 0; i < parts; i++)
        a.part[i] = part[i];
    return w->backend->ops->back->gemm_back(w->backend, &a);
}

/* A group: its weights, where dy comes from and dx goes. */
struct back_group {
    const struct weight *part;
    const void *x;
    const float *ax, *dy;
    float *dx; /* NULL: not wanted */
    uint32_t count, dy_stride;
    enum lora_module first;
};

/* m x of a group's input again, or, with add, its gradient's way back through m. */
static enum status drop(struct backward *w, uint32_t layer, const struct back_group *g, void *out,
                        const void *x, bool add)
{
    struct dropout_args a = {.out = out,
                             .x = x,
                             .seg = w->batch.dropout,
                             .n_seg = w->batch.n_dropout,
                             .width = g->part[0].d_in,
                             .out_stride = g->part[0].d_in,
                             .x_stride = g->part[0].d_in,
                             .site = forward_site(layer, g->first),
                             .add = add};
    return w->backend->ops->back->dropout(w->backend, &a);
}

static enum status adapters_back(struct backward *w, uint32_t layer, const struct back_group *g,
                                 const void *x, float *dx)
{
    const struct backward_batch *b = &w->batch;
    struct lora_back_args a = {.lora = {b->lora, b->seg, b->n_seg, w->ds, w->fo.rank_sum_max, NULL},
                               .dy = g->dy,
                               .x = x,
                               .ax = g->ax,
                               .dx = dx,
                               .grad = b->grad,
                               .n_tok = b->n_tok,
                               .dy_stride = g->dy_stride,
                               .x_stride = g->part[0].d_in,
                               .dx_stride = g->part[0].d_in,
                               .d_in = g->part[0].d_in,
                               .layer = layer,
                               .first = g->first,
                               .module_count = g->count};
    for (uint32_t i = 0; i < g->count; i++)
        a.d_out[i] = g->part[i].d_out;
    return w->backend->ops->back->lora_back(w->backend, &a);
}

static enum status group_back(struct backward *w, uint32_t layer, const struct back_group *g)
{
    const struct backward_batch *b = &w->batch;
    enum status st = STATUS_OK;
    if (g->dx)
        st = gemm_back(w, g->dx, g->dy, g->dy_stride, g->part, g->count);
    if (st || !b->lora)
        return st;
    if (!b->dropout)
        return adapters_back(w, layer, g, g->x, g->dx);
    st = drop(w, layer, g, w->drop, g->x, false);
    if (!st)
        st = w->backend->ops->mem_zero(w->backend, w->drop_dx,
                                       sizeof(float) * (size_t)b->n_tok * g->part[0].d_in);
    if (!st)
        st = adapters_back(w, layer, g, w->drop, g->dx ? w->drop_dx : NULL);
    return st || !g->dx ? st : drop(w, layer, g, g->dx, w->drop_dx, true);
}

static enum status norm_back(struct backward *w, const float *x, const float *gain,
                             const float *rstd)
{
    struct norm_back_args a = {.dx = w->dh,
                               .dy = w->dn,
                               .x = x,
                               .gain = gain,
                               .rstd = rstd,
                               .n_tok = w->batch.n_tok,
                               .d_model = w->model->config.d_model};
    return w->backend->ops->back->norm_back(w->backend, &a);
}

static enum status mlp_block_back(struct backward *w, uint32_t layer,
                                  const struct forward_keep_layer *k)
{
    const struct model_config *c = &w->model->config;
    const struct model_layer *l = &w->model->layer[layer];
    const struct weight gate_up[2] = {l->gate, l->up};
    struct back_group down = {&l->down, k->down_in, k->ax_down, w->dh,
                              w->wide,  1,          c->d_model, LORA_MODULE_DOWN};
    struct back_group in = {gate_up, k->mlp_in, k->ax_mlp,   w->dy,
                            w->dn,   2,         2 * c->d_ff, LORA_MODULE_GATE};
    struct mlp_back_args mlp = {w->dy,          w->wide,     k->gate, k->up,
                                w->batch.n_tok, 2 * c->d_ff, c->d_ff};
    enum status st = group_back(w, layer, &down);
    if (!st)
        st = w->backend->ops->back->mlp_back(w->backend, &mlp);
    if (!st)
        st = group_back(w, layer, &in);
    if (!st)
        st = norm_back(w, k->mlp_x, l->mlp_norm, k->mlp_rstd);
    return st;
}

static enum status attend_back(struct backward *w, uint32_t layer,
                               const struct forward_keep_layer *k, uint32_t dy_stride)
{
    const struct model_config *c = &w->model->config;
    const struct model_layer *l = &w->model->layer[layer];
    struct attention_back_args attn = {.dy = w->dy,
                                       .dout = w->wide,
                                       .q = k->q,
                                       .out = k->o_in,
                                       .k = k->k,
                                       .v = k->v,
                                       .lse = k->lse,
                                       .seq = w->batch.seq,
                                       .kv_dtype = w->kv.dtype,
                                       .scale = model_attention_scale(c),
                                       .n_seq = w->batch.n_seq,
                                       .dy_stride = dy_stride,
                                       .n_head = c->n_head,
                                       .n_kv_head = c->n_kv_head,
                                       .d_head = c->d_head,
                                       .window = model_config_window(c, layer)};
    struct qkv_back_args turn = {.dy = w->dy,
                                 .qk_in = k->qk_in,
                                 .q_norm = l->q_norm,
                                 .k_norm = l->k_norm,
                                 .norm_eps = c->norm_eps,
                                 .rope = forward_rope(w->forward),
                                 .pos = w->dev_pos,
                                 .n_tok = w->batch.n_tok,
                                 .dy_stride = dy_stride,
                                 .n_head = c->n_head,
                                 .n_kv_head = c->n_kv_head,
                                 .d_head = c->d_head};
    enum status st = w->backend->ops->back->attention_back(w->backend, &attn);
    return st ? st : w->backend->ops->back->qkv_back(w->backend, &turn);
}

/* Below layer 0 are embeddings, which are frozen: its dx and norm are not wanted. */
static enum status attention_block_back(struct backward *w, uint32_t layer,
                                        const struct forward_keep_layer *k)
{
    const struct model_config *c = &w->model->config;
    const struct model_layer *l = &w->model->layer[layer];
    const struct weight qkv[3] = {l->q, l->k, l->v};
    uint32_t stride = (c->n_head + 2 * c->n_kv_head) * c->d_head;
    struct back_group o = {&l->o, k->o_in, k->ax_o, w->dh, w->wide, 1, c->d_model, LORA_MODULE_O};
    struct back_group in = {qkv, k->attn_in, k->ax_qkv,    w->dy, layer ? w->dn : NULL,
                            3,   stride,     LORA_MODULE_Q};
    enum status st = group_back(w, layer, &o);
    if (!st)
        st = attend_back(w, layer, k, stride);
    if (!st)
        st = group_back(w, layer, &in);
    if (!st && layer)
        st = norm_back(w, k->attn_x, l->attn_norm, k->attn_rstd);
    return st;
}

/* ---- the head ---- */

/* Rows r0 .. r0+n-1 of those with a target: logits, their gradient in place, dn. */
static enum status head_tile(struct backward *w, uint32_t r0, uint32_t n)
{
    const struct model *m = w->model;
    size_t d = m->config.d_model;
    struct logits_args l = {w->logits, (char *)w->hidden + r0 * d * dtype_bytes(w->backend->act),
                            m->lm_head, n};
    struct cross_entropy_args e = {w->logits, w->target + r0,   w->weight + r0, w->logprob + r0,
                                   n,         m->config.n_vocab};
    struct gemm_back_args g = {.dx = w->dn + r0 * d,
                               .dy = w->logits,
                               .part = {m->lm_head},
                               .part_count = 1,
                               .n_tok = n,
                               .dx_stride = (uint32_t)d,
                               .dy_stride = m->config.n_vocab};
    enum status st = w->backend->ops->logits(w->backend, &l);
    if (!st)
        st = w->backend->ops->back->cross_entropy(w->backend, &e);
    if (!st && w->trains)
        st = w->backend->ops->back->gemm_back(w->backend, &g);
    return st;
}

/* The final norm, back to dh; the log-probabilities to the host. */
static enum status head_end(struct backward *w)
{
    struct norm_back_args a = {.dx = w->dh,
                               .dy = w->dn,
                               .x = w->h,
                               .gain = w->model->final_norm,
                               .rstd = w->rstd,
                               .rows = w->dev_rows,
                               .n_tok = w->n_out,
                               .d_model = w->model->config.d_model};
    const struct backend_ops *ops = w->backend->ops;
    enum status st = w->trains ? ops->back->norm_back(w->backend, &a) : STATUS_OK;
    if (!st)
        st = ops->mem_read(w->backend, w->host_logprob, w->logprob, w->n_out * sizeof(float));
    for (uint32_t r = 0; !st && r < w->n_out; r++)
        w->batch.logprob[w->rows[r]] = w->host_logprob[r];
    return st;
}

/* ---- the pass ---- */

static bool wants_gradient(const struct backward_batch *b)
{
    bool any = false;
    for (uint32_t i = 0; b->lora && i < b->lora->n_slot; i++)
        any |= b->grad[i] != NULL;
    return any;
}

enum status backward_begin(struct backward *w, const struct backward_batch *b)
{
    const struct model_config *c = &w->model->config;
    w->batch = *b;
    lay_out(w);
    w->forward_done = w->head_done = 0;
    w->back_left = c->n_layer;
    w->trains = wants_gradient(b);
    enum status st = upload(w);
    if (!st)
        st = w->backend->ops->mem_zero(w->backend, w->dh,
                                       sizeof(float) * (size_t)b->n_tok * c->d_model);
    struct forward_batch f = forward_of(w);
    return st ? st : forward_embed(w->forward, &f, w->h);
}

static enum status forward_piece(struct backward *w)
{
    struct forward_batch f = forward_of(w);
    enum status st = forward_layer(w->forward, &f, w->forward_done++, w->h);
    if (!st && w->forward_done == w->model->config.n_layer)
        st = forward_final(w->forward, &f, w->h);
    return st;
}

static enum status head_piece(struct backward *w)
{
    uint32_t rows = backward_head_rows(&w->model->config, &w->fo, &w->opt);
    uint32_t n = MIN(rows, w->n_out - w->head_done);
    enum status st = head_tile(w, w->head_done, n);
    w->head_done += n;
    return !st && w->head_done == w->n_out ? head_end(w) : st;
}

static enum status layer_piece(struct backward *w)
{
    uint32_t layer = --w->back_left;
    const struct forward_keep_layer *k = &w->keep[layer];
    enum status st = STATUS_OK;
    if (w->opt.recompute) {
        struct forward_batch f = forward_of(w);
        w->keep[layer] = w->full;
        st = forward_layer(w->forward, &f, layer, w->input[layer]);
        w->keep[layer] = (struct forward_keep_layer){.attn_x = w->input[layer]};
        k = &w->full;
    }
    if (!st)
        st = mlp_block_back(w, layer, k);
    return st ? st : attention_block_back(w, layer, k);
}

enum status backward_next(struct backward *w, bool *done)
{
    enum status st;
    if (w->forward_done < w->model->config.n_layer)
        st = forward_piece(w);
    else if (w->head_done < w->n_out)
        st = head_piece(w);
    else
        st = layer_piece(w);
    bool head_done = w->forward_done == w->model->config.n_layer && w->head_done == w->n_out;
    *done = w->back_left == 0 || (head_done && (w->n_out == 0 || !w->trains));
    return st;
}

enum status backward_run(struct backward *w, const struct backward_batch *b)
{
    bool done = b->n_tok == 0;
    enum status st = done ? STATUS_OK : backward_begin(w, b);
    while (!st && !done)
        st = backward_next(w, &done);
    return st;
}
