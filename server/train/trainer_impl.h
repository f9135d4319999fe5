/* Inside of the trainer: trainer.c, train_evaluate.c and train_state.c. */
#ifndef RS_TRAIN_TRAINER_IMPL_H
#define RS_TRAIN_TRAINER_IMPL_H

#include "server/train/trainer.h"

struct evaluating {
    const struct training_rows *rows; /* held out; NULL: none */
    uint32_t every, patience;
    uint64_t targets;        /* of all rows */
    struct train_eval *made; /* [n] so far */
    uint32_t n, best;
    float *kept; /* [lora->n] the weights of the best, with patience; else NULL */
    /* the one under way */
    bool under_way;
    uint32_t row; /* the next one */
    double sum;
};

struct trainer {
    struct train_lora *lora;
    const struct training_rows *rows;
    struct train_options opt;
    float *grad, *m, *v; /* [lora->n] */
    float *loss;         /* [steps] */
    uint32_t *order;     /* [rows->n] of the epoch */
    uint32_t epoch;      /* that order is of; UINT32_MAX: none */
    uint32_t done, per_epoch;
    /* the step under way */
    bool open;
    const uint32_t *row;   /* [n_row] its rows */
    uint32_t n_row, taken; /* of these in passes so far */
    uint64_t targets, tokens;
    double sum; /* of -log p so far */
    /* the pass under way: of the sequences taken, one after another */
    int32_t *target;
    float *weight, *logprob; /* [tokens] each */
    uint32_t used;
    struct evaluating eval;
};

/* trainer.c, of learned and held-out rows alike */

/* Tokens of a row that are to be predicted. */
uint64_t trainer_targets(const struct training_rows *rows, uint32_t row);
/* The row behind those taken into this pass, its targets with that weight; out has no gradient.
 * false: there is no room before the next run. */
MUST_CHECK bool trainer_place(struct trainer *t, const struct training_rows *rows, uint32_t row,
                              float weight, struct train_seq *out);
/* The pass has run: -log p of what was taken goes to sum. */
void trainer_add_losses(struct trainer *t, double *sum);

/* train_evaluate.c: whether one is due, which then begins; and its part of trainer_next, _take and
 * _ran while it is under way. */
void evaluating_set(struct trainer *t);
MUST_CHECK bool evaluating_next(struct trainer *t, struct train_seq *out);
void evaluating_take(struct trainer *t);
void evaluating_ran(struct trainer *t);

#endif
