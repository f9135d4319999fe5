/* What is held out when, and what held-out losses say. Pure. Thread: any. */
#ifndef RS_TRAIN_VALUE_RULE_H
#define RS_TRAIN_VALUE_RULE_H

#include "server/datanet/training_rows.h"
#include "server/datanet/value_file.h"

/* Rows that say, token for token, what an earlier one says: repeat[i] is that row, or i. A row
 * counts once, for who said it first. NO_MEMORY. */
MUST_CHECK enum status value_repeats(uint32_t *repeat, const struct training_rows *rows,
                                     struct errtext *err);

/* INVALID names a row that is in both. NO_MEMORY. */
MUST_CHECK enum status value_check_apart(const struct training_rows *learned,
                                         const struct training_rows *held, struct errtext *err);

/* part[i] of 0 .. parts - 1: the rows of each group are shuffled by the seed and dealt one after
 * the other, so that every part has its share of every group. group[i] >= groups: not dealt, and
 * part[i] is UINT32_MAX. */
MUST_CHECK enum status value_deal(uint32_t *part, const uint32_t *group, uint32_t n,
                                  uint32_t groups, uint32_t parts, uint64_t seed,
                                  struct errtext *err);

struct value_unit { /* a part of the held-out rows under one seed */
    double nats;    /* that they cost more without */
    uint64_t tokens;
};
/* The mean per token over n units, with Student's interval of 95 % by how the units differ (ratio
 * estimator); total and tokens are of all parts under one of `seeds`. */
void value_figure_of(struct value_figure *out, const struct value_unit *unit, uint32_t n,
                     uint32_t seeds);
/* Student's t: two sides of 95 % with so many degrees of freedom. */
double value_t95(uint32_t df);

#endif
