/* The published archive over HTTP, read-only: an attestor, a watcher or anybody copies it here. A
 * name is parsed and rendered again, and only an equal one is opened: no other path exists. */
#include "chain_client/settle/archive.h"
#include "chain_client/settle/serve_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The folder's own spelling, or false. */
static bool folder_name(char out[ARCHIVE_NAME_BYTES], const char *text, size_t len, bool *is_epoch)
{
    char name[ARCHIVE_NAME_BYTES];
    if (len >= sizeof(name) || len < 7)
        return false;
    memcpy(name, text, len);
    name[len] = '\0';
    *is_epoch = strncmp(name, "epoch-", 6) == 0;
    uint64_t number = strtoull(name + 6, NULL, 10);
    if (*is_epoch)
        archive_epoch_name(out, number);
    else
        archive_batch_name(out, number);
    return number != 0 && strcmp(out, name) == 0;
}

static bool is_known(const char *file, bool is_epoch)
{
    const char *const *list = is_epoch ? archive_epoch_files : archive_batch_files;
    size_t count = is_epoch ? ARCHIVE_EPOCH_FILES : ARCHIVE_BATCH_FILES;
    for (size_t i = 0; i < count; i++)
        if (strcmp(list[i], file) == 0)
            return true;
    return false;
}

struct MHD_Response *serve_archive(struct serve *s, const char *path, enum status *st,
                                   struct errtext *err)
{
    char folder[ARCHIVE_NAME_BYTES], full[4096];
    struct stat info;
    bool is_epoch = false;
    const char *slash = strchr(path, '/');
    if (!slash || !folder_name(folder, path, (size_t)(slash - path), &is_epoch) ||
        !is_known(slash + 1, is_epoch)) {
        *st = err_set(err, STATUS_NOT_FOUND,
                      "no such name; the archive holds batch-00000001/header.json, manifest.json, "
                      "records.bin and epoch-00000001/manifest.json with what it names");
        return NULL;
    }
    snprintf(full, sizeof(full), "%s/%s/%s", s->set->archive_dir, folder, slash + 1);
    int fd = open(full, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        *st = err_set(err, fd < 0 && errno != ENOENT ? STATUS_IO : STATUS_NOT_FOUND,
                      "%s/%s is not in the archive", folder, slash + 1);
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    struct MHD_Response *r = MHD_create_response_from_fd64((uint64_t)info.st_size, fd);
    if (!r) {
        close(fd);
        *st = err_set(err, STATUS_NO_MEMORY, "no memory for an answer");
    }
    return r;
}
