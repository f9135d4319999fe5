/* See publish_indexed.h. */
#include "server/influence/publish_indexed.h"

#include <string.h>

struct others {
    const uint8_t *id;
    const char *publisher;
    bool found;
};

static bool visit_others(void *arg, struct adapter_entry *e)
{
    struct others *o = arg;
    o->found = memcmp(e->id, o->id, 32) == 0 && strcmp(e->publisher, o->publisher) != 0;
    return !o->found;
}

/* What an adapter was trained on is its publisher's to say, while nobody else has it too. */
static enum status keep_training(const struct publish_indexed *to, const struct publish_upload *u,
                                 struct errtext *err)
{
    struct others o = {.id = u->id, .publisher = u->key_name};
    catalog_each(to->catalog, visit_others, &o);
    return datanet_store_put_training(to->datanets, u->id, u->training, u->training_bytes, !o.found,
                                      err);
}

enum status publish_indexed(const struct publish_indexed *to, struct publish_upload *u,
                            struct buf *report, struct errtext *err)
{
    uint8_t id[32] = {0}, root[32];
    enum status st = STATUS_OK;
    u->id = u->id ? u->id : id;
    if (u->training)
        st = datanet_store_check_training(to->datanets, u->training, u->training_bytes, root, err);
    u->training_root = u->training ? root : NULL;
    if (!st)
        st = publisher_upload(to->publisher, u, report, err);
    if (!st && u->training && !u->dry_run)
        st = keep_training(to, u, err);
    if (!st && u->training && !u->dry_run && to->indexes)
        indexes_expect(to->indexes, u->id);
    u->training_root = NULL;
    u->id = u->id == id ? NULL : u->id;
    return st;
}
