/* A request is refused here before its body is read, wherever the headers suffice; the transport
 * then reads and drops the body, so that the client sees the answer and not a broken pipe. */
#include "server/http/prepare.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/datanet/documents.h"
#include "server/http/audit.h"
#include "server/http/auth.h"
#include "server/http/reply.h"
#include "server/http/state.h"
#include "server/http/upload.h"

#include <ctype.h>
#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define IGNORED_BODY_BYTES_MAX 65536u

uint64_t prepare_body_max(const struct exchange *x)
{
    if (!x->route || x->route->body == ROUTE_BODY_NONE)
        return IGNORED_BODY_BYTES_MAX;
    if (x->route->body == ROUTE_BODY_UPLOAD)
        return upload_bytes_max(x);
    if (x->route->body == ROUTE_BODY_TEXT)
        return DOCUMENT_BYTES_MAX;
    if (x->route->body == ROUTE_BODY_FORM)
        return UPLOAD_FORM_BYTES_MAX;
    return x->server->opt.body_bytes_max;
}

bool prepare_target(const char *target, const char **path, char *authority, size_t authority_bytes)
{
    size_t scheme = strncasecmp(target, "http://", 7) == 0    ? 7
                    : strncasecmp(target, "https://", 8) == 0 ? 8
                                                              : 0;
    authority[0] = '\0';
    *path = target;
    if (scheme == 0)
        return true;
    size_t len = strcspn(target + scheme, "/");
    *path = target[scheme + len] ? target + scheme + len : "/";
    if (len == 0 || len >= authority_bytes)
        return false;
    memcpy(authority, target + scheme, len);
    authority[len] = '\0';
    return true;
}

/* Copy printable ASCII; anything else makes it absent. */
static bool copy_token(char *out, size_t out_bytes, const char *text)
{
    size_t n = text ? strlen(text) : 0;
    if (n == 0 || n >= out_bytes)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < 0x20 || text[i] > 0x7E)
            return false;
    }
    memcpy(out, text, n + 1);
    return true;
}

static void copy_query(char *out, size_t out_bytes, const char *text)
{
    if (text && *text && !copy_token(out, out_bytes, text))
        snprintf(out, out_bytes, "?");
}

static void set_request_id(struct exchange *x, const char *inbound)
{
    uint8_t random[32];
    x->request_id_given = copy_token(x->request_id, sizeof(x->request_id), inbound);
    if (x->request_id_given)
        return;
    randombytes_buf(random, sizeof(random));
    hex_encode(x->request_id, random, sizeof(random));
}

static void preflight(struct exchange *x, const char *asked)
{
    static const char base[] =
        "authorization, content-type, x-api-key, x-request-id, idempotency-key";
    x->code = 204;
    if (!copy_token(x->cors_headers, sizeof(x->cors_headers), asked))
        snprintf(x->cors_headers, sizeof(x->cors_headers), "%s", base);
}

static bool find_route(struct exchange *x, const struct prepare_headers *h)
{
    struct errtext err = ERRTEXT_INIT;
    enum http_method m = route_method(h->method);
    x->route = route_find(m, x->path, &x->tail, &x->allow);
    if (x->route)
        return true;
    if (m == HTTP_OPTIONS) {
        preflight(x, h->cors_headers);
    } else if (x->allow) {
        (void)err_set(&err, STATUS_INVALID, "%.16s is not a method of %.200s; use %s", h->method,
                      x->path, x->allow);
        exchange_fail_as(x, 405, &err);
    } else {
        (void)err_set(&err, STATUS_NOT_FOUND,
                      "there is no %.16s %.200s on this server; GET /openapi.json lists what is",
                      h->method, x->path);
        exchange_fail_as(x, 404, &err);
    }
    return false;
}

static bool refuse(struct exchange *x, const struct prepare_headers *h, int code,
                   const struct errtext *err)
{
    audit_refusal(x, code, h->authorization, err);
    exchange_fail_as(x, code, err);
    return false;
}

