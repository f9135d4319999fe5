/* Whole files with a maximum, secrets with a mode check, and files that must lie beneath a root,
 * whatever links lead to them. A file that shrinks or grows while it is read is STATUS_CORRUPT,
 * never a fault. Thread: any; blocks on disk. */
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
/* All of data, to an open descriptor. name is for the error text. */
MUST_CHECK enum status file_write_fd(int fd, const char *name, const void *data, size_t len,
                                     struct errtext *err);
/* Write via a temporary name in the same folder, fsync, rename, fsync of the folder. */
MUST_CHECK enum status file_write_atomic(const char *path, const void *data, size_t len,
                                         unsigned mode, struct errtext *err);
/* The same of a file whose bytes lie in several places: one after the other. */
struct file_part {
    const void *data;
    size_t len;
};
MUST_CHECK enum status file_write_parts(const char *path, const struct file_part *part,
                                        uint32_t count, unsigned mode, struct errtext *err);
#define FILE_ROOTS_MAX 18
struct file_roots { /* folders, as realpath gives them */
    const char *root[FILE_ROOTS_MAX];
    uint32_t count;
};
bool file_is_beneath(const char *real, const char *root);
/* Open dir's regular file `name` for reading. A symbolic link is followed, through any number of
 * folders, if what it leads to lies beneath one of the roots. What was checked is what is open,
 * whoever renames meanwhile; nothing that is not a regular file is ever opened.
 * Errors, all with the name and where it leads: NOT_FOUND there is no such entry; DENIED a link
 * out of the roots, to nothing or in a circle, or no permission; INVALID not a regular file. */
MUST_CHECK enum status file_open_within(const char *dir, const char *name,
                                        const struct file_roots *roots, int *fd,
                                        struct errtext *err);
/* Of what can be made or sent again: after `bytes` more on dir's file system there must be left,
 * for what cannot, an eighth of it, FILE_KEPT_BYTES at most. FULL: there would not be; IO.
 * A full disk's error has the code FILE_DISK_FULL, here and above. */
#define FILE_DISK_FULL  "disk_full"
#define FILE_KEPT_BYTES (64ull << 20)
MUST_CHECK enum status file_spare(const char *dir, uint64_t bytes, struct errtext *err);
MUST_CHECK enum status file_mkdirs(const char *path, unsigned mode, struct errtext *err);
bool file_exists(const char *path);

#endif
