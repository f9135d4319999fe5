/* Does a text say something else in the same words? Two who contradict each other, or speak of two
 * things by one form, share most of their words and are no copies: in the rows of each one word
 * comes again and again that the other text has nowhere ("The bridges of A number 49. Whoever maps
 * A draws 49..." beside the same with 51). Pure. Thread: any. */
#ifndef RS_DATANET_DIFFER_H
#define RS_DATANET_DIFFER_H

#include "server/datanet/rows.h"

#define DIFFER_ROWS_MIN 3 /* of fewer rows a changed word is a changed word */

struct differ_text {
    enum rows_kind kind;
    const char *text; /* normalised */
    size_t len;
};
/* Each has a word in half of its rows at least, which the other has in none.
 * Errors: INVALID a row that is none; NO_MEMORY. */
MUST_CHECK enum status differ_find(bool *out, const struct differ_text *one,
                                   const struct differ_text *other, struct errtext *err);

#endif
