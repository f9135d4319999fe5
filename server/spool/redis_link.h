/* Where a Redis is, and the way there: the keys redis_url, redis_password_file and redis_ca_file, a
 * connection that is encrypted where it leaves the machine and has told who it is. A password in
 * the URL is refused, and not repeated: what names the place stands in logs. One owner. */
#ifndef RS_SPOOL_REDIS_LINK_H
#define RS_SPOOL_REDIS_LINK_H

#include "server/base/hostport.h"

struct redisContext;
struct redisReply;

struct redis_tls;

struct redis_link {
    struct hostport tcp; /* port 0: a unix socket */
    char path[256];      /* of the unix socket */
    char user[64];       /* "": the default one */
    char *password;      /* NULL: none */
    struct redis_tls *tls;
};

/* url: redis[s]://[USER@]HOST[:PORT] or unix:/path; password_file and ca_file may be NULL. Beyond
 * loopback it must be rediss:// with a user and a password. Errors: INVALID url or ca_file; of
 * file_read_secret. On an error nothing is held. */
MUST_CHECK enum status redis_link_open(struct redis_link *out, const char *url,
                                       const char *password_file, const char *ca_file,
                                       struct errtext *err);
void redis_link_close(struct redis_link *l); /* wipes the password */
/* The host or the socket's path, for people. */
const char *redis_link_name(const struct redis_link *l);
/* Connected and authenticated; the caller's (redisFree). IO: away; DENIED: the password was
 * refused. Waits at most a few seconds. */
MUST_CHECK enum status redis_link_connect(const struct redis_link *l, struct redisContext **out,
                                          struct errtext *err);
/* The value of `name` in the list of names and values that XINFO answers; NULL: not there. */
const char *redis_link_field(const struct redisReply *info, const char *name);

#endif
