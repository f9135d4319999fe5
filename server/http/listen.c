/* libmicrohttpd's only user. What its manual says and what costs if forgotten:
 *
 *  - A response may be queued only from the access handler, so a waiting exchange is resumed and
 *    then called again: every call is "look again what to do" (step).
 *  - Suspend only inside the access handler or the content reader; resume only what is suspended:
 *    `parked`, under the exchange's lock, says which (watch_park).
 *  - A content reader that returns 0 without suspending spins.
 *  - A suspended connection has no timeout and notices no disconnect: the watch looks at its
 * socket.
 *  - Every connection must be resumed before the daemon is stopped.
 *
 * The listening socket is ours (http_bind). Both 0.9.75 (Debian 12) and 1.0 build. */
#include "server/http/listen.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/http/access_log.h"
#include "server/http/generate.h"
#include "server/http/prepare.h"
#include "server/http/reply.h"
#include "server/http/upload.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTION_MEMORY_BYTES (32u << 10)
#define STREAM_BLOCK_BYTES      (16u << 10)
#define LISTEN_BACKLOG          1024
/* Read and drop at most this much of a refused body. */
#define DROP_BYTES_MAX (256ull << 20)
/* Bodies above this are parsed and tokenized on a worker, not on a polling thread. */
#define INLINE_BODY_BYTES_MAX (32u << 10)
/* Descriptors besides the clients': files, eventfds, Redis and so on. */
#define SPARE_FDS 256u
/* With fewer there is no service; then descriptors may run out after all. */
#define CONNECTIONS_FEWEST 8u

struct listener {
    struct http_server *server;
    struct MHD_Daemon *daemon;
    int fd;
    uint16_t port;
    atomic_bool quiesced;
};

void listener_resume(struct exchange *x)
{
    MHD_resume_connection(x->transport);
}

static void suspend(struct exchange *x)
{
    MHD_suspend_connection(x->transport);
}

/* ---- replies ---- */

static void add_header(struct MHD_Response *r, const char *name, const char *value)
{
    if (MHD_add_response_header(r, name, value) != MHD_YES)
        log_warn("http", "the reply header %s could not be set", name);
}

static void add_retry(struct exchange *x, struct MHD_Response *r)
{
    char text[32];
    if (x->retry != EXCHANGE_RETRY_UNSAID)
        add_header(r, "x-should-retry", x->retry == EXCHANGE_RETRY_YES ? "true" : "false");
    if (x->retry_after_ms == 0)
        return;
    snprintf(text, sizeof(text), "%u", (x->retry_after_ms + 999) / 1000);
    add_header(r, "Retry-After", text);
    snprintf(text, sizeof(text), "%u", x->retry_after_ms);
    add_header(r, "retry-after-ms", text);
}

static void add_headers(struct exchange *x, struct MHD_Response *r)
{
    char text[32];
    uint64_t ms = (x->server->clock_ns() - x->arrive_ns) / 1000000;
    add_header(r, "x-request-id", x->request_id);
    snprintf(text, sizeof(text), "%llu", (unsigned long long)ms);
    add_header(r, "openai-processing-ms", text);
    add_retry(x, r);
    if (x->allow)
        add_header(r, "Allow", x->allow);
    if (x->policy) {
        add_header(r, "Content-Security-Policy", x->policy);
        add_header(r, "X-Content-Type-Options", "nosniff");
        add_header(r, "Referrer-Policy", "no-referrer");
        add_header(r, "Cache-Control", "no-cache");
    }
    if (x->code == 401)
        add_header(r, "WWW-Authenticate", "Bearer");
    if (x->code == 415)
        add_header(r, "Accept-Encoding", "identity");
    add_header(r, "Access-Control-Allow-Origin", "*");
    add_header(r, "Access-Control-Expose-Headers",
               "x-request-id, openai-processing-ms, retry-after, retry-after-ms, x-should-retry");
    if (x->cors_headers[0]) {
        add_header(r, "Access-Control-Allow-Headers", x->cors_headers);
        add_header(r, "Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS");
        add_header(r, "Access-Control-Max-Age", "600");
    }
    if (x->close || atomic_load(&x->server->draining))
        add_header(r, "Connection", "close");
}

static enum MHD_Result queue(struct exchange *x, struct MHD_Response *r)
{
    if (!r)
        return MHD_NO;
    add_headers(x, r);
    enum MHD_Result result = MHD_queue_response(x->transport, (unsigned)x->code, r);
    MHD_destroy_response(r);
    return result;
}

