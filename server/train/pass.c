/* See pass.h. Sequences stand in the order of their adapters' first ones, those of an adapter in
 * the order they came: a segment each. Dropout sums the adapters' part of an input's gradient by
 * itself, so sequences with and without it are never in one pass: bits would depend on company. */
#include "server/train/pass.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/engine/backward.h"
#include "server/train/pass_device.h"

#include <string.h>

struct pass_adapter {
    const struct train_lora *lora;
    float *grad;
    uint32_t tokens;
};

struct train_pass {
    struct train_base base;
    struct train_pass_options opt;
    struct forward *forward;
    struct backward *backward;
    struct pass_device *device; /* NULL: the ops read host memory */
    struct train_pass_stats stats;
    /* taken */
    struct train_seq *seq; /* [tokens] */
    uint32_t *seq_adapter; /* [tokens] */
    uint32_t n_seq, n_tok, n_adapter;
    bool drops;                   /* what was taken has dropout */
    struct pass_adapter *adapter; /* [adapters_max] */
    /* as the backward pass reads it: by token, then by sequence or adapter */
    int32_t *ids, *target;
    float *weight, *logprob;
    struct attention_back_seq *place;
    struct dropout_seg *drop;
    uint32_t *place_seq; /* place -> seq */
    struct lora_slot *slot;
    struct lora_layout *layout;
    struct lora_seg *seg;
    float **grad;
};

static struct forward_options forward_for(const struct train_pass_options *o)
{
    return (struct forward_options){.rows_max = o->tokens,
                                    .pos_max = o->tokens,
                                    .rank_sum_max = o->rank_sum_max,
                                    .seqs_max = o->tokens,
                                    .segs_max = o->adapters_max,
                                    .slots_max = o->adapters_max,
                                    .layouts_max = o->adapters_max};
}

/* Recompute where what would be kept is too much. */
static struct backward_options backward_for(const struct train_base *base,
                                            const struct train_pass_options *o)
{
    const struct forward_options fo = forward_for(o);
    struct backward_options bo = {.recompute = o->recompute, .dropout = o->dropout};
    if (o->bytes_max &&
        backward_bytes(base->backend, &base->model->config, &fo, &bo) > o->bytes_max)
        bo.recompute = true;
    return bo;
}

uint64_t train_pass_bytes(const struct train_base *base, const struct train_pass_options *opt)
{
    const struct forward_options fo = forward_for(opt);
    const struct backward_options bo = backward_for(base, opt);
    const struct backend_limits lim = forward_limits(&base->model->config, &fo);
    uint64_t own =
        base->backend->is_device ? base->backend->ops->workspace(base->backend, &lim).bytes : 0;
    return own + forward_bytes(base->backend, &base->model->config, &fo) +
           backward_bytes(base->backend, &base->model->config, &fo, &bo);
}

uint64_t train_pass_adapter_bytes(const struct train_base *base, const struct train_lora *lora)
{
    return base->backend->is_device ? pass_device_bytes(base->backend, &base->model->config, lora)
                                    : 0;
}

/* A pass may be made on one thread and run on another. */
static enum status enter(const struct train_pass *p)
{
    struct backend *b = p->base.backend;
    return b->ops->enter ? b->ops->enter(b) : STATUS_OK;
}

static enum status make_passes(struct train_pass *p, struct errtext *err)
{
    const struct model *m = resident_model(p->base.resident);
    const struct forward_options fo = forward_for(&p->opt);
    const struct backward_options bo = backward_for(&p->base, &p->opt);
    enum status st = enter(p);
    if (!st)
        st = forward_create(&p->forward, m, p->base.backend, &fo, err);
    if (!st)
        st = backward_create(&p->backward, m, p->base.backend, p->forward, &bo, err);
    return st ? st
              : pass_device_create(&p->device, p->base.backend, &m->config, p->opt.adapters_max,
                                   err);
}

