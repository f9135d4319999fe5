/* Two bounded bodies, each to its own staging name, then one call that publishes or only tries: the
 * server answers with what it would do. */
#include "chain_client/cli/upload.h"
#include "server/adapter/catalog.h"
#include "server/adapter/peft/folder.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/datanet/training.h"
#include "server/model/foreign.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *const part[] = {"adapter_config.json", "adapter_model.safetensors"};

enum status upload_check_name(const char *name, struct errtext *err)
{
    static const char good[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/-";
    size_t len = strlen(name);
    if (len == 0 || len > CATALOG_NAME_MAX || strspn(name, good) != len || name[0] == '/' ||
        name[len - 1] == '/' || strstr(name, "..") || strstr(name, "//"))
        return err_param(err, STATUS_INVALID, "name",
                         "'%.128s' is not an adapter name: 1 to %d of A-Z a-z 0-9 . _ / - are "
                         "expected",
                         name, CATALOG_NAME_MAX);
    return STATUS_OK;
}

/* Through its descriptor, so that what the links were judged by is what is sent. */
static enum status upload_part(struct http *h, const char *url, int fd, struct errtext *err)
{
    char path[40];
    json_t *answer;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    struct http_body body = {.file_path = path};
    enum status st = http_call(h, "PUT", url, &body, &answer, err);
    json_decref(answer);
    return st;
}

enum status upload_files(struct http *h, const char *name, const char *dir, struct errtext *err)
{
    for (size_t i = 0; i < ARRAY_COUNT(part); i++) {
        char url[512];
        int fd;
        snprintf(url, sizeof(url), "/v1/uploads/%s/%s", name, part[i]);
        enum status st = peft_folder_open(dir, NULL, part[i], &fd, err);
        if (st) {
            st = foreign_folder(dir, FOREIGN_WANT_ADAPTER, st, err);
            err_prefix(err, "%s", dir);
            return st == STATUS_NOT_FOUND ? STATUS_INVALID : st;
        }
        st = upload_part(h, url, fd, err);
        close(fd);
        if (st)
            return st;
    }
    return STATUS_OK;
}

enum status upload_training(struct http *h, const char *name, const char *dir, bool *sent,
                            struct errtext *err)
{
    char url[512];
    int fd;
    *sent = false;
    snprintf(url, sizeof(url), "/v1/uploads/%s/" TRAINING_FILE, name);
    enum status st = peft_folder_open(dir, NULL, TRAINING_FILE, &fd, err);
    if (st == STATUS_NOT_FOUND) {
        err_clear(err);
        return STATUS_OK;
    }
    if (st)
        return st;
    st = upload_part(h, url, fd, err);
    close(fd);
    *sent = !st;
    return st;
}

enum status upload_publish(struct http *h, const struct upload_call *u, json_t **report,
                           struct errtext *err)
{
    struct chat_own *own;
    *report = NULL;
    enum status st = chat_own_read(&own, u->dir, NULL, err);
    if (!st && own && own->refusal)
        st = err_set(err, STATUS_INVALID, "%s: %s", u->dir, own->refusal);
    json_t *root = st ? NULL
                      : json_pack("{s:s, s:b, s:b, s:O*, s:s*}", "name", u->name, "replace",
                                  u->replace, "dry_run", u->dry_run, "manifest", u->manifest,
                                  "chat_template", own ? own->text : NULL);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    chat_own_release(own);
    if (!text)
        return st ? st : err_set(err, STATUS_NO_MEMORY, "no memory for the publish request");
    struct http_body body = {.text = text, .len = strlen(text)};
    st = http_call(h, "POST", "/v1/adapters", &body, report, err);
    mem_free(text);
    return st;
}
