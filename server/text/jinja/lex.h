/* Tokens of a template, with trim_blocks and lstrip_blocks on and one trailing newline dropped.
 * The text must be valid UTF-8 with newlines already made LF. Tokens point into the text, except
 * strings with escapes, which the parser decodes. */
#ifndef RS_TEXT_JINJA_LEX_H
#define RS_TEXT_JINJA_LEX_H

#include "server/text/jinja/value.h"

enum jtoken_kind {
    JT_DATA,
    JT_PRINT_BEGIN,
    JT_PRINT_END,
    JT_BLOCK_BEGIN,
    JT_BLOCK_END,
    JT_NAME,
    JT_STRING, /* without the quotes, escapes not decoded */
    JT_INT,
    JT_FLOAT,
    JT_OP,
    JT_END,
    JT_ERROR /* text is the message */
};

struct jtoken {
    enum jtoken_kind kind;
    struct jstr text;
    uint32_t line;
};

#define JLEX_BRACES_MAX 256

struct jlex {
    const char *s;
    size_t len, pos;
    uint32_t line;
    enum jtoken_kind inside; /* JT_DATA, JT_PRINT_BEGIN or JT_BLOCK_BEGIN */
    bool line_starting;      /* the text before pos ended a line */
    char braces[JLEX_BRACES_MAX];
    size_t n_braces;
};

void jlex_init(struct jlex *lex, const char *text, size_t len);
/* The next token; JT_END for ever at the end. */
struct jtoken jlex_next(struct jlex *lex);

#endif