/* The body stays in x->out, which outlives the response's transmission. */
static enum MHD_Result send_reply(struct exchange *x)
{
    static char nothing[1];
    struct MHD_Response *r = MHD_create_response_from_buffer(
        x->out.len, x->out.data ? x->out.data : nothing, MHD_RESPMEM_PERSISTENT);
    if (r && x->content_type)
        add_header(r, "Content-Type", x->content_type);
    metrics_add(&x->server->metrics.http_reply_bytes, x->out.len);
    x->sent_bytes = x->out.len;
    return queue(x, r);
}

static ssize_t read_stream(void *cls, uint64_t pos, char *out, size_t max)
{
    struct exchange *x = cls;
    (void)pos;
    for (;;) {
        if (x->frame.len > 0) /* resumed in the middle of a chunk: the client is gone */
            return MHD_CONTENT_READER_END_WITH_ERROR;
        if (x->out.len > 0) {
            size_t n = x->out.len < max ? x->out.len : max;
            memcpy(out, x->out.data, n);
            buf_drop_front(&x->out, n);
            metrics_add(&x->server->metrics.http_reply_bytes, n);
            x->sent_bytes += n;
            return (ssize_t)n;
        }
        if (exchange_has_ended(x))
            return MHD_CONTENT_READER_END_OF_STREAM;
        if (atomic_load(&x->gone) || atomic_load(&x->server->stopping) || x->out.failed)
            return MHD_CONTENT_READER_END_WITH_ERROR;
        exchange_fill(x);
        if (x->out.len > 0 || exchange_has_ended(x))
            continue;
        /* Once here, head and first chunk are out. */
        if (x->gen && !x->http10 && x->fd >= 0 && !atomic_exchange(&x->flows, true))
            atomic_fetch_add(&x->server->streams, 1);
        if (watch_park(x->watch, x, suspend))
            return 0;
    }
}

static enum MHD_Result send_stream(struct exchange *x)
{
    x->code = 200;
    if (x->gen)
        x->gen->streaming = true;
    struct MHD_Response *r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES,
                                                               read_stream, x, NULL);
    if (r) {
        add_header(r, "Content-Type", "text/event-stream; charset=utf-8");
        add_header(r, "Cache-Control", "no-cache");
        add_header(r, "X-Accel-Buffering", "no");
    }
    return queue(x, r);
}

/* ---- one exchange ---- */

static void see_socket(struct exchange *x)
{
    int one = 1;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->transport, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (!info || x->fd >= 0)
        return;
    (void)setsockopt(info->connect_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* flow.h */
    watch_see(x->watch, x, info->connect_fd);
}

/* Look what there is to do; called until a response is queued. */
static enum MHD_Result step(struct exchange *x)
{
    for (;;) {
        bool working = atomic_load_explicit(&x->working, memory_order_acquire);
        bool leaving = atomic_load(&x->gone) || atomic_load(&x->server->stopping);
        if (!working && leaving)
            return MHD_NO;
        if (!working && x->code)
            return send_reply(x);
        if (!working && x->feed)
            return send_stream(x);
        if (!working) {
            CHECK(x->gen);
            enum generation_next next = generation_poll(x->gen);
            if (next == GENERATION_REPLY)
                return send_reply(x);
            if (next == GENERATION_STREAM)
                return send_stream(x);
        }
        see_socket(x);
        if (watch_park(x->watch, x, suspend))
            return MHD_YES;
    }
}

static void dispatch(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    if (x->code)
        return;
    if (!x->route->blocking && x->body.len <= INLINE_BODY_BYTES_MAX) {
        x->route->handle(x);
        return;
    }
    atomic_store(&x->working, true);
    if (http_work_push(x->server, x))
        return;
    atomic_store(&x->working, false);
    (void)err_set(&err, STATUS_FULL, "too many requests wait for a worker; retry");
    exchange_fail_as(x, 503, &err);
}

/* One piece of the body. */
static enum MHD_Result receive(struct exchange *x, const char *data, size_t len)
{
    struct errtext err = ERRTEXT_INIT;
    x->body_bytes += len;
    metrics_add(&x->server->metrics.http_request_bytes, len);
    connections_add_body(&x->server->connections, x->connection, len);
    if (x->code)
        return x->body_bytes > DROP_BYTES_MAX ? MHD_NO : MHD_YES;
    if (x->body_bytes > prepare_body_max(x)) {
        (void)err_set(&err, STATUS_TOO_LARGE,
                      "the body is larger than %llu bytes, the maximum here",
                      (unsigned long long)prepare_body_max(x));
        exchange_drop_body(x);
        x->close = true;
        exchange_fail_as(x, 413, &err);
        return MHD_YES;
    }
    if (x->upload)
        upload_write(x, data, len);
    else if (x->route->body != ROUTE_BODY_NONE)
        exchange_keep_body(x, data, len);
    return MHD_YES;
}

static const char *header(struct MHD_Connection *c, const char *name)
{
    return MHD_lookup_connection_value(c, MHD_HEADER_KIND, name);
}

static const char *query(struct MHD_Connection *c, const char *name)
{
    return MHD_lookup_connection_value(c, MHD_GET_ARGUMENT_KIND, name);
}

static void set_peer(struct exchange *x)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->transport, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *a = info ? info->client_addr : NULL;
    const void *bytes = NULL;
    if (a && a->sa_family == AF_INET)
        bytes = &((const struct sockaddr_in *)(const void *)a)->sin_addr;
    else if (a && a->sa_family == AF_INET6)
        bytes = &((const struct sockaddr_in6 *)(const void *)a)->sin6_addr;
    if (!bytes || !inet_ntop(a->sa_family, bytes, x->peer, sizeof(x->peer)))
        snprintf(x->peer, sizeof(x->peer), "-");
}

