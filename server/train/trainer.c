/* See trainer.h. A step's rows are cut into passes of at most `tokens` tokens; gradients add up
 * over the passes as backward.h promises, so where the cuts fall changes no bit. */
#include "server/train/trainer.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/philox.h"
#include "server/train/trainer_impl.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define ORDER_DRAW 0x6f726472 /* of drawing an order */

/* ---- life ---- */

static uint32_t row_length(const struct trainer *t, uint32_t row)
{
    return (uint32_t)(t->rows->begin[row + 1] - t->rows->begin[row]);
}

static enum status check_options(const struct trainer *t, struct errtext *err)
{
    const struct train_options *o = &t->opt;
    if (!o->epochs || !o->batch || !o->tokens)
        return err_set(err, STATUS_INVALID, "epochs, batch and tokens: expected 1 or more each");
    if (!(o->dropout >= 0 && o->dropout < 1))
        return err_set(err, STATUS_INVALID, "dropout: found %g, expected 0 to below 1", o->dropout);
    if (o->tokens > t->base.model->config.pos_max)
        return err_set(err, STATUS_INVALID, "tokens: found %u, the base's context is %u", o->tokens,
                       t->base.model->config.pos_max);
    uint64_t learned = 0;
    for (uint32_t r = 0; r < t->rows->n; r++) {
        uint32_t n = row_length(t, r);
        if (n > o->tokens)
            return err_set(err, STATUS_INVALID, "row %u: %u tokens, at most %u (tokens)", r, n,
                           o->tokens);
        learned += n > 1 && (!o->completion_only || t->rows->prompt[r] < n);
    }
    if (!learned)
        return err_set(err, STATUS_INVALID, "no row has a token to learn");
    uint64_t steps = (uint64_t)t->per_epoch * o->epochs;
    return steps <= TRAIN_STEPS_MAX
               ? STATUS_OK
               : err_set(err, STATUS_INVALID,
                         "epochs: found %u, that is %" PRIu64 " steps, at most %u", o->epochs,
                         steps, TRAIN_STEPS_MAX);
}

static enum status make_passes(struct trainer *t, struct errtext *err)
{
    const struct model *m = resident_model(t->base.resident);
    uint32_t n = t->opt.tokens;
    const struct forward_options fo = {.rows_max = n,
                                       .pos_max = n,
                                       .rank_sum_max = t->lora->rank_sum_max,
                                       .seqs_max = n,
                                       .slots_max = 1,
                                       .layouts_max = 1};
    const uint64_t most = t->opt.keep_max;
    struct backward_options bo = {.recompute = t->opt.recompute, .dropout = t->opt.dropout > 0};
    if (most && backward_bytes(t->base.backend, &m->config, &fo, &bo) > most)
        bo.recompute = true;
    enum status st = forward_create(&t->forward, m, t->base.backend, &fo, err);
    return st ? st : backward_create(&t->backward, m, t->base.backend, t->forward, &bo, err);
}

static enum status make_room(struct trainer *t, struct errtext *err)
{
    size_t n = t->opt.tokens, w = t->lora->n;
    t->order = mem_try_array(t->rows->n, sizeof(*t->order));
    t->loss = mem_try_array(t->opt.optim.steps, sizeof(*t->loss));
    t->grad = mem_try_array(w, sizeof(*t->grad));
    t->m = mem_try_array(w, sizeof(*t->m));
    t->v = mem_try_array(w, sizeof(*t->v));
    t->ids = mem_try_array(n, sizeof(*t->ids));
    t->target = mem_try_array(n, sizeof(*t->target));
    t->weight = mem_try_array(n, sizeof(*t->weight));
    t->logprob = mem_try_array(n, sizeof(*t->logprob));
    t->seq = mem_try_array(n, sizeof(*t->seq));
    t->drop = mem_try_array(n, sizeof(*t->drop));
    bool ok = t->order && t->loss && t->grad && t->m && t->v && t->ids && t->target && t->weight &&
              t->logprob && t->seq && t->drop;
    return ok ? STATUS_OK
              : err_set(err, STATUS_NO_MEMORY, "no memory to train %" PRIu64 " weights",
                        t->lora->weights);
}

enum status trainer_create(struct trainer **out, const struct train_base *base,
                           struct train_lora *lora, const struct training_rows *rows,
                           const struct train_options *opt, struct errtext *err)
{
    struct trainer *t = mem_alloc(sizeof(*t));
    *out = NULL;
    *t = (struct trainer){
        .base = *base, .lora = lora, .rows = rows, .opt = *opt, .epoch = UINT32_MAX};
    t->per_epoch = opt->batch ? (rows->n + opt->batch - 1) / opt->batch : 0;
    enum status st = check_options(t, err);
    t->opt.optim.steps = t->per_epoch * opt->epochs;
    if (!st)
        st = make_room(t, err);
    if (!st)
        st = make_passes(t, err);
    if (st)
        trainer_free(t);
    else
        *out = t;
    return st;
}

void trainer_free(struct trainer *t)
{
    if (!t)
        return;
    backward_destroy(t->backward);
    forward_destroy(t->forward);
    mem_free(t->order);
    mem_free(t->loss);
    mem_free(t->grad);
    mem_free(t->m);
    mem_free(t->v);
    mem_free(t->ids);
    mem_free(t->target);
    mem_free(t->weight);
    mem_free(t->logprob);
    mem_free(t->seq);
    mem_free(t->drop);
    mem_free(t);
}

uint32_t trainer_steps(const struct trainer *t)
{
    return t->opt.optim.steps;
}

uint32_t trainer_done(const struct trainer *t)
{
    return t->done;
}

