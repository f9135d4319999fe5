/* An adapter comes in with what it was trained on: checked, kept, indexed ahead. Of uploads and of
 * what was trained here. Thread: any. */
#ifndef RS_INFLUENCE_PUBLISH_INDEXED_H
#define RS_INFLUENCE_PUBLISH_INDEXED_H

#include "server/adapter/publish.h"
#include "server/datanet/store.h"
#include "server/influence/indexes.h"

struct publish_indexed {
    struct publisher *publisher;
    struct catalog *catalog;
    struct datanet_store *datanets;
    struct indexes *indexes; /* NULL: scoring is off */
};
/* As publisher_upload; u->training is held against its datanet first, and its root and u->id need
 * not be set. Errors: those, and of datanet_store_check_training. */
MUST_CHECK enum status publish_indexed(const struct publish_indexed *to, struct publish_upload *u,
                                       struct buf *report, struct errtext *err);

#endif
