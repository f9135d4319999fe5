/* What the parts of publishing share: the publisher, and the way from checked facts to a registered
 * name. Uploads, their owners and the restart are in publish.c; directories of the operator in
 * publish_dirs.c; what the Registry has to say in publish_terms.c. */
#ifndef RS_ADAPTER_PUBLISH_IMPL_H
#define RS_ADAPTER_PUBLISH_IMPL_H

#include "server/adapter/manifest.h"
#include "server/adapter/publish.h"

#include <pthread.h>

#define PUBLISH_REGISTRY_WAIT_MS 3000u /* for the first reading of new content */

struct publisher {
    struct publish_options opt;
    char *adapters_dir;
    struct file_roots roots; /* owned strings */
    struct catalog *catalog;
    pthread_mutex_t lock; /* one publish at a time: quota and files */
    struct near_table *near;
    pthread_mutex_t near_lock;
};

/* Everything an entry has but publisher and manifest. */
void publish_fill_entry(const struct publisher *p, struct adapter_entry *e, const char *name,
                        const char *dir, const struct peft_adapter *a);
/* The documents are those of the datanet version that the Registry names for this content, as far
 * as it was read. m NULL: none were brought. */
MUST_CHECK enum status publish_check_terms(const struct publisher *p, const uint8_t id[32],
                                           const struct manifest *m, struct errtext *err);
/* publish_near.c: what this adapter does is known from now on; is it, within cosine 0.95, what a
 * registered adapter of somebody else does, which it does not name as parent? DENIED. m: whose
 * owner speaks for an adapter that is not registered, or NULL. */
struct near_table *near_table_create(const char *adapters_dir, uint32_t rows_max);
void near_table_destroy(struct near_table *t);
void publish_note_near(struct publisher *p, const struct peft_adapter *a);
MUST_CHECK enum status publish_check_near(struct publisher *p, const struct peft_adapter *a,
                                          const struct manifest *m, struct errtext *err);
/* Their owners are known from now on. documents NULL: nothing to do. */
MUST_CHECK enum status publish_keep_owners(const struct publisher *p,
                                           const struct documents *documents, struct errtext *err);
/* The entry's template is own; shared with another entry's if the texts are equal, and none if it
 * is the base's. A reference to own is taken where it is kept. */
void publish_set_chat(struct publisher *p, struct adapter_entry *e, struct chat_own *own);
/* catalog_put, for who does not ask what stood there before. */
MUST_CHECK enum status publish_register(struct publisher *p, struct adapter_entry *e, bool replace,
                                        struct errtext *err);

#endif
