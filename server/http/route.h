/* The table of routes: method, path, handler, role, body limit. One row is one line of the manual;
 * /openapi.json describes the same rows and a test compares the two. */
#ifndef RS_HTTP_ROUTE_H
#define RS_HTTP_ROUTE_H

#include "server/http/exchange.h"

enum http_method {
    HTTP_GET,
    HTTP_POST,
    HTTP_PUT,
    HTTP_DELETE,
    HTTP_OPTIONS,
    HTTP_METHOD_COUNT,
    HTTP_METHOD_OTHER = HTTP_METHOD_COUNT
};

enum route_body {
    ROUTE_BODY_NONE,   /* a body is read and ignored, up to 64 KiB */
    ROUTE_BODY_JSON,   /* kept, up to http_options.body_bytes_max */
    ROUTE_BODY_UPLOAD, /* streamed to a staging file, bounded by the publisher's quota */
    ROUTE_BODY_TEXT,   /* the same of a document: up to DOCUMENT_BYTES_MAX */
    ROUTE_BODY_FORM    /* the same of multipart/form-data: up to UPLOAD_FORM_BYTES_MAX */
};

#define ROUTE_ROLE_NONE 0u /* no key needed */
#define ROUTE_ROLE_ANY  (~0u)

struct route {
    enum http_method method;
    const char *path; /* "/x/": a prefix, and the rest is exchange.tail; "/" is itself */
    void (*handle)(struct exchange *x);
    unsigned roles; /* one of these is enough */
    enum route_body body;
    bool blocking; /* may wait on disk or the engine: runs on a worker thread */
};

enum http_method route_method(const char *text);
const char *route_method_name(enum http_method m);
bool route_is_prefix(const struct route *r);
/* NULL: *allow is the methods the path has ("GET, POST"), or NULL if the path is unknown. */
const struct route *route_find(enum http_method m, const char *path, const char **tail,
                               const char **allow);
uint32_t route_count(void);
const struct route *route_at(uint32_t idx);
uint32_t route_index(const struct route *r);

#endif
