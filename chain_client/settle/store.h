/* A further place for what is published, beside the archive's folder: a directory or a bucket of an
 * S3-compatible service. Content-addressed: a folder's name ends in the hash that names its content
 * (a batch's is on the ledger, an epoch's manifest in its proposal), so different content has
 * different names, a put is repeatable, and nothing is overwritten by another.
 *
 *   <place>/batch-<8 digits>-<batchHash>/{records.bin,manifest.json,header.json}
 *   <place>/epoch-<8 digits>-<keccak of manifest.json>/...
 *
 * Thread: one per store. Blocks. */
#ifndef RS_SETTLE_STORE_H
#define RS_SETTLE_STORE_H

#include "chain_client/settle/archive.h"

#define STORE_NAME_BYTES (ARCHIVE_NAME_BYTES + 66)
#define STORES_MAX       8

struct depot;
struct store_config {
    const char *endpoint, *region, *key_file; /* of s3:// */
};

/* place: a directory, or s3://bucket[/prefix]. Errors: INVALID, DENIED for the key file's mode. */
MUST_CHECK enum status store_open(struct depot **out, const char *place,
                                  const struct store_config *config, struct errtext *err);
void store_close(struct depot *s); /* NULL is fine */
const char *store_place(const struct depot *s);

void store_name(char out[STORE_NAME_BYTES], const char *folder, const uint8_t hash[32]);
/* Put each file that is not there and read it back. CORRUPT: it gives other bytes back. */
MUST_CHECK enum status store_put(struct depot *s, const char *name, const struct archive_file *file,
                                 size_t count, struct errtext *err);
/* NOT_FOUND. The caller's (mem_free). */
MUST_CHECK enum status store_get(struct depot *s, const char *name, const char *file,
                                 struct canon_bytes *out, struct errtext *err);

#endif
