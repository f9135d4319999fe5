/* The rows of a training manifest as tokens: what an adapter is trained on and what its answers are
 * attributed to are the same tokens, by one piece of code. Blocks on disk. Thread: any. */
#ifndef RS_DATANET_TRAINING_ROWS_H
#define RS_DATANET_TRAINING_ROWS_H

#include "server/datanet/rows.h"
#include "server/datanet/training.h"

#include <stdatomic.h>

#define TRAINING_TOKENS_MAX (1ull << 30) /* of all rows */

struct training_rows {
    int32_t *ids;     /* the rows' tokens, one after another */
    uint64_t *begin;  /* [n + 1] */
    uint32_t *prompt; /* [n] tokens of its own that a row begins with and that its writer did not
                         say: the prompt of prompt and completion; 0 for others */
    uint32_t n;
    uint32_t cut; /* rows longer than ROW_TOKENS_MAX, of which the first are there */
};
/* stop: looked at row by row, or NULL. Errors: CANCELLED; INVALID naming document and row;
 * TOO_LARGE, NO_MEMORY, as datanet_text. */
MUST_CHECK enum status training_rows_read(struct training_rows *out, const struct datanet *d,
                                          const struct training *t, const struct model *model,
                                          const _Atomic bool *stop, struct errtext *err);
void training_rows_fini(struct training_rows *r);

#endif
