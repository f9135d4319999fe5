/* Server and settlement worker go the same way to Redis: one URL means one place to both. */
#include "server/spool/redis_link.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/spool/redis_tls.h"

#include <arpa/inet.h>
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <string.h>

#define CONNECT_MS         2000
#define REPLY_MS           10000
#define PASSWORD_BYTES_MAX 4096

static enum status refuse_url(const char *url, struct errtext *err)
{
    return err_param(err, STATUS_INVALID, "redis_url",
                     "redis_url: found '%.64s', expected redis://HOST:PORT, "
                     "rediss://USER@HOST:PORT or unix:/path",
                     url);
}

/* The user before '@' into l; *at moves behind it. A password there is refused, unseen. */
static enum status take_user(struct redis_link *l, const char **at, struct errtext *err)
{
    const char *end = strchr(*at, '@');
    size_t len = end ? (size_t)(end - *at) : 0;
    if (!end)
        return STATUS_OK;
    if (len == 0 || len >= sizeof(l->user) || memchr(*at, ':', len))
        return err_param(
            err, STATUS_INVALID, "redis_url",
            "redis_url: before the '@' a user of at most %zu bytes is expected, and no "
            "password; name a file of mode 600 with redis_password_file",
            sizeof(l->user) - 1);
    memcpy(l->user, *at, len);
    *at = end + 1;
    return STATUS_OK;
}

static enum status parse_url(struct redis_link *l, const char *url, bool *is_tls,
                             struct errtext *err)
{
    static const char plain[] = "redis://", secure[] = "rediss://", local[] = "unix:";
    char text[sizeof(l->tcp.host) + 16];
    const char *at = url;
    if (strncmp(url, local, sizeof(local) - 1) == 0) {
        int n = snprintf(l->path, sizeof(l->path), "%s", url + sizeof(local) - 1);
        return n > 0 && n < (int)sizeof(l->path) ? STATUS_OK : refuse_url(url, err);
    }
    *is_tls = strncmp(url, secure, sizeof(secure) - 1) == 0;
    if (*is_tls)
        at += sizeof(secure) - 1;
    else if (strncmp(url, plain, sizeof(plain) - 1) == 0)
        at += sizeof(plain) - 1;
    if (take_user(l, &at, err))
        return STATUS_INVALID;
    bool has_port = at[0] == '[' ? strstr(at, "]:") != NULL : strchr(at, ':') != NULL;
    snprintf(text, sizeof(text), has_port ? "%s" : "%s:6379", at);
    if (at == url || strlen(at) >= sizeof(l->tcp.host) ||
        hostport_parse(&l->tcp, "redis_url", text, NULL) || l->tcp.port == 0)
        return refuse_url(at, err);
    return STATUS_OK;
}

static bool is_loopback(const struct redis_link *l)
{
    struct in_addr v4;
    return l->tcp.port == 0 || strcmp(l->tcp.host, "localhost") == 0 ||
           strcmp(l->tcp.host, "::1") == 0 ||
           (inet_pton(AF_INET, l->tcp.host, &v4) == 1 && ntohl(v4.s_addr) >> 24 == 127);
}

/* Who reads the stream reads who used what; who writes it stops the lane. */
static enum status check_remote(const struct redis_link *l, bool is_tls, const char *password_file,
                                struct errtext *err)
{
    if (is_loopback(l) || (is_tls && l->user[0] && password_file))
        return STATUS_OK;
    return err_param(err, STATUS_INVALID, "redis_url",
                     "redis_url: %.128s is another machine: expected rediss://USER@HOST:PORT with "
                     "an ACL user of its own, and redis_password_file; server/README.md has the "
                     "ACL lines",
                     l->tcp.host);
}

enum status redis_link_open(struct redis_link *out, const char *url, const char *password_file,
                            const char *ca_file, struct errtext *err)
{
    size_t len;
    bool is_tls = false;
    *out = (struct redis_link){.password = NULL};
    enum status st = parse_url(out, url, &is_tls, err);
    if (!st)
        st = check_remote(out, is_tls, password_file, err);
    if (!st && is_tls)
        st = redis_tls_open(&out->tls, ca_file, err);
    if (!st && password_file)
        st = file_read_secret(password_file, PASSWORD_BYTES_MAX, &out->password, &len, err);
    if (st)
        redis_link_close(out);
    return st;
}

void redis_link_close(struct redis_link *l)
{
    if (l->password)
        mem_wipe(l->password, strlen(l->password));
    mem_free(l->password);
    l->password = NULL;
    redis_tls_close(l->tls);
    l->tls = NULL;
}

const char *redis_link_name(const struct redis_link *l)
{
    return l->tcp.port ? l->tcp.host : l->path;
}

static enum status authenticate(const struct redis_link *l, redisContext *c, struct errtext *err)
{
    if (!l->password)
        return STATUS_OK;
    redisReply *r = l->user[0] ? redisCommand(c, "AUTH %s %s", l->user, l->password)
                               : redisCommand(c, "AUTH %s", l->password);
    bool good = r && r->type == REDIS_REPLY_STATUS;
    freeReplyObject(r);
    return good ? STATUS_OK
                : err_set(err, STATUS_DENIED,
                          "the user or the password was refused (redis_url, redis_password_file)");
}

/* hiredis goes on over the tunnel's end. */
static enum status encrypt(const struct redis_link *l, redisContext *c, struct errtext *err)
{
    int tcp = c->fd;
    c->fd = -1;
    return redis_tls_start(l->tls, tcp, l->tcp.host, CONNECT_MS, &c->fd, err);
}

enum status redis_link_connect(const struct redis_link *l, struct redisContext **out,
                               struct errtext *err)
{
    struct timeval wait = {.tv_sec = CONNECT_MS / 1000}, reply = {.tv_sec = REPLY_MS / 1000};
    redisContext *c = l->tcp.port ? redisConnectWithTimeout(l->tcp.host, l->tcp.port, wait)
                                  : redisConnectUnixWithTimeout(l->path, wait);
    enum status st = STATUS_OK;
    if (!c || c->err)
        st = err_set(err, STATUS_IO, "%s", c ? c->errstr : "no memory for a connection");
    if (!st && l->tls)
        st = encrypt(l, c, err);
    if (!st && redisSetTimeout(c, reply) != REDIS_OK)
        st = err_set(err, STATUS_IO, "%s", c->errstr);
    if (!st)
        st = authenticate(l, c, err);
    if (st && c)
        redisFree(c);
    *out = st ? NULL : c;
    return st;
}

const char *redis_link_field(const struct redisReply *info, const char *name)
{
    for (size_t i = 0; info->type == REDIS_REPLY_ARRAY && i + 1 < info->elements; i += 2) {
        const char *key = info->element[i]->str;
        if (key && strcmp(key, name) == 0)
            return info->element[i + 1]->str;
    }
    return NULL;
}
