/* The two roots of a datanet version (SPEC 3): of its owners and of its documents. Of content
 * alone: no chain is in them. Pure but for a buffer. Thread: any. */
#ifndef RS_CHAIN_DATANET_H
#define RS_CHAIN_DATANET_H

#include "server/base/errtext.h"

#include <stddef.h>
#include <stdint.h>

#define DATANET_DOCUMENTS_MAX (1u << 20)

struct datanet_owner {
    uint8_t owner[20];
    uint32_t documents; /* 1 or more */
};
struct datanet_document {
    uint8_t digest[32]; /* of the normalised text */
    uint8_t owner[20];
    uint64_t bytes;
    uint8_t licence_hash[32]; /* Keccak-256 of its UTF-8 */
};

/* Owners strictly ascending. INVALID: none, or out of order, or without a document. */
MUST_CHECK enum status datanet_owner_root(uint8_t root[32], const struct datanet_owner *list,
                                          size_t count, struct errtext *err);
/* Digests strictly ascending. INVALID: none, out of order or the same twice; TOO_LARGE. */
MUST_CHECK enum status datanet_document_root(uint8_t root[32], const struct datanet_document *list,
                                             size_t count, struct errtext *err);

#endif