static bool check_bearer(struct exchange *x, const struct prepare_headers *h)
{
    struct errtext err = ERRTEXT_INIT;
    char wanted[64], had[64];
    x->keys = keyring_current(x->server);
    if (auth_check_origin(x->keys, x->server->opt.listen.host, h->origin, h->host, &err))
        return refuse(x, h, 403, &err);
    if (x->route->roles == ROUTE_ROLE_NONE)
        return true;
    if (auth_check(x->keys, h->authorization, &x->key, &x->roles, &err)) {
        metrics_add(&x->server->metrics.auth_failures, 1);
        return refuse(x, h, 401, &err);
    }
    x->fair_key = auth_fair_key(x->key);
    if (x->roles & x->route->roles)
        return true;
    auth_roles_text(x->route->roles, wanted, sizeof(wanted));
    auth_roles_text(x->roles, had, sizeof(had));
    (void)err_set(&err, STATUS_DENIED, "%s %s needs a key with the role %s; this key has: %s",
                  route_method_name(x->route->method), x->route->path, wanted, had);
    return refuse(x, h, 403, &err);
}

/* A key in X-API-Key (Tinker's SDK) is one in Authorization. */
static bool check_key(struct exchange *x, const struct prepare_headers *h)
{
    char bearer[600] = "";
    struct prepare_headers same = *h;
    if (!h->authorization && h->api_key && strlen(h->api_key) < sizeof(bearer) - 8) {
        snprintf(bearer, sizeof(bearer), "Bearer %s", h->api_key);
        same.authorization = bearer;
    }
    bool ok = check_bearer(x, &same);
    mem_wipe(bearer, sizeof(bearer));
    return ok;
}

static bool check_length(struct exchange *x, const char *content_length)
{
    struct errtext err = ERRTEXT_INIT;
    uint64_t max = prepare_body_max(x);
    char *end = NULL;
    if (!content_length)
        return true;
    errno = 0;
    unsigned long long n = strtoull(content_length, &end, 10);
    if (errno || *end || n <= max)
        return true; /* the transport checks the number itself */
    (void)err_set(&err, STATUS_TOO_LARGE, "the body has %llu bytes; at most %llu are accepted", n,
                  (unsigned long long)max);
    exchange_fail_as(x, 413, &err);
    return false;
}

/* What stands in one message must mean one message to everybody on its way (RFC 9112 3.2, 5.1, 6.1,
 * 6.3). After a refusal nobody knows where the next request begins. */
static bool check_framing(struct exchange *x, const struct prepare_headers *h)
{
    struct errtext err = ERRTEXT_INIT;
    const char *te = h->transfer_encoding;
    size_t te_len = te ? strlen(te) : 0;
    bool chunked_last = te_len >= 7 && strcasecmp(te + te_len - 7, "chunked") == 0;
    int code = 400;
    if (h->bad_target)
        (void)err_set(&err, STATUS_INVALID, "the request target has no usable authority");
    else if (h->blank_in_name)
        (void)err_set(&err, STATUS_INVALID, "there is a blank between a header's name and its ':'");
    else if (h->host_count > 1 || (h->host_count == 0 && !x->http10))
        (void)err_set(&err, STATUS_INVALID,
                      "the request has %u Host headers; HTTP/1.1 needs exactly one", h->host_count);
    else if (h->lengths_differ)
        (void)err_set(&err, STATUS_INVALID, "the Content-Length headers differ");
    else if (te && h->content_length)
        (void)err_set(&err, STATUS_INVALID,
                      "the request has both Content-Length and Transfer-Encoding");
    else if (te && (x->http10 || h->codings_many || !chunked_last))
        (void)err_set(&err, STATUS_INVALID,
                      "Transfer-Encoding '%.64s' does not end in one 'chunked' of HTTP/1.1", te);
    else if (te && te_len > 7) {
        code = 501;
        (void)err_set(&err, STATUS_UNSUPPORTED,
                      "Transfer-Encoding '%.64s': only 'chunked' is understood", te);
    }
    if (!err.text[0])
        return true;
    x->close = true;
    exchange_fail_as(x, code, &err);
    return false;
}