static enum status make_room(struct train_pass *p, struct errtext *err)
{
    size_t n = p->opt.tokens, a = p->opt.adapters_max;
    p->seq = mem_try_array(n, sizeof(*p->seq));
    p->seq_adapter = mem_try_array(n, sizeof(*p->seq_adapter));
    p->adapter = mem_try_array(a, sizeof(*p->adapter));
    p->ids = mem_try_array(n, sizeof(*p->ids));
    p->target = mem_try_array(n, sizeof(*p->target));
    p->weight = mem_try_array(n, sizeof(*p->weight));
    p->logprob = mem_try_array(n, sizeof(*p->logprob));
    p->place = mem_try_array(n, sizeof(*p->place));
    p->drop = mem_try_array(n, sizeof(*p->drop));
    p->place_seq = mem_try_array(n, sizeof(*p->place_seq));
    p->slot = mem_try_array(a, sizeof(*p->slot));
    p->layout = mem_try_array(a, sizeof(*p->layout));
    p->seg = mem_try_array(a, sizeof(*p->seg));
    p->grad = mem_try_array(a, sizeof(*p->grad));
    bool ok = p->seq && p->seq_adapter && p->adapter && p->ids && p->target && p->weight &&
              p->logprob && p->place && p->drop && p->place_seq && p->slot && p->layout && p->seg &&
              p->grad;
    return ok ? STATUS_OK
              : err_set(err, STATUS_NO_MEMORY, "training: no memory for passes of %u tokens",
                        p->opt.tokens);
}

enum status train_pass_create(struct train_pass **out, const struct train_base *base,
                              const struct train_pass_options *opt, struct errtext *err)
{
    *out = NULL;
    if (!opt->tokens || opt->tokens > base->model->config.pos_max)
        return err_set(err, STATUS_INVALID,
                       "tokens: found %u, expected 1 to %u, the base's context", opt->tokens,
                       base->model->config.pos_max);
    struct train_pass *p = mem_alloc(sizeof(*p));
    p->base = *base;
    p->opt = *opt;
    enum status st = make_room(p, err);
    if (!st)
        st = make_passes(p, err);
    if (st)
        train_pass_free(p);
    else
        *out = p;
    return st;
}

void train_pass_free(struct train_pass *p)
{
    if (!p)
        return;
    void *host[] = {p->seq,    p->seq_adapter, p->adapter, p->ids,  p->target,
                    p->weight, p->logprob,     p->place,   p->drop, p->place_seq,
                    p->slot,   p->layout,      p->seg,     p->grad};
    pass_device_free(p->device);
    backward_destroy(p->backward);
    forward_destroy(p->forward);
    for (size_t i = 0; i < ARRAY_COUNT(host); i++)
        mem_free(host[i]);
    mem_free(p);
}

/* ---- taking ---- */

static uint32_t find_adapter(const struct train_pass *p, const struct train_lora *lora)
{
    uint32_t i = 0;
    while (i < p->n_adapter && p->adapter[i].lora != lora)
        i++;
    return i;
}

bool train_pass_add(struct train_pass *p, const struct train_seq *s)
{
    uint32_t at = find_adapter(p, s->lora);
    CHECK(s->n > 0 && s->n <= p->opt.tokens && s->lora->rank_sum_max <= p->opt.rank_sum_max);
    CHECK(!(s->dropout > 0) || p->opt.dropout);
    if (p->n_tok + s->n > p->opt.tokens || at == p->opt.adapters_max)
        return false;
    if (p->n_seq && p->drops != (s->dropout > 0))
        return false;
    if (at == p->n_adapter && p->device && !pass_device_take(p->device, s->lora))
        return false;
    p->drops = s->dropout > 0;
    if (at == p->n_adapter)
        p->adapter[p->n_adapter++] = (struct pass_adapter){.lora = s->lora, .grad = s->grad};
    CHECK(p->adapter[at].grad == s->grad);
    p->adapter[at].tokens += s->n;
    p->seq_adapter[p->n_seq] = at;
    p->seq[p->n_seq++] = *s;
    p->n_tok += s->n;
    return true;
}

uint32_t train_pass_tokens(const struct train_pass *p)
{
    return p->n_tok;
}

struct train_pass_stats train_pass_stats(const struct train_pass *p)
{
    return p->stats;
}

void train_pass_fill(struct train_pass *p, const struct seq_source *source, uint32_t n,
                     uint32_t first)
{
    for (bool any = true; any;) {
        any = false;
        for (uint32_t k = 0; k < n; k++) {
            const struct seq_source *from = &source[(first + k) % n];
            struct train_seq s;
            if (!from->next(from->self, &s) || !train_pass_add(p, &s))
                continue;
            from->take(from->self);
            any = true;
        }
    }
}

/* ---- running ---- */

