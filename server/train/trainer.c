/* See trainer.h. Gradients add up over the passes as backward.h promises, so where a step's rows
 * are cut into passes changes no bit. */
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

static enum status check_options(const struct trainer *t, struct errtext *err)
{
    const struct train_options *o = &t->opt;
    CHECK(o->mask == t->rows->mask);
    if (!o->epochs || !o->batch || !o->tokens)
        return err_set(err, STATUS_INVALID, "epochs, batch and tokens: expected 1 or more each");
    if (!(o->dropout >= 0 && o->dropout < 1))
        return err_set(err, STATUS_INVALID, "dropout: found %g, expected 0 to below 1", o->dropout);
    for (uint32_t r = 0; r < t->rows->n; r++) {
        uint32_t n = training_rows_length(t->rows, r);
        if (n > o->tokens)
            return err_set(err, STATUS_INVALID, "row %u: %u tokens, at most %u (tokens)", r, n,
                           o->tokens);
    }
    if (t->rows->idle == t->rows->n)
        return err_set(err, STATUS_INVALID, "no row of %u has a token to learn (mask %s)",
                       t->rows->n, row_mask_name(t->rows->mask));
    uint64_t steps = (uint64_t)t->per_epoch * o->epochs;
    return steps <= TRAIN_STEPS_MAX
               ? STATUS_OK
               : err_set(err, STATUS_INVALID,
                         "epochs: found %u, that is %" PRIu64 " steps, at most %u", o->epochs,
                         steps, TRAIN_STEPS_MAX);
}

static enum status make_room(struct trainer *t, struct errtext *err)
{
    size_t n = t->opt.tokens, w = t->lora->n;
    t->order = mem_try_array(t->rows->n, sizeof(*t->order));
    t->loss = mem_try_array(t->opt.optim.steps, sizeof(*t->loss));
    t->grad = mem_try_array(w, sizeof(*t->grad));
    t->m = mem_try_array(w, sizeof(*t->m));
    t->v = mem_try_array(w, sizeof(*t->v));
    t->target = mem_try_array(n, sizeof(*t->target));
    t->weight = mem_try_array(n, sizeof(*t->weight));
    t->logprob = mem_try_array(n, sizeof(*t->logprob));
    bool ok =
        t->order && t->loss && t->grad && t->m && t->v && t->target && t->weight && t->logprob;
    return ok ? STATUS_OK
              : err_set(err, STATUS_NO_MEMORY, "no memory to train %" PRIu64 " weights",
                        t->lora->weights);
}

uint32_t train_warmup(const struct train_options *o, uint32_t rows, uint32_t percent)
{
    uint64_t steps = (uint64_t)train_epoch_steps(rows, o->batch) * o->epochs;
    uint64_t part = (steps * percent + 99) / 100;
    return steps ? (uint32_t)MIN(part, steps - 1) : 0;
}

enum status trainer_create(struct trainer **out, struct train_lora *lora,
                           const struct training_rows *rows, const struct train_options *opt,
                           struct errtext *err)
{
    struct trainer *t = mem_alloc(sizeof(*t));
    *out = NULL;
    *t = (struct trainer){.lora = lora, .rows = rows, .opt = *opt, .epoch = UINT32_MAX};
    t->per_epoch = train_epoch_steps(rows->n, opt->batch);
    enum status st = check_options(t, err);
    t->opt.optim.steps = t->per_epoch * opt->epochs;
    if (!st)
        st = make_room(t, err);
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
    mem_free(t->order);
    mem_free(t->loss);
    mem_free(t->grad);
    mem_free(t->m);
    mem_free(t->v);
    mem_free(t->target);
    mem_free(t->weight);
    mem_free(t->logprob);
    mem_free(t->eval.made);
    mem_free(t->eval.kept);
    mem_free(t);
}

uint64_t trainer_bytes(size_t n)
{
    return 3 * (uint64_t)n * sizeof(float);
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

uint64_t trainer_targets(const struct training_rows *rows, uint32_t row)
{
    uint64_t count = 0;
    for (uint32_t k = 0; k < training_rows_length(rows, row); k++)
        count += training_rows_is_target(rows, row, k);
    return count;
}

bool trainer_place(struct trainer *t, const struct training_rows *rows, uint32_t row, float weight,
                   struct train_seq *out)
{
    uint32_t n = training_rows_length(rows, row), at = t->used;
    const int32_t *ids = rows->ids + rows->begin[row];
    if (at + n > t->opt.tokens)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        bool learned = training_rows_is_target(rows, row, i + 1);
        t->target[at + i] = learned ? ids[i + 1] : -1;
        t->weight[at + i] = learned ? weight : 0;
    }
    *out = (struct train_seq){.lora = t->lora,
                              .ids = ids,
                              .target = t->target + at,
                              .weight = t->weight + at,
                              .logprob = t->logprob + at,
                              .n = n};
    return true;
}

