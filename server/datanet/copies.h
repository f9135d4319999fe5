/* Admission: which documents of a datanet say what an earlier one says (SPEC 6). Blocks on disk:
 * every text is read once. */
#ifndef RS_DATANET_COPIES_H
#define RS_DATANET_COPIES_H

#include "server/datanet/training.h"

struct copy_found {
    uint32_t place, of; /* of: the earliest that says it, no copy itself */
    uint32_t ppm;       /* how much of it stands before (near.h); 1 000 000: the same words */
};
struct copies {
    struct copy_found *item; /* in the order of the documents: since, docId */
    uint32_t count;
};
/* Among the documents that are no copies yet. Errors as datanet_text, naming the document;
 * NO_MEMORY. */
MUST_CHECK enum status copies_find(struct copies *out, const struct datanet *d,
                                   struct errtext *err);
void copies_fini(struct copies *c);
/* The rows of these documents leave t, whose list did not mark them; how many. */
MUST_CHECK enum status copies_drop_rows(const struct copies *c, struct training *t,
                                        const struct datanet *d, uint32_t *dropped,
                                        struct errtext *err);

#endif
