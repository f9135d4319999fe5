/* A stamp is taken before and after a file is read; a seal is made only of two equal ones that are
 * old enough. */
#include "server/adapter/peft/seal.h"
#include "server/base/hex.h"

#include <errno.h>
#include <sodium.h>
#include <string.h>
#include <sys/stat.h>

static int64_t ns_of(const struct timespec *t)
{
    return (int64_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

enum status seal_stamp_take(struct seal_stamp *out, int fd, const char *name, struct errtext *err)
{
    struct stat sb;
    memset(out, 0, sizeof(*out));
    if (fstat(fd, &sb) != 0)
        return err_set(err, STATUS_IO, "%s: stat: %s", name, strerror(errno));
    if (!S_ISREG(sb.st_mode))
        return err_set(err, STATUS_INVALID, "%s: not a regular file", name);
    out->dev = sb.st_dev;
    out->ino = sb.st_ino;
    out->bytes = (uint64_t)sb.st_size;
    out->mtime_ns = ns_of(&sb.st_mtim);
    out->ctime_ns = ns_of(&sb.st_ctim);
    return STATUS_OK;
}

bool seal_stamp_equal(const struct seal_stamp *a, const struct seal_stamp *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->bytes == b->bytes &&
           a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}

bool seal_stamp_is_settled(const struct seal_stamp *s, uint64_t wall_ms)
{
    return s->ctime_ns < ((int64_t)wall_ms - (int64_t)SEAL_SETTLE_MS) * 1000000;
}

void seal_head(uint8_t out[32], const char *config, size_t config_bytes, const char *header,
               size_t header_bytes)
{
    crypto_generichash_state h;
    uint8_t len[8];
    be_put(len, config_bytes, 8);
    crypto_generichash_init(&h, NULL, 0, 32);
    crypto_generichash_update(&h, len, sizeof(len));
    crypto_generichash_update(&h, (const uint8_t *)config, config_bytes);
    crypto_generichash_update(&h, (const uint8_t *)header, header_bytes);
    crypto_generichash_final(&h, out, 32);
}

bool seal_covers(const struct seal *s, const struct seal *seen)
{
    return s->is_set && s->uses < SEAL_USES_MAX && seal_stamp_equal(&s->file, &seen->file) &&
           memcmp(s->head, seen->head, sizeof(s->head)) == 0;
}
