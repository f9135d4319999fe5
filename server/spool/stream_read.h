/* Reading single records back from a lane's stream: what a spool lost and Redis still has. One
 * owner. */
#ifndef RS_SPOOL_STREAM_READ_H
#define RS_SPOOL_STREAM_READ_H

#include "server/base/buf.h"
#include "server/spool/redis_link.h"

struct stream_reader {
    struct redis_link link;
    struct redisContext *redis;
    char key[48];
};

/* Connects. Errors: as of redis_link_open and redis_link_connect. */
MUST_CHECK enum status stream_reader_open(struct stream_reader *r, const char *url,
                                          const char *password_file, uint32_t lane,
                                          struct errtext *err);
void stream_reader_close(struct stream_reader *r);
/* The last number the stream gave; 0: it has none. */
MUST_CHECK enum status stream_reader_last(struct stream_reader *r, uint64_t *seq,
                                          struct errtext *err);
/* The entry of record seq, unchecked. NOT_FOUND: it is not there. */
MUST_CHECK enum status stream_reader_take(struct stream_reader *r, uint64_t seq, struct buf *entry,
                                          struct errtext *err);

#endif
