/* Who is paid what for an answer is decided here, when its request begins, and nowhere else: by the
 * content ids of its parts, from the book. A lane without a chain has no book: its adapters cost
 * nothing and pay nobody. */
#include "server/record/recorder_impl.h"

#include <inttypes.h>

/* Money for owners of documents cannot be divided without their list. */
static enum status check_owners(const struct request *req, struct errtext *err)
{
    for (uint32_t i = 0; i < req->comp.n; i++) {
        const struct terms *t = req->terms[i];
        char net[65];
        if (!terms_has_datanet(t) || t->contributors)
            continue;
        hex_encode(net, t->r.datanet_id, 32);
        return err_set(err, STATUS_BUSY,
                       "adapter '%s' is registered with version %" PRIu64 " of datanet 0x%s, whose "
                       "owners' list is not here: publish the adapter with its documents",
                       req->entry[i]->name, t->r.datanet_version, net);
    }
    return STATUS_OK;
}

enum status recorder_entitle(const struct recorder *r, struct request *req, struct errtext *err)
{
    struct book *book = r->deps.book;
    uint64_t now_s = req->arrive_wall_ms / 1000;
    if (!book) {
        req->base_tariff = r->opt.base_tariff;
        return STATUS_OK;
    }
    enum status st = book_base(book, now_s, &req->base_tariff, err);
    for (uint32_t i = 0; i < req->comp.n && !st; i++) {
        terms_release(req->terms[i]);
        st = book_terms(book, req->comp.part[i].adapter, now_s, &req->terms[i], err);
    }
    if (st || !build_is_priced(req))
        return st;
    st = book_check_age(book, now_s, err);
    return st ? st : check_owners(req, err);
}
