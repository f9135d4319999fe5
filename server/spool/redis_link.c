/* Server and settlement worker go the same way to Redis: one URL means one place to both. */
#include "server/spool/redis_link.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <hiredis/hiredis.h>
#include <stdio.h>
#include <string.h>

#define CONNECT_MS         2000
#define REPLY_MS           10000
#define PASSWORD_BYTES_MAX 4096

static enum status refuse_url(const char *url, struct errtext *err)
{
    return err_param(err, STATUS_INVALID, "redis_url",
                     "redis_url: found '%.64s', expected redis://HOST:PORT or unix:/path", url);
}

static enum status parse_url(struct redis_link *l, const char *url, struct errtext *err)
{
    static const char scheme[] = "redis://", local[] = "unix:";
    if (strncmp(url, local, sizeof(local) - 1) == 0) {
        int n = snprintf(l->path, sizeof(l->path), "%s", url + sizeof(local) - 1);
        return n > 0 && n < (int)sizeof(l->path) ? STATUS_OK : refuse_url(url, err);
    }
    if (strchr(url, '@'))
        return err_param(err, STATUS_INVALID, "redis_url",
                         "redis_url: a user or a password does not belong into it; name a file of "
                         "mode 600 with redis_password_file");
    if (strncmp(url, scheme, sizeof(scheme) - 1) != 0)
        return refuse_url(url, err);
    const char *at = url + sizeof(scheme) - 1;
    char text[sizeof(l->tcp.host) + 16];
    bool has_port = at[0] == '[' ? strstr(at, "]:") != NULL : strchr(at, ':') != NULL;
    snprintf(text, sizeof(text), has_port ? "%s" : "%s:6379", at);
    if (strlen(at) >= sizeof(l->tcp.host) || hostport_parse(&l->tcp, "redis_url", text, NULL) ||
        l->tcp.port == 0)
        return refuse_url(url, err);
    return STATUS_OK;
}

enum status redis_link_open(struct redis_link *out, const char *url, const char *password_file,
                            struct errtext *err)
{
    size_t len;
    *out = (struct redis_link){.password = NULL};
    enum status st = parse_url(out, url, err);
    if (!st && password_file)
        st = file_read_secret(password_file, PASSWORD_BYTES_MAX, &out->password, &len, err);
    return st;
}

void redis_link_close(struct redis_link *l)
{
    if (l->password)
        mem_wipe(l->password, strlen(l->password));
    mem_free(l->password);
    l->password = NULL;
}

const char *redis_link_name(const struct redis_link *l)
{
    return l->tcp.port ? l->tcp.host : l->path;
}

static enum status authenticate(const struct redis_link *l, redisContext *c, struct errtext *err)
{
    redisReply *r = l->password ? redisCommand(c, "AUTH %s", l->password) : NULL;
    bool good = !l->password || (r && r->type == REDIS_REPLY_STATUS);
    if (r)
        freeReplyObject(r);
    return good ? STATUS_OK
                : err_set(err, STATUS_DENIED, "the password was refused (redis_password_file)");
}

enum status redis_link_connect(const struct redis_link *l, struct redisContext **out,
                               struct errtext *err)
{
    struct timeval wait = {.tv_sec = CONNECT_MS / 1000}, reply = {.tv_sec = REPLY_MS / 1000};
    redisContext *c = l->tcp.port ? redisConnectWithTimeout(l->tcp.host, l->tcp.port, wait)
                                  : redisConnectUnixWithTimeout(l->path, wait);
    enum status st = STATUS_OK;
    if (!c || c->err || redisSetTimeout(c, reply) != REDIS_OK)
        st = err_set(err, STATUS_IO, "%s", c ? c->errstr : "no memory for a connection");
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