static bool check_coding(struct exchange *x, const char *coding)
{
    struct errtext err = ERRTEXT_INIT;
    if (!coding || !*coding || strcasecmp(coding, "identity") == 0 ||
        x->route->body == ROUTE_BODY_NONE)
        return true;
    (void)err_set(&err, STATUS_UNSUPPORTED,
                  "Content-Encoding '%.64s' is not understood; send the body as it is", coding);
    err.code = "unsupported_content_encoding";
    exchange_fail_as(x, 415, &err);
    return false;
}

static bool check_open(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    if (!atomic_load(&x->server->refusing) || x->route->roles == ROUTE_ROLE_NONE)
        return true;
    x->retry_after_ms = 5000;
    (void)err_set(&err, STATUS_BUSY, "the server is shutting down and takes no new requests");
    err.code = "server_draining";
    exchange_fail_as(x, 503, &err);
    return false;
}

void prepare_argument(struct prepare_headers *h, const char *name, const char *value)
{
    static const char prefix[] = "metadata[";
    char key[80];
    size_t len = strlen(name), head = sizeof(prefix) - 1;
    if (strncmp(name, prefix, head) != 0 || name[len - 1] != ']' || len - head > sizeof(key))
        return;
    snprintf(key, sizeof(key), "%.*s", (int)(len - head - 1), name + head);
    json_t *text = json_string(value ? value : "");
    h->query_metadata = h->query_metadata ? h->query_metadata : json_object();
    /* what is no text is nobody's */
    (void)json_object_set_new(h->query_metadata, key, text ? text : json_null());
}

void prepare_exchange(struct exchange *x, const struct prepare_headers *h)
{
    struct errtext err = ERRTEXT_INIT;
    x->query_metadata = h->query_metadata;
    x->arrive_ns = x->server->clock_ns();
    x->arrive_wall_ms = clock_wall_ms();
    set_request_id(x, h->request_id);
    x->openmetrics = h->accept && strstr(h->accept, "application/openmetrics-text");
    if (h->retry_count && strtoll(h->retry_count, NULL, 10) > 0)
        metrics_add(&x->server->metrics.retried, 1);
    if (!check_framing(x, h) || !find_route(x, h) || !check_key(x, h) || !check_open(x) ||
        !check_coding(x, h->content_encoding) || !check_length(x, h->content_length))
        return;
    if (h->idempotency_key && *h->idempotency_key &&
        !copy_token(x->idempotency_key, sizeof(x->idempotency_key), h->idempotency_key)) {
        (void)err_set(&err, STATUS_INVALID,
                      "the Idempotency-Key header must have 1 to %d printable characters",
                      EXCHANGE_IDEM_BYTES_MAX);
        exchange_fail_as(x, 400, &err);
        return;
    }
    (void)copy_token(x->query_first, sizeof(x->query_first), h->query_first);
    (void)copy_token(x->query_last, sizeof(x->query_last), h->query_last);
    copy_query(x->query_after, sizeof(x->query_after), h->query_after);
    copy_query(x->query_limit, sizeof(x->query_limit), h->query_limit);
    copy_query(x->query_order, sizeof(x->query_order), h->query_order);
    copy_query(x->query_purpose, sizeof(x->query_purpose), h->query_purpose);
    copy_query(x->query_stream, sizeof(x->query_stream), h->query_stream);
    buf_init(&x->body, (size_t)prepare_body_max(x));
    if (x->route->body == ROUTE_BODY_UPLOAD)
        upload_stage(x);
    else if (x->route->body == ROUTE_BODY_TEXT)
        upload_stage_text(x);
    else if (x->route->body == ROUTE_BODY_FORM)
        upload_stage_form(x, h->content_type);
}
