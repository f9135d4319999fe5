/* What the list says is small and kept; the texts may be a thousand times as large and are read one
 * by one. The JSON of the list is gone before the first of them. */
#include "server/datanet/datanet.h"
#include "server/adapter/peft/folder.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

struct datanet {
    struct datanet_head head;
    struct documents *documents;
    char *dir, *name;
    char *root_text[FILE_ROOTS_MAX];
    struct file_roots roots;
    _Atomic uint32_t refs;
};

static enum status read_head(struct datanet *d, const json_t *json, struct errtext *err)
{
    struct json_reader r = {.obj = json, .where = DATANET_FILE, .err = err};
    const char *name = json_need_string(&r, "name");
    d->head.version = (uint64_t)json_need_int(&r, "version", (struct json_range){1, INT64_MAX});
    if (json_has(&r, "datanetId"))
        json_need_hex(&r, "datanetId", d->head.id, 32);
    if (json_has(&r, "tokenizerDigest"))
        json_need_hex(&r, "tokenizerDigest", d->head.tokenizer_digest, 32);
    if (!r.st && (!*name || strlen(name) > DATANET_NAME_BYTES))
        json_fail(&r, STATUS_INVALID, "name", "found %zu bytes, expected 1 to %d", strlen(name),
                  DATANET_NAME_BYTES);
    documents_need(&d->documents, &r, d->head.version);
    d->name = mem_strdup(name);
    return r.st;
}

static enum status fill_head(struct datanet *d, struct errtext *err)
{
    const struct documents *list = d->documents;
    for (uint32_t i = 0; i < list->count; i++) {
        if (list->item[i].bytes > DOCUMENT_BYTES_MAX)
            return err_set(err, STATUS_TOO_LARGE,
                           "%s: document %llu has %llu bytes, at most %u; split it", DATANET_FILE,
                           (unsigned long long)list->facts[i].doc_id,
                           (unsigned long long)list->item[i].bytes, DOCUMENT_BYTES_MAX);
        d->head.bytes += list->item[i].bytes;
    }
    if (d->head.bytes > DATANET_TEXTS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "%s: %llu bytes of text, at most %llu", DATANET_FILE,
                       (unsigned long long)d->head.bytes, (unsigned long long)DATANET_TEXTS_MAX);
    d->head.name = d->name;
    d->head.n = list->count;
    d->head.owners = list->owner_count;
    memcpy(d->head.document_root, list->document_root, 32);
    memcpy(d->head.owner_root, list->owner_root, 32);
    return STATUS_OK;
}

static void keep_roots(struct datanet *d, const struct file_roots *roots)
{
    for (uint32_t i = 0; roots && i < roots->count; i++) {
        d->root_text[i] = mem_strdup(roots->root[i]);
        d->roots.root[i] = d->root_text[i];
        d->roots.count = i + 1;
    }
}

enum status datanet_open(struct datanet **out, const char *dir, const struct file_roots *roots,
                         struct errtext *err)
{
    struct datanet *d = mem_alloc(sizeof(*d));
    char *text = NULL;
    size_t len = 0;
    json_t *json = NULL;
    atomic_init(&d->refs, 1);
    d->dir = mem_strdup(dir);
    keep_roots(d, roots);
    *out = NULL;
    enum status st = datanet_read(d, DATANET_FILE, DATANET_JSON_BYTES, &text, &len, err);
    if (!st)
        st = json_doc_parse(&json, DATANET_FILE, text, len, 0, err);
    mem_free(text);
    if (!st)
        st = read_head(d, json, err);
    json_decref(json);
    if (!st)
        st = fill_head(d, err);
    if (st)
        datanet_release(d);
    else
        *out = d;
    return st;
}

struct datanet *datanet_ref(struct datanet *d)
{
    if (d)
        atomic_fetch_add_explicit(&d->refs, 1, memory_order_relaxed);
    return d;
}

void datanet_release(struct datanet *d)
{
    if (!d || atomic_fetch_sub_explicit(&d->refs, 1, memory_order_acq_rel) > 1)
        return;
    documents_free(d->documents);
    for (uint32_t i = 0; i < d->roots.count; i++)
        mem_free(d->root_text[i]);
    mem_free(d->dir);
    mem_free(d->name);
    mem_free(d);
}

const struct datanet_head *datanet_head(const struct datanet *d)
{
    return &d->head;
}

const struct documents *datanet_documents(const struct datanet *d)
{
    return d->documents;
}

const struct datanet_document *datanet_document(const struct datanet *d, uint32_t i)
{
    CHECK(i < d->documents->listed);
    return &d->documents->item[i];
}

const struct documents_facts *datanet_facts(const struct datanet *d, uint32_t i)
{
    CHECK(i < d->documents->listed);
    return &d->documents->facts[i];
}

enum status datanet_text(const struct datanet *d, uint32_t i, struct buf *out, struct errtext *err)
{
    return documents_text(d->documents, i, d->dir, &d->roots, out, err);
}

enum status datanet_read(const struct datanet *d, const char *name, size_t bytes_max, char **text,
                         size_t *len, struct errtext *err)
{
    int fd;
    enum status st = peft_folder_open(d->dir, &d->roots, name, &fd, err);
    if (st)
        return st;
    st = file_read_fd(fd, name, bytes_max, text, len, err);
    close(fd);
    return st;
}
