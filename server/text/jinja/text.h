/* Python's string operations, shared by filters and methods. Results live in the arena of the run.
 * All return false after failing the run. */
#ifndef RS_TEXT_JINJA_TEXT_H
#define RS_TEXT_JINJA_TEXT_H

#include "server/text/jinja/run.h"

enum jtext_case { JTEXT_LOWER, JTEXT_UPPER, JTEXT_TITLE, JTEXT_CAPITALIZE };

bool jtext_is_space(uint32_t cp); /* str.isspace */
/* Characters off the ends; chars NULL: white space. */
struct jstr jtext_strip(struct jstr s, const struct jstr *chars, bool left, bool right);
bool jtext_case(struct jrun *r, struct jstr s, enum jtext_case how, struct jval *out);
/* The title filter: words begin after blanks and opening brackets, not inside words. */
bool jtext_title_words(struct jrun *r, struct jstr s, struct jval *out);
/* At most max replacements; max < 0: all. */
bool jtext_replace(struct jrun *r, struct jstr s, const struct jstr from_to[2], int64_t max,
                   struct jval *out);
/* sep NULL: runs of white space. From the right with `right`. max < 0: no limit. */
struct jtext_split_args {
    const struct jstr *sep;
    int64_t max;
    bool right;
};
bool jtext_split(struct jrun *r, struct jstr s, const struct jtext_split_args *how,
                 struct jval *out);
bool jtext_splitlines(struct jrun *r, struct jstr s, bool keep_ends, struct jval *out);

#endif
