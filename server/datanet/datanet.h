/* A version of a datanet, opened: the list that datanet.json is, and its texts, which stay on the
 * disk until they are asked for. Immutable, shared by reference count. Thread: any. */
#ifndef RS_DATANET_DATANET_H
#define RS_DATANET_DATANET_H

#include "server/datanet/documents.h"

#define DATANET_FILE       "datanet.json"
#define DATANET_JSON_BYTES ((size_t)1 << 30) /* of datanet.json */
#define DATANET_TEXTS_MAX  ((uint64_t)16 << 30)
#define DATANET_NAME_BYTES 200

struct datanet;

struct datanet_head {
    const char *name;
    uint64_t version;
    uint8_t id[32]; /* zeros: no chain has it yet */
    uint8_t document_root[32], owner_root[32];
    uint8_t tokenizer_digest[32]; /* zeros: not built yet */
    uint32_t n, owners;           /* documents without the copies; who wrote them */
    uint64_t bytes;               /* of their texts */
};

/* dir's datanet.json. roots: folders that links may lead to, or NULL; copied. Errors name the file
 * and the field: NOT_FOUND, INVALID, TOO_LARGE, NO_MEMORY... */
MUST_CHECK enum status datanet_open(struct datanet **out, const char *dir,
                                    const struct file_roots *roots, struct errtext *err);
struct datanet *datanet_ref(struct datanet *d); /* NULL stays NULL */
void datanet_release(struct datanet *d);        /* NULL is fine */

const struct datanet_head *datanet_head(const struct datanet *d);
/* The whole list; places 0 to n - 1 ascend by digest, the copies follow. */
const struct documents *datanet_documents(const struct datanet *d);
/* digest, owner, bytes; and docId, licence, kind... of place i. */
const struct datanet_document *datanet_document(const struct datanet *d, uint32_t i);
const struct documents_facts *datanet_facts(const struct datanet *d, uint32_t i);
/* Its normalised text, digest verified; out is cleared first and must hold DOCUMENT_BYTES_MAX.
 * Blocks on disk. Errors as documents_text. */
MUST_CHECK enum status datanet_text(const struct datanet *d, uint32_t i, struct buf *out,
                                    struct errtext *err);
/* A file beside datanet.json (mem_free *text). Errors as file_open_within and file_read. */
MUST_CHECK enum status datanet_read(const struct datanet *d, const char *name, size_t bytes_max,
                                    char **text, size_t *len, struct errtext *err);

#endif
