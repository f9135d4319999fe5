/* A lock around the pointer, a count in the set: nobody who checks a key waits for a reload. */
#include "server/http/keyring.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/http/state.h"

#include <string.h>

struct keyring *keyring_create(const struct http_key *key, uint32_t count)
{
    CHECK(count <= HTTP_KEYS_MAX);
    struct keyring *k = mem_alloc(sizeof(*k) + count * sizeof(*key));
    atomic_init(&k->refs, 1);
    k->count = count;
    if (count)
        memcpy(k->key, key, count * sizeof(*key));
    return k;
}

struct keyring *keyring_ref(struct keyring *k)
{
    atomic_fetch_add_explicit(&k->refs, 1, memory_order_relaxed);
    return k;
}

void keyring_unref(struct keyring *k)
{
    if (k && atomic_fetch_sub_explicit(&k->refs, 1, memory_order_acq_rel) == 1)
        mem_free(k);
}

struct keyring *keyring_current(struct http_server *s)
{
    pthread_mutex_lock(&s->keys_lock);
    struct keyring *k = keyring_ref(s->keys);
    pthread_mutex_unlock(&s->keys_lock);
    return k;
}

enum status http_set_keys(struct http_server *s, const struct http_key *key, uint32_t count,
                          struct errtext *err)
{
    if (count == 0)
        return err_param(err, STATUS_DENIED, "api_keys",
                         "no key is left: a server that began with keys does not become open to "
                         "everybody; restart it for that");
    if (count > HTTP_KEYS_MAX)
        return err_param(err, STATUS_TOO_LARGE, "api_keys", "%u API keys, at most %d are accepted",
                         count, HTTP_KEYS_MAX);
    struct keyring *fresh = keyring_create(key, count);
    pthread_mutex_lock(&s->keys_lock);
    struct keyring *old = s->keys;
    s->keys = fresh;
    pthread_mutex_unlock(&s->keys_lock);
    keyring_unref(old);
    return STATUS_OK;
}
