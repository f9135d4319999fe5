/* Training manifests by adapter id: those that came in, a file each, and those of operators'
 * folders, which stay there. Thread: any. */
#ifndef RS_DATANET_STORE_TRAINING_H
#define RS_DATANET_STORE_TRAINING_H

#include "server/datanet/store.h"

struct training_shelf;
MUST_CHECK enum status training_shelf_open(struct training_shelf **out, const char *store_dir,
                                           struct errtext *err);
void training_shelf_close(struct training_shelf *t); /* NULL is fine */
/* dir/training.json is this adapter's, if it is there. FULL past a bound. */
MUST_CHECK enum status training_shelf_note(struct training_shelf *t, const uint8_t adapter_id[32],
                                           const char *dir, struct errtext *err);
/* The document root that a manifest names. */
MUST_CHECK enum status training_shelf_root(uint8_t root[32], const char *text, size_t len,
                                           struct errtext *err);
/* One that was checked. CONFLICT: there is another, and it stays. */
MUST_CHECK enum status training_shelf_put(struct training_shelf *t, const uint8_t adapter_id[32],
                                          const char *text, size_t len, bool replace,
                                          struct errtext *err);
void training_shelf_drop(struct training_shelf *t, const uint8_t adapter_id[32]);
bool training_shelf_has(struct training_shelf *t, const uint8_t adapter_id[32]);
MUST_CHECK enum status training_shelf_get(struct training_shelf *t, const uint8_t adapter_id[32],
                                          struct buf *out, struct errtext *err);

#endif
