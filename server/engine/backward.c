/* The backward pass as a straight list of launcher calls. dh is the gradient of the residual
 * stream, updated in place from the last layer to the first; wide holds the gradient of a block's
 * inner activation, dy that of a gemm group's raw products, dn that of its normed input.
 *
 * Keys and values need no cache that lasts: attention reads them in the layer that wrote them, so
 * all layers share one layer's pages, and the backward pass reads the kept ones. */
#include "server/engine/backward.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/engine/kv.h"

#include <string.h>

#define HEAD_ROWS 128

struct backward {
    const struct model *model;
    struct backend *backend;
    struct forward *forward;
    struct forward_options fo;
    struct backward_options opt;
    struct forward_keep_layer *keep; /* [n_layer] */
    struct forward_keep_layer full;  /* with recompute: of the layer under way */
    float **input;                   /* with recompute: [n_layer] the layers' inputs */
    struct kv_cache kv;
    uint32_t *seq, *pos, *page_table, *rows; /* host */
    uint32_t page_stride, n_out;
    /* in the backend's memory */
    void *hidden;
    float *h, *rstd, *logits, *dh, *dn, *dy, *wide, *ds, *weight, *logprob;
    int32_t *target;
    uint32_t *dev_rows, *dev_pos;
    float *host_weight, *host_logprob; /* [rows_max] of the rows with a target */
    int32_t *host_target;
    struct backward_batch batch;
    /* what comes next: forward layers, rows of the head, layers back */
    uint32_t forward_done, head_done, back_left;
};

struct back_buffer {
    void **at;
    uint64_t bytes;
};

#define KEEP_BUFFERS 19
#define OWN_BUFFERS  15

static uint32_t head_rows_of(const struct forward_options *fo, const struct backward_options *opt)
{
    uint32_t rows = opt->head_rows ? opt->head_rows : HEAD_ROWS;
    return MIN(rows, fo->logits_rows_max ? MIN(fo->logits_rows_max, fo->rows_max) : fo->rows_max);
}

static uint32_t y_width_of(const struct model_config *c)
{
    return MAX((c->n_head + 2 * c->n_kv_head) * c->d_head, 2 * c->d_ff);
}

/* What one layer keeps; lists no buffer of 0 bytes. */
static uint32_t list_keep(struct forward_keep_layer *k, const struct backend *b,
                          const struct model_config *c, const struct forward_options *fo,
                          struct back_buffer list[KEEP_BUFFERS])
{
    uint64_t rows = fo->rows_max, act = dtype_bytes(b->act) * rows, f32 = sizeof(float) * rows;
    uint64_t heads = (uint64_t)c->n_head * c->d_head, kv = (uint64_t)c->n_kv_head * c->d_head;
    const struct back_buffer all[KEEP_BUFFERS] = {
        {(void **)&k->attn_x, f32 * c->d_model},
        {(void **)&k->mlp_x, f32 * c->d_model},
        {(void **)&k->attn_rstd, f32},
        {(void **)&k->mlp_rstd, f32},
        {&k->attn_in, act * c->d_model},
        {&k->mlp_in, act * c->d_model},
        {&k->q, act * heads},
        {(void **)&k->qk_in, c->qk_norm ? f32 * (heads + kv) : 0},
        {(void **)&k->k, f32 * kv},
        {(void **)&k->v, f32 * kv},
        {(void **)&k->lse, f32 * c->n_head},
        {&k->o_in, act * heads},
        {(void **)&k->gate, f32 * c->d_ff},
        {(void **)&k->up, f32 * c->d_ff},
        {&k->down_in, act * c->d_ff},
        {(void **)&k->ax_qkv, f32 * fo->rank_sum_max},
        {(void **)&k->ax_o, f32 * fo->rank_sum_max},
        {(void **)&k->ax_mlp, f32 * fo->rank_sum_max},
        {(void **)&k->ax_down, f32 * fo->rank_sum_max},
    };
    uint32_t n = 0;
    for (uint32_t i = 0; i < KEEP_BUFFERS; i++)
        if (all[i].bytes)
            list[n++] = all[i];
    return n;
}

static uint32_t pages_of(const struct forward_options *fo)
{
    return fo->rows_max / KV_PAGE_TOK + (fo->seqs_max ? fo->seqs_max : fo->rows_max);
}

