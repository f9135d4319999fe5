/* A text cut into pieces: the form in which text moves through normalizers, pre-tokenizers and
 * decoders. Each step reads one `struct pieces` and fills another, so a step never edits text in
 * place. A piece is either text still to be worked on or an added token already found. Empty
 * pieces are dropped on the way in, as the reference drops them. One owner. */
#ifndef RS_TEXT_PIECES_H
#define RS_TEXT_PIECES_H

#include "server/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct piece {
    uint32_t start, len; /* into text.data */
    int32_t id;          /* the added token this is, or -1 */
    bool at_start;       /* begins where the original text begins */
};

struct pieces {
    struct buf text;
    struct piece *items;
    size_t n, cap;
    bool failed; /* no memory, or the text is past its maximum */
};

void pieces_init(struct pieces *p);
void pieces_fini(struct pieces *p);
void pieces_clear(struct pieces *p);
/* Append a copy of text as one piece; empty text is dropped unless it is a token. */
void pieces_add(struct pieces *p, const char *text, size_t len, int32_t id, bool at_start);
/* Same, and empty text is kept (decoders count tokens). */
void pieces_add_always(struct pieces *p, const char *text, size_t len);
/* Append a piece made of what was put in p->text since `start`. */
void pieces_close(struct pieces *p, size_t start, int32_t id, bool at_start);
static inline const char *piece_text(const struct pieces *p, const struct piece *item)
{
    return p->text.data ? p->text.data + item->start : "";
}

#endif
