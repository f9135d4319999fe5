/* A watch: a thread that wakes waiting exchanges; the server has a few, each exchange one of them.
 * They exist for three facts of libmicrohttpd: a suspended connection notices no disconnect, has no
 * timeout, and resuming it takes a lock that a polling thread may hold; so the engine never
 * resumes, it pushes the exchange on a lock-free stack and writes an eventfd only if the watch
 * sleeps. The watch writes what a stream has to say itself (flow.h) and resumes the others.
 *
 * Streams are written in turns. A write costs 6 us whatever is in it, so with many streams a turn
 * is followed by a rest in which tokens gather: each then leaves with those of its stream that came
 * meanwhile. The rest grows with the streams that are open, so that writing takes a bounded part of
 * one core, and is nothing for a few.
 *
 *   engine, recorder, workers --watch_wake--> stack + eventfd -+
 *   client sockets (EPOLLRDHUP, EPOLLHUP, full ones) ----------+--> watch thread --> write, resume
 *   clock: idle comments, probes, drain deadline, orphans -----+
 *
 * A client that ends its side of the connection (RFC 9112 9.6: it may) still gets its answer. Since
 * one that has left looks the same until something is written to it, it is probed after a while.
 *
 * Orphans are generations whose client is gone while the engine's chain still holds the request:
 * they are freed once the chain has released it (request.refs is 1), because only then can nothing
 * call wake any more. */
#ifndef RS_HTTP_WATCH_H
#define RS_HTTP_WATCH_H

#include "server/http/exchange.h"

struct watch;

struct watch_options {
    uint32_t slots_max;                 /* sockets watched at a time */
    void (*resume)(struct exchange *x); /* transport: un-suspend; lock is held, x was parked */
    bool keeps_time;                    /* one of them calls http_tick */
    struct http_server *server;
};

MUST_CHECK enum status watch_create(struct watch **out, const struct watch_options *opt,
                                    struct errtext *err);
void watch_destroy(struct watch *w);

/* Something happened for x. Never blocks, never allocates. Thread: any. */
void watch_wake(struct watch *w, struct exchange *x);
/* x, which flows, has more to say: it may wait for the next turn. */
void watch_wake_stream(struct watch *w, struct exchange *x);

/* Park x unless something already happened: true if it was parked (suspend is called under the
 * lock, so no wake can come between). Thread: the connection's. */
bool watch_park(struct watch *w, struct exchange *x, void (*suspend)(struct exchange *x));

/* Notice when the socket's other side leaves, until watch_unsee. x->fd tells that it is seen. */
void watch_see(struct watch *w, struct exchange *x, int fd);
void watch_unsee(struct watch *w, struct exchange *x);

/* The list of live exchanges. */
void watch_enter(struct watch *w, struct exchange *x);
void watch_leave(struct watch *w, struct exchange *x);
/* Keep x until its engine chain has ended, then free it. Takes the caller's reference. */
void watch_orphan(struct watch *w, struct exchange *x);
/* Cancel every generation (with an error for the client) and wake every parked exchange. */
void watch_cancel_all(struct watch *w);
/* Wait until no orphan is left; the number still there after wait_ms. */
uint32_t watch_wait_orphans(struct watch *w, uint32_t wait_ms);
uint32_t watch_live_count(struct watch *w);

#endif
