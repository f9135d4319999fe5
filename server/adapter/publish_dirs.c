/* Directories of the operator: those that a flag names, and those that a request names beneath an
 * allowed root. They stay where they are; only a publish.json beside the adapter is read with it.
 */
#include "server/adapter/publish_impl.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/model/foreign.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static enum status load_checked_dir(struct publisher *p, const char *name, const char *dir,
                                    bool replace, struct errtext *err)
{
    struct admit_folder f;
    enum status st = admit_folder_read(&f, dir, &p->roots, p->opt.model, &p->opt.limits, err);
    if (st) {
        err_prefix(err, "adapter '%s'", name);
        return st;
    }
    struct adapter_entry *e = catalog_entry_new();
    publish_fill_entry(p, e, name, dir, &f.a);
    publish_set_chat(p, e, f.chat);
    if (f.manifest && f.manifest->documents)
        st = publisher_check_licences(p, f.manifest->datanet_id, f.manifest->documents, err);
    if (st)
        err_prefix(err, "adapter '%s'", name);
    if (!st)
        st = publish_keep_owners(p, f.manifest ? f.manifest->documents : NULL, err);
    if (!st)
        st = publish_register(p, e, replace, err); /* its errors name the adapter */
    if (!st)
        publish_note_near(p, &f.a);
    catalog_release(e);
    admit_folder_fini(&f);
    return st;
}

/* real, a path without links, lies beneath one of the roots. path is what was asked for. */
static enum status check_root(const struct publisher *p, const char *real, const char *path,
                              struct errtext *err)
{
    bool inside = false;
    for (uint32_t i = 0; i < p->roots.count && !inside; i++)
        inside = file_is_beneath(real, p->roots.root[i]);
    return inside ? STATUS_OK
                  : err_param(err, STATUS_DENIED, "lora_path",
                              "lora_path '%.200s': not beneath a folder that the server allows "
                              "(adapter_roots)",
                              path);
}

enum status publisher_load_dir(struct publisher *p, const char *name, const char *path,
                               bool trusted, bool replace, struct errtext *err)
{
    enum status st = catalog_check_name(p->catalog, name, err);
    if (st)
        return st;
    if (!trusted && path[0] != '/')
        return err_param(err, STATUS_INVALID, "lora_path",
                         "lora_path '%.200s': expected an absolute path%s", path,
                         foreign_is_hub_id(path)
                             ? "; an adapter of the Hugging Face hub is downloaded first (hf "
                               "download) beneath a folder that the server allows (adapter_roots)"
                             : "");
    char *real = realpath(path, NULL); /* once: what was checked is what is read */
    if (!real) {
        st = err_param(err, STATUS_NOT_FOUND, "lora_path", "%s", strerror(errno));
        if (trusted)
            st = foreign_folder(path, FOREIGN_WANT_ADAPTER, st, err);
        err_prefix(err, "adapter '%.64s': %.200s", name, path);
        return st;
    }
    if (!trusted)
        st = check_root(p, real, path, err);
    if (!st)
        st = load_checked_dir(p, name, real, replace, err);
    mem_free(real);
    return st;
}

/* Whoever put one of these there meant an adapter; even a link that leads nowhere. */
static bool looks_like_adapter(const char *dir, const char *name)
{
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors",
                                        "adapter_model.bin"};
    char path[PATH_MAX];
    struct stat sb;
    if (name[0] == '.')
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        if ((size_t)snprintf(path, sizeof(path), "%s/%s/%s", dir, name, files[i]) < sizeof(path) &&
            lstat(path, &sb) == 0)
            return true;
    }
    return false;
}

static enum status load_one(struct publisher *p, const char *dir, const char *name, bool strict,
                            uint32_t *count, struct errtext *err)
{
    char path[PATH_MAX];
    struct errtext why = ERRTEXT_INIT;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    enum status st = publisher_load_dir(p, name, path, true, false, strict ? err : &why);
    *count += !st;
    if (!st || strict)
        return st;
    log_warn("adapters", "'%s' in %s is not served: %s", name, dir, why.text);
    catalog_refuse(p->catalog, name, &why);
    return STATUS_OK;
}

enum status publisher_load_all(struct publisher *p, const char *dir, bool strict, uint32_t *count,
                               struct errtext *err)
{
    struct dirent **list;
    *count = 0;
    int n = scandir(dir, &list, NULL, alphasort);
    if (n < 0)
        return err_param(err, STATUS_NOT_FOUND, "adapter_dir", "adapter_dir %s: %s", dir,
                         strerror(errno));
    enum status st = STATUS_OK;
    for (int i = 0; i < n; i++) {
        if (!st && looks_like_adapter(dir, list[i]->d_name))
            st = load_one(p, dir, list[i]->d_name, strict, count, err);
        free(list[i]); /* lint: waive banned - scandir's memory */
    }
    free(list); /* lint: waive banned - scandir's memory */
    return st;
}
