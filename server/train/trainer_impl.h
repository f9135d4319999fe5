/* Inside of the trainer: trainer.c and train_state.c. */
#ifndef RS_TRAIN_TRAINER_IMPL_H
#define RS_TRAIN_TRAINER_IMPL_H

#include "server/engine/backward.h"
#include "server/train/trainer.h"

struct trainer {
    struct train_base base;
    struct train_lora *lora;
    const struct training_rows *rows;
    struct train_options opt;
    struct forward *forward;
    struct backward *backward;
    float *grad, *m, *v; /* [lora->n] */
    float *loss;         /* [steps] */
    uint32_t *order;     /* [rows->n] of the epoch */
    uint32_t epoch;      /* that order is of; UINT32_MAX: none */
    uint32_t done, per_epoch;
    /* a pass */
    int32_t *ids, *target;
    float *weight, *logprob; /* [tokens] each */
    struct attention_back_seq *seq;
    struct dropout_seg *drop; /* of each of them */
    uint32_t n_tok, n_seq;
};

#endif
