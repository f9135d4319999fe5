/* Stop strings over a stream of bytes. A match is the first to end; of those that end at the same
 * byte, the longest. So the answer depends on the bytes only, not on how tokens cut them. State is
 * a tail of the last bytes: no text is kept, nothing is allocated. Used by the engine on token
 * bytes (it ends the sequence) and by HTTP on text (it holds back what may become a stop).
 * Pure; one owner per matcher; thread: any. */
#ifndef RS_ENGINE_STOP_H
#define RS_ENGINE_STOP_H

#include "server/engine/request.h"

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
/* How many of the last bytes fed may still become the begin of a stop string: hold them back. */
uint32_t stop_hold(const struct stop_match *m, const struct request_stop *stop,
                   uint32_t stop_count);

#endif
