/* HOST:PORT, as the key `listen` gives it, and the socket bound to it. A name, an IPv4 address, or
 * an IPv6 address in brackets; port 0 is any free port. Thread: any. */
#ifndef RS_BASE_HOSTPORT_H
#define RS_BASE_HOSTPORT_H

#include "server/base/errtext.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

struct hostport {
    char host[256]; /* without brackets */
    uint16_t port;
};

/* INVALID names the key, the found text and what is expected. */
MUST_CHECK enum status hostport_parse(struct hostport *out, const char *key, const char *text,
                                      struct errtext *err);

struct hostport_address {
    struct sockaddr_storage at;
    socklen_t bytes;
};
/* The first address that the system knows for the host. */
MUST_CHECK enum status hostport_resolve(struct hostport_address *out, const struct hostport *hp,
                                        const char *key, struct errtext *err);
bool hostport_is_loopback(const struct hostport_address *a);

/* A TCP socket bound to the address, not listening yet; hp and key are for the error's text. IO:
 * another program has the port, or the address is not this machine's. */
MUST_CHECK enum status hostport_bind(int *fd, const struct hostport_address *a,
                                     const struct hostport *hp, const char *key,
                                     struct errtext *err);
/* IO: another program that was bound too began to listen first. */
MUST_CHECK enum status hostport_listen(int fd, int backlog, const struct hostport *hp,
                                       const char *key, struct errtext *err);
struct hostport_address hostport_bound(int fd); /* of a bound socket */
uint16_t hostport_port(const struct hostport_address *a);

#endif
