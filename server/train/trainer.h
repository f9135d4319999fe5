/* Training of one adapter on the rows of a training manifest: batches in an order that the seed
 * fixes, gradients by server/engine/backward.h, weights by optim.h, and a state that goes on bit
 * for bit where it was left. The bits of the result depend on base, rows, first weights and options
 * alone: not on threads, nor on how rows are packed, nor on how often it was stopped.
 *
 * A step is `batch` rows; its loss is the mean of -log p over their targets. Rows of an epoch come
 * in a new random order, or as they stand.
 *
 * Thread: one. Base, adapter and rows outlive it. */
#ifndef RS_TRAIN_TRAINER_H
#define RS_TRAIN_TRAINER_H

#include "server/datanet/training_rows.h"
#include "server/engine/resident.h"
#include "server/train/optim.h"
#include "server/train/train_lora.h"

#define TRAIN_STEPS_MAX (1u << 24)

struct train_options {
    struct optim_options optim; /* steps and warmup count in steps; trainer_create sets steps */
    uint32_t epochs, batch;
    uint32_t tokens; /* of a pass, and of a row: a longer one is refused */
    uint64_t seed;
    bool shuffle;         /* false: as they stand */
    bool completion_only; /* prompts are read and not learned */
    double dropout;       /* share of LoRA's inputs that falls in a step: 0 to below 1 */
    bool recompute;       /* less memory, one more forward pass; the same bits */
    uint64_t keep_max;    /* bytes of kept activations beyond which it is done; 0: any are kept */
};
struct train_base {
    const struct model *model;
    struct backend *backend;
    const struct resident *resident;
};

struct trainer;
/* Errors: INVALID naming the option or the row, UNSUPPORTED where the backend does not train,
 * NO_MEMORY. */
MUST_CHECK enum status trainer_create(struct trainer **out, const struct train_base *base,
                                      struct train_lora *lora, const struct training_rows *rows,
                                      const struct train_options *opt, struct errtext *err);
void trainer_free(struct trainer *t); /* NULL is fine */

struct train_step {
    uint32_t step; /* that was made, from 0 */
    float loss;
    double norm, lr;
    uint64_t tokens; /* that were read */
};
uint32_t trainer_steps(const struct trainer *t);      /* in all */
uint32_t trainer_done(const struct trainer *t);       /* made */
const float *trainer_losses(const struct trainer *t); /* [trainer_done] */
/* The next one; the adapter's weights are changed. Errors: CORRUPT where loss or gradient is not a
 * number: nothing was changed, and going on is no use; what the ops say. */
MUST_CHECK enum status trainer_step(struct trainer *t, struct train_step *out, struct errtext *err);

/* Everything that going on needs, in one file, written as a whole. what: 32 bytes of who trains on
 * what (base, manifest, options): a state of other 32 bytes is refused.
 * Errors: FULL, IO; NOT_FOUND there is none, CORRUPT, CONFLICT of other training. */
MUST_CHECK enum status trainer_save(const struct trainer *t, const char *path,
                                    const uint8_t what[32], struct errtext *err);
MUST_CHECK enum status trainer_resume(struct trainer *t, const char *path, const uint8_t what[32],
                                      struct errtext *err);

#endif
