/* The "pre_tokenizer" of a tokenizer file: a flat list of steps that cut pieces into smaller ones.
 * Known: Sequence, Split, ByteLevel, Metaspace (old and new spelling), Digits, Whitespace,
 * WhitespaceSplit, Punctuation. Immutable after load. */
#ifndef RS_TEXT_PRETOKENIZE_H
#define RS_TEXT_PRETOKENIZE_H

#include "server/base/errtext.h"
#include "server/text/pieces.h"
#include "server/text/regex.h"

#include <jansson.h>

#define PRETOKENIZE_STEPS_MAX 32

enum pretokenize_kind {
    PRETOKENIZE_SPLIT,
    PRETOKENIZE_BYTE_LEVEL,
    PRETOKENIZE_METASPACE,
    PRETOKENIZE_DIGITS,
    PRETOKENIZE_WHITESPACE,
    PRETOKENIZE_WHITESPACE_SPLIT,
    PRETOKENIZE_PUNCTUATION
};

/* What happens to a match and to the text between matches. */
enum split_behavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS
};

enum prepend_scheme { PREPEND_FIRST, PREPEND_NEVER, PREPEND_ALWAYS };

struct pretokenize_step {
    enum pretokenize_kind kind;
    enum split_behavior behavior;
    enum prepend_scheme scheme;
    bool invert;           /* Split: the matches are what is between the delimiters */
    bool add_prefix_space; /* ByteLevel */
    bool cut;              /* ByteLevel: use_regex; Metaspace: split */
    bool each_digit;       /* Digits: individual_digits */
    struct regex *regex;   /* Split, ByteLevel */
    char *literal;         /* Split by String; Metaspace: the replacement character */
    size_t literal_len;
};

struct pretokenizer {
    struct pretokenize_step steps[PRETOKENIZE_STEPS_MAX];
    size_t n;
};

struct split_span {
    size_t start, end;
    bool is_match;
};

/* Memory of one caller. */
struct pretokenize_work {
    struct split_span *spans;
    size_t n, cap;
    struct buf text;
};

MUST_CHECK enum status pretokenizer_load(struct pretokenizer *p, const json_t *json,
                                         struct errtext *err);
void pretokenizer_fini(struct pretokenizer *p);
/* first|always|never and the older add_prefix_space of a Metaspace object. */
MUST_CHECK enum status metaspace_load_scheme(const json_t *json, enum prepend_scheme *scheme,
                                             struct errtext *err);

void pretokenize_work_fini(struct pretokenize_work *w);

/* pretokenizer_run - cut the pieces of a (added tokens pass through). a and b are used in turn;
 * *result says which of them holds the result. */
struct pretokenize_io {
    struct pieces *a, *b;
    struct pieces *result;
};
MUST_CHECK enum status pretokenizer_run(const struct pretokenizer *p, struct pretokenize_work *w,
                                        struct regex_scratch *scratch, struct pretokenize_io *io,
                                        struct errtext *err);

/* Append the byte-level spelling of bytes: each byte as one printable character. */
void byte_level_put(struct buf *out, const char *s, size_t len);
/* The byte a character stands for, or -1. */
int byte_level_byte(uint32_t cp);

#endif
