/* Which tokens of a row are learned. Private to training_rows.c. */
#ifndef RS_DATANET_ROW_MASK_H
#define RS_DATANET_ROW_MASK_H

#include "server/datanet/rows.h"

struct row_masking {
    const struct row_form *form;
    enum row_mask mask;
    enum rows_kind kind;
    const char *row;
    size_t len;
    const int32_t *ids; /* [n] as row_tokens gave them, the first of all where it was cut */
    size_t n;
    uint8_t *learn; /* bits, 0 so far; the row's begin at bit `at` */
    uint64_t at;
};
/* Sets the bit of each token that is learned. Errors: as row_tokens, and UNSUPPORTED where the
 * template does not show where turns stand. */
MUST_CHECK enum status row_mask_set(const struct row_masking *r, struct errtext *err);

#endif
