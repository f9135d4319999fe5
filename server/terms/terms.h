/* What the Registry says about an adapter: price, datanet and whose documents are in it, split,
 * parents. One object holds for one content id from `r.active_at` on; it is immutable and
 * refcounted, so that a request keeps what held when it began, whatever is registered meanwhile.
 * Nothing of it comes from an upload: of a manifest only the owners' list is used, and only where
 * its root is the registered one (owners.h). What is not registered costs 0 and pays nobody.
 * Thread: any. */
#ifndef RS_TERMS_TERMS_H
#define RS_TERMS_TERMS_H

#include "chain_client/registry/views.h"

#include <stdatomic.h>

#define TERMS_CONTRIB_MAX 64 /* payees of one adapter in a record */

struct tariff { /* base units per 1 000 tokens, each < 2^80 */
    u128 in, out;
};

/* An owner of documents of a datanet, and their number: the share. */
struct contributor {
    uint8_t payee[20];
    uint32_t document_count;
};

/* Of one owners' list: the largest by documents (ties to the lower address), ascending by payee. */
struct contributors {
    _Atomic uint32_t refs;
    uint8_t owner_root[32];
    uint32_t count;
    struct contributor item[TERMS_CONTRIB_MAX];
};

/* r.registered false: everything else is 0. */
struct terms {
    _Atomic uint32_t refs;
    struct registry_terms r;
    uint8_t owner[20];                         /* of the adapter */
    uint8_t document_root[32], owner_root[32]; /* of the datanet version that r names */
    struct contributors *contributors; /* NULL: no datanet, or its owners' list is not here */
    uint8_t *answer;                   /* adapterAt's bytes, for the cache file */
    size_t answer_len;
};

struct terms *terms_new(void);
struct terms *terms_ref(struct terms *t); /* NULL gives NULL */
void terms_release(struct terms *t);      /* NULL is fine */
struct contributors *contributors_ref(struct contributors *c);
void contributors_release(struct contributors *c);

/* What an answer costs; NULL: nothing. */
struct tariff terms_tariff(const struct terms *t);
/* Is there a datanet, whose owners earn? */
bool terms_has_datanet(const struct terms *t);

#endif
