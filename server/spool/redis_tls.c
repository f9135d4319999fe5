/* The handshake is blocking and bounded by the socket's time limits; then both ends are polled. The
 * thread owns its connection and nobody waits for it: it ends when hiredis closes its end. */
#include "server/spool/redis_tls.h"
#include "server/base/mem.h"
#include "server/base/thread.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define PIPE_BYTES 16384

struct redis_tls {
    SSL_CTX *ctx;
};

/* One direction: what was read and is not yet written. */
struct flow {
    size_t at, len;
    char data[PIPE_BYTES];
};

struct tunnel {
    SSL *ssl;
    int tcp, plain;
    struct flow out, in; /* to the server; from it */
    bool wants_write;    /* the encrypted side waits to be writable */
};

static const char *reason(void)
{
    unsigned long code = ERR_get_error();
    const char *text = code ? ERR_reason_error_string(code) : NULL;
    ERR_clear_error();
    return text ? text : "the server does not speak TLS, or closed the connection";
}

enum status redis_tls_open(struct redis_tls **out, const char *ca_file, struct errtext *err)
{
    struct redis_tls *t = mem_alloc(sizeof(*t));
    *out = NULL;
    t->ctx = SSL_CTX_new(TLS_client_method());
    bool good = t->ctx && SSL_CTX_set_min_proto_version(t->ctx, TLS1_2_VERSION) == 1;
    if (good)
        good = ca_file ? SSL_CTX_load_verify_locations(t->ctx, ca_file, NULL) == 1
                       : SSL_CTX_set_default_verify_paths(t->ctx) == 1;
    if (!good) {
        enum status st = err_param(err, STATUS_INVALID, "redis_ca_file", "redis_ca_file %s: %s",
                                   ca_file ? ca_file : "(the system's)", reason());
        redis_tls_close(t);
        return st;
    }
    SSL_CTX_set_verify(t->ctx, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_mode(t->ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    *out = t;
    return STATUS_OK;
}

void redis_tls_close(struct redis_tls *t)
{
    if (!t)
        return;
    SSL_CTX_free(t->ctx);
    mem_free(t);
}

/* ---- the tunnel ---- */

static void tunnel_free(struct tunnel *t)
{
    if (t->ssl) {
        (void)SSL_shutdown(t->ssl);
        SSL_free(t->ssl);
    }
    if (t->plain >= 0)
        close(t->plain);
    if (t->tcp >= 0)
        close(t->tcp);
    mem_wipe(t, sizeof(*t));
    mem_free(t);
}

/* false: the connection is over. */
static bool try_again(struct tunnel *t, int n)
{
    int why = SSL_get_error(t->ssl, n);
    t->wants_write |= why == SSL_ERROR_WANT_WRITE;
    return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE;
}

static bool send_out(struct tunnel *t)
{
    if (t->out.len == 0) {
        ssize_t n = read(t->plain, t->out.data, sizeof(t->out.data));
        if (n <= 0)
            return n < 0 && (errno == EAGAIN || errno == EINTR);
        t->out.at = 0;
        t->out.len = (size_t)n;
    }
    int n = SSL_write(t->ssl, t->out.data + t->out.at, (int)t->out.len);
    if (n <= 0)
        return try_again(t, n);
    t->out.at += (size_t)n;
    t->out.len -= (size_t)n;
    return true;
}

static bool take_in(struct tunnel *t)
{
    if (t->in.len == 0) {
        int n = SSL_read(t->ssl, t->in.data, sizeof(t->in.data));
        if (n <= 0)
            return try_again(t, n);
        t->in.at = 0;
        t->in.len = (size_t)n;
    }
    ssize_t n = send(t->plain, t->in.data + t->in.at, t->in.len, MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    t->in.at += (size_t)n;
    t->in.len -= (size_t)n;
    return true;
}

static void *tunnel_main(void *arg)
{
    struct tunnel *t = arg;
    bool open = true;
    while (open) {
        struct pollfd p[2] = {{.fd = t->plain, .events = t->in.len ? POLLOUT : 0},
                              {.fd = t->tcp, .events = t->in.len ? 0 : POLLIN}};
        if (t->out.len == 0)
            p[0].events |= POLLIN;
        if (t->out.len || t->wants_write)
            p[1].events |= POLLOUT;
        bool is_buffered = t->in.len == 0 && SSL_pending(t->ssl) > 0;
        if (poll(p, 2, is_buffered ? 0 : -1) < 0 && errno != EINTR)
            break;
        t->wants_write = false;
        ERR_clear_error();
        open = take_in(t) && send_out(t);
    }
    tunnel_free(t);
    return NULL;
}

/* ---- start ---- */

static bool set_host(SSL *ssl, const char *host)
{
    struct in6_addr any;
    bool is_address = inet_pton(AF_INET, host, &any) == 1 || inet_pton(AF_INET6, host, &any) == 1;
    if (is_address)
        return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), host) == 1;
    return SSL_set1_host(ssl, host) == 1 && SSL_set_tlsext_host_name(ssl, host) == 1;
}

static enum status shake_hands(struct tunnel *t, const struct redis_tls *of, const char *host,
                               uint32_t wait_ms, struct errtext *err)
{
    struct timeval wait = {.tv_sec = wait_ms / 1000, .tv_usec = wait_ms % 1000 * 1000};
    (void)setsockopt(t->tcp, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
    (void)setsockopt(t->tcp, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
    ERR_clear_error();
    t->ssl = SSL_new(of->ctx);
    if (!t->ssl || !set_host(t->ssl, host) || SSL_set_fd(t->ssl, t->tcp) != 1)
        return err_set(err, STATUS_NO_MEMORY, "TLS: %s", reason());
    if (SSL_connect(t->ssl) == 1)
        return STATUS_OK;
    long bad = SSL_get_verify_result(t->ssl);
    return err_set(err, STATUS_IO, "TLS: %s",
                   bad == X509_V_OK ? reason() : X509_verify_cert_error_string(bad));
}

enum status redis_tls_start(const struct redis_tls *of, int tcp, const char *host, uint32_t wait_ms,
                            int *plain, struct errtext *err)
{
    int pair[2] = {-1, -1};
    pthread_t thread;
    struct tunnel *t = mem_alloc(sizeof(*t));
    t->tcp = tcp;
    t->plain = -1;
    *plain = -1;
    enum status st = shake_hands(t, of, host, wait_ms, err);
    if (!st && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        st = err_set(err, STATUS_IO, "TLS: %s", strerror(errno));
    if (!st) {
        t->plain = pair[1];
        (void)fcntl(tcp, F_SETFL, fcntl(tcp, F_GETFL) | O_NONBLOCK);
        (void)fcntl(pair[1], F_SETFL, fcntl(pair[1], F_GETFL) | O_NONBLOCK);
        st = thread_start(&thread, "rs-redis-tls", tunnel_main, t, err);
    }
    if (st) {
        tunnel_free(t);
        if (pair[0] >= 0)
            close(pair[0]);
        return st;
    }
    pthread_detach(thread);
    *plain = pair[0];
    return STATUS_OK;
}