/* Each header line: the library looks at the first of a name only. */
static enum MHD_Result see_header(void *cls, enum MHD_ValueKind kind, const char *name,
                                  const char *value)
{
    struct prepare_headers *h = cls;
    size_t len = strlen(name);
    (void)kind;
    if (len > 0 && (name[len - 1] == ' ' || name[len - 1] == '\t'))
        h->blank_in_name = true;
    h->host_count += strcasecmp(name, "Host") == 0;
    if (strcasecmp(name, "Content-Length") == 0) {
        h->lengths_differ |= h->content_length && strcmp(h->content_length, value) != 0;
        h->content_length = value;
    } else if (strcasecmp(name, "Transfer-Encoding") == 0) {
        h->codings_many |= h->transfer_encoding != NULL;
        h->transfer_encoding = value;
    }
    return MHD_YES;
}

static enum MHD_Result see_argument(void *cls, enum MHD_ValueKind kind, const char *name,
                                    const char *value)
{
    (void)kind;
    prepare_argument(cls, name, value);
    return MHD_YES;
}

static struct connection *entry_of(struct MHD_Connection *c)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

/* A reserved place is for routes that need no key, one request each. */
static void refuse_crowd(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    x->close = true;
    if (x->code || x->route->roles == ROUTE_ROLE_NONE)
        return;
    (void)err_set(&err, STATUS_FULL,
                  "too many connections are open, here or from this address (connections_max %u, "
                  "connections_per_ip_max %u); retry, or keep fewer",
                  x->server->opt.connections_max, x->server->opt.connections_per_ip_max);
    err.code = "too_many_connections";
    exchange_fail_as(x, 503, &err);
}

static struct exchange *begin(struct http_server *s, struct MHD_Connection *c, const char *target,
                              const char *method, const char *version)
{
    char authority[256];
    const char *path;
    bool known = prepare_target(target, &path, authority, sizeof(authority));
    struct exchange *x = exchange_create(s, c, path);
    if (!x)
        return NULL;
    watch_enter(x->watch, x);
    snprintf(x->method, sizeof(x->method), "%s", method);
    snprintf(x->version, sizeof(x->version), "%s", version);
    set_peer(x);
    x->http10 = strcmp(version, "HTTP/1.0") == 0;
    struct prepare_headers h = {.method = method,
                                .path = x->path,
                                .authorization = header(c, "Authorization"),
                                .api_key = header(c, "X-API-Key"),
                                .origin = header(c, "Origin"),
                                .host = authority[0] ? authority : header(c, "Host"),
                                .request_id = header(c, "x-request-id"),
                                .idempotency_key = header(c, "Idempotency-Key"),
                                .accept = header(c, "Accept"),
                                .retry_count = header(c, "x-stainless-retry-count"),
                                .content_encoding = header(c, "Content-Encoding"),
                                .cors_headers = header(c, "Access-Control-Request-Headers"),
                                .query_first = query(c, "first"),
                                .content_type = header(c, "Content-Type"),
                                .query_last = query(c, "last"),
                                .query_after = query(c, "after"),
                                .query_limit = query(c, "limit"),
                                .query_order = query(c, "order"),
                                .query_purpose = query(c, "purpose"),
                                .query_stream = query(c, "stream")};
    (void)MHD_get_connection_values(c, MHD_HEADER_KIND, see_header, &h);
    (void)MHD_get_connection_values(c, MHD_GET_ARGUMENT_KIND, see_argument, &h);
    h.bad_target = !known;
    prepare_exchange(x, &h);
    x->connection = entry_of(c);
    if (x->connection && x->connection->reserved)
        refuse_crowd(x);
    connections_enter(&s->connections, x->connection, CONNECTION_BODY, clock_mono_ns());
    return x;
}

