/* We bind listening sockets ourselves, before a program loads what takes long: then "address
 * already in use" is said as such, at once, and the port that the system chose is known. */
#include "server/base/hostport.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum status hostport_parse(struct hostport *out, const char *key, const char *text,
                           struct errtext *err)
{
    const char *colon = strrchr(text, ':');
    size_t len = colon ? (size_t)(colon - text) : 0;
    bool bracket = len > 2 && text[0] == '[' && text[len - 1] == ']';
    char *end = NULL;
    unsigned long port = colon ? strtoul(colon + 1, &end, 10) : 0;
    bool is_number = colon && colon[1] >= '0' && colon[1] <= '9' && !*end && port <= 65535;
    bool is_host = len > 0 && len < sizeof(out->host) &&
                   (bracket || (text[0] != '[' && !memchr(text, ':', len)));
    if (!is_number || !is_host)
        return err_param(err, STATUS_INVALID, key,
                         "%s: found '%.80s', expected HOST:PORT such as 127.0.0.1:8080", key, text);
    snprintf(out->host, sizeof(out->host), "%.*s", (int)(bracket ? len - 2 : len),
             text + (bracket ? 1 : 0));
    out->port = (uint16_t)port;
    return STATUS_OK;
}

enum status hostport_resolve(struct hostport_address *out, const struct hostport *hp,
                             const char *key, struct errtext *err)
{
    char port[8];
    struct addrinfo *found = NULL;
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    snprintf(port, sizeof(port), "%u", hp->port);
    int rc = getaddrinfo(hp->host, port, &hints, &found);
    if (rc)
        return err_param(err, STATUS_INVALID, key, "%s: cannot listen on the host '%s': %s", key,
                         hp->host, gai_strerror(rc));
    *out = (struct hostport_address){.bytes = found->ai_addrlen};
    memcpy(&out->at, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return STATUS_OK;
}

bool hostport_is_loopback(const struct hostport_address *a)
{
    const struct sockaddr_in *four = (const void *)&a->at;
    const struct sockaddr_in6 *six = (const void *)&a->at;
    if (a->at.ss_family == AF_INET)
        return ntohl(four->sin_addr.s_addr) >> 24 == 127;
    return a->at.ss_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&six->sin6_addr);
}

static enum status refuse(int reason, const struct hostport *hp, const char *key,
                          struct errtext *err)
{
    if (reason == EADDRINUSE)
        return err_param(err, STATUS_IO, key,
                         "address already in use: another program listens on %s:%u; stop it or "
                         "choose another port with --%s HOST:PORT",
                         hp->host, hp->port, key);
    return err_param(err, STATUS_IO, key, "%s: cannot listen on %s:%u: %s", key, hp->host, hp->port,
                     strerror(reason));
}

enum status hostport_bind(int *fd, const struct hostport_address *a, const struct hostport *hp,
                          const char *key, struct errtext *err)
{
    int one = 1;
    int s = socket(a->at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s < 0)
        return err_set(err, STATUS_IO, "cannot make a socket: %s", strerror(errno));
    (void)setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(s, (const struct sockaddr *)&a->at, a->bytes) != 0) {
        int reason = errno;
        close(s);
        return refuse(reason, hp, key, err);
    }
    *fd = s;
    return STATUS_OK;
}

enum status hostport_listen(int fd, int backlog, const struct hostport *hp, const char *key,
                            struct errtext *err)
{
    return listen(fd, backlog) == 0 ? STATUS_OK : refuse(errno, hp, key, err);
}

struct hostport_address hostport_bound(int fd)
{
    struct hostport_address a = {.bytes = sizeof(a.at)};
    if (getsockname(fd, (struct sockaddr *)&a.at, &a.bytes) != 0)
        a = (struct hostport_address){.bytes = 0};
    return a;
}

uint16_t hostport_port(const struct hostport_address *a)
{
    const struct sockaddr_in *four = (const void *)&a->at;
    const struct sockaddr_in6 *six = (const void *)&a->at;
    return ntohs(a->at.ss_family == AF_INET6 ? six->sin6_port : four->sin_port);
}