const float *trainer_losses(const struct trainer *t)
{
    return t->loss;
}

/* ---- rows of a step ---- */

/* Fisher and Yates' shuffle by draws of (seed, epoch, place). */
static void draw_order(struct trainer *t, uint32_t epoch)
{
    if (t->epoch == epoch)
        return;
    t->epoch = epoch;
    for (uint32_t i = 0; i < t->rows->n; i++)
        t->order[i] = i;
    for (uint32_t i = t->rows->n - 1; t->opt.shuffle && i > 0; i--) {
        uint32_t out[4];
        const uint32_t ctr[4] = {i, epoch, ORDER_DRAW, 0};
        philox4x32(out, ctr, t->opt.seed);
        uint32_t k = (uint32_t)((uint64_t)out[0] * (i + 1) >> 32), kept = t->order[i];
        t->order[i] = t->order[k];
        t->order[k] = kept;
    }
}

static bool is_target(const struct trainer *t, uint32_t row, uint32_t at)
{
    return at > 0 && (!t->opt.completion_only || at >= t->rows->prompt[row]);
}

static uint64_t count_targets(const struct trainer *t, const uint32_t *row, uint32_t n)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < row_length(t, row[i]); k++)
            count += is_target(t, row[i], k);
    }
    return count;
}

static void add_row(struct trainer *t, uint32_t row, float weight)
{
    const int32_t *ids = t->rows->ids + t->rows->begin[row];
    uint32_t n = row_length(t, row);
    /* a row's mask follows from the seed, the step and the row, wherever it stands */
    t->drop[t->n_seq] = (struct dropout_seg){.tok_begin = t->n_tok,
                                             .tok_count = n,
                                             .p = (float)t->opt.dropout,
                                             .seed = t->opt.seed * 0x9e3779b97f4a7c15u +
                                                     ((uint64_t)t->done << 32) + row};
    t->seq[t->n_seq++] = (struct attention_back_seq){.row = t->n_tok, .n_row = n};
    for (uint32_t i = 0; i < n; i++, t->n_tok++) {
        bool learned = i + 1 < n && is_target(t, row, i + 1);
        t->ids[t->n_tok] = ids[i];
        t->target[t->n_tok] = learned ? ids[i + 1] : -1;
        t->weight[t->n_tok] = learned ? weight : 0;
    }
}

static enum status run_pass(struct trainer *t, double *loss)
{
    const struct lora_layout layout = {.entry = t->lora->entry, .blob_bytes = t->lora->blob_bytes};
    const struct lora_slot slot = {.blob = t->lora->blob};
    const struct lora_table table = {.slot = &slot,
                                     .layout = &layout,
                                     .n_slot = 1,
                                     .n_layout = 1,
                                     .n_layer = t->base.model->config.n_layer,
                                     .dtype = DTYPE_F32};
    const struct lora_seg seg = {
        .tok_count = t->n_tok, .part_count = 1, .part = {{.slot = 0, .weight_q16 = 65536}}};
    float *grad[1] = {t->grad};
    const struct backward_batch b = {.ids = t->ids,
                                     .seq = t->seq,
                                     .n_tok = t->n_tok,
                                     .n_seq = t->n_seq,
                                     .lora = &table,
                                     .seg = &seg,
                                     .n_seg = 1,
                                     .dropout = t->opt.dropout > 0 ? t->drop : NULL,
                                     .n_dropout = t->n_seq,
                                     .target = t->target,
                                     .weight = t->weight,
                                     .grad = grad,
                                     .logprob = t->logprob};
    enum status st = backward_run(t->backward, &b);
    for (uint32_t i = 0; i < t->n_tok && !st; i++)
        *loss -= t->target[i] < 0 ? 0 : (double)t->logprob[i];
    t->n_tok = t->n_seq = 0;
    return st;
}

enum status trainer_step(struct trainer *t, struct train_step *out, struct errtext *err)
{
    uint32_t epoch = t->done / t->per_epoch, first = t->done % t->per_epoch * t->opt.batch;
    CHECK(t->done < t->opt.optim.steps);
    draw_order(t, epoch);
    const uint32_t *row = t->order + first;
    uint32_t n = MIN(t->opt.batch, t->rows->n - first);
    uint64_t targets = count_targets(t, row, n);
    double loss = 0;
    enum status st = STATUS_OK;
    *out = (struct train_step){.step = t->done, .lr = optim_lr(&t->opt.optim, t->done)};
    memset(t->grad, 0, t->lora->n * sizeof(*t->grad));
    for (uint32_t i = 0; i < n && !st; i++) {
        uint32_t len = row_length(t, row[i]);
        if (t->n_tok + len > t->opt.tokens)
            st = run_pass(t, &loss);
        if (len > 1)
            add_row(t, row[i], (float)(1.0 / (double)MAX(targets, 1u)));
        out->tokens += len;
    }
    if (!st && t->n_tok)
        st = run_pass(t, &loss);
    if (st)
        return err_set(err, st, "step %u: the backend failed", t->done);
    out->loss = targets ? (float)(loss / (double)targets) : 0;
    out->norm = optim_step(&t->opt.optim, t->done, t->lora->blob, t->m, t->v, t->grad, t->lora->n);
    if (!isfinite(out->loss) || !isfinite(out->norm))
        return err_set(err, STATUS_CORRUPT,
                       "step %u: loss %g, gradient's norm %g: expected numbers; a lower learning "
                       "rate or clipping keeps them so",
                       t->done, (double)out->loss, out->norm);
    t->loss[t->done++] = out->loss;
    return STATUS_OK;
}
