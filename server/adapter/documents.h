/* The documents of a datanet as a manifest or a datanet.json lists them: [{"docId", "owner",
 * "licence", "bytes", "digest"}]. From them come the two roots that the Registry has of a version,
 * and the owners who share. Pure. Thread: any. */
#ifndef RS_ADAPTER_DOCUMENTS_H
#define RS_ADAPTER_DOCUMENTS_H

#include "chain_client/datanet.h"
#include "server/base/json.h"

struct documents {
    struct datanet_document *item; /* ascending by digest */
    uint32_t count;
    struct datanet_owner *owner; /* ascending */
    uint32_t owner_count;
    uint8_t document_root[32], owner_root[32];
};

/* The list at "documents" of r's object; *out NULL after a fault. */
void documents_need(struct documents **out, struct json_reader *r);
void documents_free(struct documents *d); /* NULL is fine */

#endif
