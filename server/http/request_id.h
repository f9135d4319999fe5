/* The id of an answer, 32 bytes. Without an x-request-id from the client it is random, and the
 * reply's x-request-id is its hexadecimal form. With one, which need not be unique, the last 16
 * bytes are a digest of it and of the API key: so a record is found by either without a table of
 * names. */
#ifndef RS_HTTP_REQUEST_ID_H
#define RS_HTTP_REQUEST_ID_H

#include "server/http/exchange.h"

void request_id_make(const struct exchange *x, uint8_t id[32]);
/* The id that `text` names for the asking key: "cmpl-HEX", "chatcmpl-HEX", HEX, or an x-request-id
 * (the newest answer that had it). False: no such id. Thread: any. */
bool request_id_read(const struct exchange *x, const char *text, uint8_t id[32]);

#endif
