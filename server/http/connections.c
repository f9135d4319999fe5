/* A list in the order in which connections entered their phase, so that who has idled longest is
 * found first. The searches are linear: a few microseconds for thousands of sockets, once per
 * accepted connection that finds the house full, and four times a second for the deadlines. */
#include "server/http/connections.h"
#include "server/base/check.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/http/reply.h"

#include <string.h>

/* A reserved place is for one short question. */
#define RESERVED_HEAD_NS (5ull * 1000000000)
/* A body may take body_s and a second for each of these. */
#define BODY_BYTES_PER_S (32u << 10)
#define SAY_NS           (10ull * 1000000000)

void connections_init(struct connections *c, const struct connections_options *opt)
{
    *c = (struct connections){.opt = *opt};
    CHECK(pthread_mutex_init(&c->lock, NULL) == 0);
}

void connections_fini(struct connections *c)
{
    CHECK(!c->first);
    pthread_mutex_destroy(&c->lock);
}

static struct in6_addr address_of(const struct sockaddr *from)
{
    struct in6_addr a = {0};
    if (from->sa_family == AF_INET6)
        return ((const struct sockaddr_in6 *)(const void *)from)->sin6_addr;
    if (from->sa_family == AF_INET) {
        a.s6_addr[10] = a.s6_addr[11] = 0xFF;
        memcpy(&a.s6_addr[12], &((const struct sockaddr_in *)(const void *)from)->sin_addr, 4);
    }
    return a;
}

static void append(struct connections *c, struct connection *k)
{
    k->prev = c->last;
    k->next = NULL;
    if (c->last)
        c->last->next = k;
    else
        c->first = k;
    c->last = k;
}

static void drop(struct connections *c, struct connection *k)
{
    *(k->prev ? &k->prev->next : &c->first) = k->next;
    *(k->next ? &k->next->prev : &c->last) = k->prev;
}

/* It keeps its entry until the library has seen the end and closes it, but no longer its place. */
static void cut(struct connections *c, struct connection *k)
{
    k->cut = true;
    *(k->reserved ? &c->stats.reserved : &c->stats.open) -= 1;
    (void)shutdown(k->fd, SHUT_RDWR);
}

/* Who has idled longest: in a reserved place or not, of one address or of any (NULL). */
static struct connection *longest_idle(const struct connections *c, bool reserved,
                                       const struct in6_addr *address)
{
    for (struct connection *k = c->first; k; k = k->next) {
        if (k->phase == CONNECTION_IDLE && !k->cut && k->reserved == reserved &&
            (!address || memcmp(&k->address, address, sizeof(*address)) == 0))
            return k;
    }
    return NULL;
}

static uint32_t count_of(const struct connections *c, const struct in6_addr *address)
{
    uint32_t n = 0;
    for (const struct connection *k = c->first; k; k = k->next)
        n += !k->cut && !k->reserved && memcmp(&k->address, address, sizeof(*address)) == 0;
    return n;
}

/* A place of the kind: free, or taken from whoever idles. */
static bool make_room(struct connections *c, bool reserved, const struct in6_addr *address)
{
    bool full = reserved ? c->stats.reserved >= CONNECTIONS_RESERVED
                         : c->stats.open >= c->opt.connections_max;
    bool crowd =
        !reserved && c->opt.per_address_max > 0 && count_of(c, address) >= c->opt.per_address_max;
    if (!full && !crowd)
        return true;
    struct connection *victim = longest_idle(c, reserved, crowd ? address : NULL);
    if (!victim)
        return false;
    c->stats.reaped++;
    cut(c, victim);
    return true;
}

static void say_full(struct connections *c, uint64_t now_ns)
{
    if (c->said_ns && now_ns - c->said_ns < SAY_NS)
        return;
    c->said_ns = now_ns;
    log_warn("http",
             "connections are full: %u of connections_max %u are open, at most %u of one address; "
             "newcomers take idle places or get 503 (%llu and %llu so far)",
             c->stats.open, c->opt.connections_max, c->opt.per_address_max,
             (unsigned long long)c->stats.reaped, (unsigned long long)c->stats.refused);
}