static uint32_t place_sequence(struct train_pass *p, uint32_t k, uint32_t place, uint32_t row)
{
    const struct train_seq *s = &p->seq[k];
    p->place[place] = (struct attention_back_seq){.row = row, .n_row = s->n};
    p->place_seq[place] = k;
    p->drop[place] = (struct dropout_seg){
        .tok_begin = row, .tok_count = s->n, .p = s->dropout, .seed = s->dropout_seed};
    memcpy(p->ids + row, s->ids, s->n * sizeof(*s->ids));
    memcpy(p->target + row, s->target, s->n * sizeof(*s->target));
    memcpy(p->weight + row, s->weight, s->n * sizeof(*s->weight));
    return row + s->n;
}

/* Where the ops find an adapter and add to its gradient. */
static enum status place_adapter(struct train_pass *p, uint32_t a)
{
    const struct pass_adapter *from = &p->adapter[a];
    if (p->device)
        return pass_device_up(p->device, a, from->grad,
                              &(struct pass_device_at){&p->slot[a], &p->layout[a], &p->grad[a]});
    p->layout[a] =
        (struct lora_layout){.entry = from->lora->entry, .blob_bytes = from->lora->blob_bytes};
    p->slot[a] = (struct lora_slot){.blob = from->lora->blob, .layout = a};
    p->grad[a] = from->grad;
    return STATUS_OK;
}

static enum status place_adapters(struct train_pass *p)
{
    enum status st = STATUS_OK;
    for (uint32_t a = 0; a < p->n_adapter && !st; a++)
        st = place_adapter(p, a);
    return st;
}

static enum status fetch_gradients(struct train_pass *p)
{
    enum status st = STATUS_OK;
    for (uint32_t a = 0; p->device && a < p->n_adapter && !st; a++)
        if (p->adapter[a].grad)
            st = pass_device_down(p->device, a, p->adapter[a].grad);
    return st;
}

/* Sequences adapter by adapter, and each adapter's segment. */
static void lay_out(struct train_pass *p)
{
    uint32_t row = 0, place = 0;
    for (uint32_t a = 0; a < p->n_adapter; a++) {
        const struct pass_adapter *from = &p->adapter[a];
        p->seg[a] = (struct lora_seg){.tok_begin = row,
                                      .tok_count = from->tokens,
                                      .part_count = 1,
                                      .part = {{.slot = a, .weight_q16 = 65536}}};
        for (uint32_t k = 0; k < p->n_seq; k++) {
            if (p->seq_adapter[k] == a)
                row = place_sequence(p, k, place++, row);
        }
    }
    CHECK(row == p->n_tok && place == p->n_seq);
}

static void count_pass(struct train_pass *p)
{
    p->stats.passes++;
    p->stats.tokens += p->n_tok;
    p->stats.room += p->opt.tokens;
    p->stats.sequences += p->n_seq;
}

static enum status run_pieces(struct train_pass *p, const struct backward_batch *b)
{
    bool done = b->n_tok == 0;
    enum status st = done ? STATUS_OK : backward_begin(p->backward, b);
    while (!st && !done) {
        if (p->opt.stop && atomic_load_explicit(p->opt.stop, memory_order_relaxed))
            return STATUS_CANCELLED;
        st = backward_next(p->backward, &done);
    }
    return st;
}

enum status train_pass_run(struct train_pass *p)
{
    lay_out(p);
    const struct lora_table table = {.slot = p->slot,
                                     .layout = p->layout,
                                     .n_slot = p->n_adapter,
                                     .n_layout = p->n_adapter,
                                     .n_layer = p->base.model->config.n_layer,
                                     .dtype = p->device ? DTYPE_BF16 : DTYPE_F32};
    const struct backward_batch b = {.ids = p->ids,
                                     .seq = p->place,
                                     .n_tok = p->n_tok,
                                     .n_seq = p->n_seq,
                                     .lora = &table,
                                     .seg = p->seg,
                                     .n_seg = p->n_adapter,
                                     .dropout = p->drops ? p->drop : NULL,
                                     .n_dropout = p->n_seq,
                                     .target = p->target,
                                     .weight = p->weight,
                                     .grad = p->grad,
                                     .logprob = p->logprob};
    enum status st = enter(p);
    if (!st)
        st = place_adapters(p);
    if (!st)
        st = run_pieces(p, &b);
    if (!st)
        st = fetch_gradients(p);
    for (uint32_t i = 0; i < p->n_seq && !st; i++) {
        const struct train_seq *s = &p->seq[p->place_seq[i]];
        memcpy(s->logprob, p->logprob + p->place[i].row, s->n * sizeof(*s->logprob));
    }
    count_pass(p);
    if (p->device)
        pass_device_clear(p->device);
    p->n_tok = p->n_seq = p->n_adapter = 0;
    return st;
}
