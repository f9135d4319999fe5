/* Reopening puts the new file under the old descriptor (dup3), in one step for every writer. */
#include "server/base/logfile.h"
#include "server/base/env.h"
#include "server/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

static enum status open_path(int *fd, const char *path, struct errtext *err)
{
    *fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0640);
    return *fd >= 0 ? STATUS_OK : err_set(err, STATUS_IO, "log file %s: %s", path, strerror(errno));
}

enum status logfile_open(struct logfile *out, const char *path, struct errtext *err)
{
    char full[PATH_MAX];
    *out = (struct logfile){.fd = STDOUT_FILENO};
    if (strcmp(path, "-") == 0)
        return STATUS_OK;
    env_log_path(full, sizeof(full), path);
    enum status st = open_path(&out->fd, full, err);
    if (!st)
        out->path = mem_strdup(full);
    return st;
}

enum status logfile_reopen(struct logfile *f, struct errtext *err)
{
    int fd;
    if (!f->path)
        return STATUS_OK;
    enum status st = open_path(&fd, f->path, err);
    if (st)
        return st;
    if (dup3(fd, f->fd, O_CLOEXEC) < 0)
        st = err_set(err, STATUS_IO, "log file %s: %s", f->path, strerror(errno));
    close(fd);
    return st;
}

void logfile_write(const struct logfile *f, const char *line, size_t len)
{
    (void)!write(f->fd, line, len);
}

void logfile_close(struct logfile *f)
{
    if (f->path)
        close(f->fd);
    mem_free(f->path);
    *f = LOGFILE_STDERR;
}
