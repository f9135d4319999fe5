/* Rows of a training manifest that are held out: never learned, asked between steps. Which ones
 * follows from the seed and the rows alone, not from their order, so the same rows are held out
 * again after the manifest was written without them. Pure. Thread: any. */
#ifndef RS_DATANET_TRAINING_SPLIT_H
#define RS_DATANET_TRAINING_SPLIT_H

#include "server/datanet/training.h"

#define TRAINING_HELD_FILE "evaluation.json" /* a training manifest too, of these rows */

struct training_split {
    struct training *learned, *held; /* training_free */
};
/* share of the rows, at least one, and one at least is learned; both in their order. INVALID. */
MUST_CHECK enum status training_split(struct training_split *out, const struct training *all,
                                      const struct datanet *d, double share, uint64_t seed,
                                      struct errtext *err);
/* Rows of both, by document id and place; where they share one, a alone is given. */
MUST_CHECK enum status training_join(struct training **out, const struct training *a,
                                     const struct training *b, const struct datanet *d,
                                     struct errtext *err);

#endif
