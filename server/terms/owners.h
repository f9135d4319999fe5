/* Owners' lists of datanets, on disk by their root: who owns documents, and how many. A list is
 * what a publisher brings; it counts only for a datanet version whose registered root it has, so
 * whoever brought it does not matter. Thread: any. */
#ifndef RS_TERMS_OWNERS_H
#define RS_TERMS_OWNERS_H

#include "chain_client/datanet.h"
#include "server/base/buf.h"
#include "server/terms/terms.h"

#define OWNERS_MAX       65536u       /* of one list */
#define OWNERS_BYTES_MAX (1ull << 30) /* of all lists on disk */
#define OWNERS_JSON_MAX  (OWNERS_MAX * 96u + 64u)

struct owners;
MUST_CHECK enum status owners_open(struct owners **out, const char *dir, struct errtext *err);
void owners_close(struct owners *o); /* NULL is fine */

/* Keep a list, ascending by owner; again is fine. FULL past OWNERS_BYTES_MAX. */
MUST_CHECK enum status owners_put(struct owners *o, const struct datanet_owner *list, size_t count,
                                  uint8_t root[32], struct errtext *err);
/* Who earns of it: a reference, or NULL when the list is not here. */
struct contributors *owners_find(struct owners *o, const uint8_t root[32]);
/* The list as a JSON array. NOT_FOUND. */
MUST_CHECK enum status owners_json(struct owners *o, const uint8_t root[32], struct buf *out,
                                   struct errtext *err);

#endif
