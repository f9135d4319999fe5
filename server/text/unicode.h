/* Which Unicode the tokenizer's classes and normal forms are of, and the form that documents are
 * known by. */
#ifndef RS_TEXT_UNICODE_H
#define RS_TEXT_UNICODE_H

#include "server/base/buf.h"
#include "server/base/errtext.h"

/* "pcre2 14.0.0 utf8proc 15.0.0": the versions of the tables of the libraries this process runs
 * with. A static text. Thread: any. */
const char *unicode_version(void);

/* The text in normal form C at the end of out. INVALID: not UTF-8; NO_MEMORY. */
MUST_CHECK enum status unicode_nfc(struct buf *out, const char *text, size_t len,
                                   struct errtext *err);

/* Its words alone, one blank between, at the end of out: compatible forms and case folded;
 * letters, digits, marks and symbols kept, everything else a blank. What two texts share that say
 * the same in the same words. Errors as unicode_nfc. */
MUST_CHECK enum status unicode_words(struct buf *out, const char *text, size_t len,
                                     struct errtext *err);

#endif
