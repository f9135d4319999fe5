/* A file per list, named by the root. It is read back with its root computed again: a damaged file
 * is as good as none, and is replaced by the next who brings the list. */
#include "server/terms/owners.h"
#include "chain_client/eth/addr.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <dirent.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct owners {
    char dir[PATH_MAX];
    pthread_mutex_t lock;
    uint64_t bytes; /* of the files */
};

static void path_of(const struct owners *o, const uint8_t root[32], char path[PATH_MAX])
{
    char hex[65];
    hex_encode(hex, root, 32);
    snprintf(path, PATH_MAX, "%.*s/%s.json", (int)(PATH_MAX - 80), o->dir, hex);
}

static uint64_t folder_bytes(const char *dir)
{
    char path[PATH_MAX + 256];
    struct stat sb;
    uint64_t sum = 0;
    struct dirent *e;
    DIR *d = opendir(dir);
    while (d && (e = readdir(d))) {
        snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
        if (stat(path, &sb) == 0 && S_ISREG(sb.st_mode))
            sum += (uint64_t)sb.st_size;
    }
    if (d)
        closedir(d);
    return sum;
}

enum status owners_open(struct owners **out, const char *dir, struct errtext *err)
{
    *out = NULL;
    enum status st = file_mkdirs(dir, 0700, err);
    if (st)
        return st;
    struct owners *o = mem_alloc(sizeof(*o));
    snprintf(o->dir, sizeof(o->dir), "%s", dir);
    CHECK(pthread_mutex_init(&o->lock, NULL) == 0);
    o->bytes = folder_bytes(dir);
    *out = o;
    return STATUS_OK;
}

void owners_close(struct owners *o)
{
    if (!o)
        return;
    pthread_mutex_destroy(&o->lock);
    mem_free(o);
}

/* ---- a list's file ---- */

static void put_list(struct buf *out, const struct datanet_owner *list, size_t count)
{
    char hex[41];
    buf_putc(out, '[');
    for (size_t i = 0; i < count; i++) {
        hex_encode(hex, list[i].owner, 20);
        buf_printf(out, "%s{\"documents\":%u,\"owner\":\"0x%s\"}", i ? "," : "", list[i].documents,
                   hex);
    }
    buf_putc(out, ']');
}

static enum status read_list(const json_t *root, struct datanet_owner *list, struct errtext *err)
{
    size_t i;
    const json_t *item;
    struct json_reader r = {.err = err};
    json_array_foreach(root, i, item)
    {
        struct json_reader e = json_enter_item(&r, "owners", i, item);
        list[i].documents =
            (uint32_t)json_need_int(&e, "documents", (struct json_range){1, UINT32_MAX});
        addr_need(list[i].owner, &e, "owner");
    }
    return r.st;
}

/* The list (mem_free) of that root, or NULL. */
static struct datanet_owner *load(const struct owners *o, const uint8_t root[32], size_t *count)
{
    char path[PATH_MAX];
    struct errtext err = ERRTEXT_INIT;
    uint8_t found[32];
    json_t *doc = NULL;
    struct datanet_owner *list = NULL;
    path_of(o, root, path);
    enum status st = json_doc_load(&doc, path, OWNERS_JSON_MAX, JSON_DOC_LIST, &err);
    *count = json_array_size(doc);
    if (!st && *count)
        list = mem_try_array(*count, sizeof(*list));
    if (list)
        st = read_list(doc, list, &err);
    if (list && !st)
        st = datanet_owner_root(found, list, *count, &err);
    if (list && (st || memcmp(found, root, 32) != 0)) {
        log_warn("registry", "%s is damaged, its list must be published again: %s", path,
                 st ? err.text : "another root");
        mem_free(list);
        list = NULL;
    }
    json_decref(doc);
    return list;
}

enum status owners_put(struct owners *o, const struct datanet_owner *list, size_t count,
                       uint8_t root[32], struct errtext *err)
{
    char path[PATH_MAX];
    struct buf text;
    size_t kept;
    if (count > OWNERS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "documents: %zu owners, at most %u are kept", count,
                       OWNERS_MAX);
    enum status st = datanet_owner_root(root, list, count, err);
    if (st)
        return st;
    pthread_mutex_lock(&o->lock);
    struct datanet_owner *there = load(o, root, &kept);
    buf_init(&text, OWNERS_JSON_MAX);
    if (!there) {
        put_list(&text, list, count);
        path_of(o, root, path);
        if (text.failed || o->bytes + text.len > OWNERS_BYTES_MAX)
            st = err_set(err, STATUS_FULL, "the owners' lists of datanets fill %llu bytes",
                         OWNERS_BYTES_MAX);
        else
            st = file_write_atomic(path, text.data, text.len, 0600, err);
        o->bytes += st ? 0 : text.len;
    }
    pthread_mutex_unlock(&o->lock);
    buf_fini(&text);
    mem_free(there);
    return st;
}

/* ---- who earns ---- */

static int most_documents(const void *a, const void *b)
{
    const struct datanet_owner *x = a, *y = b;
    if (x->documents != y->documents)
        return x->documents > y->documents ? -1 : 1;
    return memcmp(x->owner, y->owner, 20);
}

static int by_payee(const void *a, const void *b)
{
    return memcmp(((const struct contributor *)a)->payee, ((const struct contributor *)b)->payee,
                  20);
}

struct contributors *owners_find(struct owners *o, const uint8_t root[32])
{
    size_t count;
    struct datanet_owner *list = load(o, root, &count);
    if (!list)
        return NULL;
    struct contributors *c = mem_alloc(sizeof(*c));
    atomic_init(&c->refs, 1);
    memcpy(c->owner_root, root, 32);
    qsort(list, count, sizeof(*list), most_documents);
    c->count = (uint32_t)MIN(count, (size_t)TERMS_CONTRIB_MAX);
    for (uint32_t i = 0; i < c->count; i++) {
        memcpy(c->item[i].payee, list[i].owner, 20);
        c->item[i].document_count = list[i].documents;
    }
    qsort(c->item, c->count, sizeof(c->item[0]), by_payee);
    mem_free(list);
    return c;
}

enum status owners_json(struct owners *o, const uint8_t root[32], struct buf *out,
                        struct errtext *err)
{
    size_t count;
    char hex[65];
    struct datanet_owner *list = load(o, root, &count);
    hex_encode(hex, root, 32);
    if (!list)
        return err_set(err, STATUS_NOT_FOUND,
                       "the owners' list with the root 0x%s is not kept here: nobody published it",
                       hex);
    put_list(out, list, count);
    mem_free(list);
    return STATUS_OK;
}