/* lint: waive parameters - the library's callback has this signature */
static enum MHD_Result on_access(void *cls, struct MHD_Connection *c, const char *url,
                                 const char *method, const char *version, const char *data,
                                 size_t *data_len, void **con_cls)
{
    struct exchange *x = *con_cls;
    if (!x) {
        x = begin(cls, c, url, method, version);
        *con_cls = x;
        /* A client that waits for leave to send its body gets the refusal instead, and so does one
         * whose body has no known end. */
        if (x && x->code && (x->close || header(c, "Expect")))
            return send_reply(x);
        return x ? MHD_YES : MHD_NO;
    }
    if (*data_len > 0) {
        size_t n = *data_len;
        *data_len = 0;
        return receive(x, data, n);
    }
    if (!x->dispatched) {
        x->dispatched = true;
        connections_enter(&x->server->connections, x->connection, CONNECTION_BUSY, clock_mono_ns());
        dispatch(x);
    }
    return step(x);
}

static void on_completed(void *cls, struct MHD_Connection *c, void **con_cls,
                         enum MHD_RequestTerminationCode toe)
{
    struct http_server *s = cls;
    struct exchange *x = *con_cls;
    (void)c;
    if (!x)
        return;
    *con_cls = NULL;
    watch_unsee(x->watch, x);
    watch_leave(x->watch, x);
    feed_end(&s->feeds, x->feed);
    x->feed = NULL;
    connections_enter(&s->connections, x->connection, CONNECTION_IDLE, clock_mono_ns());
    x->connection = NULL;
    pthread_mutex_lock(&x->lock);
    CHECK(!x->parked);
    x->closed = true;
    pthread_mutex_unlock(&x->lock);
    if (atomic_load(&x->flows))
        atomic_fetch_sub(&s->streams, 1);
    uint64_t ns = s->clock_ns() - x->arrive_ns;
    metrics_http(&s->metrics, x->route ? route_index(x->route) : METRICS_ROUTES_MAX,
                 x->code ? x->code : 499, (double)ns * 1e-9);
    if (s->opt.access_log)
        access_log_write(s->opt.access_log, x, header(c, "User-Agent"), ns);
    if (x->gen && toe != MHD_REQUEST_TERMINATED_COMPLETED_OK) {
        atomic_store(&x->gone, true);
        generation_cancel(x->gen);
    }
    if (x->gen && !generation_is_over(x->gen))
        watch_orphan(x->watch, x);
    else
        exchange_unref(x);
}

static void on_socket_notice(void *cls, struct MHD_Connection *c, void **entry,
                             enum MHD_ConnectionNotificationCode code)
{
    struct http_server *s = cls;
    if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
        connections_close(&s->connections, *entry);
        *entry = NULL;
        return;
    }
    const union MHD_ConnectionInfo *fd =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    const union MHD_ConnectionInfo *from =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    *entry = fd && from ? connections_open(&s->connections, fd->connect_fd, from->client_addr,
                                           clock_mono_ns())
                        : NULL;
}

/* The first line of a request is here. The value returned becomes con_cls. */
static void *on_first_line(void *cls, const char *uri, struct MHD_Connection *c)
{
    struct http_server *s = cls;
    (void)uri;
    connections_enter(&s->connections, entry_of(c), CONNECTION_HEAD, clock_mono_ns());
    return NULL;
}

/* ---- the listening socket and the daemon ---- */

static void on_log(void *cls, const char *fmt, va_list ap)
{
    char text[256];
    (void)cls;
    vsnprintf(text, sizeof(text), fmt, ap);
    text[strcspn(text, "\r\n")] = '\0';
    log_debug("http", "%s", text);
}

