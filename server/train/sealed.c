/* See sealed.h. */
#include "server/train/sealed.h"
#include "server/base/check.h"

#include <sodium.h>
#include <string.h>

enum status sealed_write(const char *path, const struct file_part *part, uint32_t n, unsigned mode,
                         struct errtext *err)
{
    struct file_part all[SEALED_PARTS_MAX + 1];
    uint8_t digest[SEALED_DIGEST_BYTES];
    crypto_generichash_state h;
    CHECK(n <= SEALED_PARTS_MAX);
    crypto_generichash_init(&h, NULL, 0, sizeof(digest));
    for (uint32_t i = 0; i < n; i++) {
        all[i] = part[i];
        crypto_generichash_update(&h, part[i].data, part[i].len);
    }
    crypto_generichash_final(&h, digest, sizeof(digest));
    all[n] = (struct file_part){digest, sizeof(digest)};
    return file_write_parts(path, all, n + 1, mode, err);
}

enum sealed_found sealed_check(const uint8_t *data, size_t len, const char magic[8],
                               size_t head_bytes)
{
    uint8_t digest[SEALED_DIGEST_BYTES];
    if (len < head_bytes + sizeof(digest) || memcmp(data, magic, 8) != 0)
        return SEALED_STRANGE;
    crypto_generichash(digest, sizeof(digest), data, len - sizeof(digest), NULL, 0);
    return sodium_memcmp(digest, data + len - sizeof(digest), sizeof(digest)) ? SEALED_DAMAGED
                                                                              : SEALED_WHOLE;
}
