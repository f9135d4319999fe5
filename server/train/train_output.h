/* What training leaves in its folder: the adapter as `peft` saves it, and how it was made. Each
 * file is written as a whole. Blocks on disk. */
#ifndef RS_TRAIN_TRAIN_OUTPUT_H
#define RS_TRAIN_TRAIN_OUTPUT_H

#include "server/datanet/training.h"
#include "server/train/trainer.h"

#define TRAIN_REPORT_FILE "train.json"
#define TRAIN_LOSS_FILE   "loss.svg"
#define TRAIN_STATE_FILE  "train.state"

struct train_report {
    const struct model *model;
    const struct datanet *datanet;
    const struct training *training;
    const struct train_options *options;
    const struct trainer *trainer;
    const struct train_lora *lora;
    const char *version; /* of this program */
    /* what may be NULL */
    const struct train_pass *pass;       /* whose statistics are given */
    const struct train_evaluation *eval; /* with held, its rows, of held_of */
    const struct training *held;
    const struct datanet *held_of;
};
/* 32 bytes of everything that the result depends on but the state itself: base, rows, options,
 * first weights. */
void train_what(uint8_t what[32], const struct train_report *r);
/* train.json and loss.svg in dir. weights: of train_lora_render; id: the adapter's. */
MUST_CHECK enum status train_output_report(const char *dir, const struct train_report *r,
                                           const struct buf *weights, uint8_t id[32],
                                           struct errtext *err);
/* The same, adapter_config.json and adapter_model.safetensors, and where rows of its own datanet
 * are held out, evaluation.json with them and training.json without. */
MUST_CHECK enum status train_output(const char *dir, const struct train_report *r, uint8_t id[32],
                                    struct errtext *err);

#endif
