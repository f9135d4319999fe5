/* The watch: one thread that wakes waiting exchanges. It exists for three facts of libmicrohttpd:
 * a suspended connection notices no disconnect, has no timeout, and resuming it takes a lock that a
 * polling thread may hold; so the engine never resumes, it pushes the exchange on a lock-free stack
 * and writes an eventfd at most once per batch.
 *
 *   engine, recorder, workers --watch_wake--> stack + eventfd -+
 *   client sockets (EPOLLRDHUP) -------------------------------+--> watch thread --> resume
 *   clock (1 s): idle comments, drain deadline, orphans -------+
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
    struct http_server *server;
};

MUST_CHECK enum status watch_create(struct watch **out, const struct watch_options *opt,
                                    struct errtext *err);
void watch_destroy(struct watch *w);

/* Something happened for x. Never blocks, never allocates. Thread: any. */
void watch_wake(struct watch *w, struct exchange *x);

/* Park x unless something already happened: true if it was parked (suspend is called under the
 * lock, so no wake can come between). Thread: the connection's. */
bool watch_park(struct watch *w, struct exchange *x, void (*suspend)(struct exchange *x));

/* Notice when the socket's other side leaves, until watch_unsee. */
void watch_see(struct watch *w, struct exchange *x, int fd);
void watch_unsee(struct watch *w, struct exchange *x, int fd);

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
