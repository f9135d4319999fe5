/* The "decoder" of a tokenizer file: a flat list of steps over a list of token texts, whose result
 * is joined. Known: Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace. Immutable
 * after load. The same steps, one token at a time, give the bytes a stream emits. */
#ifndef RS_TEXT_DECODE_H
#define RS_TEXT_DECODE_H

#include "server/base/errtext.h"
#include "server/text/normalize.h"
#include "server/text/pieces.h"
#include "server/text/pretokenize.h"

#include <jansson.h>

#define DECODE_STEPS_MAX 32
#define DECODE_STRIP_MAX 65536u

enum decode_kind {
    DECODE_BYTE_LEVEL,
    DECODE_REPLACE,
    DECODE_BYTE_FALLBACK,
    DECODE_FUSE,
    DECODE_STRIP,
    DECODE_METASPACE
};

struct decode_step {
    enum decode_kind kind;
    struct normalize_step replace; /* Replace */
    char *content;                 /* Strip, Metaspace: one character */
    size_t content_len;
    uint32_t strip_start, strip_stop;
    bool drop_first; /* Metaspace: the first token loses its replacement characters */
};

struct decoder {
    struct decode_step steps[DECODE_STEPS_MAX];
    size_t n;
    bool present;    /* false: tokens are joined by blanks */
    bool byte_level; /* bytes of neighbouring tokens are joined into characters */
    bool byte_fallback;
    size_t fuse_idx; /* first Fuse or ByteLevel, or n: later steps see the text as one token */
};

MUST_CHECK enum status decoder_load(struct decoder *d, const json_t *json, struct errtext *err);
void decoder_fini(struct decoder *d);

/* decoder_run - the whole-text decoder: tokens is a list of token texts; b is scratch. The result
 * is appended to out. */
MUST_CHECK enum status decoder_run(const struct decoder *d, struct pieces *tokens, struct pieces *b,
                                   struct buf *out, struct errtext *err);

/* One token's text as bytes in a stream. */
MUST_CHECK enum status decoder_token(const struct decoder *d, const char *text, size_t len,
                                     bool is_first, struct buf *out, struct errtext *err);

/* Append bytes as text, each maximal bad sequence as one U+FFFD. */
void decode_put_lossy(struct buf *out, const char *bytes, size_t len);

#endif
