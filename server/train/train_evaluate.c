/* Held-out rows between steps: their sequences go through the same passes without a gradient, in
 * order, from the first one on whenever an evaluation begins. What was found so far, and the best
 * weights where training may stop early, are part of the state; an evaluation under way is not: it
 * follows from the steps made. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/train/trainer_impl.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum status trainer_evaluate(struct trainer *t, const struct train_evaluation *o,
                             struct errtext *err)
{
    struct evaluating *e = &t->eval;
    CHECK(o->rows && !e->rows && !t->done && !t->open);
    *e = (struct evaluating){.rows = o->rows, .every = o->every, .patience = o->patience};
    if (!o->every)
        return err_set(err, STATUS_INVALID, "evaluation: every 0 steps, expected 1 or more");
    for (uint32_t r = 0; r < o->rows->n; r++) {
        uint32_t n = training_rows_length(o->rows, r);
        if (n > t->opt.tokens)
            return err_set(err, STATUS_INVALID, "held-out row %u: %u tokens, at most %u (tokens)",
                           r, n, t->opt.tokens);
        e->targets += trainer_targets(o->rows, r);
    }
    if (!e->targets)
        return err_set(err, STATUS_INVALID, "none of %u held-out rows has a token to ask for",
                       o->rows->n);
    e->made = mem_try_array(trainer_steps(t) / o->every + 1, sizeof(*e->made));
    e->kept = o->patience ? mem_try_array(t->lora->n, sizeof(*e->kept)) : NULL;
    return e->made && (e->kept || !o->patience)
               ? STATUS_OK
               : err_set(err, STATUS_NO_MEMORY, "no memory to evaluate");
}

const struct train_eval *trainer_evals(const struct trainer *t, uint32_t *n)
{
    *n = t->eval.n;
    return t->eval.made;
}

const struct train_eval *trainer_best(const struct trainer *t)
{
    return t->eval.n ? &t->eval.made[t->eval.best] : NULL;
}

static bool is_stopped(const struct trainer *t)
{
    const struct evaluating *e = &t->eval;
    return e->patience && e->n && e->n - 1 - e->best >= e->patience;
}

bool trainer_is_evaluating(const struct trainer *t)
{
    return t->eval.under_way;
}

bool trainer_ended(const struct trainer *t)
{
    return !t->eval.under_way && (t->done == trainer_steps(t) || is_stopped(t));
}

/* ---- one of them ---- */

void evaluating_set(struct trainer *t)
{
    struct evaluating *e = &t->eval;
    bool due = e->rows && t->done && (t->done % e->every == 0 || t->done == trainer_steps(t));
    e->under_way = due && !(e->n && e->made[e->n - 1].step == t->done);
    e->row = 0;
    e->sum = 0;
    if (e->kept && e->n && trainer_ended(t))
        memcpy(t->lora->blob, e->kept, t->lora->n * sizeof(*e->kept));
}

bool evaluating_next(struct trainer *t, struct train_seq *out)
{
    struct evaluating *e = &t->eval;
    while (e->row < e->rows->n && training_rows_length(e->rows, e->row) < 2)
        e->row++;
    return e->row < e->rows->n && trainer_place(t, e->rows, e->row, 0, out);
}

void evaluating_take(struct trainer *t)
{
    t->used += training_rows_length(t->eval.rows, t->eval.row++);
}

static void end(struct trainer *t)
{
    struct evaluating *e = &t->eval;
    float loss = (float)(e->sum / (double)e->targets);
    e->made[e->n] = (struct train_eval){t->done, isfinite(loss) ? loss : FLT_MAX};
    if (!e->n || e->made[e->n].loss < e->made[e->best].loss) {
        e->best = e->n;
        if (e->kept)
            memcpy(e->kept, t->lora->blob, t->lora->n * sizeof(*e->kept));
    }
    e->n++;
    evaluating_set(t);
}

void evaluating_ran(struct trainer *t)
{
    struct evaluating *e = &t->eval;
    struct train_seq none;
    trainer_add_losses(t, &e->sum);
    if (!evaluating_next(t, &none))
        end(t);
}
