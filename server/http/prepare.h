/* What is decided from the headers alone: route, key, role, limits. Thread: a polling thread. */
#ifndef RS_HTTP_PREPARE_H
#define RS_HTTP_PREPARE_H

#include "server/http/exchange.h"
#include "server/http/route.h"

/* Header values, any may be NULL; copied where they are kept. */
struct prepare_headers {
    const char *method, *path;
    const char *authorization, *origin, *host, *request_id, *idempotency_key, *accept;
    const char *retry_count, *content_length, *cors_headers;
    const char *query_first, *query_last;
};

/* Fill x; a refusal is left as its reply (x->code). */
void prepare_exchange(struct exchange *x, const struct prepare_headers *h);
/* Bytes of this exchange's body that may be kept. */
uint64_t prepare_body_max(const struct exchange *x);

#endif
