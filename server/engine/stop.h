/* Stop strings over a stream of bytes. A match is the first to end; of those that end at the same
 * byte, the longest. So the answer depends on the bytes only, not on how tokens cut them. State is
 * a tail of the last bytes: no text is kept, nothing is allocated.
 *
 * A stop_search is the one search of a sequence, the engine's: over the text that the client sees,
 * special tokens and U+FFFD where they show, as if the text ended with each token in turn. HTTP
 * learns where the text is cut and only holds back what may yet become a stop (stop_hold).
 * Pure; one owner per matcher; thread: any. */
#ifndef RS_ENGINE_STOP_H
#define RS_ENGINE_STOP_H

#include "server/engine/request.h"
#include "server/text/tokenizer.h"

struct stop_match {
    uint64_t bytes; /* fed so far */
    uint32_t tail_bytes;
    char tail[REQUEST_STOP_BYTES_MAX]; /* the last bytes fed */
};

struct stop_hit {
    uint32_t index; /* which stop string */
    uint64_t begin; /* byte of the stream where it begins */
};

void stop_init(struct stop_match *m);
/* Feed bytes. True at the first hit; bytes after the one that completed it are not read. */
bool stop_feed(struct stop_match *m, const struct request_stop *stop, uint32_t stop_count,
               const char *data, size_t len, struct stop_hit *hit);
/* How many of the text's last bytes may still become the begin of a stop string: hold them back. */
uint32_t stop_hold(const char *text, size_t len, const struct request_stop *stop,
                   uint32_t stop_count);

struct stop_search {
    struct detok detok;
    struct stop_match match;
    struct stop_match before_run; /* match where the text of a byte-fallback run begins */
};

void stop_search_init(struct stop_search *s, const struct tokenizer *t, bool show_special);
/* The next token. True when a stop string has ended in its text; never while may_end is false. What
 * the token adds to the text is left in scratch, which must have room (detok_step_bytes_max). */
bool stop_search_feed(struct stop_search *s, const struct request_params *p, int32_t id,
                      bool may_end, struct buf *scratch, struct stop_hit *hit);

#endif
