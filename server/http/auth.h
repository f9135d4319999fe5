/* Who may do what. Keys are known by the BLAKE2b-256 digest of their text only, compared in
 * constant time; no key is ever stored or logged. Without keys the server listens on loopback
 * alone and everybody has every role, except pages of other origins in a browser on this machine:
 * those are refused, or any web site could drive the server. Thread: any. */
#ifndef RS_HTTP_AUTH_H
#define RS_HTTP_AUTH_H

#include "server/http/keyring.h"

#define AUTH_ROLES_ALL (HTTP_ROLE_INFER | HTTP_ROLE_PUBLISH | HTTP_ROLE_ADMIN | HTTP_ROLE_WORKER)

/* authorization: the header's value, or NULL. OK with *key (NULL when there are no keys) and
 * *roles. DENIED: missing, malformed or unknown (HTTP 401). */
MUST_CHECK enum status auth_check(const struct keyring *keys, const char *authorization,
                                  const struct http_key **key, unsigned *roles,
                                  struct errtext *err);
/* BLAKE2b-256 of the key in "Bearer KEY". DENIED: there is none. */
MUST_CHECK enum status auth_digest(const char *authorization, uint8_t digest[32],
                                   struct errtext *err);
/* The guard of a server without keys: DENIED (403) for a foreign Origin or Host; ours: the host it
 * listens on. Either may be NULL. */
MUST_CHECK enum status auth_check_origin(const struct keyring *keys, const char *ours,
                                         const char *origin, const char *host, struct errtext *err);
/* May this key use this adapter? key NULL: yes. */
bool auth_allows_adapter(const struct http_key *key, const char *name);
/* The key's identity for fair sharing and receipts; 0 for NULL. */
uint64_t auth_fair_key(const struct http_key *key);
/* Its name, under which what it brings is kept; "" for NULL. */
const char *auth_key_name(const struct http_key *key);
/* Its account, [20]; NULL: it has none. */
const uint8_t *auth_account(const struct http_key *key);
/* "infer, admin" */
void auth_roles_text(unsigned roles, char *out, size_t out_bytes);

#endif
