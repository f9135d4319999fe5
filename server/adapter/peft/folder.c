/* The folder's own root is found in its real path: the text before "/snapshots/" if that ends in a
 * part that begins with "models--", else the folder. */
#include "server/adapter/peft/folder.h"
#include "server/base/check.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static void find_own_root(const char *real, char root[PATH_MAX])
{
    static const char snapshots[] = "/snapshots/", models[] = "/models--";
    memcpy(root, real, strlen(real) + 1);
    for (char *at = root; (at = strstr(at, snapshots)) != NULL; at++) {
        const char *part = at;
        while (part > root && part[-1] != '/')
            part--;
        if (part > root && strncmp(part - 1, models, sizeof(models) - 1) == 0) {
            *at = '\0';
            return;
        }
    }
}

enum status peft_folder_open(const char *dir, const struct file_roots *roots, const char *name,
                             int *fd, struct errtext *err)
{
    char real[PATH_MAX], own[PATH_MAX];
    struct file_roots all = {.root = {own}, .count = 1};
    *fd = -1;
    if (!realpath(dir, real))
        return err_set(err, errno == ENOENT || errno == ENOTDIR ? STATUS_NOT_FOUND : STATUS_IO,
                       "%s: %s", dir, strerror(errno));
    find_own_root(real, own);
    for (uint32_t i = 0; roots && i < roots->count; i++) {
        CHECK(all.count < FILE_ROOTS_MAX);
        all.root[all.count++] = roots->root[i];
    }
    return file_open_within(real, name, &all, fd, err);
}
