/* The API keys in force. A set never changes; a reload puts a new one in its place, and exchanges
 * that began under the old one keep it until they end. Thread: any. */
#ifndef RS_HTTP_KEYRING_H
#define RS_HTTP_KEYRING_H

#include "server/http/server.h"

#include <stdatomic.h>

struct keyring {
    atomic_uint refs;
    uint32_t count; /* 0: the server has no keys */
    struct http_key key[];
};

/* A copy of the keys, with one reference. */
struct keyring *keyring_create(const struct http_key *key, uint32_t count);
struct keyring *keyring_ref(struct keyring *k);
void keyring_unref(struct keyring *k); /* NULL is fine */
/* The server's, with a reference of the caller's. */
struct keyring *keyring_current(struct http_server *s);

#endif
