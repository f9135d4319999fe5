/* The durable side of scoring jobs: append-only files of encrypted entries, erased in place.
 *
 *   <dir>/jobs-<first seq>.bin   entries, back to back
 *   entry = length u32 | infSeq u64 | nonce 24 | ciphertext
 *
 * XChaCha20-Poly1305, length and seq as associated data. An erased entry keeps length and seq,
 * everything after is zero; a file whose entries are all erased is deleted. A torn tail is cut at
 * open: its record was never released. Bounded by bytes_max. Thread: the recorder's. */
#ifndef RS_INFLUENCE_JOBSTORE_H
#define RS_INFLUENCE_JOBSTORE_H

#include "server/base/buf.h"
#include "server/base/errtext.h"

struct jobstore;

/* visit is called for every live entry, in order of appending. An entry it refuses, and one that
 * fails its check, is erased. */
typedef enum status (*jobstore_visit)(void *arg, uint64_t inf_seq, const uint8_t *plain, size_t len,
                                      struct errtext *err);

MUST_CHECK enum status jobstore_open(struct jobstore **out, const char *dir, const uint8_t key[32],
                                     uint64_t bytes_max, jobstore_visit visit, void *arg,
                                     struct errtext *err);
void jobstore_close(struct jobstore *s);
/* inf_seq never falls below a live one's. Errors: FULL (budget or disk), IO. Durable after
 * jobstore_sync. */
MUST_CHECK enum status jobstore_append(struct jobstore *s, uint64_t inf_seq, const void *plain,
                                       size_t len, struct errtext *err);
MUST_CHECK enum status jobstore_sync(struct jobstore *s, struct errtext *err);
/* Overwrite the entry of inf_seq; nothing if there is none. */
void jobstore_erase(struct jobstore *s, uint64_t inf_seq);
uint64_t jobstore_bytes(const struct jobstore *s); /* live */
uint64_t jobstore_count(const struct jobstore *s);

#endif
