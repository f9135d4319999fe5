/* What this process remembers of an adapter whose content it has hashed, so that the next load of
 * the same file need not hash 2 x rank x (d_in + d_out) bytes a module again. A seal covers a file
 * if device, inode, size, mtime and ctime are those it had, before and after it was read, when its
 * hash was right. The config and the safetensors header are small and are hashed at every load.
 *
 * Noticed: every write, truncation, rename, replacement, restored mtime and metadata change, since
 * the kernel sets ctime and no call sets it back. A file younger than SEAL_SETTLE_MS gets no seal:
 * a second write within the clock's granularity could leave the same ctime.
 * Not noticed until the content is hashed again, which happens after SEAL_USES_MAX loads at the
 * latest: stores through a writable mapping (where the file system does not update ctime: tmpfs, or
 * a page that was dirty before), writes below the file system, a system clock set back to the very
 * nanosecond, and a network file system whose server lies about ctime. Who can do these and wants
 * to serve other weights under an id is the operator, whose lane key signs the records anyway.
 * In doubt there is no seal, and without a seal a load is hashed. Thread: one at a time. */
#ifndef RS_ADAPTER_PEFT_SEAL_H
#define RS_ADAPTER_PEFT_SEAL_H

#include "server/base/errtext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SEAL_SETTLE_MS 2000u /* the coarsest timestamps in use (FAT) */
#define SEAL_USES_MAX  64u

struct seal_stamp { /* what fstat says */
    uint64_t dev, ino, bytes;
    int64_t mtime_ns, ctime_ns;
};

struct seal {
    bool is_set;
    uint32_t uses; /* loads it vouched for since the content was hashed */
    struct seal_stamp file;
    uint8_t head[32]; /* digest of config and header */
};

/* Errors: INVALID if it is not a regular file, IO. */
MUST_CHECK enum status seal_stamp_take(struct seal_stamp *out, int fd, const char *name,
                                       struct errtext *err);
bool seal_stamp_equal(const struct seal_stamp *a, const struct seal_stamp *b);
/* A change from now on shows in ctime. */
bool seal_stamp_is_settled(const struct seal_stamp *s, uint64_t wall_ms);
void seal_head(uint8_t out[32], const char *config, size_t config_bytes, const char *header,
               size_t header_bytes);
/* May a file that looks like `seen` be taken for the one that `s` was given for? */
bool seal_covers(const struct seal *s, const struct seal *seen);

#endif
