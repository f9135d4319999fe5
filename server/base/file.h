/* Whole files with a maximum, secrets with a mode check, and paths that resolve beneath a root
 * without following links. A file that shrinks or grows while it is read is STATUS_CORRUPT, never a
 * fault. Thread: any; blocks on disk. */
#ifndef RS_BASE_FILE_H
#define RS_BASE_FILE_H

#include "server/base/errtext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Read all of path (a regular file) into a fresh NUL-terminated block owned by the caller
 * (mem_free). Errors: NOT_FOUND, IO, TOO_LARGE past bytes_max, NO_MEMORY, CORRUPT if the size
 * changed meanwhile. */
MUST_CHECK enum status file_read(const char *path, size_t bytes_max, char **data, size_t *len,
                                 struct errtext *err);
/* The same from an open descriptor (not closed). name is for the error text. */
MUST_CHECK enum status file_read_fd(int fd, const char *name, size_t bytes_max, char **data,
                                    size_t *len, struct errtext *err);
/* file_read, refusing a file that group or others may read or write. Trailing white space is cut.
 * Wipe after use. */
MUST_CHECK enum status file_read_secret(const char *path, size_t bytes_max, char **data,
                                        size_t *len, struct errtext *err);
/* Write via a temporary name in the same folder, fsync, rename, fsync of the folder. */
MUST_CHECK enum status file_write_atomic(const char *path, const void *data, size_t len,
                                         unsigned mode, struct errtext *err);
/* Open relative below root_fd, refusing "..", absolute paths and every symbolic link. flags as
 * open(2). */
MUST_CHECK enum status file_open_beneath(int root_fd, const char *relative, int flags,
                                         unsigned mode, int *fd, struct errtext *err);
MUST_CHECK enum status file_mkdirs(const char *path, unsigned mode, struct errtext *err);
bool file_exists(const char *path);

#endif
