/* What is decided from the headers alone: route, key, role, limits. Thread: a polling thread. */
#ifndef RS_HTTP_PREPARE_H
#define RS_HTTP_PREPARE_H

#include "server/http/exchange.h"
#include "server/http/route.h"

/* Header values, any may be NULL; copied where they are kept. */
struct prepare_headers {
    const char *method, *path;
    /* how the message is framed, as far as the library leaves it to us */
    const char *transfer_encoding, *content_encoding;
    uint32_t host_count;
    bool lengths_differ, codings_many, blank_in_name, bad_target;
    const char *authorization, *api_key; /* X-API-Key, where there is no Authorization */
    const char *origin, *host, *request_id, *idempotency_key, *accept;
    const char *retry_count, *content_length, *cors_headers;
    const char *content_type;
    const char *query_first, *query_last;
    json_t *query_metadata; /* the exchange's from now on, or NULL */
    const char *query_after, *query_limit, *query_order, *query_purpose, *query_stream;
};

/* The path of a request target; of one in absolute form (RFC 9112 3.2.2) also the authority, which
 * then stands for the Host header. False: an absolute form without a usable authority. */
MUST_CHECK bool prepare_target(const char *target, const char **path, char *authority,
                               size_t authority_bytes);
/* One argument of the query, as it comes: of OpenAI's filter of lists, metadata[KEY]=VALUE, there
 * may be any number. value may be NULL. */
void prepare_argument(struct prepare_headers *h, const char *name, const char *value);
/* Fill x; a refusal is left as its reply (x->code). With x->close nothing more can be read. */
void prepare_exchange(struct exchange *x, const struct prepare_headers *h);
/* Bytes of this exchange's body that may be kept. */
uint64_t prepare_body_max(const struct exchange *x);

#endif
