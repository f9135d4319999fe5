/* Publish manifests: from an owner's facts (publish.json, datanet.json) to the object that a server
 * takes (server/adapter/manifest.h), with both signatures. And publisher keys: files
 * "ed25519:<64 hex digits of the seed>" of mode 600. */
#ifndef RS_CLI_SIGN_H
#define RS_CLI_SIGN_H

#include "chain_client/eth/secp.h"
#include "chain_client/manifest.h"
#include "chain_client/settle/deployment.h"
#include "server/adapter/manifest.h"

#include <jansson.h>
#include <limits.h>

struct sign_publisher {
    uint8_t secret[64], public[32];
};
MUST_CHECK enum status sign_publisher_new(const char *path, struct sign_publisher *key,
                                          struct errtext *err);
/* NOT_FOUND, DENIED (mode), UNSUPPORTED when the file does not hold a publisher key. */
MUST_CHECK enum status sign_publisher_load(const char *path, struct sign_publisher *key,
                                           struct errtext *err);
void sign_publisher_fini(struct sign_publisher *key);

/* What an owner declares. */
struct sign_source {
    json_t *publish, *datanet; /* datanet NULL: none */
    struct manifest m;         /* datanet_id is the document root where datanet is given */
    uint8_t document_root[32], owner_root[32], tokenizer_digest[32], salt[32];
    uint64_t datanet_version;
    char datanet_path[PATH_MAX]; /* for errors */
    bool is_signed;              /* publish holds both signatures already */
    bool has_consent;            /* of another datanet's owner: "datanetConsent" */
    uint8_t consent[SECP_SIGNATURE_BYTES];
};
/* path: the manifest's file; its "datanet" names a file beside it (default datanet.json if there).
 */
MUST_CHECK enum status sign_source_load(struct sign_source *s, const char *path,
                                        struct errtext *err);
/* The datanet.json of a folder alone; its "owner", or that of the publish.json beside it. */
MUST_CHECK enum status sign_source_load_list(struct sign_source *s, const char *dir,
                                             struct errtext *err);
void sign_source_fini(struct sign_source *s);
/* Of the id of an owner's datanet with this name. */
void sign_datanet_salt(uint8_t salt[32], const char *name);
/* "0x…" of at most SECP_SIGNATURE_BYTES. */
json_t *sign_hex_json(const uint8_t *data, size_t n);

/* As the Registry takes it. entry has room for REWARD_ENTRIES_MAX; INVALID for more entries. */
MUST_CHECK enum status sign_as_publish(struct manifest_publish *p, struct reward_entry *entry,
                                       const struct manifest *m, struct errtext *err);

struct sign_keys {
    const struct secp *secp;
    const struct secp_key *owner;
    const struct sign_publisher *publisher;
};
/* Licence signatures of m's datanet and chain on those documents of the list that the owner's key
 * owns. */
MUST_CHECK enum status sign_documents(json_t *list, const struct manifest *m,
                                      const struct sign_keys *keys, struct errtext *err);
/* How many of the list nobody has signed; copies need no signature, they earn nothing. */
uint32_t sign_missing(const json_t *list);
/* A server bound to a chain takes signed documents alone: DENIED names the list's file, how many of
 * it nobody has signed, and who mends that in dir. */
MUST_CHECK enum status sign_need_all(const json_t *list, const char *list_path, const char *dir,
                                     struct errtext *err);
/* The signed object (json_decref) of s->m, whose ids and chain are set. Documents of this owner get
 * the owner's licence signature. */
MUST_CHECK enum status sign_manifest(json_t **out, const struct sign_source *s,
                                     const struct sign_keys *keys,
                                     uint8_t owner_signature[SECP_SIGNATURE_BYTES],
                                     struct errtext *err);

#endif
