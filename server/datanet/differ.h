/* Does a text say something else in the same words? Two who contradict each other, or speak of two
 * things by one form, share most of their words and are no copies: in the rows of each one word
 * comes again and again that the other text has nowhere ("The bridges of A number 49. Whoever maps
 * A draws 49..." beside the same with 51). Not so with words that most texts have: who writes "ye"
 * for "the" says nothing else. Pure. Thread: any. */
#ifndef RS_DATANET_DIFFER_H
#define RS_DATANET_DIFFER_H

#include "server/datanet/rows.h"

#define DIFFER_ROWS_MIN   3 /* in fewer rows a changed word is a changed word */
#define DIFFER_ROWS_PART  4 /* and it stands in one row of so many at least */
#define DIFFER_TEXTS_MIN  8 /* of fewer texts nothing is common */
#define DIFFER_TEXTS_MAX  256
#define DIFFER_TEXT_BYTES (16u << 10) /* that are looked at of one for what is common */

struct differ_text {
    enum rows_kind kind;
    const char *text; /* normalised */
    size_t len;
};

/* What more than half of a sample of texts have. Zeroed before use. */
struct differ_common {
    uint64_t *hash;
    size_t n, cap;
    uint32_t texts; /* at most DIFFER_TEXTS_MAX are added */
};
MUST_CHECK enum status differ_common_add(struct differ_common *c, const char *text, size_t len,
                                         struct errtext *err);
void differ_common_close(struct differ_common *c); /* after the last one is added */
void differ_common_fini(struct differ_common *c);

/* Each has an uncommon word in so many of its rows, which the other has in none.
 * Errors: INVALID a row that is none; NO_MEMORY. */
MUST_CHECK enum status differ_find(bool *out, const struct differ_text *one,
                                   const struct differ_text *other,
                                   const struct differ_common *common, struct errtext *err);

#endif
