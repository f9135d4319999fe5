/* A file becomes a datanet of one document when a job names it: what an adapter is trained on is
 * attributed, so it needs an owner, and the owner is the key's account. Its text is never shown,
 * and its key alone may train on it. A datanet that publishers brought is for everybody to train
 * on: its owners said under which licence, and are paid. */
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/datanet/training.h"
#include "server/http/auth.h"
#include "server/http/files.h"
#include "server/http/fine_tuning.h"
#include "server/http/state.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_PREFIX    "file-"
#define DATANET_PREFIX "datanet:"
#define FILE_LICENCE   "LicenseRef-private"

/* ---- a datanet by name ---- */

struct source_wanted {
    char name[DATANET_NAME_BYTES + 1];
    uint64_t version;
    const struct exchange *x;
    uint8_t root[32];
    uint32_t found;
};

/* One that was made of a file is its key's alone. */
static bool may_train_on(const struct exchange *x, const struct datanet_held *h)
{
    bool of_file = strncmp(h->name, FILE_PREFIX, sizeof(FILE_PREFIX) - 1) == 0;
    return !of_file || strcmp(h->publisher, auth_key_name(x->key)) == 0;
}

static bool look_for(void *arg, const struct datanet_held *h, const struct value_report *value)
{
    struct source_wanted *w = arg;
    (void)value;
    if (strcmp(h->name, w->name) != 0 || h->version != w->version || !may_train_on(w->x, h))
        return true;
    w->found++;
    memcpy(w->root, h->root, 32);
    return true;
}

static enum status by_name(const struct exchange *x, const char *name, const char *param,
                           uint8_t root[32], struct errtext *err)
{
    const char *at = strrchr(name, '@');
    char *end = NULL;
    size_t len = at ? (size_t)(at - name) : 0;
    struct source_wanted w = {.x = x};
    errno = 0;
    w.version = at && at[1] >= '1' && at[1] <= '9' ? strtoull(at + 1, &end, 10) : 0;
    if (!w.version || errno || *end || len == 0 || len >= sizeof(w.name))
        return err_param(err, STATUS_INVALID, param,
                         "%s: found '%.100s', expected " DATANET_PREFIX "NAME@VERSION or "
                         "" DATANET_PREFIX "0x and the document root",
                         param, name);
    snprintf(w.name, sizeof(w.name), "%.*s", (int)len, name);
    datanet_store_each(x->server->deps.datanets, look_for, &w);
    memcpy(root, w.root, 32);
    if (w.found == 1)
        return STATUS_OK;
    return w.found ? err_param(err, STATUS_INVALID, param,
                               "%s: %u datanets are called '%.100s' in version %" PRIu64 "; name "
                               "one by " DATANET_PREFIX "0x and its document root",
                               param, w.found, w.name, w.version)
                   : err_param(err, STATUS_NOT_FOUND, param,
                               "%s: there is no datanet '%.100s' of version %" PRIu64 " here; GET "
                               "/v1/datanets lists those there are",
                               param, w.name, w.version);
}

static enum status by_datanet(const struct exchange *x, const char *name, const char *param,
                              uint8_t root[32], struct errtext *err)
{
    struct datanet_held h;
    if (!hex_decode(root, 32, name))
        return by_name(x, name, param, root, err);
    bool held = datanet_store_get(x->server->deps.datanets, root, &h) && may_train_on(x, &h);
    return held ? STATUS_OK
                : err_param(err, STATUS_NOT_FOUND, param,
                            "%s: no datanet of this document root is here; GET /v1/datanets lists "
                            "those there are",
                            param);
}

/* ---- a file ---- */

struct file_datanet { /* the one document */
    struct datanet_document item;
    uint8_t root[32];
    enum rows_kind kind;
    const struct stored_file *file;
    const char *text;
    size_t len;
};

static enum status set_owner(const struct exchange *x, struct datanet_document *d,
                             struct errtext *err)
{
    const uint8_t *account = auth_account(x->key);
    if (!account && x->server->deps.book)
        return err_set(err, STATUS_DENIED,
                       "this API key has no account, so nobody would own what is trained on; the "
                       "operator's api_keys give it one");
    memset(d->owner, 0, sizeof(d->owner));
    if (account)
        memcpy(d->owner, account, sizeof(d->owner));
    return STATUS_OK;
}

