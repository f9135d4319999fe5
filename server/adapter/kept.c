/* One folder per content, one entry file per name. The order of writes is what a crash relies on:
 * files first, entry last; and to forget, the entry first. */
#include "server/adapter/kept.h"
#include "server/adapter/peft/folder.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum status kept_read_json(json_t **out, const char *dir, const struct file_roots *roots,
                           const char *name, struct errtext *err)
{
    char path[PATH_MAX], *text;
    size_t len;
    int fd = -1;
    *out = NULL;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    enum status st = peft_folder_open(dir, roots, name, &fd, err);
    if (st == STATUS_NOT_FOUND) {
        err_clear(err);
        return STATUS_OK;
    }
    if (st)
        return st;
    st = file_read_fd(fd, path, KEPT_JSON_BYTES_MAX, &text, &len, err);
    close(fd);
    if (st)
        return st;
    st = json_doc_parse(out, path, text, len, 0, err);
    mem_free(text);
    return st;
}

void kept_dir(const char *root, const uint8_t id[32], char dir[PATH_MAX])
{
    char hex[65];
    hex_encode(hex, id, 32);
    snprintf(dir, PATH_MAX, "%s/%s", root, hex);
}

/* "entry-<digest of the name>.json": names may hold slashes. */
static void entry_file(const char *name, char file[64])
{
    uint8_t digest[16];
    char hex[33];
    crypto_generichash(digest, sizeof(digest), (const uint8_t *)name, strlen(name), NULL, 0);
    hex_encode(hex, digest, sizeof(digest));
    snprintf(file, 64, "entry-%s.json", hex);
}

int kept_is_name(const struct dirent *d)
{
    size_t len = strlen(d->d_name);
    return strncmp(d->d_name, "entry-", 6) == 0 && len > 5 &&
           strcmp(d->d_name + len - 5, ".json") == 0;
}

/* Remove a kept folder that no name points to. */
void kept_sweep(const char *dir)
{
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors"};
    char path[PATH_MAX + 32];
    struct dirent **list;
    int n = scandir(dir, &list, kept_is_name, NULL);
    for (int i = 0; i < n; i++)
        free(list[i]); /* lint: waive banned - scandir's memory */
    if (n >= 0)
        free(list); /* lint: waive banned - scandir's memory */
    if (n != 0)
        return;
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
        (void)unlink(path);
    }
    (void)rmdir(dir);
}

void kept_forget(const char *root, const uint8_t id[32], const char *name)
{
    char dir[PATH_MAX], path[PATH_MAX + 72], file[64];
    kept_dir(root, id, dir);
    entry_file(name, file);
    snprintf(path, sizeof(path), "%s/%s", dir, file);
    (void)unlink(path);
    kept_sweep(dir);
}

static enum status write_part(const char *dir, const char *name, const void *data, size_t len,
                              struct errtext *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return file_write_atomic(path, data, len, 0600, err);
}

enum status kept_write(const char *dir, const struct kept_name *n, const struct kept_files *files,
                       struct errtext *err)
{
    char file[64];
    json_t *entry = json_pack("{s:s, s:s, s:I, s:O?, s:s*}", "name", n->name, "publisher",
                              n->publisher, "created", (json_int_t)n->created_unix, "manifest",
                              n->manifest, "chat_template", n->chat_template);
    char *text = entry ? json_dumps(entry, JSON_COMPACT) : NULL;
    enum status st = text ? file_mkdirs(dir, 0700, err) : STATUS_NO_MEMORY;
    if (!st)
        st = file_spare(dir, strlen(text) + (files ? files->config_bytes + files->tensor_bytes : 0),
                        err);
    entry_file(n->name, file);
    if (!st && files)
        st = write_part(dir, "adapter_config.json", files->config_json, files->config_bytes, err);
    if (!st && files)
        st = write_part(dir, "adapter_model.safetensors", files->tensors, files->tensor_bytes, err);
    if (!st)
        st = write_part(dir, file, text, strlen(text), err);
    mem_free(text);
    json_decref(entry);
    return st;
}

/* One name of a kept folder. *root owns what *n points to. */
enum status kept_read(struct kept_name *n, json_t **root, const char *dir, const char *file,
                      struct errtext *err)
{
    memset(n, 0, sizeof(*n));
    enum status st = kept_read_json(root, dir, NULL, file, err);
    if (st)
        return st;
    json_t *manifest = json_object_get(*root, "manifest");
    n->name = json_string_value(json_object_get(*root, "name"));
    n->publisher = json_string_value(json_object_get(*root, "publisher"));
    n->created_unix = json_integer_value(json_object_get(*root, "created"));
    n->manifest = json_is_object(manifest) ? manifest : NULL;
    n->chat_template = json_string_value(json_object_get(*root, "chat_template"));
    return n->name && n->publisher
               ? STATUS_OK
               : err_set(err, STATUS_CORRUPT, "%s/%s: name or publisher missing", dir, file);
}
