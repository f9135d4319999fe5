/* An event stream that no generation makes: a job's events, as long as there are any. The transport
 * asks for what is new, sends it and parks the exchange until feeds_wake; a comment line keeps it
 * open meanwhile.
 *
 * Thread    fill: the connection's, which must not wait long; feeds_wake: any */
#ifndef RS_HTTP_FEED_H
#define RS_HTTP_FEED_H

#include "server/base/buf.h"

#include <pthread.h>
#include <stdatomic.h>

#define FEED_TOPIC_BYTES 32

struct exchange;
struct feed;
/* Appends what is new to out; true: the stream has ended. */
typedef bool feed_fill_fn(struct feed *f, struct exchange *x, struct buf *out);

struct feed {
    char topic[FEED_TOPIC_BYTES]; /* what wakes it */
    feed_fill_fn *fill;
    uint64_t at; /* fill's: what was sent */
    bool ended;
    _Atomic uint64_t last_ns; /* when something was sent */
    struct exchange *x;
    struct feed *prev, *next;
};

struct feeds { /* those that are open */
    pthread_mutex_t lock;
    struct feed *first;
};
void feeds_init(struct feeds *f);
void feeds_fini(struct feeds *f);
/* x's answer is this stream, from now on. NO_MEMORY: false. */
bool feed_begin(struct exchange *x, const char *topic, feed_fill_fn *fill);
/* x's connection is finished: nothing wakes it any more. NULL is fine. */
void feed_end(struct feeds *f, struct feed *feed);
/* Append to x's out; x->feed->ended is set at the end. */
void feed_fill(struct exchange *x);
/* Something happened to that topic. */
void feeds_wake(struct feeds *f, const char *topic);
/* It has sent nothing since. */
bool feed_is_idle_since(const struct feed *f, uint64_t ns);

#endif
