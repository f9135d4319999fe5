/* The documents of a datanet as a manifest or a datanet.json lists them (SPEC 6): [{"docId",
 * "owner", "licence", "terms"?, "display"?, "since"?, "kind"?, "bytes", "digest", "copyOf"?,
 * "file"?, "ownerSignature"?}]. From them come the two roots that the Registry has of a version,
 * and the owners who share. A document with "copyOf" states what an earlier one states: it stands
 * in the list and in neither root, has no rows and earns nothing. Thread: any. */
#ifndef RS_DATANET_DOCUMENTS_H
#define RS_DATANET_DOCUMENTS_H

#include "chain_client/datanet.h"
#include "server/base/arena.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/datanet/rows.h"

struct documents_facts { /* what is said of a document beside what the roots are of */
    uint64_t doc_id, since;
    const char *licence, *terms;  /* terms "": none */
    const char *file, *signature; /* as listed, or NULL */
    enum rows_kind kind;
    bool display, is_copy;
    uint8_t copy_of[32]; /* the digest of the earlier document */
};

struct documents {
    struct datanet_document *item; /* ascending by digest; behind `count`, the copies, likewise */
    struct documents_facts *facts; /* of the same places */
    uint32_t *by_id;               /* all places, ascending by docId */
    uint32_t count, listed;        /* without and with the copies */
    struct datanet_owner *owner;   /* ascending, of the documents that are no copies */
    uint32_t owner_count;
    uint8_t document_root[32], owner_root[32];
    struct arena text;
};

/* The list at "documents" of r's object, of that version of the datanet; *out NULL after a fault.
 */
void documents_need(struct documents **out, struct json_reader *r, uint64_t version);
void documents_free(struct documents *d); /* NULL is fine */
/* The place of a docId, copies among them, or UINT32_MAX. */
uint32_t documents_find(const struct documents *d, uint64_t doc_id);
/* The place of its owner in the owners' list; not of a copy. */
uint32_t documents_owner(const struct documents *d, uint32_t place);

/* ---- documents_check.c ---- */

#define DOCUMENT_BYTES_MAX (64u << 20)

/* The form that a document is known by, in out: its UTF-8 in normal form C. INVALID: it is no
 * UTF-8, it is empty (white space alone), or it has a control character other than tab, line feed
 * and carriage return; with the line and the character. TOO_LARGE, NO_MEMORY. */
MUST_CHECK enum status document_normal(struct buf *out, const char *text, size_t len,
                                       struct errtext *err);
void document_digest(uint8_t digest[32], const struct buf *normal);
/* The normalised text of the document at place, from its "file" in dir; digest and bytes agree.
 * NOT_FOUND: it has no file; INVALID, DENIED, IO... name the file. */
MUST_CHECK enum status documents_text(const struct documents *d, uint32_t place, const char *dir,
                                      const struct file_roots *roots, struct buf *out,
                                      struct errtext *err);
/* Every document with a "file" beside the list is that text. */
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
/* Every document but the copies carries its owner's signature of DocumentLicence (SPEC 6):
 * "ownerSignature", by the owner's key or, for at most 64 of them, by the contract that the owner
 * is. Errors: DENIED names the document and says what to do; those of ask. */
MUST_CHECK enum status documents_check_licences(const struct documents *d,
                                                const struct documents_licensed *l,
                                                struct errtext *err);
/* The same of one document. */
struct secp;
MUST_CHECK enum status documents_check_licence(const struct documents *d, uint32_t place,
                                               const struct documents_licensed *l,
                                               const struct secp *secp, struct errtext *err);

#endif