struct connection *connections_open(struct connections *c, int fd, const struct sockaddr *from,
                                    uint64_t now_ns)
{
    struct connection *k = mem_try_alloc(sizeof(*k));
    bool placed = false;
    if (k) {
        *k = (struct connection){.fd = fd, .fresh = true, .since_ns = now_ns};
        k->address = address_of(from);
        pthread_mutex_lock(&c->lock);
        uint64_t reaped = c->stats.reaped;
        placed = make_room(c, false, &k->address);
        if (!placed) {
            k->reserved = true;
            placed = make_room(c, true, &k->address);
            c->stats.refused++;
        }
        if (placed) {
            *(k->reserved ? &c->stats.reserved : &c->stats.open) += 1;
            append(c, k);
        }
        if (k->reserved || reaped != c->stats.reaped)
            say_full(c, now_ns);
        pthread_mutex_unlock(&c->lock);
    }
    if (placed)
        return k;
    (void)shutdown(fd, SHUT_RDWR);
    mem_free(k);
    return NULL;
}

void connections_close(struct connections *c, struct connection *k)
{
    if (!k)
        return;
    pthread_mutex_lock(&c->lock);
    if (!k->cut)
        *(k->reserved ? &c->stats.reserved : &c->stats.open) -= 1;
    drop(c, k);
    pthread_mutex_unlock(&c->lock);
    mem_free(k);
}

void connections_enter(struct connections *c, struct connection *k, enum connection_phase phase,
                       uint64_t now_ns)
{
    if (!k)
        return;
    pthread_mutex_lock(&c->lock);
    k->phase = phase;
    k->since_ns = now_ns;
    k->body_bytes = 0;
    k->fresh = false;
    drop(c, k);
    append(c, k);
    pthread_mutex_unlock(&c->lock);
}

void connections_add_body(struct connections *c, struct connection *k, uint64_t bytes)
{
    if (!k)
        return;
    pthread_mutex_lock(&c->lock);
    k->body_bytes += bytes;
    pthread_mutex_unlock(&c->lock);
}

/* How long it may stay in its phase. */
static uint64_t allowed_ns(const struct connections *c, const struct connection *k)
{
    static const uint64_t second = 1000000000;
    if (k->phase == CONNECTION_BODY)
        return c->opt.body_s * second + k->body_bytes * second / BODY_BYTES_PER_S;
    if (k->phase == CONNECTION_IDLE && !k->fresh)
        return c->opt.idle_s * second;
    return k->reserved ? MIN(RESERVED_HEAD_NS, c->opt.head_s * second) : c->opt.head_s * second;
}

static void tell_timeout(const struct connections *c, const struct connection *k)
{
    struct buf body, text;
    struct errtext err = ERRTEXT_INIT;
    bool head = k->phase == CONNECTION_HEAD;
    (void)err_coded(&err, STATUS_TIMEOUT, "request_timeout", "",
                    "the request's %s took longer than %u s", head ? "header" : "body",
                    head ? c->opt.head_s : c->opt.body_s);
    buf_init(&body, 1024);
    buf_init(&text, 2048);
    reply_put_error(&body, 408, &err);
    buf_printf(&text,
               "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n"
               "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
               body.len);
    buf_put(&text, body.data, body.len);
    /* Nothing of a reply is on its way while a request is being read. */
    ssize_t n = send(k->fd, text.data, text.len, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)n;
    buf_fini(&body);
    buf_fini(&text);
}

void connections_expire(struct connections *c, uint64_t now_ns)
{
    pthread_mutex_lock(&c->lock);
    for (struct connection *k = c->first; k; k = k->next) {
        if (k->cut || k->phase == CONNECTION_BUSY || now_ns < k->since_ns + allowed_ns(c, k))
            continue;
        if (k->phase != CONNECTION_IDLE) {
            c->stats.timed_out++;
            tell_timeout(c, k);
        }
        cut(c, k);
    }
    pthread_mutex_unlock(&c->lock);
}

void connections_get_stats(struct connections *c, struct connections_stats *out)
{
    pthread_mutex_lock(&c->lock);
    *out = c->stats;
    pthread_mutex_unlock(&c->lock);
}
