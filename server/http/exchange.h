/* One HTTP exchange as the handlers see it: what was asked, and the reply being built. The
 * transport (listen.c, the only user of libmicrohttpd) fills the first part, calls the route's
 * handler, and sends what the handler left; nothing here knows the library.
 *
 * Life      created when the headers are in, freed when the connection is finished with it and no
 * wake, worker or engine chain can still reach it (`refs`). A handler either sets `code` and fills
 * `out`, or sets `gen`: then the exchange waits for the engine's tokens.
 * Thread    owned by the connection's polling thread; by one worker thread while `working`. */
#ifndef RS_HTTP_EXCHANGE_H
#define RS_HTTP_EXCHANGE_H

#include "server/base/buf.h"
#include "server/http/server.h"

#include <jansson.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>

#define EXCHANGE_ID_BYTES_MAX   128
#define EXCHANGE_IDEM_BYTES_MAX 255

struct feed;
struct generation;
struct keyring;
struct route;
struct upload;
struct watch;

enum exchange_retry { EXCHANGE_RETRY_UNSAID, EXCHANGE_RETRY_NO, EXCHANGE_RETRY_YES };

struct exchange {
    /* what was asked; set before the handler runs */
    struct http_server *server;
    const struct route *route;
    char *path;                 /* percent-decoded */
    const char *tail;           /* what follows a prefix route's prefix, inside path */
    struct keyring *keys;       /* in force when it arrived */
    const struct http_key *key; /* of keys; NULL: there are none, or the route needs none */
    unsigned roles;
    uint64_t fair_key; /* the key's identity, 0 without keys */
    char peer[INET6_ADDRSTRLEN], method[16], version[12];
    char request_id[EXCHANGE_ID_BYTES_MAX + 1]; /* x-request-id, see request_id.h */
    bool request_id_given;                      /* by the client */
    char idempotency_key[EXCHANGE_IDEM_BYTES_MAX + 1];
    char query_first[24], query_last[24];
    /* "": absent; "?": nothing that is known here (too long, or no text) */
    json_t *query_metadata; /* of ?metadata[KEY]=VALUE; NULL: none */
    char query_after[48], query_limit[12], query_order[8], query_purpose[24], query_stream[8];
    bool openmetrics;
    uint64_t arrive_ns, arrive_wall_ms;
    uint64_t body_bytes; /* received, kept or not */
    struct buf body;
    size_t body_charged;   /* memory of body that counts in http_server.bodies_bytes */
    struct upload *upload; /* a streamed body goes here instead of `body` */

    /* the reply */
    int code; /* 0: none yet */
    uint64_t sent_bytes;
    struct buf out;
    const char *content_type;
    const char *allow;                /* 405: the methods there are */
    const char *policy;               /* a file of the page: what it may load */
    char cors_headers[512];           /* preflight: the headers asked for */
    uint32_t retry_after_ms;          /* 0: not sent */
    enum exchange_retry retry;        /* x-should-retry */
    bool close;                       /* Connection: close */
    bool dispatched;                  /* the body is complete and the handler was called */
    _Atomic(struct generation *) gen; /* the answer comes from the engine */
    _Atomic(struct feed *) feed;      /* the answer is an event stream of others */

    /* waiting; see watch.h */
    struct watch *watch;  /* the one that wakes it */
    pthread_mutex_t lock; /* parked, pending, closed; while parked also what flow.h writes */
    bool parked, pending, closed;
    atomic_bool gone;                /* the client has left */
    _Atomic uint64_t half_closed_ns; /* when the client has ended its side, or 0 */
    bool probed;                     /* it was asked whether it still reads */
    atomic_bool ping;                /* a comment line is due */
    atomic_bool working;             /* a worker thread has it */
    atomic_bool wake_queued;
    struct exchange *wake_next;
    atomic_uint refs;
    uint32_t watch_slot; /* UINT32_MAX: its socket is not watched */
    struct exchange *live_prev, *live_next, *orphan_next;
    void *transport;               /* the library's connection */
    struct connection *connection; /* its socket's entry, or NULL */

    /* a stream past the library; see flow.h */
    int fd; /* -1 until its socket is watched */
    bool http10;
    atomic_bool flows;           /* the head is out: chunks may be written by flow.c */
    struct buf frame;            /* the rest of a chunk that did not fit into the socket */
    _Atomic uint64_t blocked_ns; /* since when it does not, or 0 */
};

/* One reference, no reply yet; NULL: no memory. transport: the library's connection. */
struct exchange *exchange_create(struct http_server *s, void *transport, const char *path);
/* Thread: any. The last unref frees: the connection is finished and nothing can wake it. */
void exchange_ref(struct exchange *x);
void exchange_unref(struct exchange *x);

/* Keep more of the body, or leave a refusal: too much memory in all. */
void exchange_keep_body(struct exchange *x, const char *data, size_t len);
void exchange_drop_body(struct exchange *x);

/* Fill in an error reply: the OpenAI error object for st and err (its text, param and code). */
void exchange_fail(struct exchange *x, enum status st, const struct errtext *err);
/* The same with the HTTP code chosen by the caller. */
void exchange_fail_as(struct exchange *x, int http_code, const struct errtext *err);
/* An event stream: append what is new to x->out. */
void exchange_fill(struct exchange *x);
bool exchange_has_ended(const struct exchange *x);
/* A finished JSON body was put in x->out. */
void exchange_json(struct exchange *x, int code);

#endif
