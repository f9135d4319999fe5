/* Sorted by digest, the documents give their root; sorted by owner and counted, the owners theirs.
 */
#include "server/datanet/documents.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "server/base/mem.h"

#include <stdlib.h>
#include <string.h>

static void need_document(struct datanet_document *d, struct json_reader *doc)
{
    const char *licence = json_need_string(doc, "licence");
    json_need_hex(doc, "digest", d->digest, 32);
    addr_need(d->owner, doc, "owner");
    d->bytes = (uint64_t)json_need_int(doc, "bytes", (struct json_range){0, INT64_MAX});
    keccak_256(d->licence_hash, licence, strlen(licence));
}

static int by_digest(const void *a, const void *b)
{
    return memcmp(((const struct datanet_document *)a)->digest,
                  ((const struct datanet_document *)b)->digest, 32);
}

static int by_owner(const void *a, const void *b)
{
    return memcmp(((const struct datanet_owner *)a)->owner,
                  ((const struct datanet_owner *)b)->owner, 20);
}

static enum status count_owners(struct documents *d, struct errtext *err)
{
    d->owner = mem_try_array(d->count, sizeof(*d->owner));
    if (!d->owner)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the owners of %u documents", d->count);
    for (uint32_t i = 0; i < d->count; i++)
        memcpy(d->owner[i].owner, d->item[i].owner, 20);
    qsort(d->owner, d->count, sizeof(*d->owner), by_owner); /* documents are 0 still */
    for (uint32_t i = 0; i < d->count; i++) { /* equal ones stand together: kept in front */
        if (i == 0 || memcmp(d->owner[d->owner_count - 1].owner, d->owner[i].owner, 20) != 0)
            d->owner[d->owner_count++] = d->owner[i];
        d->owner[d->owner_count - 1].documents++;
    }
    return datanet_owner_root(d->owner_root, d->owner, d->owner_count, err);
}

static enum status finish(struct documents *d, struct errtext *err)
{
    qsort(d->item, d->count, sizeof(*d->item), by_digest);
    enum status st = datanet_document_root(d->document_root, d->item, d->count, err);
    return st ? st : count_owners(d, err);
}

void documents_need(struct documents **out, struct json_reader *r)
{
    const json_t *list = json_need_list(r, "documents", DATANET_DOCUMENTS_MAX);
    size_t n = json_array_size(list);
    *out = NULL;
    if (n == 0)
        json_fail(r, STATUS_INVALID, "documents",
                  "found none, expected entries {docId, owner, licence, bytes, digest}");
    if (r->st)
        return;
    struct documents *d = mem_alloc(sizeof(*d));
    d->count = (uint32_t)n;
    d->list = json_incref((json_t *)(uintptr_t)list);
    d->item = mem_try_array(n, sizeof(*d->item));
    if (!d->item)
        json_fail(r, STATUS_NO_MEMORY, "documents", "no memory for %zu of them", n);
    for (size_t i = 0; !r->st && i < n; i++) {
        struct json_reader doc = json_enter_item(r, "documents", i, json_array_get(list, i));
        need_document(&d->item[i], &doc);
    }
    struct errtext why = ERRTEXT_INIT;
    enum status st = r->st ? STATUS_OK : finish(d, &why);
    if (st)
        json_fail(r, st, "documents", "%s", why.text);
    if (r->st)
        documents_free(d);
    else
        *out = d;
}

void documents_free(struct documents *d)
{
    if (!d)
        return;
    json_decref(d->list);
    mem_free(d->item);
    mem_free(d->owner);
    mem_free(d);
}
