/* What training beside serving is made of, and its way down. */
#ifndef RS_SERVER_FACTORY_MAKE_H
#define RS_SERVER_FACTORY_MAKE_H

#include "server/config.h"
#include "server/engine/engine.h"
#include "server/influence/publish_indexed.h"
#include "server/train/factory.h"

struct factory_parts {
    struct backend *backend; /* its own, in the background */
    struct factory *factory; /* NULL: nothing is trained here */
    struct publish_indexed publish;
    char dir[PATH_MAX];
};
/* serving: the backend that serves. Nothing where `train` is off, or that backend does not train
 * beside itself. Errors as factory_create and factory_start. */
MUST_CHECK enum status factory_parts_make(struct factory_parts *p, const struct config *c,
                                          const struct backend *serving, const struct engine *e,
                                          const struct model *m,
                                          const struct publish_indexed *publish,
                                          struct errtext *err);
/* Before the engine's end; again is fine. */
void factory_parts_stop(struct factory_parts *p);
void factory_parts_destroy(struct factory_parts *p);

#endif
