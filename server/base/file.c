/* Files are read through their descriptor with the size that fstat gave, then probed for one more
 * byte: a size that changed while reading is an error that names it. Beneath-root opens walk one
 * component at a time with O_NOFOLLOW. */
#include "server/base/file.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
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
    return err_set(err, errno_status(e), "%s: %s: %s", name, what, strerror(e));
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

static enum status write_all(int fd, const char *name, const char *data, size_t len,
                             struct errtext *err)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_errno(name, "write", err);
        data += n;
        len -= (size_t)n;
    }
    return fsync(fd) == 0 ? STATUS_OK : fail_errno(name, "fsync", err);
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
    char tmp[PATH_MAX];
    if ((size_t)snprintf(tmp, sizeof(tmp), "%s.tmp-%ld", path, (long)getpid()) >= sizeof(tmp))
        return err_set(err, STATUS_INVALID, "%s: path too long", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return fail_errno(tmp, "create", err);
    enum status st = write_all(fd, tmp, data, len, err);
    if (!st && fchmod(fd, mode) != 0)
        st = fail_errno(tmp, "chmod", err);
    close(fd);
    if (!st && rename(tmp, path) != 0)
        st = fail_errno(path, "rename", err);
    if (st)
        (void)unlink(tmp);
    return st ? st : sync_folder_of(path, err);
}

enum status file_open_beneath(int root_fd, const char *relative, int flags, unsigned mode, int *fd,
                              struct errtext *err)
{
    char part[NAME_MAX + 1];
    int dir = dup(root_fd);
    *fd = -1;
    if (dir < 0)
        return fail_errno(relative, "dup", err);
    if (relative[0] == '/' || relative[0] == '\0') {
        close(dir);
        return err_set(err, STATUS_DENIED, "path '%s': must be relative to its root", relative);
    }
    for (const char *p = relative;;) {
        size_t n = strcspn(p, "/");
        if (n == 0 || n > NAME_MAX || (n == 1 && p[0] == '.') || (n == 2 && !strncmp(p, "..", 2))) {
            close(dir);
            return err_set(err, STATUS_DENIED, "path '%s': empty, '.', '..' or overlong part",
                           relative);
        }
        memcpy(part, p, n);
        part[n] = '\0';
        bool last = p[n] == '\0';
        int next = last ? openat(dir, part, flags | O_NOFOLLOW | O_CLOEXEC, mode)
                        : openat(dir, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0) {
            enum status st = fail_errno(relative, errno == ELOOP ? "symbolic link" : "open", err);
            close(dir);
            return st;
        }
        close(dir);
        if (last) {
            *fd = next;
            return STATUS_OK;
        }
        dir = next;
        p += n + 1;
    }
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
