/* The sockets that are open, and for how long each may hold its place.
 *
 *   opened ---> idle ---first line---> head ---blank line---> body ---complete---> busy
 *                ^                                                                   |
 *                +--------------------------- reply sent ----------------------------+
 *
 * A head and a body that trickle are cut at a deadline of the whole, with a 408; a body gains time
 * with its bytes, so that a slow link may upload. When all places are taken, or all of one address,
 * a newcomer gets that of whoever has idled longest. If nobody idles it gets one of a few reserved
 * places, which answer the routes without a key (health, metrics) and tell others 503: a full house
 * never hides whether the server is well.
 *
 * Thread: any; one lock, nothing is called while it is held but shutdown and a send that does not
 * block. */
#ifndef RS_HTTP_CONNECTIONS_H
#define RS_HTTP_CONNECTIONS_H

#include "server/base/status.h"

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define CONNECTIONS_RESERVED 32u

enum connection_phase { CONNECTION_IDLE, CONNECTION_HEAD, CONNECTION_BODY, CONNECTION_BUSY };

struct connection {
    int fd;
    struct in6_addr address; /* IPv4 as ::ffff:a.b.c.d */
    enum connection_phase phase;
    bool fresh;    /* nothing has been asked yet */
    bool reserved; /* in a reserved place */
    bool cut;      /* shut down by us, not yet closed */
    uint64_t since_ns, body_bytes;
    struct connection *prev, *next; /* longest in its phase first */
};

struct connections_options {
    uint32_t connections_max, per_address_max; /* per_address_max 0: no limit of its own */
    uint32_t idle_s, head_s, body_s;
};

struct connections_stats {
    uint32_t open, reserved;
    uint64_t reaped, refused, timed_out;
};

struct connections {
    struct connections_options opt;
    pthread_mutex_t lock;
    struct connection *first, *last;
    struct connections_stats stats;
    uint64_t said_ns; /* when a full house was last logged */
};

void connections_init(struct connections *c, const struct connections_options *opt);
void connections_fini(struct connections *c);
/* NULL: no memory or no place at all; the socket is shut down. */
struct connection *connections_open(struct connections *c, int fd, const struct sockaddr *from,
                                    uint64_t now_ns);
/* Before the socket is closed. NULL is nothing. */
void connections_close(struct connections *c, struct connection *k);
void connections_enter(struct connections *c, struct connection *k, enum connection_phase phase,
                       uint64_t now_ns);
/* More of the body has come. */
void connections_add_body(struct connections *c, struct connection *k, uint64_t bytes);
/* Cut what is overdue. */
void connections_expire(struct connections *c, uint64_t now_ns);
void connections_get_stats(struct connections *c, struct connections_stats *out);

#endif