enum status http_bind(int *fd, const struct http_options *opt, struct errtext *err)
{
    struct hostport_address at;
    enum status st = page_check_url(opt->settle_url, err);
    if (!st)
        st = hostport_resolve(&at, &opt->listen, "listen", err);
    if (!st && opt->key_count == 0 && !hostport_is_loopback(&at))
        st = err_param(err, STATUS_DENIED, "listen",
                       "refusing to listen on %s without API keys: anyone who reaches it could use "
                       "and change this server; configure keys, or listen on 127.0.0.1",
                       opt->listen.host);
    return st ? st : hostport_bind(fd, &at, &opt->listen, "listen", err);
}

/* Each connection is a descriptor: raise the soft limit as far as needed and allowed. Where that is
 * not enough there are fewer places: a server that runs out of descriptors answers nobody. */
static void fit_fd_limit(struct http_server *s)
{
    struct rlimit lim;
    const rlim_t others = CONNECTIONS_RESERVED + SPARE_FDS;
    rlim_t want = (rlim_t)s->opt.connections_max + others;
    if (getrlimit(RLIMIT_NOFILE, &lim) != 0 || lim.rlim_cur >= want)
        return;
    rlim_t had = lim.rlim_cur;
    lim.rlim_cur = lim.rlim_max == RLIM_INFINITY || lim.rlim_max >= want ? want : lim.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &lim) != 0)
        lim.rlim_cur = had;
    if (lim.rlim_cur >= want)
        return;
    uint32_t fit = lim.rlim_cur > others + CONNECTIONS_FEWEST ? (uint32_t)(lim.rlim_cur - others)
                                                              : CONNECTIONS_FEWEST;
    log_warn("http",
             "only %llu open files are allowed: at most %u clients can connect at a time instead "
             "of connections_max %u (raise `ulimit -n`)",
             (unsigned long long)lim.rlim_cur, fit, s->opt.connections_max);
    s->opt.connections_max = fit;
    s->connections.opt.connections_max = fit;
}

static struct MHD_Daemon *start_daemon(struct listener *l, int family)
{
    const struct http_options *opt = &l->server->opt;
    unsigned flags = MHD_USE_EPOLL | MHD_USE_INTERNAL_POLLING_THREAD | MHD_ALLOW_SUSPEND_RESUME |
                     MHD_USE_ERROR_LOG;
    if (family == AF_INET6)
        flags |= MHD_USE_IPv6;
    uint32_t threads = opt->thread_count > 1 ? opt->thread_count : 2;
    /* connections.h says who may stay; no thread may stop to accept before it does. */
    uint32_t limit = threads * (opt->connections_max + CONNECTIONS_RESERVED + SPARE_FDS);
    return MHD_start_daemon(
        flags, l->port, NULL, NULL, on_access, l->server, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, l->server, MHD_OPTION_LISTEN_SOCKET, l->fd,
        MHD_OPTION_THREAD_POOL_SIZE, (unsigned)threads, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)limit, MHD_OPTION_NOTIFY_CONNECTION, on_socket_notice, l->server,
        MHD_OPTION_URI_LOG_CALLBACK, on_first_line, l->server, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)opt->idle_timeout_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)CONNECTION_MEMORY_BYTES, MHD_OPTION_LISTEN_BACKLOG_SIZE, (unsigned)LISTEN_BACKLOG,
        MHD_OPTION_END);
}

enum status listener_start(struct listener **out, struct http_server *s, int fd,
                           struct errtext *err)
{
    struct listener *l = mem_alloc(sizeof(*l));
    struct hostport_address at = hostport_bound(fd);
    l->server = s;
    l->fd = fd;
    l->port = hostport_port(&at);
    fit_fd_limit(s);
    enum status st = hostport_listen(fd, LISTEN_BACKLOG, &s->opt.listen, "listen", err);
    if (!st) {
        l->daemon = start_daemon(l, at.at.ss_family);
        if (!l->daemon)
            st = err_set(err, STATUS_IO, "the HTTP library did not start: %s", strerror(errno));
    }
    if (st) {
        mem_free(l);
        return st;
    }
    *out = l;
    return STATUS_OK;
}

uint16_t listener_port(const struct listener *l)
{
    return l->port;
}

void listener_quiesce(struct listener *l)
{
    if (atomic_exchange(&l->quiesced, true))
        return;
    MHD_socket fd = MHD_quiesce_daemon(l->daemon);
    if (fd != MHD_INVALID_SOCKET)
        close(fd);
}

void listener_stop(struct listener *l)
{
    listener_quiesce(l);
    MHD_stop_daemon(l->daemon);
    mem_free(l);
}
