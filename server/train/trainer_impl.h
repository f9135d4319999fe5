/* Inside of the trainer: trainer.c and train_state.c. */
#ifndef RS_TRAIN_TRAINER_IMPL_H
#define RS_TRAIN_TRAINER_IMPL_H

#include "server/train/trainer.h"

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
};

#endif
