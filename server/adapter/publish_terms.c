/* What the Registry has to say about an adapter that comes in. What it costs and who is paid is
 * never taken from what came with it; its documents count where they are the registered ones. */
#include "server/adapter/publish_impl.h"
#include "server/base/clock.h"

#include <inttypes.h>
#include <string.h>

static enum status check_documents(const struct terms *t, const struct manifest *m,
                                   struct errtext *err)
{
    if (!terms_has_datanet(t) || (!m && t->contributors))
        return STATUS_OK;
    if (!m || !m->documents)
        return t->contributors
                   ? STATUS_OK
                   : err_param(err, STATUS_INVALID, "manifest",
                               "manifest.documents: missing; this adapter is registered with a "
                               "datanet (version %" PRIu64
                               ") whose owners' list is not here, and without it nobody can be "
                               "paid",
                               t->r.datanet_version);
    if (memcmp(m->documents->document_root, t->document_root, 32) == 0 &&
        memcmp(m->documents->owner_root, t->owner_root, 32) == 0)
        return STATUS_OK;
    return err_param(err, STATUS_DENIED, "manifest",
                     "manifest.documents: they are not those of version %" PRIu64
                     " of the datanet, which the Registry names for this adapter",
                     t->r.datanet_version);
}

enum status publish_check_terms(const struct publisher *p, const uint8_t id[32],
                                const struct manifest *m, struct errtext *err)
{
    struct errtext unread = ERRTEXT_INIT;
    struct terms *t = NULL;
    if (!p->opt.book || book_terms_wait(p->opt.book, id, clock_wall_ms() / 1000,
                                        PUBLISH_REGISTRY_WAIT_MS, &t, &unread))
        return STATUS_OK; /* unread: a priced request will be refused until it is */
    enum status st = check_documents(t, m, err);
    terms_release(t);
    return st;
}

enum status publisher_check_licences(const struct publisher *p, const uint8_t datanet_id[32],
                                     const struct documents *documents, struct errtext *err)
{
    struct documents_licensed l = {
        .chain_id = p->opt.chain_id, .ask = p->opt.ask_1271, .ask_arg = p->opt.ask_1271_arg};
    if (!p->opt.book)
        return STATUS_OK;
    memcpy(l.datanet_id, datanet_id, 32);
    memcpy(l.registry, p->opt.registry, 20);
    return documents_check_licences(documents, &l, err);
}

enum status publish_keep_owners(const struct publisher *p, const struct documents *documents,
                                struct errtext *err)
{
    uint8_t root[32];
    return p->opt.book && documents
               ? book_put_owners(p->opt.book, documents->owner, documents->owner_count, root, err)
               : STATUS_OK;
}
