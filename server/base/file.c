/* Files are read through their descriptor with the size that fstat gave, then probed for one more
 * byte: a size that changed while reading is an error that names it.
 *
 * For links that stay beneath a root, openat2's RESOLVE_BENEATH would be too strict: it refuses
 * every absolute link, and knows one root. So a file is located first without being opened
 * (O_PATH), the kernel is asked where that is, and only then the very same file is opened, through
 * its descriptor. Whatever is renamed in between, what was judged is what is read. */
#include "server/base/file.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static enum status errno_status(int e)
{
    if (e == ENOENT || e == ENOTDIR)
        return STATUS_NOT_FOUND;
    if (e == EACCES || e == EPERM || e == ELOOP)
        return STATUS_DENIED;
    return e == ENOSPC || e == EDQUOT ? STATUS_FULL : STATUS_IO;
}

static enum status fail_errno(const char *name, const char *what, struct errtext *err)
{
    int e = errno;
    enum status st = errno_status(e);
    return err_coded(err, st, st == STATUS_FULL ? FILE_DISK_FULL : NULL, "", "%s: %s: %s", name,
                     what, strerror(e));
}

static enum status read_exact(int fd, const char *name, char *data, size_t len, struct errtext *err)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = pread(fd, data + done, len - done, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_errno(name, "read", err);
        if (n == 0)
            return err_set(err, STATUS_CORRUPT, "%s: shrank while it was read: %zu of %zu bytes",
                           name, done, len);
        done += (size_t)n;
    }
    char extra;
    if (pread(fd, &extra, 1, (off_t)len) > 0)
        return err_set(err, STATUS_CORRUPT, "%s: grew past %zu bytes while it was read", name, len);
    return STATUS_OK;
}

enum status file_read_fd(int fd, const char *name, size_t bytes_max, char **data, size_t *len,
                         struct errtext *err)
{
    struct stat sb;
    *data = NULL;
    *len = 0;
    if (fstat(fd, &sb) != 0)
        return fail_errno(name, "stat", err);
    if (!S_ISREG(sb.st_mode))
        return err_set(err, STATUS_INVALID, "%s: not a regular file", name);
    if ((uint64_t)sb.st_size > bytes_max)
        return err_set(err, STATUS_TOO_LARGE, "%s: %lld bytes, at most %zu are read", name,
                       (long long)sb.st_size, bytes_max);
    size_t size = (size_t)sb.st_size;
    char *block = mem_try_alloc(size + 1);
    if (!block)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %zu bytes", name, size);
    enum status st = read_exact(fd, name, block, size, err);
    if (st) {
        mem_free(block);
        return st;
    }
    *data = block;
    *len = size;
    return STATUS_OK;
}

enum status file_read(const char *path, size_t bytes_max, char **data, size_t *len,
                      struct errtext *err)
{
    *data = NULL;
    *len = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fail_errno(path, "open", err);
    enum status st = file_read_fd(fd, path, bytes_max, data, len, err);
    close(fd);
    return st;
}

enum status file_read_secret(const char *path, size_t bytes_max, char **data, size_t *len,
                             struct errtext *err)
{
    struct stat sb;
    *data = NULL;
    *len = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fail_errno(path, "open", err);
    enum status st = STATUS_OK;
    if (fstat(fd, &sb) != 0)
        st = fail_errno(path, "stat", err);
    else if (sb.st_mode & 077)
        st = err_set(err, STATUS_DENIED,
                     "%s: mode %03o lets others in; a secret needs mode 600 (chmod 600)", path,
                     (unsigned)(sb.st_mode & 0777));
    else
        st = file_read_fd(fd, path, bytes_max, data, len, err);
    close(fd);
    while (!st && *len > 0 && isspace((unsigned char)(*data)[*len - 1]))
        (*data)[--*len] = '\0';
    return st;
}

