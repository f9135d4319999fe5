/* Every configured key is compared, whether or not one has matched already, so that time says
 * nothing about which key, or how much of it, was right. */
#include "server/http/auth.h"
#include "server/base/check.h"

#include <arpa/inet.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum status auth_digest(const char *authorization, uint8_t digest[32], struct errtext *err)
{
    if (!authorization || !*authorization)
        return err_set(err, STATUS_DENIED,
                       "no API key was given; send the header 'Authorization: Bearer KEY'");
    if (strncasecmp(authorization, "Bearer ", 7) != 0)
        return err_set(err, STATUS_DENIED,
                       "the Authorization header must have the form 'Bearer KEY'");
    const char *text = authorization + 7;
    while (*text == ' ')
        text++;
    size_t len = strlen(text);
    while (len > 0 && (text[len - 1] == ' ' || text[len - 1] == '\t'))
        len--;
    crypto_generichash(digest, 32, (const uint8_t *)text, len, NULL, 0);
    return STATUS_OK;
}

enum status auth_check(const struct keyring *keys, const char *authorization,
                       const struct http_key **key, unsigned *roles, struct errtext *err)
{
    uint8_t digest[32];
    const struct http_key *found = NULL;
    *key = NULL;
    *roles = 0;
    if (keys->count == 0) {
        *roles = AUTH_ROLES_ALL;
        return STATUS_OK;
    }
    enum status st = auth_digest(authorization, digest, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < keys->count; i++) {
        if (sodium_memcmp(digest, keys->key[i].digest, sizeof(digest)) == 0)
            found = &keys->key[i];
    }
    if (!found)
        return err_set(err, STATUS_DENIED, "the API key is not known to this server");
    *key = found;
    *roles = found->roles;
    return STATUS_OK;
}

/* "host[:port]" or "[v6][:port]" names this machine's loopback, or the address we listen on. */
static bool is_local_authority(const char *ours, const char *text, size_t len)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "::1"};
    char host[80];
    size_t n = 0;
    if (len > 0 && text[0] == '[') {
        const char *end = memchr(text, ']', len);
        if (!end)
            return false;
        n = (size_t)(end - text) - 1;
        text++;
    } else {
        const char *colon = memchr(text, ':', len);
        n = colon ? (size_t)(colon - text) : len;
    }
    if (n == 0 || n >= sizeof(host))
        return false;
    memcpy(host, text, n);
    host[n] = '\0';
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        if (strcasecmp(host, names[i]) == 0)
            return true;
    }
    struct in_addr v4;
    bool loopback = inet_pton(AF_INET, host, &v4) == 1 && ntohl(v4.s_addr) >> 24 == 127;
    return loopback || strcasecmp(host, ours) == 0;
}

enum status auth_check_origin(const struct keyring *keys, const char *ours, const char *origin,
                              const char *host, struct errtext *err)
{
    if (keys->count > 0)
        return STATUS_OK;
    if (host && !is_local_authority(ours, host, strlen(host)))
        return err_set(err, STATUS_DENIED,
                       "this server has no API keys, so it answers only requests addressed to "
                       "localhost; the Host header names another machine");
    if (!origin)
        return STATUS_OK;
    const char *authority = strstr(origin, "://");
    if (!authority || !is_local_authority(ours, authority + 3, strlen(authority + 3)))
        return err_set(err, STATUS_DENIED,
                       "this server has no API keys, so it refuses requests of web pages from "
                       "other origins; configure keys to allow them");
    return STATUS_OK;
}

bool auth_allows_adapter(const struct http_key *key, const char *name)
{
    if (!key || key->adapter_count == 0)
        return true;
    for (uint32_t i = 0; i < key->adapter_count; i++) {
        const char *rule = key->adapter[i];
        size_t len = strlen(rule);
        if (len > 0 && rule[len - 1] == '*') {
            if (strncmp(rule, name, len - 1) == 0)
                return true;
        } else if (strcmp(rule, name) == 0) {
            return true;
        }
    }
    return false;
}

uint64_t auth_fair_key(const struct http_key *key)
{
    uint64_t id = 0;
    if (key)
        memcpy(&id, key->digest, sizeof(id));
    return key && id == 0 ? 1 : id;
}

const char *auth_key_name(const struct http_key *key)
{
    return key ? key->name : "";
}

const uint8_t *auth_account(const struct http_key *key)
{
    return key && !sodium_is_zero(key->account, sizeof(key->account)) ? key->account : NULL;
}

void auth_roles_text(unsigned roles, char *out, size_t out_bytes)
{
    static const char *const names[] = {"infer", "publish", "admin", "worker"};
    size_t used = 0;
    out[0] = '\0';
    for (unsigned i = 0; i < ARRAY_COUNT(names); i++) {
        if ((roles & (1u << i)) && used < out_bytes)
            used +=
                (size_t)snprintf(out + used, out_bytes - used, "%s%s", used ? ", " : "", names[i]);
    }
}
