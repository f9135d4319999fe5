/* Training of one adapter on the rows of a training manifest: batches in an order that the seed
 * fixes, gradients by pass.h, weights by optim.h, and a state that goes on bit for bit where it was
 * left. The bits of the result depend on base, rows, first weights and options alone: not on
 * threads, nor on how rows are packed, nor on who trains beside it, nor on how often it was
 * stopped.
 *
 * A step is `batch` rows; its loss is the mean of -log p over their targets. Rows of an epoch come
 * in a new random order, or as they stand.
 *
 * Use       trainer_create -> until trainer_ended: train_round, for one or several; or, where
 *           others take part in a pass, train_pass_fill from trainer_source too, train_pass_run,
 *           train_round_end
 * Thread    one. Adapter and rows outlive it. */
#ifndef RS_TRAIN_TRAINER_H
#define RS_TRAIN_TRAINER_H

#include "server/datanet/training_rows.h"
#include "server/train/optim.h"
#include "server/train/pass.h"

#define TRAIN_STEPS_MAX      (1u << 24)
#define TRAIN_WARMUP_PERCENT 3 /* of all steps, where nothing else is asked */

struct train_options {
    struct optim_options optim; /* steps and warmup count in steps; trainer_create sets steps */
    uint32_t epochs, batch;
    uint32_t tokens; /* of a pass, and of a row: a longer one is refused */
    uint64_t seed;
    bool shuffle;       /* false: as they stand */
    enum row_mask mask; /* that the rows were read with */
    double dropout;     /* share of LoRA's inputs that falls in a step: 0 to below 1 */
};

/* Steps of an epoch of so many rows; batch 0: none. */
static inline uint32_t train_epoch_steps(uint32_t rows, uint32_t batch)
{
    return batch ? (uint32_t)(((uint64_t)rows + batch - 1) / batch) : 0;
}
/* So many percent of the steps that o makes of so many rows, rounded up, but never all of them: the
 * first step of a warm-up moves nothing. */
uint32_t train_warmup(const struct train_options *o, uint32_t rows, uint32_t percent);

struct trainer;
/* Errors: INVALID naming the option or the row, NO_MEMORY. */
MUST_CHECK enum status trainer_create(struct trainer **out, struct train_lora *lora,
                                      const struct training_rows *rows,
                                      const struct train_options *opt, struct errtext *err);
void trainer_free(struct trainer *t); /* NULL is fine */
/* Bytes of a trainer of n weights, beside the adapter itself. */
uint64_t trainer_bytes(size_t n);

struct train_evaluation {
    const struct training_rows *rows; /* held out: none of them is learned; they outlive it */
    uint32_t every;                   /* steps; and behind the last one */
    uint32_t patience; /* evaluations in a row that are no better, then training ends; in any case
                          with the weights of the best. 0: it goes on to its end and keeps those */
};
/* Once, before the first step or trainer_resume. Errors as trainer_create. */
MUST_CHECK enum status trainer_evaluate(struct trainer *t, const struct train_evaluation *o,
                                        struct errtext *err);
struct train_eval {
    uint32_t step; /* steps made by then */
    float loss;    /* mean of -log p; FLT_MAX: not a number */
};
const struct train_eval *trainer_evals(const struct trainer *t, uint32_t *n); /* [n] so far */
const struct train_eval *trainer_best(const struct trainer *t); /* of the lowest loss, or NULL */
bool trainer_is_evaluating(const struct trainer *t); /* behind the step that was made last */
/* Nothing is left to do: all steps, or those until patience was at its end, and the evaluation
 * behind them. */
bool trainer_ended(const struct trainer *t);

struct train_step {
    uint32_t step; /* that was made, from 0 */
    float loss;
    double norm, lr;
    uint64_t tokens; /* that were read */
};
uint32_t trainer_steps(const struct trainer *t);      /* in all */
uint32_t trainer_done(const struct trainer *t);       /* made */
const float *trainer_losses(const struct trainer *t); /* [trainer_done] */

/* The sequences of the step under way: none once all were taken, or while there is no more room
 * before the next run. */
struct seq_source trainer_source(struct trainer *t);

/* One pass for n trainers that have not ended. Of those whose step it completed (stepped[i]; an
 * evaluation's end is none) the weights are changed, step[i] says of it, and st[i] is OK; or
 * CORRUPT where loss or gradient is not a number: nothing was changed, and going on is no use.
 * Errors: of train_pass_run; steps and evaluations under way begin anew. */
#define TRAIN_ROUND_MAX 256
struct train_round {
    struct trainer **trainer; /* [n] */
    struct train_step *step;  /* [n] */
    enum status *st;          /* [n] */
    bool *stepped;            /* [n] */
    uint32_t n, first;
    struct errtext *err; /* [n] or NULL */
};
MUST_CHECK enum status train_round(struct train_pass *p, const struct train_round *r);
/* What follows the pass, whoever filled it: st is what train_pass_run said, or OK where nothing had
 * to run. */
void train_round_end(const struct train_round *r, enum status st);

/* Everything that going on needs, in one file, written as a whole; between two steps. what: 32
 * bytes of who trains on what (base, manifest, options): a state of other 32 bytes is refused.
 * Errors: FULL, IO; NOT_FOUND there is none, CORRUPT, CONFLICT of other training. */
MUST_CHECK enum status trainer_save(const struct trainer *t, const char *path,
                                    const uint8_t what[32], struct errtext *err);
MUST_CHECK enum status trainer_resume(struct trainer *t, const char *path, const uint8_t what[32],
                                      struct errtext *err);

#endif