static struct kv_cache cache_of(const struct model_config *c, enum dtype dtype)
{
    struct kv_cache kv = {.dtype = dtype, .page_tok = KV_PAGE_TOK, .stride_tok = c->d_head};
    kv.stride_head = kv.stride_tok * KV_PAGE_TOK;
    kv.stride_kv = kv.stride_head * c->n_kv_head;
    kv.stride_page = 2 * kv.stride_kv;
    return kv;
}

static void list_own(struct backward *w, const struct backend *b, const struct model_config *c,
                     const struct forward_options *fo, const struct backward_options *opt,
                     struct back_buffer list[OWN_BUFFERS])
{
    uint64_t rows = fo->rows_max, f32 = sizeof(float), head = head_rows_of(fo, opt);
    uint64_t inner = MAX(c->d_ff, c->n_head * c->d_head);
    struct kv_cache kv = cache_of(c, DTYPE_F32);
    const struct back_buffer all[OWN_BUFFERS] = {
        {&w->hidden, dtype_bytes(b->act) * rows * c->d_model},
        {(void **)&w->h, f32 * rows * c->d_model},
        {(void **)&w->rstd, f32 * rows},
        {(void **)&w->logits, f32 * head * c->n_vocab},
        {(void **)&w->dh, f32 * rows * c->d_model},
        {(void **)&w->dn, f32 * rows * c->d_model},
        {(void **)&w->dy, f32 * rows * y_width_of(c)},
        {(void **)&w->wide, f32 * rows * inner},
        {(void **)&w->ds, f32 * rows * MAX(fo->rank_sum_max, 1u)},
        {(void **)&w->weight, f32 * rows},
        {(void **)&w->logprob, f32 * rows},
        {(void **)&w->target, f32 * rows},
        {(void **)&w->dev_rows, f32 * rows},
        {(void **)&w->dev_pos, f32 * rows},
        {&w->kv.base, f32 * kv.stride_page * pages_of(fo)},
    };
    memcpy(list, all, sizeof(all));
}

uint64_t backward_bytes(const struct backend *backend, const struct model_config *c,
                        const struct forward_options *fo, const struct backward_options *opt)
{
    struct backward blank;
    struct back_buffer own[OWN_BUFFERS], keep[KEEP_BUFFERS];
    uint64_t sum = 0, layer = 0;
    list_own(&blank, backend, c, fo, opt, own);
    for (uint32_t i = 0; i < OWN_BUFFERS; i++)
        sum += own[i].bytes;
    for (uint32_t i = list_keep(&blank.full, backend, c, fo, keep); i-- > 0;)
        layer += keep[i].bytes;
    if (!opt->recompute)
        return sum + layer * c->n_layer;
    return sum + layer + sizeof(float) * (uint64_t)c->n_layer * fo->rows_max * c->d_model;
}

static bool take(struct backward *w, const struct back_buffer *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        *list[i].at = w->backend->ops->mem_alloc(w->backend, list[i].bytes);
        if (!*list[i].at)
            return false;
    }
    return true;
}

static void give(struct backward *w, const struct back_buffer *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        w->backend->ops->mem_free(w->backend, *list[i].at, list[i].bytes);
}

static bool take_all(struct backward *w)
{
    const struct model_config *c = &w->model->config;
    struct back_buffer own[OWN_BUFFERS], keep[KEEP_BUFFERS];
    list_own(w, w->backend, c, &w->fo, &w->opt, own);
    bool ok = take(w, own, OWN_BUFFERS);
    if (ok && w->opt.recompute)
        ok = take(w, keep, list_keep(&w->full, w->backend, c, &w->fo, keep));
    for (uint32_t l = 0; ok && l < c->n_layer; l++) {
        struct back_buffer in = {(void **)&w->input[l],
                                 sizeof(float) * w->fo.rows_max * c->d_model};
        if (w->opt.recompute)
            ok = take(w, &in, 1);
        else
            ok = take(w, keep, list_keep(&w->keep[l], w->backend, c, &w->fo, keep));
        if (w->opt.recompute)
            w->keep[l].attn_x = w->input[l];
    }
    return ok;
}