enum status file_write_fd(int fd, const char *name, const void *data, size_t len,
                          struct errtext *err)
{
    const char *at = data;
    while (len > 0) {
        ssize_t n = write(fd, at, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_errno(name, "write", err);
        at += n;
        len -= (size_t)n;
    }
    return STATUS_OK;
}

static enum status sync_folder_of(const char *path, struct errtext *err)
{
    char dir[PATH_MAX];
    snprintf(dir, sizeof(dir), "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir ? 1 : 0] = '\0';
    else
        snprintf(dir, sizeof(dir), ".");
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(dir, "open", err);
    enum status st = fsync(fd) == 0 ? STATUS_OK : fail_errno(dir, "fsync", err);
    close(fd);
    return st;
}

enum status file_write_atomic(const char *path, const void *data, size_t len, unsigned mode,
                              struct errtext *err)
{
    const struct file_part part = {.data = data, .len = len};
    return file_write_parts(path, &part, 1, mode, err);
}

enum status file_write_parts(const char *path, const struct file_part *part, uint32_t count,
                             unsigned mode, struct errtext *err)
{
    char tmp[PATH_MAX];
    if ((size_t)snprintf(tmp, sizeof(tmp), "%s.tmp-%ld", path, (long)getpid()) >= sizeof(tmp))
        return err_set(err, STATUS_INVALID, "%s: path too long", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return fail_errno(tmp, "create", err);
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < count && !st; i++)
        st = file_write_fd(fd, tmp, part[i].data, part[i].len, err);
    if (!st && fsync(fd) != 0)
        st = fail_errno(tmp, "fsync", err);
    if (!st && fchmod(fd, mode) != 0)
        st = fail_errno(tmp, "chmod", err);
    close(fd);
    if (!st && rename(tmp, path) != 0)
        st = fail_errno(path, "rename", err);
    if (st)
        (void)unlink(tmp);
    return st ? st : sync_folder_of(path, err);
}

enum status file_spare(const char *dir, uint64_t bytes, struct errtext *err)
{
    struct statvfs v;
    if (statvfs(dir, &v) != 0)
        return fail_errno(dir, "statvfs", err);
    uint64_t kept = MIN(v.f_blocks * v.f_frsize / 8, FILE_KEPT_BYTES);
    uint64_t room = v.f_bavail * v.f_frsize;
    if (bytes <= room && room - bytes >= kept)
        return STATUS_OK;
    return err_coded(err, STATUS_FULL, FILE_DISK_FULL, "",
                     "%s: %" PRIu64 " bytes are free, expected %" PRIu64 " and the %" PRIu64
                     " that are left to records",
                     dir, room, bytes, kept);
}

bool file_is_beneath(const char *real, const char *root)
{
    size_t n = strlen(root);
    return strncmp(real, root, n) == 0 &&
           (real[n] == '/' || real[n] == '\0' || (n > 0 && root[n - 1] == '/'));
}

/* Why a name that is there cannot be located: a link, in all likelihood. */
static enum status fail_located(const char *path, const char *name, struct errtext *err)
{
    char to[256];
    int e = errno;
    ssize_t n = readlink(path, to, sizeof(to) - 1);
    if (n < 0) {
        errno = e;
        return fail_errno(name, "open", err);
    }
    to[n] = '\0';
    if (e == ELOOP)
        return err_set(err, STATUS_DENIED, "%s: a symbolic link to '%s' that leads in a circle",
                       name, to);
    if (e == ENOENT || e == ENOTDIR)
        return err_set(err, STATUS_DENIED,
                       "%s: a symbolic link to '%s', where there is nothing; fetch the file again",
                       name, to);
    errno = e;
    return fail_errno(name, "open", err);
}

/* at, a descriptor that only locates, is what the roots allow. */
static enum status check_located(int at, const char *link, const char *name,
                                 const struct file_roots *roots, struct errtext *err)
{
    char real[PATH_MAX];
    struct stat sb;
    if (fstat(at, &sb) != 0)
        return fail_errno(name, "stat", err);
    if (!S_ISREG(sb.st_mode))
        return err_set(err, STATUS_INVALID, "%s: not a regular file", name);
    ssize_t n = readlink(link, real, sizeof(real) - 1);
    if (n < 0)
        return fail_errno(name, "locate (is /proc mounted?)", err);
    real[n] = '\0';
    if (sb.st_nlink == 0)
        return err_set(err, STATUS_CORRUPT, "%s: removed while it was opened", name);
    for (uint32_t i = 0; i < roots->count; i++) {
        if (file_is_beneath(real, roots->root[i]))
            return STATUS_OK;
    }
    return err_set(
        err, STATUS_DENIED,
        "%s: leads to %.300s, which is not beneath %.200s%s: a symbolic link is followed "
        "inside the folders that are allowed only",
        name, real, roots->count ? roots->root[0] : "a folder that is allowed",
        roots->count > 1 ? " or another folder that is allowed" : "");
}

enum status file_open_within(const char *dir, const char *name, const struct file_roots *roots,
                             int *fd, struct errtext *err)
{
    char path[PATH_MAX], link[40];
    *fd = -1;
    if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path))
        return err_set(err, STATUS_INVALID, "%s/%s: path too long", dir, name);
    int at = open(path, O_PATH | O_CLOEXEC);
    if (at < 0)
        return fail_located(path, name, err);
    snprintf(link, sizeof(link), "/proc/self/fd/%d", at);
    enum status st = check_located(at, link, name, roots, err);
    if (!st) {
        *fd = open(link, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (*fd < 0)
            st = fail_errno(name, "open", err);
    }
    close(at);
    return st;
}

enum status file_mkdirs(const char *path, unsigned mode, struct errtext *err)
{
    char tmp[PATH_MAX];
    if ((size_t)snprintf(tmp, sizeof(tmp), "%s", path) >= sizeof(tmp))
        return err_set(err, STATUS_INVALID, "%s: path too long", path);
    for (char *p = tmp + 1;; p++) {
        if (*p != '/' && *p != '\0')
            continue;
        char keep = *p;
        *p = '\0';
        if (mkdir(tmp, mode) != 0 && errno != EEXIST)
            return fail_errno(tmp, "mkdir", err);
        *p = keep;
        if (keep == '\0')
            return STATUS_OK;
    }
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}
