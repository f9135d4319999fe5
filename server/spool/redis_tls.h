/* TLS under a connection to Redis. hiredis reads and writes a file descriptor, so it is given one
 * end of a socket pair; a thread carries bytes between the other end and the encrypted connection,
 * and ends with either. */
#ifndef RS_SPOOL_REDIS_TLS_H
#define RS_SPOOL_REDIS_TLS_H

#include "server/base/errtext.h"

#include <stdint.h>

struct redis_tls; /* what is trusted; shared by the connections made of it */

/* ca_file: certificates (PEM) that may sign the server's; NULL: those of the system. INVALID: the
 * file cannot be read. */
MUST_CHECK enum status redis_tls_open(struct redis_tls **out, const char *ca_file,
                                      struct errtext *err);
void redis_tls_close(struct redis_tls *t); /* NULL is fine; its connections live on */

/* Shakes hands over the connected socket tcp, where the server must be `host`, and takes it over,
 * also on an error. *plain: the end to read and write; closing it ends all. IO: the handshake
 * failed, with its reason. Waits at most wait_ms. */
MUST_CHECK enum status redis_tls_start(const struct redis_tls *t, int tcp, const char *host,
                                       uint32_t wait_ms, int *plain, struct errtext *err);

#endif
