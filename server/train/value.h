/* What each contributor's rows are worth: the adapter is trained on the rows of all, and once more
 * without each contributor, all alike (seed, options) and in common passes; his worth is what rows
 * that nobody has learned cost more without his.
 *
 *   held out  the rows of a datanet that judges, or of what is learned one part in turn, each part
 *             with its share of everybody's rows
 *   own       a contributor's own held-out rows judge the others, never himself: whoever writes
 *             noise predicts his noise
 *   repeated  a row that an earlier one says token for token is neither learned nor held out: it
 *             counts for who said it first, and its writer gets what leaving it out costs
 *
 * The report depends on base, rows, options and seeds alone. Thread: one, the backend's. */
#ifndef RS_TRAIN_VALUE_H
#define RS_TRAIN_VALUE_H

#include "server/train/trainer.h"
#include "server/train/value_rule.h"

struct value_set {
    const struct training_rows *rows;
    const uint32_t *owner; /* [rows->n] a place among the owners, or `owners`: none of them */
};
struct value_job {
    struct train_base base;
    struct value_set learned, held; /* held.rows NULL: parts of what is learned */
    const uint8_t (*owner)[20];     /* [owners] */
    uint32_t owners;
    struct train_options train; /* seed: the first */
    bool fixed_warmup;          /* train.optim.warmup steps; else 3 % of each training's */
    const char *config;         /* adapter_config.json */
    size_t config_bytes;
    uint32_t parts, seeds;
    void (*progress)(void *arg, double done, uint32_t all); /* trainings; or NULL */
    void *arg;
};
/* losses, gain, lines, folds and seeds of out, whose line is made (mem_free). Errors: INVALID
 * naming what is amiss: one contributor only, no held-out row, fewer rows than parts, a held-out
 * row that is learned; as trainer_create and train_round. */
MUST_CHECK enum status value_measure(struct value_report *out, const struct value_job *job,
                                     struct errtext *err);

#endif
