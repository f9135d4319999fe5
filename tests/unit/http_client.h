/* A small HTTP/1.1 client for tests: one request on its own connection, the whole reply in memory,
 * chunked bodies put together. */
#ifndef RS_TESTS_HTTP_CLIENT_H
#define RS_TESTS_HTTP_CLIENT_H

#include "server/base/buf.h"
#include "server/base/check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

struct reply {
    int code;
    struct buf head, body;
};

static int client_connect(uint16_t port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof(at)) != 0)
        PANIC("connect: %s", strerror(errno));
    return fd;
}

static void client_send(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
        if (n <= 0)
            return; /* the server may refuse early: its answer is read */
        data += n;
        len -= (size_t)n;
    }
}

/* headers: extra lines, each ending in \r\n. */
static void client_request(int fd, const char *line, const char *headers, const char *body,
                           size_t body_len)
{
    struct buf b;
    buf_init(&b, 1u << 20);
    buf_printf(&b, "%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s", line,
               headers ? headers : "");
    if (body)
        buf_printf(&b, "Content-Type: application/json\r\nContent-Length: %zu\r\n", body_len);
    buf_puts(&b, "\r\n");
    client_send(fd, b.data, b.len);
    if (body)
        client_send(fd, body, body_len);
    buf_fini(&b);
}

static void unchunk(struct buf *body)
{
    struct buf plain;
    size_t at = 0;
    buf_init(&plain, body->bytes_max);
    while (at < body->len) {
        char *end = NULL;
        unsigned long n = strtoul(body->data + at, &end, 16);
        if (n == 0)
            break;
        at = (size_t)(end - body->data) + 2;
        if (at + n > body->len)
            break;
        buf_put(&plain, body->data + at, n);
        at += n + 2;
    }
    buf_fini(body);
    *body = plain;
}

static struct reply client_read(int fd)
{
    struct reply r = {0};
    struct buf all;
    char part[16384];
    ssize_t n;
    buf_init(&all, 64u << 20);
    buf_init(&r.head, 1u << 16);
    buf_init(&r.body, 64u << 20);
    while ((n = recv(fd, part, sizeof(part), 0)) > 0)
        buf_put(&all, part, (size_t)n);
    close(fd);
    char *end = all.data ? strstr(all.data, "\r\n\r\n") : NULL;
    if (end) {
        size_t head = (size_t)(end - all.data) + 4;
        buf_put(&r.head, all.data, head);
        buf_put(&r.body, all.data + head, all.len - head);
        r.code = (int)strtol(all.data + 9, NULL, 10);
        if (strcasestr(r.head.data, "Transfer-Encoding: chunked"))
            unchunk(&r.body);
    }
    buf_puts(&r.body, "");
    buf_puts(&r.head, "");
    buf_fini(&all);
    return r;
}

__attribute__((unused)) static struct reply client_call(uint16_t port, const char *line,
                                                        const char *headers, const char *body)
{
    int fd = client_connect(port);
    client_request(fd, line, headers, body, body ? strlen(body) : 0);
    return client_read(fd);
}

__attribute__((unused)) static void reply_fini(struct reply *r)
{
    buf_fini(&r->head);
    buf_fini(&r->body);
}

#endif