void trainer_add_losses(struct trainer *t, double *sum)
{
    for (uint32_t i = 0; i < t->used; i++)
        *sum -= t->target[i] < 0 ? 0 : (double)t->logprob[i];
    t->used = 0;
}

static void open_step(struct trainer *t)
{
    uint32_t first = t->done % t->per_epoch * t->opt.batch;
    CHECK(t->done < t->opt.optim.steps);
    draw_order(t, t->done / t->per_epoch);
    t->open = true;
    t->row = t->order + first;
    t->n_row = MIN(t->opt.batch, t->rows->n - first);
    t->taken = t->used = 0;
    t->targets = t->tokens = 0;
    for (uint32_t i = 0; i < t->n_row; i++)
        t->targets += trainer_targets(t->rows, t->row[i]);
    t->sum = 0;
    memset(t->grad, 0, t->lora->n * sizeof(*t->grad));
}

/* Rows of one token teach nothing; they are read past. */
static bool has_row(struct trainer *t)
{
    if (!t->open)
        open_step(t);
    while (t->taken < t->n_row && training_rows_length(t->rows, t->row[t->taken]) < 2)
        t->tokens += training_rows_length(t->rows, t->row[t->taken++]);
    return t->taken < t->n_row;
}

static bool next_sequence(void *self, struct train_seq *out)
{
    struct trainer *t = self;
    if (t->eval.under_way)
        return evaluating_next(t, out);
    if (trainer_ended(t) || !has_row(t))
        return false;
    uint32_t row = t->row[t->taken];
    if (!trainer_place(t, t->rows, row, (float)(1.0 / (double)MAX(t->targets, 1u)), out))
        return false;
    out->grad = t->grad;
    out->dropout = (float)t->opt.dropout;
    /* a row's mask follows from the seed, the step and the row, wherever it stands */
    out->dropout_seed = t->opt.seed * 0x9e3779b97f4a7c15u + ((uint64_t)t->done << 32) + row;
    return true;
}

static void take_sequence(void *self)
{
    struct trainer *t = self;
    if (t->eval.under_way) {
        evaluating_take(t);
        return;
    }
    uint32_t n = training_rows_length(t->rows, t->row[t->taken++]);
    t->used += n;
    t->tokens += n;
}

struct seq_source trainer_source(struct trainer *t)
{
    return (struct seq_source){t, next_sequence, take_sequence};
}

static void begin_anew(struct trainer *t)
{
    t->open = false;
    t->used = t->eval.row = 0;
    t->eval.sum = 0;
}

static void has_run(struct trainer *t)
{
    if (t->eval.under_way) {
        evaluating_ran(t);
        return;
    }
    trainer_add_losses(t, &t->sum);
}

/* All of the step's sequences have run. */
static bool is_complete(struct trainer *t)
{
    return t->open && !has_row(t) && t->used == 0;
}

static enum status finish_step(struct trainer *t, struct train_step *out, struct errtext *err)
{
    CHECK(is_complete(t));
    t->open = false;
    *out = (struct train_step){.step = t->done,
                               .loss = t->targets ? (float)(t->sum / (double)t->targets) : 0,
                               .lr = optim_lr(&t->opt.optim, t->done),
                               .tokens = t->tokens};
    out->norm = isfinite(out->loss) ? optim_step(&t->opt.optim, t->done, t->lora->blob, t->m, t->v,
                                                 t->grad, t->lora->n)
                                    : NAN;
    if (!isfinite(out->loss) || !isfinite(out->norm))
        return err_set(err, STATUS_CORRUPT,
                       "step %u: loss %g, gradient's norm %g: expected numbers; a lower learning "
                       "rate or clipping keeps them so",
                       t->done, (double)out->loss, out->norm);
    t->loss[t->done++] = out->loss;
    evaluating_set(t);
    return STATUS_OK;
}

/* ---- several ---- */

void train_round_end(const struct train_round *r, enum status st)
{
    for (uint32_t i = 0; i < r->n; i++) {
        struct trainer *t = r->trainer[i];
        r->stepped[i] = false;
        if (st) {
            begin_anew(t);
            continue;
        }
        has_run(t);
        r->stepped[i] = is_complete(t);
        if (r->stepped[i])
            r->st[i] = finish_step(t, &r->step[i], r->err ? &r->err[i] : NULL);
    }
}

enum status train_round(struct train_pass *p, const struct train_round *r)
{
    struct seq_source source[TRAIN_ROUND_MAX];
    CHECK(r->n <= TRAIN_ROUND_MAX);
    for (uint32_t i = 0; i < r->n; i++)
        source[i] = trainer_source(r->trainer[i]);
    train_pass_fill(p, source, r->n, r->first);
    enum status st = train_pass_tokens(p) ? train_pass_run(p) : STATUS_OK;
    train_round_end(r, st);
    return st;
}
