/* What taking an adapter away is, whoever asks for it. */
#ifndef RS_HTTP_ADAPTERS_H
#define RS_HTTP_ADAPTERS_H

#include "server/http/exchange.h"

/* Forget the name (forget: on disk too) and free the bytes, unless another name still points to
 * them. Blocks until no request uses them. On failure the name is as it was, so that the call can
 * be repeated: NOT_FOUND, BUSY. */
MUST_CHECK enum status adapters_unload(struct http_server *s, const char *name, bool forget,
                                       struct errtext *err);
/* Its files and its end are for who published it, and for admins. */
bool adapters_may_dispose(const struct exchange *x, const struct adapter_entry *e);

#endif
