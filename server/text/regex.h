/* Regular expressions of tokenizer files, on PCRE2. The files are written for Oniguruma's Ruby
 * syntax; regex_translate.c rewrites what differs and refuses what it does not know, so that a
 * pattern either means the same here or does not load. A regex is immutable: one per file, many
 * threads, each with its own regex_scratch. */
#ifndef RS_TEXT_REGEX_H
#define RS_TEXT_REGEX_H

#include "server/base/buf.h"
#include "server/base/errtext.h"
#include "server/base/status.h"

#include <stdbool.h>
#include <stddef.h>

#define REGEX_PATTERN_BYTES_MAX 65536

struct regex;
struct regex_scratch; /* match data and JIT stack of one caller */

/* Oniguruma pattern -> PCRE2 pattern. */
MUST_CHECK enum status regex_translate(const char *pattern, size_t len, struct buf *out,
                                       struct errtext *err);

MUST_CHECK enum status regex_compile(struct regex **out, const char *pattern, size_t len,
                                     struct errtext *err);
void regex_free(struct regex *r);

struct regex_scratch *regex_scratch_create(void); /* NULL without memory */
void regex_scratch_free(struct regex_scratch *s);

/* Walks the matches of valid UTF-8 text from left to right. */
struct regex_iter {
    const struct regex *regex;
    struct regex_scratch *scratch;
    const char *text;
    size_t len;
    size_t pos;      /* where the next search starts */
    size_t last_end; /* end of the last match, or (size_t)-1 */
};

/* Next match in [*start, *end); *found false at the end.
 * Errors  INVALID a match limit was reached (a pattern that blows up), NO_MEMORY. */
MUST_CHECK enum status regex_iter_next(struct regex_iter *it, size_t *start, size_t *end,
                                       bool *found, struct errtext *err);

#endif
