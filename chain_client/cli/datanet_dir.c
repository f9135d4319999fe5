/* The list is kept as the JSON that it is, so that what a later program writes into it survives. */
#include "chain_client/cli/datanet_dir.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/datanet/training.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct json_range positive = {1, INT64_MAX};

void datanet_dir_path(char out[PATH_MAX], const struct datanet_dir *d, const char *name)
{
    snprintf(out, PATH_MAX, "%s/%s", d->dir, name);
}

enum status datanet_dir_load(struct datanet_dir *d, const char *dir, struct errtext *err)
{
    size_t i;
    json_t *doc;
    *d = (struct datanet_dir){.dir = dir};
    datanet_dir_path(d->path, d, DATANET_FILE);
    if (!file_exists(d->path))
        return err_set(err, STATUS_NOT_FOUND,
                       "%s is not there; residual datanet new makes a datanet's folder", d->path);
    enum status st = json_doc_load(&d->json, d->path, DATANET_JSON_BYTES, 0, err);
    struct json_reader r = {.obj = d->json, .where = d->path, .st = st, .err = err};
    d->version = (uint64_t)json_need_int(&r, "version", positive);
    d->documents = (json_t *)(uintptr_t)json_need_list(&r, "documents", DATANET_DOCUMENTS_MAX);
    json_array_foreach(d->documents, i, doc)
    {
        struct json_reader e = json_enter_item(&r, "documents", i, doc);
        uint64_t id = (uint64_t)json_need_int(&e, "docId", (struct json_range){0, INT64_MAX - 1});
        d->id_max = id > d->id_max ? id : d->id_max;
    }
    if (r.st)
        datanet_dir_fini(d);
    return r.st;
}

void datanet_dir_fini(struct datanet_dir *d)
{
    json_decref(d->json);
    d->json = d->documents = NULL;
}

static enum status write_json(const char *path, const json_t *json, struct errtext *err)
{
    struct buf out;
    char *text = json_dumps(json, JSON_INDENT(2));
    buf_init(&out, DATANET_JSON_BYTES);
    if (text)
        buf_puts(&out, text);
    buf_putc(&out, '\n');
    mem_free(text);
    enum status st = text && !out.failed
                         ? file_write_atomic(path, out.data, out.len, 0644, err)
                         : err_set(err, STATUS_NO_MEMORY, "%s: no memory for the list", path);
    buf_fini(&out);
    return st;
}

enum status datanet_dir_put_text(const struct datanet_dir *d, const char *name, const void *data,
                                 size_t len, struct errtext *err)
{
    char path[PATH_MAX];
    datanet_dir_path(path, d, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    enum status st = file_write_fd(fd, path, data, len, err);
    if (close(fd) && !st)
        st = err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    return st;
}

enum status datanet_dir_save(const struct datanet_dir *d, struct errtext *err)
{
    return write_json(d->path, d->json, err);
}

/* This version's list and the rows of it: an adapter that was trained on it goes on naming them. */
static enum status keep_version(const struct datanet_dir *d, struct errtext *err)
{
    char name[64], path[PATH_MAX], rows[PATH_MAX];
    datanet_dir_path(path, d, "versions");
    enum status st = file_mkdirs(path, 0755, err);
    snprintf(name, sizeof(name), "versions/%04" PRIu64 ".json", d->version);
    datanet_dir_path(path, d, name);
    if (!st)
        st = write_json(path, d->json, err);
    snprintf(name, sizeof(name), "versions/%04" PRIu64 "." TRAINING_FILE, d->version);
    datanet_dir_path(path, d, name);
    datanet_dir_path(rows, d, TRAINING_FILE);
    if (!st && rename(rows, path) && errno != ENOENT)
        st = err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    return st;
}

enum status datanet_dir_next(struct datanet_dir *d, bool always, struct errtext *err)
{
    size_t i;
    json_t *doc;
    json_int_t published = json_integer_value(json_object_get(d->json, "published"));
    if (!always && (uint64_t)published != d->version)
        return STATUS_OK;
    enum status st = keep_version(d, err);
    if (st)
        return st;
    json_array_foreach(d->documents, i, doc)
    {
        if (!json_object_get(doc, "since"))
            json_object_set_new(doc, "since", json_integer((json_int_t)d->version));
    }
    d->version++;
    json_object_set_new(d->json, "version", json_integer((json_int_t)d->version));
    return STATUS_OK;
}

size_t datanet_dir_find(const struct datanet_dir *d, uint64_t doc_id)
{
    size_t i;
    json_t *doc;
    json_array_foreach(d->documents, i, doc)
    {
        if ((uint64_t)json_integer_value(json_object_get(doc, "docId")) == doc_id)
            return i;
    }
    return SIZE_MAX;
}