static json_t *list_of(const struct file_datanet *f)
{
    char owner[ADDR_TEXT_BYTES], digest[65];
    addr_format(owner, f->item.owner);
    hex_encode(digest, f->item.digest, 32);
    return json_pack("{ss si s[{si ss ss sb ss sI ss}]}", "name", f->file->id, "version", 1,
                     "documents", "docId", 1, "owner", owner, "licence", FILE_LICENCE, "display", 0,
                     "kind", rows_kind_name(f->kind), "bytes", (json_int_t)f->item.bytes, "digest",
                     digest);
}

static enum status keep_datanet(struct exchange *x, const struct file_datanet *f,
                                struct errtext *err)
{
    struct datanet_store *s = x->server->deps.datanets;
    struct datanet *there = datanet_store_find(s, f->root);
    uint8_t root[32];
    datanet_release(there);
    if (there)
        return STATUS_OK;
    json_t *list = list_of(f);
    const struct datanet_list l = {.datanet = list, .publisher = auth_key_name(x->key)};
    enum status st = list ? datanet_store_put_list(s, &l, root, err)
                          : err_set(err, STATUS_NO_MEMORY, "there is no memory for the list now");
    json_decref(list);
    if (!st)
        CHECK(memcmp(root, f->root, 32) == 0);
    return st ? st : datanet_store_put_text(s, root, f->item.digest, f->text, f->len, err);
}

/* What the document is known by. */
static enum status describe(struct exchange *x, struct file_datanet *f, struct errtext *err)
{
    struct buf normal;
    buf_init(&normal, 4 * (size_t)DOCUMENT_BYTES_MAX);
    enum status st = document_normal(&normal, f->text, f->len, err);
    if (!st) {
        f->kind = rows_kind_guess(f->file->name, normal.data, normal.len);
        f->item.bytes = normal.len;
        document_digest(f->item.digest, &normal);
        keccak_256(f->item.licence_hash, FILE_LICENCE, strlen(FILE_LICENCE));
        st = set_owner(x, &f->item, err);
    }
    buf_fini(&normal);
    return st ? st : datanet_document_root(f->root, &f->item, 1, err);
}

static enum status by_file(struct exchange *x, const char *id, const char *param, uint8_t root[32],
                           struct errtext *err)
{
    struct stored_file file;
    char *text;
    size_t len;
    if (!file_store_get(x->server->deps.files, auth_key_name(x->key), id, &file) ||
        strcmp(file.purpose, FILES_TO_TRAIN) != 0)
        return err_param(err, STATUS_NOT_FOUND, param,
                         "%s: there is no file '%.60s' of this key with the purpose "
                         "" FILES_TO_TRAIN,
                         param, id);
    enum status st = file_store_read(x->server->deps.files, &file, &text, &len, err);
    struct file_datanet f = {.file = &file, .text = text, .len = len};
    if (!st)
        st = describe(x, &f, err);
    if (!st)
        st = keep_datanet(x, &f, err);
    memcpy(root, f.root, 32);
    mem_free(text);
    if (st && err)
        snprintf(err->param, sizeof(err->param), "%s", param);
    return st;
}

enum status tune_source(struct exchange *x, const char *name, const char *param, uint8_t root[32],
                        struct errtext *err)
{
    size_t prefix = sizeof(DATANET_PREFIX) - 1;
    return strncmp(name, DATANET_PREFIX, prefix) == 0
               ? by_datanet(x, name + prefix, param, root, err)
               : by_file(x, name, param, root, err);
}

enum status tune_rows(struct exchange *x, const uint8_t root[32], uint32_t *rows,
                      struct errtext *err)
{
    const struct model *m = x->server->deps.model;
    struct datanet *d = datanet_store_find(x->server->deps.datanets, root);
    struct training *t = NULL;
    *rows = 0;
    if (!d)
        return err_param(err, STATUS_NOT_FOUND, "training_file",
                         "training_file: texts of this datanet are missing here");
    enum status st = training_build(&t, d, false, false, m->tokenizer_digest, err);
    *rows = st ? 0 : t->n;
    training_free(t);
    datanet_release(d);
    return st;
}
