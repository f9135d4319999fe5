/* A state in one file that ends with its own digest: what was cut or changed is not taken for it.
 *
 *   magic 8 | the rest of the head | parts | BLAKE2b-256 of all before
 *
 * Blocks on disk. Thread: any. */
#ifndef RS_TRAIN_SEALED_H
#define RS_TRAIN_SEALED_H

#include "server/base/file.h"

#define SEALED_PARTS_MAX    8
#define SEALED_DIGEST_BYTES 32

/* Writes part[0 .. n-1] and the digest, as file_write_parts does. */
MUST_CHECK enum status sealed_write(const char *path, const struct file_part *part, uint32_t n,
                                    unsigned mode, struct errtext *err);
enum sealed_found { SEALED_WHOLE, SEALED_STRANGE, SEALED_DAMAGED };
/* STRANGE: it has no head of head_bytes with this magic; DAMAGED: it fails its digest. */
enum sealed_found sealed_check(const uint8_t *data, size_t len, const char magic[8],
                               size_t head_bytes);

#endif
