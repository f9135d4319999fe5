/* Near copies: how much of a text stands in documents that came before. For admission only; other
 * words for the same thing are not found here.
 *
 * A text is its words (unicode_words: case, punctuation, white space and markup make no
 * difference), cut into shingles of NEAR_SHINGLE words in a row. Of all shingles those are kept
 * whose hash is least (all at first; of ever fewer once entries_max are held): a min-wise
 * sample, the same of every text, so that what two samples share is what the texts share. The
 * measure is containment, the part of the new text that others have: that stays high when only a
 * part was copied, when one text is much longer, or when it was put together from several. What an
 * owner wrote before himself does not count: he may say it again in other words.
 *
 * One owner, no locking. */
#ifndef RS_DATANET_NEAR_H
#define RS_DATANET_NEAR_H

#include "server/base/errtext.h"

#include <stddef.h>
#include <stdint.h>

#define NEAR_SHINGLE     5u
#define NEAR_WORDS_MIN   24u     /* of a shorter text only the whole counts, word for word */
#define NEAR_SHARED_MIN  6u      /* shingles of the text that a document has, to count at all, */
#define NEAR_SHARED_PART 8u      /* and at least one in so many of the text's */
#define NEAR_FORM        5u      /* what comes so often in a text is its form, and counts once */
#define NEAR_SAME_PPM    1000000 /* the same words */
#define NEAR_COPY_PPM    250000  /* from here on a copy (tests/bench/near.py) */
#define NEAR_ENTRIES_MAX (1u << 24)

struct near;
struct near_found {
    uint32_t document; /* the earliest of those that have (nearly) the most of it */
    uint32_t ppm;      /* part of the text that stands in documents before; 0: document is none */
};

/* Holds at most entries_max shingles (NEAR_ENTRIES_MAX; 24 bytes each). */
MUST_CHECK enum status near_create(struct near **out, uint32_t entries_max, struct errtext *err);
void near_free(struct near *n); /* NULL is fine */
struct near_text {
    const uint8_t *owner; /* 20 bytes */
    const char *words;    /* as unicode_words gives them, one blank between */
    size_t len;
};

/* Documents are added in the order in which they came; `document` is the caller's name for it.
 * Errors: NO_MEMORY. */
MUST_CHECK enum status near_add(struct near *n, uint32_t document, const struct near_text *t,
                                struct errtext *err);
/* Among those of other owners added so far; the same words (NEAR_SAME_PPM) among all of them.
 * Errors: NO_MEMORY. */
MUST_CHECK enum status near_find(struct near *n, const struct near_text *t, struct near_found *out,
                                 struct errtext *err);

#endif
