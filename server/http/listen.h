/* The transport: libmicrohttpd, used by listen.c alone. Epoll and suspend/resume on a few polling
 * threads, so that a thousand waiting streams cost memory but no thread. */
#ifndef RS_HTTP_LISTEN_H
#define RS_HTTP_LISTEN_H

#include "server/http/state.h"

struct listener;

/* Listens on the bound socket, the listener's once it runs, and starts the polling threads. */
MUST_CHECK enum status listener_start(struct listener **out, struct http_server *s, int fd,
                                      struct errtext *err);
uint16_t listener_port(const struct listener *l);
/* Accept no further connection; those there are go on. Once. */
void listener_quiesce(struct listener *l);
/* Every exchange must have been resumed for good (http_server.stopping). */
void listener_stop(struct listener *l);
/* watch_options.resume */
void listener_resume(struct exchange *x);

#endif
