/* API keys from the config: array of {name, digest, roles, adapters, account, publish_bytes_max} ->
 * struct http_key. */
#ifndef RS_SERVER_KEYS_H
#define RS_SERVER_KEYS_H

#include "server/config.h"
#include "server/http/server.h"

/* keys [*count] owned by the caller (mem_free). Errors name the entry and field. */
MUST_CHECK enum status keys_load(struct http_key **keys, uint32_t *count, const struct config *c,
                                 struct errtext *err);

#endif
