/* The end of a lane's Redis Stream, as its shipper needs it: the number after which the next record
 * goes. Private to the shipper and its thread. */
#ifndef RS_SPOOL_STREAM_H
#define RS_SPOOL_STREAM_H

#include "server/base/buf.h"
#include "server/base/errtext.h"

struct redisContext;
struct ship_options;

struct stream {
    char key[48];
    bool (*is_own)(const void *arg, uint64_t seq, const void *entry, size_t len);
    const void *arg;
    struct buf entry;   /* the last own entry that stream_find_end met */
    struct buf foreign; /* ids to delete, each with a NUL */
};

struct stream_end {
    uint64_t seq; /* the next record's number is this + 1; 0: no stream */
    bool
        has_record; /* record seq is the last entry, in stream->entry; false: the stream is empty */
};

void stream_init(struct stream *s, const struct ship_options *opt);
void stream_fini(struct stream *s);

/* Removes what is foreign from the end, so that the last entry is a record of the lane or there is
 * none; then the stream's last id goes back to it, or to `refill` when nothing is left. False:
 * Redis did not answer or refused, err says what; nothing is lost, ask again. */
MUST_CHECK bool stream_find_end(struct stream *s, struct redisContext *redis, uint64_t refill,
                                struct stream_end *end, struct errtext *err);

#endif
