/* Two bounded bodies, each to its own staging name, then one call that publishes or only tries: the
 * server answers with what it would do. */
#include "chain_client/cli/upload.h"
#include "server/adapter/catalog.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

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

enum status upload_files(struct http *h, const char *name, const char *dir, struct errtext *err)
{
    for (size_t i = 0; i < ARRAY_COUNT(part); i++) {
        char path[PATH_MAX], url[512];
        json_t *answer;
        struct stat s;
        snprintf(path, sizeof(path), "%s/%s", dir, part[i]);
        snprintf(url, sizeof(url), "/v1/uploads/%s/%s", name, part[i]);
        if (lstat(path, &s) != 0)
            return err_set(err, STATUS_INVALID,
                           "%s is missing: expected a folder as peft's save_pretrained writes it",
                           path);
        if (!S_ISREG(s.st_mode))
            return err_set(err, STATUS_INVALID, "%s: expected a regular file, not a link", path);
        struct http_body body = {.file_path = path};
        enum status st = http_call(h, "PUT", url, &body, &answer, err);
        json_decref(answer);
        if (st)
            return st;
    }
    return STATUS_OK;
}

enum status upload_publish(struct http *h, const struct upload_call *u, json_t **report,
                           struct errtext *err)
{
    *report = NULL;
    json_t *root = json_pack("{s:s, s:b, s:b, s:O*}", "name", u->name, "replace", u->replace,
                             "dry_run", u->dry_run, "manifest", u->manifest);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    if (!text)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the publish request");
    struct http_body body = {.text = text, .len = strlen(text)};
    enum status st = http_call(h, "POST", "/v1/adapters", &body, report, err);
    mem_free(text);
    return st;
}
