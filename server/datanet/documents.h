/* The documents of a datanet as a manifest or a datanet.json lists them: [{"docId", "owner",
 * "licence", "bytes", "digest"}]. From them come the two roots that the Registry has of a version,
 * and the owners who share. Thread: any. */
#ifndef RS_DATANET_DOCUMENTS_H
#define RS_DATANET_DOCUMENTS_H

#include "chain_client/datanet.h"
#include "server/base/file.h"
#include "server/base/json.h"

struct documents {
    struct datanet_document *item; /* ascending by digest */
    uint32_t count;
    struct datanet_owner *owner; /* ascending */
    uint32_t owner_count;
    uint8_t document_root[32], owner_root[32];
    json_t *list; /* as it was read */
};

/* The list at "documents" of r's object; *out NULL after a fault. */
void documents_need(struct documents **out, struct json_reader *r);
void documents_free(struct documents *d); /* NULL is fine */

/* documents_check.c: every document with a "file" beside the list is that text: its bytes and its
 * digest, both of normal form C. Errors name the file. */
MUST_CHECK enum status documents_check_files(const struct documents *d, const char *dir,
                                             const struct file_roots *roots, struct errtext *err);

/* Does a contract take this signature (EIP-1271)? */
typedef enum status documents_ask_1271(void *arg, const uint8_t account[20],
                                       const uint8_t digest[32], const void *signature, size_t len,
                                       bool *yes, struct errtext *err);
struct documents_licensed { /* for which datanet, in which Registry */
    uint8_t datanet_id[32], registry[20];
    uint64_t chain_id;
    documents_ask_1271 *ask; /* NULL: only keys can have signed */
    void *ask_arg;
};
/* Every document carries its owner's signature of DocumentLicence (SPEC 6): "ownerSignature", by
 * the owner's key or, for at most 64 of them, by the contract that the owner is. Errors: DENIED
 * names the document and says what to do; those of ask. */
MUST_CHECK enum status documents_check_licences(const struct documents *d,
                                                const struct documents_licensed *l,
                                                struct errtext *err);

#endif