enum status backward_create(struct backward **out, const struct model *model,
                            struct backend *backend, struct forward *forward,
                            const struct backward_options *opt, struct errtext *err)
{
    const struct model_config *c = &model->config;
    *out = NULL;
    if (!backend->ops->back)
        return err_param(err, STATUS_UNSUPPORTED, "backend",
                         "backend %s serves adapters and does not train them; train on backend cpu",
                         backend->name);
    struct backward *w = mem_alloc(sizeof(*w));
    w->model = model;
    w->backend = backend;
    w->forward = forward;
    w->fo = *forward_made_with(forward);
    w->opt = *opt;
    uint32_t rows = w->fo.rows_max, seqs = w->fo.seqs_max ? w->fo.seqs_max : rows;
    w->keep = mem_array(c->n_layer, sizeof(*w->keep));
    w->input = mem_array(c->n_layer, sizeof(*w->input));
    w->page_stride = (w->fo.pos_max + KV_PAGE_TOK - 1) / KV_PAGE_TOK;
    w->seq = mem_array(rows, sizeof(*w->seq));
    w->pos = mem_array(rows, sizeof(*w->pos));
    w->rows = mem_array(rows, sizeof(*w->rows));
    w->page_table = mem_array((size_t)seqs * w->page_stride, sizeof(*w->page_table));
    w->host_weight = mem_array(rows, sizeof(*w->host_weight));
    w->host_logprob = mem_array(rows, sizeof(*w->host_logprob));
    w->host_target = mem_array(rows, sizeof(*w->host_target));
    w->kv = cache_of(c, model->dtype);
    if (!take_all(w)) {
        backward_destroy(w);
        return err_set(
            err, STATUS_NO_MEMORY, "training: no memory for %llu bytes of activations",
            (unsigned long long)backward_bytes(backend, c, forward_made_with(forward), opt));
    }
    *out = w;
    return STATUS_OK;
}

void backward_destroy(struct backward *w)
{
    struct back_buffer own[OWN_BUFFERS], keep[KEEP_BUFFERS];
    if (!w)
        return;
    const struct model_config *c = &w->model->config;
    list_own(w, w->backend, c, &w->fo, &w->opt, own);
    give(w, own, OWN_BUFFERS);
    if (w->opt.recompute)
        give(w, keep, list_keep(&w->full, w->backend, c, &w->fo, keep));
    for (uint32_t l = 0; l < c->n_layer; l++) {
        struct back_buffer in = {(void **)&w->input[l],
                                 sizeof(float) * w->fo.rows_max * c->d_model};
        if (w->opt.recompute)
            give(w, &in, 1);
        else
            give(w, keep, list_keep(&w->keep[l], w->backend, c, &w->fo, keep));
    }
    void *host[] = {w->keep,       w->input,       w->seq,          w->pos,        w->rows,
                    w->page_table, w->host_weight, w->host_logprob, w->host_target};
    for (size_t i = 0; i < ARRAY_COUNT(host); i++)
        mem_free(host[i]);
    mem_free(w);
}

/* ---- the batch ---- */

/* Rows, positions and pages, sequence by sequence; the rows that have a target. */
static void lay_out(struct backward *w)
{
    const struct backward_batch *b = &w->batch;
    uint32_t page = 0, t = 0;
    CHECK(b->n_tok <= w->fo.rows_max);
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
    CHECK(t == b->n_tok && page <= pages_of(&w->fo));
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

static enum status group_back(struct backward *w, uint32_t layer, const struct back_group *g)
{
    const struct backward_batch *b = &w->batch;
    enum status st = STATUS_OK;
    if (g->dx)
        st = gemm_back(w, g->dx, g->dy, g->dy_stride, g->part, g->count);
    if (st || !b->lora)
        return st;
    struct lora_back_args a = {.lora = {b->lora, b->seg, b->n_seg, w->ds, w->fo.rank_sum_max, NULL},
                               .dy = g->dy,
                               .x = g->x,
                               .ax = g->ax,
                               .dx = g->dx,
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
    if (!st)
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
    enum status st = ops->back->norm_back(w->backend, &a);
    if (!st)
        st = ops->mem_read(w->backend, w->host_logprob, w->logprob, w->n_out * sizeof(float));
    for (uint32_t r = 0; !st && r < w->n_out; r++)
        w->batch.logprob[w->rows[r]] = w->host_logprob[r];
    return st;
}

/* ---- the pass ---- */

enum status backward_begin(struct backward *w, const struct backward_batch *b)
{
    const struct model_config *c = &w->model->config;
    w->batch = *b;
    lay_out(w);
    w->forward_done = w->head_done = 0;
    w->back_left = c->n_layer;
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
    uint32_t n = MIN(head_rows_of(&w->fo, &w->opt), w->n_out - w->head_done);
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
    *done = w->back_left == 0 || (w->n_out == 0 && w->forward_done == w->model->config.n_layer);
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
