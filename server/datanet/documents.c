/* Sorted by digest, the documents give their root; sorted by owner and counted, the owners theirs.
 * What the list says in texts is copied, so that the JSON, which is several times as large, can go.
 */
#include "server/datanet/documents.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "server/base/mem.h"
#include "server/datanet/spdx.h"

#include <stdlib.h>
#include <string.h>

#define TEXT_BYTES_MAX ((size_t)1 << 30)

struct listed {
    struct datanet_document item;
    struct documents_facts facts;
};

/* ---- one entry ---- */

static const char *keep(struct documents *d, struct json_reader *doc, const char *key)
{
    const char *text = json_read_string(doc, key);
    size_t len = text ? strlen(text) : 0;
    char *copy = text ? arena_alloc(&d->text, len + 1) : NULL;
    if (copy)
        memcpy(copy, text, len);
    else if (text)
        json_fail(doc, STATUS_NO_MEMORY, key, "no memory for it");
    return copy;
}

static void check_texts(struct json_reader *doc, struct documents_facts *f)
{
    struct errtext why = ERRTEXT_INIT;
    const char *kind = json_read_string(doc, "kind");
    if (doc->st)
        return;
    if (!f->licence)
        json_fail(doc, STATUS_INVALID, "licence", "missing, expected an SPDX licence");
    else if (spdx_check(f->licence, &why))
        json_fail(doc, STATUS_INVALID, "licence", "%s", why.text);
    if (!f->terms)
        f->terms = "";
    else if (terms_check(f->terms, &why))
        json_fail(doc, STATUS_INVALID, "terms", "%s", why.text);
    if (kind && !rows_kind_parse(&f->kind, kind))
        json_fail(doc, STATUS_INVALID, "kind",
                  "found \"%.40s\", expected text, markdown, rows or chats", kind);
}

static void need_document(struct documents *d, struct listed *l, struct json_reader *doc,
                          uint64_t version)
{
    struct documents_facts *f = &l->facts;
    struct json_range versions = {1, (int64_t)version};
    json_need_hex(doc, "digest", l->item.digest, 32);
    addr_need(l->item.owner, doc, "owner");
    l->item.bytes = (uint64_t)json_need_int(doc, "bytes", (struct json_range){0, INT64_MAX});
    f->doc_id = (uint64_t)json_need_int(doc, "docId", (struct json_range){0, INT64_MAX});
    f->since = (uint64_t)json_read_int(doc, "since", versions, (int64_t)version);
    f->display = json_read_bool(doc, "display", false);
    f->is_copy = json_has(doc, "copyOf");
    if (f->is_copy)
        json_need_hex(doc, "copyOf", f->copy_of, 32);
    f->licence = keep(d, doc, "licence");
    f->terms = keep(d, doc, "terms");
    f->file = keep(d, doc, "file");
    f->signature = keep(d, doc, "ownerSignature");
    check_texts(doc, f);
    if (!doc->st)
        keccak_256(l->item.licence_hash, f->licence, strlen(f->licence));
}

/* ---- the whole list ---- */

static int by_digest(const void *a, const void *b)
{
    const struct listed *x = a, *y = b;
    return x->facts.is_copy != y->facts.is_copy ? x->facts.is_copy - y->facts.is_copy
                                                : memcmp(x->item.digest, y->item.digest, 32);
}

static int by_owner(const void *a, const void *b)
{
    return memcmp(((const struct datanet_owner *)a)->owner,
                  ((const struct datanet_owner *)b)->owner, 20);
}

static int by_id(const void *a, const void *b, void *arg)
{
    const struct documents_facts *f = arg;
    uint64_t x = f[*(const uint32_t *)a].doc_id, y = f[*(const uint32_t *)b].doc_id;
    return (x > y) - (x < y);
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

static enum status order_ids(struct documents *d, struct errtext *err)
{
    for (uint32_t i = 0; i < d->listed; i++)
        d->by_id[i] = i;
    qsort_r(d->by_id, d->listed, sizeof(*d->by_id), by_id, d->facts);
    for (uint32_t i = 1; i < d->listed; i++) {
        uint64_t id = d->facts[d->by_id[i]].doc_id;
        if (id == d->facts[d->by_id[i - 1]].doc_id)
            return err_set(err, STATUS_INVALID, "docId %llu stands twice", (unsigned long long)id);
    }
    return STATUS_OK;
}

static enum status finish(struct documents *d, struct listed *all, struct errtext *err)
{
    qsort(all, d->listed, sizeof(*all), by_digest);
    for (uint32_t i = 0; i < d->listed; i++) {
        d->item[i] = all[i].item;
        d->facts[i] = all[i].facts;
        d->count += !all[i].facts.is_copy;
    }
    if (!d->count)
        return err_set(err, STATUS_INVALID,
                       "every one of the %u is a copy, expected at least one that is not",
                       d->listed);
    enum status st = order_ids(d, err);
    if (!st)
        st = datanet_document_root(d->document_root, d->item, d->count, err);
    return st ? st : count_owners(d, err);
}

static void read_all(struct documents *d, struct json_reader *r, const json_t *list,
                     uint64_t version)
{
    struct errtext why = ERRTEXT_INIT;
    struct listed *all = mem_try_array(d->listed, sizeof(*all));
    d->item = mem_try_array(d->listed, sizeof(*d->item));
    d->facts = mem_try_array(d->listed, sizeof(*d->facts));
    d->by_id = mem_try_array(d->listed, sizeof(*d->by_id));
    if (!all || !d->item || !d->facts || !d->by_id)
        json_fail(r, STATUS_NO_MEMORY, "documents", "no memory for %u of them", d->listed);
    for (size_t i = 0; !r->st && i < d->listed; i++) {
        struct json_reader doc = json_enter_item(r, "documents", i, json_array_get(list, i));
        need_document(d, &all[i], &doc, version);
    }
    enum status st = r->st ? STATUS_OK : finish(d, all, &why);
    if (st)
        json_fail(r, st, "documents", "%s", why.text);
    mem_free(all);
}

void documents_need(struct documents **out, struct json_reader *r, uint64_t version)
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
    arena_init(&d->text, TEXT_BYTES_MAX);
    d->listed = (uint32_t)n;
    read_all(d, r, list, version);
    if (r->st)
        documents_free(d);
    else
        *out = d;
}

void documents_free(struct documents *d)
{
    if (!d)
        return;
    arena_fini(&d->text);
    mem_free(d->item);
    mem_free(d->facts);
    mem_free(d->by_id);
    mem_free(d->owner);
    mem_free(d);
}

uint32_t documents_find(const struct documents *d, uint64_t doc_id)
{
    uint32_t lo = 0, hi = d->listed;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (d->facts[d->by_id[mid]].doc_id < doc_id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < d->listed && d->facts[d->by_id[lo]].doc_id == doc_id ? d->by_id[lo] : UINT32_MAX;
}

uint32_t documents_owner(const struct documents *d, uint32_t place)
{
    const struct datanet_owner *found =
        bsearch(d->item[place].owner, d->owner, d->owner_count, sizeof(*d->owner), by_owner);
    return found ? (uint32_t)(found - d->owner) : UINT32_MAX;
}
