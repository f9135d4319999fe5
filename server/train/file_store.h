/* Files that clients brought or that jobs left (/v1/files), each its owner's alone:
 *
 *     DIR/<id>        the bytes
 *         <id>.json   whose they are, name, purpose, digest; written last: bytes without it are of
 *                     an upload that did not end, and swept at the next start
 *
 * A file is there whole or not at all, never changes, and stays until its owner deletes it. Bounded
 * in bytes, of all and of an owner, and in files of an owner. Thread: any; blocks on disk. */
#ifndef RS_TRAIN_FILE_STORE_H
#define RS_TRAIN_FILE_STORE_H

#include "server/base/errtext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FILE_STORE_ID_BYTES  32 /* "file-" and 24 hex digits */
#define FILE_STORE_NAME_MAX  255
#define FILE_STORE_FILES_MAX 65536u      /* of all owners */
#define FILE_STORE_BYTES_MAX (64u << 20) /* of one file */

struct file_store;
struct file_store_options {
    const char *dir;
    uint64_t bytes_max, owner_bytes_max;
    uint32_t owner_files_max;
};
/* Reads DIR, which is made. A file that cannot be read is left out, and the log says why. */
MUST_CHECK enum status file_store_open(struct file_store **out,
                                       const struct file_store_options *opt, struct errtext *err);
void file_store_close(struct file_store *s); /* NULL is fine */

struct stored_file { /* a copy */
    char id[FILE_STORE_ID_BYTES], owner[64], name[FILE_STORE_NAME_MAX + 1], purpose[24];
    uint64_t bytes;
    int64_t created_ms;
    uint8_t digest[32]; /* BLAKE2b-256 */
};
/* Keeps it, durable when it returns. In f: owner, name, purpose, and an id or "" for a new one; the
 * rest is set. Errors: INVALID a name that is no text; TOO_LARGE past a bound (with the code
 * "file_quota_exceeded"); FULL the disk (FILE_DISK_FULL); EXISTS the id; IO. */
MUST_CHECK enum status file_store_put(struct file_store *s, struct stored_file *f, const void *data,
                                      size_t len, struct errtext *err);
/* false: there is none of this owner. */
bool file_store_get(struct file_store *s, const char *owner, const char *id,
                    struct stored_file *out);
struct file_page {
    const char *owner, *purpose, *after; /* purpose NULL: any; after NULL: from the first */
    bool oldest_first;
};
/* At most max of them, behind `after`; *more: there are others. NOT_FOUND: there is no `after`. */
MUST_CHECK enum status file_store_list(struct file_store *s, const struct file_page *page,
                                       struct stored_file *out, uint32_t max, uint32_t *count,
                                       bool *more, struct errtext *err);
/* Its bytes (mem_free), digest verified. NOT_FOUND: deleted meanwhile; CORRUPT, IO, NO_MEMORY. */
MUST_CHECK enum status file_store_read(struct file_store *s, const struct stored_file *f,
                                       char **data, size_t *len, struct errtext *err);
/* NOT_FOUND: there is none of this owner; IO. */
MUST_CHECK enum status file_store_remove(struct file_store *s, const char *owner, const char *id,
                                         struct errtext *err);

struct file_store_stats {
    uint32_t files;
    uint64_t bytes;
};
struct file_store_stats file_store_stats(struct file_store *s);

#endif
