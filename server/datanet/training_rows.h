/* The rows of a training manifest as tokens: what an adapter is trained on and what its answers are
 * attributed to are the same tokens, by one piece of code. Blocks on disk. Thread: any. */
#ifndef RS_DATANET_TRAINING_ROWS_H
#define RS_DATANET_TRAINING_ROWS_H

#include "server/datanet/rows.h"
#include "server/datanet/training.h"

#include <stdatomic.h>

#define TRAINING_TOKENS_MAX (1ull << 30) /* of all rows */

struct training_rows {
    int32_t *ids;    /* the rows' tokens, one after another */
    uint64_t *begin; /* [n + 1] */
    uint8_t *learn;  /* a bit for each of them: it is learned; NULL: all are */
    enum row_mask mask;
    uint32_t n;
    uint32_t idle; /* rows of which nothing is learned */
    uint32_t cut;  /* rows longer than ROW_TOKENS_MAX, of which the first are there */
};
static inline uint32_t training_rows_length(const struct training_rows *r, uint32_t row)
{
    return (uint32_t)(r->begin[row + 1] - r->begin[row]);
}
static inline bool training_rows_learns(const struct training_rows *r, uint64_t token)
{
    return !r->learn || (r->learn[token / 8] >> token % 8 & 1);
}
/* Is token `at` of a row one to predict from those before it? */
static inline bool training_rows_is_target(const struct training_rows *r, uint32_t row, uint32_t at)
{
    return at > 0 && at < training_rows_length(r, row) &&
           training_rows_learns(r, r->begin[row] + at);
}
/* stop: looked at row by row, or NULL. Errors: CANCELLED; INVALID naming document and row or line;
 * TOO_LARGE, NO_MEMORY, as datanet_text. */
MUST_CHECK enum status training_rows_read(struct training_rows *out, const struct datanet *d,
                                          const struct training *t, const struct model *model,
                                          enum row_mask mask, const _Atomic bool *stop,
                                          struct errtext *err);
/* The same of lines of kind ROWS that are in no datanet; errors name the row, from 1. */
MUST_CHECK enum status training_rows_lines(struct training_rows *out, const struct row_form *form,
                                           enum row_mask mask, const char *text, size_t len,
                                           struct errtext *err);
/* Of all, the rows that take says (1), as they are there. NO_MEMORY: *out is empty. */
MUST_CHECK enum status training_rows_pick(struct training_rows *out,
                                          const struct training_rows *all, const uint8_t *take,
                                          struct errtext *err);
void training_rows_fini(struct training_rows *r);

#endif
