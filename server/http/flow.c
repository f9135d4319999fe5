/* Chunks in the form of RFC 9112 7.1, one for all that the engine has said since the last: the
 * tokens of one turn, of all choices, leave in one write. */
#include "server/http/flow.h"
#include "server/base/clock.h"
#include "server/http/reply.h"
#include "server/http/state.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* The first n bytes of the pieces have been sent; the rest is kept. */
static void keep_rest(struct exchange *x, const struct iovec *piece, int count, size_t n)
{
    for (int i = 0; i < count; i++) {
        size_t skip = n < piece[i].iov_len ? n : piece[i].iov_len;
        buf_put(&x->frame, (const char *)piece[i].iov_base + skip, piece[i].iov_len - skip);
        n -= skip;
    }
}

/* x->out as one chunk. */
static enum flow_next send_chunk(struct exchange *x)
{
    static char line_end[] = "\r\n";
    char size[24];
    int size_len = snprintf(size, sizeof(size), "%zx\r\n", x->out.len);
    struct iovec piece[3] = {{size, (size_t)size_len}, {x->out.data, x->out.len}, {line_end, 2}};
    struct msghdr msg = {.msg_iov = piece, .msg_iovlen = 3};
    size_t total = (size_t)size_len + x->out.len + 2;
    ssize_t n = sendmsg(x->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0)
        return FLOW_RESUME; /* full: the library waits; broken: it finds out */
    metrics_add(&x->server->metrics.stream_writes, 1);
    metrics_add(&x->server->metrics.http_reply_bytes, x->out.len);
    if ((size_t)n < total)
        keep_rest(x, piece, 3, (size_t)n);
    buf_clear(&x->out);
    if ((size_t)n == total)
        return FLOW_STAY;
    atomic_store(&x->blocked_ns, clock_mono_ns());
    return FLOW_WRITE;
}

/* What is left of a chunk: only we can send it. */
static enum flow_next send_rest(struct exchange *x)
{
    ssize_t n = send(x->fd, x->frame.data, x->frame.len, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        return FLOW_RESUME;
    if (n > 0) {
        buf_drop_front(&x->frame, (size_t)n);
        atomic_store(&x->blocked_ns, clock_mono_ns());
    }
    if (x->frame.len > 0)
        return FLOW_WRITE;
    atomic_store(&x->blocked_ns, 0);
    buf_fini(&x->frame);
    return FLOW_STAY;
}

enum flow_next flow_push(struct exchange *x)
{
    enum flow_next next = FLOW_STAY;
    if (!atomic_load(&x->flows) || atomic_load(&x->gone) || atomic_load(&x->server->stopping))
        return FLOW_RESUME;
    if (x->frame.len > 0)
        next = send_rest(x);
    if (next != FLOW_STAY)
        return next;
    for (bool more = true; more && next == FLOW_STAY;) {
        /* The last of it goes out with the library's end of the body. */
        if (generation_stream(x->gen) == GENERATION_REPLY || x->out.failed)
            return FLOW_RESUME;
        more = x->out.len > SSE_BACKLOG_BYTES;
        next = x->out.len > 0 ? send_chunk(x) : FLOW_STAY;
    }
    return next;
}

bool flow_probe(struct exchange *x)
{
    static const char interim[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct generation *g = x->gen;
    if (x->http10 || x->fd < 0 || !g || g->spec.stream)
        return true; /* HTTP/1.0 knows no interim reply; a stream is its own probe */
    /* RFC 9110 15.2: a client takes any number of 1xx before its answer, expected or not. */
    ssize_t n = send(x->fd, interim, sizeof(interim) - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    return n <= 0 || (size_t)n == sizeof(interim) - 1; /* it is full: the client reads nothing */
}
