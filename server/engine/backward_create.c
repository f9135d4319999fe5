/* What a backward pass holds: the layers' kept activations, or with recompute their inputs and one
 * layer's, and scratch of its own; listed once, for counting, taking and giving back. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/engine/backward_impl.h"

#include <string.h>

/* Rows of the head's tile: the more, the less often its matrix is read. */
#define HEAD_BYTES    ((uint64_t)128 << 20) /* of logits */
#define HEAD_ROWS_MIN 128u
#define HEAD_ROWS_MAX 512u

struct back_buffer {
    void **at;
    uint64_t bytes;
};

#define KEEP_BUFFERS 19
#define OWN_BUFFERS  17

uint32_t backward_head_rows(const struct model_config *c, const struct forward_options *fo,
                            const struct backward_options *opt)
{
    uint64_t fit = HEAD_BYTES / (sizeof(float) * c->n_vocab);
    uint32_t most = fit < HEAD_ROWS_MAX ? (uint32_t)fit : HEAD_ROWS_MAX;
    uint32_t rows = opt->head_rows ? opt->head_rows : MAX(most, HEAD_ROWS_MIN);
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

uint32_t backward_pages(const struct forward_options *fo)
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
    uint64_t rows = fo->rows_max, f32 = sizeof(float), head = backward_head_rows(c, fo, opt);
    uint64_t inner = MAX(MAX(c->d_ff, c->n_head * c->d_head), c->d_model);
    struct kv_cache kv = cache_of(c, DTYPE_F32);
    const struct back_buffer all[OWN_BUFFERS] = {
        {&w->hidden, dtype_bytes(b->act) * rows * c->d_model},
        {(void **)&w->h, f32 * rows * c->d_model},
        {&w->drop, opt->dropout ? dtype_bytes(b->act) * rows * inner : 0},
        {(void **)&w->drop_dx, opt->dropout ? f32 * rows * inner : 0},
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
        {&w->kv.base, f32 * kv.stride_page * backward_pages(fo)},
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
        if (!list[i].bytes)
            continue;
        *list[i].at = w->backend->ops->mem_alloc(w->backend, list[i].bytes);
        if (!*list[i].at)
            return false;
    }
    return true;
}

static void give(struct backward *w, const struct back_buffer *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (list[i].bytes)
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
